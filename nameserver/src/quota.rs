//! Bound on the queued writes of one identity, so that no identity fills the queue alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::params::MAX_WRITES_PER_IDENTITY;
use shared::id::Role;

/// Number of queued writes by identity. Has at most as many entries as the queue.
#[derive(Debug, Default)]
pub(crate) struct WriteQuota(Mutex<HashMap<Role, usize>>);

/// Permit for one queued write. Dropping it releases the permit.
#[derive(Debug)]
pub(crate) struct WritePermit {
    quota: Arc<WriteQuota>,
    identity: Role,
}

impl WriteQuota {
    /// Acquires a permit for one more write of `identity`; `None` when it holds [`MAX_WRITES_PER_IDENTITY`].
    pub(crate) fn acquire(self: &Arc<Self>, identity: &Role) -> Option<WritePermit> {
        let mut held = self.held();
        let count = held.entry(identity.clone()).or_default();
        if *count >= MAX_WRITES_PER_IDENTITY {
            return None;
        }
        *count += 1;
        Some(WritePermit { quota: Arc::clone(self), identity: identity.clone() })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Role, usize>> {
        // No code panics while it holds the lock, and every intermediate state is consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WritePermit {
    fn drop(&mut self) {
        let mut held = self.quota.held();
        if let Some(count) = held.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_at_its_quota_leaves_other_identities_their_permits() {
        let quota = Arc::new(WriteQuota::default());
        let peer = |id: &str| Role::Peer(id.parse().unwrap());
        let mut permits: Vec<WritePermit> =
            (0..MAX_WRITES_PER_IDENTITY).filter_map(|_| quota.acquire(&peer("a"))).collect();
        assert_eq!(permits.len(), MAX_WRITES_PER_IDENTITY);
        assert!(quota.acquire(&peer("a")).is_none());
        assert!(quota.acquire(&peer("b")).is_some());
        permits.pop();
        assert!(quota.acquire(&peer("a")).is_some());
        permits.clear();
        assert!(quota.held().is_empty(), "an identity without permits still has an entry");
    }
}
