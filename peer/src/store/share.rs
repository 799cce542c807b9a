//! The handle of the share that the rest of the peer uses.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    error::{Failure, FailureCode},
    file_name::FileName,
    group_ranges::GroupRanges,
    limits::{PARTIAL_POLL, PARTIAL_WAIT, RACY_WINDOW, RESCAN, SCAN_DEBOUNCE},
    time::Clock,
};
use tokio::{
    sync::{mpsc, oneshot},
    task,
    time::sleep,
};
use tracing::warn;

use super::{
    changes::Changes,
    confined_dir::HIDDEN,
    download::{
        destination::{Destination, Occupancy},
        partial::{Partial, PartialError},
        unfinished::{self, Discarded, Unfinished},
    },
    error::{io_failure, thread_failure},
    file_stat::FileStat,
    import::{add, batch::StagedBatch, dir_journal},
    index::IndexEntry,
    indexer::{Command, Indexer},
    inner::{ArrivalGuard, Arrivals, HashOutcome, ShareInner},
    source::Source,
};

/// Commands that wait for the indexer.
const MAX_QUEUED_COMMANDS: usize = 256;

/// Where, in the hidden directory, files lie until they are complete.
pub(crate) const PARTIAL: &str = "partial";

/// The folder that a peer shares: what is in it, kept up to date, and the ways in and out. Clones are handles of the
/// same share; it is given up when the last is dropped.
///
/// Calls that change the share return when the changes are in `events`, so they must not be awaited by the task that
/// empties `events`.
#[derive(Debug, Clone)]
pub struct Share {
    pub(crate) inner: Arc<ShareInner>,
    commands: mpsc::Sender<Command>,
}

/// How a share is looked after.
#[derive(Debug, Clone, Copy)]
pub struct ShareOptions {
    /// Full look at the share besides the file system's notices. Default [`RESCAN`].
    pub rescan: Duration,
    /// Quiet time after a notice before the share is looked at. Default [`SCAN_DEBOUNCE`].
    pub debounce: Duration,
    /// See [`RACY_WINDOW`], the default. Zero trusts every hash at once, which only tests should.
    pub racy_window: Duration,
}

impl Default for ShareOptions {
    fn default() -> Self {
        Self { rescan: RESCAN, debounce: SCAN_DEBOUNCE, racy_window: RACY_WINDOW }
    }
}

/// Counters of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShareStats {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that this process hashed.
    pub hashed_bytes: u64,
    /// What is in the folder and cannot be shared (hidden files are not counted).
    pub skipped: u64,
}

/// Why a content cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No file in the share has it (any more).
    #[error("it is not in the share (any more)")]
    NotHere,
    /// A file has it and cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(#[source] io::Error),
}

impl Share {
    /// Opens the folder `dir` (made where it is missing) as a share; hashes and outboards are kept in `state_dir`.
    ///
    /// Returns after a first look at it: files that did not change since an earlier run are known then, others are being
    /// hashed ([`settled`](Self::settled) waits for them). Every change goes to `events`, beginning with all that
    /// the first look found; a slow reader of `events` gets several changes at a time, never none.
    ///
    /// # Errors
    /// When the folder cannot be made or read, or the state directory cannot be used.
    pub async fn open(
        dir: &Path,
        state_dir: &Path,
        options: ShareOptions,
        events: mpsc::Sender<Changes>,
    ) -> Result<Self, Failure> {
        let (dir, state_dir) = (dir.to_path_buf(), state_dir.to_path_buf());
        let inner = task::spawn_blocking(move || ShareInner::open(&dir, &state_dir, options))
            .await
            .map_err(|error| thread_failure(&error))??;
        let inner = Arc::new(inner);
        let (commands, queue) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let (looked, first_look) = oneshot::channel();
        tokio::spawn(Indexer::new(Arc::clone(&inner), events, looked).run(queue));
        first_look.await.map_err(|_| stopped())?;
        let swept = Arc::clone(&inner);
        let sweep = move || {
            unfinished::sweep(&swept);
            dir_journal::sweep(&swept.root);
        };
        task::spawn_blocking(sweep).await.map_err(|error| thread_failure(&error))?;
        Ok(Self { inner, commands })
    }

    /// Absolute path of the folder.
    pub fn path(&self) -> &Path {
        self.inner.root.path()
    }

    /// All files, by name.
    pub fn list(&self) -> Vec<FileMeta> {
        self.inner.index().files().map(|known| known.meta.clone()).collect()
    }

    /// At most `limit` files after `after`, by name.
    pub fn page(&self, after: Option<&FileName>, limit: usize) -> Vec<FileMeta> {
        self.inner.index().files_after(after).take(limit).map(|known| known.meta.clone()).collect()
    }

    /// A file.
    pub fn get(&self, name: &FileName) -> Option<FileMeta> {
        self.inner.index().file(name).map(|known| known.meta.clone())
    }

    /// All files, for `changes::diff`.
    pub fn snapshot(&self) -> BTreeMap<FileName, FileMeta> {
        self.list().into_iter().map(|meta| (meta.name.clone(), meta)).collect()
    }

    /// Whether a file has this content.
    pub fn has_content(&self, hash: &ContentHash) -> bool {
        self.inner.index().with_content(hash).next().is_some()
    }

    /// Counters.
    pub fn stats(&self) -> ShareStats {
        let index = self.inner.index();
        let (mut files, mut bytes) = (0, 0);
        for known in index.files().filter(|known| !known.meta.is_directory()) {
            files += 1;
            bytes += known.meta.size;
        }
        ShareStats {
            files,
            bytes,
            hashed_bytes: self.inner.hashed_bytes.load(Ordering::Relaxed),
            skipped: self.inner.skipped.load(Ordering::Relaxed),
        }
    }

    /// Opens a content for [`crate::transfer::serve()`]; a few system calls.
    ///
    /// # Errors
    /// When there is no file that has it, or it cannot be read. A file found to have changed is looked at again.
    pub fn open_for_serving(&self, hash: &ContentHash) -> Result<Source, OpenError> {
        self.open_with(hash, |file, stat| match self.inner.outboards.open_for(*hash, stat.size) {
            Ok(outboard) => Some(Source { hash: *hash, size: stat.size, file, outboard, stat: Some(stat) }),
            Err(error) => {
                warn!(%error, ?hash, "its outboard is lost; it is hashed again");
                self.invalidate(hash);
                None
            }
        })
    }

    /// Opens a content to be read and checked as a whole, with its size in bytes; a few system calls.
    ///
    /// # Errors
    /// As [`open_for_serving`](Self::open_for_serving).
    pub fn open_content(&self, hash: &ContentHash) -> Result<(File, u64), OpenError> {
        self.open_with(hash, |file, stat| Some((file, stat.size)))
    }

    fn open_with<T>(&self, hash: &ContentHash, use_it: impl Fn(File, FileStat) -> Option<T>) -> Result<T, OpenError> {
        let candidates: Vec<IndexEntry> = self.inner.index().with_content(hash).cloned().collect();
        let mut failed = OpenError::NotHere;
        for known in candidates {
            let opened = self.inner.root.open_file(&known.meta.name.below(Path::new("")));
            match opened.and_then(|file| Ok((file.metadata()?, file))) {
                Ok((metadata, file)) if FileStat::of(&metadata) == known.stat => {
                    if let Some(used) = use_it(file, known.stat) {
                        return Ok(used);
                    }
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => failed = OpenError::Unreadable(error),
                Ok(_) | Err(_) => self.look_again(),
            }
        }
        Err(failed)
    }

    /// The content was not what it should be when it was read: it is taken out of the index, and its files are hashed again.
    pub fn invalidate(&self, hash: &ContentHash) {
        // A full queue means that the indexer is busy with the share; whoever asks next comes here again.
        let _queue_full = self.commands.try_send(Command::Invalidate(*hash));
    }

    /// Has the share looked at soon.
    fn look_again(&self) {
        let _queue_full = self.commands.try_send(Command::Rescan(None));
    }

    /// Looks at the whole share, and returns when everything found is hashed and its changes are in `events`.
    ///
    /// # Errors
    /// When the share is shutting down.
    pub async fn rescan_now(&self) -> Result<(), Failure> {
        self.call(|reply| Command::Rescan(Some(reply))).await
    }

    /// Waits until nothing is being hashed.
    ///
    /// # Errors
    /// When the share is shutting down.
    pub async fn settled(&self) -> Result<(), Failure> {
        self.call(Command::Settled).await
    }

    /// Copies the file or directory tree `source` into the share (reflinked where the file system can) under its last part, and
    /// returns what is shared then. A file that lies in the share already is only made sure to be known. A
    /// file of the same name in the share is replaced.
    ///
    /// # Errors
    /// When there is no such file, a name cannot be shared, the disk is full, or a file cannot be read or written. Then
    /// nothing was added.
    pub async fn add_copy(&self, source: &Path) -> Result<Vec<FileMeta>, Failure> {
        let (inner, source) = (Arc::clone(&self.inner), source.to_path_buf());
        self.run_and_adopt(move || add::copy(&inner, &source)).await
    }

    /// Makes a small text file `name`, as the original's `add` does for a name that is nowhere.
    ///
    /// # Errors
    /// When something of that name is in the share, or it cannot be written.
    pub async fn add_note(&self, name: &FileName) -> Result<FileMeta, Failure> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        let mut added = self.run_and_adopt(move || add::note(&inner, &name)).await?;
        added.pop().ok_or_else(stopped)
    }

    /// Removes a file, or a directory with nothing in it, from the share, and the directories above it that are empty then.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be removed.
    pub async fn remove(&self, name: &FileName) -> Result<FileMeta, Failure> {
        let (inner, wanted) = (Arc::clone(&self.inner), name.clone());
        let meta = task::spawn_blocking(move || remove_blocking(&inner, &wanted))
            .await
            .map_err(|error| thread_failure(&error))??;
        self.call(|reply| Command::Forget(vec![name.clone()], reply)).await?;
        Ok(meta)
    }

    /// Where a download of `name` goes: into the share, or to the file or directory `to`. A few system calls.
    ///
    /// # Errors
    /// When the directory `to` is not there, or `to` is hidden in the share.
    pub fn destination(&self, name: &FileName, to: Option<&Path>) -> Result<Destination, Failure> {
        Destination::resolve(&self.inner.root, name, to)
    }

    /// What is at the destination already. When that is [`Occupancy::Identical`] the download is done.
    ///
    /// # Errors
    /// [`FailureCode::Exists`] when something else is there and `force` is not said.
    pub async fn occupancy(
        &self,
        destination: &Destination,
        hash: ContentHash,
        size: u64,
        force: bool,
    ) -> Result<Occupancy, Failure> {
        let destination = destination.clone();
        let (inner, name) = (Arc::clone(&self.inner), destination.name().cloned());
        let state = Arc::clone(&self.inner);
        let standing = task::spawn_blocking(move || destination.occupancy(hash, size, force, &state.stopping))
            .await
            .map_err(|error| thread_failure(&error))??;
        if let (Occupancy::Identical, Some(name)) = (standing, name) {
            // It may have come a moment ago; whoever asked shall find it in the index.
            let look = move || match inner.inspect(&name) {
                HashOutcome::Done(known) => Ok(Arrivals { files: vec![known], arriving: None }),
                HashOutcome::Changed | HashOutcome::Gone | HashOutcome::Unreadable(_) => Ok(Arrivals::default()),
            };
            self.run_and_adopt(look).await?;
        }
        Ok(standing)
    }

    /// Begins to receive `file` for `destination`: makes the partial file, with room for all of it, or goes on with the one that
    /// an earlier download left. What is there of it is [`Partial::verified`].
    ///
    /// # Errors
    /// When the same content is being received already, there is too little room, or the folder cannot be written.
    pub async fn begin(&self, destination: &Destination, file: &FileMeta) -> Result<Partial, Failure> {
        let clock = Clock::start();
        let begun = loop {
            let (inner, goal, file) = (Arc::clone(&self.inner), destination.goal(), file.clone());
            let open = move || {
                let place = unfinished::place(&inner.root, file.hash, goal)?;
                let partial = Partial::open(place, &file, &inner.stopping)?;
                inner.begin_receiving(&partial);
                Ok(partial)
            };
            match task::spawn_blocking(open).await.map_err(|error| thread_failure(&error))? {
                // One that was just stopped lets go of it when its threads have noticed.
                Err(PartialError::Busy) if clock.now().since_origin() < PARTIAL_WAIT => sleep(PARTIAL_POLL).await,
                begun => break begun,
            }
        };
        begun.map_err(|error| error.to_failure(&destination.path().display().to_string()))
    }

    /// A content that is being received, as long as it is. Whoever keeps the handle keeps the download from being begun again;
    /// for sending, use [`open_partial_for_serving`](Self::open_partial_for_serving).
    pub fn receiving(&self, hash: &ContentHash) -> Option<Partial> {
        self.inner.receiving(hash)
    }

    /// Opens a content that is being received for [`crate::transfer::serve()`], with the groups of it that can be sent by now.
    pub fn open_partial_for_serving(&self, hash: &ContentHash) -> Option<(Source, GroupRanges)> {
        let opened = self.receiving(hash)?.open_for_serving();
        opened.inspect_err(|error| warn!(%error, "what is received cannot be passed on")).ok()
    }

    /// Downloads that were begun and can be continued, by name; those that run are left out.
    ///
    /// # Errors
    /// When no thread can be started.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, Failure> {
        let inner = Arc::clone(&self.inner);
        task::spawn_blocking(move || unfinished::list(&inner)).await.map_err(|error| thread_failure(&error))
    }

    /// Gives up the unfinished downloads of the file `name`, or of one version of it, and frees their room.
    ///
    /// # Errors
    /// `NoSuchFile` when there is none, `LimitReached` when one runs, or what the disk says.
    pub async fn discard(&self, name: &str, version: Option<&HashPrefix>) -> Result<Vec<Discarded>, Failure> {
        let (inner, name, version) = (Arc::clone(&self.inner), name.to_owned(), version.cloned());
        let discard = move || unfinished::discard(&inner, &name, version.as_ref());
        task::spawn_blocking(discard).await.map_err(|error| thread_failure(&error))?
    }

    /// Puts a complete partial file in its place, durably and atomically, and shares it if that is in the share. Nothing is hashed
    /// again. `meta` gives modification time and executable bit; without `force` nothing is replaced.
    ///
    /// # Errors
    /// When groups are missing, something is in the way, or the folder cannot be written.
    pub async fn finish(
        &self,
        partial: Partial,
        destination: &Destination,
        meta: &FileMeta,
        force: bool,
    ) -> Result<PathBuf, Failure> {
        let (inner, place, meta) = (Arc::clone(&self.inner), destination.clone(), meta.clone());
        self.run_and_adopt(move || finish_blocking(&inner, partial, &place, &meta, force)).await?;
        Ok(destination.path().to_path_buf())
    }

    /// A way in for many small files at once; without `force` nothing is replaced. Those that go elsewhere lie in `outside`, when that
    /// is on the same disk, until they are complete.
    pub(crate) fn staged_batch(&self, outside: Option<&Path>, force: bool) -> StagedBatch {
        StagedBatch::new(Arc::clone(&self.inner), outside, force)
    }

    /// Has files known that [`StagedBatch`] put in place or found in place.
    pub(crate) async fn adopt(&self, arrived: Arrivals) -> Result<(), Failure> {
        if arrived.files.is_empty() { Ok(()) } else { self.call(|reply| Command::Adopt(arrived, reply)).await }
    }

    /// Runs `work`, which gives files, on a blocking thread, then has the indexer know them.
    async fn run_and_adopt(
        &self,
        work: impl FnOnce() -> Result<Arrivals, Failure> + Send + 'static,
    ) -> Result<Vec<FileMeta>, Failure> {
        let arrived = task::spawn_blocking(work).await.map_err(|error| thread_failure(&error))??;
        let metas: Vec<_> = arrived.files.iter().map(|known| known.meta.clone()).collect();
        self.adopt(arrived).await?;
        Ok(metas)
    }

    async fn call(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

fn stopped() -> Failure {
    Failure::new(FailureCode::Interrupted, "the share is closed", "the peer is shutting down", "start it again")
}

fn remove_blocking(inner: &ShareInner, name: &FileName) -> Result<FileMeta, Failure> {
    let known = inner.index().file(name).map(|known| known.meta.clone());
    let what = format!("cannot remove {name}");
    let meta = match known {
        Some(meta) => meta,
        // It may have come a moment ago.
        None => match inner.inspect(name) {
            HashOutcome::Done(known) => known.meta,
            HashOutcome::Unreadable(error) if !inner.index().has_below(name) => {
                return Err(io_failure("remove", Path::new(name.as_str()), &error));
            }
            HashOutcome::Changed | HashOutcome::Gone | HashOutcome::Unreadable(_) => {
                let (why, hint) = if inner.index().has_below(name) {
                    ("it is a directory", "name the files in it; `list` shows them")
                } else {
                    ("it is not in the share", "`list` shows what is")
                };
                return Err(Failure::new(FailureCode::NoSuchFile, what, why, hint));
            }
        },
    };
    inner.root.remove(name).map_err(|error| io_failure("remove", Path::new(name.as_str()), &error))?;
    Ok(meta)
}

fn finish_blocking(
    inner: &Arc<ShareInner>,
    partial: Partial,
    destination: &Destination,
    meta: &FileMeta,
    force: bool,
) -> Result<Arrivals, Failure> {
    let failed = |error: io::Error| destination.cannot_complete(&error);
    let arriving = destination.name().map(|name| ArrivalGuard::new(inner, vec![name.clone()]));
    let (dir, base) = destination.open_dir(&inner.root).map_err(failed)?;
    let hash = partial.hash();
    // Dropped last: with it goes the partial's outboard, if it was not moved away before.
    let handle = partial.clone();
    let stat = partial.finalize(&dir, &base, meta.mtime_micros, meta.executable, force).map_err(failed)?;
    let Some(name) = destination.name() else { return Ok(Arrivals::default()) };
    if handle.outboard().is_some() {
        let outboard = inner.root.path().join(HIDDEN).join(PARTIAL).join(handle.outboard_name());
        if let Err(error) = inner.outboards.adopt(&outboard, hash) {
            // The file is complete; what is missing is hashed again before it is served.
            warn!(%error, %name, "the outboard cannot be kept");
        }
    }
    let known = inner.own(name.clone(), stat, hash);
    inner.remember(std::slice::from_ref(&known));
    Ok(Arrivals { files: vec![known], arriving })
}
