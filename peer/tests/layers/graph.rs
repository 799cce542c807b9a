//! The import graph of one crate: a node per source file, an edge per import.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use crate::source::Source;

/// Top-level modules by layer, lowest first.
pub(crate) type Layers = &'static [&'static [&'static str]];

type Module = Vec<String>;

/// Re-exports followed for one import at most.
const MAX_REEXPORTS: usize = 8;

/// The files of a crate and their imports.
pub(crate) struct Graph {
    files: BTreeMap<Module, (PathBuf, Source)>,
}

/// One import between two files of the crate.
struct Edge<'a> {
    from: &'a Module,
    to: &'a Module,
    place: String,
}

impl Graph {
    /// Reads all product files below `root`; `shown` is how reports name that folder.
    pub(crate) fn read(root: &Path, shown: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        read_dir(root, shown, &Module::new(), &mut files)?;
        let tests: Vec<Module> = files
            .iter()
            .flat_map(|(module, (_, source))| source.test_modules.iter().map(|name| child(module, name)))
            .collect();
        files.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        Ok(Self { files })
    }

    /// A graph of given sources, for the checker's own tests.
    #[cfg(test)]
    fn of(sources: &[(&str, &str)]) -> Self {
        let parse = |(path, text): &(&str, &str)| {
            let module = path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            (module, (PathBuf::from(path.replace("::", "/")), Source::parse(text)))
        };
        Self { files: sources.iter().map(parse).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Imports from a layer that is not lower, and modules without a layer.
    pub(crate) fn violations(&self, layers: Layers) -> Vec<String> {
        let layer = |module: &Module| {
            let top = module.first()?;
            layers.iter().position(|names| names.contains(&top.as_str()))
        };
        let mut violations = Vec::new();
        for module in self.files.keys().filter(|module| module.len() == 1) {
            if layer(module).is_none() {
                violations.push(format!("module `{}` has no layer", module.join("::")));
            }
        }
        for edge in self.edges() {
            let (Some(from), Some(to)) = (layer(edge.from), layer(edge.to)) else { continue };
            if edge.from.first() != edge.to.first() && to >= from {
                violations.push(format!("{} (layer {from} imports layer {to})", edge.place));
            }
        }
        violations
    }

    /// Every group of files that import each other in a circle, with the imports that do it.
    pub(crate) fn cycles(&self) -> Vec<String> {
        let edges = self.edges();
        let mut next: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
        for edge in &edges {
            next.entry(edge.from).or_default().insert(edge.to);
        }
        let reaches: BTreeMap<&Module, BTreeSet<&Module>> =
            self.files.keys().map(|module| (module, reachable(module, &next))).collect();
        let in_cycle = |edge: &&Edge<'_>| reaches[edge.to].contains(edge.from);
        edges.iter().filter(in_cycle).map(|edge| format!("{} imports {}", edge.place, edge.to.join("::"))).collect()
    }

    fn edges(&self) -> Vec<Edge<'_>> {
        let mut edges = Vec::new();
        for (from, (file, source)) in &self.files {
            for import in &source.imports {
                let Some(path) = self.absolute(from, &import.path) else { continue };
                let Some((to, _)) = self.definition(path).and_then(|to| self.files.get_key_value(&to)) else {
                    continue;
                };
                if to != from {
                    let place = format!("{}:{}: use {}", file.display(), import.line, import.path.join("::"));
                    edges.push(Edge { from, to, place });
                }
            }
        }
        edges
    }

    /// The path from the crate's root; `None` for other crates.
    fn absolute(&self, from: &Module, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some(from.iter().chain(rest).cloned().collect()),
            "super" => {
                let mut base = from.clone();
                let ups = path.iter().take_while(|part| *part == "super").count();
                base.truncate(from.len().checked_sub(ups)?);
                Some(base.into_iter().chain(path[ups..].iter().cloned()).collect())
            }
            // A child module, named without `self`.
            name => self.files.contains_key(&child(from, name)).then(|| from.iter().chain(path).cloned().collect()),
        }
    }

    /// The file that defines what a path names: re-exports are followed.
    fn definition(&self, mut path: Vec<String>) -> Option<Module> {
        for _ in 0..MAX_REEXPORTS {
            let module = (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(|m| self.files.contains_key(m))?;
            let Some(name) = path.get(module.len()) else { return Some(module) };
            let (_, source) = &self.files[&module];
            let reexports = source.imports.iter().filter(|import| import.is_reexport);
            let target = reexports.filter(|import| import.path.last() == Some(name)).find_map(|import| {
                let target = self.absolute(&module, &import.path)?;
                (target != path).then_some(target)
            });
            match target {
                Some(target) => path = target,
                None => return Some(module),
            }
        }
        None
    }
}

fn reachable<'a>(from: &'a Module, next: &BTreeMap<&'a Module, BTreeSet<&'a Module>>) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for to in next.get(module).into_iter().flatten() {
            if found.insert(*to) {
                open.push(to);
            }
        }
    }
    found
}

fn child(module: &Module, name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn read_dir(
    dir: &Path,
    shown: &Path,
    module: &Module,
    files: &mut BTreeMap<Module, (PathBuf, Source)>,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let shown = shown.join(path.file_name().unwrap_or_default());
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        if path.is_dir() {
            read_dir(&path, &shown, &child(module, stem), files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let own = if matches!(stem, "mod" | "lib") { module.clone() } else { child(module, stem) };
            files.insert(own, (shown, Source::parse(&fs::read_to_string(&path)?)));
        }
    }
    Ok(())
}

#[test]
fn import_from_a_higher_layer_is_reported_with_its_line() {
    let graph = Graph::of(&[
        ("low", "//! Low.\nuse crate::high::Thing;\n"),
        ("high", "pub use inner::Thing;\nuse crate::low;\n"),
        ("high::inner", "pub struct Thing;\n"),
        ("stray", ""),
    ]);
    let violations = graph.violations(&[&["low"], &["high"]]);
    assert_eq!(violations, ["module `stray` has no layer", "low:2: use crate::high::Thing (layer 0 imports layer 1)"]);
}

#[test]
fn import_of_a_reexported_sibling_is_no_cycle() {
    let graph = Graph::of(&[
        ("m", "pub use b::B;\nuse a::A;\n"),
        ("m::a", "use super::B;\npub struct A;\n"),
        ("m::b", "pub struct B;\n"),
    ]);
    assert_eq!(graph.cycles(), Vec::<String>::new());
}

#[test]
fn cycle_of_three_files_is_reported_with_each_import() {
    let graph = Graph::of(&[
        ("a", "use crate::b::B;\n"),
        ("b", "use crate::c::C;\n"),
        ("c", "use crate::a::A;\nuse crate::d::D;\n"),
        ("d", ""),
    ]);
    let expected =
        ["a:1: use crate::b::B imports b", "b:1: use crate::c::C imports c", "c:1: use crate::a::A imports a"];
    assert_eq!(graph.cycles(), expected);
}
