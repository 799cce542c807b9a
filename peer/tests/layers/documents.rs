//! The documents name only files that exist.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Folders of the workspace that a path in a document begins with.
const ROOTS: &[&str] = &["certs/", "shared/", "nameserver/", "peer/", "fuzz/", "docs/", ".ci/"];

/// Paths that a document names and that do not exist, as `DOCUMENT: PATH`.
pub(crate) fn missing_paths(workspace: &Path) -> io::Result<Vec<String>> {
    let mut documents = vec![PathBuf::from("README.md")];
    for entry in fs::read_dir(workspace.join("docs"))? {
        documents.push(Path::new("docs").join(entry?.file_name()));
    }
    documents.sort();
    let mut missing = Vec::new();
    for document in documents {
        let text = fs::read_to_string(workspace.join(&document))?;
        let folder = document.parent().unwrap_or(Path::new(""));
        let named = code_paths(&text).map(PathBuf::from);
        let linked = link_targets(&text).map(|target| folder.join(target));
        for path in named.chain(linked) {
            if !workspace.join(&path).exists() {
                missing.push(format!("{}: {}", document.display(), path.display()));
            }
        }
    }
    Ok(missing)
}

/// Paths of the workspace in code spans.
fn code_paths(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|code| {
        let is_path = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
        ROOTS.iter().any(|root| code.starts_with(root)) && code.chars().all(is_path)
    })
}

/// Targets of relative links.
fn link_targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?;
        (!target.is_empty() && !target.contains(':')).then_some(target)
    })
}

#[test]
fn paths_are_read_from_code_spans_and_links() {
    let text =
        "See `peer/src/main.rs`, `peer peer1`, `docs/{a,b}.md`, [a](transfer.md#x), [b](https://x.org), [c](#y).";
    assert_eq!(code_paths(text).collect::<Vec<_>>(), ["peer/src/main.rs"]);
    assert_eq!(link_targets(text).collect::<Vec<_>>(), ["transfer.md"]);
}
