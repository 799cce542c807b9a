//! File-system notifications about changes in the share.
//!
//! Each directory that a scan shares is watched on its own, so an unreadable, hidden or unshared directory neither ends
//! the watching of the others nor costs a watch. The directory above the share is watched too: it shows that the share
//! itself is moved, deleted or created.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::sync::mpsc;

use super::{
    file_stat::{FileId, FileStat},
    params::MAX_LOST_WATCHES,
};

/// Watches of the directories of a share.
#[derive(Debug)]
pub(crate) struct ShareWatch {
    root: PathBuf,
    /// Channel of capacity 1 for the notices.
    notices: mpsc::Sender<()>,
    /// Missing while the system grants none.
    watcher: Option<RecommendedWatcher>,
    watched: HashMap<PathBuf, FileId>,
    lost: Arc<Mutex<LostWatches>>,
}

/// Result of an update of the watches.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct WatchOutcome {
    /// Number of directories that are watched from now on. Changes in them before that caused no notice.
    pub(crate) added: usize,
    /// Number of directories that cannot be watched.
    pub(crate) unwatched: usize,
    /// Cause of the first failure.
    pub(crate) problem: Option<WatchProblem>,
}

impl WatchOutcome {
    /// Outcome of an update that failed as a whole.
    pub(crate) fn failed() -> Self {
        let problem = WatchProblem::Other("the watcher stopped".to_owned());
        Self { added: 0, unwatched: 1, problem: Some(problem) }
    }
}

/// Cause of a missing watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WatchProblem {
    /// The user has as many watches as the system permits.
    Watches,
    /// The user has as many notification queues as the system permits, or the process as many open files.
    Instances,
    /// Other answer of the system.
    Other(String),
}

/// Watched paths that were moved or deleted, whose watches the library has dropped.
#[derive(Debug, Default)]
struct LostWatches {
    paths: HashSet<PathBuf>,
    /// True if `paths` is not complete.
    all: bool,
}

/// Part of [`Watcher`] that is used here.
trait Watches {
    fn watch(&mut self, path: &Path) -> notify::Result<()>;
    fn unwatch(&mut self, path: &Path);
}

impl Watches for RecommendedWatcher {
    fn watch(&mut self, path: &Path) -> notify::Result<()> {
        Watcher::watch(self, path, RecursiveMode::NonRecursive)
    }

    fn unwatch(&mut self, path: &Path) {
        // Fails if the library has dropped the watch because the directory is gone.
        let _gone = Watcher::unwatch(self, path);
    }
}

impl ShareWatch {
    /// Creates the watches of the share at `root`. Sends to `notices` for every change that can affect the share.
    pub(crate) fn new(root: PathBuf, notices: mpsc::Sender<()>) -> Self {
        Self { root, notices, watcher: None, watched: HashMap::new(), lost: Arc::default() }
    }

    /// Creates the watches of the same share anew, without those of today.
    pub(crate) fn renewed(&self) -> Self {
        Self::new(self.root.clone(), self.notices.clone())
    }

    /// Watches these `directories` of the share, with their paths below it, and no others. Blocks for a system call for
    /// each new one.
    pub(crate) fn update(&mut self, directories: &HashMap<FileId, PathBuf>) -> WatchOutcome {
        let mut wanted: HashMap<PathBuf, FileId> =
            directories.iter().map(|(id, relative)| (self.absolute(relative), *id)).collect();
        if let Some(parent) = self.root.parent()
            && let Ok(metadata) = parent.metadata()
        {
            wanted.entry(parent.to_path_buf()).or_insert(FileStat::of(&metadata).id());
        }
        let watcher = match self.watcher.take().map_or_else(|| self.create(), Ok) {
            Ok(watcher) => self.watcher.insert(watcher),
            Err(error) => {
                return WatchOutcome { added: 0, unwatched: wanted.len(), problem: Some(problem_of(&error)) };
            }
        };
        let lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        let is_lost = |path: &Path| lost.all || path.ancestors().any(|above| lost.paths.contains(above));
        reconcile(watcher, &mut self.watched, &wanted, is_lost)
    }

    fn absolute(&self, relative: &Path) -> PathBuf {
        // Joining an empty path appends a separator.
        if relative.as_os_str().is_empty() { self.root.clone() } else { self.root.join(relative) }
    }

    fn create(&mut self) -> notify::Result<RecommendedWatcher> {
        self.watched.clear();
        let (root, notices, lost) = (self.root.clone(), self.notices.clone(), Arc::clone(&self.lost));
        notify::recommended_watcher(move |event: notify::Result<Event>| {
            match event {
                Ok(event) => {
                    note_lost(&event, &lost);
                    if !matters(&event, &root) {
                        return;
                    }
                }
                // Notifications may be lost.
                Err(_) => lost.lock().unwrap_or_else(PoisonError::into_inner).all = true,
            }
            let _already_pending = notices.try_send(());
        })
    }
}

/// Changes `watched` to `wanted`. Watches again what `is_lost`. Goes on after a failure, except at the limit of watches.
fn reconcile(
    watcher: &mut impl Watches,
    watched: &mut HashMap<PathBuf, FileId>,
    wanted: &HashMap<PathBuf, FileId>,
    is_lost: impl Fn(&Path) -> bool,
) -> WatchOutcome {
    // Removals come first: two paths of one directory have one watch, which the removal of either ends.
    watched.retain(|path, id| {
        let stays = wanted.get(path) == Some(id) && !is_lost(path);
        if !stays {
            watcher.unwatch(path);
        }
        stays
    });
    let mut missing: Vec<(&PathBuf, &FileId)> =
        wanted.iter().filter(|(path, _)| !watched.contains_key(*path)).collect();
    // At the limit, directories near the top are more useful.
    missing.sort_by_key(|(path, _)| (path.components().count(), *path));
    let mut outcome = WatchOutcome::default();
    for (at, (path, id)) in missing.iter().enumerate() {
        let error = match watcher.watch(path) {
            Ok(()) => {
                outcome.added += 1;
                watched.insert((*path).clone(), **id);
                continue;
            }
            Err(error) => error,
        };
        // The next scan does not find it any more.
        if matches!(error.kind, notify::ErrorKind::PathNotFound) {
            continue;
        }
        let problem = problem_of(&error);
        let is_limit = problem == WatchProblem::Watches;
        outcome.problem.get_or_insert(problem);
        outcome.unwatched += if is_limit { missing.len() - at } else { 1 };
        if is_limit {
            break;
        }
    }
    outcome
}

fn problem_of(error: &notify::Error) -> WatchProblem {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => WatchProblem::Watches,
        notify::ErrorKind::Io(io) if io.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            WatchProblem::Instances
        }
        notify::ErrorKind::Io(io) => WatchProblem::Other(io.to_string()),
        _ => WatchProblem::Other(error.to_string()),
    }
}

/// Records the paths of a move or removal. The library drops the watches of such paths and of those below them.
fn note_lost(event: &Event, lost: &Mutex<LostWatches>) {
    let is_loss = matches!(event.kind, EventKind::Remove(_))
        || matches!(event.kind, EventKind::Modify(ModifyKind::Name(RenameMode::From)));
    if !is_loss {
        return;
    }
    let mut lost = lost.lock().unwrap_or_else(PoisonError::into_inner);
    if lost.paths.len() < MAX_LOST_WATCHES {
        lost.paths.extend(event.paths.iter().cloned());
    } else {
        lost.all = true;
    }
}

fn matters(event: &Event, root: &Path) -> bool {
    let kind = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        // Hashing and serving also cause access events.
        EventKind::Access(_) => false,
        _ => true,
    };
    // The directory above the share has other entries, which do not matter.
    let shared = |path: &PathBuf| {
        path.strip_prefix(root)
            .is_ok_and(|path| !path.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".")))
    };
    kind && (event.paths.is_empty() || event.need_rescan() || event.paths.iter().any(shared))
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag, RemoveKind};

    use super::*;

    #[test]
    fn matters_ignores_reads_hidden_files_and_the_surroundings() {
        let root = Path::new("/.state/share");
        let event = |kind, path: &str| Event::new(kind).add_path(root.join(path));
        let create = EventKind::Create(CreateKind::File);
        assert!(matters(&event(create, "a/b"), root));
        assert!(matters(&event(EventKind::Access(AccessKind::Close(AccessMode::Write)), "a"), root));
        assert!(!matters(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "a"), root));
        assert!(!matters(&event(EventKind::Modify(ModifyKind::Any), ".brasa/partial/x"), root));
        // A download ends with a rename out of the hidden directory.
        assert!(matters(&event(create, ".brasa/partial/x").add_path(root.join("x")), root));
        assert!(matters(&Event::new(EventKind::Other).set_flag(Flag::Rescan), root));
        let beside = |path: &str| Event::new(create).add_path(PathBuf::from(path));
        assert!(matters(&beside("/.state/share"), root), "the share itself");
        assert!(!matters(&beside("/.state/shared"), root) && !matters(&beside("/.state"), root));
    }

    /// Watcher with a limit, and with directories that cannot be watched.
    #[derive(Default)]
    struct Fake {
        watched: HashSet<PathBuf>,
        limit: usize,
        closed: HashSet<PathBuf>,
    }

    impl Watches for Fake {
        fn watch(&mut self, path: &Path) -> notify::Result<()> {
            if self.closed.contains(path) {
                return Err(notify::Error::io(std::io::ErrorKind::PermissionDenied.into()));
            }
            if self.watched.len() >= self.limit {
                return Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch));
            }
            self.watched.insert(path.to_path_buf());
            Ok(())
        }

        fn unwatch(&mut self, path: &Path) {
            self.watched.remove(path);
        }
    }

    fn directories(paths: &[(&str, u64)]) -> HashMap<PathBuf, FileId> {
        paths.iter().map(|(path, inode)| (PathBuf::from(path), (1, *inode))).collect()
    }

    #[test]
    fn reconcile_goes_on_after_a_directory_that_cannot_be_watched() {
        let mut fake = Fake { limit: 10, closed: [PathBuf::from("/a")].into(), ..Fake::default() };
        let mut watched = HashMap::new();
        let wanted = directories(&[("/", 1), ("/a", 2), ("/b", 3)]);
        let outcome = reconcile(&mut fake, &mut watched, &wanted, |_| false);
        assert_eq!((outcome.added, outcome.unwatched), (2, 1));
        assert!(matches!(outcome.problem, Some(WatchProblem::Other(_))));
        fake.closed.clear();
        let outcome = reconcile(&mut fake, &mut watched, &wanted, |_| false);
        assert_eq!(outcome, WatchOutcome { added: 1, ..WatchOutcome::default() });
        assert_eq!(watched, wanted);
    }

    #[test]
    fn reconcile_at_the_limit_counts_the_rest_and_completes_it_later() {
        let mut fake = Fake { limit: 2, ..Fake::default() };
        let mut watched = HashMap::new();
        let wanted = directories(&[("/d/d", 4), ("/", 1), ("/c", 3), ("/b", 2)]);
        let outcome = reconcile(&mut fake, &mut watched, &wanted, |_| false);
        assert_eq!(outcome, WatchOutcome { added: 2, unwatched: 2, problem: Some(WatchProblem::Watches) });
        assert_eq!(fake.watched, ["/", "/b"].map(PathBuf::from).into(), "the upper ones");
        fake.limit = 4;
        let outcome = reconcile(&mut fake, &mut watched, &wanted, |_| false);
        assert_eq!(outcome, WatchOutcome { added: 2, ..WatchOutcome::default() });
    }

    #[test]
    fn reconcile_follows_moved_replaced_and_lost_directories() {
        let mut fake = Fake { limit: 10, ..Fake::default() };
        let mut watched = directories(&[("/a", 1), ("/b", 2), ("/c", 3), ("/d", 4)]);
        fake.watched = watched.keys().cloned().collect();
        // `/a` moved to `/x`, another directory replaces `/b`, `/c` is gone, and the watch of `/d` was lost.
        let wanted = directories(&[("/x", 1), ("/b", 20), ("/d", 4)]);
        let outcome = reconcile(&mut fake, &mut watched, &wanted, |path| path == Path::new("/d"));
        assert_eq!(outcome, WatchOutcome { added: 3, ..WatchOutcome::default() });
        assert_eq!((&watched, fake.watched), (&wanted, wanted.keys().cloned().collect()));
    }

    #[test]
    fn lost_watches_are_bounded() {
        let lost = Mutex::default();
        note_lost(&Event::new(EventKind::Create(CreateKind::Folder)).add_path("/a".into()), &lost);
        assert!(lost.lock().unwrap().paths.is_empty());
        for number in 0..=MAX_LOST_WATCHES {
            let removed = Event::new(EventKind::Remove(RemoveKind::Folder));
            note_lost(&removed.add_path(format!("/{number}").into()), &lost);
        }
        let lost = lost.into_inner().unwrap();
        assert!(lost.all && lost.paths.len() == MAX_LOST_WATCHES);
    }
}
