//! Processes: inputs, execution of actions, disks, start and stop.

use std::{collections::VecDeque, time::Duration};

use protocol::{
    CallId,
    election::{Action, Core, CoreConfig, Event, Reply, Report, Token},
};
use shared::{
    id::{PeerId, Role as Identity},
    limits::DEFAULT_LEASE,
    name::PEER_PREFIX,
    rpc::nameserver::Selector,
};

use crate::{
    input::{Call, Input, Output},
    world::{Item, Kind, NAMESERVER, Question, Run, Syncing, World},
};

impl World {
    /// True if the process handles no input now.
    pub(crate) fn is_held_up(&self, node: usize) -> bool {
        self.nodes[node].frozen || self.nodes[node].syncing.is_some()
    }

    pub(crate) fn deliver(&mut self, run: Run, input: impl Into<Input>) {
        let input = input.into();
        if self.running(run).is_none() {
            return;
        }
        if self.is_held_up(run.0) {
            self.nodes[run.0].unread.push_back(input);
        } else {
            self.handle(run.0, input);
        }
    }

    pub(crate) fn handle(&mut self, number: usize, input: impl Into<Input>) {
        let input = input.into();
        let node = &mut self.nodes[number];
        let shown = node.clock.local(self.now);
        let Some(core) = &mut node.core else { return };
        self.checks.receives(&node.id, node.incarnation, &input);
        let outputs = input.clone().give_to(core, shown);
        self.checks.deadline(shown, core, &outputs);
        if let Some(digest) = &mut self.digest {
            digest.record(self.now, number, (&input, &outputs, core.next_deadline()));
        }
        let deadline = core.next_deadline().map(|deadline| node.clock.world(deadline));
        let run = (number, node.incarnation);
        self.carry_out(number, outputs.into(), input);
        if let Some(deadline) = deadline {
            self.push(deadline.since(self.now), Item::Tick(run));
        }
    }

    /// Executes outputs in order, as the core's task does; those behind a write wait for it.
    fn carry_out(&mut self, number: usize, mut outputs: VecDeque<Output>, input: Input) {
        let run = self.run_of(number);
        while let Some(output) = outputs.pop_front() {
            if self.running(run).is_none() {
                return;
            }
            if let Output::Action(Action::Persist(state)) = output {
                let slow = self.rng.u8(0..50) == 0 && !self.calm;
                let write = self.random(if slow { Duration::from_millis(400) } else { self.disk });
                self.nodes[number].syncing = Some(Syncing { state, then: outputs, input });
                if write.is_zero() {
                    self.finish_write(number);
                } else {
                    self.push(write, Item::Synced(run));
                }
                return;
            }
            let id = self.nodes[number].id.clone();
            let action = match output {
                Output::Action(action) => action,
                Output::Answer { token, answer } => {
                    self.checks.answer(&id, run.1, &answer, &input);
                    self.answer_peer(number, token, answer);
                    continue;
                }
            };
            if self.trace {
                self.print(&id, &input, &action);
            }
            self.checks.action(&id, run.1, &action, &input);
            if let (Action::Report(Report::BecameProvisional { epoch }), Some(core)) = (&action, self.running(run)) {
                let electors = core.electors().clone();
                self.checks.elected_provisionally(&id, run.1, *epoch, &electors);
            }
            self.execute(number, action);
        }
        self.check(number);
    }

    fn finish_write(&mut self, number: usize) {
        let Some(Syncing { state, then, input }) = self.nodes[number].syncing.take() else { return };
        if self.nodes[number].disk_full {
            return self.fail_write(number, then, input);
        }
        self.checks.persisted(&self.nodes[number].id, &state);
        self.nodes[number].durable = state;
        let recovered = self.nodes[number].core.as_ref().is_some_and(Core::storage_fails);
        self.carry_out(number, then, input);
        if recovered && !self.is_held_up(number) {
            self.checks.sometimes("write succeeded again");
            self.handle(number, Event::Persisted);
        }
    }

    /// The disk is full: the outputs behind the write that need it are withdrawn, as the core's task does.
    fn fail_write(&mut self, number: usize, then: VecDeque<Output>, input: Input) {
        let node = &mut self.nodes[number];
        let shown = node.clock.local(self.now);
        let Some(core) = &mut node.core else { return };
        let mut further = Vec::new();
        core.on_persist_failed(shown, &mut further);
        let deadline = core.next_deadline().map(|deadline| node.clock.world(deadline));
        let kept = then.into_iter().filter_map(Output::without_durability);
        let outputs = kept.chain(further.into_iter().map(Output::Action)).collect();
        self.checks.sometimes("write failed");
        self.carry_out(number, outputs, input);
        if let Some(deadline) = deadline {
            self.push(deadline.since(self.now), Item::Tick(self.run_of(number)));
        }
    }

    /// The disk has room again: the state that could not be stored is written.
    pub(crate) fn disk_freed(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.disk_full = false;
        let missing = node.core.as_ref().filter(|core| core.storage_fails()).map(|core| core.durable().clone());
        if let Some(state) = missing.filter(|_| node.syncing.is_none() && !node.frozen) {
            node.syncing = Some(Syncing { state, then: VecDeque::new(), input: Event::Tick.into() });
            self.synced(number);
        }
    }

    /// The write is done: the process continues. A timer that is due comes first, as in the core's task.
    pub(crate) fn synced(&mut self, number: usize) {
        self.finish_write(number);
        self.catch_up(number);
    }

    /// Handles the waiting inputs until the process is held up.
    pub(crate) fn catch_up(&mut self, number: usize) {
        let run = self.run_of(number);
        let shown = self.nodes[number].clock.local(self.now);
        let deadline = self.running(run).and_then(Core::next_deadline);
        if deadline.is_some_and(|deadline| deadline <= shown) && !self.is_held_up(number) {
            self.handle(number, Event::Tick);
        }
        while !self.is_held_up(number) && self.running(run).is_some() {
            let Some(input) = self.nodes[number].unread.pop_front() else { return };
            self.handle(number, input);
        }
    }

    fn check(&mut self, number: usize) {
        self.registry.expire(self.now);
        self.registry.settle();
        let node = &self.nodes[number];
        if let Some(core) = &node.core {
            self.checks.core(self.now, node, core, &self.registry);
        }
        self.checks.trackers(&self.nodes);
    }

    /// Prints an action and its cause in a replay, without heartbeats and announcements.
    fn print(&self, peer: &PeerId, input: &Input, action: &Action) {
        let at = self.now.since_origin().as_secs_f64();
        match action {
            Action::Report(report) => eprintln!("{at:.4} {peer} {report:?}"),
            Action::Claim { claim, .. } => eprintln!("{at:.4} {peer} {claim:?}"),
            Action::Resign { epoch, .. } => eprintln!("{at:.4} {peer} resigns {epoch}"),
            Action::RequestVote { to, request, .. } => eprintln!("{at:.4} {peer} asks {} {request:?}", to.peer),
            Action::Reply { reply: Reply::Vote(reply), .. } => eprintln!("{at:.4} {peer} {input:?} {reply:?}"),
            Action::Reply { reply: Reply::Elected(result), .. } => eprintln!("{at:.4} {peer} {result:?}"),
            _ => {}
        }
        match input {
            Input::Event(Event::ClaimAnswered { result, .. }) => eprintln!("{at:.4} {peer} answered {result:?}"),
            Input::Event(Event::RenewalAnswered { result: Err(error), .. }) => {
                eprintln!("{at:.4} {peer} not renewed {error:?}");
            }
            _ => {}
        }
    }

    pub(crate) fn restart(&mut self, number: usize) {
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
            candidate: true,
        };
        node.core = Some(Core::new(config, node.clock.local(now)));
        self.note(&format!("peer{number} starts"));
        if self.nodes[number].incarnation.0 > 1 {
            self.checks.sometimes("peer restarted");
        }
        let run = self.run_of(number);
        if self.nameserver_up && self.reaches(number, NAMESERVER) {
            self.register(number);
        }
        self.push(DEFAULT_LEASE / 6, Item::Renew(run));
        let upserts = self.nodes[number].files.values().cloned().collect();
        self.handle(number, Event::ShareChanged { upserts, removals: Vec::new() });
    }

    pub(crate) fn crash(&mut self, number: usize) {
        let coin = self.rng.bool();
        let node = &mut self.nodes[number];
        let was_failing = node.core.take().is_some_and(|core| core.storage_fails());
        node.frozen = false;
        node.unread.clear();
        node.leaving = false;
        self.checks.crashed(&node.id, was_failing);
        if let Some(syncing) = node.syncing.take() {
            self.checks.sometimes("peer crashed during a write");
            // The write is stored or not; nothing that depends on it was done.
            if coin && !node.disk_full {
                self.checks.persisted(&node.id, &syncing.state);
                node.durable = syncing.state;
            }
        }
        self.note(&format!("peer{number} crashes"));
    }

    fn execute(&mut self, node: usize, action: Action) {
        match action {
            Action::Persist(_) => unreachable!("carried out before"),
            Action::QuerySeat { call } => self.ask(node, NAMESERVER, Kind::Seat, call, Question::Seat),
            Action::QueryPeers { call } => self.ask(node, NAMESERVER, Kind::Peers, call, Question::Peers),
            Action::Claim { call, claim } => self.ask(node, NAMESERVER, Kind::Claim, call, Question::Claim(claim)),
            Action::RenewSeat { call, epoch } => {
                self.ask(node, NAMESERVER, Kind::Renewal, call, Question::Renewal(epoch));
            }
            Action::Resign { call, epoch } => self.ask(node, NAMESERVER, Kind::Resign, call, Question::Resign(epoch)),
            Action::SendHeartbeat { call, to, beat } => {
                self.call_peer(node, &to, Kind::Heartbeat, call, Call::Heartbeat(beat));
            }
            Action::ProbePort { at } => self.probe_port(node, at),
            Action::SendAnnouncement { call, to, announcement } => {
                self.call_peer(node, &to, Kind::Announcement, call, Call::Announcement(announcement));
            }
            Action::RequestVote { call, to, request } => {
                let event = Event::VoteRequested { token: Token(0), from: self.nodes[node].id.clone(), request };
                self.ask_peer(node, &to, Kind::Vote, call, event.into());
            }
            Action::SendNotice { to, notice } => {
                self.call_peer(node, &to, Kind::Notice, CallId(0), Call::Notice(notice));
            }
            Action::SendLeave { to, epoch, incarnation } => {
                self.call_peer(node, &to, Kind::Leave, CallId(0), Call::Leave(epoch, incarnation));
            }
            Action::Reply { token, reply } => self.reply(node, token, reply),
            Action::Report(_) => {}
            Action::Stopped => self.stopped(node),
        }
    }

    /// A process stopped gracefully: its name is removed and its connections are closed.
    fn stopped(&mut self, number: usize) {
        let id = self.nodes[number].id.clone();
        if self.nameserver_up && self.reaches(number, NAMESERVER) {
            let name = Some(format!("{PEER_PREFIX}{id}"));
            let caller = Identity::Peer(id.clone());
            let selector = Selector { name, prefix: None, regex: None };
            self.registry.remove(self.now, &caller, selector).expect("a peer removes its own name");
            self.registry.settle();
        }
        for other in (0..self.nodes.len()).filter(|other| *other != number) {
            self.lose_connection(number, other);
        }
        self.crash(number);
        let back = self.random(Duration::from_millis(4000));
        self.push(back, Item::Restart(number));
    }
}
