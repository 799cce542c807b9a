//! Cache of the hashes of unchanged files: `hashes.redb` in the state directory.
//!
//! The key of a row is device and inode. The row is valid only if size, modification time and change time also match.
//! A row that differs in the change time only is a strong guess: the file was renamed, linked or got other permissions,
//! or a program wrote to it and set its time back.
//!
//! The cache can be deleted at any time; all files are then hashed again. While it cannot be written, the share works
//! without it, and it is opened again from time to time.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    file_stat::{FileId, FileStat, FileTime},
    params::{CACHE_RETRY_MAX, CACHE_RETRY_MIN, HASH_CACHE_BYTES},
};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use shared::{
    content::ContentHash,
    retry::Backoff,
    time::{Clock, Timestamp},
};
use tracing::warn;

use crate::diagnostics::warnings::{Topic, Warnings};

type Key = FileId;
/// Size, modification time, change time, hash.
type Row = (u64, (i64, u32), (i64, u32), [u8; 32]);

/// Table of the hashes. The number in its name is the version of the row format.
const HASHES: TableDefinition<'_, Key, Row> = TableDefinition::new("hashes-1");

/// Persistent map from file identity to content hash.
#[derive(Debug)]
pub(crate) struct HashCache {
    path: PathBuf,
    warnings: Warnings,
    clock: Clock,
    state: Mutex<State>,
}

/// Connection to the database.
#[derive(Debug)]
struct State {
    /// Missing after a failure, which makes the library refuse all further operations.
    database: Option<Arc<Database>>,
    /// Time of the next attempt to open it.
    retry_at: Timestamp,
    backoff: Backoff,
}

/// Row of the cache for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) hash: ContentHash,
    /// Change time of the file when it was hashed. The row is a guess if the file has another one now.
    pub(crate) ctime: FileTime,
}

impl HashCache {
    /// Opens or creates the cache at `path`. Renames a damaged one and creates a new one. Starts without a cache if the
    /// disk refuses it.
    ///
    /// # Errors
    /// If another process has it open.
    pub(crate) fn open(path: &Path, warnings: Warnings) -> io::Result<Self> {
        let state = State {
            database: None,
            retry_at: Timestamp::ZERO,
            backoff: Backoff::new(CACHE_RETRY_MIN, CACHE_RETRY_MAX),
        };
        let cache = Self { path: path.to_path_buf(), warnings, clock: Clock::start(), state: Mutex::new(state) };
        match open_or_replace(path) {
            Ok(database) => cache.lock().database = Some(Arc::new(database)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(error),
            Err(error) => cache.give_up(&error),
        }
        Ok(cache)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the database again after a failure if it is time for that. Returns true if that succeeded: rows of the
    /// meantime are missing.
    pub(crate) fn revive(&self) -> bool {
        {
            let state = self.lock();
            if state.database.is_some() || self.clock.now() < state.retry_at {
                return false;
            }
        }
        match open_or_replace(&self.path).and_then(|database| self.probe(database)) {
            Ok(database) => {
                self.lock().database = Some(Arc::new(database));
                self.warnings.clear(Topic::State, &self.subject());
                true
            }
            Err(error) => {
                self.give_up(&error);
                false
            }
        }
    }

    /// Writes to the database. An open alone succeeds on a full disk.
    fn probe(&self, database: Database) -> io::Result<Database> {
        let write = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(HASHES)?;
            Ok(transaction.commit()?)
        };
        write().map_err(io::Error::other)?;
        Ok(database)
    }

    fn give_up(&self, error: &io::Error) {
        let mut state = self.lock();
        state.database = None;
        state.retry_at = self.clock.now() + state.backoff.pause();
        drop(state);
        self.warnings.set(
            Topic::State,
            &self.subject(),
            format!(
                "cannot write the hash cache {} ({error}): files are shared, and hashed again after a restart; make \
                 room on its disk or correct its permissions, it is tried again",
                self.path.display()
            ),
        );
    }

    fn subject(&self) -> String {
        self.path.display().to_string()
    }

    /// Runs an operation on the database. Returns `None` while there is none, and closes it after a failure.
    fn with_database<T>(&self, operation: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Option<T> {
        let database = self.lock().database.clone()?;
        match operation(&database) {
            Ok(done) => Some(done),
            Err(error) => {
                drop(database);
                self.give_up(&io::Error::other(error));
                None
            }
        }
    }

    /// Returns the rows of the files with these stats, `None` for unknown ones. Compares everything but the change
    /// times.
    pub(crate) fn look_up<'a>(&self, stats: impl Iterator<Item = &'a FileStat>) -> Vec<Option<Cached>> {
        let stats: Vec<&FileStat> = stats.collect();
        self.with_database(|database| try_look_up(database, &stats)).unwrap_or_else(|| vec![None; stats.len()])
    }

    /// Inserts hashes. While there is no database, nothing happens.
    pub(crate) fn insert(&self, rows: &[(FileStat, ContentHash)]) {
        if rows.is_empty() {
            return;
        }
        self.with_database(|database| {
            let mut transaction = database.begin_write()?;
            // Not synced: the next `flush` syncs many inserts at once.
            transaction.set_durability(Durability::None)?;
            {
                let mut table = transaction.open_table(HASHES)?;
                for (stat, hash) in rows {
                    table.insert(stat.id(), (stat.size, stat.mtime, stat.ctime, hash.0))?;
                }
            }
            Ok(transaction.commit()?)
        });
    }

    /// Syncs all inserts.
    pub(crate) fn flush(&self) {
        if self.with_database(|database| Ok(database.begin_write()?.commit()?)).is_some() {
            self.lock().backoff.reset();
        }
    }

    /// Removes the rows of files that are not `live` from the devices of the live files and from `device`, and syncs.
    /// Keeps the rows of other devices, which may be unmounted at the moment, and returns their contents.
    pub(crate) fn collect(&self, live: &HashSet<FileId>, device: u64) -> HashSet<ContentHash> {
        let devices: HashSet<u64> = live.iter().map(|id| id.0).chain([device]).collect();
        let collected = self.with_database(|database| {
            let transaction = database.begin_write()?;
            let mut kept = HashSet::new();
            {
                let mut table = transaction.open_table(HASHES)?;
                table.retain(|id, _| live.contains(&id) || !devices.contains(&id.0))?;
                for row in table.iter()? {
                    let (id, row) = row?;
                    if !devices.contains(&id.value().0) {
                        kept.insert(ContentHash(row.value().3));
                    }
                }
            }
            transaction.commit()?;
            Ok(kept)
        });
        collected.unwrap_or_default()
    }
}

fn try_look_up(database: &Database, stats: &[&FileStat]) -> Result<Vec<Option<Cached>>, redb::Error> {
    let table = match database.begin_read()?.open_table(HASHES) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(vec![None; stats.len()]),
        table => table?,
    };
    let mut rows = Vec::with_capacity(stats.len());
    for stat in stats {
        rows.push(table.get(stat.id())?.and_then(|row| {
            let (size, mtime, ctime, hash) = row.value();
            (size == stat.size && mtime == stat.mtime).then_some(Cached { hash: ContentHash(hash), ctime })
        }));
    }
    Ok(rows)
}

/// Opens or creates the database. Renames a damaged one and creates a new one.
///
/// # Errors
/// `ResourceBusy` if another process has it open; the answer of the disk.
fn open_or_replace(path: &Path) -> io::Result<Database> {
    match open_database(path) {
        Ok(database) => Ok(database),
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process uses the hash cache"))
        }
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(error))) if !is_damage(&error) => Err(error),
        Err(error) => {
            let aside = set_aside(path)?;
            warn!(%error, renamed_to = %aside.display(), "damaged hash cache; all files are hashed again");
            open_database(path).map_err(io::Error::other)
        }
    }
}

/// Returns true if the error is about the content of the file, not about the disk.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput)
}

fn open_database(path: &Path) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    // The check is cheap on a small cache, and without it redb may panic on a damaged file.
    builder.set_cache_size(HASH_CACHE_BYTES).set_check_integrity_on_open(true);
    builder.create(path)
}

fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension("redb.damaged");
    fs::rename(path, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(inode: u64) -> FileStat {
        FileStat { device: 1, inode, size: 3, mtime: (4, 5), ctime: (6, 7), executable: false, directory: false }
    }

    #[test]
    fn look_up_after_a_restart_finds_unchanged_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes.redb");
        let hash = ContentHash([9; 32]);
        let cache = HashCache::open(&path, Warnings::default()).unwrap();
        assert_eq!(cache.look_up([&stat(1)].into_iter()), [None]);
        cache.insert(&[(stat(1), hash), (stat(2), hash)]);
        cache.flush();
        drop(cache);

        let cache = HashCache::open(&path, Warnings::default()).unwrap();
        let changed =
            [FileStat { size: 4, ..stat(1) }, FileStat { mtime: (4, 6), ..stat(1) }, FileStat { device: 2, ..stat(1) }];
        let row = Cached { hash, ctime: stat(1).ctime };
        assert_eq!(cache.look_up([&stat(1)].into_iter()), [Some(row)]);
        assert_eq!(cache.look_up(changed.iter()), [None; 3]);
        let renamed = FileStat { ctime: (7, 7), ..stat(1) };
        assert_eq!(cache.look_up([&renamed].into_iter()), [Some(row)], "a guess, which the change time tells");

        let other_device = FileStat { device: 2, ..stat(1) };
        cache.insert(&[(other_device, ContentHash([8; 32]))]);
        let kept = cache.collect(&HashSet::from([stat(2).id()]), 1);
        assert_eq!(kept, [ContentHash([8; 32])].into(), "of a device that may be unmounted");
        assert_eq!(cache.look_up([&stat(1), &stat(2)].into_iter()), [None, Some(row)]);
        assert!(cache.look_up([&other_device].into_iter())[0].is_some());
    }

    #[test]
    fn open_of_a_damaged_cache_starts_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes.redb");
        let cache = HashCache::open(&path, Warnings::default()).unwrap();
        cache.insert(&(0..2000).map(|inode| (stat(inode), ContentHash([1; 32]))).collect::<Vec<_>>());
        cache.flush();
        drop(cache);
        let healthy = fs::read(&path).unwrap();
        let damage: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes.fill(0x5a),
            |bytes| bytes.truncate(bytes.len() / 3),
            |bytes| bytes.truncate(100),
            // Beyond the first pages, so that an unchecked open accepts the file.
            |bytes| bytes.iter_mut().skip(8192).step_by(97).for_each(|byte| *byte ^= 0xff),
        ];
        for damage in damage {
            let mut bytes = healthy.clone();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            let cache = HashCache::open(&path, Warnings::default()).unwrap();
            cache.insert(&[(stat(1), ContentHash([2; 32]))]);
            let row = Cached { hash: ContentHash([2; 32]), ctime: stat(1).ctime };
            assert_eq!(cache.look_up([&stat(1)].into_iter()), [Some(row)]);
        }
    }

    #[test]
    fn cache_that_cannot_be_opened_is_opened_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/hashes.redb");
        let warnings = Warnings::default();
        let cache = HashCache::open(&path, warnings.clone()).unwrap();
        assert_eq!(warnings.list().len(), 1);
        cache.insert(&[(stat(1), ContentHash([1; 32]))]);
        assert_eq!(cache.look_up([&stat(1)].into_iter()), [None]);
        assert!(!cache.revive(), "not before the pause is over");
        fs::create_dir(dir.path().join("missing")).unwrap();
        cache.lock().retry_at = Timestamp::ZERO;
        assert!(cache.revive() && !cache.revive());
        assert_eq!(warnings.list(), Vec::<String>::new());
        cache.insert(&[(stat(1), ContentHash([1; 32]))]);
        assert!(cache.look_up([&stat(1)].into_iter())[0].is_some());
    }
}
