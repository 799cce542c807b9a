//! The time in which a new tracker's index is rebuilt.

use std::collections::BTreeSet;

use super::params::INDEX_SETTLE;
use shared::{id::PeerId, time::Timestamp};

/// Rebuilding of a new tracker's index from the peers' announcements.
#[derive(Debug, Clone)]
pub(crate) struct Settling {
    /// Peers that have not announced their whole share.
    awaited: BTreeSet<PeerId>,
    /// True if `awaited` comes from a list that the nameserver gave to this tracker.
    listed: bool,
    /// Previous tracker. It is not awaited, since its failure is why there is a new one.
    former: Option<PeerId>,
    until: Timestamp,
    /// Count of accepted announcements.
    pub(crate) announcements: usize,
}

impl Settling {
    /// Waits for `peers`, which are known to be all if `listed`.
    pub(crate) fn new<'a>(
        now: Timestamp,
        peers: impl Iterator<Item = &'a PeerId>,
        listed: bool,
        former: Option<PeerId>,
    ) -> Self {
        let awaited = peers.filter(|peer| Some(*peer) != former.as_ref()).cloned().collect();
        Self { awaited, listed, former, until: now + INDEX_SETTLE, announcements: 0 }
    }

    /// Waits for `peers`, those of the nameserver's list whose share is not complete.
    pub(crate) fn await_all<'a>(&mut self, peers: impl Iterator<Item = &'a PeerId>) {
        self.awaited = peers.filter(|peer| Some(*peer) != self.former.as_ref()).cloned().collect();
        self.listed = true;
    }

    /// Waits for `peer` no longer. Returns whether it did.
    pub(crate) fn received(&mut self, peer: &PeerId) -> bool {
        self.awaited.remove(peer)
    }

    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        (self.listed && self.awaited.is_empty()) || self.until <= now
    }

    /// Time at which the index opens even if shares are missing.
    pub(crate) fn until(&self) -> Timestamp {
        self.until
    }

    /// Count of peers whose share is not complete.
    pub(crate) fn missing(&self) -> usize {
        self.awaited.len()
    }
}
