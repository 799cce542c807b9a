//! State that the handles of a share, its indexer and their blocking threads have in common.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    confined_dir::ConfinedDir,
    download::{
        partial::{Partial, WeakPartial},
        resume::format::Goal,
    },
    error::{FileError, OpenShareError},
    file_stat::FileStat,
    hash_cache::HashCache,
    index::{Index, IndexEntry},
    outboards::Outboards,
    params::{RACY_WINDOW, RESCAN, SCAN_DEBOUNCE},
};
use shared::{content::ContentHash, file_name::FileName, limits::GROUP_BYTES, time::unix_micros};

use crate::{bao::tree_hash::hash_file, diagnostics::warnings::Warnings};

/// Timing of the scans of a share, and where it reports lasting conditions.
#[derive(Debug, Clone)]
pub struct ShareOptions {
    /// Interval of the full scans that find what file-system notifications miss. Default [`RESCAN`].
    pub rescan: Duration,
    /// Quiet time between a notification and the scan that follows it. Default [`SCAN_DEBOUNCE`].
    pub debounce: Duration,
    /// Age at which a change is old enough for the hash to be final. Default [`RACY_WINDOW`]. Zero trusts every hash at
    /// once, which only tests may do.
    pub racy_window: Duration,
    /// Conditions that `status` reports.
    pub warnings: Warnings,
}

impl Default for ShareOptions {
    fn default() -> Self {
        Self { rescan: RESCAN, debounce: SCAN_DEBOUNCE, racy_window: RACY_WINDOW, warnings: Warnings::default() }
    }
}

/// State of a share.
#[derive(Debug)]
pub(crate) struct ShareInner {
    pub(crate) root: ConfinedDir,
    pub(crate) cache: HashCache,
    pub(crate) outboards: Outboards,
    pub(crate) options: ShareOptions,
    /// Index; only the indexer writes to it.
    pub(crate) index: RwLock<Index>,
    /// Bytes that this process hashed.
    pub(crate) hashed_bytes: AtomicU64,
    /// Number of entries that the last scan could not share.
    pub(crate) skipped: AtomicU64,
    /// Set when hashing must end early.
    pub(crate) stopping: AtomicBool,
    /// Files that are being moved into the share, each with the number of its guards.
    arriving: Mutex<HashMap<FileName, usize>>,
    /// Contents that are being received.
    receiving: Mutex<HashMap<ContentHash, WeakPartial>>,
}

/// Files that enter the index without a scan.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    pub(crate) files: Vec<IndexEntry>,
    /// Dropped when the index has the files.
    pub(crate) guard: Option<ArrivalGuard>,
}

/// Excludes files from scans while it exists. A scan that finds them before the cache has their hashes would cause
/// them to be hashed again.
#[derive(Debug)]
pub(crate) struct ArrivalGuard {
    inner: Arc<ShareInner>,
    names: Vec<FileName>,
}

impl ArrivalGuard {
    pub(crate) fn new(inner: &Arc<ShareInner>, names: Vec<FileName>) -> Self {
        let mut arriving = inner.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &names {
            *arriving.entry(name.clone()).or_default() += 1;
        }
        drop(arriving);
        Self { inner: Arc::clone(inner), names }
    }
}

impl Drop for ArrivalGuard {
    fn drop(&mut self) {
        let mut arriving = self.inner.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &self.names {
            if let Some(guards) = arriving.get_mut(name) {
                *guards -= 1;
                if *guards == 0 {
                    arriving.remove(name);
                }
            }
        }
    }
}

/// Result of hashing a file.
#[derive(Debug)]
pub(crate) enum HashOutcome {
    /// The file has this hash.
    Done(IndexEntry),
    /// The file has another stat than expected or changed while it was hashed.
    Changed,
    /// The file does not exist any more.
    Gone,
    /// The file cannot be read.
    Unreadable(io::Error),
}

impl ShareInner {
    /// Opens the directory, the hash cache and the outboards. Creates what is missing.
    pub(crate) fn open(dir: &Path, state_dir: &Path, options: ShareOptions) -> Result<Self, OpenShareError> {
        fs::create_dir_all(dir)
            .map_err(|error| OpenShareError::CreateDirectory(FileError::new("share", dir, error)))?;
        let root = ConfinedDir::open(dir).map_err(|error| FileError::new("share", dir, error))?;
        let state = |error: io::Error| FileError::new("keep hashes in", state_dir, error);
        fs::create_dir_all(state_dir).map_err(state)?;
        let cache = HashCache::open(&state_dir.join("hashes.redb")).map_err(state)?;
        let outboards = Outboards::open(state_dir.join("outboards")).map_err(state)?;
        Ok(ShareInner {
            root,
            cache,
            outboards,
            options,
            index: RwLock::default(),
            hashed_bytes: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            arriving: Mutex::default(),
            receiving: Mutex::default(),
        })
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the content as being received until the partial file is dropped.
    pub(crate) fn begin_receiving(&self, partial: &Partial) {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        receiving.retain(|_, partial| partial.upgrade().is_some());
        receiving.insert(partial.hash(), partial.downgrade());
    }

    /// Returns the partial file of a content that is being received.
    pub(crate) fn receiving(&self, hash: &ContentHash) -> Option<Partial> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner).get(hash)?.upgrade()
    }

    /// Returns true if the download of `hash` to `goal` is running.
    pub(crate) fn is_receiving(&self, hash: &ContentHash, goal: &Goal) -> bool {
        self.receiving(hash).is_some_and(|partial| partial.goal() == goal)
    }

    /// Returns the files that are being moved into the share and the directories above them, which may still be empty.
    pub(crate) fn arriving_names(&self) -> HashSet<FileName> {
        let arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let above = arriving.keys().flat_map(FileName::directories).filter_map(|above| above.parse().ok());
        above.chain(arriving.keys().cloned()).collect()
    }

    /// Hashes the file `name` if it has the stat `expected` before and after, and stores its outboard.
    pub(crate) fn hash(&self, name: &FileName, expected: &FileStat) -> HashOutcome {
        self.hash_with(name, expected, || ())
    }

    /// Same as [`hash`](Self::hash), but calls `on_hashed` between the hashing and the second comparison of the stat.
    fn hash_with(&self, name: &FileName, expected: &FileStat, on_hashed: impl FnOnce()) -> HashOutcome {
        let hashed = || -> io::Result<Option<IndexEntry>> {
            let file = self.root.open_file(&name.below(Path::new("")))?;
            if FileStat::of(&file.metadata()?) != *expected {
                return Ok(None);
            }
            let hashed_at = unix_micros();
            let outboard = if expected.size > GROUP_BYTES { Some(self.outboards.create()?) } else { None };
            let outboard_file = outboard.as_ref().map(|outboard| outboard.as_file());
            let hash = hash_file(&file, expected.size, outboard_file, &self.stopping)?;
            self.hashed_bytes.fetch_add(expected.size, Ordering::Relaxed);
            on_hashed();
            if FileStat::of(&file.metadata()?) != *expected {
                return Ok(None);
            }
            if let Some(outboard) = outboard {
                self.outboards.persist(outboard, hash)?;
            }
            let racy = expected.is_racy(hashed_at, self.options.racy_window);
            Ok(Some(IndexEntry::new(name.clone(), *expected, hash, racy.then_some(hashed_at))))
        };
        match hashed() {
            Ok(Some(entry)) => HashOutcome::Done(entry),
            Ok(None) => HashOutcome::Changed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashOutcome::Gone,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => HashOutcome::Changed,
            Err(error) => HashOutcome::Unreadable(error),
        }
    }

    /// Splits files into those with a cached hash and an outboard to serve them, and those to be hashed.
    pub(crate) fn cached(&self, files: Vec<(FileName, FileStat)>) -> (Vec<IndexEntry>, Vec<(FileName, FileStat)>) {
        let (directories, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, stat)| stat.directory);
        let mut known: Vec<_> = directories.into_iter().map(|(name, stat)| IndexEntry::directory(name, stat)).collect();
        let hashes = self.cache.look_up(files.iter().map(|(_, stat)| stat));
        let mut unknown = Vec::new();
        for ((name, stat), hash) in files.into_iter().zip(hashes) {
            match hash.filter(|hash| self.outboards.has(*hash, stat.size)) {
                Some(hash) => known.push(IndexEntry::new(name, stat, hash, None)),
                None => unknown.push((name, stat)),
            }
        }
        (known, unknown)
    }

    /// Returns the entry of one file, from the cache or by hashing it, or of an empty directory.
    pub(crate) fn inspect(&self, name: &FileName) -> HashOutcome {
        let relative = name.below(Path::new(""));
        let stat = match self.root.open_file(&relative).and_then(|file| file.metadata()) {
            Ok(metadata) => FileStat::of(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return HashOutcome::Gone,
            Err(error) => {
                return match self.root.empty_dir(&relative) {
                    Ok(Some(stat)) => HashOutcome::Done(IndexEntry::directory(name.clone(), stat)),
                    Ok(None) | Err(_) => HashOutcome::Unreadable(error),
                };
            }
        };
        let (mut known, _) = self.cached(vec![(name.clone(), stat)]);
        if let Some(entry) = known.pop() {
            return HashOutcome::Done(entry);
        }
        let hashed = self.hash(name, &stat);
        if let HashOutcome::Done(entry) = &hashed {
            self.remember(std::slice::from_ref(entry));
        }
        hashed
    }

    /// Writes final hashes to the cache.
    pub(crate) fn remember(&self, files: &[IndexEntry]) {
        let is_final = files.iter().filter(|entry| entry.unconfirmed_since.is_none() && !entry.meta.is_directory());
        self.cache.insert(&is_final.map(|entry| (entry.stat, entry.meta.hash)).collect::<Vec<_>>());
    }

    /// Returns the entry of a file that this process moved into the share and whose hash it verified.
    pub(crate) fn own(&self, name: FileName, stat: FileStat, hash: ContentHash) -> IndexEntry {
        let now = unix_micros();
        let racy = stat.is_racy_after_own_write(now, self.options.racy_window);
        IndexEntry::new(name, stat, hash, racy.then_some(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Arc<ShareInner> {
        Arc::new(ShareInner::open(&dir.join("share"), &dir.join("state"), ShareOptions::default()).unwrap())
    }

    fn stat(inner: &ShareInner, name: &FileName) -> FileStat {
        FileStat::of(&name.below(inner.root.path()).metadata().unwrap())
    }

    #[test]
    fn hash_with_outdated_stat_returns_changed() {
        let dir = tempfile::tempdir().unwrap();
        let inner = open(dir.path());
        let name: FileName = "a".parse().unwrap();
        fs::write(name.below(inner.root.path()), "before").unwrap();
        let before = stat(&inner, &name);
        assert!(matches!(inner.hash(&name, &before), HashOutcome::Done(_)));
        fs::write(name.below(inner.root.path()), "longer than before").unwrap();
        assert!(matches!(inner.hash(&name, &before), HashOutcome::Changed));
        fs::remove_file(name.below(inner.root.path())).unwrap();
        assert!(matches!(inner.hash(&name, &before), HashOutcome::Gone));
    }

    #[test]
    fn hash_of_a_file_that_changes_meanwhile_returns_changed() {
        let dir = tempfile::tempdir().unwrap();
        let inner = open(dir.path());
        let name: FileName = "log".parse().unwrap();
        let file = fs::File::create(name.below(inner.root.path())).unwrap();
        file.set_len(32 << 20).unwrap();
        let before = stat(&inner, &name);
        let hashed = inner.hash_with(&name, &before, || file.set_len((32 << 20) + 1).unwrap());
        assert!(matches!(hashed, HashOutcome::Changed), "{hashed:?}");
    }

    #[test]
    fn arriving_names_include_a_file_until_its_last_guard_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let inner = open(dir.path());
        let name: FileName = "dir/a".parse().unwrap();
        let first = ArrivalGuard::new(&inner, vec![name.clone()]);
        let second = ArrivalGuard::new(&inner, vec![name.clone()]);
        drop(first);
        assert_eq!(
            inner.arriving_names(),
            [name, "dir".parse().unwrap()].into(),
            "the new directory is empty at first"
        );
        drop(second);
        assert!(inner.arriving_names().is_empty());
    }
}
