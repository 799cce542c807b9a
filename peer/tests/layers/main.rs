//! The layer law of `docs/ARCHITECTURE.md`, checked on the source text: a module imports only from layers to
//! its left, and no import cycle exists inside a crate. The documents are checked too: they name only files that exist.
//!
//! `use` declarations and inline `crate::…` paths of the product code count; tests do not. A name that a module
//! re-exports (`pub use`) counts as an import of the module that defines it. A violation is printed with file and line.

#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

mod documents;
mod graph;
mod source;

use std::path::Path;

use graph::{Graph, Layers};

/// Modules of the crate `peer`, lowest first. Modules of one line do not import each other.
const PEER: Layers = &[
    &["bao"],
    &["diagnostics"],
    &["store"],
    &["api", "config"],
    &["transfer"],
    &["upload", "swarm"],
    &["core_handle"],
    &["net"],
    &["discovery"],
    &["download"],
    &["runtime"],
    &["cli"],
    &["demo"],
    &["main"],
];

/// Modules of the crate `protocol`, lowest first.
const PROTOCOL: Layers =
    &[&["params", "provider_health"], &["swarm", "upload", "index"], &["packs", "replication"], &["election"]];

/// The graph of a source folder of the workspace.
fn graph_of(source_dir: &str) -> Graph {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let graph = Graph::read(&workspace.join(source_dir), Path::new(source_dir)).unwrap();
    assert!(!graph.is_empty(), "no source files below {source_dir}");
    graph
}

fn assert_none(what: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{what}:\n{}", violations.join("\n"));
}

#[test]
fn peer_modules_import_only_from_lower_layers() {
    assert_none("imports against the layers of `peer`", &graph_of("peer/src").violations(PEER));
}

#[test]
fn protocol_modules_import_only_from_lower_layers() {
    assert_none("imports against the layers of `protocol`", &graph_of("peer/protocol/src").violations(PROTOCOL));
}

#[test]
fn crates_have_no_import_cycles() {
    let crates = ["certs/src", "shared/src", "nameserver/src", "peer/protocol/src", "peer/src"];
    let cycles: Vec<String> = crates.iter().flat_map(|source_dir| graph_of(source_dir).cycles()).collect();
    assert_none("import cycles", &cycles);
}

#[test]
fn documents_name_only_files_that_exist() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    assert_none("files that documents name and that do not exist", &documents::missing_paths(&workspace).unwrap());
}
