//! State and campaign of a peer: dispatches events, runs timers, answers calls.

use std::time::Duration;

use super::{
    Action, CallError, CallFailure, ElectionFailure, Event, Report, Role, Token,
    campaign::{Campaign, Kind},
    ctx::Ctx,
    params::{PEERS_POLL_PER_PEER, WATCHED_PEERS_POLL},
    port_probe::DeferredVote,
    searching::Searching,
    standby::Standby,
    state::State,
    tracker::Tracker,
    transition::Transition,
};
use shared::{
    contact::Contact,
    content::FileMeta,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    limits::{CALL_DEADLINE, HEARTBEAT_DEADLINE, MAX_PEERS, PEERS_POLL},
    rpc::{
        nameserver::SeatView,
        peer::SeatNotice,
        tracker::{Addressee, Announcement, Heartbeat, HeartbeatAck, TrackerError},
    },
    time::Timestamp,
};

use crate::CallId;

/// State of a peer towards the seat, and its campaign.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) state: State,
    pub(crate) campaign: Option<Campaign>,
    /// Requests for a forced election that wait for its result.
    pub(crate) waiters: Vec<Token>,
    /// Candidates that wait until this peer has probed the tracker's port, at most `limits::MAX_ELECTORS`.
    pub(crate) deferred_votes: Vec<DeferredVote>,
    pub(crate) stopped: bool,
}

impl Machine {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            state: State::Searching(Searching::new(now)),
            campaign: None,
            waiters: Vec::new(),
            deferred_votes: Vec::new(),
            stopped: false,
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn role(&self) -> Role {
        match (&self.state, &self.campaign) {
            (State::Leaving(_), _) => Role::Leaving,
            (State::Tracker(_), _) => Role::Tracker,
            (_, Some(campaign)) if campaign.is_voting() => Role::Candidate,
            (_, Some(_)) => Role::Claiming,
            (State::Searching(searching), None) if searching.former.is_some() => Role::Suspect,
            (State::Follower(_) | State::Searching(_), None) => Role::Follower,
        }
    }

    pub(crate) fn seat_view(&self, ctx: &Ctx<'_>) -> SeatView {
        SeatView { epoch_high: ctx.epochs.high(), seat: self.state.seat().cloned() }
    }

    /// Deadline of campaign and deferred votes.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let campaign = self.campaign.as_ref().map(Campaign::deadline);
        campaign.into_iter().chain(self.deferred_votes_deadline()).min()
    }
}

/// Events and timers.
impl Machine {
    pub(crate) fn dispatch(&mut self, ctx: &mut Ctx<'_>, event: Event) {
        match event {
            Event::Tick => {}
            Event::SeatAnswered { call, result } => self.on_seat_answered(ctx, call, result),
            Event::PeersAnswered { call, result } => self.on_peers_answered(ctx, call, result),
            Event::PeersWatched { peers } => {
                // The answer to a pending query is older.
                ctx.members.poll.restart(ctx.now + WATCHED_PEERS_POLL);
                self.set_members(ctx, peers);
            }
            Event::PeersRemembered { peers } => {
                if !ctx.members.are_known() {
                    self.set_members(ctx, peers);
                }
            }
            Event::SeatChanged => {
                if self.state.is_searching() {
                    ctx.seat_poll.restart(ctx.now);
                }
            }
            Event::ClaimAnswered { call, result } => self.on_claim_answered(ctx, call, result),
            Event::RenewalAnswered { call, result } => {
                if let State::Tracker(tracker) = &mut self.state
                    && let Some(view) = tracker.on_renewal_answer(call, result)
                {
                    self.on_seat_view(ctx, &view);
                }
            }
            Event::ResignAnswered { call, result: _ } => self.on_resign_answered(ctx, call),
            Event::HeartbeatAnswered { call, from, result } => self.on_heartbeat_answered(ctx, call, &from, result),
            Event::AnnouncementAnswered { call, from, result } => {
                self.on_announcement_answered(ctx, call, &from, result);
            }
            Event::ConnectionLost { peer } => self.on_unreachable(ctx, &peer),
            Event::ProbeRefused { at } => {
                if let State::Follower(follower) = &mut self.state {
                    let transition = follower.on_probe_refused(ctx, &at);
                    self.apply(ctx, transition);
                }
            }
            Event::VoteAnswered { call, from, result } => self.on_vote_answered(ctx, call, from, result),
            Event::NoticeAnswered { from: _, view } => self.observe_peer_view(ctx, &view),
            Event::VoteRequested { token, from, request } => self.on_vote_requested(ctx, token, &from, &request),
            Event::ShareChanged { upserts, removals } => self.on_share_changed(ctx, upserts, removals),
            Event::ElectionRequested { token } => self.on_election_requested(ctx, token),
            // `Core::handle` has noted it.
            Event::Persisted => {}
            Event::Shutdown => self.on_shutdown(ctx),
        }
    }

    pub(crate) fn run_timers(&mut self, ctx: &mut Ctx<'_>) {
        if self.stopped {
            return;
        }
        if ctx.members.poll.deadline() <= ctx.now {
            let call = ctx.calls.next();
            ctx.members.poll.sent(call, ctx.now + CALL_DEADLINE, ctx.now + PEERS_POLL);
            ctx.out.push(Action::QueryPeers { call });
        }
        if self.is_seat_poll_due(ctx) && ctx.seat_poll.is_pending() {
            self.on_nameserver_away();
        }
        self.run_campaign_timer(ctx);
        self.run_state_timers(ctx);
        self.answer_deferred_votes(ctx);
        if self.is_seat_poll_due(ctx) {
            let (call, until) = (ctx.calls.next(), ctx.now + HEARTBEAT_DEADLINE);
            ctx.seat_poll.sent(call, until, until);
            ctx.out.push(Action::QuerySeat { call });
        }
    }

    /// Only a searching peer queries the seat.
    fn is_seat_poll_due(&self, ctx: &Ctx<'_>) -> bool {
        self.state.is_searching() && ctx.seat_poll.deadline() <= ctx.now
    }

    fn run_state_timers(&mut self, ctx: &mut Ctx<'_>) {
        let transition = match &mut self.state {
            State::Searching(_) => Transition::Stay,
            State::Follower(follower) => follower.run_timers(ctx),
            State::Tracker(tracker) => tracker.run_timers(ctx),
            State::Leaving(leaving) => leaving.run_timers(ctx),
        };
        let lost_seat = matches!(transition, Transition::StepDown(_));
        self.apply(ctx, transition);
        if let State::Searching(searching) = &mut self.state
            && !lost_seat
        {
            searching.run_timers(ctx);
            if self.campaign.is_none()
                && let Some(candidacy) = searching.due_candidacy(ctx)
            {
                self.stand(ctx, candidacy);
            }
        }
    }

    /// This process stalled: it is `late` for its deadline, and did nothing for the time `asleep`. That time is not
    /// the other peers' silence, and the seat may be lost meanwhile.
    pub(crate) fn on_stall(&mut self, ctx: &mut Ctx<'_>, late: Duration, asleep: Duration) {
        ctx.report(Report::Stalled { late });
        let transition = match &mut self.state {
            State::Searching(searching) => {
                searching.on_stall(ctx);
                Transition::Stay
            }
            State::Follower(follower) => {
                follower.on_stall(ctx, late);
                Transition::Stay
            }
            State::Tracker(tracker) => tracker.on_stall(ctx.now, late, asleep),
            State::Leaving(_) => Transition::Stay,
        };
        self.apply(ctx, transition);
    }

    /// The latest durable state could not be stored: a campaign ends, since its votes are withdrawn. The registration
    /// of a provisional tracker goes on, since its votes were stored before.
    pub(crate) fn on_persist_failed(&mut self, ctx: &mut Ctx<'_>) {
        if self.campaign.as_ref().is_some_and(|campaign| campaign.kind != Kind::Registering) {
            self.finish_campaign(ctx, ElectionFailure::NotStored);
        }
    }

    fn on_peers_answered(&mut self, ctx: &mut Ctx<'_>, call: CallId, result: Result<Vec<Contact>, CallFailure>) {
        if !ctx.members.poll.answered(call) {
            return;
        }
        let Ok(peers) = result else {
            ctx.members.poll.set_next(ctx.now + PEERS_POLL / 4);
            return;
        };
        let count = u32::try_from(peers.len().min(MAX_PEERS)).unwrap_or(u32::MAX);
        ctx.members.poll.set_next(ctx.now + PEERS_POLL + PEERS_POLL_PER_PEER * count);
        self.set_members(ctx, peers);
    }

    fn set_members(&mut self, ctx: &mut Ctx<'_>, peers: Vec<Contact>) {
        let before = ctx.members.replace(&ctx.me.id, peers);
        if let Some(campaign) = &mut self.campaign {
            // A provisional tracker needs a majority of the electors of now, too.
            campaign.note_view(ctx.members.electors.iter().cloned().collect());
        }
        if let State::Tracker(tracker) = &mut self.state {
            tracker.on_new_members(ctx, &before);
        }
    }

    fn on_share_changed(&mut self, ctx: &mut Ctx<'_>, upserts: Vec<FileMeta>, removals: Vec<FileName>) {
        let changed = ctx.share.change(upserts, removals);
        if changed.left_out > 0 {
            ctx.report(Report::ShareFull { left_out: changed.left_out });
        }
        // A follower's announcer sees the change by the number of the share.
        if let State::Tracker(tracker) = &mut self.state {
            tracker.index.apply_own(&ctx.me.id, &changed.upserts, &changed.removals);
        }
    }
}

/// Answers of the tracker and its standbys.
impl Machine {
    fn on_heartbeat_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: CallId,
        from: &PeerId,
        result: Result<HeartbeatAck, CallError<TrackerError>>,
    ) {
        let is_standby = match &mut self.state {
            State::Follower(follower) => follower.on_standby_answer(ctx, call, from, result.as_ref().ok()),
            _ => false,
        };
        match result {
            Err(CallError::Refused(refusal)) => self.on_refused(ctx, call, from, refusal),
            _ if is_standby => {}
            Ok(ack) => self.on_sign_of_life(ctx, call, from, Some(&ack)),
            Err(CallError::Failed(CallFailure::Unreachable)) => self.on_unreachable(ctx, from),
            // Silence is measured by the answers that arrive.
            Err(CallError::Failed(CallFailure::NoAnswer)) => {}
        }
    }

    fn on_announcement_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: CallId,
        from: &PeerId,
        result: Result<(), CallError<TrackerError>>,
    ) {
        if let State::Follower(follower) = &mut self.state
            && let Some(refusal) = follower.on_announcement_answer(ctx, call, result)
        {
            self.on_refused(ctx, call, from, refusal);
        }
    }

    fn on_sign_of_life(&mut self, ctx: &mut Ctx<'_>, call: CallId, from: &PeerId, ack: Option<&HeartbeatAck>) {
        let transition = match &mut self.state {
            State::Searching(searching) => searching.on_sign_of_life(ctx, call, from, ack),
            State::Follower(follower) => {
                follower.on_sign_of_life(ctx, call, from, ack);
                Transition::Stay
            }
            State::Tracker(_) | State::Leaving(_) => Transition::Stay,
        };
        self.apply(ctx, transition);
    }

    /// `from` refused a heartbeat or an announcement.
    fn on_refused(&mut self, ctx: &mut Ctx<'_>, call: CallId, from: &PeerId, refusal: TrackerError) {
        match refusal {
            TrackerError::StaleEpoch(view) => self.observe_peer_view(ctx, &view),
            TrackerError::NotTracker(view) => {
                self.observe_peer_view(ctx, &view);
                if let State::Follower(follower) = &self.state {
                    let transition = follower.on_not_tracker(call, from);
                    self.apply(ctx, transition);
                }
            }
            TrackerError::Superseded => {
                ctx.report(Report::Superseded);
                self.on_shutdown(ctx);
            }
            // A refusal for another reason shows that the tracker runs.
            TrackerError::SnapshotNeeded
            | TrackerError::InvalidFileName(_)
            | TrackerError::Settling
            | TrackerError::LimitReached { .. }
            | TrackerError::Unavailable(_)
            | TrackerError::Later { .. } => self.on_sign_of_life(ctx, call, from, None),
        }
    }

    fn on_unreachable(&mut self, ctx: &mut Ctx<'_>, peer: &PeerId) {
        if let State::Follower(follower) = &mut self.state {
            let transition = follower.on_disconnect(ctx, peer);
            self.apply(ctx, transition);
        }
    }
}

/// Calls of other peers that the core answers at once.
impl Machine {
    pub(crate) fn on_notice(&mut self, ctx: &mut Ctx<'_>, from: &PeerId, notice: SeatNotice) -> SeatView {
        self.observe_notice(ctx, from, notice);
        self.seat_view(ctx)
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: &PeerId,
        beat: &Heartbeat,
    ) -> Result<HeartbeatAck, TrackerError> {
        match beat.to {
            Addressee::Tracker => self.tracker(ctx, beat.epoch)?.on_heartbeat(ctx, from, beat),
            Addressee::Standby => {
                let now = ctx.now;
                self.standby(ctx, beat.epoch)?.on_heartbeat(now, from, beat)
            }
        }
    }

    pub(crate) fn on_announcement(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: &PeerId,
        announcement: Announcement,
    ) -> Result<(), TrackerError> {
        match announcement.to {
            Addressee::Tracker => self.tracker(ctx, announcement.epoch)?.on_announcement(ctx, from, announcement),
            Addressee::Standby => {
                let now = ctx.now;
                self.standby(ctx, announcement.epoch)?.on_announcement(now, from, announcement)
            }
        }
    }

    pub(crate) fn on_leave(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: &PeerId,
        epoch: Epoch,
        incarnation: Incarnation,
    ) -> Result<(), TrackerError> {
        if ctx.standby.is_some() && matches!(self.state, State::Follower(_)) {
            return self.standby(ctx, epoch)?.on_leave(from, incarnation);
        }
        self.tracker(ctx, epoch)?.on_leave(ctx, from, incarnation)
    }

    /// The tracker, if a call of `epoch` is meant for it.
    pub(crate) fn tracker(&mut self, ctx: &mut Ctx<'_>, epoch: Epoch) -> Result<&mut Tracker, TrackerError> {
        let view = self.observe_caller_epoch(ctx, epoch);
        let State::Tracker(tracker) = &mut self.state else { return Err(TrackerError::NotTracker(view)) };
        tracker.check_epoch(epoch, view)?;
        Ok(tracker)
    }

    /// The standby's copy of the index, if a call of `epoch` is meant for a standby of the followed tracker.
    fn standby<'c>(&mut self, ctx: &'c mut Ctx<'_>, epoch: Epoch) -> Result<&'c mut Standby, TrackerError> {
        let view = self.observe_caller_epoch(ctx, epoch);
        if epoch < ctx.epochs.high() {
            return Err(TrackerError::StaleEpoch(view));
        }
        match (&self.state, &mut ctx.standby) {
            (State::Follower(follower), Some(standby)) if follower.seat.epoch == epoch => Ok(standby),
            _ => Err(TrackerError::NotTracker(view)),
        }
    }

    /// Observes the epoch that a caller names. Returns this peer's view of the seat after that.
    fn observe_caller_epoch(&mut self, ctx: &mut Ctx<'_>, epoch: Epoch) -> SeatView {
        if !self.state.is_leaving() {
            self.observe_peer_epoch(ctx, epoch);
        }
        self.seat_view(ctx)
    }
}
