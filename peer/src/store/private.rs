//! Directories and files with keys, which are never shared, served, listed, imported or written to, whatever the
//! configuration.
//!
//! Directories are recognised by device and inode, so links and bind mounts make no difference, and at each open, so
//! a directory that appears later is recognised too. The key files of other programs of this system, in backups for
//! example, are recognised by their names and modes.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use super::{
    error::OpenShareError,
    file_stat::{FileId, FileStat},
};

/// Depth below a state directory to which its directories are recognised on their own, for bind mounts of a part of
/// it: `peers/ID` and `nameserver`.
const RECOGNISED_DEPTH: usize = 2;
/// Names of the files in which the programs of this system keep secrets.
const KEY_FILES: [&[u8]; 5] = [b"authority.pem", b"identity.pem", b"newcomer.key", b"reset.key", b"local.token"];
/// Permission bits of group and others. Secrets are written without them, received files usually with some of them.
const FOREIGN_MODE: u32 = 0o077;

/// State directories of this peer.
#[derive(Debug, Default)]
pub(crate) struct PrivateDirs {
    paths: Vec<PathBuf>,
    ids: RwLock<HashSet<FileId>>,
}

impl PrivateDirs {
    /// Recognises these state directories. Those that do not exist are recognised after a [`refresh`](Self::refresh).
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let new = Self { paths, ids: RwLock::default() };
        new.refresh();
        new
    }

    /// Identifies the directories again: they may have been created, moved or replaced. Keeps what was known if one of
    /// them cannot be read.
    pub(crate) fn refresh(&self) {
        let mut ids = HashSet::new();
        let found = self.paths.iter().try_for_each(|path| collect(path, RECOGNISED_DEPTH, &mut ids));
        let mut known = self.ids.write().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(()) => *known = ids,
            Err(_) => known.extend(ids),
        }
    }

    /// Returns true if this is a state directory or one of its directories.
    pub(crate) fn contains(&self, id: FileId) -> bool {
        self.ids.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Returns true if the directory `path` is a state directory or lies in one.
    pub(crate) fn encloses(&self, path: &Path) -> bool {
        ids_above(path).any(|id| self.contains(id))
    }
}

/// Adds the directory `path` and the directories below it to `ids`.
///
/// # Errors
/// If a directory that exists cannot be read.
fn collect(path: &Path, depth: usize, ids: &mut HashSet<FileId>) -> io::Result<()> {
    let ignore_missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(()),
        _ => Err(error),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => ids.insert(FileStat::of(&metadata).id()),
        Ok(_) => return Ok(()),
        Err(error) => return ignore_missing(error),
    };
    if depth == 0 {
        return Ok(());
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return ignore_missing(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth - 1, ids)?;
        }
    }
    Ok(())
}

/// Returns true if a file with this name and mode is one in which a program of this system keeps a secret.
pub(crate) fn is_key_file(name: &[u8], mode: u32) -> bool {
    mode & FOREIGN_MODE == 0 && KEY_FILES.contains(&name)
}

/// Reason why a directory or file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Private {
    /// The directory is a state directory or lies in one.
    #[error("it belongs to a state directory, which holds keys and is never shared")]
    Directory,
    /// The file has the name and mode of a key file.
    #[error("it is a file of keys (`{0}` for its owner only), which is never shared")]
    KeyFile(String),
}

impl Private {
    /// Returns true if `error` has this reason.
    pub(crate) fn is_reason_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|reason| reason.is::<Self>())
    }
}

impl From<Private> for io::Error {
    fn from(reason: Private) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, reason)
    }
}

/// Checks that neither of the directories lies in the other, directly, through links or through bind mounts. They need
/// not exist yet.
///
/// # Errors
/// [`OpenShareError::Nested`] if one lies in the other or both are the same.
pub fn check_apart(share: &Path, state_dir: &Path) -> Result<(), OpenShareError> {
    let nested = |state_inside| OpenShareError::Nested {
        share: share.to_path_buf(),
        state_dir: state_dir.to_path_buf(),
        state_inside,
    };
    if lies_in(state_dir, share) {
        return Err(nested(true));
    }
    if lies_in(share, state_dir) {
        return Err(nested(false));
    }
    Ok(())
}

fn lies_in(inner: &Path, outer: &Path) -> bool {
    if resolved(inner).starts_with(resolved(outer)) {
        return true;
    }
    let Ok(outer) = fs::metadata(outer) else { return false };
    let outer = FileStat::of(&outer).id();
    ids_above(inner).any(|id| id == outer)
}

/// Returns the path without links of what exists of it, followed by the rest.
fn resolved(path: &Path) -> PathBuf {
    for existing in path.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            return path.strip_prefix(existing).map(|rest| real.join(rest)).unwrap_or(real);
        }
    }
    path.to_path_buf()
}

/// Returns the identities of the directory `path` and of those above it, as far as they exist.
fn ids_above(path: &Path) -> impl Iterator<Item = FileId> {
    let above: Vec<PathBuf> = resolved(path).ancestors().map(Path::to_path_buf).collect();
    above.into_iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| FileStat::of(&metadata).id())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn id(path: &Path) -> FileId {
        FileStat::of(&path.metadata().unwrap()).id()
    }

    #[test]
    fn directories_of_a_state_directory_are_recognised_when_they_appear() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let private = PrivateDirs::new(vec![state.clone()]);
        fs::create_dir_all(state.join("peers/ana/outboards")).unwrap();
        assert!(!private.contains(id(&state)));
        private.refresh();
        for part in ["", "peers", "peers/ana"] {
            assert!(private.contains(id(&state.join(part))), "{part}");
        }
        assert!(private.encloses(&state.join("peers/ana/outboards")) && private.encloses(&state.join("not/yet")));
        assert!(!private.encloses(dir.path()) && !private.contains(id(dir.path())));
        symlink(&state, dir.path().join("link")).unwrap();
        assert!(private.encloses(&dir.path().join("link/peers")));
        fs::rename(&state, dir.path().join("moved")).unwrap();
        assert!(private.contains(id(&dir.path().join("moved"))), "a moved directory keeps its identity");
    }

    #[test]
    fn key_file_is_recognised_by_name_and_mode() {
        assert!(is_key_file(b"authority.pem", 0o100_600) && is_key_file(b"local.token", 0o400));
        assert!(!is_key_file(b"authority.pem", 0o100_644), "a received file of that name");
        assert!(!is_key_file(b"other.pem", 0o600));
    }

    #[test]
    fn resolved_keeps_what_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        assert_eq!(resolved(&dir.path().join("link/a/b")), real.join("a/b"));
        assert_eq!(resolved(&dir.path().join("link")), real);
    }
}
