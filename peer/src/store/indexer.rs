//! Task that owns the index of the share. It schedules scans and hashing, and reports changes.
//!
//! A file is in one of these states:
//!
//! | state | stored in | transitions |
//! |---|---|---|
//! | unknown | - | found by a scan: *known* (hash cache) or *hashing* |
//! | hashing | `hashing` | hashed: *known* or *unconfirmed*; changed: *unknown*, scanned after `WRITER_QUIET` |
//! | unconfirmed | index, `unconfirmed_since` | hashed again after the racy window: *known* |
//! | known | index | found with another stat: *in doubt*; not found: *unknown* |
//! | in doubt | index and `hashing` | hashed: *known*, with this or another content; shorter, or a proof fails: *unknown* |
//!
//! A content in doubt stays in the index and is served with a check of each group: a touch, new permissions, a hard link
//! or a rename change no byte.
//!
//! The folder may be missing or replaced. Each scan begins with a look at its path. A missing folder shares nothing; its
//! hashes stay in the cache.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{
    error::FolderMissing,
    file_stat::{FileId, FileStat},
    index::{Changes, IndexEntry},
    inner::{Arrivals, HashOutcome, ShareInner},
    params::{OUTBOARD_GRACE, SHARE_RETRY_MIN, WRITER_QUIET},
    private::Private,
    scan::{Scan, SkipKind, Skipped, may_pass, scan},
    watch::{ShareWatch, WatchOutcome},
    watch_report,
};
use crate::{
    bao::params::HASH_PART_BYTES,
    diagnostics::warnings::{Topic, Warnings},
};
use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
    limits::{FILES_PER_PAGE, GROUP_BYTES},
    retry::Backoff,
    time::unix_micros,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{self, JoinSet},
    time::Instant,
};
use tracing::{error, warn};

/// Request of a handle. The reply is sent when the changes are in `events`.
#[derive(Debug)]
pub(crate) enum Command {
    /// Scans the share at once and replies when all files found are hashed; without a reply, scans it as after a
    /// notification.
    Rescan(Option<oneshot::Sender<()>>),
    /// Replies when no file is being hashed.
    Settled(oneshot::Sender<()>),
    /// Adds files that were moved into the share.
    Adopt(Arrivals, oneshot::Sender<()>),
    /// Removes files that were deleted.
    Forget(Vec<FileName>, oneshot::Sender<()>),
    /// Removes a content that does not match its hash, and hashes its files again.
    Invalidate(ContentHash),
    /// Hashes the files of a content again whose outboard is lost or damaged. The content stays in the index.
    RestoreOutboard(ContentHash),
}

/// Number of files that a thread hashes before it reports. Balances the cost and the delay of reports.
const BATCH_FILES: usize = 64;
/// Total size of these files from which a thread reports, bytes.
const BATCH_BYTES: u64 = 16 << 20;
/// Longest wait for the end of a burst of notifications, in debounce times.
const MAX_DEBOUNCES: u32 = 10;
/// Minimum pause between a scan and the next one that a notification triggers, as a multiple of the scan's duration.
const SCAN_SHARE: u32 = 4;

/// Subject of the warning about outboards.
const OUTBOARDS: &str = "outboards";

/// State of the task.
#[derive(Debug)]
pub(crate) struct Indexer {
    inner: Arc<ShareInner>,
    events: mpsc::Sender<Changes>,
    /// Blocking work in progress.
    tasks: JoinSet<Done>,
    /// Number of threads that are hashing.
    hashers: usize,
    /// Files that are being hashed or in `queue`, with their expected stats.
    hashing: HashMap<FileName, FileStat>,
    queue: VecDeque<Job>,
    /// Files whose contents are in doubt: hashed after those of `queue`, because they are offered meanwhile.
    doubts: VecDeque<Job>,
    /// Inodes that are being hashed.
    in_flight: HashSet<FileId>,
    /// Files that wait because another name of their inode is being hashed.
    deferred: Vec<Job>,
    /// Start of the scan in progress.
    scanning_since: Option<Instant>,
    /// Files that changed during the scan in progress.
    touched: HashSet<FileName>,
    /// Time of the next scan without notifications.
    due: Instant,
    /// Current burst of notifications.
    burst: Option<Burst>,
    /// Time until which notifications trigger no scan.
    rest_until: Instant,
    /// Replies due after the next scan.
    for_next_scan: Vec<oneshot::Sender<()>>,
    /// Replies due after the scan in progress.
    for_this_scan: Vec<oneshot::Sender<()>>,
    /// Replies due when no file is being hashed.
    for_idle: Vec<oneshot::Sender<()>>,
    /// Replies due when `unsent` is empty.
    for_sent: Vec<oneshot::Sender<()>>,
    /// Reply due after the first scan: a state directory that it found in the share, if there is one.
    first_scan: Option<oneshot::Sender<Option<PathBuf>>>,
    /// Changes that do not fit into `events` yet: the metadata, or `None` for a removed file.
    unsent: BTreeMap<FileName, Option<FileMeta>>,
    /// Skipped entries that were logged.
    reported: HashSet<Skipped>,
    /// Files that could not be read when they were to be hashed, with the reasons.
    unreadable: BTreeMap<FileName, String>,
    /// True if the hash cache has unsynced rows.
    unsynced: bool,
    /// True if the hash cache may have rows of deleted files.
    uncollected: bool,
    /// Watches of the share, except while they are being updated.
    watch: Option<ShareWatch>,
    /// Directories of the last scan that are not watched yet.
    unwatched: Option<HashMap<FileId, PathBuf>>,
    /// True if the last scan failed.
    scan_failed: bool,
    /// Pauses between scans of a share that cannot be scanned.
    scan_backoff: Backoff,
    /// Pauses between attempts to store outboards.
    room_backoff: Backoff,
}

/// File to be hashed.
#[derive(Debug, Clone)]
struct Job {
    name: FileName,
    stat: FileStat,
    /// True if a hash of another name of the same inode is as good.
    may_reuse: bool,
}

/// Burst of notifications.
#[derive(Debug, Clone, Copy)]
struct Burst {
    /// Time of the scan if no further notification arrives.
    quiet: Instant,
    /// Latest time of the scan.
    latest: Instant,
}

/// Result of blocking work.
#[derive(Debug)]
enum Done {
    Watched(ShareWatch, WatchOutcome),
    Scanned(io::Result<Scan>),
    Hashed(Vec<(FileName, FileStat, HashOutcome)>),
    Synced,
}

impl Indexer {
    pub(crate) fn new(
        inner: Arc<ShareInner>,
        events: mpsc::Sender<Changes>,
        first_scan: oneshot::Sender<Option<PathBuf>>,
    ) -> Self {
        let now = Instant::now();
        let longest_pause = inner.options.rescan.max(SHARE_RETRY_MIN);
        Self {
            inner,
            events,
            tasks: JoinSet::new(),
            hashers: 0,
            hashing: HashMap::new(),
            queue: VecDeque::new(),
            doubts: VecDeque::new(),
            in_flight: HashSet::new(),
            deferred: Vec::new(),
            scanning_since: None,
            touched: HashSet::new(),
            due: now,
            burst: None,
            rest_until: now,
            for_next_scan: Vec::new(),
            for_this_scan: Vec::new(),
            for_idle: Vec::new(),
            for_sent: Vec::new(),
            first_scan: Some(first_scan),
            unsent: BTreeMap::new(),
            reported: HashSet::new(),
            unreadable: BTreeMap::new(),
            unsynced: false,
            uncollected: true,
            watch: None,
            unwatched: None,
            scan_failed: false,
            scan_backoff: Backoff::new(SHARE_RETRY_MIN, longest_pause),
            room_backoff: Backoff::new(SHARE_RETRY_MIN, longest_pause),
        }
    }

    /// Runs until all handles of the share are dropped.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let (sender, mut notifications) = mpsc::channel(1);
        self.watch = Some(ShareWatch::new(self.inner.root.path().to_path_buf(), sender));
        let events = self.events.clone();
        loop {
            self.start_work();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                Some(()) = notifications.recv() => self.on_notification(),
                () = tokio::time::sleep_until(self.next_scan()), if self.scanning_since.is_none() => self.start_scan(),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.on_done(done).await,
                    Err(error) => {
                        error!(%error, "a worker thread of the store failed; the share is closed");
                        break;
                    }
                },
                permit = events.reserve(), if !self.unsent.is_empty() => match permit {
                    Ok(permit) => permit.send(self.next_changes()),
                    // The receiver is gone.
                    Err(_) => self.unsent.clear(),
                },
            }
        }
        self.inner.stopping.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let inner = Arc::clone(&self.inner);
        let _stopped = task::spawn_blocking(move || inner.cache.flush()).await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Rescan(Some(reply)) => {
                self.due = Instant::now();
                self.for_next_scan.push(reply);
            }
            // A file in doubt may be requested many times until it is hashed.
            Command::Rescan(None) => self.on_notification(),
            Command::Settled(reply) => self.for_idle.push(reply),
            Command::Adopt(Arrivals { files, guard }, reply) => {
                for entry in &files {
                    self.touch(&entry.meta.name);
                    if entry.unconfirmed_since.is_some() {
                        self.scan_within(self.racy_wait());
                    }
                }
                self.unsynced = true;
                self.apply(files, Vec::new());
                drop(guard);
                self.for_sent.push(reply);
            }
            Command::Forget(names, reply) => {
                for name in &names {
                    self.touch(name);
                }
                self.apply(Vec::new(), names);
                self.for_sent.push(reply);
            }
            Command::Invalidate(hash) => self.invalidate(hash),
            Command::RestoreOutboard(hash) => {
                let mut files = self.files_with(hash);
                files.retain(|(name, _)| !self.hashing.contains_key(name));
                self.enqueue(files, false);
            }
        }
    }

    fn files_with(&self, hash: ContentHash) -> Vec<(FileName, FileStat)> {
        self.inner.index().with_content(&hash).map(|entry| (entry.meta.name.clone(), entry.stat)).collect()
    }

    /// Excludes a file that has just changed from the scan and the hashing in progress.
    fn touch(&mut self, name: &FileName) {
        self.hashing.remove(name);
        if self.scanning_since.is_some() {
            self.touched.insert(name.clone());
        }
    }

    fn invalidate(&mut self, hash: ContentHash) {
        let files = self.files_with(hash);
        if files.is_empty() {
            return;
        }
        self.inner.outboards.remove(hash);
        self.apply(Vec::new(), files.iter().map(|(name, _)| name.clone()).collect());
        for (name, _) in &files {
            // With the stat of the last scan, the file would not be hashed with its present one.
            self.hashing.remove(name);
        }
        self.enqueue(files, false);
        // Finds the present stats of changed files.
        self.scan_within(Duration::ZERO);
    }

    fn on_notification(&mut self) {
        let now = Instant::now();
        let debounce = self.inner.options.debounce;
        let latest = self.burst.map_or(now + debounce * MAX_DEBOUNCES, |burst| burst.latest);
        self.burst = Some(Burst { quiet: (now + debounce).min(latest), latest });
    }

    fn next_scan(&self) -> Instant {
        self.burst.map_or(self.due, |burst| self.due.min(burst.quiet.max(self.rest_until)))
    }

    fn scan_within(&mut self, wait: Duration) {
        self.due = self.due.min(Instant::now() + wait);
    }

    fn racy_wait(&self) -> Duration {
        // The debounce time is a margin.
        self.inner.options.racy_window + self.inner.options.debounce
    }

    /// Runs `work` on a blocking thread. A panic has the result `failed`.
    fn spawn(&mut self, work: impl FnOnce() -> Done + Send + 'static, failed: impl FnOnce() -> Done + Send + 'static) {
        self.tasks.spawn_blocking(move || {
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                error!("a worker thread of the store panicked");
                failed()
            })
        });
    }

    fn start_scan(&mut self) {
        let now = Instant::now();
        self.scanning_since = Some(now);
        self.burst = None;
        self.due = now + self.inner.options.rescan;
        self.for_this_scan.append(&mut self.for_next_scan);
        let inner = Arc::clone(&self.inner);
        let work = move || {
            inner.root.private().refresh();
            Done::Scanned(inner.root.reopen().and_then(|_| scan(&inner.root, None)))
        };
        self.spawn(work, || Done::Scanned(Err(panicked())));
    }

    async fn on_done(&mut self, done: Done) {
        match done {
            Done::Watched(watch, outcome) => self.on_watched(watch, &outcome),
            Done::Scanned(scanned) => self.scanned(scanned).await,
            Done::Hashed(files) => self.on_hashed(files),
            Done::Synced => {}
        }
    }

    /// Updates the watches to the directories of the last scan, unless an update is in progress.
    fn update_watch(&mut self) {
        let Some(mut watch) = self.watch.take() else { return };
        let Some(directories) = self.unwatched.take() else {
            self.watch = Some(watch);
            return;
        };
        // The library panics if its thread has ended.
        let renewed = watch.renewed();
        let work = move || {
            let outcome = watch.update(&directories);
            Done::Watched(watch, outcome)
        };
        self.spawn(work, || Done::Watched(renewed, WatchOutcome::failed()));
    }

    fn on_watched(&mut self, watch: ShareWatch, outcome: &WatchOutcome) {
        self.watch = Some(watch);
        watch_report::report(&self.inner.options.warnings, outcome, self.inner.options.rescan);
        if outcome.added > 0 {
            // Changes before the watch caused no notice.
            self.scan_within(Duration::ZERO);
        }
        self.update_watch();
    }

    async fn scanned(&mut self, scanned: io::Result<Scan>) {
        let since = self.scanning_since.take().unwrap_or_else(Instant::now);
        let touched = std::mem::take(&mut self.touched);
        self.rest_until = Instant::now() + since.elapsed() * SCAN_SHARE;
        let mut state_directory = None;
        match scanned {
            Ok(found) => {
                let state = found.skipped.iter().find(|skipped| skipped.kind == SkipKind::StateDirectory);
                state_directory = state.map(|skipped| self.inner.root.path().join(&skipped.path));
                self.apply_scan(found, touched).await;
            }
            Err(error) => self.on_scan_failed(&error),
        }
        self.update_watch();
        self.for_idle.append(&mut self.for_this_scan);
        if let Some(first_scan) = self.first_scan.take() {
            let _receiver_is_gone = first_scan.send(state_directory);
        }
    }

    /// Reports a scan that failed, and retries. A missing folder has no files; otherwise the index stays, because the
    /// disk may be unavailable for a moment only, and serving its files fails meanwhile.
    fn on_scan_failed(&mut self, error: &io::Error) {
        let folder = self.inner.root.path().display().to_string();
        let (effect, remedy) = if FolderMissing::is_reason_of(error) || Private::is_reason_of(error) {
            let all = self.inner.index().files().map(|entry| entry.meta.name.clone()).collect();
            self.hashing.clear();
            self.apply(Vec::new(), all);
            ("nothing is shared", "put it back, or start the peer with another --dir")
        } else {
            ("changes in it are not found", "look at its permissions and its disk")
        };
        self.scan_failed = true;
        self.unwatched = Some(HashMap::new());
        let text = format!("cannot use the folder {folder} ({error}): {effect}; {remedy}; it is tried again");
        self.inner.options.warnings.set(Topic::Share, &folder, text);
        let pause = self.scan_backoff.pause();
        self.scan_within(pause);
    }

    async fn apply_scan(&mut self, mut found: Scan, mut touched: HashSet<FileName>) {
        self.scan_failed = false;
        self.report_skipped(&mut found);
        let unread = !found.unread.is_empty();
        self.unwatched = Some(std::mem::take(&mut found.directories));
        touched.extend(self.inner.arriving_names());
        // Comparing a large share takes long. The index does not change meanwhile, because this task waits.
        let inner = Arc::clone(&self.inner);
        let hashing = Arc::new(std::mem::take(&mut self.hashing));
        let shared_hashing = Arc::clone(&hashing);
        let planned = task::spawn_blocking(move || {
            let window = inner.options.racy_window;
            let mut plan = inner.index().plan(&found, &touched, &shared_hashing, unix_micros(), window);
            let mut lookup = inner.look_up(std::mem::take(&mut plan.unknown));
            lookup.add_doubts(std::mem::take(&mut plan.in_doubt));
            (plan, lookup, inner.revive_cache())
        })
        .await;
        // After a panic, what is being hashed stays.
        self.hashing = Arc::try_unwrap(hashing).unwrap_or_else(|shared| HashMap::clone(&shared));
        let (plan, lookup, revived) = match planned {
            Ok(planned) => planned,
            Err(error) => return error!(%error, "cannot compare a scan with the index"),
        };
        self.unsynced |= revived;
        for name in &plan.gone {
            self.hashing.remove(name);
            self.unreadable.remove(name);
        }
        let mut upserts = lookup.known;
        upserts.extend(lookup.in_doubt);
        let now = unix_micros();
        let mut outdated: HashSet<FileName> = plan.outdated.into_iter().collect();
        let (busy, quiet): (Vec<_>, Vec<_>) =
            lookup.unknown.into_iter().partition(|(_, stat)| is_being_written(stat, now));
        // A small file gets its new content in a moment; its name does not vanish until then.
        let takes_long = busy.iter().chain(quiet.iter().filter(|(_, stat)| stat.size > BATCH_BYTES));
        let withdrawn: HashSet<FileName> =
            takes_long.filter(|(name, _)| outdated.contains(name)).map(|(name, _)| name.clone()).collect();
        self.uncollected |= !(plan.gone.is_empty() && outdated.is_empty());
        outdated.retain(|name| !withdrawn.contains(name));
        self.apply(upserts, plan.gone.into_iter().chain(withdrawn).collect());
        if !busy.is_empty() {
            self.scan_within(WRITER_QUIET);
        }
        if plan.waiting {
            self.scan_within(self.racy_wait());
        }
        if unread {
            let pause = self.scan_backoff.pause();
            self.scan_within(pause);
        } else {
            self.scan_backoff.reset();
        }
        let (doubts, new): (Vec<_>, Vec<_>) = {
            let index = self.inner.index();
            quiet.into_iter().partition(|(name, _)| index.file(name).is_some() && !outdated.contains(name))
        };
        self.enqueue(new, true);
        self.enqueue(plan.unconfirmed, false);
        for (name, stat) in doubts {
            self.hashing.insert(name.clone(), stat);
            self.doubts.push_back(Job { name, stat, may_reuse: true });
        }
    }

    /// Logs and reports the entries that a scan skipped.
    fn report_skipped(&mut self, found: &mut Scan) {
        self.inner.skipped.store(found.skipped.len() as u64, Ordering::Relaxed);
        found.skipped.iter().filter(|skipped| !self.reported.contains(*skipped)).for_each(report);
        self.reported = std::mem::take(&mut found.skipped).into_iter().collect();
        // A change of its stat, or its absence, is a reason to try again and to forget the failure.
        self.unreadable.retain(|name, _| found.files.contains_key(name));
        self.inner.options.warnings.clear(Topic::Share, &self.inner.root.path().display().to_string());
        self.warn_skipped();
    }

    fn warn_skipped(&self) {
        let warnings = &self.inner.options.warnings;
        let of_kind = |kind| self.reported.iter().filter(move |skipped| skipped.kind == kind);
        let mut unreadable: Vec<(String, &str)> = of_kind(SkipKind::Unreadable)
            .map(|skipped| (skipped.path.display().to_string(), skipped.reason.as_str()))
            .chain(self.unreadable.iter().map(|(name, reason)| (name.to_string(), reason.as_str())))
            .collect();
        unreadable.sort_unstable();
        warn_about(warnings, "unreadable", unreadable.first().map(|(path, reason)| {
            format!(
                "{} of the share cannot be read, such as {} ({reason}): they are not shared; give the peer the right \
                 to read them or move them away; they are tried again at each scan",
                entries(unreadable.len()),
                path.escape_debug()
            )
        }));
        let state = of_kind(SkipKind::StateDirectory).map(|skipped| &skipped.path).min();
        warn_about(warnings, "state directory", state.map(|path| {
            format!(
                "{} in the share is a state directory, which holds keys: it is not shared; move it out of the share",
                path.display().to_string().escape_debug()
            )
        }));
    }

    /// Queues files to be hashed. With `may_reuse`, a hash of another name of the same inode is as good.
    fn enqueue(&mut self, files: Vec<(FileName, FileStat)>, may_reuse: bool) {
        for (name, stat) in files {
            if self.hashing.insert(name.clone(), stat) != Some(stat) {
                self.queue.push_back(Job { name, stat, may_reuse });
            }
        }
    }

    /// Takes the next files to be hashed by one thread.
    fn next_batch(&mut self) -> Vec<Job> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut inodes = HashSet::new();
        while batch.len() < BATCH_FILES && bytes < BATCH_BYTES {
            let Some(job) = self.queue.pop_front().or_else(|| self.doubts.pop_front()) else { break };
            if self.hashing.get(&job.name) != Some(&job.stat) {
                continue;
            }
            if job.may_reuse && self.in_flight.contains(&job.stat.id()) {
                self.deferred.push(job);
                continue;
            }
            // Another name of an inode of this batch costs nothing.
            if inodes.insert(job.stat.id()) || !job.may_reuse {
                bytes += job.stat.size;
            }
            batch.push(job);
        }
        self.in_flight.extend(inodes);
        batch
    }

    /// Starts hashers for queued files and sends the replies that are due.
    fn start_work(&mut self) {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        while self.hashers < cores && !(self.queue.is_empty() && self.doubts.is_empty()) {
            let batch = self.next_batch();
            if batch.is_empty() {
                continue;
            }
            self.hashers += 1;
            let inner = Arc::clone(&self.inner);
            let (work, failed) = (batch.clone(), batch);
            self.spawn(
                move || Done::Hashed(hash_batch(&inner, work)),
                || {
                    let outcome = |Job { name, stat, .. }| (name, stat, HashOutcome::Unreadable(panicked()));
                    Done::Hashed(failed.into_iter().map(outcome).collect())
                },
            );
        }
        if self.hashers == 0 && self.scanning_since.is_none() && self.first_scan.is_none() {
            self.on_idle();
        }
        if self.unsent.is_empty() {
            for reply in self.for_sent.drain(..) {
                let _receiver_is_gone = reply.send(());
            }
        }
    }

    fn on_idle(&mut self) {
        self.for_sent.append(&mut self.for_idle);
        if self.unsynced || (self.uncollected && !self.scan_failed) {
            // The hashes of a missing folder are needed when it is back.
            let collect = !self.scan_failed && std::mem::take(&mut self.uncollected);
            self.unsynced = false;
            let inner = Arc::clone(&self.inner);
            self.tasks.spawn_blocking(move || {
                sync(&inner, collect);
                Done::Synced
            });
        }
    }

    fn on_hashed(&mut self, files: Vec<(FileName, FileStat, HashOutcome)>) {
        self.hashers -= 1;
        self.unsynced = true;
        for (_, stat, _) in &files {
            self.in_flight.remove(&stat.id());
        }
        self.queue.extend(self.deferred.drain(..));
        let (mut upserts, mut removals) = (Vec::new(), Vec::new());
        let (mut stored, mut no_room, mut warn) = (false, None, false);
        for (name, stat, hashed) in files {
            if self.hashing.get(&name) != Some(&stat) {
                continue;
            }
            self.hashing.remove(&name);
            let failure_before = self.unreadable.remove(&name);
            warn |= failure_before.is_some();
            match hashed {
                HashOutcome::Done(entry) => {
                    stored |= entry.meta.size > GROUP_BYTES;
                    if entry.unconfirmed_since.is_some() {
                        self.scan_within(self.racy_wait());
                    }
                    upserts.push(entry);
                }
                HashOutcome::Changed => self.scan_within(WRITER_QUIET),
                HashOutcome::Gone => {
                    removals.push(name);
                    self.scan_within(self.inner.options.debounce);
                }
                HashOutcome::NoRoom(error) => no_room = Some(error),
                HashOutcome::Unreadable(error) => {
                    let reason = error.to_string();
                    if failure_before.as_ref() != Some(&reason) {
                        warn!(file = %name, %reason, "cannot read a file of the share");
                    }
                    warn = true;
                    self.unreadable.insert(name.clone(), reason);
                    // Only what cannot be read for good is withdrawn. The next scan tries the file again.
                    if !may_pass(&error) {
                        removals.push(name);
                    }
                }
            }
        }
        self.report_room(stored, no_room.as_ref());
        if warn {
            self.warn_skipped();
        }
        self.apply(upserts, removals);
    }

    /// Reports that outboards cannot be stored, or can again.
    fn report_room(&mut self, stored: bool, no_room: Option<&io::Error>) {
        let warnings = &self.inner.options.warnings;
        let Some(error) = no_room else {
            if stored {
                self.room_backoff.reset();
                warnings.clear(Topic::State, OUTBOARDS);
            }
            return;
        };
        let text = format!(
            "cannot write to the state directory ({error}): new and changed files of more than 16 KiB are not shared; make \
             room on its disk; it is tried again"
        );
        warnings.set(Topic::State, OUTBOARDS, text);
        let pause = self.room_backoff.pause();
        self.scan_within(pause);
    }

    fn apply(&mut self, upserts: Vec<IndexEntry>, removals: Vec<FileName>) {
        let changes = {
            let mut index = self.inner.index.write().unwrap_or_else(PoisonError::into_inner);
            index.apply(upserts, removals)
        };
        self.unsent.extend(changes.removals.into_iter().map(|name| (name, None)));
        self.unsent.extend(changes.upserts.into_iter().map(|meta| (meta.name.clone(), Some(meta))));
    }

    fn next_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for _ in 0..FILES_PER_PAGE {
            match self.unsent.pop_first() {
                Some((_, Some(meta))) => changes.upserts.push(meta),
                Some((name, None)) => changes.removals.push(name),
                None => break,
            }
        }
        changes
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        // A runtime that shuts down waits for blocking threads, which may be hashing a large file.
        self.inner.stopping.store(true, Ordering::Relaxed);
    }
}

/// Returns true if a large file was written to so recently that it is probably still being copied.
fn is_being_written(stat: &FileStat, now: u64) -> bool {
    stat.size > HASH_PART_BYTES && stat.is_racy_after_own_write(now, WRITER_QUIET)
}

fn hash_batch(inner: &ShareInner, batch: Vec<Job>) -> Vec<(FileName, FileStat, HashOutcome)> {
    let mut done = Vec::with_capacity(batch.len());
    let mut hashes: Vec<IndexEntry> = Vec::new();
    for Job { name, stat, may_reuse } in batch {
        let hashed = match may_reuse.then(|| other_name(inner, &hashes, &name, &stat)).flatten() {
            Some(entry) => HashOutcome::Done(entry),
            None => inner.hash(&name, &stat),
        };
        if let HashOutcome::Done(entry) = &hashed {
            hashes.push(entry.clone());
        }
        done.push((name, stat, hashed));
    }
    inner.remember(&hashes);
    done
}

/// Returns the entry of a file that was hashed under another name in the meantime: in this batch or in another one.
fn other_name(inner: &ShareInner, hashes: &[IndexEntry], name: &FileName, stat: &FileStat) -> Option<IndexEntry> {
    match hashes.iter().find(|entry| entry.stat == *stat) {
        Some(entry) => Some(IndexEntry::new(name.clone(), *stat, entry.meta.hash, entry.unconfirmed_since)),
        None => inner.cached(name, stat),
    }
}

fn panicked() -> io::Error {
    io::Error::other("a worker thread of the store panicked")
}

fn warn_about(warnings: &Warnings, subject: &str, text: Option<String>) {
    match text {
        Some(text) => warnings.set(Topic::Share, subject, text),
        None => warnings.clear(Topic::Share, subject),
    }
}

fn entries(count: usize) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}

fn report(skipped: &Skipped) {
    let path = skipped.path.display().to_string();
    warn!(path = %path.escape_debug(), reason = %skipped.reason, "entry is not shared");
}

/// Syncs the hash cache. With `collect`, removes rows and outboards that belong to no file. What belongs to a disk that
/// has no file in the share at present stays: it may be mounted again.
fn sync(inner: &ShareInner, collect: bool) {
    if !collect {
        return inner.cache.flush();
    }
    let live = inner.index().files().map(|entry| entry.stat.id()).collect();
    let mut contents = inner.cache.collect(&live, inner.root.id().0);
    contents.extend(inner.index().contents());
    if let Err(error) = inner.outboards.collect(&contents, OUTBOARD_GRACE) {
        warn!(%error, "cannot delete unused outboards");
    }
}
