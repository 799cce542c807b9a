//! What the handle of the share, the indexer and blocking threads have in common.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use shared::{content::ContentHash, error::Failure, file_name::FileName, limits::GROUP_BYTES, time::unix_micros};

use super::{
    confined_dir::{ConfinedDir, HIDDEN},
    download::{
        partial::{Partial, WeakPartial},
        resume::format::Recovered,
    },
    error::io_failure,
    file_stat::FileStat,
    hash_cache::HashCache,
    import::staging::{self, INCOMING},
    index::{Index, IndexEntry},
    outboards::Outboards,
    share::ShareOptions,
};
use crate::bao::tree_hash::hash_file;

/// The share behind its handles.
#[derive(Debug)]
pub(crate) struct ShareInner {
    pub(crate) root: ConfinedDir,
    pub(crate) cache: HashCache,
    pub(crate) outboards: Outboards,
    pub(crate) options: ShareOptions,
    /// Written by the indexer alone.
    pub(crate) index: RwLock<Index>,
    pub(crate) hashed_bytes: AtomicU64,
    pub(crate) skipped: AtomicU64,
    /// Hashing is to end early.
    pub(crate) stopping: AtomicBool,
    /// Files that are being put in place, and how often.
    arriving: Mutex<HashMap<FileName, usize>>,
    /// Contents that are being received.
    receiving: Mutex<HashMap<ContentHash, WeakPartial>>,
}

/// Files that became known otherwise than by a look.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    pub(crate) files: Vec<IndexEntry>,
    /// Dropped when the indexer knows the files.
    pub(crate) arriving: Option<ArrivalGuard>,
}

/// While it lives, looks say nothing about these files: one that sees them before their hash is in the cache would have
/// them hashed once more.
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
            if let Some(times) = arriving.get_mut(name) {
                *times -= 1;
                if *times == 0 {
                    arriving.remove(name);
                }
            }
        }
    }
}

/// How hashing a file ended.
#[derive(Debug)]
pub(crate) enum HashOutcome {
    /// With a hash.
    Done(IndexEntry),
    /// It is not the file that was to be hashed, or was written to meanwhile.
    Changed,
    /// It is not there any more.
    Gone,
    /// It cannot be read.
    Unreadable(io::Error),
}

impl ShareInner {
    /// Opens the folder, the cache and the outboards.
    pub(crate) fn open(dir: &Path, state_dir: &Path, options: ShareOptions) -> Result<Self, Failure> {
        fs::create_dir_all(dir).map_err(|error| {
            let mut failure = io_failure("share", dir, &error);
            "choose a folder with --dir".clone_into(&mut failure.hint);
            failure
        })?;
        let root = ConfinedDir::open(dir).map_err(|error| io_failure("share", dir, &error))?;
        let state = |error: io::Error| io_failure("keep hashes in", state_dir, &error);
        fs::create_dir_all(state_dir).map_err(state)?;
        let cache = HashCache::open(&state_dir.join("hashes.redb")).map_err(state)?;
        let outboards = Outboards::open(state_dir.join("outboards")).map_err(state)?;
        staging::remove_leftovers(&root.path().join(HIDDEN).join(INCOMING), "");
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

    /// The content is being received from now on, until the partial file is dropped.
    pub(crate) fn begin_receiving(&self, partial: &Partial) {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        receiving.retain(|_, partial| partial.upgrade().is_some());
        receiving.insert(partial.hash(), partial.downgrade());
    }

    /// The content, if it is being received.
    pub(crate) fn receiving(&self, hash: &ContentHash) -> Option<Partial> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner).get(hash)?.upgrade()
    }

    /// Whether this very download runs.
    pub(crate) fn is_receiving(&self, download: &Recovered) -> bool {
        self.receiving(&download.header.file.hash).is_some_and(|partial| *partial.goal() == download.header.goal)
    }

    /// Files that are being put in place, and the directories above them: these are made first, and have nothing in them then.
    pub(crate) fn arriving_names(&self) -> HashSet<FileName> {
        let arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        // Parts of a name are a name.
        let above = arriving.keys().flat_map(FileName::directories).filter_map(|above| above.parse().ok());
        above.chain(arriving.keys().cloned()).collect()
    }

    /// Hashes the file `name` if it (still) has the stamp `expected`; its outboard is kept.
    pub(crate) fn hash(&self, name: &FileName, expected: &FileStat) -> HashOutcome {
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
            if FileStat::of(&file.metadata()?) != *expected {
                return Ok(None);
            }
            if let Some(outboard) = outboard {
                self.outboards.keep(outboard, hash)?;
            }
            let racy = expected.is_racy(hashed_at, self.options.racy_window);
            Ok(Some(IndexEntry::new(name.clone(), *expected, hash, racy.then_some(hashed_at))))
        };
        match hashed() {
            Ok(Some(known)) => HashOutcome::Done(known),
            Ok(None) => HashOutcome::Changed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashOutcome::Gone,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => HashOutcome::Changed,
            Err(error) => HashOutcome::Unreadable(error),
        }
    }

    /// The files' hashes from the cache, if what is needed to serve it is there too.
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

    /// Looks at one file now, from the cache or by hashing it; or at a directory, which is known if there is nothing in it.
    pub(crate) fn inspect(&self, name: &FileName) -> HashOutcome {
        let stat = match self.root.open_file(&name.below(Path::new(""))).and_then(|file| file.metadata()) {
            Ok(metadata) => FileStat::of(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return HashOutcome::Gone,
            Err(error) => {
                return match self.root.empty_dir(&name.below(Path::new(""))) {
                    Ok(Some(stat)) => HashOutcome::Done(IndexEntry::directory(name.clone(), stat)),
                    Ok(None) | Err(_) => HashOutcome::Unreadable(error),
                };
            }
        };
        let (mut known, _) = self.cached(vec![(name.clone(), stat)]);
        match known.pop() {
            Some(known) => HashOutcome::Done(known),
            None => self.note(self.hash(name, &stat)),
        }
    }

    /// Notes a final hash in the cache.
    fn note(&self, hashed: HashOutcome) -> HashOutcome {
        if let HashOutcome::Done(known) = &hashed {
            self.remember(std::slice::from_ref(known));
        }
        hashed
    }

    /// Notes final hashes in the cache.
    pub(crate) fn remember(&self, files: &[IndexEntry]) {
        let is_final = files.iter().filter(|known| known.unconfirmed_since.is_none() && !known.meta.is_directory());
        self.cache.insert(&is_final.map(|known| (known.stat, known.meta.hash)).collect::<Vec<_>>());
    }

    /// A file that this process put in place, with a hash that it verified itself.
    pub(crate) fn own(&self, name: FileName, stat: FileStat, hash: ContentHash) -> IndexEntry {
        let now = unix_micros();
        let racy = stat.is_racy_after_own_write(now, self.options.racy_window);
        IndexEntry::new(name, stat, hash, racy.then_some(now))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn open(dir: &Path) -> Arc<ShareInner> {
        Arc::new(ShareInner::open(&dir.join("share"), &dir.join("state"), ShareOptions::default()).unwrap())
    }

    fn stat(inner: &ShareInner, name: &FileName) -> FileStat {
        FileStat::of(&name.below(inner.root.path()).metadata().unwrap())
    }

    #[test]
    fn a_file_that_is_another_by_now_gets_no_hash() {
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
    fn a_file_written_to_while_it_is_hashed_gets_no_hash() {
        let dir = tempfile::tempdir().unwrap();
        let inner = open(dir.path());
        let name: FileName = "log".parse().unwrap();
        let file = fs::File::create(name.below(inner.root.path())).unwrap();
        file.set_len(32 << 20).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut len = 32 << 20;
                while !stop.load(Ordering::Relaxed) {
                    len += 1;
                    file.set_len(len).unwrap();
                }
            });
            let hashed = inner.hash(&name, &stat(&inner, &name));
            stop.store(true, Ordering::Relaxed);
            assert!(matches!(hashed, HashOutcome::Changed), "{hashed:?}");
        });
    }

    #[test]
    fn looks_are_told_of_what_is_on_its_way_until_the_last_has_arrived() {
        let dir = tempfile::tempdir().unwrap();
        let inner = open(dir.path());
        let name: FileName = "dir/a".parse().unwrap();
        let first = ArrivalGuard::new(&inner, vec![name.clone()]);
        let second = ArrivalGuard::new(&inner, vec![name.clone()]);
        drop(first);
        assert_eq!(inner.arriving_names(), [name, "dir".parse().unwrap()].into(), "made for it, it is empty at first");
        drop(second);
        assert!(inner.arriving_names().is_empty());
    }
}
