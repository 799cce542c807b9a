//! State and campaign of a peer: dispatches events, runs timers, applies transitions.

use std::{collections::BTreeMap, time::Duration};

use shared::{
    contact::Contact,
    content::FileMeta,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    limits::{
        CALL_DEADLINE, CLOSE_DEADLINE, HEARTBEAT, HEARTBEAT_DEADLINE, MAX_PEERS, PEERS_POLL, PEERS_POLL_PER_PEER,
        SEAT_POLL, WATCHED_PEERS_POLL,
    },
    rpc::{
        nameserver::{Seat, SeatView},
        peer::SeatNotice,
        tracker::{Addressee, Announcement, Heartbeat, HeartbeatAck, TrackerError},
    },
    time::Timestamp,
};

use super::{
    Action, CallError, CallFailure, ElectionFailure, Event, Reply, Report, Role, StepDown, Suspicion, Token,
    campaign::{Campaign, Kind},
    ctx::{Ctx, contact},
    follower::Follower,
    port_probe::{DeferredVote, Refusal},
    searching::{Searching, SeatInfo},
    standby::Standby,
    state::{Leaving, State, Transition},
    tracker::{Mandate, Tracker},
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
    stopped: bool,
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
            Event::NoticeReceived { token, from, notice } => {
                self.on_notice(ctx, &from, notice);
                let reply = Reply::Notice(self.seat_view(ctx));
                ctx.out.push(Action::Reply { token, reply });
            }
            Event::HeartbeatReceived { token, from, beat } => {
                let reply = Reply::Heartbeat(self.on_heartbeat(ctx, &from, &beat));
                ctx.out.push(Action::Reply { token, reply });
            }
            Event::AnnouncementReceived { token, from, announcement } => {
                let reply = Reply::Announcement(self.on_announcement(ctx, &from, announcement));
                ctx.out.push(Action::Reply { token, reply });
            }
            Event::LeaveReceived { token, from, epoch, incarnation } => {
                let reply = Reply::Leave(self.on_leave(ctx, &from, epoch, incarnation));
                ctx.out.push(Action::Reply { token, reply });
            }
            Event::ShareChanged { upserts, removals } => self.on_share_changed(ctx, upserts, removals),
            Event::ElectionRequested { token } => self.on_election_requested(ctx, token),
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

    /// This process stalled: it is `late` for its deadline, and did nothing for the time `asleep`. That is not the other
    /// peers' silence, and it may have cost the seat.
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
        self.notify_new_members(ctx, &before);
    }

    fn notify_new_members(&mut self, ctx: &mut Ctx<'_>, before: &BTreeMap<PeerId, shared::name::Endpoint>) {
        if let State::Tracker(tracker) = &mut self.state {
            tracker.on_new_members(ctx, before);
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

    /// This process stops. A tracker resigns first and says farewell when the seat is vacant.
    fn on_shutdown(&mut self, ctx: &mut Ctx<'_>) {
        let campaign = self.campaign.take();
        self.answer_waiters(ctx, Err(ElectionFailure::Stopping));
        match &self.state {
            State::Leaving(_) => return,
            State::Tracker(tracker) => {
                let (epoch, followers) = (tracker.seat.epoch, tracker.farewell_contacts(ctx));
                let call = ctx.calls.next();
                ctx.out.push(Action::Resign { call, epoch });
                let until = ctx.now + CLOSE_DEADLINE;
                self.state = State::Leaving(Leaving { epoch, call, until, followers });
                return;
            }
            State::Follower(follower) => follower.leave(ctx),
            State::Searching(_) => {}
        }
        if let Some(campaign) = campaign.filter(Campaign::is_claiming) {
            // The claim may be accepted yet: its seat must not stay with a peer that is gone.
            let call = ctx.calls.next();
            ctx.out.push(Action::Resign { call, epoch: campaign.epoch });
        }
        self.apply(ctx, Transition::Stop);
    }
}

/// What the nameserver and other peers say of the seat.
impl Machine {
    /// Raises the highest epoch known, durably, before anything is done about it. Returns whether it rose.
    fn observe_epoch(&mut self, ctx: &mut Ctx<'_>, epoch: Epoch) -> bool {
        if !ctx.epochs.observe(epoch) {
            return false;
        }
        ctx.persist();
        // A claim to this very epoch may be the one that the others speak of.
        if self.campaign.as_ref().is_some_and(|campaign| !(campaign.is_claiming() && campaign.epoch == epoch)) {
            self.finish_campaign(ctx, ElectionFailure::Lost(self.seat_view(ctx)));
        }
        let transition = match &self.state {
            State::Tracker(tracker) if tracker.seat.epoch < epoch => Transition::StepDown(StepDown::HigherEpoch),
            State::Follower(follower) if follower.seat.epoch < epoch => Transition::Search(Searching::new(ctx.now)),
            State::Searching(searching) => Transition::Search(searching.restarted(ctx.now)),
            State::Tracker(_) | State::Follower(_) | State::Leaving(_) => Transition::Stay,
        };
        self.apply(ctx, transition);
        true
    }

    /// Raises the highest epoch known to what another peer says, if that is credible.
    pub(crate) fn observe_peer_epoch(&mut self, ctx: &mut Ctx<'_>, epoch: Epoch) -> bool {
        ctx.epochs.is_credible(epoch) && self.observe_epoch(ctx, epoch)
    }

    /// Takes another peer's view of the seat.
    pub(crate) fn observe_peer_view(&mut self, ctx: &mut Ctx<'_>, view: &SeatView) {
        if self.state.is_leaving() {
            return;
        }
        self.observe_peer_epoch(ctx, view.epoch_high);
        let Some(seat) = &view.seat else { return };
        self.check_conflict(ctx, seat);
        if seat.epoch != ctx.epochs.high() || seat.epoch <= ctx.epochs.vacated || seat.peer == ctx.me.id {
            return;
        }
        // The suspected seat is known; that others still trust it changes nothing.
        if matches!(&self.state, State::Searching(searching) if searching.suspected.as_ref() != Some(seat)) {
            self.apply(ctx, Transition::Follow(seat.clone()));
        }
    }

    /// Takes a notice from the peer that holds, or held, the seat.
    fn on_notice(&mut self, ctx: &mut Ctx<'_>, from: &PeerId, notice: SeatNotice) {
        if self.state.is_leaving() {
            return;
        }
        match notice {
            SeatNotice::Taken(seat) if seat.peer == *from => {
                self.observe_peer_epoch(ctx, seat.epoch);
                self.check_conflict(ctx, &seat);
                let is_current = seat.epoch == ctx.epochs.high() && seat.epoch > ctx.epochs.vacated;
                // The tracker's own notice lifts a suspicion too.
                if is_current && self.state.is_searching() {
                    self.apply(ctx, Transition::Follow(seat));
                }
            }
            SeatNotice::Taken(_) => {}
            SeatNotice::Vacated(epoch) => {
                let is_its_own = |seat: &Seat| seat.peer == *from && seat.epoch == epoch;
                if self.state.seat().is_some_and(is_its_own) && !matches!(self.state, State::Tracker(_)) {
                    ctx.epochs.vacated = ctx.epochs.vacated.max(epoch);
                    self.apply(ctx, Transition::Suspect(Suspicion::Vacated, None));
                }
            }
        }
    }

    /// Two trackers were elected in one epoch: both step down, and the next epoch has one.
    fn check_conflict(&mut self, ctx: &mut Ctx<'_>, seat: &Seat) {
        if matches!(&self.state, State::Tracker(tracker) if tracker.conflicts_with(seat)) {
            self.apply(ctx, Transition::StepDown(StepDown::Conflict));
        }
    }

    fn on_seat_answered(&mut self, ctx: &mut Ctx<'_>, call: CallId, result: Result<SeatView, CallFailure>) {
        if !ctx.seat_poll.answered(call) {
            // The answer is late, but epochs only rise: one above all that are known is news.
            if let Ok(view) = result
                && view.epoch_high > ctx.epochs.high()
            {
                self.on_seat_view(ctx, &view);
            }
            return;
        }
        let wait = SEAT_POLL + ctx.jitter(SEAT_POLL / 4);
        ctx.seat_poll.set_next(ctx.now + wait);
        let Ok(view) = result else { return self.on_nameserver_away() };
        // The nameserver is back: elections take place with it.
        let without_it = |own: &Campaign| own.kind == Kind::Provisional && own.is_voting();
        if self.campaign.as_ref().is_some_and(without_it) {
            self.finish_campaign(ctx, ElectionFailure::Lost(view.clone()));
        }
        if let State::Searching(searching) = &mut self.state {
            searching.on_nameserver_back(ctx.now);
        }
        self.on_seat_view(ctx, &view);
    }

    /// The nameserver does not answer: a peer that misses the tracker turns to the other peers.
    fn on_nameserver_away(&mut self) {
        if let State::Searching(searching) = &mut self.state {
            searching.info = Some(SeatInfo::NameserverAway);
        }
    }

    /// Takes the nameserver's view of the seat.
    pub(crate) fn on_seat_view(&mut self, ctx: &mut Ctx<'_>, view: &SeatView) {
        self.observe_epoch(ctx, view.epoch_high);
        ctx.epochs.confirm(view.epoch_high);
        if let Some(seat) = view.seat.as_ref().filter(|seat| seat.peer == ctx.me.id) {
            return self.on_own_seat(ctx, seat);
        }
        match &mut self.state {
            State::Searching(searching) => {
                let transition = searching.on_seat(ctx, view.seat.as_ref());
                self.apply(ctx, transition);
            }
            State::Tracker(tracker) if self.campaign.is_none() => {
                if let Some(reclaim) = tracker.on_seat_view(ctx, view) {
                    self.reclaim(ctx, reclaim);
                }
            }
            State::Tracker(_) | State::Follower(_) | State::Leaving(_) => {}
        }
    }

    /// The nameserver names this peer as the holder of the seat.
    fn on_own_seat(&mut self, ctx: &mut Ctx<'_>, seat: &Seat) {
        let State::Searching(searching) = &mut self.state else { return };
        if ctx.epochs.claimed == Some(seat.epoch) && seat.epoch == ctx.epochs.high() {
            // The claim was accepted and its answer lost. The lease is not known until it is renewed.
            return self.become_tracker(ctx, seat.epoch, None, None);
        }
        // The seat is an earlier run's, or this run stepped down from it: no peer follows it.
        searching.info = None;
        let call = ctx.calls.next();
        ctx.out.push(Action::Resign { call, epoch: seat.epoch });
    }

    /// The seat was given up, or that failed: a searching peer asks again.
    fn on_resign_answered(&mut self, ctx: &mut Ctx<'_>, call: CallId) {
        match &mut self.state {
            State::Leaving(leaving) if leaving.call == call => {
                let transition = leaving.say_farewell(ctx);
                self.apply(ctx, transition);
            }
            State::Searching(_) => ctx.seat_poll.hasten(ctx.now),
            _ => {}
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
        let jitter = ctx.jitter(HEARTBEAT);
        if let State::Follower(follower) = &mut self.state
            && let Some(refusal) = follower.on_announcement_answer(ctx, call, result, jitter)
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
            // The tracker answers, whatever it lacks.
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

/// Calls to the tracker and its standbys, which the core answers at once.
impl Machine {
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

/// Transitions: the state changes here and nowhere else.
impl Machine {
    pub(crate) fn apply(&mut self, ctx: &mut Ctx<'_>, transition: Transition) {
        match transition {
            Transition::Stay => {}
            Transition::Search(searching) => self.search(ctx, searching),
            Transition::Suspect(why, refusal) => self.suspect(ctx, why, refusal),
            Transition::LiftSuspicion(seat) => {
                ctx.report(Report::SuspicionLifted { seat: seat.clone() });
                self.follow(ctx, seat);
            }
            Transition::Follow(seat) => self.follow(ctx, seat),
            Transition::StepDown(why) => self.step_down(ctx, why),
            Transition::Stop => {
                self.stopped = true;
                ctx.out.push(Action::Stopped);
            }
        }
    }

    /// Searches for a tracker and queries the seat at once.
    fn search(&mut self, ctx: &mut Ctx<'_>, searching: Searching) {
        self.state = State::Searching(searching);
        ctx.seat_poll.restart(ctx.now);
    }

    fn suspect(&mut self, ctx: &mut Ctx<'_>, why: Suspicion, refusal: Option<Refusal>) {
        let seat = match &self.state {
            State::Follower(follower) => follower.seat.clone(),
            // It is suspected already; only its own farewell is news.
            State::Searching(Searching { suspected: Some(seat), .. }) if why == Suspicion::Vacated => seat.clone(),
            _ => return,
        };
        let former = seat.peer.clone();
        ctx.report(Report::TrackerSuspected { seat: seat.clone(), why });
        let suspected = (why != Suspicion::Vacated).then_some(seat);
        let campaign_at = ctx.now + ctx.stagger(Some(&former));
        self.search(ctx, Searching::suspecting(ctx.now, former, suspected, campaign_at, refusal));
        ctx.members.poll.hasten(ctx.now);
    }

    fn follow(&mut self, ctx: &mut Ctx<'_>, seat: Seat) {
        match &self.state {
            State::Follower(follower) if follower.seat == seat => return,
            State::Tracker(_) | State::Leaving(_) => return,
            State::Follower(_) | State::Searching(_) => {}
        }
        if self.campaign.as_ref().is_some_and(|campaign| !campaign.is_forced()) {
            self.finish_campaign(ctx, ElectionFailure::Lost(self.seat_view(ctx)));
        }
        ctx.report(Report::Following(seat.clone()));
        self.state = State::Follower(Box::new(Follower::new(ctx, seat)));
    }

    /// Stops being the tracker, and resigns in case the nameserver still names this peer.
    fn step_down(&mut self, ctx: &mut Ctx<'_>, why: StepDown) {
        let State::Tracker(tracker) = &mut self.state else { return };
        let epoch = tracker.seat.epoch;
        ctx.report(Report::SteppedDown { epoch, why });
        // The index serves as a standby's, if the next tracker names this peer as one.
        *ctx.standby = Some(Box::new(Standby::of(std::mem::take(&mut tracker.index), &ctx.me.id)));
        ctx.epochs.claimed = None;
        self.finish_campaign(ctx, ElectionFailure::Lost(self.seat_view(ctx)));
        let call = ctx.calls.next();
        ctx.out.push(Action::Resign { call, epoch });
        self.search(ctx, Searching::new(ctx.now));
    }

    /// Takes the seat of `epoch`: the nameserver accepted the claim or, with a `mandate`, the electors chose this peer while
    /// the nameserver is away. A tracker that was elected again keeps its index.
    pub(crate) fn become_tracker(
        &mut self,
        ctx: &mut Ctx<'_>,
        epoch: Epoch,
        lease_until: Option<Timestamp>,
        mandate: Option<Mandate>,
    ) {
        let provisional = mandate.is_some();
        if ctx.epochs.take_seat(epoch, !provisional) {
            ctx.persist();
        }
        self.campaign = None;
        let seat = Seat { epoch, peer: ctx.me.id.clone(), endpoint: ctx.me.endpoint.clone() };
        if let State::Tracker(tracker) = &mut self.state {
            tracker.reelected(ctx.now, seat.clone(), lease_until, mandate);
        } else {
            let former = match &self.state {
                State::Searching(searching) => searching.former.clone(),
                _ => None,
            };
            self.state = State::Tracker(Box::new(Tracker::new(ctx, seat.clone(), lease_until, mandate, former)));
        }
        ctx.report(if provisional { Report::BecameProvisional { epoch } } else { Report::BecameTracker { epoch } });
        for (peer, endpoint) in &ctx.members.others {
            let notice = SeatNotice::Taken(seat.clone());
            ctx.out.push(Action::SendNotice { to: contact(peer, endpoint), notice });
        }
        self.answer_waiters(ctx, Ok(seat));
        // The answer to a pending query may lack peers that came since.
        ctx.members.poll.restart(ctx.now);
    }
}
