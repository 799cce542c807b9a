//! Being the tracker: keeping the seat, and serving those who follow.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use shared::{
    electors::{majority, rendezvous},
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::{
        DRAIN_AFTER, HEARTBEAT, HEARTBEAT_DEADLINE, INDEX_SETTLE, MAX_ELECTORS, MAX_STANDBYS, PEER_SILENCE,
        REDUCED_HEARTBEAT, SEAT_RENEWAL,
    },
    name::Endpoint,
    rpc::{
        nameserver::{ClaimError, Seat, SeatGrant, SeatView},
        peer::SeatNotice,
        tracker::{Announcement, Heartbeat, HeartbeatAck, StandbyContact, TrackerError},
    },
    time::Timestamp,
};

use super::{Action, CallError, Core, Departure, Report, StepDown, liveness::Liveness, state::Standing};
use crate::{CallId, index::Index, replication::admission::Turns};

/// What standbys are drawn with: the same at all times, so that trackers that know the same peers choose alike.
const STANDBYS_KEY: &[u8] = b"standbys";

/// A tracker's time in the seat.
#[derive(Debug, Clone)]
pub(crate) struct Term {
    pub(crate) seat: Seat,
    since: Timestamp,
    /// Until when the seat is surely ours: counted from when the claim or renewal was *sent*.
    pub(crate) lease_until: Option<Timestamp>,
    next_renewal: Timestamp,
    /// The renewal under way and when it was sent.
    renewing: Option<(CallId, Timestamp)>,
    /// When to look whether lease and majority are gone; not before they can be.
    check_at: Timestamp,
    /// The votes that made this peer tracker without the nameserver; `None` once it is registered.
    pub(crate) mandate: Option<Mandate>,
    /// This process slept: nothing is written before the nameserver was asked whether the seat is still ours.
    unconfirmed: bool,
    pub(crate) index: Index,
    pub(crate) liveness: Liveness,
    turns: Turns,
    /// Who follows what is announced besides this peer, first heirs first.
    pub(crate) standbys: Vec<PeerId>,
    /// When those go that were known before this term and were not heard in it.
    inherited_until: Option<Timestamp>,
    settling: Option<Settling>,
}

/// What makes a provisional tracker one.
#[derive(Debug, Clone)]
pub(crate) struct Mandate {
    /// Who voted for it.
    pub(crate) votes: BTreeSet<PeerId>,
    /// The seat that those votes replace.
    pub(crate) expected: Epoch,
}

/// A new tracker's index on its way to be complete.
#[derive(Debug, Clone)]
struct Settling {
    /// Peers that have not announced everything yet.
    awaiting: BTreeSet<PeerId>,
    /// Whether `awaiting` comes from a list that the nameserver gave to this tracker.
    listed: bool,
    /// Not waited for: it is why there is a new tracker.
    former: Option<PeerId>,
    until: Timestamp,
    /// Announcements taken.
    announcements: usize,
}

impl Term {
    pub(crate) fn is_settled(&self) -> bool {
        self.settling.is_none()
    }

    /// Asks the nameserver first, since this process slept long enough to be replaced.
    pub(crate) fn confirm_first(&mut self, now: Timestamp) {
        self.unconfirmed = true;
        self.renewing = None;
        self.next_renewal = now;
    }

    pub(crate) fn deadline(&self) -> Timestamp {
        let renewal = self.renewing.map_or(self.next_renewal, |(_, sent)| sent + HEARTBEAT_DEADLINE);
        let settled = self.settling.as_ref().map(|settling| settling.until);
        let others = [settled, self.liveness.deadline(), self.inherited_until].into_iter().flatten();
        others.fold(renewal.min(self.check_at), Timestamp::min)
    }
}

impl Core {
    /// The nameserver accepted this peer's claim or, with a `mandate`, the others elected it while that is away. A
    /// tracker that was elected again keeps its index.
    pub(crate) fn take_seat(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        lease_until: Option<Timestamp>,
        mandate: Option<Mandate>,
        out: &mut Vec<Action>,
    ) {
        if epoch > self.durable.epoch_high {
            self.durable.epoch_high = epoch;
            out.push(Action::Persist(self.durable.clone()));
        }
        let provisional = mandate.is_some();
        if !provisional {
            self.expected = self.durable.epoch_high;
            self.confirmed = self.confirmed.max(epoch);
        }
        self.claimed = Some(epoch);
        self.campaign = None;
        let seat = Seat { epoch, peer: self.id.clone(), endpoint: self.endpoint.clone() };
        let next_renewal = lease_until.map_or(now, |_| now + SEAT_RENEWAL);
        if let Standing::Tracking(term) = &mut self.standing {
            term.seat = seat.clone();
            term.lease_until = lease_until;
            term.next_renewal = next_renewal;
            term.renewing = None;
            term.unconfirmed = false;
            term.mandate = mandate;
        } else {
            let former = match &self.standing {
                Standing::Seeking(seeking) => seeking.former.clone(),
                _ => None,
            };
            let awaiting = self.members.keys().filter(|peer| Some(*peer) != former.as_ref()).cloned().collect();
            // Without the nameserver there is no other list than the one known.
            let mut index = self.standby.take().map(|standby| standby.index).unwrap_or_default();
            // What was known of a peer counts when it says that it is still so.
            index.doubt();
            former.iter().for_each(|former| index.remove(former));
            let inherits = |heir: &&PeerId| **heir != self.id && Some(*heir) != former.as_ref();
            let standbys = self.heirs.iter().filter(inherits).cloned().collect();
            let inherited_until = (index.size().0 > 0).then(|| now + PEER_SILENCE);
            let until = now + INDEX_SETTLE;
            let settling = Settling { awaiting, listed: provisional, former, until, announcements: 0 };
            if index.admit(&self.id, self.incarnation, &self.endpoint).is_ok() {
                let own: Vec<_> = self.share.files().values().cloned().collect();
                index.apply_own(&self.id, &own, &[]);
            }
            let term = Term {
                seat: seat.clone(),
                since: now,
                lease_until,
                next_renewal,
                renewing: None,
                check_at: now + DRAIN_AFTER,
                mandate,
                unconfirmed: false,
                index,
                liveness: Liveness::default(),
                turns: Turns::default(),
                standbys,
                inherited_until,
                settling: Some(settling),
            };
            self.standing = Standing::Tracking(Box::new(term));
        }
        out.push(Action::Report(if provisional {
            Report::BecameProvisional { epoch }
        } else {
            Report::BecameTracker { epoch }
        }));
        for (peer, endpoint) in &self.members {
            let notice = SeatNotice::Taken(seat.clone());
            out.push(Action::SendNotice { to: Self::contact(peer, endpoint), notice });
        }
        self.answer_waiters(Ok(seat), out);
        // A list asked for earlier may lack those who came since.
        self.peers_poll.pending = None;
        self.peers_poll.at = now;
    }

    /// The nameserver's list of peers is new: who was not told of this tracker yet is told, and the index
    /// waits for those on the list.
    pub(crate) fn greet_newcomers(
        &mut self,
        now: Timestamp,
        before: &BTreeMap<PeerId, Endpoint>,
        out: &mut Vec<Action>,
    ) {
        let Standing::Tracking(term) = &mut self.standing else { return };
        for (peer, endpoint) in self.members.iter().filter(|(peer, _)| !before.contains_key(*peer)) {
            let notice = SeatNotice::Taken(term.seat.clone());
            out.push(Action::SendNotice { to: Self::contact(peer, endpoint), notice });
        }
        if let Some(settling) = &mut term.settling {
            let waited_for = |peer: &&PeerId| Some(*peer) != settling.former.as_ref() && !term.index.is_complete(peer);
            settling.awaiting = self.members.keys().filter(waited_for).cloned().collect();
            settling.listed = true;
        }
        self.choose_standbys();
        self.settle(now, out);
    }

    /// Opens the index when all have announced themselves, or the time is over.
    fn settle(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Tracking(term) = &mut self.standing else { return };
        let Some(settling) = &term.settling else { return };
        if (settling.listed && settling.awaiting.is_empty()) || settling.until <= now {
            let missing = settling.awaiting.len();
            let announcements = settling.announcements;
            let (epoch, members) = (term.seat.epoch, term.index.size().0.saturating_sub(1));
            out.push(Action::Report(Report::Settled { epoch, missing, members, announcements }));
            term.settling = None;
            self.choose_standbys();
        }
    }

    /// Names the standbys: electors that are heard. Those that are it already stay, since they have the index; the others
    /// in an order that is the same for every tracker. Not before all had the time to be heard.
    fn choose_standbys(&mut self) {
        let Standing::Tracking(term) = &mut self.standing else { return };
        if term.settling.is_some() {
            return;
        }
        let heard = |peer: &&PeerId| **peer != self.id && term.liveness.hears(peer);
        let mut eligible: Vec<&PeerId> = self.electors.iter().filter(heard).collect();
        let place = |peer: &PeerId| term.standbys.iter().position(|other| other == peer).unwrap_or(MAX_STANDBYS);
        eligible.sort_by_cached_key(|peer| (place(peer), rendezvous(STANDBYS_KEY, peer)));
        eligible.truncate(MAX_STANDBYS);
        term.standbys = eligible.into_iter().cloned().collect();
    }

    pub(crate) fn run_tracking_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.settle(now, out);
        let Standing::Tracking(term) = &mut self.standing else { return };
        let mut silent = term.liveness.sweep(now);
        if term.inherited_until.take_if(|until| *until <= now).is_some() {
            let never_heard = |peer: &&PeerId| **peer != self.id && !term.liveness.hears(peer);
            silent.extend(term.index.peers().filter(never_heard).cloned());
        }
        let changed = !silent.is_empty();
        for peer in silent {
            term.index.remove(&peer);
            term.turns.remove(&peer);
            out.push(Action::Report(Report::PeerGone { peer, why: Departure::Silent }));
        }
        if changed {
            self.choose_standbys();
        }
        let Standing::Tracking(term) = &mut self.standing else { return };
        if term.check_at <= now {
            // A tracker alone is its own majority; else more than half of the electors, itself included if it is one.
            let others = self.electors.iter().filter(|elector| **elector != self.id);
            let needed = majority(self.electors.len()) - usize::from(self.electors.contains(&self.id));
            let needed = if self.electors.is_empty() { 0 } else { needed };
            let heard = term.liveness.majority_heard(others, needed, now);
            let held = heard.max(term.lease_until).unwrap_or(term.since).max(term.since);
            term.check_at = held + DRAIN_AFTER;
            if term.check_at <= now {
                self.step_down(now, StepDown::Isolated, out);
                return;
            }
        }
        if term.renewing.is_some_and(|(_, sent)| sent + HEARTBEAT_DEADLINE <= now) {
            // The nameserver is away: the followers' heartbeats have to do.
            term.renewing = None;
            term.unconfirmed = false;
            term.next_renewal = now;
        }
        if term.renewing.is_none() && term.next_renewal <= now {
            let epoch = term.seat.epoch;
            let call = self.call();
            if let Standing::Tracking(term) = &mut self.standing {
                term.renewing = Some((call, now));
                term.next_renewal = now + SEAT_RENEWAL;
            }
            out.push(Action::RenewSeat { call, epoch });
        }
    }

    pub(crate) fn on_renewal_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        result: Result<SeatGrant, CallError<ClaimError>>,
        out: &mut Vec<Action>,
    ) {
        let Standing::Tracking(term) = &mut self.standing else { return };
        let Some((_, sent)) = term.renewing.take_if(|(renewal, _)| *renewal == call) else { return };
        match result {
            Ok(grant) if grant.epoch == term.seat.epoch => {
                term.lease_until = term.lease_until.max(Some(sent + grant.lease));
                term.unconfirmed = false;
            }
            Err(CallError::Refused(ClaimError::Moved(view))) => {
                term.lease_until = None;
                if term.mandate.is_some() {
                    // It cannot confirm what it does not know; if it knows of a higher epoch, that is next.
                    term.unconfirmed = false;
                }
                self.on_seat_view(now, &view, out);
            }
            Err(CallError::Failed(_)) => term.unconfirmed = false,
            // The lease runs on until it ends; the followers' heartbeats may outlast it.
            Ok(_) | Err(CallError::Refused(_)) => {}
        }
    }

    /// Takes note of the epoch that a caller names; what this peer knows of the seat then, to refuse the call with.
    pub(crate) fn hear_caller(&mut self, now: Timestamp, epoch: Epoch, out: &mut Vec<Action>) -> SeatView {
        if !matches!(self.standing, Standing::Leaving(_)) {
            self.raise_hearsay(now, epoch, out);
        }
        self.seat_view()
    }

    /// Lets a call of `epoch` through to the tracker's term, if this peer is the tracker of that epoch.
    pub(crate) fn fence(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        out: &mut Vec<Action>,
    ) -> Result<&mut Term, TrackerError> {
        let view = self.hear_caller(now, epoch, out);
        let Standing::Tracking(term) = &mut self.standing else { return Err(TrackerError::NotTracker(view)) };
        match epoch.cmp(&term.seat.epoch) {
            Ordering::Less => Err(TrackerError::StaleEpoch(view)),
            Ordering::Equal => Ok(term),
            // Too far above to be believed.
            Ordering::Greater => Err(TrackerError::NotTracker(view)),
        }
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        beat: &Heartbeat,
        out: &mut Vec<Action>,
    ) -> Result<HeartbeatAck, TrackerError> {
        let resting = self.electors.len() >= MAX_ELECTORS && !self.electors.contains(from);
        let next_beat = if resting { REDUCED_HEARTBEAT } else { HEARTBEAT };
        let term = self.fence(now, beat.epoch, out)?;
        let known_seq = term.index.meet(from, beat)?;
        let joined = term.liveness.heard(from, next_beat, now);
        if joined {
            out.push(Action::Report(Report::PeerJoined { peer: from.clone() }));
        }
        // Who has nothing new to say need not announce it.
        let is_known = term.index.is_complete(from);
        if let Some(settling) = &mut term.settling
            && is_known
            && settling.awaiting.remove(from)
        {
            self.settle(now, out);
        }
        if joined {
            self.choose_standbys();
        }
        let Standing::Tracking(term) = &self.standing else { return Err(TrackerError::NotTracker(self.seat_view())) };
        let contact =
            |peer: &PeerId| Some(StandbyContact { peer: peer.clone(), endpoint: self.endpoint_of(term, peer)? });
        let standbys = term.standbys.iter().filter_map(contact).collect();
        Ok(HeartbeatAck { epoch: term.seat.epoch, known_seq, next_beat, standbys })
    }

    /// Where a peer answers: by its own word if it was heard.
    fn endpoint_of(&self, term: &Term, peer: &PeerId) -> Option<Endpoint> {
        term.index.endpoint(peer).or_else(|| self.members.get(peer)).cloned()
    }

    pub(crate) fn on_announcement(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        announcement: Announcement,
        out: &mut Vec<Action>,
    ) -> Result<(), TrackerError> {
        let term = self.fence(now, announcement.epoch, out)?;
        if term.unconfirmed {
            return Err(TrackerError::Unavailable("the tracker slept and asks whether it still is one".to_owned()));
        }
        if term.index.incarnation(from).is_some() {
            term.turns.take(now, from, &announcement)?;
        }
        term.index.announce(from, announcement)?;
        if let Some(settling) = &mut term.settling {
            settling.announcements += 1;
            if term.index.is_complete(from) {
                settling.awaiting.remove(from);
            }
        }
        self.settle(now, out);
        Ok(())
    }

    pub(crate) fn on_leave(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        epoch: Epoch,
        incarnation: Incarnation,
        out: &mut Vec<Action>,
    ) -> Result<(), TrackerError> {
        if self.standby.is_some() && matches!(self.standing, Standing::Following(_)) {
            return self.on_standby_leave(now, from, epoch, incarnation, out);
        }
        let term = self.fence(now, epoch, out)?;
        if term.index.incarnation(from).is_some_and(|known| incarnation < known) {
            return Err(TrackerError::Superseded);
        }
        term.index.remove(from);
        term.turns.remove(from);
        if term.liveness.remove(from) {
            out.push(Action::Report(Report::PeerGone { peer: from.clone(), why: Departure::Left }));
        }
        if let Some(settling) = &mut term.settling {
            settling.awaiting.remove(from);
        }
        self.settle(now, out);
        self.choose_standbys();
        Ok(())
    }
}
