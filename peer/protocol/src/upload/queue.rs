//! Whose request is served next.
//!
//! A request is in one state: waiting, active, or over. Slots go round the peers that wait, one upload a turn, so that
//! a peer with a hundred requests gets no more than one with a single request.
//!
//! | state | leaves it for |
//! |---|---|
//! | waiting | active: a slot is free, its peer has room and is next; over: its stream was closed |
//! | active | over: sent, or its stream was closed; parked: its receiver takes too little while others wait |
//! | parked | over: likewise |
//!
//! A parked one takes no slot, but its peer's place: until it is over that peer is served nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::upload::params::MAX_DEMOTED_UPLOADS;
use crate::upload::params::MAX_UPLOADS;
use crate::upload::params::MAX_UPLOADS_PER_PEER;
use crate::upload::params::MAX_WAITING_UPLOADS;
use crate::upload::params::MAX_WAITING_UPLOADS_PER_PEER;

/// A request for an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(u64);

/// How many at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Uploads at a time, at least one is allowed. Default [`MAX_UPLOADS`]; `--max-uploads`.
    pub active: usize,
    /// Of those, to one peer, at least one is allowed. Default [`MAX_UPLOADS_PER_PEER`].
    pub active_per_peer: usize,
    /// Requests that wait. Default [`MAX_WAITING_UPLOADS`].
    pub waiting: usize,
    /// Of those, of one peer. Default [`MAX_WAITING_UPLOADS_PER_PEER`].
    pub waiting_per_peer: usize,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            active: MAX_UPLOADS,
            active_per_peer: MAX_UPLOADS_PER_PEER,
            waiting: MAX_WAITING_UPLOADS,
            waiting_per_peer: MAX_WAITING_UPLOADS_PER_PEER,
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Serve it now.
    Now(UploadId),
    /// It waits; [`UploadQueue::end`] says when its turn has come.
    Waits(UploadId),
    /// Too many wait already: tell the peer to come back.
    Busy,
}

/// The upload slots of one peer; `P` tells askers apart.
#[derive(Debug)]
pub struct UploadQueue<P> {
    limits: UploadLimits,
    last: u64,
    peers: BTreeMap<P, Peer>,
    /// Peers that wait, the next one first.
    turns: VecDeque<P>,
    owners: BTreeMap<UploadId, P>,
    parked: BTreeSet<UploadId>,
    active: usize,
    waiting: usize,
}

#[derive(Debug, Default)]
struct Peer {
    /// Those that are parked included.
    active: usize,
    waiting: VecDeque<UploadId>,
}

impl<P: Ord + Clone> UploadQueue<P> {
    /// All slots free.
    pub fn new(limits: UploadLimits) -> Self {
        Self {
            limits,
            last: 0,
            peers: BTreeMap::new(),
            turns: VecDeque::new(),
            owners: BTreeMap::new(),
            parked: BTreeSet::new(),
            active: 0,
            waiting: 0,
        }
    }

    /// Changes how many at a time. Uploads under way go on; the requests that may start now are appended to `start`.
    pub fn set_limits(&mut self, limits: UploadLimits, start: &mut Vec<UploadId>) {
        self.limits = limits;
        self.start(start);
    }

    /// Uploads under way, without those that are parked, and requests that wait.
    pub fn load(&self) -> (usize, usize) {
        (self.active, self.waiting)
    }

    /// `peer` asks for an upload. Each one that is not refused is to be ended with [`UploadQueue::end`].
    pub fn ask(&mut self, peer: &P) -> Asked {
        let asking = self.peers.entry(peer.clone()).or_default();
        let has_room = asking.waiting.is_empty() && asking.active < self.limits.active_per_peer.max(1);
        let starts = has_room && self.active < self.limits.active.max(1);
        let is_full = self.waiting >= self.limits.waiting || asking.waiting.len() >= self.limits.waiting_per_peer;
        if !starts && is_full {
            if asking.active == 0 && asking.waiting.is_empty() {
                self.peers.remove(peer);
            }
            return Asked::Busy;
        }
        self.last += 1;
        let id = UploadId(self.last);
        self.owners.insert(id, peer.clone());
        if starts {
            asking.active += 1;
            self.active += 1;
            return Asked::Now(id);
        }
        if asking.waiting.is_empty() {
            self.turns.push_back(peer.clone());
        }
        asking.waiting.push_back(id);
        self.waiting += 1;
        Asked::Waits(id)
    }

    /// An upload goes on without a slot. Those whose turn has come are appended to `start`; nobody's has when this one has no slot, or too
    /// many have none.
    pub fn park(&mut self, id: UploadId, start: &mut Vec<UploadId>) {
        let peer = self.owners.get(&id).and_then(|owner| self.peers.get(owner));
        let is_active = peer.is_some_and(|peer| !peer.waiting.contains(&id));
        if is_active && self.parked.len() < MAX_DEMOTED_UPLOADS && self.parked.insert(id) {
            self.active -= 1;
            self.start(start);
        }
    }

    /// A request is over, whether it was served, is served or waits. Those whose turn has come are appended to `start`.
    pub fn end(&mut self, id: UploadId, start: &mut Vec<UploadId>) {
        let Some(owner) = self.owners.remove(&id) else { return };
        let Some(peer) = self.peers.get_mut(&owner) else { return };
        if let Some(index) = peer.waiting.iter().position(|&waiting| waiting == id) {
            peer.waiting.remove(index);
            self.waiting -= 1;
            if peer.waiting.is_empty() {
                self.turns.retain(|turn| *turn != owner);
            }
        } else {
            peer.active -= 1;
            if !self.parked.remove(&id) {
                self.active -= 1;
            }
        }
        if peer.active == 0 && peer.waiting.is_empty() {
            self.peers.remove(&owner);
        }
        self.start(start);
    }

    fn start(&mut self, start: &mut Vec<UploadId>) {
        while self.active < self.limits.active.max(1) {
            let per_peer = self.limits.active_per_peer.max(1);
            let next =
                self.turns.iter().position(|peer| self.peers.get(peer).is_some_and(|peer| peer.active < per_peer));
            let Some(turn) = next.and_then(|index| self.turns.remove(index)) else { return };
            let Some(peer) = self.peers.get_mut(&turn) else { return };
            let Some(id) = peer.waiting.pop_front() else { return };
            peer.active += 1;
            self.active += 1;
            self.waiting -= 1;
            if !peer.waiting.is_empty() {
                self.turns.push_back(turn);
            }
            start.push(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn slots(active: usize, active_per_peer: usize) -> UploadQueue<&'static str> {
        UploadQueue::new(UploadLimits { active, active_per_peer, ..UploadLimits::default() })
    }

    fn started<P: Ord + Clone>(slots: &mut UploadQueue<P>, ended: UploadId) -> Vec<UploadId> {
        let mut start = Vec::new();
        slots.end(ended, &mut start);
        start
    }

    #[test]
    fn a_greedy_peer_does_not_starve_a_modest_one() {
        let mut slots = slots(1, 1);
        let Asked::Now(first) = slots.ask(&"greedy") else { panic!("a slot is free") };
        let greedy: Vec<_> = (0..20).map(|_| slots.ask(&"greedy")).collect();
        let Asked::Waits(modest) = slots.ask(&"modest") else { panic!("it waits") };
        let Asked::Waits(second) = greedy[0] else { panic!("it waits") };
        assert_eq!(started(&mut slots, first), [second]);
        assert_eq!(started(&mut slots, second), [modest], "after one upload, not after twenty");
    }

    #[test]
    fn a_peer_has_its_share_of_slots_and_the_rest_stays_free_for_others() {
        let mut slots = slots(4, 1);
        let Asked::Now(first) = slots.ask(&"a") else { panic!("a slot is free") };
        let Asked::Waits(second) = slots.ask(&"a") else { panic!("one at a time") };
        assert!(matches!(slots.ask(&"b"), Asked::Now(_)));
        assert_eq!(slots.load(), (2, 1));
        assert_eq!(started(&mut slots, first), [second]);
    }

    #[test]
    fn an_upload_that_is_parked_makes_room_for_others_and_not_for_its_own_peer() {
        let mut slots = slots(1, 1);
        let Asked::Now(slow) = slots.ask(&"slow") else { panic!("a slot is free") };
        let Asked::Waits(more) = slots.ask(&"slow") else { panic!("one at a time") };
        let Asked::Waits(other) = slots.ask(&"other") else { panic!("it waits") };
        let mut start = Vec::new();
        slots.park(more, &mut start);
        assert_eq!(start, [], "it has no slot to give");
        slots.park(slow, &mut start);
        slots.park(slow, &mut start);
        assert_eq!((start.as_slice(), slots.load()), ([other].as_slice(), (1, 1)));
        assert_eq!(started(&mut slots, other), [], "a slot is free, but not for who is served already");
        assert_eq!(slots.load(), (0, 1));
        assert_eq!(started(&mut slots, slow), [more]);
        assert_eq!(slots.load(), (1, 0));
    }

    #[test]
    fn only_so_many_are_parked() {
        let mut slots = UploadQueue::new(UploadLimits { active: 1, ..UploadLimits::default() });
        let mut start = Vec::new();
        let Asked::Now(mut active) = slots.ask(&0) else { panic!("a slot is free") };
        for peer in 1..=MAX_DEMOTED_UPLOADS {
            slots.ask(&peer);
            slots.park(active, &mut start);
            active = start.pop().expect("the next one begins");
        }
        slots.ask(&usize::MAX);
        slots.park(active, &mut start);
        assert_eq!((start.as_slice(), slots.load()), ([].as_slice(), (1, 1)), "it keeps its slot");
    }

    #[test]
    fn who_leaves_while_waiting_is_not_served() {
        let mut slots = slots(1, 1);
        let Asked::Now(first) = slots.ask(&"a") else { panic!("a slot is free") };
        let Asked::Waits(gone) = slots.ask(&"b") else { panic!("it waits") };
        let Asked::Waits(next) = slots.ask(&"c") else { panic!("it waits") };
        assert_eq!(started(&mut slots, gone), []);
        assert_eq!(started(&mut slots, first), [next]);
        assert_eq!(started(&mut slots, first), [], "once is enough");
        assert_eq!(slots.load(), (1, 0));
    }

    #[test]
    fn too_many_waiting_are_sent_away() {
        let limits = UploadLimits { active: 1, active_per_peer: 1, waiting: 3, waiting_per_peer: 2 };
        let mut slots = UploadQueue::new(limits);
        assert!(matches!(slots.ask(&"a"), Asked::Now(_)));
        assert!(matches!(slots.ask(&"a"), Asked::Waits(_)));
        assert!(matches!(slots.ask(&"a"), Asked::Waits(_)));
        assert_eq!(slots.ask(&"a"), Asked::Busy);
        assert!(matches!(slots.ask(&"b"), Asked::Waits(_)));
        assert_eq!(slots.ask(&"c"), Asked::Busy);
        let mut start = Vec::new();
        slots.set_limits(UploadLimits { active: 2, ..limits }, &mut start);
        assert_eq!(start.len(), 1, "a slot more, and b is not at its limit");
    }

    proptest! {
        #[test]
        fn every_request_is_served_once_within_the_limits(
            active in 1usize..5, per_peer in 1usize..3,
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), 0u8..5), 1..200),
        ) {
            let mut slots = UploadQueue::new(UploadLimits { active, active_per_peer: per_peer, waiting: 20, waiting_per_peer: 8 });
            let mut peers = BTreeMap::new();
            let (mut serving, mut waiting, mut parked) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let end = |slots: &mut UploadQueue<u8>, id, serving: &mut BTreeSet<UploadId>, waiting: &mut BTreeSet<UploadId>| {
                let mut start = Vec::new();
                slots.end(id, &mut start);
                serving.remove(&id);
                waiting.remove(&id);
                for id in start {
                    assert!(waiting.remove(&id), "only what waits starts");
                    serving.insert(id);
                }
            };
            for (peer, which, does) in steps {
                if does < 2 {
                    match slots.ask(&peer) {
                        Asked::Now(id) => { peers.insert(id, peer); serving.insert(id); }
                        Asked::Waits(id) => { peers.insert(id, peer); waiting.insert(id); }
                        Asked::Busy => {}
                    }
                } else {
                    let all: Vec<_> = serving.iter().chain(&waiting).copied().collect();
                    if !all.is_empty() {
                        let id = *which.get(&all);
                        if does == 4 {
                            let mut start = Vec::new();
                            slots.park(id, &mut start);
                            if serving.contains(&id) && parked.len() < MAX_DEMOTED_UPLOADS {
                                parked.insert(id);
                            }
                            for id in start {
                                assert!(waiting.remove(&id), "only what waits starts");
                                serving.insert(id);
                            }
                        } else {
                            end(&mut slots, id, &mut serving, &mut waiting);
                            parked.remove(&id);
                        }
                    }
                }
                let active_now = serving.len() - parked.len();
                prop_assert_eq!(slots.load(), (active_now, waiting.len()));
                prop_assert!(active_now <= active);
                for peer in 0..4 {
                    let of_peer = |set: &BTreeSet<UploadId>| set.iter().filter(|id| peers[id] == peer).count();
                    prop_assert!(of_peer(&serving) <= per_peer);
                    prop_assert!(of_peer(&waiting) == 0 || of_peer(&serving) == per_peer || active_now == active, "no slot idles");
                }
            }
            while let Some(&id) = serving.first() {
                end(&mut slots, id, &mut serving, &mut waiting);
            }
            prop_assert!(waiting.is_empty());
            prop_assert!(slots.peers.is_empty() && slots.turns.is_empty() && slots.owners.is_empty() && slots.parked.is_empty());
        }
    }
}
