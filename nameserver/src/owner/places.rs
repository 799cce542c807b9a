//! Each identity's share of the queue, so that nobody fills it alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shared::{id::Role, limits::MAX_WRITES_PER_IDENTITY};

/// How many writes of each identity wait. At most as many entries as the queue has.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<Role, usize>>);

/// A place in the queue, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    identity: Role,
}

impl Places {
    /// A place for one more write of `identity`, unless it has [`MAX_WRITES_PER_IDENTITY`].
    pub(super) fn take(self: &Arc<Self>, identity: &Role) -> Option<Place> {
        let mut taken = self.taken();
        let count = taken.entry(identity.clone()).or_default();
        if *count >= MAX_WRITES_PER_IDENTITY {
            return None;
        }
        *count += 1;
        Some(Place { places: Arc::clone(self), identity: identity.clone() })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Role, usize>> {
        // Nothing can panic while it is held, and a count is right at any moment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(count) = taken.get_mut(&self.identity) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_has_its_share_and_leaves_the_rest_to_others() {
        let places = Arc::new(Places::default());
        let peer = |id: &str| Role::Peer(id.parse().unwrap());
        let mut taken: Vec<Place> = (0..MAX_WRITES_PER_IDENTITY).filter_map(|_| places.take(&peer("a"))).collect();
        assert_eq!(taken.len(), MAX_WRITES_PER_IDENTITY);
        assert!(places.take(&peer("a")).is_none());
        assert!(places.take(&peer("b")).is_some());
        taken.pop();
        assert!(places.take(&peer("a")).is_some());
        taken.clear();
        assert!(places.taken().is_empty(), "who waits no more is not remembered");
    }
}
