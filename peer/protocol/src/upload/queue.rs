//! Order in which upload requests are served.
//!
//! Free slots go to the waiting peers in turn, one upload each, so that a peer with a hundred requests gets no more
//! than a peer with a single one. A request is in one state:
//!
//! | state | next state |
//! |---|---|
//! | waiting | active: a slot is free, its peer is below its limit and next in turn; ended: its stream was closed |
//! | active | ended: sent, or its stream was closed; demoted: its receiver is slow while others wait |
//! | demoted | ended: likewise |
//!
//! A demoted upload occupies no slot, but counts for its peer's limit: until it ends, that peer gets no other upload.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::params::{
    MAX_DEMOTED_UPLOADS, MAX_UPLOADS, MAX_UPLOADS_PER_PEER, MAX_WAITING_UPLOADS, MAX_WAITING_UPLOADS_PER_PEER,
};

/// Id of a request for an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(u64);

/// Limits of an [`UploadQueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadLimits {
    /// Maximum number of active uploads; 0 counts as 1. Default [`MAX_UPLOADS`]; `--max-uploads`.
    pub active: usize,
    /// Maximum number of active and demoted uploads to one peer; 0 counts as 1. Default [`MAX_UPLOADS_PER_PEER`].
    pub active_per_peer: usize,
    /// Maximum number of waiting requests. Default [`MAX_WAITING_UPLOADS`].
    pub waiting: usize,
    /// Maximum number of waiting requests of one peer. Default [`MAX_WAITING_UPLOADS_PER_PEER`].
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

/// Result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The upload starts now.
    Active(UploadId),
    /// The request waits until [`UploadQueue::end`] or [`UploadQueue::demote`] starts it.
    Waiting(UploadId),
    /// Too many requests wait. The peer should retry later.
    Busy,
}

/// Upload slots of this peer and the requests that wait for one. `P` identifies the requesting peer.
#[derive(Debug)]
pub struct UploadQueue<P> {
    limits: UploadLimits,
    last: u64,
    peers: BTreeMap<P, Peer>,
    /// Peers with waiting requests, the next one first.
    turns: VecDeque<P>,
    requesters: BTreeMap<UploadId, P>,
    demoted: BTreeSet<UploadId>,
    active: usize,
    waiting: usize,
}

#[derive(Debug, Default)]
struct Peer {
    /// Number of uploads, including demoted ones.
    active: usize,
    waiting: VecDeque<UploadId>,
}

impl<P: Ord + Clone> UploadQueue<P> {
    /// A queue with all slots free.
    pub fn new(limits: UploadLimits) -> Self {
        Self {
            limits,
            last: 0,
            peers: BTreeMap::new(),
            turns: VecDeque::new(),
            requesters: BTreeMap::new(),
            demoted: BTreeSet::new(),
            active: 0,
            waiting: 0,
        }
    }

    /// Number of active uploads, without demoted ones, and of waiting requests.
    pub fn load(&self) -> (usize, usize) {
        (self.active, self.waiting)
    }

    /// Requests an upload to `peer`. The caller ends every request that is not refused with [`UploadQueue::end`].
    pub fn request(&mut self, peer: &P) -> Admission {
        let requester = self.peers.entry(peer.clone()).or_default();
        let is_below_limit = requester.waiting.is_empty() && requester.active < self.limits.active_per_peer.max(1);
        let starts = is_below_limit && self.active < self.limits.active.max(1);
        let is_full = self.waiting >= self.limits.waiting || requester.waiting.len() >= self.limits.waiting_per_peer;
        if !starts && is_full {
            if requester.active == 0 && requester.waiting.is_empty() {
                self.peers.remove(peer);
            }
            return Admission::Busy;
        }
        self.last += 1;
        let id = UploadId(self.last);
        self.requesters.insert(id, peer.clone());
        if starts {
            requester.active += 1;
            self.active += 1;
            return Admission::Active(id);
        }
        if requester.waiting.is_empty() {
            self.turns.push_back(peer.clone());
        }
        requester.waiting.push_back(id);
        self.waiting += 1;
        Admission::Waiting(id)
    }

    /// Frees the slot of an active upload, which continues without one. Appends the uploads that start to `start`.
    ///
    /// A no-op for a request without a slot, and while [`MAX_DEMOTED_UPLOADS`] are demoted.
    pub fn demote(&mut self, id: UploadId, start: &mut Vec<UploadId>) {
        let peer = self.requesters.get(&id).and_then(|requester| self.peers.get(requester));
        let is_active = peer.is_some_and(|peer| !peer.waiting.contains(&id));
        if is_active && self.demoted.len() < MAX_DEMOTED_UPLOADS && self.demoted.insert(id) {
            self.active -= 1;
            self.start(start);
        }
    }

    /// Ends a request in any state. Appends the uploads that start to `start`.
    pub fn end(&mut self, id: UploadId, start: &mut Vec<UploadId>) {
        let Some(requester) = self.requesters.remove(&id) else { return };
        let Some(peer) = self.peers.get_mut(&requester) else { return };
        if let Some(index) = peer.waiting.iter().position(|&waiting| waiting == id) {
            peer.waiting.remove(index);
            self.waiting -= 1;
            if peer.waiting.is_empty() {
                self.turns.retain(|turn| *turn != requester);
            }
        } else {
            peer.active -= 1;
            if !self.demoted.remove(&id) {
                self.active -= 1;
            }
        }
        if peer.active == 0 && peer.waiting.is_empty() {
            self.peers.remove(&requester);
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

    fn queue(active: usize, active_per_peer: usize) -> UploadQueue<&'static str> {
        UploadQueue::new(UploadLimits { active, active_per_peer, ..UploadLimits::default() })
    }

    fn started<P: Ord + Clone>(queue: &mut UploadQueue<P>, ended: UploadId) -> Vec<UploadId> {
        let mut start = Vec::new();
        queue.end(ended, &mut start);
        start
    }

    #[test]
    fn peer_with_many_requests_gets_one_turn_at_a_time() {
        let mut queue = queue(1, 1);
        let Admission::Active(first) = queue.request(&"greedy") else { panic!("a slot is free") };
        let greedy: Vec<_> = (0..20).map(|_| queue.request(&"greedy")).collect();
        let Admission::Waiting(modest) = queue.request(&"modest") else { panic!("it waits") };
        let Admission::Waiting(second) = greedy[0] else { panic!("it waits") };
        assert_eq!(started(&mut queue, first), [second]);
        assert_eq!(started(&mut queue, second), [modest], "after one upload, not after twenty");
    }

    #[test]
    fn peer_at_its_limit_waits_while_slots_are_free_for_others() {
        let mut queue = queue(4, 1);
        let Admission::Active(first) = queue.request(&"a") else { panic!("a slot is free") };
        let Admission::Waiting(second) = queue.request(&"a") else { panic!("one at a time") };
        assert!(matches!(queue.request(&"b"), Admission::Active(_)));
        assert_eq!(queue.load(), (2, 1));
        assert_eq!(started(&mut queue, first), [second]);
    }

    #[test]
    fn demoted_upload_frees_its_slot_for_other_peers_only() {
        let mut queue = queue(1, 1);
        let Admission::Active(slow) = queue.request(&"slow") else { panic!("a slot is free") };
        let Admission::Waiting(more) = queue.request(&"slow") else { panic!("one at a time") };
        let Admission::Waiting(other) = queue.request(&"other") else { panic!("it waits") };
        let mut start = Vec::new();
        queue.demote(more, &mut start);
        assert_eq!(start, [], "a waiting request has no slot");
        queue.demote(slow, &mut start);
        queue.demote(slow, &mut start);
        assert_eq!((start.as_slice(), queue.load()), ([other].as_slice(), (1, 1)));
        assert_eq!(started(&mut queue, other), [], "the peer of the demoted upload does not get the free slot");
        assert_eq!(queue.load(), (0, 1));
        assert_eq!(started(&mut queue, slow), [more]);
        assert_eq!(queue.load(), (1, 0));
    }

    #[test]
    fn upload_over_the_demotion_limit_keeps_its_slot() {
        let mut queue = UploadQueue::new(UploadLimits { active: 1, ..UploadLimits::default() });
        let mut start = Vec::new();
        let Admission::Active(mut active) = queue.request(&0) else { panic!("a slot is free") };
        for peer in 1..=MAX_DEMOTED_UPLOADS {
            queue.request(&peer);
            queue.demote(active, &mut start);
            active = start.pop().expect("the next one starts");
        }
        queue.request(&usize::MAX);
        queue.demote(active, &mut start);
        assert_eq!((start.as_slice(), queue.load()), ([].as_slice(), (1, 1)), "it keeps its slot");
    }

    #[test]
    fn request_that_ends_while_waiting_is_never_started() {
        let mut queue = queue(1, 1);
        let Admission::Active(first) = queue.request(&"a") else { panic!("a slot is free") };
        let Admission::Waiting(gone) = queue.request(&"b") else { panic!("it waits") };
        let Admission::Waiting(next) = queue.request(&"c") else { panic!("it waits") };
        assert_eq!(started(&mut queue, gone), []);
        assert_eq!(started(&mut queue, first), [next]);
        assert_eq!(started(&mut queue, first), [], "ending a request twice starts nothing");
        assert_eq!(queue.load(), (1, 0));
    }

    #[test]
    fn requests_over_the_waiting_limits_are_refused_as_busy() {
        let limits = UploadLimits { active: 1, active_per_peer: 1, waiting: 3, waiting_per_peer: 2 };
        let mut queue = UploadQueue::new(limits);
        assert!(matches!(queue.request(&"a"), Admission::Active(_)));
        assert!(matches!(queue.request(&"a"), Admission::Waiting(_)));
        assert!(matches!(queue.request(&"a"), Admission::Waiting(_)));
        assert_eq!(queue.request(&"a"), Admission::Busy);
        assert!(matches!(queue.request(&"b"), Admission::Waiting(_)));
        assert_eq!(queue.request(&"c"), Admission::Busy);
    }

    proptest! {
        #[test]
        fn every_request_starts_once_within_the_limits(
            active in 1usize..5, per_peer in 1usize..3,
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), 0u8..5), 1..200),
        ) {
            let limits =
                UploadLimits { active, active_per_peer: per_peer, waiting: 20, waiting_per_peer: 8 };
            let mut queue = UploadQueue::new(limits);
            let mut peers = BTreeMap::new();
            let (mut serving, mut waiting, mut demoted) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            type Ids = BTreeSet<UploadId>;
            let end = |queue: &mut UploadQueue<u8>, id, serving: &mut Ids, waiting: &mut Ids| {
                let mut start = Vec::new();
                queue.end(id, &mut start);
                serving.remove(&id);
                waiting.remove(&id);
                for id in start {
                    assert!(waiting.remove(&id), "only waiting requests start");
                    serving.insert(id);
                }
            };
            for (peer, which, does) in steps {
                if does < 2 {
                    match queue.request(&peer) {
                        Admission::Active(id) => { peers.insert(id, peer); serving.insert(id); }
                        Admission::Waiting(id) => { peers.insert(id, peer); waiting.insert(id); }
                        Admission::Busy => {}
                    }
                } else {
                    let all: Vec<_> = serving.iter().chain(&waiting).copied().collect();
                    if !all.is_empty() {
                        let id = *which.get(&all);
                        if does == 4 {
                            let mut start = Vec::new();
                            queue.demote(id, &mut start);
                            if serving.contains(&id) && demoted.len() < MAX_DEMOTED_UPLOADS {
                                demoted.insert(id);
                            }
                            for id in start {
                                assert!(waiting.remove(&id), "only waiting requests start");
                                serving.insert(id);
                            }
                        } else {
                            end(&mut queue, id, &mut serving, &mut waiting);
                            demoted.remove(&id);
                        }
                    }
                }
                let active_now = serving.len() - demoted.len();
                prop_assert_eq!(queue.load(), (active_now, waiting.len()));
                prop_assert!(active_now <= active);
                for peer in 0..4 {
                    let of_peer = |set: &BTreeSet<UploadId>| set.iter().filter(|id| peers[id] == peer).count();
                    prop_assert!(of_peer(&serving) <= per_peer);
                    prop_assert!(
                        of_peer(&waiting) == 0 || of_peer(&serving) == per_peer || active_now == active,
                        "no slot stays free while a request could use it"
                    );
                }
            }
            while let Some(&id) = serving.first() {
                end(&mut queue, id, &mut serving, &mut waiting);
            }
            prop_assert!(waiting.is_empty());
            prop_assert!(queue.peers.is_empty() && queue.turns.is_empty());
            prop_assert!(queue.requesters.is_empty() && queue.demoted.is_empty());
        }
    }
}
