//! Handle of a file that is being received. The file has its full length from the start, is written in place and
//! renamed when it is complete. A journal keeps its verified groups across restarts.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    ops::Range,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    bao::verifier::outboard_bytes,
    store::{
        error::{PartialError, is_no_space},
        file_ops::{remove_durably, rename, set_attributes},
        file_stat::FileStat,
        params::RESUME_MIN_BYTES,
        source::Source,
    },
};
use rustix::fs::AtFlags;
use shared::{
    content::{ContentHash, FileMeta},
    group_ranges::GroupRanges,
    limits::GROUP_BYTES,
};

use super::{
    direct_io::DirectWriter,
    files::{PartialLocation, allocate, available, id_of, open_locked, open_rw, outboard_name},
    resume::{
        format::{Goal, Header, ResumeLog},
        journal::{JournalFiles, ResumeJournal},
        recover::{Recovered, ResumeFile, boot_id, changed_at, recover},
    },
};

/// File that is being received. Clones are handles of the same file.
///
/// If the last handle is dropped before `finalize`, the file and its journal stay, so that the
/// download can be resumed. A file without verified groups, or one too small to be resumed, is deleted.
#[derive(Debug, Clone)]
pub struct Partial {
    inner: Arc<Inner>,
}

/// Handle that does not keep the download running.
#[derive(Debug, Clone)]
pub(crate) struct WeakPartial(Weak<Inner>);

impl WeakPartial {
    /// Returns the partial file if it is still being received.
    pub(crate) fn upgrade(&self) -> Option<Partial> {
        self.0.upgrade().map(|inner| Partial { inner })
    }
}

#[derive(Debug)]
struct Inner {
    hash: ContentHash,
    size: u64,
    goal: Goal,
    /// Handle that holds the lock. Clones of the other handles may outlive the download, but the lock must not.
    _lock: File,
    file: File,
    /// Writer for large runs, where the file system supports it.
    direct: Option<DirectWriter>,
    outboard: Option<File>,
    /// Locked during a write through the page cache.
    writing: Mutex<()>,
    /// Set when the file is finalized, before its times are set. Writers hold a read lock.
    is_closed: RwLock<bool>,
    /// Directory of the file and its outboard.
    dir: OwnedFd,
    name: OsString,
    verified: Mutex<GroupRanges>,
    /// Journal of a file that is large enough to be resumed.
    journal: Option<ResumeJournal>,
    finalized: AtomicBool,
}

impl Partial {
    /// Opens the partial file of `file`, or creates it with space for all of it. Groups that an earlier process
    /// recorded as durable count as verified; uncertain groups are hashed unless `stop` is set.
    ///
    /// # Errors
    /// See [`PartialError`].
    pub(crate) fn open(location: PartialLocation, file: &FileMeta, stop: &AtomicBool) -> Result<Self, PartialError> {
        let PartialLocation { dir, name, resume_dir, resume_name, goal } = location;
        let (lock, data) = open_locked(&dir, &name)?;
        let outboard = if file.size > GROUP_BYTES { Some(open_rw(&dir, &outboard_name(&name))?) } else { None };
        let mut inner = Inner {
            hash: file.hash,
            size: file.size,
            goal,
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
        // From here on, an early return drops `inner`, which deletes the file unless a group is verified.
        let recovered = inner.recover(&resume_dir, &resume_name, file, stop)?;
        let is_new = inner.verified.get_mut().unwrap_or_else(PoisonError::into_inner).is_empty();
        inner.allocate(is_new)?;
        if let Some(recovered) = recovered {
            inner.start_journal(resume_dir, resume_name, file, recovered, !is_new)?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Returns a handle that does not keep the download running.
    pub(crate) fn downgrade(&self) -> WeakPartial {
        WeakPartial(Arc::downgrade(&self.inner))
    }

    /// Returns the destination of the file.
    pub(crate) fn goal(&self) -> &Goal {
        &self.inner.goal
    }

    /// Returns a source to send the file from and the groups verified so far.
    ///
    /// The source stays readable after the download has ended, and does not prevent its resumption.
    ///
    /// # Errors
    /// If this process has too many open files.
    pub fn open_for_serving(&self) -> io::Result<(Source, GroupRanges)> {
        let Inner { hash, size, file, outboard, .. } = &*self.inner;
        let outboard = outboard.as_ref().map(File::try_clone).transpose()?;
        let source =
            Source { hash: *hash, size: *size, file: file.try_clone()?, outboard, stat: None, in_doubt: false };
        Ok((source, self.verified()))
    }

    /// Returns the hash of the complete content.
    pub fn hash(&self) -> ContentHash {
        self.inner.hash
    }

    /// Returns the size of the complete content, bytes.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// Returns the groups that are verified and written.
    pub fn verified(&self) -> GroupRanges {
        self.lock_verified().clone()
    }

    /// Returns the groups that are not verified yet.
    pub fn missing(&self) -> GroupRanges {
        self.verified().missing(self.size())
    }

    pub(crate) fn file(&self) -> &File {
        &self.inner.file
    }

    pub(crate) fn outboard(&self) -> Option<&File> {
        self.inner.outboard.as_ref()
    }

    /// Writes verified groups: `pairs` that prove them (runs of the outboard with their offsets), then `data` at
    /// `offset`. Returns the number of bytes that were not verified before. Blocks while the disk is too far behind.
    ///
    /// Groups that are verified already are not written again. Once all groups are verified, no request writes to the
    /// file any more, so its times can be set.
    ///
    /// # Errors
    /// The error of this write or of an earlier sync.
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
        // Pairs first: a verified group is served to other peers, which need the pairs.
        if let Some(outboard) = &self.inner.outboard {
            pairs.iter().try_for_each(|(at, run)| outboard.write_all_at(run, *at))?;
        }
        self.write_at(data, offset)?;
        self.mark_verified(&groups)
    }

    /// Writes large runs of a large file with [`DirectWriter`], everything else through the page cache.
    ///
    /// The kernel admits one writer at a time to the page cache of a file and lets the others spin (8 % of all CPU
    /// time on ext4 with two requests). The mutex makes them sleep.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let Inner { file, direct, writing, .. } = &*self.inner;
        let written = direct.as_ref().map_or(Ok(0), |direct| direct.write_at(data, offset))?;
        let rest = &data[written..];
        if rest.is_empty() {
            return Ok(());
        }
        let _exclusive = writing.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all_at(rest, offset + written as u64)
    }

    fn lock_verified(&self) -> MutexGuard<'_, GroupRanges> {
        self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records groups whose data and pairs are written. Returns the number of their bytes that are new.
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

    /// Discards the verified groups, so that the file is deleted with its last handle.
    pub(crate) fn abandon(&self) {
        *self.lock_verified() = GroupRanges::default();
    }

    /// Returns the name of the outboard in the directory of the partial file.
    pub(crate) fn outboard_name(&self) -> OsString {
        outboard_name(&self.inner.name)
    }

    /// Moves the complete file to `base` in `dir`, durably and atomically, and returns its stat there.
    ///
    /// `mtime_micros` becomes its modification time, microseconds since 1970. Without `overwrite`, nothing is replaced.
    ///
    /// # Errors
    /// `AlreadyExists` if the destination exists, `InvalidData` if groups are missing, `CrossesDevices` if `dir` is on
    /// another file system than the partial file, or the error of the disk.
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
        // Waits for requests that are still writing groups which other requests delivered first.
        *self.inner.is_closed.write().unwrap_or_else(PoisonError::into_inner) = true;
        let file = self.file();
        set_attributes(file, mtime_micros, executable)?;
        match &self.inner.journal {
            Some(journal) => {
                journal.health()?;
                file.sync_all().inspect_err(|error| journal.discard_unsynced(error))?;
            }
            None => file.sync_all()?,
        }
        rename(&self.inner.dir, &self.inner.name, dir, base, overwrite)?;
        self.inner.finalized.store(true, Ordering::Release);
        rustix::fs::fsync(dir)?;
        Ok(FileStat::of(&file.metadata()?))
    }
}

impl Inner {
    /// Restores the verified groups of an earlier download. Returns `None` for a file that is too small to be resumed.
    fn recover(
        &mut self,
        resume_dir: &OwnedFd,
        resume_name: &OsStr,
        file: &FileMeta,
        stop: &AtomicBool,
    ) -> io::Result<Option<Recovered>> {
        let Some(outboard) = self.outboard.as_ref().filter(|_| file.size > RESUME_MIN_BYTES) else { return Ok(None) };
        let resume_file = ResumeFile::read(resume_dir, resume_name)?;
        let recovered = recover(resume_file.as_ref(), file, &self.file, outboard, stop)?;
        let verified: GroupRanges = recovered.durable.iter().chain(recovered.written.iter()).collect();
        if verified.is_empty() && resume_file.is_some() {
            // Before the file is truncated, because the old resume file must not make claims about the new content.
            remove_durably(resume_dir, resume_name)?;
        }
        self.verified = Mutex::new(verified);
        Ok(Some(recovered))
    }

    /// Gives the file and its outboard their full length, and opens the direct writer.
    fn allocate(&mut self, is_new: bool) -> Result<(), PartialError> {
        allocate(&self.file, self.size, is_new)?;
        self.direct = DirectWriter::open(&self.dir, &self.name, &self.file, self.size);
        match self.direct.as_ref().map(|direct| direct.reserve(self.size)) {
            Some(Err(error)) if is_no_space(&error) => {
                return Err(PartialError::NoSpace { needed: self.size, available: available(&self.file)? });
            }
            // Not every file system can reserve space. Without a reservation each write allocates its own.
            _ => {}
        }
        match &self.outboard {
            Some(outboard) => allocate(outboard, outboard_bytes(self.size), is_new),
            None => Ok(()),
        }
    }

    /// Starts the journal with the recovered groups.
    fn start_journal(
        &mut self,
        resume_dir: OwnedFd,
        resume_name: OsString,
        file: &FileMeta,
        recovered: Recovered,
        resumed: bool,
    ) -> io::Result<()> {
        let Some(outboard) = &self.outboard else { return Ok(()) };
        let header = Header {
            file: file.clone(),
            goal: self.goal.clone(),
            boot: boot_id(),
            nonce: fastrand::u128(..).to_le_bytes(),
            data: id_of(&self.file)?,
            outboard: id_of(outboard)?,
        };
        let files = JournalFiles {
            data: self.file.try_clone()?,
            outboard: outboard.try_clone()?,
            dir: self.dir.try_clone()?,
            resume_dir,
            resume_name,
        };
        let log = ResumeLog::new(&header, recovered.durable, recovered.written)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
        self.journal = Some(ResumeJournal::start(files, log, resumed)?);
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The lock is still held, so these names are not those of another download.
        let finalized = self.finalized.load(Ordering::Acquire);
        let has_verified = !self.verified.get_mut().unwrap_or_else(PoisonError::into_inner).is_empty();
        if has_verified && !finalized && self.size > RESUME_MIN_BYTES {
            if let (Some(journal), Some(outboard)) = (&self.journal, &self.outboard) {
                // With an unknown time, the file is hashed when it is resumed.
                let changed = |file: &File| rustix::fs::fstat(file).map_or(0, |stat| changed_at(&stat));
                journal.close(changed(&self.file), changed(outboard));
            }
            return;
        }
        if !finalized {
            let _missing = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
        if self.outboard.is_some() {
            let _moved = rustix::fs::unlinkat(&self.dir, outboard_name(&self.name), AtFlags::empty());
        }
        if let Some(journal) = &self.journal {
            journal.end();
        }
    }
}

#[cfg(test)]
mod tests;
