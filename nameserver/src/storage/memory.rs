//! Keeps nothing longer than the process lives.

use shared::rpc::nameserver::Revision;

use super::{Storage, StorageError, check_revisions};
use crate::registry::{Mutation, Snapshot};

/// A storage in memory. Its rows are shared with the registry, so that names are held once.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    state: Snapshot,
}

impl Storage for MemoryStorage {
    fn load(&mut self) -> Result<Snapshot, StorageError> {
        Ok(self.state.clone())
    }

    fn commit(&mut self, mutations: &[Mutation], expected: Revision) -> Result<(), StorageError> {
        check_revisions(mutations, expected, self.state.revision)?;
        for mutation in mutations {
            self.state.apply(mutation);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance;

    #[test]
    fn conforms() {
        // What "reopening" is for a storage that ends with the process: it stays.
        conformance::run(MemoryStorage::default, |storage| storage);
    }
}
