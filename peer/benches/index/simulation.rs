//! Simulation of a failover: a thousand real cores and a real nameserver registry under one virtual clock.
//!
//! The simulation measures how long a core takes for an event and delays the core's next event by that time, so an
//! overloaded tracker answers as late as it would in a real network. Messages take [`LATENCY`] and are not lost.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use nameserver::{
    params::MAX_LEASE,
    registry::{Registry, Snapshot},
};
use protocol::{
    CallId,
    election::{Action, CallError, CallFailure, Core, CoreConfig, DurableState, Event, Reply, Report, Role, Token},
};
use serde::Serialize;
use shared::{
    contact::Contact,
    content::FileMeta,
    id::{Incarnation, PeerId, Role as Identity},
    limits::{CALL_DEADLINE, HEARTBEAT_DEADLINE},
    name::{Endpoint, Name},
    rpc::{
        nameserver::{Condition, LeaseRequest, Register, SeatView},
        peer::{SeatNotice, VoteReply, VoteRequest},
        tracker::{Addressee, Announcement, Heartbeat, HeartbeatAck, TrackerError},
    },
    time::{Clock, Timestamp},
};

use crate::shares::Shares;

/// Latency of a message, and of a write of the nameserver.
const LATENCY: Duration = Duration::from_micros(500);
/// Virtual time after which a network that has not converged is a failure.
const CONVERGENCE_DEADLINE: Duration = Duration::from_secs(120);

/// Cost of a failover, until the new tracker's index is complete.
#[derive(Debug, Default)]
pub struct Cost {
    /// Time until a peer becomes tracker.
    pub seated: Duration,
    /// Time until the tracker answers queries.
    pub settled: Duration,
    /// Time until the index is complete.
    pub complete: Duration,
    /// Announcements to the tracker.
    pub announcements: usize,
    /// Encoded size of the announcements, bytes.
    pub announcement_bytes: usize,
    /// Heartbeats to the tracker.
    pub heartbeats: usize,
    /// Encoded size of the heartbeats, bytes.
    pub heartbeat_bytes: usize,
    /// Snapshots that the tracker postponed.
    pub postponed: usize,
    /// Longest time from the arrival of a heartbeat at the tracker to the arrival of its answer.
    pub longest_wait: Duration,
}

enum Item {
    Tick,
    Event(Box<Event>),
    Call { token: Token, from: PeerId, question: Box<Question> },
}

/// Call that a core answers at once.
enum Question {
    Heartbeat(Heartbeat),
    Announcement(Announcement),
    Notice(SeatNotice),
}

enum Answer {
    Heartbeat(Result<HeartbeatAck, TrackerError>),
    Announcement(Result<(), TrackerError>),
    Notice(SeatView),
    Vote(VoteReply),
}

struct Call {
    caller: usize,
    call: CallId,
    callee: usize,
    sent_at: Timestamp,
    is_heartbeat: bool,
}

struct Node {
    id: PeerId,
    endpoint: Endpoint,
    core: Option<Core>,
    busy_until: Timestamp,
}

/// Simulated network.
pub struct Simulation {
    now: Timestamp,
    clock: Clock,
    queue: BTreeMap<(Timestamp, u64), (usize, Item)>,
    last: u64,
    nodes: Vec<Node>,
    numbers: HashMap<PeerId, usize>,
    registry: Registry,
    calls: HashMap<Token, Call>,
    cost: Cost,
    killed_at: Timestamp,
}

impl Simulation {
    /// Starts all peers and runs until the tracker's index is complete.
    pub fn start(shares: &Shares) -> Self {
        let mut simulation = Self {
            now: Timestamp::from_origin(Duration::from_secs(1)),
            clock: Clock::start(),
            queue: BTreeMap::new(),
            last: 0,
            nodes: Vec::new(),
            numbers: HashMap::new(),
            registry: Registry::restore(Snapshot::default(), Timestamp::ZERO),
            calls: HashMap::new(),
            cost: Cost::default(),
            killed_at: Timestamp::ZERO,
        };
        for peer in 0..shares.peers {
            simulation.register(peer);
        }
        for peer in 0..shares.peers {
            simulation.join(peer, shares);
            // The first peer becomes tracker before the others join, two in each millisecond.
            let wait = if peer == 0 { Duration::from_secs(2) } else { LATENCY };
            simulation.run_until(simulation.now + wait);
        }
        simulation.run_until_complete();
        simulation
    }

    fn register(&mut self, number: usize) {
        let id = Shares::id(number);
        let endpoint: Endpoint = format!("quic://{id}.example.net:4000").parse().expect("an endpoint");
        let request = Register {
            name: Name::peer(&id).to_string(),
            uri: endpoint.to_string(),
            tags: None,
            lease: LeaseRequest::For(MAX_LEASE),
            condition: Condition::Always,
            incarnation: Incarnation(1),
        };
        self.registry
            .register(self.now, &Identity::Peer(id.clone()), request)
            .expect("a peer may register its own name");
        self.registry.settle();
        self.numbers.insert(id.clone(), number);
        self.nodes.push(Node { id, endpoint, core: None, busy_until: self.now });
    }

    fn join(&mut self, number: usize, shares: &Shares) {
        let node = &mut self.nodes[number];
        let config = CoreConfig {
            id: node.id.clone(),
            incarnation: Incarnation(1),
            endpoint: node.endpoint.clone(),
            seed: number as u64,
            durable: DurableState::default(),
            candidate: true,
        };
        node.core = Some(Core::new(config, self.now));
        let file = |file| FileMeta::try_from(shares.file(number, file, 0)).expect("a name");
        let upserts = (0..shares.files_per_peer).map(file).collect();
        self.push(Duration::ZERO, number, Item::Event(Box::new(Event::ShareChanged { upserts, removals: Vec::new() })));
    }

    fn push(&mut self, wait: Duration, node: usize, item: Item) {
        self.last += 1;
        self.queue.insert((self.now + wait, self.last), (node, item));
    }

    fn run_until(&mut self, end: Timestamp) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), (node, item)) = entry.remove_entry();
            self.now = self.now.max(at);
            self.step(node, item);
        }
        self.now = end;
    }

    fn step(&mut self, number: usize, item: Item) {
        let node = &mut self.nodes[number];
        let Some(core) = &mut node.core else { return };
        if self.now < node.busy_until {
            let wait = node.busy_until.since(self.now);
            self.push(wait, number, item);
            return;
        }
        let (now, mut actions) = (self.now, Vec::new());
        let started = self.clock.now();
        let answer = match item {
            Item::Tick if core.next_deadline().is_none_or(|deadline| now < deadline) => return,
            Item::Tick => {
                core.handle(now, Event::Tick, &mut actions);
                None
            }
            Item::Event(event) => {
                core.handle(now, *event, &mut actions);
                None
            }
            Item::Call { token, from, question } => {
                let answer = match *question {
                    Question::Heartbeat(beat) => Answer::Heartbeat(core.on_heartbeat(now, &from, &beat, &mut actions)),
                    Question::Announcement(announcement) => {
                        Answer::Announcement(core.on_announcement(now, &from, announcement, &mut actions))
                    }
                    Question::Notice(notice) => Answer::Notice(core.on_notice(now, &from, notice, &mut actions)),
                };
                Some((token, answer))
            }
        };
        node.busy_until = self.now + self.clock.now().since(started);
        if let Some(deadline) = core.next_deadline() {
            self.push(deadline.since(self.now), number, Item::Tick);
        }
        for action in actions {
            self.carry_out(number, action);
        }
        if let Some((token, answer)) = answer {
            self.reply(number, token, answer);
        }
    }

    fn carry_out(&mut self, number: usize, action: Action) {
        let from = self.nodes[number].id.clone();
        let identity = Identity::Peer(from.clone());
        let now = self.now;
        self.registry.expire(now);
        let answer = match action {
            Action::SendHeartbeat { call, to, beat } => {
                if beat.to == Addressee::Tracker {
                    self.cost.heartbeats += 1;
                    self.cost.heartbeat_bytes += bytes(&beat);
                }
                return self.call(number, &to, call, Question::Heartbeat(beat));
            }
            Action::SendAnnouncement { call, to, announcement } => {
                if announcement.to == Addressee::Tracker {
                    self.cost.announcements += 1;
                    self.cost.announcement_bytes += bytes(&announcement);
                }
                return self.call(number, &to, call, Question::Announcement(announcement));
            }
            Action::RequestVote { call, to, request } => {
                return self.request_vote(number, &to, call, request);
            }
            Action::SendNotice { to, notice } => {
                return self.call(number, &to, CallId(0), Question::Notice(notice));
            }
            Action::Reply { token, reply: Reply::Vote(reply) } => {
                return self.reply(number, token, Answer::Vote(reply));
            }
            // Peers detect the killed tracker by missed heartbeats. The detection is not part of the measurement.
            Action::ProbePort { .. } => return,
            Action::Report(Report::BecameTracker { .. }) => {
                self.cost.seated = now.since(self.killed_at);
                return;
            }
            Action::Report(Report::Settled { .. }) => {
                self.cost.settled = now.since(self.killed_at);
                return;
            }
            Action::QuerySeat { call } => Event::SeatAnswered { call, result: Ok(self.registry.seat(now)) },
            Action::QueryPeers { call } => {
                let contact = |node: &Node| Contact { peer: node.id.clone(), endpoint: node.endpoint.clone() };
                Event::PeersAnswered { call, result: Ok(self.nodes.iter().map(contact).collect()) }
            }
            Action::Claim { call, claim } => {
                let result = self.registry.claim(now, &identity, claim).map_err(CallError::Refused);
                Event::ClaimAnswered { call, result }
            }
            Action::RenewSeat { call, epoch } => {
                let result = self.registry.renew_seat(now, &identity, epoch).map_err(CallError::Refused);
                Event::RenewalAnswered { call, result }
            }
            Action::Resign { call, epoch } => {
                let result = self.registry.resign(now, &identity, epoch).map_err(CallError::Refused);
                Event::ResignAnswered { call, result }
            }
            Action::Persist(_)
            | Action::Reply { .. }
            | Action::Report(_)
            | Action::SendLeave { .. }
            | Action::Stopped => return,
        };
        self.registry.settle();
        self.push(LATENCY * 2, number, Item::Event(Box::new(answer)));
    }

    fn call(&mut self, caller: usize, to: &Contact, call: CallId, question: Question) {
        let is_heartbeat = matches!(question, Question::Heartbeat(_));
        let Some((callee, token)) = self.connect(caller, to, call, is_heartbeat) else {
            let (from, result) = (to.peer.clone(), CallFailure::Unreachable);
            let failed = match question {
                Question::Heartbeat(_) => Event::HeartbeatAnswered { call, from, result: Err(result.into()) },
                Question::Announcement(_) => Event::AnnouncementAnswered { call, from, result: Err(result.into()) },
                Question::Notice(_) => return,
            };
            return self.push(LATENCY * 2, caller, Item::Event(Box::new(failed)));
        };
        let from = self.nodes[caller].id.clone();
        self.push(LATENCY, callee, Item::Call { token, from, question: Box::new(question) });
    }

    fn request_vote(&mut self, caller: usize, to: &Contact, call: CallId, request: VoteRequest) {
        let Some((callee, token)) = self.connect(caller, to, call, false) else {
            let (from, result) = (to.peer.clone(), Err(CallFailure::Unreachable));
            return self.push(LATENCY * 2, caller, Item::Event(Box::new(Event::VoteAnswered { call, from, result })));
        };
        let from = self.nodes[caller].id.clone();
        self.push(LATENCY, callee, Item::Event(Box::new(Event::VoteRequested { token, from, request })));
    }

    /// Registers a call; `None` when the callee is down: its host is up and refuses the datagram.
    fn connect(&mut self, caller: usize, to: &Contact, call: CallId, is_heartbeat: bool) -> Option<(usize, Token)> {
        let callee = self.numbers[&to.peer];
        self.last += 1;
        let token = Token(self.last);
        self.nodes[callee].core.as_ref()?;
        self.calls.insert(token, Call { caller, call, callee, sent_at: self.now, is_heartbeat });
        Some((callee, token))
    }

    fn reply(&mut self, callee: usize, token: Token, answer: Answer) {
        let Some(Call { caller, call, callee: expected, sent_at, is_heartbeat }) = self.calls.remove(&token) else {
            return;
        };
        assert_eq!(callee, expected, "only the callee replies");
        let from = self.nodes[callee].id.clone();
        let done = self.nodes[callee].busy_until.max(self.now);
        let took = done.since(sent_at) + LATENCY;
        let is_tracker = self.nodes[callee].core.as_ref().is_some_and(|core| core.role() == Role::Tracker);
        if is_heartbeat && is_tracker {
            self.cost.longest_wait = self.cost.longest_wait.max(took);
        }
        let late = took > if is_heartbeat { HEARTBEAT_DEADLINE } else { CALL_DEADLINE };
        let event = match answer {
            Answer::Heartbeat(_) if late => {
                Event::HeartbeatAnswered { call, from, result: Err(CallFailure::NoAnswer.into()) }
            }
            Answer::Announcement(_) if late => {
                Event::AnnouncementAnswered { call, from, result: Err(CallFailure::NoAnswer.into()) }
            }
            Answer::Heartbeat(result) => {
                Event::HeartbeatAnswered { call, from, result: result.map_err(CallError::Refused) }
            }
            Answer::Announcement(result) => {
                if is_tracker && matches!(result, Err(TrackerError::Later { .. })) {
                    self.cost.postponed += 1;
                }
                Event::AnnouncementAnswered { call, from, result: result.map_err(CallError::Refused) }
            }
            Answer::Vote(reply) => Event::VoteAnswered { call, from, result: Ok(reply) },
            Answer::Notice(view) => Event::NoticeAnswered { from, view },
        };
        let wait = done.since(self.now) + LATENCY;
        self.push(wait, caller, Item::Event(Box::new(event)));
    }

    fn cores(&self) -> impl Iterator<Item = &Core> {
        self.nodes.iter().filter_map(|node| node.core.as_ref())
    }

    fn tracker(&self) -> Option<&Core> {
        self.cores().find(|core| core.role() == Role::Tracker)
    }

    /// Returns whether all peers know one tracker and its index is complete.
    fn is_complete(&self) -> bool {
        let Some(tracker) = self.tracker() else { return false };
        let is_announced = |core: &Core| core.tracker() == tracker.tracker() && core.is_announced();
        let members = self.cores().count();
        tracker.index_size().is_some_and(|(known, _)| known == members) && self.cores().all(is_announced)
    }

    /// Returns whether the standbys' indices hold all files but the tracker's and their own.
    fn is_warm(&self, shares: usize) -> bool {
        let Some(tracker) = self.tracker() else { return false };
        let others = self.cores().count() - 2;
        let is_warm = |peer: &PeerId| {
            let core = self.nodes[self.numbers[peer]].core.as_ref();
            core.and_then(Core::standby_size) == Some((others, others * shares))
        };
        tracker.standbys().len() == 2 && tracker.standbys().iter().all(is_warm)
    }

    fn run_until_complete(&mut self) {
        let end = self.now + CONVERGENCE_DEADLINE;
        while !self.is_complete() {
            assert!(self.now < end, "the index is not complete: {:?}", self.tracker().map(Core::index_size));
            self.run_until(self.now + Duration::from_millis(10));
        }
    }

    /// Runs until the standbys' indices are complete.
    pub fn warm_up(&mut self, shares: &Shares) {
        let end = self.now + CONVERGENCE_DEADLINE;
        while !self.is_warm(shares.files_per_peer) {
            assert!(self.now < end, "the standbys' indices are not complete");
            self.run_until(self.now + Duration::from_millis(10));
        }
    }

    /// Kills the tracker, and its standbys if `with_standbys`, and runs until the index of a new tracker is complete.
    pub fn kill(&mut self, with_standbys: bool) -> Cost {
        let tracker = self.tracker().expect("the network has a tracker");
        let standbys = if with_standbys { tracker.standbys().to_vec() } else { Vec::new() };
        for peer in std::iter::once(tracker.id().clone()).chain(standbys) {
            let number = self.numbers[&peer];
            self.nodes[number].core = None;
        }
        self.killed_at = self.now;
        self.cost = Cost::default();
        self.run_until_complete();
        while self.cost.settled.is_zero() {
            self.run_until(self.now + Duration::from_millis(10));
        }
        self.cost.complete = self.now.since(self.killed_at);
        std::mem::take(&mut self.cost)
    }
}

fn bytes(message: &impl Serialize) -> usize {
    postcard::to_stdvec(message).expect("messages can be encoded").len()
}
