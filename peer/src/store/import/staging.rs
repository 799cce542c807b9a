//! Hidden directories for files that are not complete yet.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use tracing::warn;

use crate::store::{
    confined_dir::{ConfinedDir, HIDDEN},
    file_ops::rename,
};

/// Parent of the staging directories, in the hidden directory of the share.
const INCOMING: &str = "incoming";
/// Prefix in the name of a staging directory outside of the share.
const OUTSIDE_PREFIX: &str = ".brasa-incoming-";
/// Minimum number of files for which one sync of the file system is cheaper than one sync of each file.
pub(crate) const SYNC_ALL_FROM: usize = 16;

/// Hidden directory, locked by its process. Deleted with its files when it is dropped.
#[derive(Debug)]
pub(crate) struct StagingDir {
    dir: OwnedFd,
    path: PathBuf,
}

impl StagingDir {
    /// Creates a staging directory in the share. Its name begins with `purpose`.
    pub(crate) fn in_share(root: &ConfinedDir, purpose: &str) -> io::Result<Self> {
        root.hidden_dir(INCOMING)?;
        Self::new(&root.path().join(HIDDEN).join(INCOMING), &format!("{purpose}-"))
    }

    /// Creates a staging directory in a directory outside of the share. Deletes those that killed processes left there.
    pub(crate) fn outside(parent: &Path) -> io::Result<Self> {
        remove_unlocked(parent, OUTSIDE_PREFIX);
        Self::new(parent, OUTSIDE_PREFIX)
    }

    fn new(parent: &Path, prefix: &str) -> io::Result<Self> {
        let path = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?.keep();
        let dir: OwnedFd = File::open(&path)?.into();
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { dir, path })
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Creates the file `number`, with the mode that the umask allows. The file keeps this mode at its destination.
    pub(crate) fn create(&self, number: u64) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, number.to_string(), flags, Mode::from_raw_mode(0o666))?.into())
    }

    /// Opens the file `number` for reading.
    pub(crate) fn open(&self, number: u64) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, number.to_string(), flags, Mode::empty())?.into())
    }

    /// Renames the file `number` to `base` in `dir`, see [`rename`].
    pub(crate) fn move_to(&self, number: u64, dir: &OwnedFd, base: &OsStr, overwrite: bool) -> io::Result<()> {
        rename(&self.dir, number.to_string().as_ref(), dir, base, overwrite)
    }

    /// Deletes the file `number`.
    pub(crate) fn discard(&self, number: u64) {
        // On failure, the file is deleted with the directory.
        let _remains = rustix::fs::unlinkat(&self.dir, number.to_string(), AtFlags::empty());
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        let _swept_at_next_start = fs::remove_dir_all(&self.path);
    }
}

/// Deletes the staging directories in the share that killed processes left.
pub(crate) fn sweep(root: &ConfinedDir) {
    remove_unlocked(&root.path().join(HIDDEN).join(INCOMING), "");
}

/// Deletes the directories in `parent` whose names begin with `prefix`, except those that a running process has locked.
fn remove_unlocked(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let lock = File::open(entry.path());
        let free = lock.is_ok_and(|dir| rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok());
        if free && let Err(error) = fs::remove_dir_all(entry.path()) {
            warn!(%error, path = %entry.path().display(), "cannot delete a staging directory");
        }
    }
}
