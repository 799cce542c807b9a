//! Journal of a running download: appends records to the resume file and syncs in the background.
//!
//! ```text
//! writers: write data and pairs ─ mark ─ append "written"         (page cache: survives the process)
//! syncer:  fdatasync data and pairs ─ append "durable" ─ fdatasync (survives the machine)
//! ```

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::store::{
    file_ops::create_beside,
    params::{CHECKPOINT_BYTES, CHECKPOINT_INTERVAL, MAX_RESUME_FILE_BYTES, MAX_UNSYNCED_BYTES},
};
use rustix::fs::AtFlags;
use shared::group_ranges::GroupRanges;
use tracing::{debug, warn};

use super::format::ResumeLog;

/// Files of a download.
#[derive(Debug)]
pub(crate) struct JournalFiles {
    /// Partial file.
    pub(crate) data: File,
    /// Outboard of the partial file.
    pub(crate) outboard: File,
    /// Directory of the partial file and its outboard.
    pub(crate) dir: OwnedFd,
    /// Directory of the resume file.
    pub(crate) resume_dir: OwnedFd,
    /// Name of the resume file.
    pub(crate) resume_name: OsString,
}

/// Journal with its syncer thread, which runs until [`close`](Self::close) or [`end`](Self::end).
#[derive(Debug)]
pub(crate) struct ResumeJournal {
    inner: Arc<JournalInner>,
}

#[derive(Debug)]
struct JournalInner {
    files: JournalFiles,
    state: Mutex<JournalState>,
    /// Wakes the syncer.
    work: Condvar,
    /// Wakes writers that wait for the disk.
    synced: Condvar,
}

#[derive(Debug)]
struct JournalState {
    log: ResumeLog,
    /// Resume file.
    file: Arc<File>,
    /// Length of the resume file, bytes.
    len: u64,
    /// Records that are appended during a compaction.
    appended: Option<Vec<u8>>,
    phase: Phase,
    /// Error of a failed sync.
    failure: Option<io::ErrorKind>,
    /// True once a failed append was logged.
    has_warned: bool,
    /// Reused for encoded records.
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Ends after one more checkpoint.
    Closing,
    /// Ends without a further checkpoint.
    Over,
}

impl ResumeJournal {
    /// Creates the resume file with the groups of `log` in place of an older one, and starts the syncer. With
    /// `resumed`, replaces the older file durably.
    pub(crate) fn start(files: JournalFiles, log: ResumeLog, resumed: bool) -> io::Result<Self> {
        let content = log.compact();
        let file = replace(&files, &content, resumed)?;
        let state = JournalState {
            log,
            file: Arc::new(file),
            len: content.len() as u64,
            appended: None,
            phase: Phase::Running,
            failure: None,
            has_warned: false,
            buffer: Vec::new(),
        };
        let inner =
            Arc::new(JournalInner { files, state: Mutex::new(state), work: Condvar::new(), synced: Condvar::new() });
        let syncer = Arc::clone(&inner);
        thread::Builder::new().name("syncer".to_owned()).spawn(move || syncer.sync())?;
        Ok(Self { inner })
    }

    /// Records groups that are written. Blocks while more than `MAX_UNSYNCED_BYTES` are not on the disk.
    ///
    /// # Errors
    /// If a sync failed: earlier writes may be lost.
    pub(crate) fn mark(&self, groups: &GroupRanges) -> io::Result<()> {
        let inner = &self.inner;
        let mut state = inner.lock();
        let before = state.log.unsynced_bytes();
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        state.log.mark(groups, &mut buffer);
        state.append(&buffer);
        state.buffer = buffer;
        if before == 0 || state.log.unsynced_bytes() >= CHECKPOINT_BYTES {
            inner.work.notify_one();
        }
        while state.log.unsynced_bytes() > MAX_UNSYNCED_BYTES && state.failure.is_none() {
            state = inner.synced.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.health()
    }

    /// Returns the error of a failed sync.
    pub(crate) fn health(&self) -> io::Result<()> {
        self.inner.lock().health()
    }

    /// Drops the claims on groups that are not durable, after a sync of the partial file failed with `error`.
    pub(crate) fn discard_unsynced(&self, error: &io::Error) {
        self.inner.discard_unsynced(self.inner.lock(), error);
    }

    /// Ends the journal of an interrupted download after a last checkpoint. `data` and `outboard` are the times of
    /// the last change of the files, nanoseconds since 1970.
    pub(crate) fn close(&self, data: i64, outboard: i64) {
        let mut state = self.inner.lock();
        let record = state.log.close(data, outboard);
        state.append(&record);
        state.phase = Phase::Closing;
        self.inner.work.notify_one();
    }

    /// Ends the journal of a download that is complete or abandoned, and deletes the resume file.
    pub(crate) fn end(&self) {
        self.inner.lock().phase = Phase::Over;
        self.inner.work.notify_one();
        let JournalFiles { resume_dir, resume_name, .. } = &self.inner.files;
        let _missing = rustix::fs::unlinkat(resume_dir, resume_name, AtFlags::empty());
    }
}

impl JournalState {
    /// Appends records. Lost records only cause their groups to be fetched again, so an error does not stop the
    /// download.
    fn append(&mut self, bytes: &[u8]) {
        if let Some(appended) = &mut self.appended {
            appended.extend(bytes);
        }
        let end = self.len + bytes.len() as u64;
        if end > MAX_RESUME_FILE_BYTES as u64 {
            return;
        }
        match self.file.write_all_at(bytes, self.len) {
            Ok(()) => self.len = end,
            Err(error) if !self.has_warned => {
                self.has_warned = true;
                warn!(%error, "cannot write the resume journal; an interruption will fetch data again");
            }
            Err(error) => debug!(%error, "cannot write the resume journal"),
        }
    }

    fn health(&self) -> io::Result<()> {
        match self.failure {
            Some(kind) => Err(io::Error::new(kind, "the disk could not keep what was written to it")),
            None => Ok(()),
        }
    }
}

impl JournalInner {
    fn lock(&self) -> MutexGuard<'_, JournalState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Main loop of the syncer thread.
    fn sync(&self) {
        let mut first = true;
        loop {
            let mut state = self.wait_for_work();
            let phase = state.phase;
            if phase == Phase::Over || state.failure.is_some() {
                return;
            }
            state.log.begin_checkpoint();
            drop(state);
            let synced = self.sync_files(std::mem::take(&mut first));
            state = self.lock();
            if let Err(error) = synced {
                return self.discard_unsynced(state, &error);
            }
            let records = state.log.end_checkpoint();
            state.append(&records);
            let file = Arc::clone(&state.file);
            drop(state);
            self.synced.notify_all();
            if let Err(error) = file.sync_data() {
                // The records are valid nevertheless.
                debug!(%error, "cannot sync a resume file");
            }
            if phase == Phase::Closing {
                return;
            }
            self.compact();
        }
    }

    /// Waits for `CHECKPOINT_BYTES` of unsynced data, for less of it after `CHECKPOINT_INTERVAL`, or for the end.
    fn wait_for_work(&self) -> MutexGuard<'_, JournalState> {
        let idle = |state: &mut JournalState| state.phase == Phase::Running && state.log.unsynced_bytes() == 0;
        let few =
            |state: &mut JournalState| state.phase == Phase::Running && state.log.unsynced_bytes() < CHECKPOINT_BYTES;
        let state = self.work.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let waited = self.work.wait_timeout_while(state, CHECKPOINT_INTERVAL, few);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Syncs groups and pairs, the first time their directory entries as well.
    fn sync_files(&self, first: bool) -> io::Result<()> {
        let JournalFiles { data, outboard, dir, resume_dir, .. } = &self.files;
        data.sync_data()?;
        outboard.sync_data()?;
        if first {
            rustix::fs::fsync(dir)?;
            rustix::fs::fsync(resume_dir)?;
        }
        Ok(())
    }

    /// Stores the error of a sync and drops the claims on groups that are not durable. After a failed sync the kernel
    /// may have dropped their pages, and the next sync would not report it.
    fn discard_unsynced(&self, mut state: MutexGuard<'_, JournalState>, error: &io::Error) {
        warn!(%error, "cannot sync a download");
        state.failure = Some(error.kind());
        state.log.discard_unsynced();
        // In place, because a resumed download may have replaced the file already. A torn write claims nothing.
        let content = state.log.compact();
        let rewritten = state.file.set_len(0).and_then(|()| state.file.write_all_at(&content, 0));
        if let Err(error) = rewritten.and_then(|()| state.file.sync_data()) {
            warn!(%error, "cannot rewrite a resume file");
        }
        state.len = content.len() as u64;
        drop(state);
        self.synced.notify_all();
    }

    /// Rewrites a resume file that has grown. Writers continue meanwhile.
    fn compact(&self) {
        let mut state = self.lock();
        if !state.log.wants_compaction(state.len) {
            return;
        }
        let content = state.log.compact();
        state.appended = Some(Vec::new());
        drop(state);
        let written = create_beside(&self.files.resume_dir, &self.files.resume_name, &content, true);
        let mut state = self.lock();
        let appended = state.appended.take().unwrap_or_default();
        let replaced = written.and_then(|(file, name)| {
            let complete = file.write_all_at(&appended, content.len() as u64);
            // After the end of this journal, the name may be that of another download's file.
            let renamed = match state.phase {
                Phase::Running => complete.and_then(|()| rename_to_resume_file(&self.files, &name)),
                Phase::Closing | Phase::Over => Err(io::ErrorKind::Interrupted.into()),
            };
            if renamed.is_err() {
                let _removed = rustix::fs::unlinkat(&self.files.resume_dir, &name, AtFlags::empty());
            }
            renamed.map(|()| file)
        });
        match replaced {
            Ok(file) => {
                state.file = Arc::new(file);
                state.len = (content.len() + appended.len()) as u64;
                drop(state);
                // Before the next checkpoint, whose records are not in the old file.
                if let Err(error) = rustix::fs::fsync(&self.files.resume_dir) {
                    debug!(%error, "cannot sync the directory of the resume file");
                }
            }
            Err(error) => debug!(%error, "cannot compact a resume file"),
        }
    }
}

/// Replaces the resume file. With `durably`, syncs the file and its directory.
fn replace(files: &JournalFiles, content: &[u8], durably: bool) -> io::Result<File> {
    let (file, name) = create_beside(&files.resume_dir, &files.resume_name, content, durably)?;
    rename_to_resume_file(files, &name)?;
    if durably {
        rustix::fs::fsync(&files.resume_dir)?;
    }
    Ok(file)
}

fn rename_to_resume_file(files: &JournalFiles, name: &OsStr) -> io::Result<()> {
    let JournalFiles { resume_dir, resume_name, .. } = files;
    Ok(rustix::fs::renameat(resume_dir, name, resume_dir, resume_name)?)
}
