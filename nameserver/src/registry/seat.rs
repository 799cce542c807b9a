//! The tracker's seat: the nameserver is its arbiter (`docs/election.md`).
//!
//! A claim names the highest epoch that its claimant knows (compare-and-set) and a higher one for itself, and
//! succeeds when
//!
//! | the seat is | the claim needs |
//! |---|---|
//! | vacant, or its lease ran out | nothing more |
//! | held, not heard for [`SEAT_SILENCE`] | the votes of a majority |
//! | held, and the nameserver itself found the holder's port closed since it heard it last | the votes of a majority |
//! | held and alive | the votes of a majority, and `force` |
//!
//! **Majority** of the electors: the live leased peers (`peer.<id>` registered by `<id>`), or nine of them where there are
//! more ([`electors`]). The incumbent is not counted, since it
//! would have to be waited for when it is dead, unless it is the claimant or has voted: then it is a voter like any
//! other. So `eleger` works with every peer alive, alone, and asked of the tracker itself. Votes are counted once
//! each and only from those who are counted.
//!
//! `tracker.<epoch>` is the seat as a name: it comes, stays and goes with it. `epoch_high` only rises.

use std::{collections::BTreeSet, sync::Arc};

use shared::{
    electors::{electors, majority},
    epoch::Epoch,
    id::{Incarnation, PeerId, Role},
    limits::{MAX_EPOCH_STEP, SEAT_LEASE, SEAT_SILENCE},
    name::{Name, PEER_PREFIX, TRACKER_PREFIX},
    rpc::nameserver::{Claim, ClaimError, Seat, SeatGrant, SeatView},
    time::Timestamp,
};

use super::{Change, NameRow, Registry, TRACKER_TAG, lease::Lease};

/// The seat and what only this run of the nameserver knows of it.
#[derive(Debug, Clone)]
pub(crate) struct SeatState {
    pub(crate) seat: Seat,
    /// When its lease ends.
    pub(crate) deadline: Timestamp,
    /// When its holder last renewed it. Other calls of the holder do not count: its process may live on while its
    /// tracker does not.
    pub(crate) heard: Timestamp,
    /// Whether nobody listens any more where the holder answers, as the nameserver itself found after `heard`.
    pub(crate) gone: bool,
}

impl Registry {
    /// Who holds the seat.
    pub fn seat(&self, now: Timestamp) -> SeatView {
        SeatView { epoch_high: self.tables.epoch_high(), seat: self.live_seat(now).map(|state| state.seat.clone()) }
    }

    /// Takes the seat. A repeated claim to an epoch that the caller holds already gets [`ClaimError::Moved`], which
    /// names the caller: no epoch is ever granted twice.
    ///
    /// # Errors
    /// See [`ClaimError`]; nothing has changed then.
    pub fn claim(&mut self, now: Timestamp, caller: &Role, claim: Claim) -> Result<SeatGrant, ClaimError> {
        let claimant = self.claimant(now, caller)?;
        let epoch_high = self.tables.epoch_high();
        if claim.epoch <= epoch_high || claim.expected_epoch != epoch_high {
            return Err(ClaimError::Moved(self.seat(now)));
        }
        if claim.epoch.0 - epoch_high.0 > MAX_EPOCH_STEP {
            return Err(ClaimError::NotAuthorised(format!("epoch {} is too far above {epoch_high}", claim.epoch)));
        }
        if let Some(incumbent) = self.live_seat(now) {
            self.check_majority(now, &claimant, &incumbent.seat.peer, &claim.votes)?;
            let silent_at = incumbent.heard + SEAT_SILENCE;
            if !claim.force && !incumbent.gone && now < silent_at {
                return Err(ClaimError::Held { retry_after: silent_at.min(incumbent.deadline).since(now) });
            }
        }

        let trackers = self.tables.names_under(TRACKER_PREFIX);
        let older: Vec<Name> =
            trackers.filter(|name| name.as_tracker().is_some_and(|epoch| epoch < claim.epoch)).cloned().collect();
        for name in older {
            self.tables.make(Change::NameRemoved(name), now);
        }
        let Claim { epoch, endpoint, .. } = claim;
        let row = NameRow {
            uri: endpoint.clone(),
            tags: vec![TRACKER_TAG.parse().expect("a constant within the limits of tags")],
            owner: caller.clone(),
            lease: Lease::Seat,
            incarnation: Incarnation::default(),
            revision: self.tables.next_revision(),
        };
        self.tables.make(Change::NamePut(Name::tracker(epoch), Arc::new(row)), now);
        self.tables.make(Change::SeatTaken(Seat { epoch, peer: claimant, endpoint }), now);
        Ok(SeatGrant { epoch, lease: SEAT_LEASE })
    }

    /// Extends the lease of the seat.
    ///
    /// # Errors
    /// [`ClaimError::Moved`] when the caller does not hold the seat of this epoch (any more).
    pub fn renew_seat(&mut self, now: Timestamp, caller: &Role, epoch: Epoch) -> Result<SeatGrant, ClaimError> {
        self.check_holder(now, caller, epoch)?;
        if let Some(state) = self.tables.seat_mut() {
            state.deadline = now + SEAT_LEASE;
            state.heard = now;
            state.gone = false;
        }
        Ok(SeatGrant { epoch, lease: SEAT_LEASE })
    }

    /// The nameserver looked itself, after a majority's claim, and began to at `since`: nobody listens any more where the
    /// holder of `epoch` answers. Whether that counts: not when the seat has changed hands or was renewed meanwhile.
    pub fn note_closed_port(&mut self, now: Timestamp, epoch: Epoch, since: Timestamp) -> bool {
        let counts = self.live_seat(now).is_some_and(|state| state.seat.epoch == epoch && state.heard < since);
        if let Some(state) = self.tables.seat_mut().filter(|_| counts) {
            state.gone = true;
        }
        counts
    }

    /// Gives the seat up.
    ///
    /// # Errors
    /// [`ClaimError::Moved`] when the caller does not hold the seat of this epoch (any more).
    pub fn resign(&mut self, now: Timestamp, caller: &Role, epoch: Epoch) -> Result<(), ClaimError> {
        self.check_holder(now, caller, epoch)?;
        self.vacate(now, epoch);
        Ok(())
    }

    /// The seat while its lease runs.
    pub(super) fn live_seat(&self, now: Timestamp) -> Option<&SeatState> {
        self.tables.seat().filter(|state| now < state.deadline)
    }

    /// Ends the seat and its name.
    pub(super) fn vacate(&mut self, now: Timestamp, epoch: Epoch) {
        self.tables.make(Change::SeatVacated(epoch), now);
        self.tables.make(Change::NameRemoved(Name::tracker(epoch)), now);
    }

    fn check_holder(&self, now: Timestamp, caller: &Role, epoch: Epoch) -> Result<(), ClaimError> {
        let Some(id) = caller.peer() else {
            return Err(ClaimError::NotAuthorised(format!("the seat is for peers, not for {caller}")));
        };
        match self.live_seat(now) {
            Some(SeatState { seat, .. }) if seat.peer == *id && seat.epoch == epoch => Ok(()),
            _ => Err(ClaimError::Moved(self.seat(now))),
        }
    }

    fn claimant(&self, now: Timestamp, caller: &Role) -> Result<PeerId, ClaimError> {
        let Some(id) = caller.peer() else {
            return Err(ClaimError::NotAuthorised(format!("the seat is for peers, not for {caller}")));
        };
        if !self.is_live_peer(now, id) {
            return Err(ClaimError::NotAuthorised(format!("{} is not registered", Name::peer(id))));
        }
        Ok(id.clone())
    }

    fn is_live_peer(&self, now: Timestamp, id: &PeerId) -> bool {
        let row = self.live(&Name::peer(id), now);
        row.is_some_and(|row| row.owner.peer() == Some(id) && matches!(row.lease, Lease::For(_)))
    }

    fn check_majority(
        &self,
        now: Timestamp,
        claimant: &PeerId,
        incumbent: &PeerId,
        votes: &[PeerId],
    ) -> Result<(), ClaimError> {
        let uncounted = (incumbent != claimant && !votes.contains(incumbent)).then_some(incumbent);
        let live = self.live_peers(now);
        let electors = electors(live.iter().filter(|peer| Some(*peer) != uncounted));
        let votes = votes.iter().filter(|voter| electors.contains(voter)).collect::<BTreeSet<_>>().len();
        let needed = majority(electors.len());
        if votes < needed {
            return Err(ClaimError::NoMajority { votes: votes as u64, needed: needed as u64 });
        }
        Ok(())
    }

    fn live_peers(&self, now: Timestamp) -> Vec<PeerId> {
        let peers = self.tables.names_under(PEER_PREFIX);
        peers.filter_map(Name::as_peer).filter(|id| self.is_live_peer(now, id)).collect()
    }
}
#[cfg(test)]
mod tests;
