//! The scheduler of a download, told whatever a shell could tell it, in any order: it never panics, asks only what may be
//! asked, wakes in finite time, and with one honest owner comes to an end.

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

/// Groups of a piece, for files of which a piece has the least size.
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
    /// Sense or not.
    Place {
        place: u8,
        receivers: u8,
    },
    Heard {
        owner: u8,
        rtt_millis: Option<u16>,
    },
    /// Of a request under way, the first bytes.
    Begin {
        which: u8,
    },
    /// Of a request that was cancelled, the first bytes.
    BeginLate {
        which: u8,
    },
    /// Of a request under way, the next groups.
    Bring {
        which: u8,
        count: u8,
    },
    /// Of a request that was cancelled, the next groups.
    BringLate {
        which: u8,
        count: u8,
    },
    /// Of a request that never was.
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

/// The swarm, and what its shell knows.
struct Bed {
    swarm: Swarm,
    size: u64,
    groups: u64,
    now: Timestamp,
    /// What is still to come of each request.
    under_way: BTreeMap<RequestId, Range<u64>>,
    over: Vec<(RequestId, Range<u64>)>,
    has: BTreeMap<ProviderId, BTreeSet<u64>>,
    liars: BTreeSet<ProviderId>,
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
    let mut bed = Bed {
        swarm: Swarm::new(config, Timestamp::ZERO),
        size,
        groups,
        now: Timestamp::ZERO,
        under_way: BTreeMap::new(),
        over: Vec::new(),
        has: BTreeMap::new(),
        liars: BTreeSet::new(),
        proven,
        last_serial: BTreeMap::new(),
        paused: false,
        stuck: false,
        finished: false,
    };
    for step in input.steps.into_iter().take(300) {
        bed.step(step);
    }
    bed.come_to_an_end();
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

impl Bed {
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
                self.tell(Event::ProviderGained { owner: id(owner), gained: set([gained].into_iter()) });
            }
            Step::Lose { owner } => {
                self.forget(id(owner));
                self.tell(Event::ProviderLost { owner: id(owner) });
            }
            Step::Heard { owner, rtt_millis } => {
                self.tell(Event::Heard { owner: id(owner), rtt: rtt_millis.map(millis) });
            }
            Step::Begin { which } => {
                if let Some(request) = self.pick(which) {
                    self.tell(Event::Begun { request });
                }
            }
            Step::BeginLate { which } => {
                if let Some(&(request, _)) = self.over.get(usize::from(which) % self.over.len().max(1)) {
                    self.tell(Event::Begun { request });
                }
            }
            Step::Bring { which, count } => self.bring(which, count.into()),
            Step::BringLate { which, count } => self.bring_late(which, count.into()),
            Step::Invent { owner, serial, run } => {
                let request = RequestId { owner: id(owner), serial: u64::from(serial) + (1 << 40) };
                let groups = range(run, self.groups);
                self.tell(Event::Begun { request });
                self.proven.extend(groups.clone());
                self.tell(Event::Verified { request, groups });
                // Beyond the end: nothing is proven by it.
                self.tell(Event::Verified { request, groups: self.groups..self.groups + 1 });
                self.tell(Event::RequestFailed { request, why: Failure::Broken });
            }
            Step::Done { which } => {
                if let Some(request) = self.pick(which) {
                    self.end(request);
                    self.tell(Event::RequestDone { request });
                }
            }
            Step::Fail { which, why: number, retry_millis } => {
                if let Some(request) = self.pick(which) {
                    self.fail(request, why(number, retry_millis));
                }
            }
            Step::FailLate { which, why: number } => {
                if let Some((request, _)) = self.over.get(usize::from(which) % self.over.len().max(1)).cloned() {
                    self.fail(request, why(number, None));
                }
            }
            Step::Place { place, receivers } => {
                self.tell(Event::Placed { place: place.into(), receivers: receivers.into() });
            }
            Step::Wait { millis } => self.wait(Duration::from_millis(millis.into())),
            Step::Tick => self.tell(Event::Tick),
            Step::Pause => {
                self.paused = !self.finished;
                self.tell(Event::Pause);
                assert!(self.under_way.is_empty(), "nothing is under way while paused");
            }
            Step::Resume => {
                self.paused = false;
                self.tell(Event::Resume);
            }
        }
    }

    fn pick(&self, which: u8) -> Option<RequestId> {
        self.under_way.keys().nth(usize::from(which) % self.under_way.len().max(1)).copied()
    }

    fn add(&mut self, owner: ProviderId, has: Has, rtt: Option<Duration>) {
        if !self.liars.contains(&owner) && !self.finished {
            let known = self.has.entry(owner).or_default();
            match &has {
                Has::All => known.extend(0..self.groups),
                Has::Groups(groups) => known.extend(groups.iter().flatten()),
            }
        }
        self.tell(Event::ProviderAdded { owner, has, rtt });
    }

    fn bring(&mut self, which: u8, count: u64) {
        self.now += MILLISECOND;
        let Some(request) = self.pick(which) else { return };
        let left = self.under_way.get_mut(&request).expect("picked from it");
        let brought = left.start..(left.start + count.max(1)).min(left.end);
        left.start = brought.end;
        if left.is_empty() {
            self.under_way.remove(&request);
        }
        self.proven.extend(brought.clone());
        self.tell(Event::Verified { request, groups: brought });
    }

    fn bring_late(&mut self, which: u8, count: u64) {
        let at = usize::from(which) % self.over.len().max(1);
        let Some((request, left)) = self.over.get_mut(at) else { return };
        let (request, brought) = (*request, left.start..(left.start + count).min(left.end));
        left.start = brought.end;
        self.proven.extend(brought.clone());
        self.tell(Event::Verified { request, groups: brought });
    }

    fn fail(&mut self, request: RequestId, why: Failure) {
        if why == Failure::Lied {
            self.liars.insert(request.owner);
        }
        self.end(request);
        self.tell(Event::RequestFailed { request, why });
    }

    fn end(&mut self, request: RequestId) {
        if let Some(left) = self.under_way.remove(&request) {
            self.over.push((request, left));
        }
    }

    /// An owner is gone, and its requests with it.
    fn forget(&mut self, owner: ProviderId) {
        self.has.remove(&owner);
        let gone: Vec<_> = self.under_way.keys().filter(|request| request.owner == owner).copied().collect();
        gone.into_iter().for_each(|request| self.end(request));
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        let mut ticks = 0;
        while let Some(due) = self.swarm.next_deadline().filter(|due| *due <= until) {
            ticks += 1;
            assert!(ticks < 20_000, "it ticks without end: due {due:?}, now {:?}", self.now);
            self.now = self.now.max(due);
            self.tell(Event::Tick);
        }
        self.now = until;
    }

    fn tell(&mut self, event: Event) {
        let mut out = Vec::new();
        self.swarm.handle(self.now, event, &mut out);
        for action in out {
            assert!(!self.finished, "after the end: {action:?}");
            match action {
                Action::Request { request, groups } => self.on_request(request, groups),
                Action::Truncate { request, at_group } => {
                    let left = self.under_way.get_mut(&request).expect("only what is under way is cut");
                    assert!(left.start < at_group && at_group < left.end, "{left:?} cut at {at_group}");
                    left.end = at_group;
                }
                Action::Cancel { request } => {
                    let left = self.under_way.remove(&request).expect("only what is under way is cancelled");
                    self.over.push((request, left));
                }
                Action::Drop { owner, why } => {
                    assert_eq!(why == Dropped::Lied, self.liars.contains(&owner), "{owner}: {why:?}");
                    assert!(
                        self.under_way.keys().all(|request| request.owner != owner),
                        "{owner} is dropped, but asked"
                    );
                    self.has.remove(&owner);
                }
                Action::Stuck => {
                    assert!(self.under_way.is_empty());
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
        assert!(!self.paused, "asked while paused");
        let has = self.has.get(&request.owner).unwrap_or_else(|| panic!("{} is not there", request.owner));
        assert!(groups.clone().all(|group| has.contains(&group)), "{} does not have {groups:?}", request.owner);
        assert!(groups.clone().all(|group| !self.proven.contains(&group)), "{groups:?} is here");
        let last = self.last_serial.insert(request.owner, request.serial);
        assert!(last.is_none_or(|last| last < request.serial), "{request:?} after {last:?}");
        assert!(self.under_way.insert(request, groups).is_none(), "a new name for a new request");
    }

    /// What always holds.
    fn check(&self) {
        let mut of_owner: BTreeMap<ProviderId, usize> = BTreeMap::new();
        let mut of_piece: BTreeMap<u64, Vec<ProviderId>> = BTreeMap::new();
        for (request, left) in &self.under_way {
            *of_owner.entry(request.owner).or_default() += 1;
            for piece in left.start / PIECE..=(left.end - 1) / PIECE {
                of_piece.entry(piece).or_default().push(request.owner);
            }
        }
        assert!(of_owner.len() <= MAX_ACTIVE_PROVIDERS, "{} owners are asked", of_owner.len());
        assert!(of_owner.values().all(|requests| *requests <= MAX_REQUESTS_PER_PROVIDER), "{of_owner:?}");
        for (piece, owners) in of_piece {
            assert!(owners.len() <= 2, "piece {piece} is asked of {owners:?}");
            assert!(owners.len() < 2 || owners[0] != owners[1], "piece {piece} is asked of {owners:?}");
        }
        let byte = |group: u64| (group * GROUP_BYTES).min(self.size);
        let bytes: u64 = self.proven.iter().map(|&group| byte(group + 1) - byte(group)).sum();
        assert_eq!(self.swarm.progress().bytes_proven, bytes);
        let due = self.swarm.next_deadline();
        // A wait is at most this, jittered; silence is counted beyond a round trip.
        let latest = self.now + 2 * MAX_PROVIDER_BACKOFF + 2 * PROVIDER_SILENCE + Duration::from_secs(60);
        assert!(due.is_none_or(|due| due <= latest), "due {due:?} at {:?}", self.now);
        assert!(self.under_way.is_empty() || due.is_some(), "nobody would notice silence");
        if self.finished {
            assert_eq!((self.proven.len() as u64, self.under_way.len(), due), (self.groups, 0, None));
        }
    }

    /// One honest owner with everything brings the rest.
    fn come_to_an_end(&mut self) {
        self.paused = false;
        self.tell(Event::Resume);
        let honest = ProviderId(1000);
        self.add(honest, Has::All, None);
        let mut rounds = 0;
        while !self.finished {
            rounds += 1;
            assert!(rounds < 20_000, "{:?} {:?}", self.swarm.progress(), self.under_way);
            let at = self.under_way.keys().position(|request| request.owner == honest);
            match at.and_then(|at| u8::try_from(at).ok()) {
                Some(at) => {
                    self.now += MILLISECOND;
                    self.bring(at, 8);
                }
                None => self.wait(100 * MILLISECOND),
            }
        }
        assert!(self.under_way.is_empty());
    }
}
