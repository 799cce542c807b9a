//! Selects the versions that a download request means. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use globset::GlobBuilder;
use shared::{
    content::{ContentHash, HashPrefix},
    id::PeerId,
    rpc::tracker::IndexedFile,
};

/// Criteria of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection<'a> {
    /// A file name, a directory (with or without a `/` at the end), or a glob (`*`, `?`, `[…]`, `{a,b}`, `**`;
    /// `*` does not cross a `/`).
    pub(crate) pattern: &'a str,
    /// Only the version whose hash begins with this prefix.
    pub(crate) version: Option<&'a HashPrefix>,
    /// Only files of this peer.
    pub(crate) from: Option<&'a PeerId>,
    /// Versions of which a partial file exists.
    pub(crate) unfinished: &'a [ContentHash],
}

/// Reason why nothing is selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No file matches.
    #[error("no file matches {pattern:?}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// The only peer that was considered.
        from: Option<PeerId>,
        /// The only version that was considered.
        version: Option<HashPrefix>,
    },
    /// The pattern is not a valid glob.
    #[error("{pattern:?} is not a glob: {reason}")]
    InvalidGlob {
        /// The pattern.
        pattern: String,
        /// Reason, as the parser gives it.
        reason: String,
    },
}

/// Returns the part of `pattern` before its first special character, with which every matching name begins.
pub(crate) fn common_prefix(pattern: &str) -> &str {
    let special = pattern.find(['*', '?', '[', '{', '\\']).unwrap_or(pattern.len());
    &pattern[..special]
}

/// Returns the [`common_prefix`] in the form of the tracker's names: a directory has no `/` at the end.
pub(crate) fn listed_prefix(pattern: &str) -> &str {
    let prefix = common_prefix(pattern);
    if prefix.len() == pattern.len() { prefix.trim_end_matches('/') } else { prefix }
}

/// Selects one version for each name: the one with a partial file, then the one with most owners, then the newest, then
/// the one with the lowest hash.
///
/// A file whose name equals the pattern precedes a directory, a directory precedes a glob. An empty directory is left
/// out if a selected file or directory lies in it.
///
/// # Errors
/// See [`SelectError`].
pub(crate) fn select(selection: Selection<'_>, files: Vec<IndexedFile>) -> Result<Vec<IndexedFile>, SelectError> {
    let candidates: Vec<IndexedFile> = files
        .into_iter()
        .filter(|file| selection.version.is_none_or(|version| version.matches(&file.file.hash)))
        .filter(|file| selection.from.is_none_or(|from| file.owners.contains(from)))
        .collect();
    let is_exact = |file: &&IndexedFile| file.file.name.as_str() == selection.pattern && !file.file.is_directory();
    let exact: Vec<_> = candidates.iter().filter(is_exact).cloned().collect();
    let chosen = if exact.is_empty() { below_or_glob(selection.pattern, candidates)? } else { exact };
    let mut best: BTreeMap<String, IndexedFile> = BTreeMap::new();
    for file in chosen {
        let name = file.file.name.to_string();
        let rank = |file: &IndexedFile| (selection.unfinished.contains(&file.file.hash), rank(file));
        let better = best.get(&name).is_none_or(|other| rank(&file) > rank(other));
        if better {
            best.insert(name, file);
        }
    }
    if best.is_empty() {
        return Err(SelectError::NoMatch {
            pattern: selection.pattern.to_owned(),
            from: selection.from.cloned(),
            version: selection.version.cloned(),
        });
    }
    let above: BTreeSet<String> =
        best.values().flat_map(|file| file.file.name.directories().map(str::to_owned)).collect();
    best.retain(|name, file| !file.file.is_directory() || !above.contains(name));
    Ok(best.into_values().collect())
}

fn rank(file: &IndexedFile) -> (usize, i64, Reverse<ContentHash>) {
    (file.owners.len(), file.file.mtime_micros, Reverse(file.file.hash))
}

fn below_or_glob(pattern: &str, candidates: Vec<IndexedFile>) -> Result<Vec<IndexedFile>, SelectError> {
    let folder = format!("{}/", pattern.trim_end_matches('/'));
    let is_in = |IndexedFile { file, .. }: &&IndexedFile| {
        file.name.as_str().starts_with(&folder)
            || file.is_directory() && folder.strip_suffix('/') == Some(file.name.as_str())
    };
    let below: Vec<_> = candidates.iter().filter(is_in).cloned().collect();
    if !below.is_empty() || common_prefix(pattern).len() == pattern.len() {
        return Ok(below);
    }
    let glob = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|error| SelectError::InvalidGlob { pattern: pattern.to_owned(), reason: error.kind().to_string() })?;
    let matcher = glob.compile_matcher();
    Ok(candidates.into_iter().filter(|file| matcher.is_match(file.file.name.as_str())).collect())
}

#[cfg(test)]
mod tests {
    use shared::content::{DIRECTORY_HASH, FileMeta};

    use super::*;

    fn file(name: &str, hash: u8, mtime_micros: i64, owners: &[&str]) -> IndexedFile {
        let name = name.parse().unwrap();
        let file = FileMeta { name, size: 1, hash: ContentHash([hash; 32]), mtime_micros, executable: false };
        IndexedFile { file, owners: owners.iter().map(|owner| owner.parse().unwrap()).collect() }
    }

    fn network() -> Vec<IndexedFile> {
        vec![
            file("a.txt", 1, 10, &["p1"]),
            file("a.txt", 2, 5, &["p2", "p3"]),
            file("docs/a.rs", 3, 0, &["p1"]),
            file("docs/deep/b.rs", 4, 0, &["p1"]),
            file("main.rs", 5, 0, &["p2"]),
            file("[x].rs", 6, 0, &["p2"]),
        ]
    }

    fn names(pattern: &str) -> Vec<String> {
        let selection = Selection { pattern, version: None, from: None, unfinished: &[] };
        select(selection, network()).unwrap().iter().map(|file| file.file.name.to_string()).collect()
    }

    #[test]
    fn name_precedes_directory_and_directory_precedes_glob() {
        assert_eq!(names("main.rs"), ["main.rs"]);
        assert_eq!(names("docs"), ["docs/a.rs", "docs/deep/b.rs"]);
        assert_eq!(names("docs/"), ["docs/a.rs", "docs/deep/b.rs"]);
        assert_eq!(names("*.rs"), ["[x].rs", "main.rs"]);
        assert_eq!(names("**/*.rs"), ["[x].rs", "docs/a.rs", "docs/deep/b.rs", "main.rs"]);
        assert_eq!(names("docs/?.rs"), ["docs/a.rs"]);
        assert_eq!(names("[x].rs"), ["[x].rs"], "a literal name precedes a glob");
    }

    #[test]
    fn empty_directory_is_selected_unless_another_peer_has_something_in_it() {
        let directory = |name: &str| {
            let mut entry = file(name, 0, 0, &["p1"]);
            (entry.file.size, entry.file.hash) = (0, DIRECTORY_HASH);
            entry
        };
        let mut files = network();
        files.extend([directory("docs"), directory("docs/empty"), directory("main.rs"), directory("void")]);
        let names = |pattern: &str| -> Vec<String> {
            let selection = Selection { pattern, version: None, from: None, unfinished: &[] };
            let name = |found: &IndexedFile| {
                format!("{}{}", found.file.name, if found.file.is_directory() { "/" } else { "" })
            };
            select(selection, files.clone()).unwrap().iter().map(name).collect()
        };
        for pattern in ["docs", "docs/"] {
            assert_eq!(names(pattern), ["docs/a.rs", "docs/deep/b.rs", "docs/empty/"], "{pattern}");
        }
        assert_eq!((names("void"), names("void/")), (vec!["void/".to_owned()], vec!["void/".to_owned()]));
        assert_eq!(names("v*"), ["void/"]);
        assert_eq!((names("main.rs"), names("main.rs/")), (vec!["main.rs".to_owned()], vec!["main.rs/".to_owned()]));
        assert_eq!((listed_prefix("void/"), listed_prefix("docs/*.rs")), ("void", "docs/"));
    }

    #[test]
    fn version_with_most_owners_precedes_the_newest() {
        let pick = |version: Option<&str>, from: Option<&str>| {
            let version = version.map(|version| version.parse().unwrap());
            let from = from.map(|from| from.parse().unwrap());
            let selection =
                Selection { pattern: "a.txt", version: version.as_ref(), from: from.as_ref(), unfinished: &[] };
            select(selection, network()).map(|files| files[0].file.hash.0[0])
        };
        assert_eq!(pick(None, None), Ok(2));
        assert_eq!(pick(Some("0101"), None), Ok(1));
        assert_eq!(pick(None, Some("p1")), Ok(1));
        let mut newer = network();
        newer.push(file("a.txt", 9, 99, &["p2", "p3"]));
        let selection = Selection { pattern: "a.txt", version: None, from: None, unfinished: &[] };
        assert_eq!(select(selection, newer).unwrap()[0].file.hash.0[0], 9);
        let begun = [ContentHash([1; 32])];
        let selection = Selection { pattern: "a.txt", version: None, from: None, unfinished: &begun };
        assert_eq!(
            select(selection, network()).unwrap()[0].file.hash,
            begun[0],
            "a version with a partial file precedes all others"
        );
        let of_receivers = vec![file("a.txt", 1, 5, &["r1", "r2"]), file("a.txt", 2, i64::MAX, &["liar"])];
        let selection = Selection { pattern: "a.txt", version: None, from: None, unfinished: &[] };
        assert_eq!(
            select(selection, of_receivers).unwrap()[0].file.hash.0[0],
            1,
            "the number of owners precedes the time"
        );
        assert!(matches!(pick(Some("ffff"), None), Err(SelectError::NoMatch { .. })));
        assert!(matches!(pick(None, Some("p9")), Err(SelectError::NoMatch { .. })));
    }

    #[test]
    fn unmatched_pattern_and_invalid_glob_are_errors() {
        for (pattern, is_valid) in [("none", true), ("*.zip", true), ("{a", false)] {
            let selection = Selection { pattern, version: None, from: None, unfinished: &[] };
            let error = select(selection, network()).unwrap_err();
            assert_eq!(matches!(error, SelectError::NoMatch { .. }), is_valid, "{pattern}: {error}");
            assert_eq!(matches!(error, SelectError::InvalidGlob { .. }), !is_valid, "{pattern}: {error}");
        }
    }

    #[test]
    fn common_prefix_ends_before_the_first_special_character() {
        assert_eq!(common_prefix("docs/*.rs"), "docs/");
        assert_eq!(common_prefix("docs"), "docs");
        assert_eq!(common_prefix("*"), "");
    }
}
