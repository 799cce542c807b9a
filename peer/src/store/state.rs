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
    confined_dir::{HIDDEN, Root},
    download::{
        partial::{Partial, WeakPartial},
        resume::format::Recovered,
    },
    error::io_failure,
    file_stat::Stamp,
    hash_cache::HashCache,
    import::staging::{self, INCOMING},
    index::{Index, Known},
    outboards::Outboards,
    share::ShareOptions,
};
use crate::bao::tree_hash::hash_file;

/// The share behind its handles.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) root: Root,
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
pub(crate) struct Arrived {
    pub(crate) files: Vec<Known>,
    /// Dropped when the indexer knows the files.
    pub(crate) arriving: Option<Arriving>,
}

/// While it lives, looks say nothing about these files: one that sees them before their hash is in the cache would have
/// them hashed once more.
#[derive(Debug)]
pub(crate) struct Arriving {
    shared: Arc<Shared>,
    names: Vec<FileName>,
}

impl Arriving {
    pub(crate) fn new(shared: &Arc<Shared>, names: Vec<FileName>) -> Self {
        let mut arriving = shared.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        for name in &names {
            *arriving.entry(name.clone()).or_default() += 1;
        }
        drop(arriving);
        Self { shared: Arc::clone(shared), names }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut arriving = self.shared.arriving.lock().unwrap_or_else(PoisonError::into_inner);
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
pub(crate) enum Hashed {
    /// With a hash.
    Done(Known),
    /// It is not the file that was to be hashed, or was written to meanwhile.
    Changed,
    /// It is not there any more.
    Gone,
    /// It cannot be read.
    Unreadable(io::Error),
}

impl Shared {
    /// Opens the folder, the cache and the outboards.
    pub(crate) fn open(dir: &Path, state_dir: &Path, options: ShareOptions) -> Result<Self, Failure> {
        fs::create_dir_all(dir).map_err(|error| {
            let mut failure = io_failure("share", dir, &error);
            "choose a folder with --dir".clone_into(&mut failure.hint);
            failure
        })?;
        let root = Root::open(dir).map_err(|error| io_failure("share", dir, &error))?;
        let state = |error: io::Error| io_failure("keep hashes in", state_dir, &error);
        fs::create_dir_all(state_dir).map_err(state)?;
        let cache = HashCache::open(&state_dir.join("hashes.redb")).map_err(state)?;
        let outboards = Outboards::open(state_dir.join("outboards")).map_err(state)?;
        staging::remove_leftovers(&root.path().join(HIDDEN).join(INCOMING), "");
        Ok(Shared {
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
    pub(crate) fn hash(&self, name: &FileName, expected: &Stamp) -> Hashed {
        let hashed = || -> io::Result<Option<Known>> {
            let file = self.root.open_file(&name.below(Path::new("")))?;
            if Stamp::of(&file.metadata()?) != *expected {
                return Ok(None);
            }
            let hashed_at = unix_micros();
            let outboard = if expected.size > GROUP_BYTES { Some(self.outboards.create()?) } else { None };
            let outboard_file = outboard.as_ref().map(|outboard| outboard.as_file());
            let hash = hash_file(&file, expected.size, outboard_file, &self.stopping)?;
            self.hashed_bytes.fetch_add(expected.size, Ordering::Relaxed);
            if Stamp::of(&file.metadata()?) != *expected {
                return Ok(None);
            }
            if let Some(outboard) = outboard {
                self.outboards.keep(outboard, hash)?;
            }
            let racy = expected.is_racy(hashed_at, self.options.racy_window);
            Ok(Some(Known::new(name.clone(), *expected, hash, racy.then_some(hashed_at))))
        };
        match hashed() {
            Ok(Some(known)) => Hashed::Done(known),
            Ok(None) => Hashed::Changed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Hashed::Gone,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Hashed::Changed,
            Err(error) => Hashed::Unreadable(error),
        }
    }

    /// The files' hashes from the cache, if what is needed to serve it is there too.
    pub(crate) fn cached(&self, files: Vec<(FileName, Stamp)>) -> (Vec<Known>, Vec<(FileName, Stamp)>) {
        let (directories, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, stamp)| stamp.directory);
        let mut known: Vec<_> = directories.into_iter().map(|(name, stamp)| Known::directory(name, stamp)).collect();
        let hashes = self.cache.look_up(files.iter().map(|(_, stamp)| stamp));
        let mut unknown = Vec::new();
        for ((name, stamp), hash) in files.into_iter().zip(hashes) {
            match hash.filter(|hash| self.outboards.has(*hash, stamp.size)) {
                Some(hash) => known.push(Known::new(name, stamp, hash, None)),
                None => unknown.push((name, stamp)),
            }
        }
        (known, unknown)
    }

    /// Looks at one file now, from the cache or by hashing it; or at a directory, which is known if there is nothing in it.
    pub(crate) fn look_at(&self, name: &FileName) -> Hashed {
        let stamp = match self.root.open_file(&name.below(Path::new(""))).and_then(|file| file.metadata()) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Hashed::Gone,
            Err(error) => {
                return match self.root.empty_dir(&name.below(Path::new(""))) {
                    Ok(Some(stamp)) => Hashed::Done(Known::directory(name.clone(), stamp)),
                    Ok(None) | Err(_) => Hashed::Unreadable(error),
                };
            }
        };
        let (mut known, _) = self.cached(vec![(name.clone(), stamp)]);
        match known.pop() {
            Some(known) => Hashed::Done(known),
            None => self.note(self.hash(name, &stamp)),
        }
    }

    /// Notes a final hash in the cache.
    fn note(&self, hashed: Hashed) -> Hashed {
        if let Hashed::Done(known) = &hashed {
            self.remember(std::slice::from_ref(known));
        }
        hashed
    }

    /// Notes final hashes in the cache.
    pub(crate) fn remember(&self, files: &[Known]) {
        let is_final = files.iter().filter(|known| known.unconfirmed_since.is_none() && !known.meta.is_directory());
        self.cache.insert(&is_final.map(|known| (known.stamp, known.meta.hash)).collect::<Vec<_>>());
    }

    /// A file that this process put in place, with a hash that it verified itself.
    pub(crate) fn own(&self, name: FileName, stamp: Stamp, hash: ContentHash) -> Known {
        let now = unix_micros();
        let racy = stamp.is_racy_after_own_write(now, self.options.racy_window);
        Known::new(name, stamp, hash, racy.then_some(now))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn open(dir: &Path) -> Arc<Shared> {
        Arc::new(Shared::open(&dir.join("share"), &dir.join("state"), ShareOptions::default()).unwrap())
    }

    fn stamp(shared: &Shared, name: &FileName) -> Stamp {
        Stamp::of(&name.below(shared.root.path()).metadata().unwrap())
    }

    #[test]
    fn a_file_that_is_another_by_now_gets_no_hash() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path());
        let name: FileName = "a".parse().unwrap();
        fs::write(name.below(shared.root.path()), "before").unwrap();
        let before = stamp(&shared, &name);
        assert!(matches!(shared.hash(&name, &before), Hashed::Done(_)));
        fs::write(name.below(shared.root.path()), "longer than before").unwrap();
        assert!(matches!(shared.hash(&name, &before), Hashed::Changed));
        fs::remove_file(name.below(shared.root.path())).unwrap();
        assert!(matches!(shared.hash(&name, &before), Hashed::Gone));
    }

    #[test]
    fn a_file_written_to_while_it_is_hashed_gets_no_hash() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path());
        let name: FileName = "log".parse().unwrap();
        let file = fs::File::create(name.below(shared.root.path())).unwrap();
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
            let hashed = shared.hash(&name, &stamp(&shared, &name));
            stop.store(true, Ordering::Relaxed);
            assert!(matches!(hashed, Hashed::Changed), "{hashed:?}");
        });
    }

    #[test]
    fn looks_are_told_of_what_is_on_its_way_until_the_last_has_arrived() {
        let dir = tempfile::tempdir().unwrap();
        let shared = open(dir.path());
        let name: FileName = "dir/a".parse().unwrap();
        let first = Arriving::new(&shared, vec![name.clone()]);
        let second = Arriving::new(&shared, vec![name.clone()]);
        drop(first);
        assert_eq!(shared.arriving_names(), [name, "dir".parse().unwrap()].into(), "made for it, it is empty at first");
        drop(second);
        assert!(shared.arriving_names().is_empty());
    }
}
