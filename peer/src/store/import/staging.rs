//! Hidden directories in which many files lie until they are complete.

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
    download::partial::rename,
};

/// Where, in the hidden directory of the share, the stages are.
pub(crate) const INCOMING: &str = "incoming";
/// What a stage in a folder outside of the share begins with.
const OUTSIDE: &str = ".brasa-incoming-";
/// From this many files on, one sync of the whole file system is cheaper than one a file.
pub(crate) const SYNC_ALL_FROM: usize = 16;

/// A hidden directory for files on their way in, locked by its process. What is still in it goes with it.
#[derive(Debug)]
pub(crate) struct Stage {
    dir: OwnedFd,
    path: PathBuf,
}

impl Stage {
    /// A stage in the share, its name beginning with `purpose`.
    pub(crate) fn in_share(root: &ConfinedDir, purpose: &str) -> io::Result<Self> {
        root.hidden_dir(INCOMING)?;
        Self::new(&root.path().join(HIDDEN).join(INCOMING), &format!("{purpose}-"))
    }

    /// A stage in a folder outside of the share. Those that a killed process left there go.
    pub(crate) fn outside(folder: &Path) -> io::Result<Self> {
        remove_leftovers(folder, OUTSIDE);
        Self::new(folder, OUTSIDE)
    }

    fn new(folder: &Path, prefix: &str) -> io::Result<Self> {
        let path = tempfile::Builder::new().prefix(prefix).tempdir_in(folder)?.keep();
        let dir: OwnedFd = File::open(&path)?.into();
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { dir, path })
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes the file `number`, with the mode that the user's umask leaves: it keeps that where it goes.
    pub(crate) fn create(&self, number: u64) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, number.to_string(), flags, Mode::from_raw_mode(0o666))?.into())
    }

    /// Opens the file `number` again.
    pub(crate) fn open(&self, number: u64) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, number.to_string(), flags, Mode::empty())?.into())
    }

    /// Renames the file `number` to `base` in `dir`; without `overwrite` only when nothing is there. The directory is not synced.
    pub(crate) fn place(&self, number: u64, dir: &OwnedFd, base: &OsStr, overwrite: bool) -> io::Result<()> {
        rename(&self.dir, number.to_string().as_ref(), dir, base, overwrite)
    }

    /// Deletes the file `number`, which nobody wants any more.
    pub(crate) fn discard(&self, number: u64) {
        // What stays goes with the stage.
        let _stays = rustix::fs::unlinkat(&self.dir, number.to_string(), AtFlags::empty());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _swept_at_next_start = fs::remove_dir_all(&self.path);
    }
}

/// Deletes the stages in `folder` whose names begin with `prefix` and that a killed process left behind; one in use is locked.
pub(crate) fn remove_leftovers(folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let lock = File::open(entry.path());
        let free = lock.is_ok_and(|dir| rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok());
        if free && let Err(error) = fs::remove_dir_all(entry.path()) {
            warn!(%error, path = %entry.path().display(), "left-over files cannot be deleted");
        }
    }
}
