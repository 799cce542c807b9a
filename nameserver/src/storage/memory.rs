//! A storage in memory, lost when the process ends.

use shared::rpc::nameserver::Revision;

use super::{Storage, StorageError, check_revisions};
use crate::registry::{Mutation, Snapshot};

/// A storage in memory. It shares its rows with the registry, so that each name exists once.
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
    fn memory_storage_conforms() {
        // Reopening has no effect: the storage lives as long as the process.
        conformance::run(MemoryStorage::default, |storage| storage);
    }
}
