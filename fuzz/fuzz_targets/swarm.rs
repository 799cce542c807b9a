//! Download scheduler: under arbitrary sequences of events it never panics, sends only permitted requests, always sets
//! a finite deadline, and completes once one honest owner has the whole content.

#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use protocol::swarm::{Action, Dropped, Event, Failure, Has, ProviderId, PickerKind, RequestId, Swarm, SwarmConfig};
use shared::{group_ranges::{GroupRanges, group_count}, limits::GROUP_BYTES, time::Timestamp};
use protocol::swarm::params::MAX_ACTIVE_PROVIDERS;
use protocol::provider_health::MAX_PROVIDER_BACKOFF;
use protocol::swarm::params::MAX_REQUESTS_PER_PROVIDER;
use protocol::swarm::params::MAX_REQUEST_BYTES;
use protocol::swarm::params::MIN_PIECE_BYTES;
use protocol::provider_health::PROVIDER_SILENCE;

/// Groups of a piece of the minimum size.
const PIECE: u64 = MIN_PIECE_BYTES / GROUP_BYTES;
const OWNERS: u8 = 20;
const MILLISECOND: Duration = Duration::from_millis(1);

#[derive(Debug, Arbitrary)]
struct Input {
    size: u32,
    have: Vec<(u16, u8)>,
    sequential: bool,
    sociable: bool,
    seed: u64,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Add {
        owner: u8,
        has: Option<Vec<(u16, u8)>>,
        rtt_millis: Option<u16>,
    },
    Gain {
        owner: u8,
        run: (u16, u8),
    },
    Lose {
        owner: u8,
    },
    /// Arbitrary values, valid or not.
    Place {
        place: u8,
        receivers: u8,
    },
    Heard {
        owner: u8,
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
    Bring {
        which: u8,
        count: u8,
    },
    /// The next groups of a cancelled request.
    BringLate {
        which: u8,
        count: u8,
    },
    /// Groups of a request that the scheduler never sent.
    Invent {
        owner: u8,
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
    Wait {
        millis: u16,
    },
    Tick,
    Pause,
    Resume,
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
    /// Groups of each owner.
    has: BTreeMap<ProviderId, BTreeSet<u64>>,
    /// Owners that sent corrupt data.
    corrupt: BTreeSet<ProviderId>,
    /// Verified groups.
    proven: BTreeSet<u64>,
    last_serial: BTreeMap<ProviderId, u64>,
    paused: bool,
    stuck: bool,
    finished: bool,
}

fuzz_target!(|input: Input| {
    let size = u64::from(input.size) % (40 * MIN_PIECE_BYTES);
    let groups = group_count(size);
    let have = set(input.have.iter().map(|&run| range(run, groups)));
    let picker = if input.sequential { PickerKind::Sequential } else { PickerKind::RarestFirst };
    let proven = have.iter().flatten().collect();
    let config = SwarmConfig { size, have, picker, expects_receivers: input.sociable, seed: input.seed };
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
        paused: false,
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
        0 => Failure::Lied,
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
        let id = |owner: u8| ProviderId(u32::from(owner % OWNERS));
        match step {
            Step::Add { owner, has, rtt_millis } => {
                let groups = self.groups;
                let has = match has {
                    None => Has::All,
                    Some(runs) => Has::Groups(set(runs.into_iter().map(|run| range(run, groups)))),
                };
                self.add(id(owner), has, rtt_millis.map(millis));
            }
            Step::Gain { owner, run } => {
                let gained = range(run, self.groups);
                if let Some(has) = self.has.get_mut(&id(owner)) {
                    has.extend(gained.clone());
                }
                self.handle(Event::ProviderGained { owner: id(owner), gained: set([gained].into_iter()) });
            }
            Step::Lose { owner } => {
                self.forget(id(owner));
                self.handle(Event::ProviderLost { owner: id(owner) });
            }
            Step::Heard { owner, rtt_millis } => {
                self.handle(Event::Heard { owner: id(owner), rtt: rtt_millis.map(millis) });
            }
            Step::Begin { which } => {
                if let Some(request) = self.pick(which) {
                    self.handle(Event::Begun { request });
                }
            }
            Step::BeginLate { which } => {
                if let Some(&(request, _)) = self.ended.get(usize::from(which) % self.ended.len().max(1)) {
                    self.handle(Event::Begun { request });
                }
            }
            Step::Bring { which, count } => self.bring(which, count.into()),
            Step::BringLate { which, count } => self.bring_late(which, count.into()),
            Step::Invent { owner, serial, run } => self.invent(id(owner), serial, run),
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
            Step::Place { place, receivers } => {
                self.handle(Event::Placed { place: place.into(), receivers: receivers.into() });
            }
            Step::Wait { millis } => self.wait(Duration::from_millis(millis.into())),
            Step::Tick => self.handle(Event::Tick),
            Step::Pause => {
                self.paused = !self.finished;
                self.handle(Event::Pause);
                assert!(self.in_flight.is_empty(), "a request is in flight while paused");
            }
            Step::Resume => {
                self.paused = false;
                self.handle(Event::Resume);
            }
        }
    }

    fn pick(&self, which: u8) -> Option<RequestId> {
        self.in_flight.keys().nth(usize::from(which) % self.in_flight.len().max(1)).copied()
    }

    fn add(&mut self, owner: ProviderId, has: Has, rtt: Option<Duration>) {
        if !self.corrupt.contains(&owner) && !self.finished {
            let known = self.has.entry(owner).or_default();
            match &has {
                Has::All => known.extend(0..self.groups),
                Has::Groups(groups) => known.extend(groups.iter().flatten()),
            }
        }
        self.handle(Event::ProviderAdded { owner, has, rtt });
    }

    fn bring(&mut self, which: u8, count: u64) {
        self.now += MILLISECOND;
        let Some(request) = self.pick(which) else { return };
        let left = self.in_flight.get_mut(&request).expect("`pick` returns a request in flight");
        let brought = left.start..(left.start + count.max(1)).min(left.end);
        left.start = brought.end;
        if left.is_empty() {
            self.in_flight.remove(&request);
        }
        self.proven.extend(brought.clone());
        self.handle(Event::Verified { request, groups: brought });
    }

    fn bring_late(&mut self, which: u8, count: u64) {
        let at = usize::from(which) % self.ended.len().max(1);
        let Some((request, left)) = self.ended.get_mut(at) else { return };
        let (request, brought) = (*request, left.start..(left.start + count).min(left.end));
        left.start = brought.end;
        self.proven.extend(brought.clone());
        self.handle(Event::Verified { request, groups: brought });
    }

    /// Reports groups of a request that the scheduler never sent.
    fn invent(&mut self, owner: ProviderId, serial: u8, run: (u16, u8)) {
        let request = RequestId { owner, serial: u64::from(serial) + (1 << 40) };
        let groups = range(run, self.groups);
        self.handle(Event::Begun { request });
        self.proven.extend(groups.clone());
        self.handle(Event::Verified { request, groups });
        // Groups beyond the end prove nothing.
        self.handle(Event::Verified { request, groups: self.groups..self.groups + 1 });
        self.handle(Event::RequestFailed { request, why: Failure::Broken });
    }

    fn fail(&mut self, request: RequestId, why: Failure) {
        if why == Failure::Lied {
            self.corrupt.insert(request.owner);
        }
        self.end(request);
        self.handle(Event::RequestFailed { request, why });
    }

    fn end(&mut self, request: RequestId) {
        if let Some(left) = self.in_flight.remove(&request) {
            self.ended.push((request, left));
        }
    }

    /// Removes an owner and its requests.
    fn forget(&mut self, owner: ProviderId) {
        self.has.remove(&owner);
        let gone: Vec<_> = self.in_flight.keys().filter(|request| request.owner == owner).copied().collect();
        gone.into_iter().for_each(|request| self.end(request));
    }

    fn wait(&mut self, time: Duration) {
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
        for action in out {
            assert!(!self.finished, "action after the end: {action:?}");
            match action {
                Action::Request { request, groups } => self.on_request(request, groups),
                Action::Truncate { request, at_group } => {
                    let left = self.in_flight.get_mut(&request).expect("truncated a request that is not in flight");
                    assert!(left.start < at_group && at_group < left.end, "{left:?} cut at {at_group}");
                    left.end = at_group;
                }
                Action::Cancel { request } => {
                    let left = self.in_flight.remove(&request).expect("cancelled a request that is not in flight");
                    self.ended.push((request, left));
                }
                Action::Drop { owner, why } => {
                    assert_eq!(why == Dropped::Lied, self.corrupt.contains(&owner), "{owner}: {why:?}");
                    assert!(
                        self.in_flight.keys().all(|request| request.owner != owner),
                        "{owner} is dropped but has a request in flight"
                    );
                    self.has.remove(&owner);
                }
                Action::Stuck => {
                    assert!(self.in_flight.is_empty());
                    self.stuck = true;
                }
                Action::Finished => self.finished = true,
            }
        }
        self.check();
    }

    fn on_request(&mut self, request: RequestId, groups: Range<u64>) {
        assert!(!groups.is_empty() && groups.end <= self.groups, "{groups:?} of {}", self.groups);
        assert!((groups.end - groups.start) * GROUP_BYTES <= MAX_REQUEST_BYTES + MIN_PIECE_BYTES, "{groups:?} is long");
        assert!(!self.paused, "requested while paused");
        let has = self.has.get(&request.owner).unwrap_or_else(|| panic!("{} is unknown", request.owner));
        assert!(groups.clone().all(|group| has.contains(&group)), "{} does not have {groups:?}", request.owner);
        assert!(groups.clone().all(|group| !self.proven.contains(&group)), "{groups:?} is verified already");
        let last = self.last_serial.insert(request.owner, request.serial);
        assert!(last.is_none_or(|last| last < request.serial), "{request:?} after {last:?}");
        assert!(self.in_flight.insert(request, groups).is_none(), "request id reused");
    }

    /// Asserts the invariants.
    fn check(&self) {
        let mut of_owner: BTreeMap<ProviderId, usize> = BTreeMap::new();
        let mut of_piece: BTreeMap<u64, Vec<ProviderId>> = BTreeMap::new();
        for (request, left) in &self.in_flight {
            *of_owner.entry(request.owner).or_default() += 1;
            for piece in left.start / PIECE..=(left.end - 1) / PIECE {
                of_piece.entry(piece).or_default().push(request.owner);
            }
        }
        assert!(of_owner.len() <= MAX_ACTIVE_PROVIDERS, "{} owners are active", of_owner.len());
        assert!(of_owner.values().all(|requests| *requests <= MAX_REQUESTS_PER_PROVIDER), "{of_owner:?}");
        for (piece, owners) in of_piece {
            assert!(owners.len() <= 2, "piece {piece} is requested from {owners:?}");
            assert!(owners.len() < 2 || owners[0] != owners[1], "piece {piece} is requested from {owners:?}");
        }
        let byte = |group: u64| (group * GROUP_BYTES).min(self.size);
        let bytes: u64 = self.proven.iter().map(|&group| byte(group + 1) - byte(group)).sum();
        assert_eq!(self.swarm.progress().bytes_proven, bytes);
        let due = self.swarm.next_deadline();
        // The longest jittered back-off, the longest silence timeout, and a margin for the round-trip time.
        let latest = self.now + 2 * MAX_PROVIDER_BACKOFF + 2 * PROVIDER_SILENCE + Duration::from_secs(60);
        assert!(due.is_none_or(|due| due <= latest), "due {due:?} at {:?}", self.now);
        assert!(self.in_flight.is_empty() || due.is_some(), "no deadline for a request in flight");
        if self.finished {
            assert_eq!((self.proven.len() as u64, self.in_flight.len(), due), (self.groups, 0, None));
        }
    }

    /// Completes the download with one honest owner of the whole content.
    fn complete(&mut self) {
        self.paused = false;
        self.handle(Event::Resume);
        let honest = ProviderId(1000);
        self.add(honest, Has::All, None);
        let mut rounds = 0;
        while !self.finished {
            rounds += 1;
            assert!(rounds < 20_000, "{:?} {:?}", self.swarm.progress(), self.in_flight);
            let at = self.in_flight.keys().position(|request| request.owner == honest);
            match at.and_then(|at| u8::try_from(at).ok()) {
                Some(at) => {
                    self.now += MILLISECOND;
                    self.bring(at, 8);
                }
                None => self.wait(100 * MILLISECOND),
            }
        }
        assert!(self.in_flight.is_empty());
    }
}
