//! Download scheduler: under arbitrary sequences of events it never panics, sends only permitted requests, always sets
//! a finite deadline, and completes once one honest provider has the whole content.

#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use protocol::{
    provider_health::{MAX_PROVIDER_BACKOFF, PROVIDER_SILENCE},
    swarm::{
        Action, Dropped, Event, Failure, Has, ProviderId, RequestId, Swarm, SwarmConfig,
        params::{MAX_ACTIVE_PROVIDERS, MAX_REQUEST_BYTES, MAX_REQUESTS_PER_PROVIDER, MIN_PIECE_BYTES},
    },
};
use shared::{
    group_ranges::{GroupRanges, group_count},
    limits::GROUP_BYTES,
    time::Timestamp,
};

/// Groups of a piece of the minimum size.
const PIECE: u64 = MIN_PIECE_BYTES / GROUP_BYTES;
const PROVIDERS: u8 = 20;
const MILLISECOND: Duration = Duration::from_millis(1);

#[derive(Debug, Arbitrary)]
struct Input {
    size: u32,
    have: Vec<(u16, u8)>,
    expects_receivers: bool,
    seed: u64,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Add {
        provider: u8,
        has: Option<Vec<(u16, u8)>>,
        rtt_millis: Option<u16>,
    },
    /// A provider that gets no request before the next event.
    Introduce {
        provider: u8,
        has: Option<Vec<(u16, u8)>>,
    },
    Gain {
        provider: u8,
        run: (u16, u8),
    },
    Lose {
        provider: u8,
    },
    /// Arbitrary values, valid or not.
    Rank {
        rank: u8,
        receivers: u8,
    },
    Activity {
        provider: u8,
        rtt_millis: Option<u16>,
    },
    /// The first bytes of a request in flight.
    Begin {
        which: u8,
    },
    /// The first bytes of a cancelled request.
    BeginLate {
        which: u8,
    },
    /// The next groups of a request in flight.
    Deliver {
        which: u8,
        count: u8,
    },
    /// The next groups of a cancelled request.
    DeliverLate {
        which: u8,
        count: u8,
    },
    /// Groups of a request that the scheduler never sent.
    Invent {
        provider: u8,
        serial: u8,
        run: (u16, u8),
    },
    Done {
        which: u8,
    },
    Fail {
        which: u8,
        why: u8,
        retry_millis: Option<u16>,
    },
    FailLate {
        which: u8,
        why: u8,
    },
    Advance {
        millis: u16,
    },
    Tick,
}

/// Scheduler under test with a model of its state.
struct Model {
    swarm: Swarm,
    /// Size of the content, bytes.
    size: u64,
    /// Number of groups of the content.
    groups: u64,
    now: Timestamp,
    /// Requests in flight, with the groups that are still missing.
    in_flight: BTreeMap<RequestId, Range<u64>>,
    /// Ended requests, with the groups that were missing.
    ended: Vec<(RequestId, Range<u64>)>,
    /// Groups of each provider.
    has: BTreeMap<ProviderId, BTreeSet<u64>>,
    /// Providers that sent corrupt data.
    corrupt: BTreeSet<ProviderId>,
    /// Verified groups.
    proven: BTreeSet<u64>,
    last_serial: BTreeMap<ProviderId, u64>,
    stuck: bool,
    finished: bool,
}

fuzz_target!(|input: Input| {
    let size = u64::from(input.size) % (40 * MIN_PIECE_BYTES);
    let groups = group_count(size);
    let have = set(input.have.iter().map(|&run| range(run, groups)));
    let proven = have.iter().flatten().collect();
    let config = SwarmConfig { size, have, expects_receivers: input.expects_receivers, seed: input.seed };
    let mut model = Model {
        swarm: Swarm::new(config, Timestamp::ZERO),
        size,
        groups,
        now: Timestamp::ZERO,
        in_flight: BTreeMap::new(),
        ended: Vec::new(),
        has: BTreeMap::new(),
        corrupt: BTreeSet::new(),
        proven,
        last_serial: BTreeMap::new(),
        stuck: false,
        finished: false,
    };
    for step in input.steps.into_iter().take(300) {
        model.step(step);
    }
    model.complete();
});

fn range((start, length): (u16, u8), groups: u64) -> Range<u64> {
    let start = u64::from(start) % groups;
    start..(start + u64::from(length)).min(groups)
}

fn set(runs: impl Iterator<Item = Range<u64>>) -> GroupRanges {
    let mut set = GroupRanges::default();
    runs.for_each(|run| set.insert(run));
    set
}

fn why(number: u8, retry_millis: Option<u16>) -> Failure {
    match number % 7 {
        0 => Failure::SentCorruptData,
        1 => Failure::Changed,
        2 => Failure::NotHere,
        3 => Failure::Refused,
        4 => Failure::Busy { retry_after: retry_millis.map(|millis| Duration::from_millis(millis.into())) },
        5 => Failure::Silent,
        _ => Failure::Broken,
    }
}

fn millis(number: u16) -> Duration {
    Duration::from_millis(u64::from(number) % 2000)
}

impl Model {
    fn step(&mut self, step: Step) {
        let id = |provider: u8| ProviderId(u32::from(provider % PROVIDERS));
        match step {
            Step::Add { provider, has, rtt_millis } => {
                let has = self.groups_of(has);
                self.learn(id(provider), &has);
                self.handle(Event::ProviderAdded { provider: id(provider), has, rtt: rtt_millis.map(millis) });
            }
            Step::Introduce { provider, has } => {
                let has = self.groups_of(has);
                self.learn(id(provider), &has);
                let mut out = Vec::new();
                self.swarm.introduce(self.now, id(provider), &has, None, &mut out);
                assert!(!out.iter().any(|action| matches!(action, Action::Request { .. })), "{out:?}");
                self.carry_out(out);
            }
            Step::Gain { provider, run } => {
                let gained = range(run, self.groups);
                if let Some(has) = self.has.get_mut(&id(provider)) {
                    has.extend(gained.clone());
                }
                self.handle(Event::ProviderGained { provider: id(provider), gained: set([gained].into_iter()) });
            }
            Step::Lose { provider } => {
                self.forget(id(provider));
                self.handle(Event::ProviderLost { provider: id(provider) });
            }
            Step::Activity { provider, rtt_millis } => {
                self.handle(Event::Activity { provider: id(provider), rtt: rtt_millis.map(millis) });
            }
            Step::Begin { which } => {
                if let Some(request) = self.pick(which) {
                    self.handle(Event::RequestStarted { request });
                }
            }
            Step::BeginLate { which } => {
                if let Some(&(request, _)) = self.ended.get(usize::from(which) % self.ended.len().max(1)) {
                    self.handle(Event::RequestStarted { request });
                }
            }
            Step::Deliver { which, count } => self.deliver(which, count.into()),
            Step::DeliverLate { which, count } => self.deliver_late(which, count.into()),
            Step::Invent { provider, serial, run } => self.invent(id(provider), serial, run),
            Step::Done { which } => {
                if let Some(request) = self.pick(which) {
                    self.end(request);
                    self.handle(Event::RequestDone { request });
                }
            }
            Step::Fail { which, why: number, retry_millis } => {
                if let Some(request) = self.pick(which) {
                    self.fail(request, why(number, retry_millis));
                }
            }
            Step::FailLate { which, why: number } => {
                if let Some((request, _)) = self.ended.get(usize::from(which) % self.ended.len().max(1)).cloned() {
                    self.fail(request, why(number, None));
                }
            }
            Step::Rank { rank, receivers } => {
                self.handle(Event::Ranked { rank: rank.into(), receivers: receivers.into() });
            }
            Step::Advance { millis } => self.advance(Duration::from_millis(millis.into())),
            Step::Tick => self.handle(Event::Tick),
        }
    }

    fn pick(&self, which: u8) -> Option<RequestId> {
        self.in_flight.keys().nth(usize::from(which) % self.in_flight.len().max(1)).copied()
    }

    fn groups_of(&self, runs: Option<Vec<(u16, u8)>>) -> Has {
        match runs {
            None => Has::All,
            Some(runs) => Has::Groups(set(runs.into_iter().map(|run| range(run, self.groups)))),
        }
    }

    /// Records what a provider that joins has.
    fn learn(&mut self, provider: ProviderId, has: &Has) {
        if self.corrupt.contains(&provider) || self.finished {
            return;
        }
        let known = self.has.entry(provider).or_default();
        match has {
            Has::All => known.extend(0..self.groups),
            Has::Groups(groups) => known.extend(groups.iter().flatten()),
        }
    }

    fn deliver(&mut self, which: u8, count: u64) {
        self.now += MILLISECOND;
        let Some(request) = self.pick(which) else { return };
        let left = self.in_flight.get_mut(&request).expect("`pick` returns a request in flight");
        let delivered = left.start..(left.start + count.max(1)).min(left.end);
        left.start = delivered.end;
        if left.is_empty() {
            self.in_flight.remove(&request);
        }
        self.proven.extend(delivered.clone());
        self.handle(Event::Verified { request, groups: delivered });
    }

    fn deliver_late(&mut self, which: u8, count: u64) {
        let at = usize::from(which) % self.ended.len().max(1);
        let Some((request, left)) = self.ended.get_mut(at) else { return };
        let (request, delivered) = (*request, left.start..(left.start + count).min(left.end));
        left.start = delivered.end;
        self.proven.extend(delivered.clone());
        self.handle(Event::Verified { request, groups: delivered });
    }

    /// Reports groups of a request that the scheduler never sent.
    fn invent(&mut self, provider: ProviderId, serial: u8, run: (u16, u8)) {
        let request = RequestId { provider, serial: u64::from(serial) + (1 << 40) };
        let groups = range(run, self.groups);
        self.handle(Event::RequestStarted { request });
        self.proven.extend(groups.clone());
        self.handle(Event::Verified { request, groups });
        // Groups beyond the end prove nothing.
        self.handle(Event::Verified { request, groups: self.groups..self.groups + 1 });
        self.handle(Event::RequestFailed { request, why: Failure::Broken });
    }

    fn fail(&mut self, request: RequestId, why: Failure) {
        if why == Failure::SentCorruptData {
            self.corrupt.insert(request.provider);
        }
        self.end(request);
        self.handle(Event::RequestFailed { request, why });
    }

    fn end(&mut self, request: RequestId) {
        if let Some(left) = self.in_flight.remove(&request) {
            self.ended.push((request, left));
        }
    }

    /// Removes a provider and its requests.
    fn forget(&mut self, provider: ProviderId) {
        self.has.remove(&provider);
        let lost: Vec<_> = self.in_flight.keys().filter(|request| request.provider == provider).copied().collect();
        lost.into_iter().for_each(|request| self.end(request));
    }

    fn advance(&mut self, time: Duration) {
        let until = self.now + time;
        let mut ticks = 0;
        while let Some(due) = self.swarm.next_deadline().filter(|due| *due <= until) {
            ticks += 1;
            assert!(ticks < 20_000, "the scheduler ticks without end: due {due:?}, now {:?}", self.now);
            self.now = self.now.max(due);
            self.handle(Event::Tick);
        }
        self.now = until;
    }

    fn handle(&mut self, event: Event) {
        let mut out = Vec::new();
        self.swarm.handle(self.now, event, &mut out);
        self.carry_out(out);
        self.check();
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(!self.finished, "action after the end: {action:?}");
            match action {
                Action::Request { request, groups } => self.on_request(request, groups),
                Action::Truncate { request, at_group } => {
                    let left = self.in_flight.get_mut(&request).expect("truncated a request that is not in flight");
                    assert!(left.start < at_group && at_group < left.end, "{left:?} truncated at {at_group}");
                    left.end = at_group;
                }
                Action::Cancel { request } => {
                    let left = self.in_flight.remove(&request).expect("cancelled a request that is not in flight");
                    self.ended.push((request, left));
                }
                Action::Drop { provider, why } => {
                    assert_eq!(
                        why == Dropped::SentCorruptData,
                        self.corrupt.contains(&provider),
                        "{provider}: {why:?}"
                    );
                    assert!(
                        self.in_flight.keys().all(|request| request.provider != provider),
                        "{provider} is dropped but has a request in flight"
                    );
                    self.has.remove(&provider);
                }
                Action::Stuck => {
                    assert!(self.in_flight.is_empty());
                    self.stuck = true;
                }
                Action::Finished => self.finished = true,
            }
        }
    }

    fn on_request(&mut self, request: RequestId, groups: Range<u64>) {
        assert!(!groups.is_empty() && groups.end <= self.groups, "{groups:?} of {}", self.groups);
        assert!((groups.end - groups.start) * GROUP_BYTES <= MAX_REQUEST_BYTES + MIN_PIECE_BYTES, "{groups:?} is long");
        let has = self.has.get(&request.provider).unwrap_or_else(|| panic!("{} is unknown", request.provider));
        assert!(groups.clone().all(|group| has.contains(&group)), "{} does not have {groups:?}", request.provider);
        assert!(groups.clone().all(|group| !self.proven.contains(&group)), "{groups:?} is verified already");
        let last = self.last_serial.insert(request.provider, request.serial);
        assert!(last.is_none_or(|last| last < request.serial), "{request:?} after {last:?}");
        assert!(self.in_flight.insert(request, groups).is_none(), "request id reused");
    }

    /// Asserts the invariants.
    fn check(&self) {
        let mut of_provider: BTreeMap<ProviderId, usize> = BTreeMap::new();
        let mut of_piece: BTreeMap<u64, Vec<ProviderId>> = BTreeMap::new();
        for (request, left) in &self.in_flight {
            *of_provider.entry(request.provider).or_default() += 1;
            for piece in left.start / PIECE..=(left.end - 1) / PIECE {
                of_piece.entry(piece).or_default().push(request.provider);
            }
        }
        assert!(of_provider.len() <= MAX_ACTIVE_PROVIDERS, "{} providers are active", of_provider.len());
        assert!(of_provider.values().all(|requests| *requests <= MAX_REQUESTS_PER_PROVIDER), "{of_provider:?}");
        for (piece, providers) in of_piece {
            assert!(providers.len() <= 2, "piece {piece} is requested from {providers:?}");
            assert!(
                providers.len() < 2 || providers[0] != providers[1],
                "piece {piece} is requested from {providers:?}"
            );
        }
        let byte = |group: u64| (group * GROUP_BYTES).min(self.size);
        let bytes: u64 = self.proven.iter().map(|&group| byte(group + 1) - byte(group)).sum();
        assert_eq!(self.swarm.bytes_proven(), bytes);
        let due = self.swarm.next_deadline();
        // The longest jittered back-off, the longest silence timeout, and a margin for the round-trip time.
        let latest = self.now + 2 * MAX_PROVIDER_BACKOFF + 2 * PROVIDER_SILENCE + Duration::from_secs(60);
        assert!(due.is_none_or(|due| due <= latest), "due {due:?} at {:?}", self.now);
        assert!(self.in_flight.is_empty() || due.is_some(), "no deadline for a request in flight");
        if self.finished {
            assert_eq!((self.proven.len() as u64, self.in_flight.len(), due), (self.groups, 0, None));
        }
    }

    /// Completes the download with one honest provider of the whole content.
    fn complete(&mut self) {
        let honest = ProviderId(1000);
        self.learn(honest, &Has::All);
        self.handle(Event::ProviderAdded { provider: honest, has: Has::All, rtt: None });
        let mut rounds = 0;
        while !self.finished {
            rounds += 1;
            assert!(rounds < 20_000, "{:?} {:?}", self.swarm.bytes_proven(), self.in_flight);
            let at = self.in_flight.keys().position(|request| request.provider == honest);
            match at.and_then(|at| u8::try_from(at).ok()) {
                Some(at) => {
                    self.now += MILLISECOND;
                    self.deliver(at, 8);
                }
                None => self.advance(100 * MILLISECOND),
            }
        }
        assert!(self.in_flight.is_empty());
    }
}
