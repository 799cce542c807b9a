//! The tracker's seat: which peer is the tracker, and which tracker this peer follows.
//!
//! No I/O, no clock, no threads, no global randomness: [`Core::handle`] takes the time and an event and appends the
//! actions to take. The crate `peer` owns the one core, executes the actions in order and returns the outcomes as
//! events. `docs/election.md` draws the states and states the rules.
//!
//! | state | waits for | next |
//! |---|---|---|
//! | Searching | nameserver, suspected tracker, its turn to stand | Follower: a seat appears; Tracker: campaign won |
//! | Follower | the tracker's answers | Searching: suspicion ([`Suspicion`]), higher epoch |
//! | Tracker | renewals, heartbeats | Searching: higher epoch, isolated, stalled, conflict; Leaving: shutdown |
//! | Leaving | the resignation | stopped |
//!
//! A campaign runs beside the state, since a follower or the tracker itself may stand for election while it works
//! (`eleger`).
//!
//! | module | holds |
//! |---|---|
//! | `machine` | state and campaign; dispatches events, runs timers |
//! | `transition` | the changes of state that a state asks for |
//! | `apply` | `Machine::apply`, the only code that changes the state |
//! | `seat_views` | views of the seat that the nameserver and other peers report |
//! | `ctx` | the time, the actions, and the data that outlives each state |
//! | `searching`, `follower`, `tracker`, `state` | one state each, with its data and logic |
//! | `campaign`, `candidate`, `voter` | one attempt to take the seat; standing for election; voting for others |
//! | `epochs`, `members`, `poll`, `liveness`, `settling`, `port_probe`, `standby` | data structures |
//! | `event`, `report`, `role` | events, actions, reports and roles as the crate `peer` sees them |

mod apply;
mod campaign;
mod candidate;
mod ctx;
mod epochs;
mod event;
mod follower;
mod liveness;
mod machine;
mod members;
pub mod params;
mod poll;
mod port_probe;
mod report;
mod role;
mod searching;
mod seat_views;
mod settling;
mod standby;
mod state;
mod tracker;
mod transition;
mod voter;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{Calls, params::STALL_THRESHOLD, replication::share_log::ShareLog};
use params::SUSPICION;
use shared::{
    contact::Contact,
    content::FileMeta,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    name::Endpoint,
    rpc::{
        nameserver::{Seat, SeatView},
        peer::SeatNotice,
        tracker::{Announcement, Heartbeat, HeartbeatAck, IndexPage, ListAll, TrackerError, Version, WhoHas},
    },
    time::Timestamp,
};

pub use event::{Action, CallError, CallFailure, DurableState, Event, Reply, Token, Vote};
pub use report::{Departure, ElectionFailure, Report, StepDown, Suspicion};
pub use role::{Role, SeatRole};

use ctx::{Ctx, Me};
use epochs::Epochs;
use machine::Machine;
use members::Members;
use poll::Poll;
use standby::Standby;
use state::State;

/// Start values of a core.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Id of this peer.
    pub id: PeerId,
    /// Number of this run, above those of all earlier runs.
    pub incarnation: Incarnation,
    /// Endpoint at which this peer answers.
    pub endpoint: Endpoint,
    /// Seed of the waits that should differ between peers. The same seed and events give the same actions.
    pub seed: u64,
    /// State that [`Action::Persist`] stored last; the default at the first start.
    pub durable: DurableState,
    /// True if the peer stands for election. Another one votes and follows only.
    pub candidate: bool,
}

/// The election core of a peer. A clone serves searches through possible runs.
#[derive(Debug, Clone)]
pub struct Core {
    me: Me,
    rng: fastrand::Rng,
    calls: Calls,
    epochs: Epochs,
    members: Members,
    share: ShareLog,
    standby: Option<Box<Standby>>,
    succession: Vec<PeerId>,
    seat_poll: Poll,
    ignore_disconnects_until: Timestamp,
    misleading_port: Option<Contact>,
    candidate: bool,
    storage_fails: bool,
    last_handled: Timestamp,
    machine: Machine,
}

impl Core {
    /// Core of a peer without a tracker or known peers. Its first deadline is `now`.
    pub fn new(config: CoreConfig, now: Timestamp) -> Self {
        let CoreConfig { id, incarnation, endpoint, seed, durable, candidate } = config;
        Self {
            me: Me { id, incarnation, endpoint },
            rng: fastrand::Rng::with_seed(seed),
            calls: Calls::default(),
            epochs: Epochs::new(durable),
            members: Members::new(now),
            share: ShareLog::default(),
            standby: None,
            succession: Vec::new(),
            seat_poll: Poll::due_at(now),
            ignore_disconnects_until: now,
            misleading_port: None,
            candidate,
            storage_fails: false,
            last_handled: now,
            machine: Machine::new(now),
        }
    }

    /// Handles `event` at `now` and appends the actions to take, in order.
    ///
    /// Deadlines that have passed are handled first, so that a process that stalled notices that before it takes the
    /// event.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        if event == Event::Persisted {
            self.storage_fails = false;
        }
        // A stopped core ignores events.
        let _ = self.answer(now, out, |machine, ctx| machine.dispatch(ctx, event));
    }

    /// Takes note that the state of [`Action::Persist`] could not be stored, and appends further actions.
    ///
    /// Until [`Event::Persisted`] this peer gives no vote and does not stand for election, since it could vote again
    /// after a restart. It follows, and serves its term if it is the tracker.
    pub fn on_persist_failed(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.storage_fails = true;
        let _ = self.answer(now, out, Machine::on_persist_failed);
    }

    /// True after [`Self::on_persist_failed`] until [`Event::Persisted`].
    pub fn storage_fails(&self) -> bool {
        self.storage_fails
    }

    /// Time at which [`Event::Tick`] is due; `None` when the core has stopped. Always later than the last
    /// [`Self::handle`].
    pub fn next_deadline(&self) -> Option<Timestamp> {
        if self.machine.is_stopped() {
            return None;
        }
        let state = match &self.machine.state {
            State::Searching(searching) => {
                let may_stand = self.candidate && !self.storage_fails && self.machine.campaign.is_none();
                searching.deadline(&self.members, may_stand)
            }
            State::Follower(follower) => Some(follower.deadline(&self.share, self.standby.as_deref())),
            State::Tracker(tracker) => Some(tracker.deadline()),
            State::Leaving(leaving) => Some(leaving.until),
        };
        let seat_poll = self.machine.state.is_searching().then(|| self.seat_poll.deadline());
        let deadlines = [Some(self.members.poll.deadline()), seat_poll, state, self.machine.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Answers `TrackerService::heartbeat`.
    ///
    /// As for all answers of the core: the caller carries out `out` before it sends the answer, since the answer may
    /// depend on what [`Action::Persist`] makes durable.
    ///
    /// # Errors
    /// As for `TrackerService`: not the tracker (or standby), stale epoch, superseded, too many peers, stopping.
    pub fn on_heartbeat(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        beat: &Heartbeat,
        out: &mut Vec<Action>,
    ) -> Result<HeartbeatAck, TrackerError> {
        self.answer(now, out, |machine, ctx| machine.on_heartbeat(ctx, from, beat)).unwrap_or_else(|| Err(stopping()))
    }

    /// Answers `TrackerService::announce`.
    ///
    /// # Errors
    /// As for [`Self::on_heartbeat`], and snapshot needed, later, invalid name, limits.
    pub fn on_announcement(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        announcement: Announcement,
        out: &mut Vec<Action>,
    ) -> Result<(), TrackerError> {
        self.answer(now, out, |machine, ctx| machine.on_announcement(ctx, from, announcement))
            .unwrap_or_else(|| Err(stopping()))
    }

    /// Answers `TrackerService::leave`.
    ///
    /// # Errors
    /// As for [`Self::on_heartbeat`].
    pub fn on_leave(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        epoch: Epoch,
        incarnation: Incarnation,
        out: &mut Vec<Action>,
    ) -> Result<(), TrackerError> {
        self.answer(now, out, |machine, ctx| machine.on_leave(ctx, from, epoch, incarnation))
            .unwrap_or_else(|| Err(stopping()))
    }

    /// Answers `PeerService::seat_notice`: the seat as this peer sees it after the notice.
    pub fn on_notice(&mut self, now: Timestamp, from: &PeerId, notice: SeatNotice, out: &mut Vec<Action>) -> SeatView {
        self.answer(now, out, |machine, ctx| machine.on_notice(ctx, from, notice)).unwrap_or_else(|| self.seat_view())
    }

    /// Answers `TrackerService::who_has` for `asker`, which may be this peer.
    ///
    /// # Errors
    /// As for `TrackerService`: not the tracker, stale epoch, index settling, invalid name.
    pub fn who_has(
        &mut self,
        now: Timestamp,
        asker: &PeerId,
        query: &WhoHas,
        out: &mut Vec<Action>,
    ) -> Result<Vec<Version>, TrackerError> {
        self.settled_tracker(now, query.epoch, out)?.index.who_has(asker, query)
    }

    /// Answers `TrackerService::list_all`.
    ///
    /// # Errors
    /// As for `TrackerService`: not the tracker, stale epoch, index settling.
    pub fn list_all(
        &mut self,
        now: Timestamp,
        query: &ListAll,
        out: &mut Vec<Action>,
    ) -> Result<IndexPage, TrackerError> {
        let tracker = self.settled_tracker(now, query.epoch, out)?;
        let (files, next) = tracker.index.list_all(query);
        Ok(IndexPage { epoch: tracker.seat.epoch, files, next })
    }

    fn settled_tracker(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        out: &mut Vec<Action>,
    ) -> Result<&tracker::Tracker, TrackerError> {
        if !self.machine.is_stopped() {
            self.detect_stall(now, out);
        }
        let (machine, mut ctx) = self.split(now, out);
        let tracker = machine.tracker(&mut ctx, epoch)?;
        if tracker.is_settled() { Ok(tracker) } else { Err(TrackerError::Settling) }
    }

    /// Runs a step that is answered at once; `None` when the core has stopped.
    fn answer<T>(
        &mut self,
        now: Timestamp,
        out: &mut Vec<Action>,
        step: impl FnOnce(&mut Machine, &mut Ctx<'_>) -> T,
    ) -> Option<T> {
        if self.machine.is_stopped() {
            return None;
        }
        self.detect_stall(now, out);
        let (machine, mut ctx) = self.split(now, out);
        let answer = step(machine, &mut ctx);
        machine.run_timers(&mut ctx);
        Some(answer)
    }

    /// Detects that this process stalled, then handles the deadlines that have passed.
    fn detect_stall(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let late = self.next_deadline().map_or(Duration::ZERO, |deadline| now.since(deadline));
        let asleep = now.since(self.last_handled);
        self.last_handled = self.last_handled.max(now);
        let stalled = late > STALL_THRESHOLD;
        if stalled {
            self.ignore_disconnects_until = now + SUSPICION;
        }
        let (machine, mut ctx) = self.split(now, out);
        if stalled {
            machine.on_stall(&mut ctx, late, asleep);
        }
        machine.run_timers(&mut ctx);
    }

    fn split<'a: 'b, 'b>(&'a mut self, now: Timestamp, out: &'b mut Vec<Action>) -> (&'a mut Machine, Ctx<'b>) {
        let ctx = Ctx {
            now,
            out,
            me: &self.me,
            rng: &mut self.rng,
            calls: &mut self.calls,
            epochs: &mut self.epochs,
            members: &mut self.members,
            share: &mut self.share,
            standby: &mut self.standby,
            succession: &mut self.succession,
            seat_poll: &mut self.seat_poll,
            ignore_disconnects_until: self.ignore_disconnects_until,
            misleading_port: &mut self.misleading_port,
            candidate: self.candidate,
            storage_fails: self.storage_fails,
        };
        (&mut self.machine, ctx)
    }
}

/// Refusal of a core that has stopped.
fn stopping() -> TrackerError {
    TrackerError::Unavailable("this peer is stopping".to_owned())
}

/// Queries that change nothing.
impl Core {
    /// Role of this peer.
    pub fn role(&self) -> Role {
        self.machine.role()
    }

    /// The seat as this peer sees it: its own, the followed one or the suspected one.
    pub fn seat_view(&self) -> SeatView {
        SeatView { epoch_high: self.epochs.high(), seat: self.machine.state.seat().cloned() }
    }

    /// The seat that this peer follows or holds; `None` while it has no tracker.
    pub fn tracker(&self) -> Option<&Seat> {
        self.machine.state.tracker()
    }

    /// Id of this peer.
    pub fn id(&self) -> &PeerId {
        &self.me.id
    }

    /// Number of this run.
    pub fn incarnation(&self) -> Incarnation {
        self.me.incarnation
    }

    /// State to be durable: what [`Action::Persist`] named last.
    pub fn durable(&self) -> &DurableState {
        &self.epochs.durable
    }

    /// Registered peers as last known, without this one. Without a tracker, downloads ask them directly.
    pub fn members(&self) -> &BTreeMap<PeerId, Endpoint> {
        &self.members.others
    }

    /// Peers that elect, this one included if it does, as last known; empty before the nameserver's first list.
    pub fn electors(&self) -> &BTreeSet<PeerId> {
        &self.members.electors
    }

    /// Files of this peer by name.
    pub fn share(&self) -> &BTreeMap<FileName, FileMeta> {
        self.share.files()
    }

    /// Sum of the sizes of this peer's files, bytes.
    pub fn share_bytes(&self) -> u64 {
        self.share.bytes()
    }

    /// True if the tracker has this peer's whole share. The tracker itself always has its own.
    pub fn is_announced(&self) -> bool {
        match &self.machine.state {
            State::Follower(follower) => follower.is_announced(&self.share),
            State::Tracker(_) => true,
            State::Searching(_) | State::Leaving(_) => false,
        }
    }

    /// True if this peer is a tracker that the nameserver does not know yet.
    pub fn is_provisional(&self) -> bool {
        self.own_term().is_some_and(|tracker| tracker.mandate.is_some())
    }

    /// End of this peer's lease of the seat; `None` without one.
    pub fn lease_until(&self) -> Option<Timestamp> {
        self.own_term()?.lease_until
    }

    /// The tracker's standbys, in the order in which they stand for election.
    pub fn standbys(&self) -> &[PeerId] {
        self.own_term().map_or(&self.succession, |tracker| &tracker.standbys)
    }

    /// Members and versions in this peer's copy of the index; `None` when it is no standby.
    pub fn standby_size(&self) -> Option<(usize, usize)> {
        self.standby.as_ref().map(|standby| standby.index.size())
    }

    /// Members and versions in the tracker's index; `None` when this peer is not the tracker.
    pub fn index_size(&self) -> Option<(usize, usize)> {
        Some(self.own_term()?.index.size())
    }

    fn own_term(&self) -> Option<&tracker::Tracker> {
        match &self.machine.state {
            State::Tracker(tracker) => Some(tracker),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
