//! Hashes of files that did not change since: `hashes.redb` in the state directory.
//!
//! A row is found by device and inode and counts only when size, modification and change time are the same too. The
//! cache can be deleted at any time; what it costs is hashing again.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use shared::{content::ContentHash, limits::HASH_CACHE_BYTES};
use tracing::warn;

use super::{file_stat::FileStat, scan::FileId};

type Key = (u64, u64);
/// Size; modification time; change time; hash.
type Row = (u64, (i64, u32), (i64, u32), [u8; 32]);

/// The number stands for the format: another one is another table.
const HASHES: TableDefinition<'_, Key, Row> = TableDefinition::new("hashes-1");

/// The cache.
#[derive(Debug)]
pub(crate) struct HashCache {
    database: Database,
}

impl HashCache {
    /// The cache at `path`. One that cannot be read is set aside and begun again.
    ///
    /// # Errors
    /// When no database can be made there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match open_database(path) {
            Ok(database) => Ok(Self { database }),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process uses the hash cache"))
            }
            Err(error) => {
                let aside = set_aside(path)?;
                warn!(%error, kept_as = %aside.display(), "the hash cache cannot be read; everything is hashed again");
                open_database(path).map(|database| Self { database }).map_err(io::Error::other)
            }
        }
    }

    /// The hashes of the files with these stamps, as far as they are known.
    pub(crate) fn look_up<'a>(&self, stats: impl Iterator<Item = &'a FileStat>) -> Vec<Option<ContentHash>> {
        let stats: Vec<&FileStat> = stats.collect();
        self.try_look_up(&stats).unwrap_or_else(|error| {
            warn!(%error, "the hash cache cannot be read");
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

    /// Notes hashes. When that fails they are only hashed again after a restart, so it is no error.
    pub(crate) fn insert(&self, rows: &[(FileStat, ContentHash)]) {
        if rows.is_empty() {
            return;
        }
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            // Not synced: the next `flush` does that for many at a time.
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
            warn!(%error, "the hash cache cannot be written");
        }
    }

    /// Makes durable what was noted, and forgets files that are not in `live`, when it is given.
    pub(crate) fn flush(&self, live: Option<&HashSet<FileId>>) {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            if let Some(live) = live {
                transaction.open_table(HASHES)?.retain(|id, _| live.contains(&id))?;
            }
            Ok(transaction.commit()?)
        };
        if let Err(error) = write() {
            warn!(%error, "the hash cache cannot be written");
        }
    }
}

fn open_database(path: &Path) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    // The cache is small, and an unchecked open may panic on a file that something else damaged.
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
    fn only_an_unchanged_file_is_found_and_it_survives_a_restart() {
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
    fn a_damaged_cache_is_begun_again() {
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
            // Past the first pages: a plain open would trust it.
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
