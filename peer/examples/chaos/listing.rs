//! Parses listings, scans shares, and compares the two.

use std::{collections::BTreeMap, io, path::Path};

use serde_json::Value;

use crate::model::Hash;

/// Upper bound of the differences shown for one listing.
const MAX_DIFFERENCES: usize = 4;

/// Name and hash of a file version. The hash of an empty directory is the empty string.
pub type Version = (String, Hash);

/// Size and owners of a version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owned {
    /// Size, bytes.
    pub size: u64,
    /// Ids of the owners, sorted.
    pub owners: Vec<String>,
}

/// Versions with their owners.
pub type Listing = BTreeMap<Version, Owned>;

/// Parses the document of `listAll --json`.
pub fn listing(document: &Value) -> Listing {
    let files = document["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |file: &Value| {
        let is_directory = file["kind"] == "directory";
        let name = text(&file["name"]);
        let hash = if is_directory { Hash::new() } else { text(&file["hash"]) };
        let owners = file["owners"].as_array().into_iter().flatten().map(text).collect();
        let version = (name.trim_end_matches('/').to_owned(), hash);
        (version, Owned { size: file["size"].as_u64().unwrap_or(u64::MAX), owners })
    };
    files.iter().map(entry).collect()
}

/// Returns the differences between a listing and the expected one, at most [`MAX_DIFFERENCES`] and a count of the rest.
pub fn differences(found: &Listing, expected: &Listing) -> Vec<String> {
    let show = |(name, hash): &Version| format!("{name}@{}", hash.get(..8).unwrap_or("directory"));
    let missing = expected.iter().filter_map(|(version, owned)| match found.get(version) {
        Some(other) if other == owned => None,
        Some(other) => Some(format!("{} is {other:?}, expected {owned:?}", show(version))),
        None => Some(format!("{} of {:?} is missing", show(version), owned.owners)),
    });
    let extra = found.iter().filter(|(version, _)| !expected.contains_key(*version));
    let extra = extra.map(|(version, owned)| format!("{} of {:?} is unexpected", show(version), owned.owners));
    let mut all: Vec<String> = missing.chain(extra).collect();
    if all.len() > MAX_DIFFERENCES {
        let omitted = all.len() - MAX_DIFFERENCES;
        all.truncate(MAX_DIFFERENCES);
        all.push(format!("and {omitted} more"));
    }
    all
}

/// Files of a share with hash and size, and its empty directories as `None`.
pub type Scan = BTreeMap<String, Option<(Hash, u64)>>;

/// Scans a share, without hidden files.
///
/// # Errors
/// When a file or directory cannot be read.
pub fn scan(share: &Path) -> io::Result<Scan> {
    let mut found = Scan::new();
    let mut folders = vec![(String::new(), share.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let mut is_empty = true;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            is_empty = false;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                folders.push((format!("{path}/"), entry.path()));
            } else {
                let bytes = std::fs::read(entry.path())?;
                found.insert(path, Some((blake3::hash(&bytes).to_hex().to_string(), bytes.len() as u64)));
            }
        }
        if is_empty && !prefix.is_empty() {
            found.insert(prefix.trim_end_matches('/').to_owned(), None);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scan_finds_files_and_empty_directories_but_nothing_hidden() {
        let folder = tempfile::tempdir().unwrap();
        for directory in ["d/e", "f", "g/.h", ".i"] {
            std::fs::create_dir_all(folder.path().join(directory)).unwrap();
        }
        std::fs::write(folder.path().join("d/e/a.bin"), b"a").unwrap();
        let found = scan(folder.path()).unwrap();
        let hash = blake3::hash(b"a").to_hex().to_string();
        assert_eq!(found, Scan::from([("d/e/a.bin".to_owned(), Some((hash, 1))), ("f".to_owned(), None)]));
    }

    #[test]
    fn differences_report_missing_wrong_and_unexpected_versions() {
        let document = serde_json::json!({"files": [
            {"name": "a", "size": 1, "hash": "h1", "owners": ["peer1"]},
            {"name": "b", "size": 1, "hash": "h2", "owners": ["peer1"]},
            {"name": "d/", "size": 0, "hash": "h0", "owners": ["peer2"], "kind": "directory"},
        ]});
        let owned = |owner: &str, size| Owned { size, owners: vec![owner.to_owned()] };
        let version = |name: &str, hash: &str| (name.to_owned(), hash.to_owned());
        let same = Listing::from([
            (version("a", "h1"), owned("peer1", 1)),
            (version("b", "h2"), owned("peer1", 1)),
            (version("d", ""), owned("peer2", 0)),
        ]);
        assert!(differences(&listing(&document), &same).is_empty());
        let mut other = same.clone();
        other.remove(&version("a", "h1"));
        other.insert(version("b", "h2"), owned("peer2", 1));
        other.insert(version("c", "h3"), owned("peer2", 1));
        assert_eq!(differences(&listing(&document), &other).len(), 3);
    }
}
