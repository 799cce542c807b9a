//! Names of shared files: relative paths that are safe on every supported platform.

use std::{
    borrow::Borrow,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_FILE_NAME_BYTES, MAX_FILE_NAME_PART_BYTES};

/// Name of a shared file: its path relative to the share, with components separated by `/`.
///
/// Joined to a directory, a `FileName` stays below it. It is safe to print on a terminal and can be created on every
/// common file system. It is relative and has no empty, `.` or `..` component, no backslash, no drive letter, no
/// control or bidirectional-override character and no component that Windows reserves. It has at most
/// [`MAX_FILE_NAME_BYTES`] bytes, and each component has at most [`MAX_FILE_NAME_PART_BYTES`]. A component does not
/// begin with a dot, because dot-files are not shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(Arc<str>);

/// Error of parsing a [`FileName`]. The message escapes control characters, so it is safe to print.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{name:?} is not a valid name for a shared file: {reason}")]
pub struct InvalidFileName {
    /// First 80 characters of the text.
    pub name: String,
    /// The rule that the text violates.
    pub reason: String,
}

impl FileName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the path of the file below `folder`.
    pub fn below(&self, folder: &Path) -> PathBuf {
        let mut path = folder.to_path_buf();
        path.extend(self.parts());
        path
    }

    /// Returns the components of the path, outermost first.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns the last component.
    pub fn base_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Returns the paths of the enclosing directories, outermost first.
    pub fn directories(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(end, _)| &self.0[..end])
    }

    /// Converts a path relative to the share into a name.
    ///
    /// # Errors
    /// Fails if the path violates a rule of [`FileName`] or is not UTF-8.
    pub fn from_relative_path(relative: &Path) -> Result<Self, InvalidFileName> {
        let mut text = String::new();
        for part in relative.components() {
            let std::path::Component::Normal(part) = part else {
                return Err(invalid(&relative.to_string_lossy(), "it is not a path below the share"));
            };
            let Some(part) = part.to_str() else {
                return Err(invalid(&relative.to_string_lossy(), "it is not UTF-8"));
            };
            if !text.is_empty() {
                text.push('/');
            }
            text.push_str(part);
        }
        text.parse()
    }
}

/// `Ord` and `Hash` of a `FileName` equal those of its text, as `Borrow` requires.
impl Borrow<str> for FileName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn invalid(name: &str, reason: &str) -> InvalidFileName {
    InvalidFileName { name: name.chars().take(80).collect(), reason: reason.to_owned() }
}

impl FromStr for FileName {
    type Err = InvalidFileName;

    fn from_str(text: &str) -> Result<Self, InvalidFileName> {
        if text.is_empty() {
            return Err(invalid(text, "it is empty"));
        }
        if text.len() > MAX_FILE_NAME_BYTES {
            return Err(invalid(text, "it is longer than 1024 bytes"));
        }
        for part in text.split('/') {
            check_part(part).map_err(|reason| invalid(text, reason))?;
        }
        Ok(Self(text.into()))
    }
}

fn check_part(part: &str) -> Result<(), &'static str> {
    if part.is_empty() {
        return Err("it begins or ends with '/', or contains '//'");
    }
    if part.len() > MAX_FILE_NAME_PART_BYTES {
        return Err("a path component is longer than 255 bytes");
    }
    if part.starts_with('.') {
        return Err("a path component begins with '.'; '..' leaves the share and dot-files are not shared");
    }
    if part.contains('\\') || part.contains('\0') {
        return Err("it contains a backslash or a NUL");
    }
    if part.chars().any(is_unprintable) {
        return Err("it contains control characters or characters that reorder text");
    }
    if part.as_bytes().get(1) == Some(&b':') && part.as_bytes()[0].is_ascii_alphabetic() {
        return Err("it begins with a drive letter");
    }
    if part.ends_with([' ', '.']) {
        return Err("a path component ends with a space or a dot");
    }
    if is_reserved_on_windows(part) {
        return Err("a path component is a device name on Windows");
    }
    Ok(())
}

/// Returns true for control characters, line and paragraph separators, and bidirectional controls, which can make one
/// name look like another (Unicode Standard Annex 9; "Trojan Source", Boucher and Anderson 2021).
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}' | '\u{feff}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns true for a Windows device name, with or without an extension ("Naming Files, Paths, and Namespaces",
/// Microsoft).
fn is_reserved_on_windows(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or(part).to_ascii_uppercase();
    match stem.as_str() {
        "CON" | "PRN" | "AUX" | "NUL" => true,
        _ => {
            let digit = stem.strip_prefix("COM").or_else(|| stem.strip_prefix("LPT"));
            digit.is_some_and(|digit| digit.len() == 1 && matches!(digit.as_bytes()[0], b'1'..=b'9'))
        }
    }
}

impl TryFrom<String> for FileName {
    type Error = InvalidFileName;
    fn try_from(text: String) -> Result<Self, InvalidFileName> {
        text.parse()
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name_with_ordinary_characters_is_accepted() {
        for good in ["a.txt", "docs/a b.txt", "fotos/praia€.jpg", "a..b", "console.log", "com10", &"x".repeat(255)] {
            let name: FileName = good.parse().unwrap();
            assert_eq!(FileName::from_relative_path(Path::new(good)).unwrap(), name);
            assert!(name.below(Path::new("/share")).starts_with("/share"));
        }
    }

    #[test]
    fn file_name_that_is_unsafe_or_not_portable_is_rejected() {
        let long = "x/".repeat(600);
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "a//b",
            "a/",
            ".hidden",
            "a/.git/config",
            "c:/x",
            "C:x",
            "a\\b",
            "..\\a",
            "a\0b",
            "a\nb",
            "a\u{1b}[2Jb",
            "\u{200b}",
            "a\u{202e}gpj.exe",
            "nul",
            "CON.txt",
            "lpt1",
            "a ",
            "a.",
            &"x".repeat(256),
            &long,
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn error_message_escapes_control_characters() {
        let error = "a\u{1b}[2J".parse::<FileName>().unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'));
    }
}
