//! Partial files on disk: names, locks, allocation.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::OwnedFd,
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::resume::format::Goal;
use crate::store::{
    error::{PartialError, is_no_space},
    file_stat::{FileId, FileStat},
};

/// Directory of the partial and resume files, in the hidden directory of the share.
pub(crate) const PARTIAL_DIR: &str = "partial";
/// Suffix in the name of a partial file's outboard.
pub(crate) const OUTBOARD_SUFFIX: &str = ".outboard";
/// Suffix in the name of a resume file.
pub(crate) const RESUME_SUFFIX: &str = ".have";

/// Unit of a file's block count (stat(2)), bytes.
const BLOCK_BYTES: u64 = 512;
const OPEN: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Mode before the umask. The file keeps the resulting mode at its destination.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// Location of a partial file and its resume file.
#[derive(Debug)]
pub(crate) struct PartialLocation {
    /// Directory of the file and its outboard.
    pub(crate) dir: OwnedFd,
    /// Name of the file in `dir`.
    pub(crate) name: OsString,
    /// Directory of the resume file.
    pub(crate) resume_dir: OwnedFd,
    /// Name of the resume file in `resume_dir`.
    pub(crate) resume_name: OsString,
    /// Destination of the complete file.
    pub(crate) goal: Goal,
}

/// Returns the name of the outboard of the partial file `name`.
pub(crate) fn outboard_name(name: &OsStr) -> OsString {
    with_suffix(name, OUTBOARD_SUFFIX)
}

/// Returns the name of the resume file of the partial file `name`.
pub(crate) fn resume_name(name: &OsStr) -> OsString {
    with_suffix(name, RESUME_SUFFIX)
}

/// Returns true if `name` is that of a resume file.
pub(crate) fn is_resume_file(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(RESUME_SUFFIX.as_bytes())
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}

/// Opens a file for reading and writing. Creates it if it is missing.
pub(crate) fn open_rw(dir: &OwnedFd, name: &OsStr) -> io::Result<File> {
    Ok(File::from(rustix::fs::openat(dir, name, OPEN | OFlags::CREATE, MODE)?))
}

/// Locks an existing partial file until the returned handle is dropped. Returns `None` if another handle has the lock.
pub(crate) fn lock(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<File>> {
    let file = File::from(rustix::fs::openat(dir, name, OPEN, Mode::empty())?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        locked => Ok(locked.map(|()| Some(file))?),
    }
}

/// Opens or creates the file and locks it. Returns a handle that has the lock and one for reading and writing.
///
/// Between open and lock, the previous lock holder may have renamed the file to its destination. The lock then belongs
/// to a finished file, which must not be written to, so the name is opened again.
pub(crate) fn open_locked(dir: &OwnedFd, name: &OsStr) -> Result<(File, File), PartialError> {
    loop {
        let locked = open_rw(dir, name)?;
        match rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(PartialError::Busy),
            result => result.map_err(io::Error::from)?,
        }
        let file = match rustix::fs::openat(dir, name, OPEN, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            opened => File::from(opened.map_err(io::Error::from)?),
        };
        if id_of(&locked)? == id_of(&file)? {
            return Ok((locked, file));
        }
    }
}

/// Returns device and inode of an open file.
pub(crate) fn id_of(file: &File) -> io::Result<FileId> {
    Ok(FileStat::from_stat(&rustix::fs::fstat(file)?).id())
}

/// Sets the length of the file if the disk has space for it. With `anew`, truncates the file first.
///
/// Does not reserve the blocks: reserved blocks (`fallocate`) must be converted when they are written through the
/// page cache, which costs ext4 a third of a CPU second for each GiB, and a file system in memory fills them with
/// zeros. If other programs fill the disk meanwhile, the download stops and can be resumed.
pub(crate) fn allocate(file: &File, size: u64, anew: bool) -> Result<(), PartialError> {
    if anew {
        file.set_len(0)?;
    }
    let available = available(file)?;
    let blocks = rustix::fs::fstat(file).map_err(io::Error::from)?.st_blocks;
    let allocated = u64::try_from(blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES);
    let no_space = PartialError::NoSpace { needed: size, available };
    if size.saturating_sub(allocated) > available {
        return Err(no_space);
    }
    match file.set_len(size) {
        // A size that the file system cannot represent does not fit on the disk either.
        Err(error) if is_no_space(&error) || error.kind() == io::ErrorKind::FileTooLarge => Err(no_space),
        set => Ok(set?),
    }
}

/// Returns the free space of the file's disk that this user may use, bytes.
pub(crate) fn available(file: &File) -> io::Result<u64> {
    let file_system = rustix::fs::fstatvfs(file)?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}
