//! Reads the imports out of a source file: enough of Rust's syntax for `use` declarations and paths that begin with
//! `crate`.

/// One import: the path as written, and the line on which its statement begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    /// Segments of the path, `crate`, `self` or `super` included.
    pub(crate) path: Vec<String>,
    /// True if other modules can use the name from here (`pub use`).
    pub(crate) is_reexport: bool,
    /// Line number, from 1.
    pub(crate) line: usize,
}

/// What a file says about modules.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// Imports of the product code.
    pub(crate) imports: Vec<Import>,
    /// Child modules that exist only in tests.
    pub(crate) test_modules: Vec<String>,
}

impl Source {
    /// Reads a file's text.
    pub(crate) fn parse(text: &str) -> Self {
        let mut source = Self::default();
        let lines: Vec<&str> = text.lines().map(without_comment).collect();
        let mut at = 0;
        while at < lines.len() {
            let line = lines[at];
            if line.trim() == "#[cfg(test)]" {
                at = source.skip_test_item(&lines, at + 1);
            } else if let Some(is_reexport) = use_kind(line.trim()) {
                at = source.read_use(&lines, at, is_reexport);
            } else {
                source.read_inline(line, at + 1);
                at += 1;
            }
        }
        source
    }

    /// Skips the item after `#[cfg(test)]`, and remembers it if it is a module in a file of its own. Returns the next
    /// line.
    fn skip_test_item(&mut self, lines: &[&str], mut at: usize) -> usize {
        while lines.get(at).is_some_and(|line| line.trim().starts_with("#[") || line.trim().is_empty()) {
            at += 1;
        }
        let Some(first) = lines.get(at) else { return at };
        if let Some((_, name)) = first.trim().trim_end_matches(';').split_once("mod ") {
            self.test_modules.push(name.trim_end_matches('{').trim().to_owned());
        }
        let indent = indent(first);
        let ends_here = |line: &str| line.trim_end().ends_with(';') || line.trim_end().ends_with('}');
        if ends_here(first) {
            return at + 1;
        }
        let is_end = |line: &&str| indent_of(line) == Some(indent) && ends_here(line);
        lines[at + 1..].iter().position(is_end).map_or(lines.len(), |end| at + 1 + end + 1)
    }

    fn read_use(&mut self, lines: &[&str], first: usize, is_reexport: bool) -> usize {
        let mut statement = String::new();
        let mut at = first;
        while at < lines.len() {
            statement.push_str(lines[at].trim());
            statement.push(' ');
            at += 1;
            if statement.contains(';') {
                break;
            }
        }
        let tree = statement.split_once("use ").map_or("", |(_, tree)| tree).trim().trim_end_matches(';');
        for path in paths(tree) {
            self.imports.push(Import { path, is_reexport, line: first + 1 });
        }
        at
    }

    fn read_inline(&mut self, line: &str, number: usize) {
        let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for (start, _) in line.match_indices("crate::") {
            let is_whole_word = !line[..start].ends_with(|c: char| is_name(c) || c == '$');
            if is_whole_word {
                let path: String = line[start..].chars().take_while(|c| is_name(*c)).collect();
                let path = path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
                self.imports.push(Import { path, is_reexport: false, line: number });
            }
        }
    }
}

/// True if a line begins a `use` declaration, and if so whether it is a re-export.
fn use_kind(line: &str) -> Option<bool> {
    if line.starts_with("use ") {
        return Some(false);
    }
    let rest = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    rest.starts_with("use ").then_some(true)
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn indent_of(line: &str) -> Option<usize> {
    (!line.trim().is_empty()).then(|| indent(line))
}

/// The paths of a use tree; `self` at an end is dropped, `as` names too.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let mut segments: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self" || last == "*") {
            segments.pop();
        }
        return vec![segments];
    };
    let prefix: Vec<String> =
        prefix.split("::").filter(|part| !part.trim().is_empty()).map(|p| p.trim().to_owned()).collect();
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let mut found = Vec::new();
    for branch in branches(inner) {
        for mut rest in paths(branch) {
            if rest == ["self"] {
                rest.clear();
            }
            found.push(prefix.iter().cloned().chain(rest).collect());
        }
    }
    found
}

/// The comma-separated branches of a group, groups inside of it kept whole.
fn branches(group: &str) -> Vec<&str> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&group[start..]);
    found.into_iter().filter(|branch| !branch.trim().is_empty()).collect()
}

#[test]
fn imports_of_product_code_are_read_and_tests_are_skipped() {
    let text = "use std::io;\npub use crate::a::{B, c::{self, D as E}};\nfn f() { crate::g::h(); } // crate::no\n\
                #[cfg(test)]\nmod tests {\n    use crate::only::tests;\n}\nuse super::x;\n#[cfg(test)]\nmod model;\n";
    let source = Source::parse(text);
    let read: Vec<_> = source.imports.iter().map(|i| (i.path.join("::"), i.is_reexport, i.line)).collect();
    let expected = [
        ("std::io", false, 1),
        ("crate::a::B", true, 2),
        ("crate::a::c", true, 2),
        ("crate::a::c::D", true, 2),
        ("crate::g::h", false, 3),
        ("super::x", false, 8),
    ];
    assert_eq!(read, expected.map(|(path, is_reexport, line)| (path.to_owned(), is_reexport, line)));
    assert_eq!(source.test_modules, ["tests", "model"]);
}
