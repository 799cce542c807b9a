//! Tests of the rules one by one; `tests/sim` combines them. This file holds the common harness.

use super::{
    params::{DRAIN_AFTER, INDEX_SETTLE, PEER_SILENCE, PROBE_INTERVAL, SEAT_RENEWAL, VOTE_HOLD, VOTE_WAIT},
    *,
};
use crate::{CallId, params::REDUCED_HEARTBEAT};
use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    digest::ShareDigest,
    limits::{HEARTBEAT, HEARTBEAT_DEADLINE, MAX_ELECTORS, MAX_EPOCH_STEP, PROBE_RETRY, SEAT_LEASE},
    rpc::{
        nameserver::{Claim, ClaimError, SeatGrant},
        peer::{SeatNotice, VoteReply, VoteRequest},
        tracker::{Addressee, Announcement, AnnouncementKind, Heartbeat, HeartbeatAck, StandbyContact},
    },
};

/// A core with a clock and the actions of its last step.
struct Harness {
    core: Core,
    now: Timestamp,
    out: Vec<Action>,
}

fn id(text: &str) -> PeerId {
    text.parse().unwrap()
}

fn endpoint(peer: &str) -> Endpoint {
    format!("quic://{peer}:4000").parse().unwrap()
}

fn contact(peer: &str) -> Contact {
    Contact { peer: id(peer), endpoint: endpoint(peer) }
}

fn seat(peer: &str, epoch: u64) -> Seat {
    Seat { epoch: Epoch(epoch), peer: id(peer), endpoint: endpoint(peer) }
}

fn held(peer: &str, epoch: u64) -> SeatView {
    SeatView { epoch_high: Epoch(epoch), seat: Some(seat(peer, epoch)) }
}

fn vacant(epoch: u64) -> SeatView {
    SeatView { epoch_high: Epoch(epoch), seat: None }
}

fn file(name: &str) -> FileMeta {
    let hash = ContentHash([1; 32]);
    FileMeta { name: name.parse().unwrap(), size: 1, hash, mtime_micros: 0, executable: false }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// First value that `pick` extracts from the actions.
fn find<T>(actions: &[Action], pick: impl Fn(&Action) -> Option<T>) -> T {
    actions.iter().find_map(pick).unwrap_or_else(|| panic!("no match in {actions:#?}"))
}

macro_rules! picked {
    ($actions:expr, $pattern:pat if $guard:expr => $value:expr) => {
        find(&$actions, |action| match action {
            $pattern if $guard => Some($value.clone()),
            _ => None,
        })
    };
    ($actions:expr, $pattern:pat => $value:expr) => {
        find(&$actions, |action| match action {
            $pattern => Some($value.clone()),
            _ => None,
        })
    };
}

macro_rules! none {
    ($actions:expr, $pattern:pat) => {
        assert!(!$actions.iter().any(|action| matches!(action, $pattern)), "{:#?}", $actions)
    };
}

mod alone;
mod port_probe;
mod seat;
mod standby;
mod storage;
mod term;

impl Harness {
    fn new(peer: &str) -> Self {
        Self::with(peer, DurableState::default())
    }

    fn with(peer: &str, durable: DurableState) -> Self {
        let now = Timestamp::from_origin(Duration::from_secs(100));
        let config = CoreConfig {
            id: id(peer),
            incarnation: Incarnation(5),
            endpoint: endpoint(peer),
            seed: 1,
            durable,
            candidate: true,
        };
        Self { core: Core::new(config, now), now, out: Vec::new() }
    }

    /// Handles an event and returns the actions.
    fn event(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        assert!(self.core.next_deadline().is_none_or(|deadline| deadline > self.now));
        self.out = out.clone();
        out
    }

    /// Advances the time with a tick at each deadline. Returns all actions.
    fn pass(&mut self, wait: Duration) -> Vec<Action> {
        let end = self.now + wait;
        let mut all = Vec::new();
        while let Some(deadline) = self.core.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = deadline;
            all.extend(self.event(Event::Tick));
        }
        self.now = end;
        self.out = all.clone();
        all
    }

    fn answer_seat(&mut self, view: SeatView) -> Vec<Action> {
        // The last query: earlier ones were abandoned.
        self.out.reverse();
        let call = picked!(self.out, Action::QuerySeat { call } => call);
        self.event(Event::SeatAnswered { call, result: Ok(view) })
    }

    fn know_peers(&mut self, peers: &[&str]) -> Vec<Action> {
        let call = picked!(self.out, Action::QueryPeers { call } => call);
        let contacts = peers.iter().map(|peer| contact(peer)).collect();
        self.event(Event::PeersAnswered { call, result: Ok(contacts) })
    }

    /// Tracker of epoch 1 whose nameserver lists `peers`.
    fn tracker(peers: &[&str]) -> Self {
        let mut peer = Self::new("me");
        let first = peer.event(Event::Tick);
        peer.know_peers(peers);
        peer.out = first;
        let claimed = peer.answer_seat(vacant(0));
        let claimed =
            if claimed.iter().any(|a| matches!(a, Action::Claim { .. })) { claimed } else { peer.pass(ms(100)) };
        let call = picked!(claimed, Action::Claim { call, .. } => call);
        peer.grant(call, 1);
        peer.know_peers(peers);
        peer
    }

    /// Follower of `tracker` in epoch 1 that was just answered.
    fn follower(peers: &[&str]) -> Self {
        Self::follower_as("me", peers)
    }

    fn follower_as(peer: &str, peers: &[&str]) -> Self {
        let mut peer = Self::new(peer);
        let first = peer.event(Event::Tick);
        peer.know_peers(peers);
        peer.out = first;
        let out = peer.answer_seat(held("tracker", 1));
        peer.ack(&out, None);
        peer
    }

    fn grant(&mut self, call: CallId, epoch: u64) -> Vec<Action> {
        let grant = SeatGrant { epoch: Epoch(epoch), lease: SEAT_LEASE };
        self.event(Event::ClaimAnswered { call, result: Ok(grant) })
    }

    fn ack(&mut self, out: &[Action], known_seq: Option<u64>) -> Vec<Action> {
        let (call, to) = picked!(out, Action::SendHeartbeat { call, to, .. } => (*call, to.clone()));
        let epoch = self.core.durable().epoch_high;
        let result = Ok(HeartbeatAck { epoch, known_seq, next_beat: HEARTBEAT, standbys: Vec::new() });
        self.event(Event::HeartbeatAnswered { call, from: to.peer, result })
    }

    fn ask_for_vote(&mut self, from: &str, epoch: u64, expected: u64, force: bool) -> Vec<Action> {
        let (epoch, expected_epoch) = (Epoch(epoch), Epoch(expected));
        let request =
            VoteRequest { epoch, expected_epoch, force, pre_vote: false, provisional: epoch.is_provisional() };
        self.event(Event::VoteRequested { token: Token(1), from: id(from), request })
    }

    fn vote(&mut self, from: &str, epoch: u64, expected: u64, force: bool) -> (VoteReply, Vec<Action>) {
        let out = self.ask_for_vote(from, epoch, expected, force);
        (picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply), out)
    }

    fn beat(&mut self, from: &str, epoch: u64) -> Result<HeartbeatAck, TrackerError> {
        self.beat_as(from, epoch, Addressee::Tracker, &[])
    }

    /// Heartbeat of a peer that shares `names`, to this peer as a tracker or standby.
    fn beat_as(&mut self, from: &str, epoch: u64, to: Addressee, names: &[&str]) -> Result<HeartbeatAck, TrackerError> {
        let mut digest = ShareDigest::default();
        names.iter().for_each(|name| digest.add(&file(name)));
        let (epoch, incarnation) = (Epoch(epoch), Incarnation(1));
        let beat = Heartbeat { to, epoch, incarnation, seq: 1, digest, endpoint: endpoint(from) };
        self.call(|core, now, out| core.on_heartbeat(now, &id(from), &beat, out))
    }

    fn announce(&mut self, from: &str, epoch: u64, name: &str) -> Result<(), TrackerError> {
        self.announce_as(from, epoch, Addressee::Tracker, name)
    }

    fn announce_as(&mut self, from: &str, epoch: u64, to: Addressee, name: &str) -> Result<(), TrackerError> {
        let announcement = Announcement {
            to,
            epoch: Epoch(epoch),
            incarnation: Incarnation(1),
            seq: 1,
            kind: AnnouncementKind::Snapshot { page: 0, last: true },
            upserts: vec![file(name).into()],
            removals: Vec::new(),
        };
        self.call(|core, now, out| core.on_announcement(now, &id(from), announcement, out))
    }

    fn leave(&mut self, from: &str, incarnation: u64) -> Result<(), TrackerError> {
        self.call(|core, now, out| core.on_leave(now, &id(from), Epoch(1), Incarnation(incarnation), out))
    }

    fn notice(&mut self, from: &str, notice: SeatNotice) -> Vec<Action> {
        self.call(|core, now, out| core.on_notice(now, &id(from), notice, out));
        self.out.clone()
    }

    /// Makes a call that the core answers at once; its actions are in `out`.
    fn call<T>(&mut self, call: impl FnOnce(&mut Core, Timestamp, &mut Vec<Action>) -> T) -> T {
        let mut out = Vec::new();
        let answer = call(&mut self.core, self.now, &mut out);
        assert!(self.core.next_deadline().is_none_or(|deadline| deadline > self.now));
        self.out = out;
        answer
    }

    fn list(&mut self, epoch: u64) -> Result<Vec<String>, TrackerError> {
        let query = ListAll { epoch: Epoch(epoch), prefix: String::new(), after: None };
        let page = self.core.list_all(self.now, &query, &mut Vec::new())?;
        Ok(page.files.into_iter().map(|file| file.file.name.to_string()).collect())
    }

    /// Grants the vote requests in `out` for `voters`. Returns the actions of the last answer.
    fn grant_votes(&mut self, out: &[Action], voters: &[&str]) -> Vec<Action> {
        let (call, request) = picked!(out, Action::RequestVote { call, request, .. } => (*call, request.clone()));
        let electors = self.core.electors().iter().cloned().collect();
        let seat = self.core.seat_view();
        let reply = VoteReply { epoch: request.epoch, granted: true, seat, voted_epoch: request.epoch, electors };
        let granted = |from: &&str| Event::VoteAnswered { call, from: id(from), result: Ok(reply.clone()) };
        voters.iter().map(granted).map(|event| self.event(event)).last().unwrap_or_default()
    }

    fn renewed(&mut self, out: &[Action]) {
        let (call, epoch) = picked!(out, Action::RenewSeat { call, epoch } => (*call, *epoch));
        self.event(Event::RenewalAnswered { call, result: Ok(SeatGrant { epoch, lease: SEAT_LEASE }) });
    }
}

fn position(actions: &[Action], pick: impl Fn(&Action) -> bool) -> usize {
    actions.iter().position(pick).unwrap_or_else(|| panic!("no match in {actions:#?}"))
}
