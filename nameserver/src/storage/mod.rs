//! Durable storage of the registry. A storage applies the registry's mutations in order; its state is always that of
//! one revision, never of a partial commit.
//!
//! Not implemented yet: `etcd`, for several stateless nameservers on one cluster. [`Storage::commit`] already takes the
//! revision that the commit follows: with several writers, the storage decides by it which commit is first.

#[cfg(test)]
mod conformance;
pub mod memory;
pub mod redb;

use std::path::PathBuf;

use shared::rpc::nameserver::Revision;

use crate::registry::{Mutation, Snapshot};

/// Durable storage of the registry. One thread calls it and blocks until it returns.
pub trait Storage: Send {
    /// Loads the state after the last commit. After a failure it reopens the underlying database.
    ///
    /// # Errors
    /// See [`StorageError`].
    fn load(&mut self) -> Result<Snapshot, StorageError>;

    /// Applies all of `mutations` or none. Durable when it returns.
    ///
    /// `expected` is the revision before the first mutation.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] when the storage is at another revision; the storage is unchanged then. After any
    /// other error the commit may or may not have taken effect; [`Storage::load`] returns the actual state.
    fn commit(&mut self, mutations: &[Mutation], expected: Revision) -> Result<(), StorageError>;
}

/// Failure of a storage.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another writer has committed; load the state and repeat the decision.
    #[error("the storage is at revision {}, not {}", .actual.0, .expected.0)]
    Conflict {
        /// Revision that the commit follows.
        expected: Revision,
        /// Revision of the storage.
        actual: Revision,
    },
    /// Another process has opened the file; stop it, or use another file.
    #[error("{path} is in use by another nameserver")]
    InUse {
        /// Path of the file.
        path: PathBuf,
    },
    /// Another version of the program wrote the file; use that version.
    #[error("{path} has format {found}, this program supports {known}")]
    Format {
        /// Path of the file.
        path: PathBuf,
        /// Format of the file.
        found: u32,
        /// Format of this program.
        known: u32,
    },
    /// The file is corrupt; restore a backup.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Description of the corruption.
        what: String,
    },
    /// The system cannot read or write the file, for example because the disk is full; free space and try again.
    #[error("{path}: {error}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        error: std::io::Error,
    },
}

/// Checks that `mutations` follow `expected` without gaps and that `expected` is `actual`, the storage's revision.
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
