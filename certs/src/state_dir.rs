//! Base folder of all state, as every program of Brasa resolves it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// Environment variable with the base folder of all state.
pub const STATE_DIR_VARIABLE: &str = "BRASA_STATE_DIR";

/// Resolves the base folder of all state: the value of [`STATE_DIR_VARIABLE`], else `$XDG_STATE_HOME/brasa`, else
/// `~/.local/state/brasa`. Empty values count as unset; relative ones of `XDG_STATE_HOME` and `HOME` are ignored (XDG
/// Base Directory Specification 0.8). `None` when none of them is set.
pub fn resolve_state_dir(
    state_dir: Option<&OsStr>,
    xdg_state_home: Option<&OsStr>,
    home: Option<&OsStr>,
) -> Option<PathBuf> {
    let absolute = |value: Option<&OsStr>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(named) = state_dir.filter(|value| !value.is_empty()) {
        return Some(Path::new(named).to_owned());
    }
    absolute(xdg_state_home)
        .map(|state_home| state_home.join("brasa"))
        .or_else(|| Some(absolute(home)?.join(".local/state/brasa")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_dir_comes_from_its_variable_then_xdg_then_home() {
        let resolve = |state_dir: Option<&str>, xdg: Option<&str>, home: Option<&str>| {
            resolve_state_dir(state_dir.map(OsStr::new), xdg.map(OsStr::new), home.map(OsStr::new))
        };
        assert_eq!(resolve(Some("st"), Some("/xdg"), Some("/h")), Some("st".into()));
        assert_eq!(resolve(Some(""), Some("/xdg"), Some("/h")), Some("/xdg/brasa".into()));
        assert_eq!(resolve(None, Some("xdg"), Some("/h")), Some("/h/.local/state/brasa".into()));
        assert_eq!(resolve(None, None, Some("h")), None);
        assert_eq!(resolve(None, None, None), None);
    }
}
