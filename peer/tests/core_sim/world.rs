//! The simulated machines, network and nameserver.

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
    limits::{CALL_DEADLINE, DEFAULT_LEASE, HEARTBEAT_DEADLINE},
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
    Arrive { rpc: u64, caller: Run, callee: usize, question: Question },
    /// An answer arrives at its caller.
    Answer { rpc: u64, event: Event },
    /// The caller's deadline.
    Expire { rpc: u64, failure: CallFailure },
    Renew(Run),
    Fault,
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
    pub(crate) checks: Checks,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
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
        let tracker = self.nodes.iter().position(|node| node.core.as_ref().is_some_and(|c| c.role() == Role::Tracker));
        if self.nodes.iter().filter(|node| node.core.is_some()).count() > 1 {
            self.crash(tracker.expect("checked above"));
            let killed = self.now;
            self.run_until(killed + L1_BOUND);
            self.check_one_tracker();
            self.run_until(killed + L2_BOUND);
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
                    if let Some(event) = failed(waiting.kind, waiting.call, from, failure) {
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
            Item::Thaw(run) => self.thaw(run),
            Item::Restart(node) => {
                if self.nodes[node].core.is_none() {
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

    // --- what goes wrong ------------------------------------------------------------------------

    fn fault(&mut self) {
        let node = self.rng.usize(0..self.nodes.len());
        let tracker = self.nodes.iter().position(|n| n.core.as_ref().is_some_and(|core| core.role() == Role::Tracker));
        // Trackers are hit more often than their number suggests.
        let node = tracker.filter(|_| self.rng.u8(0..3) == 0).unwrap_or(node);
        match self.rng.u8(0..13) {
            0..=2 => self.change_share(node),
            3 | 4 => {
                self.crash(node);
                let back = Duration::from_millis(50) + self.random(Duration::from_millis(3000));
                self.push(back, Item::Restart(node));
            }
            5 | 6 => {
                if self.nodes[node].core.is_some() {
                    self.nodes[node].frozen = true;
                    let run = (node, self.nodes[node].incarnation);
                    let thaw = Duration::from_millis(100) + self.random(Duration::from_millis(2500));
                    self.push(thaw, Item::Thaw(run));
                }
            }
            7 => {
                if self.nodes[node].core.is_some() && !self.nodes[node].frozen && !self.nodes[node].leaving {
                    let was_tracker = tracker == Some(node);
                    self.nodes[node].leaving = true;
                    self.handle(node, Event::Shutdown);
                    if was_tracker {
                        self.checks.sometimes("tracker left in good order");
                    }
                }
            }
            8 | 9 => {
                if self.nodes[node].core.is_some() && !self.nodes[node].frozen {
                    let token = Token(u64::MAX - self.last_item);
                    self.handle(node, Event::ElectionRequested { token });
                }
            }
            10 => {
                let other = self.rng.usize(0..=self.nodes.len());
                let other = if other == self.nodes.len() { NAMESERVER } else { other };
                if self.rng.bool() {
                    self.cuts.insert((node, other));
                }
                self.cuts.insert((other, node));
            }
            11 => self.cuts.clear(),
            _ => {
                if self.nameserver_up {
                    self.nameserver_up = false;
                    let back = self.random(Duration::from_millis(2500));
                    self.push(back, Item::NameserverBack);
                }
            }
        }
    }

    fn change_share(&mut self, node: usize) {
        let mut upserts = Vec::new();
        let mut removals = Vec::new();
        for _ in 0..self.rng.usize(1..6) {
            let name: FileName = format!("f{}", self.rng.u8(0..20)).parse().expect("a file's name");
            if self.rng.u8(0..3) == 0 {
                removals.push(name);
            } else {
                let size = u64::from(self.rng.u8(0..4));
                let mut hash = [0; 32];
                hash[0] = u8::try_from(size).expect("small");
                let mtime_micros = i64::from(self.rng.u8(..));
                let hash = ContentHash(hash);
                upserts.push(FileMeta { name, size, hash, mtime_micros, executable: false });
            }
        }
        let files = &mut self.nodes[node].files;
        for name in &removals {
            files.remove(name);
        }
        for file in &upserts {
            files.insert(file.name.clone(), file.clone());
        }
        let run = (node, self.nodes[node].incarnation);
        self.deliver(run, Event::ShareChanged { upserts, removals });
    }

    fn crash(&mut self, node: usize) {
        self.nodes[node].core = None;
        self.nodes[node].frozen = false;
        self.nodes[node].unread.clear();
        self.nodes[node].leaving = false;
    }

    fn restart(&mut self, number: usize) {
        let seed = self.rng.u64(..);
        let now = self.now;
        let node = &mut self.nodes[number];
        node.incarnation.0 += 1;
        let config = CoreConfig {
            id: node.id.clone(),
            incarnation: node.incarnation,
            endpoint: node.endpoint.clone(),
            seed,
            durable: node.durable.clone(),
        };
        node.core = Some(Core::new(config, now));
        if node.incarnation.0 > 1 {
            self.checks.sometimes("restarted run followed");
        }
        let run = (number, self.nodes[number].incarnation);
        if self.nameserver_up && self.reaches(number, NAMESERVER) {
            self.register(number);
        }
        self.push(DEFAULT_LEASE / 6, Item::Renew(run));
        let upserts = self.nodes[number].files.values().cloned().collect();
        self.handle(number, Event::ShareChanged { upserts, removals: Vec::new() });
    }

    fn thaw(&mut self, run: Run) {
        let (number, _) = run;
        if self.running(run).is_none() || !self.nodes[number].frozen {
            return;
        }
        self.nodes[number].frozen = false;
        let mut unread = std::mem::take(&mut self.nodes[number].unread);
        // The timer and the sockets are ready at once; which is looked at first is anybody's guess.
        let at = self.rng.usize(0..=unread.len());
        unread.insert(at, Event::Tick);
        for event in unread {
            self.handle(number, event);
        }
    }

    fn nameserver_back(&mut self) {
        self.nameserver_up = true;
        self.registry = Registry::restore(self.registry.snapshot(), self.now);
        self.checks.registry(self.now, &self.registry);
    }

    // --- processes ------------------------------------------------------------------------------

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

    // --- network --------------------------------------------------------------------------------

    fn push(&mut self, wait: Duration, item: Item) {
        self.last_item += 1;
        self.queue.insert((self.now + wait, self.last_item), item);
    }

    fn random(&mut self, below: Duration) -> Duration {
        let micros = u64::try_from(below.as_micros()).expect("short");
        Duration::from_micros(self.rng.u64(0..micros.max(1)))
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to))
    }

    /// How long a message takes; `None` when it is lost.
    fn travel(&mut self, from: usize, to: usize) -> Option<Duration> {
        let lost = !self.reaches(from, to) || self.rng.f64() < self.loss;
        let spread = if self.rng.u8(0..20) == 0 { self.latency * 6 } else { self.latency };
        let travel = self.latency / 2 + self.random(spread);
        (!lost).then_some(travel)
    }

    fn ask_peer(&mut self, node: usize, to: &Contact, kind: Kind, call: CallId, event: Event) {
        let callee = self.nodes.iter().position(|node| node.id == to.peer).expect("a known peer");
        self.ask(node, callee, kind, call, Question::Peer(Box::new(event)));
    }

    fn ask(&mut self, node: usize, callee: usize, kind: Kind, call: CallId, question: Question) {
        self.last_rpc += 1;
        let rpc = self.last_rpc;
        let run = (node, self.nodes[node].incarnation);
        self.waiting.insert(rpc, Waiting { run, callee, kind, call });
        let copies = if self.rng.f64() < self.duplication { 2 } else { 1 };
        for _ in 0..copies {
            if let Some(travel) = self.travel(node, callee) {
                let question = question.clone();
                self.push(travel, Item::Arrive { rpc, caller: run, callee, question });
            }
        }
        let deadline = match kind {
            Kind::Heartbeat | Kind::Vote | Kind::Seat | Kind::Renewal => HEARTBEAT_DEADLINE,
            Kind::Announcement => CALL_DEADLINE / 4,
            _ => CALL_DEADLINE,
        };
        self.push(deadline, Item::Expire { rpc, failure: CallFailure::NoAnswer });
    }

    fn answer(&mut self, rpc: u64, from: usize, event: impl FnOnce(CallId) -> Event) {
        let Some(waiting) = self.waiting.get(&rpc) else { return };
        let (to, event) = (waiting.run.0, event(waiting.call));
        if let Some(travel) = self.travel(from, to) {
            self.push(travel, Item::Answer { rpc, event });
        }
    }

    fn arrive(&mut self, rpc: u64, caller: Run, callee: usize, question: Question) {
        if let Question::Peer(event) = question {
            if self.nodes[callee].core.is_none() {
                // The machine lives and says that nobody listens; sometimes that is lost or never sent.
                if self.rng.bool() && let Some(travel) = self.travel(callee, caller.0) {
                    self.push(travel, Item::Expire { rpc, failure: CallFailure::Unreachable });
                }
                return;
            }
            let token = Token(self.last_item);
            self.last_item += 1;
            self.tokens.insert(token, rpc);
            let run = (callee, self.nodes[callee].incarnation);
            self.deliver(run, with_token(*event, token));
            return;
        }
        if !self.nameserver_up {
            return;
        }
        let now = self.now;
        self.registry.expire(now);
        let identity = Identity::Peer(self.nodes[caller.0].id.clone());
        match question {
            Question::Seat => {
                let result = Ok(self.registry.seat(now));
                self.answer(rpc, NAMESERVER, |call| Event::SeatAnswered { call, result });
            }
            Question::Peers => {
                let registered = |node: &&Node| self.registry.lookup(now, &format!("{PEER_PREFIX}{}", node.id)).is_ok();
                let contact = |node: &Node| Contact { peer: node.id.clone(), endpoint: node.endpoint.clone() };
                let result = Ok(self.nodes.iter().filter(registered).map(contact).collect());
                self.answer(rpc, NAMESERVER, |call| Event::PeersAnswered { call, result });
            }
            Question::Claim(claim) => {
                let held = self.registry.seat(now).seat.is_some();
                let result = self.registry.claim(now, &identity, claim.clone());
                self.checks.claim(&self.nodes[caller.0].id, &claim, held, result.is_ok());
                let result = result.map_err(CallError::Refused);
                self.answer(rpc, NAMESERVER, |call| Event::ClaimAnswered { call, result });
            }
            Question::Renewal(epoch) => {
                let result = self.registry.renew_seat(now, &identity, epoch).map_err(CallError::Refused);
                self.answer(rpc, NAMESERVER, |call| Event::RenewalAnswered { call, result });
            }
            Question::Resign(epoch) => {
                let result = self.registry.resign(now, &identity, epoch).map_err(CallError::Refused);
                self.answer(rpc, NAMESERVER, |call| Event::ResignAnswered { call, result });
            }
            Question::Peer(_) => unreachable!("handled above"),
        }
        self.registry.settle();
        self.checks.registry(now, &self.registry);
    }

    fn reply(&mut self, node: usize, token: Token, reply: Reply) {
        let Some(rpc) = self.tokens.remove(&token) else { return };
        let from = self.nodes[node].id.clone();
        self.answer(rpc, node, |call| match reply {
            Reply::Vote(reply) => Event::VoteAnswered { call, from, result: Ok(reply) },
            Reply::Notice(view) => Event::NoticeAnswered { from, view },
            Reply::Heartbeat(result) => {
                Event::HeartbeatAnswered { call, from, result: result.map_err(CallError::Refused) }
            }
            Reply::Announcement(result) => {
                Event::AnnouncementAnswered { call, from, result: result.map_err(CallError::Refused) }
            }
            Reply::Leave(_) | Reply::Elected(_) => Event::Tick,
        });
    }

    fn register(&mut self, node: usize) {
        let Node { id, endpoint, incarnation, .. } = &self.nodes[node];
        let request = Register {
            name: format!("{PEER_PREFIX}{id}"),
            uri: endpoint.to_string(),
            tags: None,
            lease: LeaseRequest::For(DEFAULT_LEASE),
            condition: Condition::Always,
            incarnation: *incarnation,
        };
        self.registry.register(self.now, &Identity::Peer(id.clone()), request).expect("one's own name");
        self.registry.settle();
    }
}

fn with_token(event: Event, token: Token) -> Event {
    match event {
        Event::VoteRequested { from, request, .. } => Event::VoteRequested { token, from, request },
        Event::NoticeReceived { from, notice, .. } => Event::NoticeReceived { token, from, notice },
        Event::HeartbeatReceived { from, beat, .. } => Event::HeartbeatReceived { token, from, beat },
        Event::AnnouncementReceived { from, announcement, .. } => {
            Event::AnnouncementReceived { token, from, announcement }
        }
        Event::LeaveReceived { from, epoch, incarnation, .. } => {
            Event::LeaveReceived { token, from, epoch, incarnation }
        }
        other => other,
    }
}

fn failed(kind: Kind, call: CallId, from: Option<PeerId>, failure: CallFailure) -> Option<Event> {
    let from = from.or_else(|| "nameserver".parse().ok())?;
    Some(match kind {
        Kind::Seat => Event::SeatAnswered { call, result: Err(failure) },
        Kind::Peers => Event::PeersAnswered { call, result: Err(failure) },
        Kind::Claim => Event::ClaimAnswered { call, result: Err(failure.into()) },
        Kind::Renewal => Event::RenewalAnswered { call, result: Err(failure.into()) },
        Kind::Resign => Event::ResignAnswered { call, result: Err(failure.into()) },
        Kind::Heartbeat => Event::HeartbeatAnswered { call, from, result: Err(failure.into()) },
        Kind::Announcement => Event::AnnouncementAnswered { call, from, result: Err(failure.into()) },
        Kind::Vote => Event::VoteAnswered { call, from, result: Err(failure) },
        Kind::Notice | Kind::Leave => return None,
    })
}
