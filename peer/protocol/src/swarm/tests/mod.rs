//! What a shell notices of the scheduler. The simulation of whole swarms is `tests/swarm_sim`. Here is what the tests have in common.

use shared::limits::GROUP_BYTES;
use crate::swarm::params::MAX_RESERVED_TIME;
use crate::swarm::params::MAX_ACTIVE_PROVIDERS;
use crate::provider_health::MAX_PROVIDER_BACKOFF;
use crate::swarm::params::MAX_REQUEST_BYTES;
use crate::swarm::params::MAX_REQUESTS_PER_PROVIDER;
use crate::swarm::params::MIN_PIECE_BYTES;
use crate::provider_health::PROVIDER_BACKOFF;
use crate::provider_health::PROVIDER_SILENCE;

use super::*;

mod any_owners;
mod asking;
mod failing;
mod rebalance;
mod receivers;

const PIECE: u64 = MIN_PIECE_BYTES / GROUP_BYTES;
const MILLISECOND: Duration = Duration::from_millis(1);

/// A swarm and the shell's view of it: which requests are under way.
struct Bed {
    swarm: Swarm,
    now: Timestamp,
    under_way: BTreeMap<RequestId, Range<u64>>,
    dropped: Vec<(u32, Dropped)>,
    stuck: usize,
    finished: usize,
}

impl Bed {
    fn new(size: u64, have: &[Range<u64>], picker: PickerKind, seed: u64) -> Self {
        Self::with(SwarmConfig { size, have: set(have), picker, expects_receivers: false, seed })
    }

    fn with(config: SwarmConfig) -> Self {
        Self {
            swarm: Swarm::new(config, Timestamp::ZERO),
            now: Timestamp::ZERO,
            under_way: BTreeMap::new(),
            dropped: Vec::new(),
            stuck: 0,
            finished: 0,
        }
    }

    fn rarest(size: u64) -> Self {
        Self::new(size, &[], PickerKind::RarestFirst, 1)
    }

    /// Carries out what the swarm wants; returns the new requests.
    fn tell(&mut self, event: Event) -> Vec<(RequestId, Range<u64>)> {
        if let Event::ProviderLost { owner } = &event {
            self.under_way.retain(|request, _| request.owner != *owner);
        }
        let mut out = Vec::new();
        self.swarm.handle(self.now, event, &mut out);
        let mut requests = Vec::new();
        for action in out {
            match action {
                Action::Request { request, groups } => {
                    assert!(!groups.is_empty());
                    assert!(!self.dropped.iter().any(|(owner, _)| *owner == request.owner.0), "{request:?}, dropped");
                    assert!(self.under_way.insert(request, groups.clone()).is_none(), "a new name for a new request");
                    requests.push((request, groups));
                }
                Action::Truncate { request, at_group } => {
                    let groups = self.under_way.get_mut(&request).expect("only what is under way is cut");
                    assert!(groups.start < at_group && at_group < groups.end, "{groups:?} at {at_group}");
                    groups.end = at_group;
                }
                Action::Cancel { request } => {
                    assert!(self.under_way.remove(&request).is_some(), "only what is under way is cancelled");
                }
                Action::Drop { owner, why } => self.dropped.push((owner.0, why)),
                Action::Stuck => self.stuck += 1,
                Action::Finished => self.finished += 1,
            }
        }
        self.check();
        requests
    }

    /// What holds after every event.
    fn check(&self) {
        let mut of_piece: BTreeMap<u64, Vec<ProviderId>> = BTreeMap::new();
        let mut of_owner: BTreeMap<ProviderId, usize> = BTreeMap::new();
        for (request, groups) in &self.under_way {
            *of_owner.entry(request.owner).or_default() += 1;
            for piece in self.swarm.layout.pieces_of(groups) {
                of_piece.entry(piece.into()).or_default().push(request.owner);
            }
        }
        for (piece, owners) in of_piece {
            assert!(owners.len() <= 2, "piece {piece} is asked of {owners:?}");
            assert!(owners.len() < 2 || owners[0] != owners[1], "piece {piece} is asked of {owners:?}");
        }
        assert!(of_owner.len() <= MAX_ACTIVE_PROVIDERS, "{of_owner:?}");
        assert!(of_owner.values().all(|requests| *requests <= MAX_REQUESTS_PER_PROVIDER), "{of_owner:?}");
        let due = self.swarm.next_deadline();
        // Silence is counted beyond a round trip, a wait is jittered.
        let latest = self.now + 2 * (MAX_PROVIDER_BACKOFF + PROVIDER_SILENCE);
        assert!(due.is_none_or(|due| due <= latest), "due {due:?} at {:?}", self.now);
        assert!(self.under_way.is_empty() || due.is_some(), "nobody would notice silence");
    }

    fn add(&mut self, owner: u32, has: Has) -> Vec<(RequestId, Range<u64>)> {
        self.dropped.retain(|(dropped, why)| *dropped != owner || *why == Dropped::Lied);
        self.tell(Event::ProviderAdded { owner: ProviderId(owner), has, rtt: Some(10 * MILLISECOND) })
    }

    fn gain(&mut self, owner: u32, groups: Range<u64>) -> Vec<(RequestId, Range<u64>)> {
        self.tell(Event::ProviderGained { owner: ProviderId(owner), gained: set(&[groups]) })
    }

    /// The next `count` groups of a request are proven, `after` from now.
    fn bring(&mut self, request: RequestId, count: u64, after: Duration) -> Vec<(RequestId, Range<u64>)> {
        self.now += after;
        let groups = self.under_way.get_mut(&request).expect("under way");
        let brought = groups.start..(groups.start + count).min(groups.end);
        groups.start = brought.end;
        if groups.is_empty() {
            self.under_way.remove(&request);
        }
        self.tell(Event::Verified { request, groups: brought })
    }

    fn fail(&mut self, request: RequestId, why: Failure) -> Vec<(RequestId, Range<u64>)> {
        self.under_way.remove(&request);
        self.tell(Event::RequestFailed { request, why })
    }

    /// Lets time pass, with the ticks that are due.
    fn wait(&mut self, time: Duration) -> Vec<(RequestId, Range<u64>)> {
        let until = self.now + time;
        let mut requests = Vec::new();
        while let Some(due) = self.swarm.next_deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            requests.extend(self.tell(Event::Tick));
        }
        self.now = until;
        requests
    }

    /// The requests to `owner` that are under way, in order.
    fn of(&self, owner: u32) -> Vec<(RequestId, Range<u64>)> {
        let of = self.under_way.iter().filter(|(request, _)| request.owner.0 == owner);
        of.map(|(&request, groups)| (request, groups.clone())).collect()
    }

    /// The first request of `owner` that is under way brings a group each `pace`, for `count` groups.
    fn flow(&mut self, owner: u32, count: u64, pace: Duration) {
        for _ in 0..count {
            let Some((request, _)) = self.of(owner).first().cloned() else { return };
            self.bring(request, 1, pace);
        }
    }

    fn standing(&self) -> Standing {
        self.swarm.progress().standing
    }
}

fn set(runs: &[Range<u64>]) -> GroupRanges {
    let mut set = GroupRanges::default();
    runs.iter().cloned().for_each(|run| set.insert(run));
    set
}

fn one(run: Range<u64>) -> GroupRanges {
    set(std::slice::from_ref(&run))
}

fn pieces(range: Range<u64>) -> Range<u64> {
    range.start * PIECE..range.end * PIECE
}
