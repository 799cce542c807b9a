//! Where the registry is kept. A storage carries out the registry's mutations in order; its state is always that of
//! some revision, never of half a commit.
//!
//! Not here yet: `etcd`, for several stateless nameservers over one cluster. It is why a commit says which revision it
//! follows: with several writers the storage, not the nameserver, decides who was first.

#[cfg(test)]
mod conformance;
mod memory;
mod redb;

use std::path::PathBuf;

use shared::rpc::nameserver::Revision;

pub use self::{memory::MemoryStorage, redb::RedbStorage};
use crate::registry::{Mutation, Snapshot};

/// A place that keeps the registry. Called from one thread, which waits for it.
pub trait Storage: Send {
    /// The state after the last commit. Also how a storage that failed is tried again: it opens anew what it must.
    ///
    /// # Errors
    /// See [`StorageError`].
    fn load(&mut self) -> Result<Snapshot, StorageError>;

    /// Carries out `mutations`, all or none; durable when it returns.
    ///
    /// `expected` is the revision that the first of them follows.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] when the storage is at another revision: nothing was changed. After any other error
    /// it is unknown whether the commit happened; [`Storage::load`] tells.
    fn commit(&mut self, mutations: &[Mutation], expected: Revision) -> Result<(), StorageError>;
}

/// Why a storage could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Somebody else has written; load and decide anew.
    #[error("the storage is at revision {}, not {}", .actual.0, .expected.0)]
    Conflict {
        /// What the commit follows.
        expected: Revision,
        /// Where the storage is.
        actual: Revision,
    },
    /// Another process has the file open; stop it, or use another file.
    #[error("{path} is in use by another nameserver")]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// Another version of the program wrote the file; use that one.
    #[error("{path} has format {found}, this program knows {known}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this program.
        known: u32,
    },
    /// What is stored cannot be read; restore a backup.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where it shows.
        what: String,
    },
    /// The system cannot read or write, for example because the disk is full; make room and try again.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Whether `mutations` may be carried out on a storage that is at `actual`.
fn check_revisions(mutations: &[Mutation], expected: Revision, actual: Revision) -> Result<(), StorageError> {
    if actual != expected {
        return Err(StorageError::Conflict { expected, actual });
    }
    let mut before = expected;
    for Mutation { revision, .. } in mutations {
        if revision.0 != before.0 + 1 {
            return Err(StorageError::Conflict { expected: Revision(revision.0.saturating_sub(1)), actual: before });
        }
        before = *revision;
    }
    Ok(())
}
