//! Messages: loss, duplication, delay, deadlines; and the nameserver's side of its calls.

use super::*;

impl World {
    pub(super) fn push(&mut self, wait: Duration, item: Item) {
        self.last_item += 1;
        self.queue.insert((self.now + wait, self.last_item), item);
    }

    pub(super) fn random(&mut self, below: Duration) -> Duration {
        let micros = u64::try_from(below.as_micros()).expect("short");
        Duration::from_micros(self.rng.u64(0..micros.max(1)))
    }

    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to))
    }

    /// How long a message takes; `None` when it is lost.
    pub(super) fn travel(&mut self, from: usize, to: usize) -> Option<Duration> {
        let lost = !self.reaches(from, to) || self.rng.f64() < self.loss;
        let spread = if self.rng.u8(0..20) == 0 { self.latency * 6 } else { self.latency };
        let travel = self.latency / 2 + self.random(spread);
        (!lost).then_some(travel)
    }

    pub(super) fn ask_peer(&mut self, node: usize, to: &Contact, kind: Kind, call: CallId, event: Event) {
        let callee = self.nodes.iter().position(|node| node.id == to.peer).expect("a known peer");
        self.ask(node, callee, kind, call, Question::Peer(Box::new(event)));
    }

    pub(super) fn ask(&mut self, node: usize, callee: usize, kind: Kind, call: CallId, question: Question) {
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

    pub(super) fn answer(&mut self, rpc: u64, from: usize, event: impl FnOnce(CallId) -> Event) {
        let Some(waiting) = self.waiting.get(&rpc) else { return };
        let (to, event) = (waiting.run.0, event(waiting.call));
        if let Some(travel) = self.travel(from, to) {
            self.push(travel, Item::Answer { rpc, event });
        }
    }

    pub(super) fn arrive(&mut self, rpc: u64, caller: Run, callee: usize, question: Question) {
        if let Question::Peer(event) = question {
            if self.nodes[callee].core.is_none() {
                // The machine lives and says that nobody listens; sometimes that is lost or never sent.
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

    pub(super) fn reply(&mut self, node: usize, token: Token, reply: Reply) {
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

    pub(super) fn register(&mut self, node: usize) {
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

pub(super) fn failed(kind: Kind, call: CallId, from: Option<PeerId>, failure: CallFailure) -> Option<Event> {
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
