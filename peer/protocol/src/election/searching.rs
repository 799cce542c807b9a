//! The state of a peer that follows no tracker, or suspects the one that it followed: it asks the nameserver,
//! and stands for election at its turn.

use super::{
    campaign::Kind,
    ctx::{Ctx, contact_of},
    members::Members,
    params::{SEAT_POLL, VOTE_WAIT},
    port_probe::Refusal,
    transition::Transition,
};
use shared::{
    id::PeerId,
    limits::HEARTBEAT,
    rpc::{nameserver::Seat, tracker::HeartbeatAck},
    time::Timestamp,
};

use crate::CallId;

/// A peer that follows no tracker.
#[derive(Debug, Clone)]
pub(crate) struct Searching {
    /// Suspected tracker. Heartbeats to it continue, since it may answer again.
    pub(crate) suspected: Option<Seat>,
    /// Previous tracker, unless that was this peer: a new tracker does not wait for its announcements.
    pub(crate) former: Option<PeerId>,
    /// The nameserver's latest answer, while it is fresh.
    pub(crate) info: Option<SeatInfo>,
    /// Time at which this peer stands for election.
    pub(crate) campaign_at: Timestamp,
    next_heartbeat: Timestamp,
    /// Refusal of the suspected tracker's port, if that is why it is suspected.
    refusal: Option<Refusal>,
}

/// The nameserver's latest answer about the seat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SeatInfo {
    /// The seat is vacant: a claim needs no votes.
    Vacant,
    /// A peer that this one does not follow holds the seat.
    Held(PeerId),
    /// The nameserver does not answer.
    NameserverAway,
}

/// A campaign that is due.
#[derive(Debug)]
pub(crate) enum Candidacy {
    /// Claims the vacant seat.
    ClaimVacant,
    /// Asks for votes to replace this tracker.
    Replace(Option<PeerId>, Kind),
}

impl Searching {
    /// State of a peer that has not followed a tracker.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { suspected: None, former: None, info: None, campaign_at: now, next_heartbeat: now, refusal: None }
    }

    /// State of a peer that suspects the tracker `former`; `suspected` while heartbeats to it make sense.
    pub(crate) fn suspecting(
        now: Timestamp,
        former: PeerId,
        suspected: Option<Seat>,
        campaign_at: Timestamp,
        refusal: Option<Refusal>,
    ) -> Self {
        Self { suspected, former: Some(former), campaign_at, refusal, ..Self::new(now) }
    }

    /// State after a higher epoch was observed.
    pub(crate) fn restarted(&self, now: Timestamp) -> Self {
        Self { former: self.former.clone(), campaign_at: self.campaign_at, ..Self::new(now) }
    }

    /// Time of the next heartbeat to the suspect or, unless `campaigning`, of the next candidacy.
    pub(crate) fn deadline(&self, members: &Members, may_stand: bool) -> Option<Timestamp> {
        let heartbeat = self.suspected.is_some().then_some(self.next_heartbeat);
        let turn = (may_stand && self.can_stand(members)).then_some(self.campaign_at);
        heartbeat.into_iter().chain(turn).min()
    }

    /// True if a campaign can lead to the seat: the nameserver can confirm it, or enough electors are left without it.
    fn can_stand(&self, members: &Members) -> bool {
        match &self.info {
            Some(SeatInfo::Vacant | SeatInfo::Held(_)) => true,
            Some(SeatInfo::NameserverAway) => members.can_elect_without(self.former.as_ref()),
            None => false,
        }
    }

    /// Sends a due heartbeat to the suspect.
    pub(crate) fn run_timers(&mut self, ctx: &mut Ctx<'_>) {
        if self.next_heartbeat <= ctx.now
            && let Some(seat) = &self.suspected
        {
            self.next_heartbeat = ctx.now + HEARTBEAT;
            ctx.send_heartbeat(seat);
        }
    }

    /// Campaign that is due now, if none runs.
    pub(crate) fn due_candidacy(&self, ctx: &Ctx<'_>) -> Option<Candidacy> {
        if ctx.now < self.campaign_at || ctx.obstacle().is_some() || !self.can_stand(ctx.members) {
            return None;
        }
        match &self.info {
            Some(SeatInfo::Vacant) => Some(Candidacy::ClaimVacant),
            Some(SeatInfo::Held(incumbent)) => Some(Candidacy::Replace(Some(incumbent.clone()), Kind::Ordinary)),
            Some(SeatInfo::NameserverAway) => Some(Candidacy::Replace(self.former.clone(), Kind::Provisional)),
            None => None,
        }
    }

    /// Takes the nameserver's answer that `seat` is held by another peer, or that no seat is.
    pub(crate) fn on_seat(&mut self, ctx: &mut Ctx<'_>, seat: Option<&Seat>) -> Transition {
        let Some(seat) = seat else {
            self.info = Some(SeatInfo::Vacant);
            return Transition::Stay;
        };
        let held = Some(SeatInfo::Held(seat.peer.clone()));
        if seat.epoch < ctx.epochs.high() {
            // Its holder does not know the higher epochs; the heartbeat names the highest.
            self.info = held;
            ctx.send_heartbeat(seat);
        } else if self.suspected.as_ref() == Some(seat) {
            self.info = held;
        } else if seat.epoch <= ctx.epochs.vacated {
            self.info = held;
            ctx.seat_poll.set_next(ctx.now + SEAT_POLL / 4);
        } else {
            return Transition::Follow(seat.clone());
        }
        Transition::Stay
    }

    /// The nameserver answers again. Peers that missed it too were perhaps cut off together with this one, so the
    /// suspect gets the time of one answer before anything is done against it.
    pub(crate) fn on_nameserver_back(&mut self, now: Timestamp) {
        let was_away = self.info.take() == Some(SeatInfo::NameserverAway);
        if was_away && self.suspected.is_some() {
            self.next_heartbeat = now;
            self.campaign_at = self.campaign_at.max(now + VOTE_WAIT);
        }
    }

    /// Lifts the suspicion when the suspect answers the heartbeat `call`.
    pub(crate) fn on_sign_of_life(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: CallId,
        from: &PeerId,
        ack: Option<&HeartbeatAck>,
    ) -> Transition {
        let answers = |seat: &&Seat| seat.peer == *from && ack.is_none_or(|ack| ack.epoch == seat.epoch);
        let Some(seat) = self.suspected.as_ref().filter(answers) else { return Transition::Stay };
        if self.refusal.take_if(|refusal| refusal.is_disproved_by(call)).is_some() {
            *ctx.misleading_port = Some(contact_of(seat));
        }
        Transition::LiftSuspicion(seat.clone())
    }

    /// This process stalled: the nameserver's last answer is old, and the next one may be waiting to be read.
    pub(crate) fn on_stall(&mut self, ctx: &mut Ctx<'_>) {
        let campaign_at = ctx.now + ctx.stagger(None);
        self.info = None;
        self.campaign_at = self.campaign_at.max(campaign_at);
        ctx.seat_poll.restart(ctx.now);
    }

    /// A campaign ended without the seat: the next one is not before `again`. What was known of the seat did not lead
    /// to it, and a claim without an answer may have been accepted, so the nameserver is asked. (While the
    /// nameserver is away, the seat poll repeats the query anyway.)
    pub(crate) fn on_campaign_failed(&mut self, ctx: &mut Ctx<'_>, again: Timestamp) {
        self.campaign_at = self.campaign_at.max(again);
        if self.info != Some(SeatInfo::NameserverAway) {
            self.info = None;
            ctx.seat_poll.hasten(ctx.now);
        }
    }

    /// True if the nameserver did not answer the latest query. A peer that reaches the nameserver has no part in an
    /// election without it.
    pub(crate) fn misses_the_nameserver(&self) -> bool {
        self.info == Some(SeatInfo::NameserverAway)
    }
}
