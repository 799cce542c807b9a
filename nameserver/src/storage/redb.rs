//! A storage in one file of the embedded database redb: copy-on-write B+ trees, one fsync a commit, and the state of
//! the last commit after a crash.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use redb::{
    Database, Error, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction, backends::FileBackend,
};
use serde::{Serialize, de::DeserializeOwned};
use shared::rpc::nameserver::{Revision, Seat};

use super::{Storage, StorageError, check_revisions};
use crate::registry::{Change, Mutation, Snapshot};

/// Version of the tables' content. Every change that an older program would misread increments it.
const FORMAT: u32 = 1;

/// Size of redb's page cache in bytes. The registry answers all reads from memory, so the cache only keeps the upper
/// nodes of the trees for commits.
const CACHE_BYTES: usize = 2 << 20;

/// Single values by key; postcard.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Names; postcard of [`NameRow`](crate::registry::NameRow).
const NAMES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("names");
/// Join tokens by id; postcard of [`TokenRow`](crate::registry::TokenRow).
const TOKENS: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("tokens");
/// Enrolments by peer id; postcard of [`EnrolmentRow`](crate::registry::EnrolmentRow).
const ENROLMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("enrolments");

const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
const EPOCH_KEY: &str = "epoch_high";
const SEAT_KEY: &str = "seat";

/// A storage in one redb file, readable by this user only.
pub struct RedbStorage {
    path: PathBuf,
    /// `None` after a failure: after a failed write redb rejects all operations until it is reopened.
    database: Option<Database>,
}

impl RedbStorage {
    /// Opens the file at `path` or creates it in its existing folder.
    ///
    /// # Errors
    /// [`StorageError::InUse`] when another process has opened it, [`StorageError::Format`] when another version of the
    /// program wrote it, [`StorageError::Damaged`] or [`StorageError::Io`] when it cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let mut storage = Self { path: path.to_owned(), database: None };
        storage.database()?;
        Ok(storage)
    }

    /// Returns the database; opens it first if necessary.
    fn database(&mut self) -> Result<&Database, StorageError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let (database, format) = open(&self.path).map_err(|error| self.storage_error(error))?;
                if format != FORMAT {
                    return Err(StorageError::Format { path: self.path.clone(), found: format, known: FORMAT });
                }
                database
            }
        };
        Ok(self.database.insert(database))
    }

    /// Closes the database and converts the error.
    fn close_after(&mut self, error: Error) -> StorageError {
        self.database = None;
        self.storage_error(error)
    }

    fn storage_error(&self, error: Error) -> StorageError {
        let path = self.path.clone();
        match error {
            Error::DatabaseAlreadyOpen => StorageError::InUse { path },
            Error::Corrupted(what) => StorageError::Damaged { path, what },
            Error::Io(error) => StorageError::Io { path, error },
            other => StorageError::Io { path, error: io::Error::other(other) },
        }
    }
}

impl Storage for RedbStorage {
    fn load(&mut self) -> Result<Snapshot, StorageError> {
        read(self.database()?).map_err(|error| self.close_after(error))
    }

    fn commit(&mut self, mutations: &[Mutation], expected: Revision) -> Result<(), StorageError> {
        write(self.database()?, mutations, expected).unwrap_or_else(|error| Err(self.close_after(error)))
    }
}

/// Opens or creates the file; returns the database and its format.
fn open(path: &Path) -> Result<(Database, u32), Error> {
    let file = private_file(path)?;
    let backend = FileBackend::new(file)?;
    let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
    let write = database.begin_write()?;
    let format = value(&write.open_table(META)?, FORMAT_KEY)?;
    if let Some(format) = format {
        write.abort()?;
        return Ok((database, format));
    }
    write.open_table(META)?.insert(FORMAT_KEY, encode(&FORMAT)?.as_slice())?;
    // A read transaction fails on a missing table.
    write.open_table(NAMES)?;
    write.open_table(TOKENS)?;
    write.open_table(ENROLMENTS)?;
    write.commit()?;
    Ok((database, FORMAT))
}

fn private_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // The mode above applies to a new file only.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn read(database: &Database) -> Result<Snapshot, Error> {
    let read = database.begin_read()?;
    let meta = read.open_table(META)?;
    let mut snapshot = Snapshot {
        revision: value(&meta, REVISION_KEY)?.unwrap_or_default(),
        epoch_high: value(&meta, EPOCH_KEY)?.unwrap_or_default(),
        seat: value::<Option<Seat>>(&meta, SEAT_KEY)?.flatten(),
        ..Snapshot::default()
    };
    for row in read.open_table(NAMES)?.iter()? {
        let (key, row) = row?;
        snapshot.names.insert(parse(key.value())?, Arc::new(decode(row.value())?));
    }
    for row in read.open_table(TOKENS)?.iter()? {
        let (key, row) = row?;
        snapshot.tokens.insert(key.value(), decode(row.value())?);
    }
    for row in read.open_table(ENROLMENTS)?.iter()? {
        let (key, row) = row?;
        snapshot.enrolments.insert(parse(key.value())?, decode(row.value())?);
    }
    Ok(snapshot)
}

/// Runs one transaction. The inner error is a conflict, which leaves the database unchanged and usable.
fn write(database: &Database, mutations: &[Mutation], expected: Revision) -> Result<Result<(), StorageError>, Error> {
    let write = database.begin_write()?;
    let actual = value(&write.open_table(META)?, REVISION_KEY)?.unwrap_or_default();
    if let Err(refused) = check_revisions(mutations, expected, actual) {
        write.abort()?;
        return Ok(Err(refused));
    }
    apply(&write, mutations)?;
    write.commit()?;
    Ok(Ok(()))
}

fn apply(write: &WriteTransaction, mutations: &[Mutation]) -> Result<(), Error> {
    let mut meta = write.open_table(META)?;
    let mut names = write.open_table(NAMES)?;
    let mut tokens = write.open_table(TOKENS)?;
    let mut enrolments = write.open_table(ENROLMENTS)?;
    for Mutation { revision: _, change } in mutations {
        match change {
            Change::NamePut(name, row) => drop(names.insert(name.as_str(), encode(row)?.as_slice())?),
            Change::NameRemoved(name) => drop(names.remove(name.as_str())?),
            Change::SeatTaken(seat) => {
                meta.insert(EPOCH_KEY, encode(&seat.epoch)?.as_slice())?;
                meta.insert(SEAT_KEY, encode(&Some(seat))?.as_slice())?;
            }
            Change::SeatVacated(_) => drop(meta.insert(SEAT_KEY, encode(&None::<Seat>)?.as_slice())?),
            Change::TokenPut(id, row) => drop(tokens.insert(*id, encode(row)?.as_slice())?),
            Change::TokenRemoved(id) => drop(tokens.remove(*id)?),
            Change::Enrolled(peer, row) => drop(enrolments.insert(peer.as_str(), encode(row)?.as_slice())?),
        }
    }
    if let Some(last) = mutations.last() {
        meta.insert(REVISION_KEY, encode(&last.revision)?.as_slice())?;
    }
    Ok(())
}

fn value<T: DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, Error> {
    meta.get(key)?.map(|bytes| decode(bytes.value())).transpose()
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    postcard::to_stdvec(value).map_err(|error| Error::Io(io::Error::other(error)))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes).map_err(|error| Error::Corrupted(format!("a row does not decode: {error}")))
}

fn parse<T: FromStr>(key: &str) -> Result<T, Error> {
    key.parse().map_err(|_| Error::Corrupted(format!("{key:?} is not a valid key")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance;

    #[test]
    fn redb_storage_conforms() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = (0..).map(|number| folder.path().join(format!("{number}.redb")));
        conformance::run(
            || RedbStorage::open(&files.next().unwrap()).unwrap(),
            |storage| {
                let path = storage.path.clone();
                drop(storage);
                RedbStorage::open(&path).unwrap()
            },
        );
    }

    #[test]
    fn file_is_private_and_opened_by_one_process_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.redb");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let storage = RedbStorage::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(RedbStorage::open(&path), Err(StorageError::InUse { .. })));
        drop(storage);
        assert!(RedbStorage::open(&path).is_ok());
    }

    #[test]
    fn file_of_another_format_or_program_is_rejected_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later.redb");
        let database = Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(META).unwrap().insert(FORMAT_KEY, encode(&(FORMAT + 1)).unwrap().as_slice()).unwrap();
        write.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let refused = RedbStorage::open(&path).map(drop);
            assert!(matches!(refused, Err(StorageError::Format { found, .. }) if found == FORMAT + 1), "{refused:?}");
        }

        let path = folder.path().join("letter.txt");
        std::fs::write(&path, "Dear Sir or Madam, ".repeat(1000)).unwrap();
        assert!(RedbStorage::open(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "Dear Sir or Madam, ".repeat(1000));
    }
}
