//! The state of the tracker: it keeps the seat and serves the peers that follow it.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Action, CallError, Departure, Report, StepDown,
    ctx::{Ctx, contact},
    liveness::Liveness,
    params::{DRAIN_AFTER, MAX_STANDBYS, PEER_SILENCE, SEAT_RENEWAL, SUSPICION},
    settling::Settling,
    transition::Transition,
};
use crate::{CallId, index::Index, params::REDUCED_HEARTBEAT, replication::admission::SnapshotAdmission};
use shared::{
    contact::Contact,
    electors::rendezvous,
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::{HEARTBEAT, HEARTBEAT_DEADLINE, MAX_ELECTORS, SEAT_LEASE},
    name::Endpoint,
    rpc::{
        nameserver::{ClaimError, Seat, SeatGrant, SeatView},
        peer::SeatNotice,
        tracker::{Announcement, Heartbeat, HeartbeatAck, StandbyContact, TrackerError},
    },
    time::Timestamp,
};

/// Salt of the hash that orders standbys: constant, so that trackers with the same members choose the same ones.
const STANDBYS_SALT: &[u8] = b"standbys";

/// The tracker, from taking the seat to losing it.
#[derive(Debug, Clone)]
pub(crate) struct Tracker {
    pub(crate) seat: Seat,
    since: Timestamp,
    /// Time until which the seat is certainly this peer's: counted from when the claim or renewal was *sent*.
    pub(crate) lease_until: Option<Timestamp>,
    next_renewal: Timestamp,
    /// Renewal under way and the time at which it was sent.
    renewal: Option<(CallId, Timestamp)>,
    /// Time of the next check for lease and majority; neither can have run out before.
    check_at: Timestamp,
    /// Votes that made this peer the tracker without the nameserver; `None` once it is registered.
    pub(crate) mandate: Option<Mandate>,
    /// This process stalled: it accepts no announcement before the nameserver was asked whether the seat is still its
    /// own.
    unconfirmed: bool,
    pub(crate) index: Index,
    liveness: Liveness,
    admission: SnapshotAdmission,
    /// Standbys, in the order in which they stand for election.
    pub(crate) standbys: Vec<PeerId>,
    /// Time at which inherited members that sent no heartbeat since the seat was taken are removed.
    inherited_until: Option<Timestamp>,
    /// Set until the index is complete.
    settling: Option<Settling>,
}

/// Votes of a provisional tracker.
#[derive(Debug, Clone)]
pub(crate) struct Mandate {
    pub(crate) votes: BTreeSet<PeerId>,
    /// Epoch of the seat that the votes replace.
    pub(crate) expected: Epoch,
}

/// Claim with which a tracker keeps its seat.
#[derive(Debug)]
pub(crate) enum Reclaim {
    /// Claims a higher epoch for the vacant seat.
    Vacant,
    /// Registers the epoch that was won without the nameserver.
    Register(Epoch, Mandate),
}

impl Tracker {
    /// Tracker of a seat just taken. It inherits a standby's index. `former` is the tracker before it.
    pub(crate) fn new(
        ctx: &mut Ctx<'_>,
        seat: Seat,
        lease_until: Option<Timestamp>,
        mandate: Option<Mandate>,
        former: Option<PeerId>,
    ) -> Self {
        let now = ctx.now;
        let mut index = ctx.standby.take().map(|standby| standby.index).unwrap_or_default();
        index.mark_unconfirmed();
        former.iter().for_each(|former| index.remove(former));
        let inherited_until = (index.size().0 > 0).then(|| now + PEER_SILENCE);
        if index.admit(&ctx.me.id, ctx.me.incarnation, &ctx.me.endpoint).is_ok() {
            let own: Vec<_> = ctx.share.files().values().cloned().collect();
            index.apply_own(&ctx.me.id, &own, &[]);
        }
        let stays = |standby: &&PeerId| **standby != ctx.me.id && Some(*standby) != former.as_ref();
        let standbys = ctx.succession.iter().filter(stays).cloned().collect();
        // Without the nameserver there is no newer list of peers than the known one.
        let listed = mandate.is_some();
        Self {
            seat,
            since: now,
            lease_until,
            next_renewal: first_renewal(now, lease_until),
            renewal: None,
            check_at: now + DRAIN_AFTER,
            mandate,
            unconfirmed: false,
            index,
            liveness: Liveness::default(),
            admission: SnapshotAdmission::default(),
            standbys,
            inherited_until,
            settling: Some(Settling::new(now, ctx.members.others.keys(), listed, former)),
        }
    }

    /// Continues with another epoch; the index stays.
    pub(crate) fn reelected(
        &mut self,
        now: Timestamp,
        seat: Seat,
        lease_until: Option<Timestamp>,
        mandate: Option<Mandate>,
    ) {
        self.seat = seat;
        self.lease_until = lease_until;
        self.next_renewal = first_renewal(now, lease_until);
        self.renewal = None;
        self.unconfirmed = false;
        self.mandate = mandate;
    }

    /// True if the index is complete as far as can be known.
    pub(crate) fn is_settled(&self) -> bool {
        self.settling.is_none()
    }

    pub(crate) fn deadline(&self) -> Timestamp {
        let renewal = self.renewal.map_or(self.next_renewal, |(_, sent)| sent + HEARTBEAT_DEADLINE);
        let settled = self.settling.as_ref().map(Settling::until);
        let others = [settled, self.liveness.deadline(), self.inherited_until].into_iter().flatten();
        others.fold(renewal.min(self.check_at), Timestamp::min)
    }

    pub(crate) fn run_timers(&mut self, ctx: &mut Ctx<'_>) -> Transition {
        self.settle(ctx);
        self.forget_silent_members(ctx);
        if self.check_at <= ctx.now && !self.has_lease_or_majority(ctx) {
            return Transition::StepDown(StepDown::Isolated);
        }
        self.renew(ctx);
        Transition::Stay
    }

    fn forget_silent_members(&mut self, ctx: &mut Ctx<'_>) {
        let mut silent = self.liveness.sweep(ctx.now);
        if self.inherited_until.take_if(|until| *until <= ctx.now).is_some() {
            let never_heard = |peer: &&PeerId| **peer != ctx.me.id && !self.liveness.hears(peer);
            silent.extend(self.index.peers().filter(never_heard).cloned());
        }
        let changed = !silent.is_empty();
        for peer in silent {
            self.index.remove(&peer);
            self.admission.remove(&peer);
            ctx.report(Report::PeerGone { peer, why: Departure::Silent });
        }
        if changed {
            self.choose_standbys(ctx);
        }
    }

    /// Moves the next check to when the lease, or the heartbeats of a majority, will be `DRAIN_AFTER` old. Returns
    /// whether that lies ahead.
    fn has_lease_or_majority(&mut self, ctx: &Ctx<'_>) -> bool {
        let others = ctx.members.electors.iter().filter(|elector| **elector != ctx.me.id);
        let needed = ctx.members.majority_besides(&ctx.me.id);
        let heard = self.liveness.majority_heard(others, needed, ctx.now);
        let held = heard.max(self.lease_until).unwrap_or(self.since).max(self.since);
        self.check_at = held + DRAIN_AFTER;
        ctx.now < self.check_at
    }

    fn renew(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now;
        if self.renewal.is_some_and(|(_, sent)| sent + HEARTBEAT_DEADLINE <= now) {
            // The nameserver is away: the followers' heartbeats have to suffice.
            self.renewal = None;
            self.unconfirmed = false;
            self.next_renewal = now;
        }
        if self.renewal.is_none() && self.next_renewal <= now {
            let call = ctx.calls.next();
            self.renewal = Some((call, now));
            self.next_renewal = now + SEAT_RENEWAL;
            ctx.out.push(Action::RenewSeat { call, epoch: self.seat.epoch });
        }
    }

    /// Takes the answer to the renewal `call`. Returns the nameserver's view of the seat if that differs.
    pub(crate) fn on_renewal_answer(
        &mut self,
        call: CallId,
        result: Result<SeatGrant, CallError<ClaimError>>,
    ) -> Option<SeatView> {
        let (_, sent) = self.renewal.take_if(|(renewal, _)| *renewal == call)?;
        match result {
            Ok(grant) if grant.epoch == self.seat.epoch => {
                self.lease_until = self.lease_until.max(Some(sent + grant.lease));
                self.unconfirmed = false;
            }
            Err(CallError::Refused(ClaimError::Moved(view))) => {
                self.lease_until = None;
                if self.mandate.is_some() {
                    // The nameserver cannot confirm an epoch that it does not know. It names a higher one if there is
                    // one.
                    self.unconfirmed = false;
                }
                return Some(view);
            }
            Err(CallError::Failed(_)) => self.unconfirmed = false,
            // The lease runs until it ends; the followers' heartbeats may outlast it.
            Ok(_) | Err(CallError::Refused(_)) => {}
        }
        None
    }

    /// The nameserver's view of the seat differs from this peer's. Returns the claim to make.
    pub(crate) fn on_seat_view(&self, ctx: &mut Ctx<'_>, view: &SeatView) -> Option<Reclaim> {
        let epoch = self.seat.epoch;
        match (&view.seat, &self.mandate) {
            (Some(seat), _) if seat.epoch >= epoch => None,
            // The epoch was registered, the answer was lost, and the lease ran out. No epoch is granted twice.
            (None, Some(_)) if view.epoch_high >= epoch => Some(Reclaim::Vacant),
            (held, Some(mandate)) => {
                if let Some(older) = held {
                    ctx.send_heartbeat(older);
                }
                Some(Reclaim::Register(epoch, mandate.clone()))
            }
            (None, None) => Some(Reclaim::Vacant),
            (Some(_), None) => None,
        }
    }

    /// The list of registered peers is new: notifies the peers that were not on it `before`, and waits for the
    /// announcements of all on it.
    pub(crate) fn on_new_members(&mut self, ctx: &mut Ctx<'_>, before: &BTreeMap<PeerId, Endpoint>) {
        let new = ctx.members.others.iter().filter(|(peer, _)| !before.contains_key(*peer));
        for (peer, endpoint) in new {
            let notice = SeatNotice::Taken(self.seat.clone());
            ctx.out.push(Action::SendNotice { to: contact(peer, endpoint), notice });
        }
        if let Some(settling) = &mut self.settling {
            settling.await_all(ctx.members.others.keys().filter(|peer| !self.index.is_complete(peer)));
        }
        self.choose_standbys(ctx);
        self.settle(ctx);
    }

    /// Opens the index when all peers have announced their shares, or the time for that is over.
    fn settle(&mut self, ctx: &mut Ctx<'_>) {
        let Some(settling) = self.settling.take_if(|settling| settling.is_over(ctx.now)) else { return };
        ctx.report(Report::Settled {
            epoch: self.seat.epoch,
            missing: settling.missing(),
            members: self.index.size().0.saturating_sub(1),
            announcements: settling.announcements,
        });
        self.choose_standbys(ctx);
    }

    /// Chooses the standbys among the electors that send heartbeats, once the index is settled, so that all had time to
    /// send one. Present standbys remain, since they have the index; others follow in an order that all trackers share.
    fn choose_standbys(&mut self, ctx: &Ctx<'_>) {
        if self.settling.is_some() {
            return;
        }
        let heard = |peer: &&PeerId| **peer != ctx.me.id && self.liveness.hears(peer);
        let mut eligible: Vec<&PeerId> = ctx.members.electors.iter().filter(heard).collect();
        let rank = |peer: &PeerId| self.standbys.iter().position(|other| other == peer).unwrap_or(MAX_STANDBYS);
        eligible.sort_by_cached_key(|peer| (rank(peer), rendezvous(STANDBYS_SALT, peer)));
        eligible.truncate(MAX_STANDBYS);
        self.standbys = eligible.into_iter().cloned().collect();
    }

    /// Checks that a call of `epoch` is meant for this tracker's seat; `view` goes into the refusal.
    pub(crate) fn check_epoch(&self, epoch: Epoch, view: SeatView) -> Result<(), TrackerError> {
        match epoch.cmp(&self.seat.epoch) {
            Ordering::Less => Err(TrackerError::StaleEpoch(view)),
            Ordering::Equal => Ok(()),
            // Too far above to be credible.
            Ordering::Greater => Err(TrackerError::NotTracker(view)),
        }
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: &PeerId,
        beat: &Heartbeat,
    ) -> Result<HeartbeatAck, TrackerError> {
        let electors = &ctx.members.electors;
        let is_reduced = electors.len() >= MAX_ELECTORS && !electors.contains(from);
        let next_beat = if is_reduced { REDUCED_HEARTBEAT } else { HEARTBEAT };
        let known_seq = self.index.on_heartbeat(from, beat)?;
        let joined = self.liveness.heard(from, next_beat, ctx.now);
        if joined {
            ctx.report(Report::PeerJoined { peer: from.clone() });
        }
        // A peer whose share is known from before need not announce it.
        let is_known = self.index.is_complete(from);
        if let Some(settling) = &mut self.settling
            && is_known
            && settling.received(from)
        {
            self.settle(ctx);
        }
        if joined {
            self.choose_standbys(ctx);
        }
        let standby = |peer: &PeerId| {
            // A peer's own heartbeat is newer than the nameserver's list.
            let endpoint = self.index.endpoint(peer).or_else(|| ctx.members.others.get(peer))?;
            Some(StandbyContact { peer: peer.clone(), endpoint: endpoint.clone() })
        };
        let standbys = self.standbys.iter().filter_map(standby).collect();
        Ok(HeartbeatAck { epoch: self.seat.epoch, known_seq, next_beat, standbys })
    }

    pub(crate) fn on_announcement(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: &PeerId,
        announcement: Announcement,
    ) -> Result<(), TrackerError> {
        if self.unconfirmed {
            return Err(TrackerError::Unavailable("the tracker stalled and is confirming its seat".to_owned()));
        }
        if self.index.incarnation(from).is_some() {
            self.admission.admit(ctx.now, from, &announcement)?;
        }
        self.index.announce(from, announcement)?;
        if let Some(settling) = &mut self.settling {
            settling.announcements += 1;
            if self.index.is_complete(from) {
                settling.received(from);
            }
        }
        self.settle(ctx);
        Ok(())
    }

    pub(crate) fn on_leave(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: &PeerId,
        incarnation: Incarnation,
    ) -> Result<(), TrackerError> {
        if self.index.incarnation(from).is_some_and(|known| incarnation < known) {
            return Err(TrackerError::Superseded);
        }
        self.index.remove(from);
        self.admission.remove(from);
        if self.liveness.remove(from) {
            ctx.report(Report::PeerGone { peer: from.clone(), why: Departure::Left });
        }
        if let Some(settling) = &mut self.settling {
            settling.received(from);
        }
        self.settle(ctx);
        self.choose_standbys(ctx);
        Ok(())
    }

    /// This process was `asleep` since its last step and is `late` for its deadline. Unless the lease still holds,
    /// another tracker may have been elected.
    pub(crate) fn on_stall(&mut self, now: Timestamp, late: Duration, asleep: Duration) -> Transition {
        let lease_held = self.lease_until.is_some_and(|until| now < until);
        if asleep >= SEAT_LEASE && !lease_held {
            return Transition::StepDown(StepDown::Stalled);
        }
        self.liveness.extend_deadlines(late, now);
        if asleep > SUSPICION {
            self.unconfirmed = true;
            self.renewal = None;
            self.next_renewal = now;
        }
        Transition::Stay
    }

    /// Peers to notify when this tracker leaves: standbys first, since they are to take the seat.
    pub(crate) fn farewell_contacts(&self, ctx: &Ctx<'_>) -> Vec<Contact> {
        let members = &ctx.members.others;
        let standbys = self.standbys.iter().filter_map(|peer| members.get_key_value(peer));
        let rest = members.iter().filter(|(peer, _)| !self.standbys.contains(peer));
        let listed = standbys.chain(rest).map(|(peer, endpoint)| contact(peer, endpoint));
        let unlisted = self.liveness.peers().filter(|peer| !members.contains_key(*peer));
        let unlisted = unlisted.filter_map(|peer| Some(contact(peer, self.index.endpoint(peer)?)));
        listed.chain(unlisted).collect()
    }

    /// True if `seat` is another tracker's of the same epoch. That is possible without the nameserver, where two
    /// parts of the network knew too little of each other.
    pub(crate) fn conflicts_with(&self, seat: &Seat) -> bool {
        self.mandate.is_some() && self.seat.epoch == seat.epoch && self.seat.peer != seat.peer
    }
}

/// A seat whose lease is not known is renewed at once.
fn first_renewal(now: Timestamp, lease_until: Option<Timestamp>) -> Timestamp {
    lease_until.map_or(now, |_| now + SEAT_RENEWAL)
}
