//! The task that owns the index of the share: it decides when to look, has files hashed, and tells what changed.
//!
//! A file is in one of these states:
//!
//! | state | in | leaves it by |
//! |---|---|---|
//! | unknown | - | a look that finds it: *known* (cache), or *hashing* |
//! | hashing | `hashing` | a hash: *known* or *unconfirmed*; a change while hashed: *unknown*, looked at when it is quiet |
//! | unconfirmed | index, `unconfirmed_since` | a second hash after the racy time: *known* |
//! | known | index | a look that finds another stamp: *hashing*; none: *unknown* |
//!
//! While *hashing* a file may be in the index with what it was before.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    sync::{Arc, PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use notify::RecommendedWatcher;
use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
    limits::{FILES_PER_PAGE, HASH_PART_BYTES, OUTBOARD_GRACE, WRITER_QUIET},
    time::unix_micros,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{self, JoinSet},
    time::Instant,
};
use tracing::{error, warn};

use super::{
    changes::Changes,
    file_stat::FileStat,
    index::IndexEntry,
    inner::{Arrivals, HashOutcome, ShareInner},
    scan::{Scan, Skipped, scan},
    watch::{report_unwatched, watch},
};

/// What the handle asks for. Replies are sent when the changes are in `events`.
#[derive(Debug)]
pub(crate) enum Command {
    /// Look at the share; reply when everything found is known.
    Rescan(Option<oneshot::Sender<()>>),
    /// Reply when nothing is being hashed.
    Settled(oneshot::Sender<()>),
    /// These files were put in place.
    Adopt(Arrivals, oneshot::Sender<()>),
    /// These files were removed.
    Forget(Vec<FileName>, oneshot::Sender<()>),
    /// This content was not what it should be.
    Invalidate(ContentHash),
}

/// Files hashed by one blocking thread before it reports: as many as keep the reports few, as few as keep them timely.
const BATCH_FILES: usize = 64;
/// Bytes likewise.
const BATCH_BYTES: u64 = 16 << 20;
/// A burst of notices is waited for no longer than this many debounce times.
const MAX_DEBOUNCES: u32 = 10;
/// The share is looked at for no more than one part in this many of the time, however many notices come.
const LOOK_SHARE: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Indexer {
    inner: Arc<ShareInner>,
    events: mpsc::Sender<Changes>,
    /// Blocking work under way.
    tasks: JoinSet<Done>,
    hashers: usize,
    /// Files being hashed, or waiting for it, with the stamp they are to have.
    hashing: HashMap<FileName, FileStat>,
    queue: VecDeque<(FileName, FileStat)>,
    /// When the look under way began.
    looking_since: Option<Instant>,
    /// Files that came or went while the look was under way.
    touched: HashSet<FileName>,
    /// When to look next, notices or not.
    due: Instant,
    /// When to look because of notices: put off by each further one.
    noticed: Option<Noticed>,
    /// Before this, notices do not make it look.
    rested: Instant,
    /// Who waits for the next look, for the one under way, for hashing to end, and for `unsent` to be sent.
    for_next_look: Vec<oneshot::Sender<()>>,
    for_this_look: Vec<oneshot::Sender<()>>,
    for_idle: Vec<oneshot::Sender<()>>,
    for_sent: Vec<oneshot::Sender<()>>,
    first_look: Option<oneshot::Sender<()>>,
    /// Changes that `events` had no room for yet: files as they are now, or gone.
    unsent: BTreeMap<FileName, Option<FileMeta>>,
    reported: HashSet<Skipped>,
    /// Whether the cache has unsynced rows, and whether it may have rows of files that are gone.
    unsynced: bool,
    uncollected: bool,
    watcher: Option<RecommendedWatcher>,
}

/// A burst of notices.
#[derive(Debug, Clone, Copy)]
struct Noticed {
    /// When it will have been quiet.
    quiet: Instant,
    /// To when it may put off the look.
    latest: Instant,
}

#[derive(Debug)]
enum Done {
    Watching(notify::Result<RecommendedWatcher>),
    Inspected(io::Result<Scan>),
    Hashed(Vec<(FileName, FileStat, HashOutcome)>),
    Synced,
}

impl Indexer {
    pub(crate) fn new(inner: Arc<ShareInner>, events: mpsc::Sender<Changes>, first_look: oneshot::Sender<()>) -> Self {
        let now = Instant::now();
        Self {
            inner,
            events,
            tasks: JoinSet::new(),
            hashers: 0,
            hashing: HashMap::new(),
            queue: VecDeque::new(),
            looking_since: None,
            touched: HashSet::new(),
            due: now,
            noticed: None,
            rested: now,
            for_next_look: Vec::new(),
            for_this_look: Vec::new(),
            for_idle: Vec::new(),
            for_sent: Vec::new(),
            first_look: Some(first_look),
            unsent: BTreeMap::new(),
            reported: HashSet::new(),
            unsynced: false,
            uncollected: true,
            watcher: None,
        }
    }

    /// Runs until all handles are gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let (notices, mut noticed) = mpsc::channel(1);
        let inner = Arc::clone(&self.inner);
        // The watcher comes before the first look: what changes between the two is noticed. Watching a deep tree takes a
        // while, so it is not waited for; the look after it covers what changed meanwhile.
        self.tasks.spawn_blocking(move || Done::Watching(watch(inner.root.path(), notices)));
        let events = self.events.clone();
        loop {
            self.work();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(()) = noticed.recv() => self.notice(),
                () = tokio::time::sleep_until(self.next_look()), if self.looking_since.is_none() => self.look(),
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.done(done).await,
                    Err(error) => {
                        error!(%error, "a thread of the store failed; the share is not kept up to date any more");
                        break;
                    }
                },
                room = events.reserve(), if !self.unsent.is_empty() => match room {
                    Ok(room) => room.send(self.next_changes()),
                    // Nobody wants to know.
                    Err(_) => self.unsent.clear(),
                },
            }
        }
        self.inner.stopping.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let inner = Arc::clone(&self.inner);
        let _stopped = task::spawn_blocking(move || inner.cache.flush(None)).await;
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Rescan(reply) => {
                self.due = Instant::now();
                self.for_next_look.extend(reply);
            }
            Command::Settled(reply) => self.for_idle.push(reply),
            Command::Adopt(Arrivals { files, arriving }, reply) => {
                for known in &files {
                    self.touch(&known.meta.name);
                    if known.unconfirmed_since.is_some() {
                        self.look_within(self.racy_time());
                    }
                }
                self.unsynced = true;
                self.apply(files, Vec::new());
                drop(arriving);
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

    /// What is under way does not know of this change.
    fn touch(&mut self, name: &FileName) {
        self.hashing.remove(name);
        if self.looking_since.is_some() {
            self.touched.insert(name.clone());
        }
    }

    fn invalidate(&mut self, hash: ContentHash) {
        let files: Vec<_> = {
            let index = self.inner.index();
            index.with_content(&hash).map(|known| (known.meta.name.clone(), known.stat)).collect()
        };
        if files.is_empty() {
            return;
        }
        self.inner.outboards.remove(hash);
        self.apply(Vec::new(), files.iter().map(|(name, _)| name.clone()).collect());
        self.enqueue(files);
    }

    fn notice(&mut self) {
        let now = Instant::now();
        let debounce = self.inner.options.debounce;
        let latest = self.noticed.map_or(now + debounce * MAX_DEBOUNCES, |noticed| noticed.latest);
        self.noticed = Some(Noticed { quiet: (now + debounce).min(latest), latest });
    }

    fn next_look(&self) -> Instant {
        self.noticed.map_or(self.due, |noticed| self.due.min(noticed.quiet.max(self.rested)))
    }

    fn look_within(&mut self, wait: Duration) {
        self.due = self.due.min(Instant::now() + wait);
    }

    fn racy_time(&self) -> Duration {
        // A little more, so that the look is not just too early.
        self.inner.options.racy_window + self.inner.options.debounce
    }

    fn look(&mut self) {
        let now = Instant::now();
        self.looking_since = Some(now);
        self.noticed = None;
        self.due = now + self.inner.options.rescan;
        self.for_this_look.append(&mut self.for_next_look);
        let inner = Arc::clone(&self.inner);
        self.tasks.spawn_blocking(move || Done::Inspected(scan(&inner.root, None)));
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Watching(Ok(watcher)) => {
                self.watcher = Some(watcher);
                self.look_within(Duration::ZERO);
            }
            Done::Watching(Err(error)) => report_unwatched(self.inner.root.path(), &error),
            Done::Inspected(looked) => self.looked(looked).await,
            Done::Hashed(files) => self.hashed(files),
            Done::Synced => {}
        }
    }

    async fn looked(&mut self, looked: io::Result<Scan>) {
        let since = self.looking_since.take().unwrap_or_else(Instant::now);
        let touched = std::mem::take(&mut self.touched);
        self.rested = Instant::now() + since.elapsed() * LOOK_SHARE;
        match looked {
            Ok(found) => self.found(found, touched).await,
            // The folder may be on a disk that is away for a moment: its files stay known, serving them fails by itself.
            Err(error) => warn!(%error, folder = %self.inner.root.path().display(), "the share cannot be read"),
        }
        self.for_idle.append(&mut self.for_this_look);
        if let Some(first_look) = self.first_look.take() {
            let _gave_up = first_look.send(());
        }
    }

    async fn found(&mut self, found: Scan, mut touched: HashSet<FileName>) {
        self.inner.skipped.store(found.skipped.len() as u64, Ordering::Relaxed);
        found.skipped.iter().filter(|skipped| !self.reported.contains(*skipped)).for_each(report);
        self.reported = found.skipped.into_iter().collect();

        touched.extend(self.inner.arriving_names());
        // A large share takes a while to compare. Nobody else changes the index meanwhile: this task is waiting here.
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
            Err(error) => return error!(%error, "the share could not be compared"),
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
            self.look_within(WRITER_QUIET);
        }
        if waiting {
            self.look_within(self.racy_time());
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

    /// Starts what can be started, and answers who waited for what is done.
    fn work(&mut self) {
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
        if self.hashers == 0 && self.looking_since.is_none() && self.first_look.is_none() {
            self.idle();
        }
        if self.unsent.is_empty() {
            for reply in self.for_sent.drain(..) {
                let _gave_up = reply.send(());
            }
        }
    }

    fn idle(&mut self) {
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

    fn hashed(&mut self, files: Vec<(FileName, FileStat, HashOutcome)>) {
        self.hashers -= 1;
        self.unsynced = true;
        let (mut upserts, mut removals) = (Vec::new(), Vec::new());
        for (name, stat, hashed) in files {
            if self.hashing.get(&name) != Some(&stat) {
                continue;
            }
            self.hashing.remove(&name);
            match hashed {
                HashOutcome::Done(known) => {
                    if known.unconfirmed_since.is_some() {
                        self.look_within(self.racy_time());
                    }
                    upserts.push(known);
                }
                HashOutcome::Changed => self.look_within(WRITER_QUIET),
                HashOutcome::Gone => {
                    removals.push(name);
                    self.look_within(self.inner.options.debounce);
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
        // A runtime that shuts down waits for blocking threads: they must not go on with a large file.
        self.inner.stopping.store(true, Ordering::Relaxed);
    }
}

/// A large file that was written to a moment ago is being copied: it is not worth hashing yet.
fn is_being_written(stat: &FileStat, now: u64) -> bool {
    stat.size > HASH_PART_BYTES && stat.is_racy_after_own_write(now, WRITER_QUIET)
}

fn hash_batch(inner: &ShareInner, batch: Vec<(FileName, FileStat)>) -> Vec<(FileName, FileStat, HashOutcome)> {
    let mut done = Vec::with_capacity(batch.len());
    let mut hashes = Vec::new();
    for (name, stat) in batch {
        let hashed = inner.hash(&name, &stat);
        if let HashOutcome::Done(known) = &hashed {
            hashes.push(known.clone());
        }
        done.push((name, stat, hashed));
    }
    inner.remember(&hashes);
    done
}

fn report(skipped: &Skipped) {
    let path = skipped.path.display().to_string();
    warn!(path = %path.escape_debug(), reason = %skipped.reason, "not shared");
}

/// Makes the cache durable, and drops what belongs to no file.
fn sync(inner: &ShareInner, collect: bool) {
    let live = collect.then(|| inner.index().files().map(|known| known.stat.id()).collect());
    inner.cache.flush(live.as_ref());
    if collect {
        let contents = inner.index().contents();
        if let Err(error) = inner.outboards.collect(&contents, OUTBOARD_GRACE) {
            warn!(%error, "outboards that nothing refers to could not be deleted");
        }
    }
}
