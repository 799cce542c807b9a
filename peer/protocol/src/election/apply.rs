//! Application of transitions, the only code that changes the state.

use shared::{
    epoch::Epoch,
    limits::CLOSE_DEADLINE,
    rpc::{nameserver::Seat, peer::SeatNotice},
    time::Timestamp,
};

use super::{
    Action, ElectionFailure, Report, StepDown, Suspicion,
    campaign::Campaign,
    ctx::{Ctx, contact},
    follower::Follower,
    machine::Machine,
    port_probe::Refusal,
    searching::Searching,
    standby::Standby,
    state::{Leaving, State},
    tracker::{Mandate, Tracker},
    transition::Transition,
};

impl Machine {
    pub(crate) fn apply(&mut self, ctx: &mut Ctx<'_>, transition: Transition) {
        match transition {
            Transition::Stay => {}
            Transition::Search => self.search(ctx, Searching::new(ctx.now)),
            Transition::RestartSearch => {
                if let State::Searching(searching) = &self.state {
                    let restarted = searching.restarted(ctx.now);
                    self.search(ctx, restarted);
                }
            }
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
            // The seat is suspected already; only the tracker's own notice that it is vacant changes that.
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

    /// Takes the seat of `epoch`: the nameserver accepted the claim or, with a `mandate`, the electors chose this
    /// peer while the nameserver is away. A tracker that was elected again keeps its index.
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

    /// This process stops. A tracker resigns first and notifies its followers when the seat is vacant.
    pub(crate) fn on_shutdown(&mut self, ctx: &mut Ctx<'_>) {
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
