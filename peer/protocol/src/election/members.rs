//! The registered peers and the electors among them.

use std::collections::{BTreeMap, BTreeSet};

use shared::{
    contact::Contact,
    electors::{electors, majority, provisional_quorum},
    id::PeerId,
    limits::MAX_PEERS,
    name::Endpoint,
    time::Timestamp,
};

use super::poll::Poll;

/// Registered peers as last known.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    /// All registered peers but this one.
    pub(crate) others: BTreeMap<PeerId, Endpoint>,
    /// Peers that elect, this one included if it does.
    pub(crate) electors: BTreeSet<PeerId>,
    /// Query for the list.
    pub(crate) poll: Poll,
}

impl Members {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { others: BTreeMap::new(), electors: BTreeSet::new(), poll: Poll::due_at(now) }
    }

    /// True if a list of the registered peers is known.
    pub(crate) fn are_known(&self) -> bool {
        !self.electors.is_empty()
    }

    /// Replaces the list by `peers`, at most `MAX_PEERS` of them. Returns the previous peers without `me`.
    pub(crate) fn replace(&mut self, me: &PeerId, peers: Vec<Contact>) -> BTreeMap<PeerId, Endpoint> {
        let others = peers.into_iter().filter(|contact| contact.peer != *me).take(MAX_PEERS);
        let others: BTreeMap<PeerId, Endpoint> = others.map(|contact| (contact.peer, contact.endpoint)).collect();
        let before = std::mem::replace(&mut self.others, others);
        self.electors = electors(self.others.keys().chain([me]));
        before
    }

    /// Number of electors besides `me` that a tracker must hear to have a majority; a lone peer is its own majority.
    pub(crate) fn majority_besides(&self, me: &PeerId) -> usize {
        if self.electors.is_empty() {
            return 0;
        }
        majority(self.electors.len()) - usize::from(self.electors.contains(me))
    }

    /// True if enough electors are left without `missed` to elect a tracker without the nameserver. A peer that knows
    /// no other cannot tell whether it is alone.
    pub(crate) fn can_elect_without(&self, missed: Option<&PeerId>) -> bool {
        let left = self.electors.iter().filter(|elector| Some(*elector) != missed).count();
        !self.others.is_empty() && left >= provisional_quorum(self.electors.len())
    }
}
