//! A file that is being received: preallocated, written in place, renamed when it is complete.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use shared::{
    content::ContentHash,
    error::{Failure, FailureCode},
    limits::GROUP_BYTES,
};

use super::{failure::is_no_space, stamp::Stamp};
use crate::transfer::{Source, groups::GroupRanges};

/// A file that is being received. Clones are handles of the same file; when the last is dropped before the file was
/// put in its place, it is deleted.
#[derive(Debug, Clone)]
pub struct Partial {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hash: ContentHash,
    size: u64,
    file: File,
    outboard: Option<File>,
    /// Where both lie.
    dir: OwnedFd,
    name: OsString,
    verified: Mutex<GroupRanges>,
    placed: AtomicBool,
}

/// Why there is no partial file.
#[derive(Debug, thiserror::Error)]
pub enum PartialError {
    /// The same content is being received already, by this process or another. Wait for that.
    #[error("it is being downloaded already")]
    Busy,
    /// The disk has too little room.
    #[error("{needed} bytes are needed and {available} are free")]
    NoSpace {
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// The file cannot be made.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl PartialError {
    /// As a user sees it, when it ends the download of `what`.
    pub fn to_failure(&self, what: &str) -> Failure {
        let (code, hint) = match self {
            Self::Busy => (FailureCode::LimitReached, "wait until that is done"),
            Self::NoSpace { .. } => (FailureCode::NoSpace, "free some space and try again"),
            Self::Disk(_) => (FailureCode::Io, "look at the folder's permissions"),
        };
        Failure::new(code, format!("cannot download {what}"), self, hint)
    }
}

impl Partial {
    /// Makes the partial file of a content in `dir`, with room for all of it, or takes over the one that an
    /// earlier process left there. (For now it begins again from the start.)
    ///
    /// # Errors
    /// See [`PartialError`].
    pub(crate) fn create(
        dir: OwnedFd,
        name: &OsStr,
        hash: ContentHash,
        size: u64,
        with_outboard: bool,
    ) -> Result<Self, PartialError> {
        let file = open_locked(&dir, name)?;
        let outboard_name = outboard_name(name);
        let outboard = if with_outboard && size > GROUP_BYTES {
            Some(File::from(rustix::fs::openat(&dir, &outboard_name, CREATE, MODE).map_err(io::Error::from)?))
        } else {
            None
        };
        let inner = Inner {
            hash,
            size,
            file,
            outboard,
            dir,
            name: name.to_owned(),
            verified: Mutex::default(),
            placed: AtomicBool::new(false),
        };
        // From here on, dropping it takes the file away again.
        let partial = Self { inner: Arc::new(inner) };
        allocate(partial.file(), size)?;
        Ok(partial)
    }

    /// Hash of the bytes that are wanted.
    pub fn hash(&self) -> ContentHash {
        self.inner.hash
    }

    /// How many are wanted.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// Groups that were verified and written.
    pub fn verified(&self) -> GroupRanges {
        self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Groups that are wanted still.
    pub fn missing(&self) -> GroupRanges {
        self.verified().missing(self.size())
    }

    pub(crate) fn file(&self) -> &File {
        &self.inner.file
    }

    pub(crate) fn outboard(&self) -> Option<&File> {
        self.inner.outboard.as_ref()
    }

    /// What is here of it, to be served. Only groups that are [`verified`](Self::verified) may be.
    pub(crate) fn source(&self) -> io::Result<Source> {
        Ok(Source {
            hash: self.hash(),
            size: self.size(),
            file: self.file().try_clone()?,
            outboard: self.outboard().map(File::try_clone).transpose()?,
            stamp: None,
        })
    }

    pub(crate) fn mark(&self, groups: &GroupRanges) {
        let mut verified = self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner);
        for range in groups.iter() {
            verified.insert(range);
        }
    }

    /// Where the outboard lies, for who wants to have it after the file was put in its place.
    pub(crate) fn outboard_name(&self) -> OsString {
        outboard_name(&self.inner.name)
    }

    /// Puts the complete file at `base` in `dir`, durably, and returns the stamp it has there.
    ///
    /// `mtime_micros` becomes its modification time, microseconds since 1970. Without `overwrite`, nothing is replaced.
    ///
    /// # Errors
    /// `AlreadyExists` when something is there, `InvalidData` when groups are missing, `CrossesDevices` when `dir` is on another
    /// file system than the partial file, or what the disk says.
    pub(crate) fn place(
        self,
        dir: &OwnedFd,
        base: &OsStr,
        mtime_micros: i64,
        executable: bool,
        overwrite: bool,
    ) -> io::Result<Stamp> {
        if !self.missing().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not complete"));
        }
        let file = self.file();
        describe(file, mtime_micros, executable)?;
        file.sync_all()?;
        rename(&self.inner.dir, &self.inner.name, dir, base, overwrite)?;
        self.inner.placed.store(true, Ordering::Release);
        rustix::fs::fsync(dir)?;
        Ok(Stamp::of(&file.metadata()?))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The lock is still held, so nobody else's file of this name is hit. Nothing there: nothing to do.
        if !self.placed.load(Ordering::Acquire) {
            let _gone = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
        if self.outboard.is_some() {
            let _moved = rustix::fs::unlinkat(&self.dir, outboard_name(&self.name), AtFlags::empty());
        }
    }
}

const CREATE: OFlags =
    OFlags::RDWR.union(OFlags::CREATE).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// What the user's umask leaves of it: the file keeps this mode where it goes.
const MODE: Mode = Mode::from_raw_mode(0o666);

fn outboard_name(name: &OsStr) -> OsString {
    let mut name = name.to_owned();
    name.push(".outboard");
    name
}

/// Opens (or makes) the file and locks it. A lock can come on a file that was renamed since it was opened: its
/// owner finished it. Writing to that would write to somebody's finished file, so it is looked at again.
fn open_locked(dir: &OwnedFd, name: &OsStr) -> Result<File, PartialError> {
    loop {
        let file = rustix::fs::openat(dir, name, CREATE, MODE).map_err(io::Error::from)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(PartialError::Busy),
            locked => locked.map_err(io::Error::from)?,
        }
        let opened = Stamp::from_stat(&rustix::fs::fstat(&file).map_err(io::Error::from)?);
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if Stamp::from_stat(&named).id() == opened.id() => return Ok(File::from(file)),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// Gives the file its length and its room on the disk.
fn allocate(file: &File, size: u64) -> Result<(), PartialError> {
    let no_space = |_: Errno| {
        let available = rustix::fs::fstatvfs(file).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        PartialError::NoSpace { needed: size, available }
    };
    file.set_len(0)?;
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        // A size beyond what the file system can hold is a lie, or no room either.
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::INVAL)) => Err(no_space(error)),
        Err(error @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
            let stat = rustix::fs::fstatvfs(file).map_err(io::Error::from)?;
            if stat.f_bavail.saturating_mul(stat.f_frsize) < size {
                return Err(no_space(error));
            }
            match file.set_len(size) {
                Err(failed) if is_no_space(&failed) => Err(no_space(error)),
                set => Ok(set?),
            }
        }
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Sets modification time and the executable bits (where reading is allowed).
pub(crate) fn describe(file: &File, mtime_micros: i64, executable: bool) -> io::Result<()> {
    if executable {
        let mode = file.metadata()?.permissions().mode();
        file.set_permissions(Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
    }
    let distance = Duration::from_micros(mtime_micros.unsigned_abs());
    let mtime = if mtime_micros >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    };
    match mtime {
        Some(mtime) => file.set_modified(mtime),
        None => Ok(()),
    }
}

/// Renames a file; without `overwrite` only when nothing is there.
pub(crate) fn rename(
    from: impl AsFd,
    from_name: &OsStr,
    to: impl AsFd,
    to_name: &OsStr,
    overwrite: bool,
) -> io::Result<()> {
    if overwrite {
        return Ok(rustix::fs::renameat(&from, from_name, &to, to_name)?);
    }
    match rustix::fs::renameat_with(&from, from_name, &to, to_name, RenameFlags::NOREPLACE) {
        // This file system does not have it; a hard link does the same in two steps.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(&from, from_name, &to, to_name, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(&from, from_name, AtFlags::empty())?)
        }
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt, path::Path};

    use super::*;

    fn dir(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn create(path: &Path, size: u64) -> Result<Partial, PartialError> {
        Partial::create(dir(path), OsStr::new("partial"), ContentHash([1; 32]), size, true)
    }

    fn complete(path: &Path, content: &[u8]) -> Partial {
        let partial = create(path, content.len() as u64).unwrap();
        partial.file().write_all_at(content, 0).unwrap();
        partial.mark(&GroupRanges::all(content.len() as u64));
        partial
    }

    #[test]
    fn a_complete_file_is_placed_as_described() {
        let folder = tempfile::tempdir().unwrap();
        let partial = complete(folder.path(), b"hello");
        let stamp =
            partial.place(&dir(folder.path()), OsStr::new("final"), 1_500_000_000_123_456, true, false).unwrap();
        assert_eq!(fs::read(folder.path().join("final")).unwrap(), b"hello");
        assert_eq!((stamp.mtime_micros(), stamp.executable, stamp.size), (1_500_000_000_123_456, true, 5));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn an_incomplete_file_is_never_placed_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let partial = create(folder.path(), 3 * GROUP_BYTES).unwrap();
        partial.mark(&GroupRanges::requested(&[(0, 2)], 3 * GROUP_BYTES).unwrap());
        let error = partial.place(&dir(folder.path()), OsStr::new("final"), 0, false, true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_replaced_unless_asked() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("final"), "mine").unwrap();
        let partial = complete(folder.path(), b"theirs");
        let error = partial.place(&dir(folder.path()), OsStr::new("final"), 0, false, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(folder.path().join("final")).unwrap(), b"mine");
        complete(folder.path(), b"theirs").place(&dir(folder.path()), OsStr::new("final"), 0, false, true).unwrap();
        assert_eq!(fs::read(folder.path().join("final")).unwrap(), b"theirs");
    }

    #[test]
    fn one_content_is_received_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = create(folder.path(), 10).unwrap();
        assert!(matches!(create(folder.path(), 10), Err(PartialError::Busy)));
        drop(first);
        create(folder.path(), 10).unwrap();
    }

    #[test]
    fn times_that_cannot_be_are_no_error() {
        let folder = tempfile::tempdir().unwrap();
        for mtime in [i64::MIN, -1, 0, i64::MAX] {
            let placed = complete(folder.path(), b"x").place(&dir(folder.path()), OsStr::new("f"), mtime, false, true);
            placed.unwrap_or_else(|error| panic!("{mtime}: {error}"));
        }
    }

    #[test]
    fn a_lying_size_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for size in [u64::MAX, 1 << 62, i64::MAX as u64] {
            match create(folder.path(), size) {
                Err(PartialError::NoSpace { needed, .. }) => assert_eq!(needed, size),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "and leaves nothing");
    }
}
