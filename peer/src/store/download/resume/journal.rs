//! Keeps the resume file of a running download: appends what is written, and syncs in the background.
//!
//! ```text
//! threads that write: data, pairs ─ mark ─ append "written"          (page cache: survives the process)
//! syncer:             fdatasync data, pairs ─ append "durable" ─ fdatasync (survives the machine)
//! ```

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::fs::{AtFlags, Mode, OFlags};
use shared::{
    group_ranges::GroupRanges,
    limits::{CHECKPOINT_BYTES, CHECKPOINT_INTERVAL, MAX_RESUME_FILE_BYTES, MAX_UNSYNCED_BYTES},
};
use tracing::{debug, warn};

use super::format::Log;

/// What the name of a resume file goes on with while it is being written.
pub(crate) const NEW: &str = ".new-";

/// The files of a download.
#[derive(Debug)]
pub(crate) struct Files {
    /// The partial file, its outboard, and the directory of both.
    pub(crate) data: File,
    pub(crate) outboard: File,
    pub(crate) dir: OwnedFd,
    /// Where the resume file lies.
    pub(crate) resume_dir: OwnedFd,
    pub(crate) resume_name: OsString,
}

/// The keeper of one resume file. Ends, with its thread, when it is told how.
#[derive(Debug)]
pub(crate) struct ResumeJournal {
    kept: Arc<JournalInner>,
}

#[derive(Debug)]
struct JournalInner {
    files: Files,
    state: Mutex<JournalState>,
    /// For the syncer: there is something to do.
    work: Condvar,
    /// For those who write: the disk has caught up.
    room: Condvar,
}

#[derive(Debug)]
struct JournalState {
    log: Log,
    have: Arc<File>,
    /// Length of the resume file.
    len: u64,
    /// What is appended while the file is being written anew.
    appended: Option<Vec<u8>>,
    phase: Phase,
    /// What the disk said when it failed to sync.
    failure: Option<io::ErrorKind>,
    /// Whether it was said that nothing can be appended.
    complained: bool,
    /// For records.
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// One more checkpoint, then the end.
    Closing,
    /// The end, at once.
    Over,
}

impl ResumeJournal {
    /// Begins the resume file of a download with what the log has, in place of an older one. Durably, if there is anything in
    /// it that an older one may have had.
    pub(crate) fn begin(files: Files, log: Log, resumed: bool) -> io::Result<Self> {
        let content = log.compact();
        let have = replace(&files, &content, resumed)?;
        let state = JournalState {
            log,
            have: Arc::new(have),
            len: content.len() as u64,
            appended: None,
            phase: Phase::Running,
            failure: None,
            complained: false,
            buffer: Vec::new(),
        };
        let kept =
            Arc::new(JournalInner { files, state: Mutex::new(state), work: Condvar::new(), room: Condvar::new() });
        let syncer = Arc::clone(&kept);
        thread::Builder::new().name("syncer".to_owned()).spawn(move || syncer.sync())?;
        Ok(Self { kept })
    }

    /// These groups were written. Waits while too much is not on the disk yet.
    ///
    /// # Errors
    /// When the disk failed to sync: what it had said it had written may not be there.
    pub(crate) fn mark(&self, groups: &GroupRanges) -> io::Result<()> {
        let kept = &self.kept;
        let mut state = kept.lock();
        let before = state.log.unsynced_bytes();
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        state.log.mark(groups, &mut buffer);
        state.append(&buffer);
        state.buffer = buffer;
        if before == 0 || state.log.unsynced_bytes() >= CHECKPOINT_BYTES {
            kept.work.notify_one();
        }
        while state.log.unsynced_bytes() > MAX_UNSYNCED_BYTES && state.failure.is_none() {
            state = kept.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.health()
    }

    /// Whether the disk synced all that it was asked to.
    pub(crate) fn health(&self) -> io::Result<()> {
        self.kept.lock().health()
    }

    /// The disk failed: what was not synced before does not count, now and later.
    pub(crate) fn distrust(&self, error: &io::Error) {
        self.kept.distrust(self.kept.lock(), error);
    }

    /// The download stops before its end and may go on later; the files changed at these times for the last time,
    /// nanoseconds since 1970.
    pub(crate) fn close(&self, data: i64, outboard: i64) {
        let mut state = self.kept.lock();
        let record = state.log.close(data, outboard);
        state.append(&record);
        state.phase = Phase::Closing;
        self.kept.work.notify_one();
    }

    /// There is nothing to go on with: the file is complete, or given up. The resume file is deleted.
    pub(crate) fn end(&self) {
        self.kept.lock().phase = Phase::Over;
        self.kept.work.notify_one();
        let Files { resume_dir, resume_name, .. } = &self.kept.files;
        let _gone = rustix::fs::unlinkat(resume_dir, resume_name, AtFlags::empty());
    }
}

impl JournalState {
    /// Appends records. When that fails they are lost, and what they claim is fetched again; the download goes on.
    fn append(&mut self, bytes: &[u8]) {
        if let Some(appended) = &mut self.appended {
            appended.extend(bytes);
        }
        let end = self.len + bytes.len() as u64;
        if end > MAX_RESUME_FILE_BYTES as u64 {
            return;
        }
        match self.have.write_all_at(bytes, self.len) {
            Ok(()) => self.len = end,
            Err(error) if !self.complained => {
                self.complained = true;
                warn!(%error, "it cannot be noted how far a download is; if it is interrupted, more is fetched again");
            }
            Err(error) => debug!(%error, "it still cannot be noted how far a download is"),
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

    /// The syncer's thread.
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
                return self.distrust(state, &error);
            }
            let records = state.log.end_checkpoint();
            state.append(&records);
            let have = Arc::clone(&state.have);
            drop(state);
            self.room.notify_all();
            if let Err(error) = have.sync_data() {
                // What it says is true all the same.
                debug!(%error, "a resume file cannot be synced");
            }
            if phase == Phase::Closing {
                return;
            }
            self.compact();
        }
    }

    /// Waits until there is enough to sync, or what there is has waited long enough, or the end.
    fn wait_for_work(&self) -> MutexGuard<'_, JournalState> {
        let idle = |state: &mut JournalState| state.phase == Phase::Running && state.log.unsynced_bytes() == 0;
        let few =
            |state: &mut JournalState| state.phase == Phase::Running && state.log.unsynced_bytes() < CHECKPOINT_BYTES;
        let state = self.work.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let waited = self.work.wait_timeout_while(state, CHECKPOINT_INTERVAL, few);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Pairs and groups; the first time their names as well.
    fn sync_files(&self, first: bool) -> io::Result<()> {
        let Files { data, outboard, dir, resume_dir, .. } = &self.files;
        data.sync_data()?;
        outboard.sync_data()?;
        if first {
            rustix::fs::fsync(dir)?;
            rustix::fs::fsync(resume_dir)?;
        }
        Ok(())
    }

    /// Notes that the disk failed, and takes back what is not durable: after a failure the kernel may have dropped it, and the
    /// next sync would not tell.
    fn distrust(&self, mut state: MutexGuard<'_, JournalState>, error: &io::Error) {
        warn!(%error, "the disk failed while a download was written to it");
        state.failure = Some(error.kind());
        state.log.distrust();
        // In place: whoever goes on with this download may have replaced the file already. Torn, it claims nothing.
        let content = state.log.compact();
        let rewritten = state.have.set_len(0).and_then(|()| state.have.write_all_at(&content, 0));
        if let Err(error) = rewritten.and_then(|()| state.have.sync_data()) {
            warn!(%error, "what is left of a download cannot be noted");
        }
        state.len = content.len() as u64;
        drop(state);
        self.room.notify_all();
    }

    /// Writes the resume file anew when it has grown. Whoever writes goes on meanwhile.
    fn compact(&self) {
        let mut state = self.lock();
        if !state.log.wants_compaction(state.len) {
            return;
        }
        let content = state.log.compact();
        state.appended = Some(Vec::new());
        drop(state);
        let written = write_new(&self.files.resume_dir, &self.files.resume_name, &content, true);
        let mut state = self.lock();
        let appended = state.appended.take().unwrap_or_default();
        let replaced = written.and_then(|(have, name)| {
            let complete = have.write_all_at(&appended, content.len() as u64);
            // From its end on, the download's file may be another's, or none.
            let renamed = match state.phase {
                Phase::Running => complete.and_then(|()| rename_new(&self.files, &name)),
                Phase::Closing | Phase::Over => Err(io::ErrorKind::Interrupted.into()),
            };
            if renamed.is_err() {
                let _removed = rustix::fs::unlinkat(&self.files.resume_dir, &name, AtFlags::empty());
            }
            renamed.map(|()| have)
        });
        match replaced {
            Ok(have) => {
                state.have = Arc::new(have);
                state.len = (content.len() + appended.len()) as u64;
                drop(state);
                // Before the next checkpoint, which is not in the old file.
                if let Err(error) = rustix::fs::fsync(&self.files.resume_dir) {
                    debug!(%error, "a directory cannot be synced");
                }
            }
            Err(error) => debug!(%error, "a resume file was not written anew"),
        }
    }
}

/// Puts a resume file in place of an older one; on the disk, if `durably`.
fn replace(files: &Files, content: &[u8], durably: bool) -> io::Result<File> {
    let (have, name) = write_new(&files.resume_dir, &files.resume_name, content, durably)?;
    rename_new(files, &name)?;
    if durably {
        rustix::fs::fsync(&files.resume_dir)?;
    }
    Ok(have)
}

/// A new file that nobody but this user may read, and what it is called until it is renamed to `name`: a name of its own, whoever
/// else writes the same file.
pub(crate) fn write_new(dir: &OwnedFd, name: &OsStr, content: &[u8], durably: bool) -> io::Result<(File, OsString)> {
    let mut beside = name.to_owned();
    beside.push(format!("{NEW}{:016x}", fastrand::u64(..)));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, &beside, flags, Mode::from_raw_mode(0o600))?);
    let written = file.write_all_at(content, 0).and_then(|()| if durably { file.sync_data() } else { Ok(()) });
    if let Err(error) = written {
        let _removed = rustix::fs::unlinkat(dir, &beside, AtFlags::empty());
        return Err(error);
    }
    Ok((file, beside))
}

fn rename_new(files: &Files, name: &OsStr) -> io::Result<()> {
    let Files { resume_dir, resume_name, .. } = files;
    Ok(rustix::fs::renameat(resume_dir, name, resume_dir, resume_name)?)
}
