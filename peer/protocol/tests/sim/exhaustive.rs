//! Search of all runs within bounds: an election without the nameserver among three real cores.
//!
//! The network is the set of all messages sent: each may arrive at any time, repeatedly, or never, which covers loss,
//! duplication and reordering. In a step, a message arrives, a peer's next timer fires (each peer has its own clock,
//! so any may be first), or a peer crashes and restarts from its disk. A write is stored before a message that
//! depends on it is sent; a crash before the write equals one before the step, a crash after it equals a loss of
//! messages.
//!
//! Bounds: 3 peers, epochs up to [`MAX_EPOCHS`] elections without the nameserver, [`MAX_CRASHES`] crashes,
//! [`MAX_TIMERS`] timers for each peer, `BRASA_SEARCH_DEPTH` steps. The search visits every state within them once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use protocol::{
    CallId,
    election::{Action, Core, CoreConfig, DurableState, Event, Reply, Role, Token},
};
use shared::{
    contact::Contact,
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::{HEARTBEAT_DEADLINE, PROVISIONAL_EPOCHS},
    rpc::peer::{SeatNotice, VoteReply, VoteRequest},
    time::Timestamp,
};

const PEERS: usize = 3;
const MAX_EPOCHS: u64 = 3;
const MAX_CRASHES: usize = 1;
const MAX_TIMERS: usize = 2;
/// Depth of an ordinary test run.
const DEFAULT_DEPTH: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Request { from: usize, run: u64, to: usize, call: CallId, request: VoteRequest },
    Answer { from: usize, to: usize, run: u64, call: CallId, reply: VoteReply },
    Notice { from: usize, to: usize, notice: SeatNotice },
}

#[derive(Clone)]
struct Machine {
    core: Core,
    now: Timestamp,
    run: u64,
    durable: DurableState,
    timers: usize,
}

#[derive(Clone)]
struct State {
    machines: Vec<Machine>,
    /// All messages sent, by their `Debug` text.
    sent: BTreeMap<String, Message>,
    crashes: usize,
    /// Candidate of each peer's vote in each epoch.
    votes: BTreeMap<(usize, Epoch), PeerId>,
    /// Tracker of each epoch.
    winners: BTreeMap<Epoch, usize>,
}

#[derive(Clone, Debug)]
enum Step {
    Arrives(String),
    Timer(usize),
    Crash(usize),
}

fn id(number: usize) -> PeerId {
    format!("peer{number}").parse().expect("a peer's id")
}

fn number(peer: &PeerId) -> usize {
    (0..PEERS).find(|number| id(*number) == *peer).expect("one of them")
}

fn contact(number: usize) -> Contact {
    Contact { peer: id(number), endpoint: format!("quic://peer{number}:4000").parse().expect("an endpoint") }
}

impl State {
    /// Three peers that know each other and no tracker, while the nameserver does not answer.
    fn without_tracker() -> Self {
        let machines = (0..PEERS).map(|number| Machine::start(number, 1, DurableState::default())).collect();
        let mut state =
            Self { machines, sent: BTreeMap::new(), crashes: 0, votes: BTreeMap::new(), winners: BTreeMap::new() };
        (0..PEERS).for_each(|number| state.settle(number));
        state
    }

    /// Lets a peer learn the list of peers, and that the nameserver is away.
    fn settle(&mut self, number: usize) {
        let peers = (0..PEERS).map(contact).collect();
        self.event(number, Event::PeersWatched { peers });
        // Up to, but not including, its first timer after that.
        self.machines[number].now += HEARTBEAT_DEADLINE;
        self.event(number, Event::Tick);
    }

    fn event(&mut self, number: usize, event: Event) {
        let asked = match &event {
            Event::VoteRequested { from, request, .. } => Some((from.clone(), request.clone())),
            _ => None,
        };
        self.step(number, asked.as_ref(), |core, now, actions| core.handle(now, event, actions));
    }

    /// Runs one step of a core and checks its effects.
    fn step(
        &mut self,
        number: usize,
        asked: Option<&(PeerId, VoteRequest)>,
        step: impl FnOnce(&mut Core, Timestamp, &mut Vec<Action>),
    ) {
        let machine = &mut self.machines[number];
        let mut actions = Vec::new();
        let role = machine.core.role();
        step(&mut machine.core, machine.now, &mut actions);
        for action in actions {
            self.carry_out(number, action, asked);
        }
        let core = &self.machines[number].core;
        if core.role() == Role::Tracker && role != Role::Tracker {
            let epoch = core.tracker().expect("a tracker has a seat").epoch;
            let first = *self.winners.entry(epoch).or_insert(number);
            assert_eq!(first, number, "S1: two trackers of epoch {epoch}");
            assert!(
                core.durable().epoch_high <= self.machines[number].durable.epoch_high,
                "S5: {epoch} is not durable"
            );
        }
    }

    fn carry_out(&mut self, number: usize, action: Action, asked: Option<&(PeerId, VoteRequest)>) {
        let run = self.machines[number].run;
        match action {
            Action::Persist(durable) => {
                assert!(durable.epoch_high >= self.machines[number].durable.epoch_high, "S5: an epoch was forgotten");
                self.machines[number].durable = durable;
            }
            Action::RequestVote { call, to, request } => {
                if !request.pre_vote {
                    self.voted(number, request.epoch, &id(number));
                }
                let to = self::number(&to.peer);
                self.send(Message::Request { from: number, run, to, call, request });
            }
            Action::SendNotice { to, notice } => {
                self.send(Message::Notice { from: number, to: self::number(&to.peer), notice });
            }
            Action::Reply { token: Token(token), reply: Reply::Vote(reply) } => {
                let (from, request) = asked.expect("a vote was requested");
                if reply.granted && !request.pre_vote {
                    self.voted(number, request.epoch, from);
                }
                // The token holds the run in its upper half and the call in its lower half.
                let (run, call) = (token >> 32, CallId(token & u64::from(u32::MAX)));
                self.send(Message::Answer { from: number, to: self::number(from), run, call, reply });
            }
            _ => {}
        }
    }

    fn voted(&mut self, voter: usize, epoch: Epoch, candidate: &PeerId) {
        let first = self.votes.entry((voter, epoch)).or_insert_with(|| candidate.clone());
        assert_eq!(first, candidate, "S3: peer{voter} voted twice in epoch {epoch}");
    }

    fn send(&mut self, message: Message) {
        self.sent.insert(format!("{message:?}"), message);
    }

    fn steps(&self) -> Vec<Step> {
        let bounded = |epoch: Epoch| epoch.0 <= MAX_EPOCHS * PROVISIONAL_EPOCHS;
        let within = |message: &Message| match message {
            Message::Request { request, .. } => bounded(request.epoch),
            Message::Answer { to, run, .. } => self.machines[*to].run == *run,
            Message::Notice { .. } => true,
        };
        let arrivals =
            self.sent.iter().filter(|(_, message)| within(message)).map(|(key, _)| Step::Arrives(key.clone()));
        let timers = (0..PEERS).filter(|number| self.machines[*number].timers < MAX_TIMERS).map(Step::Timer);
        let crashes = (0..PEERS).filter(|_| self.crashes < MAX_CRASHES).map(Step::Crash);
        arrivals.chain(timers).chain(crashes).collect()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Timer(number) => {
                let machine = &mut self.machines[*number];
                machine.timers += 1;
                // All timers up to the next begin or end of a campaign fire at once.
                machine.now = machine.core.next_deadline().expect("it runs") + Duration::from_millis(60);
                self.event(*number, Event::Tick);
            }
            Step::Crash(number) => {
                self.crashes += 1;
                let Machine { run, durable, timers, .. } = self.machines[*number].clone();
                self.machines[*number] = Machine { timers, ..Machine::start(*number, run + 1, durable) };
                self.settle(*number);
            }
            Step::Arrives(key) => match self.sent[key].clone() {
                Message::Request { from, run, to, call, request } => {
                    let token = Token(run << 32 | call.0);
                    self.event(to, Event::VoteRequested { token, from: id(from), request });
                }
                Message::Answer { from, to, call, reply, .. } => {
                    self.event(to, Event::VoteAnswered { call, from: id(from), result: Ok(reply) });
                }
                Message::Notice { from, to, notice } => {
                    self.step(to, None, |core, now, actions| drop(core.on_notice(now, &id(from), notice, actions)));
                }
            },
        }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for machine in &self.machines {
            format!("{:?}{:?}{}{}", machine.core, machine.now, machine.run, machine.timers).hash(&mut hasher);
        }
        self.sent.keys().for_each(|key| key.hash(&mut hasher));
        self.crashes.hash(&mut hasher);
        hasher.finish()
    }
}

impl Machine {
    fn start(number: usize, run: u64, durable: DurableState) -> Self {
        let now = Timestamp::from_origin(Duration::from_secs(100));
        let config = CoreConfig {
            id: id(number),
            incarnation: Incarnation(run),
            endpoint: contact(number).endpoint,
            seed: 1,
            durable: durable.clone(),
            candidate: true,
        };
        Self { core: Core::new(config, now), now, run, durable, timers: 0 }
    }
}

/// Progress of the search.
#[derive(Default)]
struct Search {
    /// Fewest steps to each state.
    seen: HashMap<u64, usize>,
    steps: u64,
    won: u64,
    epochs: BTreeSet<Epoch>,
}

impl Search {
    /// Visits all successors of `state`, which is `depth` steps from the start, up to `limit` steps.
    fn visit(&mut self, state: &State, depth: usize, limit: usize) {
        for step in state.steps() {
            let mut after = state.clone();
            after.take(&step);
            self.steps += 1;
            let before = match self.seen.entry(after.fingerprint()) {
                Entry::Occupied(reached) if *reached.get() <= depth + 1 => continue,
                Entry::Occupied(mut reached) => Some(reached.insert(depth + 1)),
                Entry::Vacant(new) => {
                    new.insert(depth + 1);
                    None
                }
            };
            if before.is_none() {
                self.won += u64::from(!after.winners.is_empty());
                self.epochs.extend(after.votes.keys().map(|(_, epoch)| *epoch));
            }
            if depth + 1 < limit {
                self.visit(&after, depth + 1, limit);
            }
        }
    }
}

#[test]
fn every_short_provisional_election_has_at_most_one_winner_per_epoch() {
    let depth =
        crate::number("BRASA_SEARCH_DEPTH").map_or(DEFAULT_DEPTH, |depth| usize::try_from(depth).expect("small"));
    let mut search = Search::default();
    search.visit(&State::without_tracker(), 0, depth);
    let Search { seen, steps, won, epochs } = search;
    eprintln!("{} states, {steps} steps, depth {depth}; {won} with a winner; epochs voted on: {epochs:?}", seen.len());
    assert!(won > 0, "no run has a winner, so the search shows nothing");
}
