//! Messages with loss, duplication, delay and deadlines, and the nameserver.

use std::time::Duration;

use nameserver::registry::Registry;
use protocol::election::params::SEAT_CALL_DEADLINE;
use protocol::{
    CallId,
    election::{CallError, CallFailure, Event, Reply, Token},
};
use shared::{
    contact::Contact,
    epoch::Epoch,
    id::{PeerId, Role as Identity},
    limits::{CALL_DEADLINE, DEFAULT_LEASE, HEARTBEAT_DEADLINE, PROBE_RETRY},
    name::PEER_PREFIX,
    net::params::PROBE_TIMEOUT,
    rpc::nameserver::{Claim, ClaimError, Condition, LeaseRequest, Register, Seat, SeatGrant},
    time::Timestamp,
};

use crate::{
    input::{Answer, Call, Input},
    world::{Item, Kind, NAMESERVER, Node, Question, Run, Waiting, World},
};

/// Time until a watch that failed is repeated.
const WATCH_AGAIN: Duration = Duration::from_millis(700);

impl World {
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to))
    }

    /// Latency of a message; `None` when it is lost.
    pub(crate) fn travel(&mut self, from: usize, to: usize) -> Option<Duration> {
        let lost = !self.reaches(from, to) || self.rng.f64() < self.loss;
        let spread = if self.rng.u8(0..20) == 0 { self.latency * 6 } else { self.latency };
        let travel = self.latency / 2 + self.random(spread);
        (!lost).then_some(travel)
    }

    pub(crate) fn call_peer(&mut self, node: usize, to: &Contact, kind: Kind, id: CallId, call: Call) {
        let input = Input::Call { token: Token(0), from: self.nodes[node].id.clone(), call };
        self.ask_peer(node, to, kind, id, input);
    }

    pub(crate) fn ask_peer(&mut self, node: usize, to: &Contact, kind: Kind, call: CallId, input: Input) {
        let callee = self.nodes.iter().position(|node| node.id == to.peer).expect("a known peer");
        self.ask(node, callee, kind, call, Question::Peer(Box::new(input)));
    }

    pub(crate) fn ask(&mut self, node: usize, callee: usize, kind: Kind, call: CallId, question: Question) {
        self.last_rpc += 1;
        let rpc = self.last_rpc;
        let run = self.run_of(node);
        self.waiting.insert(rpc, Waiting { run, callee, kind, call });
        let copies = if self.rng.f64() < self.duplication { 2 } else { 1 };
        for _ in 0..copies {
            if let Some(travel) = self.travel(node, callee) {
                let question = question.clone();
                self.push(travel, Item::Arrive { rpc, caller: run, callee, question });
            }
        }
        let deadline = match kind {
            Kind::Heartbeat | Kind::Vote | Kind::Notice | Kind::Leave => HEARTBEAT_DEADLINE,
            Kind::Seat | Kind::Claim | Kind::Renewal | Kind::Resign => SEAT_CALL_DEADLINE,
            Kind::Announcement => CALL_DEADLINE / 4,
            Kind::Peers => CALL_DEADLINE,
        };
        self.push(deadline, Item::Expire { rpc, failure: CallFailure::NoAnswer });
    }

    /// Time until `from` receives the refusal of its probe of `to`; `None` when it receives none. The machine of a
    /// crashed process refuses, but not always; one that is cut off, or whose process is frozen, does not.
    fn refusal(&mut self, from: usize, to: usize) -> Option<Duration> {
        let is_false = self.false_refusals.contains(&(from, to));
        let refused = self.nodes[to].core.is_none() && self.rng.u8(0..8) != 0;
        let (there, back) = (self.travel(from, to)?, self.travel(to, from)?);
        if is_false {
            self.checks.sometimes("open port refused");
        }
        (refused || is_false).then_some(there + back)
    }

    pub(crate) fn probe_port(&mut self, node: usize, at: Contact) {
        let to = self.nodes.iter().position(|node| node.id == at.peer).expect("a known peer");
        if let Some(wait) = self.refusal(node, to) {
            self.checks.sometimes("probe refused");
            let run = self.run_of(node);
            self.push(wait, Item::Refused { run, at });
        }
    }

    /// A majority misses the holder of the seat, which the nameserver has heard recently: the nameserver probes its
    /// port.
    fn probe_incumbent(&mut self, rpc: u64, caller: Run, claim: Claim, held: &Seat) {
        let holder = self.nodes.iter().position(|node| node.id == held.peer).expect("a known peer");
        let refusals = [self.refusal(NAMESERVER, holder), self.refusal(NAMESERVER, holder)];
        let within = |refusal: &Option<Duration>| refusal.filter(|wait| *wait <= PROBE_TIMEOUT);
        let (wait, closed) = match [within(&refusals[0]), within(&refusals[1])] {
            [None, _] => (PROBE_TIMEOUT, None),
            [Some(first), None] => (first + PROBE_RETRY + PROBE_TIMEOUT, None),
            [Some(first), Some(second)] => (first + PROBE_RETRY + second, Some(held.epoch)),
        };
        let (nameserver, since) = (self.nameserver_run, self.now);
        self.push(wait, Item::Probed { rpc, nameserver, caller, claim, closed, since });
    }

    /// The nameserver has probed the port: it handles the claim again.
    pub(crate) fn probed(&mut self, rpc: u64, caller: Run, claim: Claim, closed: Option<Epoch>, since: Timestamp) {
        let busy = self.nameserver_busy.since(self.now);
        if !busy.is_zero() {
            let nameserver = self.nameserver_run;
            return self.push(busy, Item::Probed { rpc, nameserver, caller, claim, closed, since });
        }
        if let Some(epoch) = closed
            && self.registry.record_closed_port(self.now, epoch, since)
        {
            self.checks.sometimes("nameserver found a closed port");
        }
        let result = self.put_claim(caller, &claim);
        self.answer_claim(rpc, result);
    }

    fn put_claim(&mut self, caller: Run, claim: &Claim) -> Result<SeatGrant, ClaimError> {
        let now = self.now;
        let claimant = self.nodes[caller.0].id.clone();
        let held = self.registry.seat(now).seat;
        let result = self.registry.claim(now, &Identity::Peer(claimant.clone()), claim.clone());
        if self.commit() {
            self.checks.claim(&claimant, claim, held.as_ref(), result.is_ok());
        }
        self.checks.registry(now, &self.registry);
        result
    }

    fn answer_claim(&mut self, rpc: u64, result: Result<SeatGrant, ClaimError>) {
        let result = result.map_err(CallError::Refused);
        self.answer(rpc, NAMESERVER, |call| Event::ClaimAnswered { call, result });
    }

    /// `from` answers a call, unless it is the nameserver and has just crashed.
    pub(crate) fn answer(&mut self, rpc: u64, from: usize, event: impl FnOnce(CallId) -> Event) {
        if from == NAMESERVER && !self.nameserver_up {
            return;
        }
        let Some(waiting) = self.waiting.get(&rpc) else { return };
        let event = Box::new(event(waiting.call));
        let wait = if from == NAMESERVER { self.nameserver_busy.since(self.now) } else { Duration::ZERO };
        if wait.is_zero() {
            self.send_answer(rpc, from, event);
        } else {
            self.push(wait, Item::Answered { rpc, nameserver: self.nameserver_run, event });
        }
    }

    pub(crate) fn send_answer(&mut self, rpc: u64, from: usize, event: Box<Event>) {
        let Some(waiting) = self.waiting.get(&rpc) else { return };
        let to = waiting.run.0;
        if let Some(travel) = self.travel(from, to) {
            self.push(travel, Item::Answer { rpc, event });
        }
    }

    pub(crate) fn arrive(&mut self, rpc: u64, caller: Run, callee: usize, question: Question) {
        if let Question::Peer(input) = question {
            if self.nodes[callee].core.is_none() {
                // The machine refuses the connection; the refusal may be lost or never sent.
                if self.rng.bool()
                    && let Some(travel) = self.travel(callee, caller.0)
                {
                    self.push(travel, Item::Expire { rpc, failure: CallFailure::Unreachable });
                }
                return;
            }
            let token = Token(self.last_item);
            self.last_item += 1;
            self.tokens.insert(token, rpc);
            self.deliver(self.run_of(callee), input.with_token(token));
            return;
        }
        if !self.nameserver_up {
            if self.rng.bool()
                && let Some(travel) = self.travel(callee, caller.0)
            {
                self.push(travel, Item::Expire { rpc, failure: CallFailure::Unreachable });
            }
            return;
        }
        let busy = self.nameserver_busy.since(self.now);
        if !busy.is_zero() {
            // The nameserver is writing to its disk.
            self.push(busy, Item::Arrive { rpc, caller, callee, question });
            return;
        }
        self.ask_nameserver(rpc, caller, question);
    }

    /// The registry has changed: watchers receive its state as of the arrival.
    pub(crate) fn wake_watchers(&mut self) {
        let revision = self.registry.revision();
        if !self.nameserver_up || std::mem::replace(&mut self.watched, revision) == revision {
            return;
        }
        for node in 0..self.nodes.len() {
            // A lost call is repeated.
            let travel = self.travel(NAMESERVER, node).unwrap_or(WATCH_AGAIN);
            self.push(travel, Item::Watched(self.run_of(node)));
        }
    }

    pub(crate) fn tell_watcher(&mut self, run: Run) {
        if !self.nameserver_up || !self.reaches(NAMESERVER, run.0) || !self.reaches(run.0, NAMESERVER) {
            if self.running(run).is_some() {
                self.push(WATCH_AGAIN, Item::Watched(run));
            }
            return;
        }
        let now = self.now;
        let registered = |node: &&Node| self.registry.lookup(now, &format!("{PEER_PREFIX}{}", node.id)).is_ok();
        let peers = self.nodes.iter().filter(registered).map(World::contact).collect();
        self.checks.sometimes("list of peers watched");
        self.deliver(run, Event::SeatChanged);
        self.deliver(run, Event::PeersWatched { peers });
    }

    fn ask_nameserver(&mut self, rpc: u64, caller: Run, question: Question) {
        let now = self.now;
        self.registry.expire(now);
        self.registry.settle();
        let identity = Identity::Peer(self.nodes[caller.0].id.clone());
        match question {
            Question::Seat => {
                let result = Ok(self.registry.seat(now));
                self.answer(rpc, NAMESERVER, |call| Event::SeatAnswered { call, result });
            }
            Question::Peers => {
                let registered = |node: &&Node| self.registry.lookup(now, &format!("{PEER_PREFIX}{}", node.id)).is_ok();
                let result = Ok(self.nodes.iter().filter(registered).map(World::contact).collect());
                self.answer(rpc, NAMESERVER, |call| Event::PeersAnswered { call, result });
            }
            Question::Claim(claim) => {
                let held = self.registry.seat(now).seat;
                match (self.put_claim(caller, &claim), held) {
                    (Err(ClaimError::Held { .. }), Some(held)) => self.probe_incumbent(rpc, caller, claim, &held),
                    (result, _) => self.answer_claim(rpc, result),
                }
            }
            Question::Renewal(epoch) => {
                let result = self.registry.renew_seat(now, &identity, epoch).map_err(CallError::Refused);
                self.answer(rpc, NAMESERVER, |call| Event::RenewalAnswered { call, result });
            }
            Question::Resign(epoch) => {
                let result = self.registry.resign(now, &identity, epoch).map_err(CallError::Refused);
                self.commit();
                self.answer(rpc, NAMESERVER, |call| Event::ResignAnswered { call, result });
            }
            Question::Peer(_) => unreachable!("handled above"),
        }
        self.checks.registry(now, &self.registry);
    }

    /// The nameserver writes, which takes time and may end in a crash. Returns whether the write was stored.
    fn commit(&mut self) -> bool {
        if self.registry.pending().is_empty() {
            return true;
        }
        let slow = self.rng.u8(0..20) == 0 && !self.calm;
        let write = self.random(if slow { Duration::from_millis(300) } else { self.disk });
        self.nameserver_busy = self.now + write;
        let stored = if !self.calm && self.rng.u8(0..40) == 0 {
            self.checks.sometimes("nameserver crashed during a write");
            self.nameserver_dies();
            self.rng.bool()
        } else {
            true
        };
        if stored {
            self.registry.settle();
        } else {
            self.registry.roll_back();
        }
        stored
    }

    /// The nameserver crashes and restarts later.
    pub(crate) fn nameserver_dies(&mut self) {
        if self.nameserver_up {
            self.note("the nameserver crashes");
            self.nameserver_up = false;
            let back = self.random(Duration::from_millis(2500));
            self.push(back, Item::NameserverBack);
        }
    }

    pub(crate) fn nameserver_back(&mut self) {
        self.note("the nameserver restarts");
        self.nameserver_up = true;
        self.nameserver_run += 1;
        self.nameserver_busy = self.now;
        self.registry = Registry::restore(self.registry.snapshot(), self.now);
        self.checks.registry(self.now, &self.registry);
    }

    pub(crate) fn reply(&mut self, node: usize, token: Token, reply: Reply) {
        let Some(rpc) = self.tokens.remove(&token) else { return };
        let from = self.nodes[node].id.clone();
        self.answer(rpc, node, |call| match reply {
            Reply::Vote(reply) => Event::VoteAnswered { call, from, result: Ok(reply) },
            Reply::Elected(_) => Event::Tick,
        });
    }

    pub(crate) fn answer_peer(&mut self, node: usize, token: Token, answer: Answer) {
        let Some(rpc) = self.tokens.remove(&token) else { return };
        let from = self.nodes[node].id.clone();
        self.answer(rpc, node, |call| match answer {
            Answer::Heartbeat(result) => {
                Event::HeartbeatAnswered { call, from, result: result.map_err(CallError::Refused) }
            }
            Answer::Announcement(result) => {
                Event::AnnouncementAnswered { call, from, result: result.map_err(CallError::Refused) }
            }
            Answer::Notice(view) => Event::NoticeAnswered { from, view },
            Answer::Leave => Event::Tick,
        });
    }

    pub(crate) fn register(&mut self, node: usize) {
        let Node { id, endpoint, incarnation, .. } = &self.nodes[node];
        let request = Register {
            name: format!("{PEER_PREFIX}{id}"),
            uri: endpoint.to_string(),
            tags: None,
            lease: LeaseRequest::For(DEFAULT_LEASE),
            condition: Condition::Always,
            incarnation: *incarnation,
        };
        self.registry.register(self.now, &Identity::Peer(id.clone()), request).expect("a peer registers its own name");
        self.registry.settle();
    }
}

/// Event of a call that was not answered.
pub(crate) fn failed(kind: Kind, call: CallId, from: Option<PeerId>, failure: CallFailure) -> Option<Event> {
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
