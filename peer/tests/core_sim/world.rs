//! The simulated machines, network and nameserver.

#[path = "faults.rs"]
mod faults;
#[path = "network.rs"]
mod network;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use nameserver::registry::{Registry, Snapshot};
use peer::core::{
    Action, CallError, CallFailure, CallId, Contact, Core, CoreConfig, DurableState, Event, Reply, Role, Token,
};
use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
    id::{Incarnation, PeerId, Role as Identity},
    limits::{CALL_DEADLINE, DEFAULT_LEASE, HEARTBEAT, HEARTBEAT_DEADLINE, PEER_SILENCE},
    name::{Endpoint, PEER_PREFIX},
    rpc::{
        nameserver::{Claim, Condition, LeaseRequest, Register, Selector},
        tracker::ListAll,
    },
    time::Timestamp,
};

use super::checks::Checks;

const CHAOS: Duration = Duration::from_secs(7);
/// After healing: one tracker known to all.
const L1_BOUND: Duration = Duration::from_secs(4);
/// After healing: the index is the union of the shares.
const L2_BOUND: Duration = Duration::from_secs(6);
/// After a tracker was killed in a healed network: another one, known to all.
const FAILOVER_BOUND: Duration = Duration::from_millis(1500);
/// The nameserver's place among the nodes when cuts are drawn.
const NAMESERVER: usize = usize::MAX;

type Run = (usize, Incarnation);

struct Node {
    id: PeerId,
    endpoint: Endpoint,
    incarnation: Incarnation,
    core: Option<Core>,
    durable: DurableState,
    files: BTreeMap<FileName, FileMeta>,
    frozen: bool,
    /// What waits to be read until the process is thawed.
    unread: Vec<Event>,
    leaving: bool,
}

/// Who waits for an answer, and for which.
struct Waiting {
    run: Run,
    callee: usize,
    kind: Kind,
    call: CallId,
}

#[derive(Clone, Copy)]
enum Kind {
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

/// What a call brings with it.
#[derive(Clone)]
enum Question {
    Seat,
    Peers,
    Claim(Claim),
    Renewal(shared::epoch::Epoch),
    Resign(shared::epoch::Epoch),
    Peer(Box<Event>),
}

enum Item {
    Tick(Run),
    /// A question arrives at its callee.
    Arrive {
        rpc: u64,
        caller: Run,
        callee: usize,
        question: Question,
    },
    /// An answer arrives at its caller.
    Answer {
        rpc: u64,
        event: Event,
    },
    /// The caller's deadline.
    Expire {
        rpc: u64,
        failure: CallFailure,
    },
    Renew(Run),
    Fault,
    Elect(usize),
    Thaw(Run),
    Restart(usize),
    NameserverBack,
}

pub(crate) struct World {
    now: Timestamp,
    rng: fastrand::Rng,
    queue: BTreeMap<(Timestamp, u64), Item>,
    last_item: u64,
    nodes: Vec<Node>,
    registry: Registry,
    nameserver_up: bool,
    waiting: BTreeMap<u64, Waiting>,
    tokens: BTreeMap<Token, u64>,
    last_rpc: u64,
    cuts: BTreeSet<(usize, usize)>,
    loss: f64,
    duplication: f64,
    latency: Duration,
    calm: bool,
    trace: bool,
    pub(crate) checks: Checks,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(2..=7);
        let mut world = Self {
            now: Timestamp::from_origin(Duration::from_secs(1)),
            queue: BTreeMap::new(),
            last_item: 0,
            nodes: Vec::new(),
            registry: Registry::restore(Snapshot::default(), Timestamp::ZERO),
            nameserver_up: true,
            waiting: BTreeMap::new(),
            tokens: BTreeMap::new(),
            last_rpc: 0,
            cuts: BTreeSet::new(),
            loss: if rng.bool() { 0.0 } else { rng.f64() * 0.15 },
            duplication: if rng.bool() { 0.0 } else { 0.1 },
            latency: Duration::from_micros([300, 2_000, 20_000, 60_000][rng.usize(0..4)]),
            calm: false,
            trace,
            checks: Checks::default(),
            rng,
        };
        for number in 0..count {
            let id: PeerId = format!("peer{number}").parse().expect("a peer's id");
            let endpoint = format!("quic://10.0.0.{}:4000", number + 1).parse().expect("an endpoint");
            world.nodes.push(Node {
                id,
                endpoint,
                incarnation: Incarnation(0),
                core: None,
                durable: DurableState::default(),
                files: BTreeMap::new(),
                frozen: false,
                unread: Vec::new(),
                leaving: false,
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

    /// Everything works again; some of the dead stay dead. Then L1 and L2 hold within their bounds, and a tracker
    /// that is killed after that is replaced.
    pub(crate) fn heal(&mut self) {
        self.calm = true;
        self.cuts.clear();
        (self.loss, self.duplication) = (0.0, 0.0);
        self.latency = self.latency.min(Duration::from_millis(20));
        if !self.nameserver_up {
            self.nameserver_back();
        }
        let stay_dead = self.rng.usize(0..self.nodes.len());
        for node in 0..self.nodes.len() {
            if self.nodes[node].frozen {
                self.thaw((node, self.nodes[node].incarnation));
            }
            if self.nodes[node].leaving {
                self.crash(node);
            }
            if self.nodes[node].core.is_none() && (node != stay_dead || self.nodes.len() < 3) {
                self.restart(node);
            }
        }
        let healed = self.now;
        self.run_until(healed + L1_BOUND);
        self.check_one_tracker();
        self.run_until(healed + L2_BOUND);
        self.check_one_tracker();
        self.check_index();
        let role = |node: &Node| node.core.as_ref().map(Core::role);
        if let Some(follower) = self.nodes.iter().position(|node| role(node) == Some(Role::Follower)) {
            self.crash(follower);
            let killed = self.now;
            self.run_until(killed + PEER_SILENCE + HEARTBEAT * 2);
            self.check_index();
        }
        let tracker = self.nodes.iter().position(|node| role(node) == Some(Role::Tracker));
        if self.nodes.iter().filter(|node| node.core.is_some()).count() > 1 {
            self.crash(tracker.expect("checked above"));
            let killed = self.now;
            self.run_until(killed + FAILOVER_BOUND);
            self.check_one_tracker();
            self.run_until(killed + L1_BOUND);
            self.check_index();
        }
    }

    fn check_one_tracker(&self) {
        let seat = self.registry.seat(self.now).seat.expect("L1: the seat is vacant after healing");
        for core in self.nodes.iter().filter_map(|node| node.core.as_ref()) {
            assert_eq!(core.tracker(), Some(&seat), "L1: {} in {:?} does not know the tracker", core.id(), core.role());
        }
    }

    fn check_index(&mut self) {
        let mut expected: BTreeMap<(String, ContentHash), Vec<PeerId>> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.core.is_some()) {
            for file in node.files.values() {
                expected.entry((file.name.to_string(), file.hash)).or_default().push(node.id.clone());
            }
        }
        let now = self.now;
        let tracker = self.nodes.iter_mut().filter_map(|node| node.core.as_mut()).find(|c| c.role() == Role::Tracker);
        let core = tracker.expect("checked before");
        let mut found = BTreeMap::new();
        let mut after = None;
        loop {
            let query = ListAll { epoch: core.seat_view().epoch_high, prefix: String::new(), after };
            let page = core.list_all(now, &query, &mut Vec::new()).expect("L2: the tracker does not list");
            found.extend(page.files.into_iter().map(|f| ((f.file.name.to_string(), f.file.hash), f.owners)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "L2: the index is not the union of the shares");
    }

    fn run_until(&mut self, end: Timestamp) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), item) = entry.remove_entry();
            self.now = self.now.max(at);
            self.step(item);
        }
        self.now = end;
    }

    fn step(&mut self, item: Item) {
        match item {
            Item::Tick(run) => {
                let due = self.running(run).and_then(Core::next_deadline).is_some_and(|deadline| deadline <= self.now);
                if due && !self.nodes[run.0].frozen {
                    self.handle(run.0, Event::Tick);
                }
            }
            Item::Arrive { rpc, caller, callee, question } => self.arrive(rpc, caller, callee, question),
            Item::Answer { rpc, event } => {
                if let Some(waiting) = self.waiting.remove(&rpc) {
                    self.deliver(waiting.run, event);
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
            Item::NameserverBack => {
                if !self.nameserver_up {
                    self.nameserver_back();
                }
            }
        }
    }

    fn running(&self, (node, incarnation): Run) -> Option<&Core> {
        let node = &self.nodes[node];
        node.core.as_ref().filter(|_| node.incarnation == incarnation)
    }

    fn deliver(&mut self, run: Run, event: Event) {
        if self.running(run).is_none() {
            return;
        }
        if self.nodes[run.0].frozen {
            self.nodes[run.0].unread.push(event);
        } else {
            self.handle(run.0, event);
        }
    }

    fn handle(&mut self, number: usize, event: Event) {
        let now = self.now;
        let node = &mut self.nodes[number];
        let Some(core) = &mut node.core else { return };
        self.checks.told(&node.id, node.incarnation, &event);
        let mut actions = Vec::new();
        core.handle(now, event.clone(), &mut actions);
        let deadline = core.next_deadline();
        let (id, run) = (node.id.clone(), (number, node.incarnation));
        for action in &actions {
            if self.trace {
                self.print(&id, &event, action);
            }
            self.checks.action(&id, run.1, action, &event);
        }
        for action in actions {
            self.execute(number, action);
        }
        if let Some(core) = &self.nodes[number].core {
            self.checks.core(now, core, &self.registry);
        }
        self.checks.trackers(self.nodes.iter().filter_map(|node| node.core.as_ref()));
        if let Some(deadline) = deadline {
            self.push(deadline.since(now), Item::Tick(run));
        }
    }

    /// What a reader of a replayed run wants to see: not every heartbeat.
    fn print(&self, peer: &PeerId, event: &Event, action: &Action) {
        let at = self.now.since_origin().as_secs_f64();
        match action {
            Action::Report(report) => eprintln!("{at:.4} {peer} {report:?}"),
            Action::Claim { claim, .. } => eprintln!("{at:.4} {peer} {claim:?}"),
            Action::Resign { epoch, .. } => eprintln!("{at:.4} {peer} resigns {epoch}"),
            Action::RequestVote { to, request, .. } => eprintln!("{at:.4} {peer} asks {} {request:?}", to.peer),
            Action::Reply { reply: Reply::Vote(reply), .. } => eprintln!("{at:.4} {peer} {event:?} {reply:?}"),
            Action::Reply { reply: Reply::Elected(result), .. } => eprintln!("{at:.4} {peer} {result:?}"),
            _ => {}
        }
        if let Event::ClaimAnswered { result, .. } = event {
            eprintln!("{at:.4} {peer} answered {result:?}");
        }
    }

    fn execute(&mut self, node: usize, action: Action) {
        match action {
            Action::Persist(durable) => self.nodes[node].durable = durable,
            Action::QuerySeat { call } => self.ask(node, NAMESERVER, Kind::Seat, call, Question::Seat),
            Action::QueryPeers { call } => self.ask(node, NAMESERVER, Kind::Peers, call, Question::Peers),
            Action::Claim { call, claim } => self.ask(node, NAMESERVER, Kind::Claim, call, Question::Claim(claim)),
            Action::RenewSeat { call, epoch } => {
                self.ask(node, NAMESERVER, Kind::Renewal, call, Question::Renewal(epoch));
            }
            Action::Resign { call, epoch } => self.ask(node, NAMESERVER, Kind::Resign, call, Question::Resign(epoch)),
            Action::SendHeartbeat { call, to, beat } => {
                let event = Event::HeartbeatReceived { token: Token(0), from: self.nodes[node].id.clone(), beat };
                self.ask_peer(node, &to, Kind::Heartbeat, call, event);
            }
            Action::SendAnnouncement { call, to, announcement } => {
                let from = self.nodes[node].id.clone();
                let event = Event::AnnouncementReceived { token: Token(0), from, announcement };
                self.ask_peer(node, &to, Kind::Announcement, call, event);
            }
            Action::RequestVote { call, to, request } => {
                let event = Event::VoteRequested { token: Token(0), from: self.nodes[node].id.clone(), request };
                self.ask_peer(node, &to, Kind::Vote, call, event);
            }
            Action::SendNotice { to, notice } => {
                let event = Event::NoticeReceived { token: Token(0), from: self.nodes[node].id.clone(), notice };
                self.ask_peer(node, &to, Kind::Notice, CallId(0), event);
            }
            Action::SendLeave { to, epoch, incarnation } => {
                let from = self.nodes[node].id.clone();
                let event = Event::LeaveReceived { token: Token(0), from, epoch, incarnation };
                self.ask_peer(node, &to, Kind::Leave, CallId(0), event);
            }
            Action::Reply { token, reply } => self.reply(node, token, reply),
            Action::Report(_) => {}
            Action::Stopped => {
                if self.nameserver_up {
                    let id = &self.nodes[node].id;
                    let name = Some(format!("{PEER_PREFIX}{id}"));
                    let caller = Identity::Peer(id.clone());
                    let selector = Selector { name, prefix: None, regex: None };
                    self.registry.remove(self.now, &caller, selector).expect("one's own name");
                    self.registry.settle();
                }
                self.crash(node);
                let back = self.random(Duration::from_millis(4000));
                self.push(back, Item::Restart(node));
            }
        }
    }
}
