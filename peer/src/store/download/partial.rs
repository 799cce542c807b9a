//! A file that is being received: of its full length from the start, written in place, renamed when it is complete. What
//! is proven of it outlives the process.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Permissions},
    io,
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, PermissionsExt},
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use shared::{
    content::{ContentHash, FileMeta},
    error::{Failure, FailureCode},
    group_ranges::GroupRanges,
    limits::{GROUP_BYTES, RESUME_MIN_BYTES},
};

use super::{
    direct_io::DirectWriter,
    resume::{
        format::{Goal, Header, Log},
        journal::{Files, ResumeJournal},
        recover::{ResumeFile, boot_id, changed, id, recover, remove_durably},
    },
};
use crate::{
    bao::verifier::outboard_bytes,
    store::{error::is_no_space, file_stat::FileStat, source::Source},
};

/// A file that is being received. Clones are handles of the same file; when the last is dropped before the file was
/// put in its place, what is proven of it stays for the next who wants it. A small file, or one of which nothing is
/// proven, is deleted instead.
#[derive(Debug, Clone)]
pub struct Partial {
    inner: Arc<Inner>,
}

/// A handle that does not keep the file being received.
#[derive(Debug, Clone)]
pub(crate) struct WeakPartial(Weak<Inner>);

impl WeakPartial {
    /// The partial file, if it is still being received.
    pub(crate) fn upgrade(&self) -> Option<Partial> {
        self.0.upgrade().map(|inner| Partial { inner })
    }
}

/// Where a partial file lies, and its resume file.
#[derive(Debug)]
pub(crate) struct PartialLocation {
    /// The directory of the file and its outboard, and the file's name in it.
    pub(crate) dir: OwnedFd,
    pub(crate) name: OsString,
    /// The same of the resume file.
    pub(crate) resume_dir: OwnedFd,
    pub(crate) resume_name: OsString,
    /// Where the file goes when it is complete.
    pub(crate) goal: Goal,
}

#[derive(Debug)]
struct Inner {
    hash: ContentHash,
    size: u64,
    goal: Goal,
    /// Open only for its lock: the other handles may be passed on without it.
    _lock: File,
    file: File,
    /// For large writes, where they can be made past the page cache.
    direct: Option<DirectWriter>,
    outboard: Option<File>,
    /// Held while the file is written to through the page cache.
    writing: Mutex<()>,
    /// Set when the file is put in its place, before its times are. Who writes holds it for reading.
    is_closed: RwLock<bool>,
    /// Where both lie.
    dir: OwnedFd,
    name: OsString,
    verified: Mutex<GroupRanges>,
    /// Of a file that is large enough to be gone on with.
    journal: Option<ResumeJournal>,
    finalized: AtomicBool,
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
            Self::Disk(error) if is_no_space(error) => (FailureCode::NoSpace, "free some space and try again"),
            Self::Disk(_) => (FailureCode::Io, "look at the folder's permissions"),
        };
        Failure::new(code, format!("cannot download {what}"), self, hint)
    }
}

impl Partial {
    /// Makes the partial file of `file`, with room for all of it, or goes on with the one that is there. What an
    /// earlier process noted as proven counts; what is in doubt is hashed, unless `stop` is set.
    ///
    /// # Errors
    /// See [`PartialError`].
    pub(crate) fn open(place: PartialLocation, file: &FileMeta, stop: &AtomicBool) -> Result<Self, PartialError> {
        let PartialLocation { dir, name, resume_dir, resume_name, goal } = place;
        let (lock, data) = open_locked(&dir, &name)?;
        let outboard = if file.size > GROUP_BYTES { Some(open_rw(&dir, &outboard_name(&name))?) } else { None };
        let mut inner = Inner {
            hash: file.hash,
            size: file.size,
            goal: goal.clone(),
            _lock: lock,
            file: data,
            direct: None,
            outboard,
            writing: Mutex::default(),
            is_closed: RwLock::default(),
            dir,
            name,
            verified: Mutex::default(),
            journal: None,
            finalized: AtomicBool::new(false),
        };
        // From here on, dropping it takes the file away again, unless something of it is proven.
        let resumed = match &inner.outboard {
            Some(outboard) if file.size > RESUME_MIN_BYTES => {
                let have = ResumeFile::read(&resume_dir, &resume_name)?;
                let found = recover(have.as_ref(), file, &inner.file, outboard, stop)?;
                let proven: GroupRanges = found.durable.iter().chain(found.written.iter()).collect();
                if proven.is_empty() && have.is_some() {
                    // Before the file is begun anew, so that nothing is ever claimed of what is new in it.
                    remove_durably(&resume_dir, &resume_name)?;
                }
                inner.verified = Mutex::new(proven);
                Some((outboard, found))
            }
            _ => None,
        };
        let is_new = inner.verified.get_mut().unwrap_or_else(PoisonError::into_inner).is_empty();
        allocate(&inner.file, file.size, is_new)?;
        inner.direct = DirectWriter::open(&inner.dir, &inner.name, &inner.file, file.size);
        match inner.direct.as_ref().map(|direct| direct.reserve(file.size)) {
            Some(Err(error)) if is_no_space(&error) => {
                return Err(PartialError::NoSpace { needed: file.size, available: available(&inner.file)? });
            }
            // Not every file system reserves room; the writes ask for it themselves.
            _ => {}
        }
        if let Some(outboard) = &inner.outboard {
            // Its full length at once: it is read in runs, and no room for it is no room for the file.
            allocate(outboard, outboard_bytes(file.size), is_new)?;
        }
        if let Some((outboard, found)) = resumed {
            let files = Files {
                data: inner.file.try_clone()?,
                outboard: outboard.try_clone()?,
                dir: inner.dir.try_clone()?,
                resume_dir,
                resume_name,
            };
            let header = Header {
                file: file.clone(),
                goal,
                boot: boot_id(),
                nonce: fastrand::u128(..).to_le_bytes(),
                data: id(&rustix::fs::fstat(&inner.file).map_err(io::Error::from)?),
                outboard: id(&rustix::fs::fstat(outboard).map_err(io::Error::from)?),
            };
            let log = Log::new(&header, found.durable, found.written)
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
            inner.journal = Some(ResumeJournal::begin(files, log, !is_new)?);
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A handle that does not keep the file being received.
    pub(crate) fn downgrade(&self) -> WeakPartial {
        WeakPartial(Arc::downgrade(&self.inner))
    }

    /// Where the file goes.
    pub(crate) fn goal(&self) -> &Goal {
        &self.inner.goal
    }

    /// What can be sent of the file to others, and the groups of it that are proven by now. It can be read from as long as it is
    /// held, whatever becomes of the download, and keeps nobody from going on with that.
    ///
    /// # Errors
    /// When this process has too many files open.
    pub fn open_for_serving(&self) -> io::Result<(Source, GroupRanges)> {
        let Inner { hash, size, file, outboard, .. } = &*self.inner;
        let outboard = outboard.as_ref().map(File::try_clone).transpose()?;
        let source = Source { hash: *hash, size: *size, file: file.try_clone()?, outboard, stat: None };
        Ok((source, self.verified()))
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
        self.lock_verified().clone()
    }

    /// Groups that are wanted still.
    pub fn missing(&self) -> GroupRanges {
        self.verified().missing(self.size())
    }

    pub(crate) fn file(&self) -> &File {
        &self.inner.file
    }

    /// Writes verified groups, `data` at `offset`, and before them the pairs that prove them (runs of the outboard, each with its place), and counts
    /// them as proven. Returns how many bytes of the file were not proven before. Waits while the disk is far behind.
    ///
    /// What another request brought already is not written again. So when all is proven, nobody touches the file any more, and none of
    /// those who began before is at it when its times are set.
    ///
    /// # Errors
    /// What the disk says, or that it failed to keep what was written before.
    pub(crate) fn write_verified(
        &self,
        data: &[u8],
        offset: u64,
        groups: Range<u64>,
        pairs: &[(u64, Vec<u8>)],
    ) -> io::Result<u64> {
        let is_closed = self.inner.is_closed.read().unwrap_or_else(PoisonError::into_inner);
        let groups: GroupRanges = std::iter::once(groups).collect();
        if *is_closed || self.lock_verified().covers(&groups) {
            return Ok(0);
        }
        // Pairs before groups: a group counts as verified only when what proves it to others is there too.
        if let Some(outboard) = &self.inner.outboard {
            pairs.iter().try_for_each(|(at, run)| outboard.write_all_at(run, *at))?;
        }
        self.write_at(data, offset)?;
        self.mark_verified(&groups)
    }

    /// Large runs of a large file past the page cache, see [`DirectWriter`], the rest through it. There the kernel lets in
    /// one writer of a file at a time, and has the others wait at work (8 % of all time on ext4, with two requests under way): here they sleep.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let Inner { file, direct, writing, .. } = &*self.inner;
        let written = direct.as_ref().map_or(Ok(0), |direct| direct.write_at(data, offset))?;
        let rest = &data[written..];
        if rest.is_empty() {
            return Ok(());
        }
        let _alone = writing.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all_at(rest, offset + written as u64)
    }

    fn lock_verified(&self) -> MutexGuard<'_, GroupRanges> {
        self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn outboard(&self) -> Option<&File> {
        self.inner.outboard.as_ref()
    }

    /// These groups, and the pairs that prove them, were written. Returns how many bytes of them are new.
    fn mark_verified(&self, groups: &GroupRanges) -> io::Result<u64> {
        let new = {
            let mut verified = self.lock_verified();
            let new = groups.without(&verified).bytes(self.size());
            groups.iter().for_each(|range| verified.insert(range));
            new
        };
        self.inner.journal.as_ref().map_or(Ok(()), |journal| journal.mark(groups))?;
        Ok(new)
    }

    /// Nothing of it is wanted any more: it goes with its last handle.
    pub(crate) fn abandon(&self) {
        *self.lock_verified() = GroupRanges::default();
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
    pub(crate) fn finalize(
        self,
        dir: &OwnedFd,
        base: &OsStr,
        mtime_micros: i64,
        executable: bool,
        overwrite: bool,
    ) -> io::Result<FileStat> {
        if !self.missing().is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is not complete"));
        }
        // Requests that were overtaken by others may still be at work.
        *self.inner.is_closed.write().unwrap_or_else(PoisonError::into_inner) = true;
        let file = self.file();
        set_attributes(file, mtime_micros, executable)?;
        match &self.inner.journal {
            Some(journal) => {
                journal.health()?;
                file.sync_all().inspect_err(|error| journal.distrust(error))?;
            }
            None => file.sync_all()?,
        }
        rename(&self.inner.dir, &self.inner.name, dir, base, overwrite)?;
        self.inner.finalized.store(true, Ordering::Release);
        rustix::fs::fsync(dir)?;
        Ok(FileStat::of(&file.metadata()?))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The lock is still held, so nobody else's file of this name is hit. Nothing there: nothing to do.
        let finalized = self.finalized.load(Ordering::Acquire);
        let proven = !self.verified.get_mut().unwrap_or_else(PoisonError::into_inner).is_empty();
        if proven && !finalized && self.size > RESUME_MIN_BYTES {
            if let (Some(journal), Some(outboard)) = (&self.journal, &self.outboard) {
                // A file whose times cannot be read is hashed when it is gone on with.
                let changed = |file: &File| rustix::fs::fstat(file).map_or(0, |stat| changed(&stat));
                journal.close(changed(&self.file), changed(outboard));
            }
            return;
        }
        if !finalized {
            let _gone = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
        if self.outboard.is_some() {
            let _moved = rustix::fs::unlinkat(&self.dir, outboard_name(&self.name), AtFlags::empty());
        }
        if let Some(journal) = &self.journal {
            journal.end();
        }
    }
}

/// Unit of a file's block count (stat(2)), bytes.
const BLOCK_BYTES: u64 = 512;
const OPEN: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// What the user's umask leaves of it: the file keeps this mode where it goes.
const MODE: Mode = Mode::from_raw_mode(0o666);

/// What the name of a partial file's pairs ends with.
pub(crate) const OUTBOARD: &str = ".outboard";

pub(crate) fn outboard_name(name: &OsStr) -> OsString {
    let mut name = name.to_owned();
    name.push(OUTBOARD);
    name
}

/// Opens a file for reading and writing; makes it where it is missing.
fn open_rw(dir: &OwnedFd, name: &OsStr) -> io::Result<File> {
    Ok(File::from(rustix::fs::openat(dir, name, OPEN | OFlags::CREATE, MODE)?))
}

/// Takes the lock of a partial file that is there, as long as the handle lives; `None` when somebody has it.
pub(crate) fn lock(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<File>> {
    let file = File::from(rustix::fs::openat(dir, name, OPEN, Mode::empty())?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        locked => Ok(locked.map(|()| Some(file))?),
    }
}

/// Opens (or makes) the file and locks it: a handle for the lock and one for the rest. A lock can come on a file that was
/// renamed since it was opened: its owner finished it. Writing to that would write to somebody's finished file, so it
/// is looked at again.
fn open_locked(dir: &OwnedFd, name: &OsStr) -> Result<(File, File), PartialError> {
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
        let same = |file: &File| rustix::fs::fstat(file).map(|stat| id(&stat)).map_err(io::Error::from);
        if same(&locked)? == same(&file)? {
            return Ok((locked, file));
        }
    }
}

/// Gives the file its length, anew or around what is there, if the disk has room for it.
///
/// The room is not reserved here: blocks that are (`fallocate`) have to be converted when they are written through the page cache, which costs
/// ext4 a third of a CPU second a GiB, and a file system in memory fills them with zeros first. When others fill the disk
/// meanwhile, the download stops with what it has and goes on when there is room again.
fn allocate(file: &File, size: u64, anew: bool) -> Result<(), PartialError> {
    if anew {
        file.set_len(0)?;
    }
    let available = available(file)?;
    let blocks = rustix::fs::fstat(file).map_err(io::Error::from)?.st_blocks;
    let here = u64::try_from(blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES);
    let no_space = PartialError::NoSpace { needed: size, available };
    if size.saturating_sub(here) > available {
        return Err(no_space);
    }
    match file.set_len(size) {
        // A size beyond what the file system can hold is a lie, or no room either.
        Err(error) if is_no_space(&error) || error.kind() == io::ErrorKind::FileTooLarge => Err(no_space),
        set => Ok(set?),
    }
}

/// Free bytes of the file's disk that this user may take.
fn available(file: &File) -> io::Result<u64> {
    let file_system = rustix::fs::fstatvfs(file)?;
    Ok(file_system.f_bavail.saturating_mul(file_system.f_frsize))
}

/// Sets modification time and the executable bits (where reading is allowed).
pub(crate) fn set_attributes(file: &File, mtime_micros: i64, executable: bool) -> io::Result<()> {
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
mod tests;
