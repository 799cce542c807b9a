//! Cache of the hashes of unchanged files: `hashes.redb` in the state directory.
//!
//! The key of a row is device and inode. The row is valid only if size, modification time and change time also match.
//! The cache can be deleted at any time; all files are then hashed again.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    file_stat::{FileId, FileStat},
    params::HASH_CACHE_BYTES,
};
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use shared::content::ContentHash;
use tracing::warn;

type Key = FileId;
/// Size, modification time, change time, hash.
type Row = (u64, (i64, u32), (i64, u32), [u8; 32]);

/// Table of the hashes. The number in its name is the version of the row format.
const HASHES: TableDefinition<'_, Key, Row> = TableDefinition::new("hashes-1");

/// Persistent map from file identity to content hash.
#[derive(Debug)]
pub(crate) struct HashCache {
    database: Database,
}

impl HashCache {
    /// Opens or creates the cache at `path`. Renames a damaged one and creates a new one.
    ///
    /// # Errors
    /// If no database can be created, or another process has it open.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match open_database(path) {
            Ok(database) => Ok(Self { database }),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process uses the hash cache"))
            }
            Err(error) => {
                let aside = set_aside(path)?;
                warn!(%error, renamed_to = %aside.display(), "damaged hash cache; all files are hashed again");
                open_database(path).map(|database| Self { database }).map_err(io::Error::other)
            }
        }
    }

    /// Returns the hashes of the files with these stats, `None` for unknown ones.
    pub(crate) fn look_up<'a>(&self, stats: impl Iterator<Item = &'a FileStat>) -> Vec<Option<ContentHash>> {
        let stats: Vec<&FileStat> = stats.collect();
        self.try_look_up(&stats).unwrap_or_else(|error| {
            warn!(%error, "cannot read the hash cache");
            vec![None; stats.len()]
        })
    }

    fn try_look_up(&self, stats: &[&FileStat]) -> Result<Vec<Option<ContentHash>>, redb::Error> {
        let table = match self.database.begin_read()?.open_table(HASHES) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(vec![None; stats.len()]),
            table => table?,
        };
        let mut hashes = Vec::with_capacity(stats.len());
        for stat in stats {
            let hash = table.get(stat.id())?.and_then(|row| {
                let (size, mtime, ctime, hash) = row.value();
                (size == stat.size && mtime == stat.mtime && ctime == stat.ctime).then_some(ContentHash(hash))
            });
            hashes.push(hash);
        }
        Ok(hashes)
    }

    /// Inserts hashes. Failure is logged only: the files are hashed again after a restart.
    pub(crate) fn insert(&self, rows: &[(FileStat, ContentHash)]) {
        if rows.is_empty() {
            return;
        }
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            // Not synced: the next `flush` syncs many inserts at once.
            transaction.set_durability(Durability::None)?;
            {
                let mut table = transaction.open_table(HASHES)?;
                for (stat, hash) in rows {
                    table.insert(stat.id(), (stat.size, stat.mtime, stat.ctime, hash.0))?;
                }
            }
            Ok(transaction.commit()?)
        };
        if let Err(error) = write() {
            warn!(%error, "cannot write the hash cache");
        }
    }

    /// Syncs all inserts. With `live`, removes the rows of all other files.
    pub(crate) fn flush(&self, live: Option<&HashSet<FileId>>) {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            if let Some(live) = live {
                transaction.open_table(HASHES)?.retain(|id, _| live.contains(&id))?;
            }
            Ok(transaction.commit()?)
        };
        if let Err(error) = write() {
            warn!(%error, "cannot write the hash cache");
        }
    }
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
        let cache = HashCache::open(&path).unwrap();
        assert_eq!(cache.look_up([&stat(1)].into_iter()), [None]);
        cache.insert(&[(stat(1), hash), (stat(2), hash)]);
        cache.flush(None);
        drop(cache);

        let cache = HashCache::open(&path).unwrap();
        let changed = [
            FileStat { size: 4, ..stat(1) },
            FileStat { mtime: (4, 6), ..stat(1) },
            FileStat { ctime: (7, 7), ..stat(1) },
            FileStat { device: 2, ..stat(1) },
        ];
        assert_eq!(cache.look_up([&stat(1)].into_iter()), [Some(hash)]);
        assert_eq!(cache.look_up(changed.iter()), [None; 4]);

        cache.flush(Some(&HashSet::from([stat(2).id()])));
        assert_eq!(cache.look_up([&stat(1), &stat(2)].into_iter()), [None, Some(hash)]);
    }

    #[test]
    fn open_of_a_damaged_cache_starts_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes.redb");
        let cache = HashCache::open(&path).unwrap();
        cache.insert(&(0..2000).map(|inode| (stat(inode), ContentHash([1; 32]))).collect::<Vec<_>>());
        cache.flush(None);
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
            let cache = HashCache::open(&path).unwrap();
            cache.insert(&[(stat(1), ContentHash([2; 32]))]);
            assert_eq!(cache.look_up([&stat(1)].into_iter()), [Some(ContentHash([2; 32]))]);
        }
    }
}
