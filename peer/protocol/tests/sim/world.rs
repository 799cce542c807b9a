//! Simulated machines, each with a process, a clock and a disk, and the queue of events.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use nameserver::registry::{Registry, Snapshot};
use protocol::{
    CallId,
    election::{CallFailure, Core, DurableState, Event, Role, Token},
};
use shared::{
    contact::Contact,
    content::FileMeta,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    limits::DEFAULT_LEASE,
    name::Endpoint,
    rpc::nameserver::{Claim, Revision},
    time::Timestamp,
};

use crate::{
    checks::Checks,
    digest::Digest,
    input::{Input, Output},
    network,
};

/// Time during which faults are injected.
const CHAOS: Duration = Duration::from_secs(7);
/// Number of the nameserver among the nodes, for cuts.
pub(crate) const NAMESERVER: usize = usize::MAX;
/// Largest drift of a clock, parts per million: about a hundred times that of quartz.
const MAX_DRIFT_PPM: i64 = 10_000;

/// One run of a process.
pub(crate) type Run = (usize, Incarnation);

/// Monotonic clock of a machine, with an origin and a drift of its own.
#[derive(Clone, Copy)]
pub(crate) struct LocalClock {
    origin_nanos: u64,
    drift_ppm: i64,
}

impl LocalClock {
    /// Time that it shows at `now` of the world.
    pub(crate) fn local(&self, now: Timestamp) -> Timestamp {
        let world = i128::try_from(now.since_origin().as_nanos()).expect("short");
        let shown = i128::from(self.origin_nanos) + world + world * i128::from(self.drift_ppm) / 1_000_000;
        Timestamp::from_origin(Duration::from_nanos(u64::try_from(shown).expect("short")))
    }

    /// Time of the world at which it shows `local`, or up to a microsecond later.
    pub(crate) fn world(&self, local: Timestamp) -> Timestamp {
        let shown = i128::try_from(local.since_origin().as_nanos()).expect("short") - i128::from(self.origin_nanos);
        let world = shown * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm)) + 1000;
        Timestamp::from_origin(Duration::from_nanos(u64::try_from(world.max(0)).expect("short")))
    }
}

/// Machine with the peer that runs on it, if any.
pub(crate) struct Node {
    pub(crate) id: PeerId,
    pub(crate) endpoint: Endpoint,
    pub(crate) incarnation: Incarnation,
    pub(crate) core: Option<Core>,
    pub(crate) durable: DurableState,
    pub(crate) files: BTreeMap<FileName, FileMeta>,
    pub(crate) clock: LocalClock,
    /// True if the process is suspended; its timers and messages wait.
    pub(crate) frozen: bool,
    /// Write that the process waits for.
    pub(crate) syncing: Option<Syncing>,
    /// Inputs that wait until the process continues.
    pub(crate) unread: VecDeque<Input>,
    pub(crate) leaving: bool,
    /// True if no write to its disk succeeds.
    pub(crate) disk_full: bool,
}

/// Write under way, and the outputs that follow it.
pub(crate) struct Syncing {
    pub(crate) state: DurableState,
    pub(crate) then: VecDeque<Output>,
    pub(crate) input: Input,
}

/// Call that waits for its answer.
pub(crate) struct Waiting {
    pub(crate) run: Run,
    pub(crate) callee: usize,
    pub(crate) kind: Kind,
    pub(crate) call: CallId,
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Seat,
    Peers,
    Claim,
    Renewal,
    Resign,
    Heartbeat,
    Announcement,
    Vote,
    Notice,
    Leave,
}

/// Content of a call.
#[derive(Clone)]
pub(crate) enum Question {
    Seat,
    Peers,
    Claim(Claim),
    Renewal(Epoch),
    Resign(Epoch),
    Peer(Box<Input>),
}

pub(crate) enum Item {
    Tick(Run),
    /// A call arrives at its callee.
    Arrive {
        rpc: u64,
        caller: Run,
        callee: usize,
        question: Question,
    },
    /// The nameserver sends an answer, if it is still the same run.
    Answered {
        rpc: u64,
        nameserver: u64,
        event: Box<Event>,
    },
    /// An answer arrives at its caller.
    Answer {
        rpc: u64,
        event: Box<Event>,
    },
    /// The call's deadline passes.
    Expire {
        rpc: u64,
        failure: CallFailure,
    },
    /// The end of a connection is noticed.
    Lost {
        run: Run,
        peer: PeerId,
    },
    /// A probe is refused.
    Refused {
        run: Run,
        at: Contact,
    },
    /// The nameserver has probed the port of the seat's holder, beginning at `since`.
    Probed {
        rpc: u64,
        nameserver: u64,
        caller: Run,
        claim: Claim,
        closed: Option<Epoch>,
        since: Timestamp,
    },
    /// The nameserver sends a watcher the current state.
    Watched(Run),
    /// A write to the disk is done.
    Synced(Run),
    Renew(Run),
    Fault,
    Elect(usize),
    Thaw(Run),
    Restart(usize),
    DiskFreed(usize),
    NameserverBack,
}

pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) rng: fastrand::Rng,
    /// Boxed, since the tree moves its entries.
    queue: BTreeMap<(Timestamp, u64), Box<Item>>,
    pub(crate) last_item: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) registry: Registry,
    pub(crate) nameserver_up: bool,
    /// Number of the nameserver's run.
    pub(crate) nameserver_run: u64,
    /// Revision that watchers were notified of.
    pub(crate) watched: Revision,
    /// Time until which the nameserver writes and answers no call.
    pub(crate) nameserver_busy: Timestamp,
    pub(crate) waiting: BTreeMap<u64, Waiting>,
    pub(crate) tokens: BTreeMap<Token, u64>,
    pub(crate) last_rpc: u64,
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Pairs of prober and probed peer whose probes are refused although the port is open.
    pub(crate) false_refusals: BTreeSet<(usize, usize)>,
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) latency: Duration,
    /// Longest time of an ordinary write to a disk.
    pub(crate) disk: Duration,
    pub(crate) calm: bool,
    pub(crate) trace: bool,
    /// The digest of the run so far, if it is asked for.
    pub(crate) digest: Option<Digest>,
    pub(crate) checks: Checks,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = if rng.u8(0..16) == 0 { rng.usize(10..=12) } else { rng.usize(2..=7) };
        let drifting = rng.bool();
        let mut world = Self {
            now: Timestamp::from_origin(Duration::from_secs(1)),
            queue: BTreeMap::new(),
            last_item: 0,
            nodes: Vec::new(),
            registry: Registry::restore(Snapshot::default(), Timestamp::ZERO),
            nameserver_up: true,
            nameserver_run: 0,
            watched: Revision::default(),
            nameserver_busy: Timestamp::ZERO,
            waiting: BTreeMap::new(),
            tokens: BTreeMap::new(),
            last_rpc: 0,
            cuts: BTreeSet::new(),
            false_refusals: BTreeSet::new(),
            loss: if rng.bool() { 0.0 } else { rng.f64() * 0.15 },
            duplication: if rng.bool() { 0.0 } else { 0.1 },
            latency: Duration::from_micros([300, 2_000, 20_000, 60_000][rng.usize(0..4)]),
            disk: Duration::from_micros([0, 500, 4_000, 30_000][rng.usize(0..4)]),
            calm: false,
            trace,
            digest: None,
            checks: Checks::default(),
            rng,
        };
        for number in 0..count {
            let id: PeerId = format!("peer{number}").parse().expect("a peer's id");
            let endpoint = format!("quic://10.0.0.{}:4000", number + 1).parse().expect("an endpoint");
            let drift_ppm = if drifting { world.rng.i64(-MAX_DRIFT_PPM..=MAX_DRIFT_PPM) } else { 0 };
            let clock = LocalClock { origin_nanos: world.rng.u64(0..1_000_000_000_000), drift_ppm };
            world.nodes.push(Node {
                id,
                endpoint,
                incarnation: Incarnation(0),
                core: None,
                durable: DurableState::default(),
                files: BTreeMap::new(),
                clock,
                frozen: false,
                syncing: None,
                unread: VecDeque::new(),
                leaving: false,
                disk_full: false,
            });
            let spread = Duration::from_millis(if world.rng.bool() { 5 } else { 2000 });
            let start = world.random(spread);
            world.push(start, Item::Restart(number));
        }
        world.push(Duration::from_millis(500), Item::Fault);
        world
    }

    pub(crate) fn chaos(&mut self) {
        let end = self.now + CHAOS;
        self.run_until(end);
    }

    pub(crate) fn push(&mut self, wait: Duration, item: Item) {
        self.last_item += 1;
        self.queue.insert((self.now + wait, self.last_item), Box::new(item));
    }

    pub(crate) fn random(&mut self, below: Duration) -> Duration {
        let micros = u64::try_from(below.as_micros()).expect("short");
        Duration::from_micros(self.rng.u64(0..micros.max(1)))
    }

    pub(crate) fn run_until(&mut self, end: Timestamp) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), item) = entry.remove_entry();
            self.now = self.now.max(at);
            self.step(*item);
            self.wake_watchers();
        }
        self.now = end;
    }

    fn step(&mut self, item: Item) {
        match item {
            Item::Tick(run) => {
                let shown = self.nodes[run.0].clock.local(self.now);
                let due = self.running(run).and_then(Core::next_deadline).is_some_and(|deadline| deadline <= shown);
                if due && !self.is_held_up(run.0) {
                    self.handle(run.0, Event::Tick);
                }
            }
            Item::Arrive { rpc, caller, callee, question } => self.arrive(rpc, caller, callee, question),
            Item::Answered { rpc, nameserver, event } => {
                if self.nameserver_up && nameserver == self.nameserver_run {
                    self.send_answer(rpc, NAMESERVER, event);
                }
            }
            Item::Answer { rpc, event } => {
                if let Some(waiting) = self.waiting.remove(&rpc) {
                    self.deliver(waiting.run, *event);
                }
            }
            Item::Expire { rpc, failure } => {
                if let Some(waiting) = self.waiting.remove(&rpc) {
                    let from = self.nodes.get(waiting.callee).map(|node| node.id.clone());
                    if let Some(event) = network::failed(waiting.kind, waiting.call, from, failure) {
                        self.deliver(waiting.run, event);
                    }
                }
            }
            Item::Lost { run, peer } => self.deliver(run, Event::ConnectionLost { peer }),
            Item::Refused { run, at } => self.deliver(run, Event::ProbeRefused { at }),
            Item::Probed { rpc, nameserver, caller, claim, closed, since } => {
                if self.nameserver_up && nameserver == self.nameserver_run {
                    self.probed(rpc, caller, claim, closed, since);
                }
            }
            Item::Watched(run) => self.tell_watcher(run),
            Item::Synced(run) => {
                if self.running(run).is_some() && !self.nodes[run.0].frozen {
                    self.synced(run.0);
                }
            }
            Item::Renew(run) => {
                if self.running(run).is_some() {
                    if !self.nodes[run.0].frozen && self.reaches(run.0, NAMESERVER) && self.nameserver_up {
                        self.register(run.0);
                    }
                    self.push(DEFAULT_LEASE / 6, Item::Renew(run));
                }
            }
            Item::Fault => {
                if !self.calm {
                    self.fault();
                    let next = self.random(Duration::from_millis(700));
                    self.push(next, Item::Fault);
                }
            }
            Item::Elect(node) => self.elect(node),
            Item::Thaw(run) => self.thaw(run),
            Item::Restart(node) => {
                if self.nodes[node].core.is_none() && !self.calm {
                    self.restart(node);
                }
            }
            Item::DiskFreed(node) => self.disk_freed(node),
            Item::NameserverBack => {
                if !self.nameserver_up && !self.calm {
                    self.nameserver_back();
                }
            }
        }
    }

    pub(crate) fn running(&self, (node, incarnation): Run) -> Option<&Core> {
        let node = &self.nodes[node];
        node.core.as_ref().filter(|_| node.incarnation == incarnation)
    }

    pub(crate) fn run_of(&self, node: usize) -> Run {
        (node, self.nodes[node].incarnation)
    }

    pub(crate) fn note(&self, what: &str) {
        if self.trace {
            eprintln!("{:.4} -- {what}", self.now.since_origin().as_secs_f64());
        }
    }

    /// Number of the tracker, the first if there are several.
    pub(crate) fn tracker(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.core.as_ref().is_some_and(|core| core.role() == Role::Tracker))
    }

    pub(crate) fn alive(&self) -> usize {
        self.nodes.iter().filter(|node| node.core.is_some()).count()
    }

    /// Closes the connection of `from` to `to`, which `to` notices later.
    pub(crate) fn lose_connection(&mut self, from: usize, to: usize) {
        if let Some(travel) = self.travel(from, to) {
            self.checks.sometimes("connection lost");
            let item = Item::Lost { run: self.run_of(to), peer: self.nodes[from].id.clone() };
            self.push(travel, item);
        }
    }

    pub(crate) fn contact(node: &Node) -> Contact {
        Contact { peer: node.id.clone(), endpoint: node.endpoint.clone() }
    }
}
