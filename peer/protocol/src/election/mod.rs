//! The peer's pure core: who is tracker, who is there, who has what.
//!
//! No I/O, no clock, no threads, no global randomness: [`Core::handle`] takes the time and what happened, and
//! hands out what to do. The shell (`node`) owns the one core, carries the actions out in order and brings
//! the outcomes back as events. `docs/election.md` draws the states; in short:
//!
//! | state | what it waits for | leaves it for |
//! |---|---|---|
//! | Follower | the tracker's answer to each heartbeat | Suspect: silence, closed connection, closed port, "not tracker", vacated; another seat: higher epoch |
//! | Suspect (or nobody known) | the nameserver's word, its turn to stand | Follower: the tracker answers or a seat appears; Candidate: its turn comes |
//! | Candidate | first whether there would be votes, then votes, each for `VOTE_WAIT` | Claiming: majority; Tracker, provisional: majority while the nameserver is away; Suspect: refused, too late |
//! | Claiming | the nameserver, `CLAIM_WAIT`; while the seat is held: `retry_after` | Tracker: accepted; Follower: the seat moved on; Suspect |
//! | Tracker | renewals, heartbeats; when provisional, the nameserver | Suspect/Follower: higher epoch, isolated, overslept; Leaving: shutdown |
//! | Leaving | the resignation | the end |
//!
//! An election is orthogonal to whom one follows: with `eleger` a Follower or the Tracker itself stands while
//! it goes on with its work. So there are two parts of state: `standing` and `election`'s campaign.

mod campaign;
mod candidate;
mod event;
mod follower;
mod liveness;
mod port_probe;
mod searching;
mod standby;
mod standby_feeds;
mod state;
mod tracker;
mod voter;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use shared::{
    contact::Contact,
    content::FileMeta,
    electors::electors,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    limits::{
        CALL_DEADLINE, HEARTBEAT_DEADLINE, MAX_PEERS, OVERSLEPT, PEERS_POLL, PEERS_POLL_PER_PEER, SUSPICION,
        WATCHED_PEERS_POLL,
    },
    name::Endpoint,
    rpc::{
        nameserver::{Seat, SeatView},
        tracker::{Addressee, IndexPage, ListAll, TrackerError, Version, WhoHas},
    },
    time::Timestamp,
};

pub use event::{
    Action, CallError, CallFailure, Departure, DurableState, ElectionFailure, Event, Reply, Report, StepDown,
    Suspicion, Token, Vote,
};

use crate::{CallId, replication::share_log::Share};
use campaign::Campaign;
use port_probe::HeldVote;
use standby::Standby;
use state::{Seeking, Standing};

/// What a core is made of.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// This peer.
    pub id: PeerId,
    /// This run of it: larger than every earlier run's.
    pub incarnation: Incarnation,
    /// Where it answers.
    pub endpoint: Endpoint,
    /// For waits that shall differ between peers; the same seed and events give the same actions.
    pub seed: u64,
    /// What [`Action::Persist`] stored last; the default at the first start.
    pub durable: DurableState,
}

/// What a peer is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows a tracker, or looks for one.
    Follower,
    /// Its tracker seems to be gone.
    Suspect,
    /// Asks for votes.
    Candidate,
    /// Asks the nameserver for the seat.
    Claiming,
    /// Holds the seat.
    Tracker,
    /// Gives the seat up to end.
    Leaving,
}

/// What a peer is to the tracker's seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeatRole {
    /// It holds the seat.
    Tracker,
    /// It follows another that does.
    Follower,
    /// It knows of none, or takes part in an election.
    Electing,
}

impl SeatRole {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Follower => "follower",
            Self::Electing => "electing",
        }
    }
}

/// A question to the nameserver that is asked again and again, one at a time.
#[derive(Debug, Clone, Copy)]
struct Poll {
    /// The call under way and when it counts as lost.
    pending: Option<(CallId, Timestamp)>,
    /// When to ask next.
    at: Timestamp,
}

impl Poll {
    fn deadline(&self) -> Timestamp {
        self.pending.map_or(self.at, |(_, until)| until)
    }

    /// Takes the pending call if `call` is it.
    fn answered(&mut self, call: CallId) -> bool {
        let ours = self.pending.is_some_and(|(pending, _)| pending == call);
        if ours {
            self.pending = None;
        }
        ours
    }
}

/// The peer's core. See the module's documentation. Copies are for searches through what could happen.
#[derive(Debug, Clone)]
pub struct Core {
    id: PeerId,
    incarnation: Incarnation,
    endpoint: Endpoint,
    rng: fastrand::Rng,
    durable: DurableState,
    /// What the next claim names as the highest epoch claimed: the nameserver's own word where there is one.
    expected: Epoch,
    /// The highest epoch that the nameserver itself spoke of.
    confirmed: Epoch,
    /// Highest epoch that some voter said to have voted in: below it this peer could not win.
    voted_elsewhere: Epoch,
    /// The epoch this run last claimed and has not given up: a seat of ours with another number is an earlier run's.
    claimed: Option<Epoch>,
    /// Seats up to this epoch were given up by their trackers, whatever the nameserver still says.
    vacated: Epoch,
    /// Registered peers without this one, as last known.
    members: BTreeMap<PeerId, Endpoint>,
    /// Who elects, this peer included if it does, as last known.
    electors: BTreeSet<PeerId>,
    standing: Standing,
    /// What this peer knows of the index as a standby: kept while there is no tracker, until one says that it is none.
    standby: Option<Box<Standby>>,
    /// The standbys of the tracker that was followed last, in their order: they stand for election before others.
    heirs: Vec<PeerId>,
    campaign: Option<Campaign>,
    /// Who waits for a forced election.
    waiters: Vec<Token>,
    share: Share,
    last_call: u64,
    seat_poll: Poll,
    peers_poll: Poll,
    last_handled: Timestamp,
    /// Until then a lost connection proves nothing: this process slept, and others may have given it up.
    mistrust_until: Timestamp,
    /// A tracker that answered although knocks at its port were refused: there refusals mean nothing.
    refused_in_vain: Option<Contact>,
    /// Candidates that wait for this peer to look for itself, at most `limits::MAX_ELECTORS`.
    held_votes: Vec<HeldVote>,
    stopped: bool,
}

impl Core {
    /// A core that knows nobody; its first deadline is `now`.
    pub fn new(config: CoreConfig, now: Timestamp) -> Self {
        let CoreConfig { id, incarnation, endpoint, seed, durable } = config;
        let poll = Poll { pending: None, at: now };
        Self {
            id,
            incarnation,
            endpoint,
            rng: fastrand::Rng::with_seed(seed),
            expected: durable.epoch_high,
            confirmed: durable.epoch_high,
            durable,
            voted_elsewhere: Epoch::NONE,
            claimed: None,
            vacated: Epoch::NONE,
            members: BTreeMap::new(),
            electors: BTreeSet::new(),
            standing: Standing::Seeking(Seeking::nobody(now)),
            standby: None,
            heirs: Vec::new(),
            campaign: None,
            waiters: Vec::new(),
            share: Share::default(),
            last_call: 0,
            seat_poll: poll,
            peers_poll: poll,
            last_handled: now,
            mistrust_until: now,
            refused_in_vain: None,
            held_votes: Vec::new(),
            stopped: false,
        }
    }

    /// Takes in what happened at `now` and appends what to do about it, in order.
    ///
    /// Deadlines that have passed are dealt with first, so that a process that slept learns that before it
    /// takes anything in.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        if self.stopped {
            return;
        }
        self.wake(now, out);
        self.dispatch(now, event, out);
        self.run_timers(now, out);
    }

    /// When [`Event::Tick`] is due; `None` when the core has stopped. Always later than the last `handle`.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.stopped {
            return None;
        }
        let polls = [Some(self.peers_poll.deadline()), self.seat_poll_deadline()];
        let campaign = self.campaign.as_ref().map(Campaign::deadline);
        let others = [campaign, self.standing_deadline(), self.held_votes_deadline()];
        polls.into_iter().chain(others).flatten().min()
    }

    /// What this peer is.
    pub fn role(&self) -> Role {
        match (&self.standing, &self.campaign) {
            (Standing::Leaving(_), _) => Role::Leaving,
            (Standing::Tracking(_), _) => Role::Tracker,
            (_, Some(campaign)) if campaign.is_voting() => Role::Candidate,
            (_, Some(_)) => Role::Claiming,
            (Standing::Following(_), None) => Role::Follower,
            (Standing::Seeking(seeking), None) if seeking.former.is_some() => Role::Suspect,
            (Standing::Seeking(_), None) => Role::Follower,
        }
    }

    /// The seat as this peer sees it: its own, the followed or the suspected one.
    pub fn seat_view(&self) -> SeatView {
        let seat = match &self.standing {
            Standing::Following(following) => Some(&following.seat),
            Standing::Tracking(term) => Some(&term.seat),
            Standing::Seeking(seeking) => seeking.suspected.as_ref(),
            Standing::Leaving(_) => None,
        };
        SeatView { epoch_high: self.durable.epoch_high, seat: seat.cloned() }
    }

    /// The tracker that this peer follows or is; `None` while it has none.
    pub fn tracker(&self) -> Option<&Seat> {
        match &self.standing {
            Standing::Following(following) => Some(&following.seat),
            Standing::Tracking(term) => Some(&term.seat),
            Standing::Seeking(_) | Standing::Leaving(_) => None,
        }
    }

    /// This peer.
    pub fn id(&self) -> &PeerId {
        &self.id
    }

    /// This run of it.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What was last persisted.
    pub fn durable(&self) -> &DurableState {
        &self.durable
    }

    /// Registered peers as last known, without this one: whom to ask directly when there is no tracker.
    pub fn members(&self) -> &BTreeMap<PeerId, Endpoint> {
        &self.members
    }

    /// This peer's files, by name.
    pub fn share(&self) -> &BTreeMap<FileName, FileMeta> {
        self.share.files()
    }

    /// Their bytes.
    pub fn share_bytes(&self) -> u64 {
        self.share.bytes()
    }

    /// Whether this peer is a tracker that the nameserver does not know of yet.
    pub fn is_provisional(&self) -> bool {
        matches!(&self.standing, Standing::Tracking(term) if term.mandate.is_some())
    }

    /// Who elects, this peer included if it does, as last known; empty before the nameserver has told.
    pub fn electors(&self) -> &BTreeSet<PeerId> {
        &self.electors
    }

    /// Whether the tracker is known to have everything this peer shares (the tracker itself always has).
    pub fn is_announced(&self) -> bool {
        match &self.standing {
            Standing::Following(following) => following.publisher.is_up_to_date(&self.share),
            Standing::Tracking(_) => true,
            Standing::Seeking(_) | Standing::Leaving(_) => false,
        }
    }

    /// Until when this peer's lease of the seat runs; `None` without one.
    pub fn lease_until(&self) -> Option<Timestamp> {
        match &self.standing {
            Standing::Tracking(term) => term.lease_until,
            _ => None,
        }
    }

    /// The tracker's standbys, as the tracker names them or a follower was told last.
    pub fn standbys(&self) -> &[PeerId] {
        match &self.standing {
            Standing::Tracking(term) => &term.standbys,
            _ => &self.heirs,
        }
    }

    /// Members and versions that this peer knows of as a standby; `None` when it is none.
    pub fn standby_size(&self) -> Option<(usize, usize)> {
        self.standby.as_ref().map(|standby| standby.index.size())
    }

    /// Members and versions in the tracker's index; `None` when this peer is not tracker.
    pub fn index_size(&self) -> Option<(usize, usize)> {
        match &self.standing {
            Standing::Tracking(term) => Some(term.index.size()),
            _ => None,
        }
    }

    /// Answers `TrackerService::who_has` for `asker` (this peer itself included).
    ///
    /// # Errors
    /// As `TrackerService` says: not tracker, stale epoch, still settling, a name that cannot be one.
    pub fn who_has(
        &mut self,
        now: Timestamp,
        asker: &PeerId,
        query: &WhoHas,
        out: &mut Vec<Action>,
    ) -> Result<Vec<Version>, TrackerError> {
        self.question(now, query.epoch, out)?.index.who_has(asker, query)
    }

    /// Answers `TrackerService::list_all`.
    ///
    /// # Errors
    /// As `TrackerService` says: not tracker, stale epoch, still settling.
    pub fn list_all(
        &mut self,
        now: Timestamp,
        query: &ListAll,
        out: &mut Vec<Action>,
    ) -> Result<IndexPage, TrackerError> {
        let term = self.question(now, query.epoch, out)?;
        let (files, next) = term.index.list_all(query);
        Ok(IndexPage { epoch: term.seat.epoch, files, next })
    }

    fn question(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        out: &mut Vec<Action>,
    ) -> Result<&tracker::Term, TrackerError> {
        if !self.stopped {
            self.wake(now, out);
        }
        let term = self.fence(now, epoch, out)?;
        if term.is_settled() { Ok(term) } else { Err(TrackerError::Settling) }
    }

    fn dispatch(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::SeatAnswered { call, result } => self.on_seat_answered(now, call, result, out),
            Event::PeersAnswered { call, result } => self.on_peers_answered(now, call, result, out),
            Event::PeersWatched { peers } => {
                // An answer under way is older.
                self.peers_poll = Poll { pending: None, at: now + WATCHED_PEERS_POLL };
                self.set_members(now, peers, out);
            }
            Event::SeatChanged => {
                if matches!(self.standing, Standing::Seeking(_)) {
                    self.seat_poll = Poll { pending: None, at: now };
                }
            }
            Event::ClaimAnswered { call, result } => self.on_claim_answered(now, call, result, out),
            Event::RenewalAnswered { call, result } => self.on_renewal_answered(now, call, result, out),
            Event::ResignAnswered { call, result: _ } => self.on_resign_answered(now, call, out),
            Event::HeartbeatAnswered { call, from, result } => {
                self.on_heartbeat_answered(now, call, &from, result, out);
            }
            Event::AnnouncementAnswered { call, from, result } => {
                self.on_announcement_answered(now, call, &from, result, out);
            }
            Event::ConnectionLost { peer } => self.on_unreachable(now, &peer, out),
            Event::ProbeRefused { at } => self.on_knock_refused(now, &at, out),
            Event::VoteAnswered { call, from, result } => self.on_vote_answered(now, call, from, result, out),
            Event::NoticeAnswered { from: _, view } => self.learn_hearsay(now, &view, out),
            Event::VoteRequested { token, from, request } => {
                if self.looks_first(now, token, &from, &request) {
                    return;
                }
                let reply = Reply::Vote(self.on_vote_requested(now, &from, &request, out));
                out.push(Action::Reply { token, reply });
            }
            Event::NoticeReceived { token, from, notice } => {
                self.on_notice(now, &from, notice, out);
                out.push(Action::Reply { token, reply: Reply::Notice(self.seat_view()) });
            }
            Event::HeartbeatReceived { token, from, beat } => {
                let reply = Reply::Heartbeat(match beat.to {
                    Addressee::Tracker => self.on_heartbeat(now, &from, &beat, out),
                    Addressee::Standby => self.on_standby_heartbeat(now, &from, &beat, out),
                });
                out.push(Action::Reply { token, reply });
            }
            Event::AnnouncementReceived { token, from, announcement } => {
                let reply = Reply::Announcement(match announcement.to {
                    Addressee::Tracker => self.on_announcement(now, &from, announcement, out),
                    Addressee::Standby => self.on_standby_announcement(now, &from, announcement, out),
                });
                out.push(Action::Reply { token, reply });
            }
            Event::LeaveReceived { token, from, epoch, incarnation } => {
                let reply = Reply::Leave(self.on_leave(now, &from, epoch, incarnation, out));
                out.push(Action::Reply { token, reply });
            }
            Event::ShareChanged { upserts, removals } => self.on_share_changed(upserts, removals, out),
            Event::ElectionRequested { token } => self.on_election_requested(now, token, out),
            Event::Shutdown => self.on_shutdown(now, out),
        }
    }

    /// Notices a sleep, then does what was due.
    fn wake(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let late = self.next_deadline().map_or(Duration::ZERO, |deadline| now.since(deadline));
        let asleep = now.since(self.last_handled);
        self.last_handled = self.last_handled.max(now);
        if late > OVERSLEPT {
            self.mistrust_until = now + SUSPICION;
            out.push(Action::Report(Report::Stalled { late }));
            self.standing_overslept(now, late, asleep, out);
        }
        self.run_timers(now, out);
    }

    fn run_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        if self.stopped {
            return;
        }
        if self.peers_poll.deadline() <= now {
            self.query_peers(now, out);
        }
        if self.seat_poll.pending.is_some() && self.seat_poll_deadline().is_some_and(|deadline| deadline <= now) {
            self.nameserver_is_away();
        }
        self.run_campaign_timer(now, out);
        self.run_standing_timers(now, out);
        self.answer_held_votes(now, out);
        if self.seat_poll_deadline().is_some_and(|deadline| deadline <= now) {
            self.query_seat(now, out);
        }
    }

    fn call(&mut self) -> CallId {
        self.last_call += 1;
        CallId(self.last_call)
    }

    fn query_peers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let call = self.call();
        self.peers_poll = Poll { pending: Some((call, now + CALL_DEADLINE)), at: now + PEERS_POLL };
        out.push(Action::QueryPeers { call });
    }

    fn query_seat(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let call = self.call();
        let until = now + HEARTBEAT_DEADLINE;
        self.seat_poll = Poll { pending: Some((call, until)), at: until };
        out.push(Action::QuerySeat { call });
    }

    fn on_peers_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        result: Result<Vec<Contact>, CallFailure>,
        out: &mut Vec<Action>,
    ) {
        if !self.peers_poll.answered(call) {
            return;
        }
        let Ok(peers) = result else {
            self.peers_poll.at = now + PEERS_POLL / 4;
            return;
        };
        let count = u32::try_from(peers.len().min(MAX_PEERS)).unwrap_or(u32::MAX);
        self.peers_poll.at = now + PEERS_POLL + PEERS_POLL_PER_PEER * count;
        self.set_members(now, peers, out);
    }

    fn set_members(&mut self, now: Timestamp, peers: Vec<Contact>, out: &mut Vec<Action>) {
        let others = peers.into_iter().filter(|contact| contact.peer != self.id).take(MAX_PEERS);
        let members: BTreeMap<PeerId, Endpoint> = others.map(|contact| (contact.peer, contact.endpoint)).collect();
        let before = std::mem::replace(&mut self.members, members);
        self.electors = electors(self.members.keys().chain([&self.id]));
        if let Some(campaign) = &mut self.campaign {
            // Who is elected without the nameserver has a majority of those who elect now, too.
            campaign.note_view(self.electors.iter().cloned().collect());
        }
        self.greet_newcomers(now, &before, out);
    }

    fn contact(peer: &PeerId, endpoint: &Endpoint) -> Contact {
        Contact { peer: peer.clone(), endpoint: endpoint.clone() }
    }
}

#[cfg(test)]
mod tests;
