//! Behaviour of the scheduler as its shell observes it, and the harness of the tests. `tests/swarm_sim` simulates whole
//! swarms.

use std::ops::Range;

use shared::limits::GROUP_BYTES;

use super::{
    params::{
        MAX_ACTIVE_PROVIDERS, MAX_REQUEST_BYTES, MAX_REQUESTS_PER_PROVIDER, MAX_RESERVED_TIME, MAX_SWARM_PROVIDERS,
        MIN_PIECE_BYTES,
    },
    *,
};
use crate::provider_health::{MAX_PROVIDER_BACKOFF, PROVIDER_BACKOFF, PROVIDER_SILENCE};

mod any_providers;
mod failing;
mod rebalance;
mod receivers;
mod requests;

const PIECE: u64 = MIN_PIECE_BYTES / GROUP_BYTES;
const MILLISECOND: Duration = Duration::from_millis(1);

/// A swarm and a shell that tracks the requests in flight.
struct Harness {
    swarm: Swarm,
    now: Timestamp,
    in_flight: BTreeMap<RequestId, Range<u64>>,
    proven: BTreeSet<u64>,
    /// Bytes that arrived although they were verified before.
    bytes_duplicated: u64,
    dropped: Vec<(u32, Dropped)>,
    stuck: usize,
    finished: usize,
}

impl Harness {
    fn new(size: u64) -> Self {
        Self::resumed(size, &[], 1)
    }

    /// A download of which the groups `have` are verified already.
    fn resumed(size: u64, have: &[Range<u64>], seed: u64) -> Self {
        Self::with(SwarmConfig { size, have: set(have), expects_receivers: false, seed })
    }

    fn with(config: SwarmConfig) -> Self {
        Self {
            proven: config.have.iter().flatten().collect(),
            swarm: Swarm::new(config, Timestamp::ZERO),
            now: Timestamp::ZERO,
            in_flight: BTreeMap::new(),
            bytes_duplicated: 0,
            dropped: Vec::new(),
            stuck: 0,
            finished: 0,
        }
    }

    /// Passes an event to the swarm and carries out its actions; returns the new requests.
    fn handle(&mut self, event: Event) -> Vec<(RequestId, Range<u64>)> {
        if let Event::ProviderLost { provider } = &event {
            self.in_flight.retain(|request, _| request.provider != *provider);
        }
        let mut out = Vec::new();
        self.swarm.handle(self.now, event, &mut out);
        self.carry_out(out)
    }

    /// Adds a provider that gets no request before the next event.
    fn introduce(&mut self, provider: u32, has: &Has) {
        self.clear_drop(provider);
        let mut out = Vec::new();
        self.swarm.introduce(self.now, ProviderId(provider), has, Some(10 * MILLISECOND), &mut out);
        assert_eq!(self.carry_out(out), []);
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> Vec<(RequestId, Range<u64>)> {
        let mut requests = Vec::new();
        for action in actions {
            match action {
                Action::Request { request, groups } => {
                    assert!(!groups.is_empty());
                    assert!(
                        !self.dropped.iter().any(|(provider, _)| *provider == request.provider.0),
                        "{request:?}, dropped"
                    );
                    assert!(self.in_flight.insert(request, groups.clone()).is_none(), "request ids are unique");
                    requests.push((request, groups));
                }
                Action::Truncate { request, at_group } => {
                    let groups = self.in_flight.get_mut(&request).expect("only requests in flight are truncated");
                    assert!(groups.start < at_group && at_group < groups.end, "{groups:?} at {at_group}");
                    groups.end = at_group;
                }
                Action::Cancel { request } => {
                    assert!(self.in_flight.remove(&request).is_some(), "only requests in flight are cancelled");
                }
                Action::Drop { provider, why } => self.dropped.push((provider.0, why)),
                Action::Stuck => self.stuck += 1,
                Action::Finished => self.finished += 1,
            }
        }
        self.check();
        requests
    }

    /// Asserts the invariants that hold after every event.
    fn check(&self) {
        let mut of_piece: BTreeMap<u64, Vec<ProviderId>> = BTreeMap::new();
        let mut of_provider: BTreeMap<ProviderId, usize> = BTreeMap::new();
        for (request, groups) in &self.in_flight {
            *of_provider.entry(request.provider).or_default() += 1;
            for piece in self.swarm.layout.pieces_of(groups) {
                of_piece.entry(piece.into()).or_default().push(request.provider);
            }
        }
        for (piece, providers) in of_piece {
            assert!(providers.len() <= 2, "piece {piece} is requested from {providers:?}");
            assert!(
                providers.len() < 2 || providers[0] != providers[1],
                "piece {piece} is requested from {providers:?}"
            );
        }
        assert!(of_provider.len() <= MAX_ACTIVE_PROVIDERS, "{of_provider:?}");
        assert!(of_provider.values().all(|requests| *requests <= MAX_REQUESTS_PER_PROVIDER), "{of_provider:?}");
        let due = self.swarm.next_deadline();
        // Silence counts beyond a round trip, and waits are jittered.
        let latest = self.now + 2 * (MAX_PROVIDER_BACKOFF + PROVIDER_SILENCE);
        assert!(due.is_none_or(|due| due <= latest), "due {due:?} at {:?}", self.now);
        assert!(self.in_flight.is_empty() || due.is_some(), "no deadline would detect silence");
    }

    /// Allows requests to a dropped provider that joins again.
    fn clear_drop(&mut self, provider: u32) {
        self.dropped.retain(|(dropped, why)| *dropped != provider || *why == Dropped::SentCorruptData);
    }

    fn add(&mut self, provider: u32, has: Has) -> Vec<(RequestId, Range<u64>)> {
        self.clear_drop(provider);
        self.handle(Event::ProviderAdded { provider: ProviderId(provider), has, rtt: Some(10 * MILLISECOND) })
    }

    fn gain(&mut self, provider: u32, groups: Range<u64>) -> Vec<(RequestId, Range<u64>)> {
        self.handle(Event::ProviderGained { provider: ProviderId(provider), gained: set(&[groups]) })
    }

    /// Verifies the next `count` groups of a request, `after` from now.
    fn deliver(&mut self, request: RequestId, count: u64, after: Duration) -> Vec<(RequestId, Range<u64>)> {
        self.now += after;
        let groups = self.in_flight.get_mut(&request).expect("the request is in flight");
        let delivered = groups.start..(groups.start + count).min(groups.end);
        groups.start = delivered.end;
        if groups.is_empty() {
            self.in_flight.remove(&request);
        }
        for group in delivered.clone() {
            let is_new = self.proven.insert(group);
            self.bytes_duplicated += if is_new { 0 } else { self.swarm.layout.bytes(&(group..group + 1)) };
        }
        self.handle(Event::Verified { request, groups: delivered })
    }

    fn fail(&mut self, request: RequestId, why: Failure) -> Vec<(RequestId, Range<u64>)> {
        self.in_flight.remove(&request);
        self.handle(Event::RequestFailed { request, why })
    }

    /// Advances the time, with the ticks that are due.
    fn advance(&mut self, time: Duration) -> Vec<(RequestId, Range<u64>)> {
        let until = self.now + time;
        let mut requests = Vec::new();
        while let Some(due) = self.swarm.next_deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            requests.extend(self.handle(Event::Tick));
        }
        self.now = until;
        requests
    }

    /// Requests in flight to `provider`, in order.
    fn requests_to(&self, provider: u32) -> Vec<(RequestId, Range<u64>)> {
        let requests = self.in_flight.iter().filter(|(request, _)| request.provider.0 == provider);
        requests.map(|(&request, groups)| (request, groups.clone())).collect()
    }

    /// Delivers `count` groups of the first request in flight to `provider`, one per `interval`.
    fn stream(&mut self, provider: u32, count: u64, interval: Duration) {
        for _ in 0..count {
            let Some((request, _)) = self.requests_to(provider).first().cloned() else { return };
            self.deliver(request, 1, interval);
        }
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
