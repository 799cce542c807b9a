//! Views of the seat that the nameserver and other peers report.

use super::{
    Action, CallFailure, ElectionFailure, Machine, StepDown, Suspicion,
    campaign::{Campaign, Kind},
    ctx::Ctx,
    params::SEAT_POLL,
    searching::SeatInfo,
    state::State,
    transition::Transition,
};
use shared::{
    epoch::Epoch,
    id::PeerId,
    rpc::{
        nameserver::{Seat, SeatView},
        peer::SeatNotice,
    },
};

use crate::CallId;

impl Machine {
    /// Raises the highest epoch known, durably, before anything is done about it. Returns whether it rose.
    pub(crate) fn observe_epoch(&mut self, ctx: &mut Ctx<'_>, epoch: Epoch) -> bool {
        if !ctx.epochs.observe(epoch) {
            return false;
        }
        ctx.persist();
        // The epoch may be known from this peer's own claim, whose answer is still under way.
        if self.campaign.as_ref().is_some_and(|campaign| !(campaign.is_claiming() && campaign.epoch == epoch)) {
            self.finish_campaign(ctx, ElectionFailure::Lost(self.seat_view(ctx)));
        }
        let transition = match &self.state {
            State::Tracker(tracker) if tracker.seat.epoch < epoch => Transition::StepDown(StepDown::HigherEpoch),
            State::Follower(follower) if follower.seat.epoch < epoch => Transition::Search,
            State::Searching(_) => Transition::RestartSearch,
            State::Tracker(_) | State::Follower(_) | State::Leaving(_) => Transition::Stay,
        };
        self.apply(ctx, transition);
        true
    }

    /// Raises the highest epoch known to one that another peer names, if that is credible.
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
        // That other peers still follow the suspected tracker does not lift the suspicion.
        if matches!(&self.state, State::Searching(searching) if searching.suspected.as_ref() != Some(seat)) {
            self.apply(ctx, Transition::Follow(seat.clone()));
        }
    }

    /// Takes a notice from the peer that holds, or held, the seat.
    pub(crate) fn observe_notice(&mut self, ctx: &mut Ctx<'_>, from: &PeerId, notice: SeatNotice) {
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

    pub(crate) fn on_seat_answered(&mut self, ctx: &mut Ctx<'_>, call: CallId, result: Result<SeatView, CallFailure>) {
        if !ctx.seat_poll.answered(call) {
            // The answer is late, but epochs only rise: a higher one than any known is valid.
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
    pub(crate) fn on_nameserver_away(&mut self) {
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
    pub(crate) fn on_resign_answered(&mut self, ctx: &mut Ctx<'_>, call: CallId) {
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
