//! Task that owns the index of the share. It schedules scans and hashing, and reports changes.
//!
//! A file is in one of these states:
//!
//! | state | stored in | transitions |
//! |---|---|---|
//! | unknown | - | found by a scan: *known* (hash cache) or *hashing* |
//! | hashing | `hashing` | hashed: *known* or *unconfirmed*; changed: *unknown*, scanned after `WRITER_QUIET` |
//! | unconfirmed | index, `unconfirmed_since` | hashed again after the racy window: *known* |
//! | known | index | found with another stat: *hashing*; not found: *unknown* |
//!
//! A file that is *hashing* may be in the index with its earlier content.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    sync::{Arc, PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{
    file_stat::FileStat,
    index::{Changes, IndexEntry},
    inner::{Arrivals, HashOutcome, ShareInner},
    params::{OUTBOARD_GRACE, WRITER_QUIET},
    scan::{Scan, Skipped, scan},
    watch::{report_unwatched, watch},
};
use crate::bao::params::HASH_PART_BYTES;
use notify::RecommendedWatcher;
use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
    limits::FILES_PER_PAGE,
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
    /// Scans the share. Replies when all files found are hashed.
    Rescan(Option<oneshot::Sender<()>>),
    /// Replies when no file is being hashed.
    Settled(oneshot::Sender<()>),
    /// Adds files that were moved into the share.
    Adopt(Arrivals, oneshot::Sender<()>),
    /// Removes files that were deleted.
    Forget(Vec<FileName>, oneshot::Sender<()>),
    /// Removes a content that does not match its hash, and hashes its files again.
    Invalidate(ContentHash),
}

/// Number of files that a thread hashes before it reports. Balances the cost and the delay of reports.
const BATCH_FILES: usize = 64;
/// Total size of these files from which a thread reports, bytes.
const BATCH_BYTES: u64 = 16 << 20;
/// Longest wait for the end of a burst of notifications, in debounce times.
const MAX_DEBOUNCES: u32 = 10;
/// Minimum pause between a scan and the next one that a notification triggers, as a multiple of the scan's duration.
const SCAN_SHARE: u32 = 4;

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
    queue: VecDeque<(FileName, FileStat)>,
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
    /// Reply due after the first scan.
    first_scan: Option<oneshot::Sender<()>>,
    /// Changes that do not fit into `events` yet: the metadata, or `None` for a removed file.
    unsent: BTreeMap<FileName, Option<FileMeta>>,
    /// Skipped entries that were logged.
    reported: HashSet<Skipped>,
    /// True if the hash cache has unsynced rows.
    unsynced: bool,
    /// True if the hash cache may have rows of deleted files.
    uncollected: bool,
    watcher: Option<RecommendedWatcher>,
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
    Watching(notify::Result<RecommendedWatcher>),
    Scanned(io::Result<Scan>),
    Hashed(Vec<(FileName, FileStat, HashOutcome)>),
    Synced,
}

impl Indexer {
    pub(crate) fn new(inner: Arc<ShareInner>, events: mpsc::Sender<Changes>, first_scan: oneshot::Sender<()>) -> Self {
        let now = Instant::now();
        Self {
            inner,
            events,
            tasks: JoinSet::new(),
            hashers: 0,
            hashing: HashMap::new(),
            queue: VecDeque::new(),
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
            unsynced: false,
            uncollected: true,
            watcher: None,
        }
    }

    /// Runs until all handles of the share are dropped.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let (sender, mut notifications) = mpsc::channel(1);
        let inner = Arc::clone(&self.inner);
        // Setting up watches on a deep tree takes long, so the first scan does not wait for it. Another scan follows
        // when the watcher is ready.
        self.tasks.spawn_blocking(move || Done::Watching(watch(inner.root.path(), sender)));
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
        let _stopped = task::spawn_blocking(move || inner.cache.flush(None)).await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Rescan(reply) => {
                self.due = Instant::now();
                self.for_next_scan.extend(reply);
            }
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
        }
    }

    /// Excludes a file that has just changed from the scan and the hashing in progress.
    fn touch(&mut self, name: &FileName) {
        self.hashing.remove(name);
        if self.scanning_since.is_some() {
            self.touched.insert(name.clone());
        }
    }

    fn invalidate(&mut self, hash: ContentHash) {
        let files: Vec<_> = {
            let index = self.inner.index();
            index.with_content(&hash).map(|entry| (entry.meta.name.clone(), entry.stat)).collect()
        };
        if files.is_empty() {
            return;
        }
        self.inner.outboards.remove(hash);
        self.apply(Vec::new(), files.iter().map(|(name, _)| name.clone()).collect());
        self.enqueue(files);
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

    fn start_scan(&mut self) {
        let now = Instant::now();
        self.scanning_since = Some(now);
        self.burst = None;
        self.due = now + self.inner.options.rescan;
        self.for_this_scan.append(&mut self.for_next_scan);
        let inner = Arc::clone(&self.inner);
        self.tasks.spawn_blocking(move || Done::Scanned(scan(&inner.root, None)));
    }

    async fn on_done(&mut self, done: Done) {
        match done {
            Done::Watching(Ok(watcher)) => {
                self.watcher = Some(watcher);
                self.scan_within(Duration::ZERO);
            }
            Done::Watching(Err(error)) => report_unwatched(self.inner.root.path(), &error),
            Done::Scanned(scanned) => self.scanned(scanned).await,
            Done::Hashed(files) => self.on_hashed(files),
            Done::Synced => {}
        }
    }

    async fn scanned(&mut self, scanned: io::Result<Scan>) {
        let since = self.scanning_since.take().unwrap_or_else(Instant::now);
        let touched = std::mem::take(&mut self.touched);
        self.rest_until = Instant::now() + since.elapsed() * SCAN_SHARE;
        match scanned {
            Ok(found) => self.apply_scan(found, touched).await,
            // The disk may be temporarily unavailable, so the index stays. Serving its files fails meanwhile.
            Err(error) => warn!(%error, share = %self.inner.root.path().display(), "cannot scan the share"),
        }
        self.for_idle.append(&mut self.for_this_scan);
        if let Some(first_scan) = self.first_scan.take() {
            let _receiver_is_gone = first_scan.send(());
        }
    }

    async fn apply_scan(&mut self, found: Scan, mut touched: HashSet<FileName>) {
        self.inner.skipped.store(found.skipped.len() as u64, Ordering::Relaxed);
        found.skipped.iter().filter(|skipped| !self.reported.contains(*skipped)).for_each(report);
        self.reported = found.skipped.into_iter().collect();

        touched.extend(self.inner.arriving_names());
        // Comparing a large share takes long. The index does not change meanwhile, because this task waits.
        let inner = Arc::clone(&self.inner);
        let hashing = std::mem::take(&mut self.hashing);
        let planned = task::spawn_blocking(move || {
            let window = inner.options.racy_window;
            let plan = inner.index().plan(&found.files, &touched, &hashing, unix_micros(), window);
            let (known, unknown) = inner.cached(plan.unknown);
            (known, plan.gone, unknown, plan.unconfirmed, plan.waiting, hashing)
        })
        .await;
        let (known, gone, unknown, unconfirmed, waiting, hashing) = match planned {
            Ok(planned) => planned,
            Err(error) => return error!(%error, "cannot compare a scan with the index"),
        };
        self.hashing = hashing;
        for name in &gone {
            self.hashing.remove(name);
        }
        self.uncollected |= !gone.is_empty();
        self.apply(known, gone);
        let now = unix_micros();
        let (busy, quiet): (Vec<_>, Vec<_>) = unknown.into_iter().partition(|(_, stat)| is_being_written(stat, now));
        if !busy.is_empty() {
            self.scan_within(WRITER_QUIET);
        }
        if waiting {
            self.scan_within(self.racy_wait());
        }
        self.enqueue(quiet);
        self.enqueue(unconfirmed);
    }

    fn enqueue(&mut self, files: Vec<(FileName, FileStat)>) {
        for (name, stat) in files {
            self.hashing.insert(name.clone(), stat);
            self.queue.push_back((name, stat));
        }
    }

    /// Starts hashers for queued files and sends the replies that are due.
    fn start_work(&mut self) {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        while self.hashers < cores && !self.queue.is_empty() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < BATCH_FILES && bytes < BATCH_BYTES {
                let Some((name, stat)) = self.queue.pop_front() else { break };
                if self.hashing.get(&name) == Some(&stat) {
                    bytes += stat.size;
                    batch.push((name, stat));
                }
            }
            if batch.is_empty() {
                continue;
            }
            self.hashers += 1;
            let inner = Arc::clone(&self.inner);
            self.tasks.spawn_blocking(move || Done::Hashed(hash_batch(&inner, batch)));
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
        if self.unsynced || self.uncollected {
            let collect = std::mem::take(&mut self.uncollected);
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
        let (mut upserts, mut removals) = (Vec::new(), Vec::new());
        for (name, stat, hashed) in files {
            if self.hashing.get(&name) != Some(&stat) {
                continue;
            }
            self.hashing.remove(&name);
            match hashed {
                HashOutcome::Done(entry) => {
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
                HashOutcome::Unreadable(error) => {
                    let skipped = Skipped { path: name.as_str().into(), reason: error.to_string() };
                    if self.reported.insert(skipped.clone()) {
                        report(&skipped);
                    }
                    removals.push(name);
                }
            }
        }
        self.apply(upserts, removals);
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

fn hash_batch(inner: &ShareInner, batch: Vec<(FileName, FileStat)>) -> Vec<(FileName, FileStat, HashOutcome)> {
    let mut done = Vec::with_capacity(batch.len());
    let mut hashes = Vec::new();
    for (name, stat) in batch {
        let hashed = inner.hash(&name, &stat);
        if let HashOutcome::Done(entry) = &hashed {
            hashes.push(entry.clone());
        }
        done.push((name, stat, hashed));
    }
    inner.remember(&hashes);
    done
}

fn report(skipped: &Skipped) {
    let path = skipped.path.display().to_string();
    warn!(path = %path.escape_debug(), reason = %skipped.reason, "entry is not shared");
}

/// Syncs the hash cache. With `collect`, removes rows and outboards that belong to no file.
fn sync(inner: &ShareInner, collect: bool) {
    let live = collect.then(|| inner.index().files().map(|entry| entry.stat.id()).collect());
    inner.cache.flush(live.as_ref());
    if collect {
        let contents = inner.index().contents();
        if let Err(error) = inner.outboards.collect(&contents, OUTBOARD_GRACE) {
            warn!(%error, "cannot delete unused outboards");
        }
    }
}
