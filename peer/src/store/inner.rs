//! State that the handles of a share, its indexer and their blocking threads have in common.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    confined_dir::ConfinedDir,
    download::{
        files::available,
        partial::{Partial, WeakPartial},
        resume::format::Goal,
    },
    error::{FileError, OpenShareError, is_no_space},
    file_stat::FileStat,
    hash_cache::HashCache,
    index::{Index, IndexEntry},
    outboards::Outboards,
    params::{RACY_WINDOW, RESCAN, SCAN_DEBOUNCE},
    private::{PrivateDirs, check_apart},
};
use shared::{content::ContentHash, file_name::FileName, limits::GROUP_BYTES, time::unix_micros};
use tempfile::NamedTempFile;

use crate::{
    bao::{tree_hash::hash_file, verifier::outboard_bytes},
    diagnostics::warnings::Warnings,
};

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
    /// Directories with keys that are never shared, besides the state directory of the share. Default none.
    pub private: Vec<PathBuf>,
}

impl Default for ShareOptions {
    fn default() -> Self {
        Self {
            rescan: RESCAN,
            debounce: SCAN_DEBOUNCE,
            racy_window: RACY_WINDOW,
            warnings: Warnings::default(),
            private: Vec::new(),
        }
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
    /// The state directory has no room for the outboard. The file itself may be intact.
    NoRoom(io::Error),
}

/// Error of hashing a file.
enum HashError {
    /// Of the file.
    File(io::Error),
    /// Of the outboard in the state directory.
    State(io::Error),
}

impl From<io::Error> for HashError {
    fn from(error: io::Error) -> Self {
        // No read fails for these reasons.
        let is_of_a_write = is_no_space(&error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem;
        if is_of_a_write { Self::State(error) } else { Self::File(error) }
    }
}

/// What is known about new or changed files without hashing them.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// Entries of files with a cached hash and an outboard to serve them, and of directories.
    pub(crate) known: Vec<IndexEntry>,
    /// Entries of some of the unknown files, whose contents are in doubt.
    pub(crate) in_doubt: Vec<IndexEntry>,
    /// Files to be hashed.
    pub(crate) unknown: Vec<(FileName, FileStat)>,
}

impl Lookup {
    /// Adds entries in doubt of files that are still unknown.
    pub(crate) fn add_doubts(&mut self, entries: Vec<IndexEntry>) {
        if entries.is_empty() {
            return;
        }
        let unknown: HashSet<&FileName> = self.unknown.iter().map(|(name, _)| name).collect();
        self.in_doubt.extend(entries.into_iter().filter(|entry| unknown.contains(&entry.meta.name)));
    }
}

impl ShareInner {
    /// Opens the directory, the hash cache and the outboards. Creates what is missing.
    pub(crate) fn open(dir: &Path, state_dir: &Path, options: ShareOptions) -> Result<Self, OpenShareError> {
        let mut private = options.private.clone();
        private.push(state_dir.to_path_buf());
        for state_dir in &private {
            check_apart(dir, state_dir)?;
        }
        fs::create_dir_all(dir)
            .map_err(|error| OpenShareError::CreateDirectory(FileError::new("share", dir, error)))?;
        let state = |error: io::Error| FileError::new("keep hashes in", state_dir, error);
        fs::create_dir_all(state_dir).map_err(state)?;
        let root = ConfinedDir::open_except(dir, Arc::new(PrivateDirs::new(private)))
            .map_err(|error| FileError::new("share", dir, error))?;
        let cache = HashCache::open(&state_dir.join("hashes.redb"), options.warnings.clone()).map_err(state)?;
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
        let hashed = || -> Result<Option<IndexEntry>, HashError> {
            let file = self.root.open_file(&name.below(Path::new("")))?;
            if FileStat::of(&file.metadata()?) != *expected {
                return Ok(None);
            }
            let hashed_at = unix_micros();
            let outboard = self.outboard_for(expected.size).map_err(HashError::State)?;
            let outboard_file = outboard.as_ref().map(|outboard| outboard.as_file());
            let hash = hash_file(&file, expected.size, outboard_file, &self.stopping)?;
            self.hashed_bytes.fetch_add(expected.size, Ordering::Relaxed);
            on_hashed();
            if FileStat::of(&file.metadata()?) != *expected {
                return Ok(None);
            }
            if let Some(outboard) = outboard {
                self.outboards.persist(outboard, hash).map_err(HashError::State)?;
            }
            let racy = expected.is_racy(hashed_at, self.options.racy_window);
            Ok(Some(IndexEntry::new(name.clone(), *expected, hash, racy.then_some(hashed_at))))
        };
        match hashed() {
            Ok(Some(entry)) => HashOutcome::Done(entry),
            Ok(None) => HashOutcome::Changed,
            Err(HashError::State(error)) => HashOutcome::NoRoom(error),
            Err(HashError::File(error)) => match error.kind() {
                io::ErrorKind::NotFound => HashOutcome::Gone,
                io::ErrorKind::UnexpectedEof => HashOutcome::Changed,
                _ => HashOutcome::Unreadable(error),
            },
        }
    }

    /// Creates a temporary outboard for a file of `size` bytes, `None` if it needs none. Fails at once if the disk has
    /// too little space, so that no large file is read in vain.
    fn outboard_for(&self, size: u64) -> io::Result<Option<NamedTempFile>> {
        if size <= GROUP_BYTES {
            return Ok(None);
        }
        let outboard = self.outboards.create()?;
        if available(outboard.as_file())? < outboard_bytes(size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Some(outboard))
    }

    /// Looks up new or changed files in the hash cache and in the index.
    pub(crate) fn look_up(&self, files: Vec<(FileName, FileStat)>) -> Lookup {
        let (directories, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, stat)| stat.directory);
        let mut found = Lookup {
            known: directories.into_iter().map(|(name, stat)| IndexEntry::directory(name, stat)).collect(),
            ..Lookup::default()
        };
        let rows = self.cache.look_up(files.iter().map(|(_, stat)| stat));
        for ((name, stat), row) in files.into_iter().zip(rows) {
            match row.filter(|row| self.outboards.has(row.hash, stat.size)) {
                Some(row) if row.ctime == stat.ctime => {
                    found.known.push(IndexEntry::new(name, stat, row.hash, None));
                    continue;
                }
                Some(row) => {
                    let proven = FileStat { ctime: row.ctime, ..stat };
                    found.in_doubt.push(IndexEntry::in_doubt(name.clone(), &stat, proven, row.hash));
                }
                None => {}
            }
            found.unknown.push((name, stat));
        }
        let others = self.index().under_other_names(&found.unknown);
        found.in_doubt.extend(others);
        found
    }

    /// Returns the entry of a file with a cached hash of exactly this stat and an outboard to serve it.
    pub(crate) fn cached(&self, name: &FileName, stat: &FileStat) -> Option<IndexEntry> {
        let row = self.cache.look_up([stat].into_iter()).pop()??;
        let is_usable = row.ctime == stat.ctime && self.outboards.has(row.hash, stat.size);
        is_usable.then(|| IndexEntry::new(name.clone(), *stat, row.hash, None))
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
        if let Some(entry) = self.cached(name, &stat) {
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

    /// Opens a failed hash cache again if it is time for that, and writes all final hashes to it. Returns true if it has
    /// new rows to be synced.
    pub(crate) fn revive_cache(&self) -> bool {
        let revived = self.cache.revive();
        if revived {
            let all: Vec<IndexEntry> = self.index().files().cloned().collect();
            self.remember(&all);
        }
        revived
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
