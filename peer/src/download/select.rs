//! Which files a download is about. Pure.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobBuilder;
use shared::{
    content::{ContentHash, HashPrefix},
    error::{Failure, FailureCode},
    id::PeerId,
    rpc::tracker::IndexedFile,
};

/// What a user asked for, of what there is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// A file name, a directory (with or without a `/` at the end), or a glob (`*`, `?`, `[…]`, `{a,b}`, `**`;
    /// `*` does not cross a `/`).
    pub(crate) pattern: &'a str,
    /// Only the version whose hash begins so.
    pub(crate) version: Option<&'a HashPrefix>,
    /// Only what this peer has.
    pub(crate) from: Option<&'a PeerId>,
    /// Versions of which a part is here already.
    pub(crate) unfinished: &'a [ContentHash],
}

/// The beginning that every file has which `pattern` can mean.
pub(crate) fn common_prefix(pattern: &str) -> &str {
    let special = pattern.find(['*', '?', '[', '{', '\\']).unwrap_or(pattern.len());
    &pattern[..special]
}

/// The same for the tracker: a directory with nothing in it is listed by its name alone.
pub(crate) fn listed_prefix(pattern: &str) -> &str {
    let prefix = common_prefix(pattern);
    if prefix.len() == pattern.len() { prefix.trim_end_matches('/') } else { prefix }
}

/// One file a name: of several versions the one of which a part is here, then the one with most owners, then the
/// newest, then the lowest hash.
///
/// A file's name that stands there letter for letter wins over a directory, a directory over a glob. A directory with nothing in it
/// is left out when there is something in it elsewhere.
///
/// # Errors
/// `NoSuchFile` when nothing fits, with the reason; `Usage` when the glob is none.
pub(crate) fn select(wish: Wish<'_>, files: Vec<IndexedFile>) -> Result<Vec<IndexedFile>, Failure> {
    let candidates: Vec<IndexedFile> = files
        .into_iter()
        .filter(|file| wish.version.is_none_or(|version| version.matches(&file.file.hash)))
        .filter(|file| wish.from.is_none_or(|from| file.owners.contains(from)))
        .collect();
    let is_exact = |file: &&IndexedFile| file.file.name.as_str() == wish.pattern && !file.file.is_directory();
    let exact: Vec<_> = candidates.iter().filter(is_exact).cloned().collect();
    let chosen = if exact.is_empty() { below_or_glob(wish.pattern, candidates)? } else { exact };
    let mut best: BTreeMap<String, IndexedFile> = BTreeMap::new();
    for file in chosen {
        let name = file.file.name.to_string();
        let rank = |file: &IndexedFile| (wish.unfinished.contains(&file.file.hash), rank(file));
        let better = best.get(&name).is_none_or(|other| rank(&file) > rank(other));
        if better {
            best.insert(name, file);
        }
    }
    if best.is_empty() {
        return Err(nothing(wish));
    }
    let above: BTreeSet<String> =
        best.values().flat_map(|file| file.file.name.directories().map(str::to_owned)).collect();
    best.retain(|name, file| !file.file.is_directory() || !above.contains(name));
    Ok(best.into_values().collect())
}

fn rank(file: &IndexedFile) -> (usize, i64, std::cmp::Reverse<ContentHash>) {
    (file.owners.len(), file.file.mtime_micros, std::cmp::Reverse(file.file.hash))
}

fn below_or_glob(pattern: &str, candidates: Vec<IndexedFile>) -> Result<Vec<IndexedFile>, Failure> {
    let folder = format!("{}/", pattern.trim_end_matches('/'));
    let is_in = |IndexedFile { file, .. }: &&IndexedFile| {
        file.name.as_str().starts_with(&folder)
            || file.is_directory() && folder.strip_suffix('/') == Some(file.name.as_str())
    };
    let below: Vec<_> = candidates.iter().filter(is_in).cloned().collect();
    if !below.is_empty() || common_prefix(pattern).len() == pattern.len() {
        return Ok(below);
    }
    let glob = GlobBuilder::new(pattern).literal_separator(true).build().map_err(|error| {
        Failure::new(
            FailureCode::Usage,
            format!("{pattern:?} is not a pattern"),
            error.kind(),
            "quote it, or correct it",
        )
    })?;
    let matcher = glob.compile_matcher();
    Ok(candidates.into_iter().filter(|file| matcher.is_match(file.file.name.as_str())).collect())
}

fn nothing(wish: Wish<'_>) -> Failure {
    let mut why = "nobody shares it".to_owned();
    if let Some(from) = wish.from {
        why = format!("{from} does not share it");
    }
    if let Some(version) = wish.version {
        why = format!("{why} in a version that begins with {version}");
    }
    Failure::new(FailureCode::NoSuchFile, format!("no file {:?}", wish.pattern), why, "listAll shows what there is")
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
        let wish = Wish { pattern, version: None, from: None, unfinished: &[] };
        select(wish, network()).unwrap().iter().map(|file| file.file.name.to_string()).collect()
    }

    #[test]
    fn names_directories_and_globs_are_told_apart() {
        assert_eq!(names("main.rs"), ["main.rs"]);
        assert_eq!(names("docs"), ["docs/a.rs", "docs/deep/b.rs"]);
        assert_eq!(names("docs/"), ["docs/a.rs", "docs/deep/b.rs"]);
        assert_eq!(names("*.rs"), ["[x].rs", "main.rs"]);
        assert_eq!(names("**/*.rs"), ["[x].rs", "docs/a.rs", "docs/deep/b.rs", "main.rs"]);
        assert_eq!(names("docs/?.rs"), ["docs/a.rs"]);
        assert_eq!(names("[x].rs"), ["[x].rs"], "letter for letter before a glob");
    }

    #[test]
    fn a_directory_is_chosen_unless_something_is_in_it() {
        let directory = |name: &str| {
            let mut entry = file(name, 0, 0, &["p1"]);
            (entry.file.size, entry.file.hash) = (0, DIRECTORY_HASH);
            entry
        };
        let mut files = network();
        files.extend([directory("docs"), directory("docs/empty"), directory("main.rs"), directory("void")]);
        let names = |pattern: &str| -> Vec<String> {
            let wish = Wish { pattern, version: None, from: None, unfinished: &[] };
            let name = |found: &IndexedFile| {
                format!("{}{}", found.file.name, if found.file.is_directory() { "/" } else { "" })
            };
            select(wish, files.clone()).unwrap().iter().map(name).collect()
        };
        for wish in ["docs", "docs/"] {
            assert_eq!(names(wish), ["docs/a.rs", "docs/deep/b.rs", "docs/empty/"], "{wish}");
        }
        assert_eq!((names("void"), names("void/")), (vec!["void/".to_owned()], vec!["void/".to_owned()]));
        assert_eq!(names("v*"), ["void/"]);
        assert_eq!((names("main.rs"), names("main.rs/")), (vec!["main.rs".to_owned()], vec!["main.rs/".to_owned()]));
        assert_eq!((listed_prefix("void/"), listed_prefix("docs/*.rs")), ("void", "docs/"));
    }

    #[test]
    fn the_version_with_most_owners_wins_then_the_newest() {
        let pick = |version: Option<&str>, from: Option<&str>| {
            let version = version.map(|version| version.parse().unwrap());
            let from = from.map(|from| from.parse().unwrap());
            let wish = Wish { pattern: "a.txt", version: version.as_ref(), from: from.as_ref(), unfinished: &[] };
            select(wish, network()).map(|files| files[0].file.hash.0[0])
        };
        assert_eq!(pick(None, None), Ok(2));
        assert_eq!(pick(Some("0101"), None), Ok(1));
        assert_eq!(pick(None, Some("p1")), Ok(1));
        let mut newer = network();
        newer.push(file("a.txt", 9, 99, &["p2", "p3"]));
        let wish = Wish { pattern: "a.txt", version: None, from: None, unfinished: &[] };
        assert_eq!(select(wish, newer).unwrap()[0].file.hash.0[0], 9);
        let begun = [ContentHash([1; 32])];
        let wish = Wish { pattern: "a.txt", version: None, from: None, unfinished: &begun };
        assert_eq!(select(wish, network()).unwrap()[0].file.hash, begun[0], "what was begun is continued");
        let of_receivers = vec![file("a.txt", 1, 5, &["r1", "r2"]), file("a.txt", 2, i64::MAX, &["liar"])];
        let wish = Wish { pattern: "a.txt", version: None, from: None, unfinished: &[] };
        assert_eq!(select(wish, of_receivers).unwrap()[0].file.hash.0[0], 1, "no time outweighs a number");
        assert_eq!(pick(Some("ffff"), None).unwrap_err().code, FailureCode::NoSuchFile);
        assert_eq!(pick(None, Some("p9")).unwrap_err().code, FailureCode::NoSuchFile);
    }

    #[test]
    fn what_is_not_there_or_no_pattern_is_an_error() {
        for (pattern, code) in
            [("none", FailureCode::NoSuchFile), ("*.zip", FailureCode::NoSuchFile), ("{a", FailureCode::Usage)]
        {
            let wish = Wish { pattern, version: None, from: None, unfinished: &[] };
            assert_eq!(select(wish, network()).unwrap_err().code, code, "{pattern}");
        }
    }

    #[test]
    fn the_tracker_is_asked_for_no_more_than_the_literal_beginning() {
        assert_eq!(common_prefix("docs/*.rs"), "docs/");
        assert_eq!(common_prefix("docs"), "docs");
        assert_eq!(common_prefix("*"), "");
    }
}
