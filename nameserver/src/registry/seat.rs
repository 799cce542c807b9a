//! The tracker's seat, which the nameserver arbitrates (`docs/election.md`).
//!
//! A claim names the highest epoch that the claimant knows (compare-and-set) and a higher one for itself. It succeeds
//! under these conditions:
//!
//! | state of the seat | condition of the claim |
//! |---|---|
//! | vacant, or its lease has ended | none |
//! | held, not renewed for [`SEAT_SILENCE`] | the votes of a majority |
//! | held, and the nameserver found the holder's port closed after its last renewal | the votes of a majority |
//! | held, otherwise | the votes of a majority, and `force` |
//!
//! **Majority** refers to the electors: the peers with a live lease on their own name `peer.<id>`, or nine of them when
//! there are more ([`electors`]). The incumbent counts only when it is the claimant or has voted; a dead incumbent
//! would otherwise raise the majority. A forced election (`eleger`) therefore works while every peer is alive, with one
//! peer alone, and when the tracker itself starts it. Each elector's vote counts once; other votes do not count.
//!
//! The name `tracker.<epoch>` is registered and removed together with the seat. `epoch_high` never decreases.

use std::{collections::BTreeSet, sync::Arc};

use crate::params::SEAT_SILENCE;
use shared::{
    electors::{electors, majority},
    epoch::Epoch,
    id::{Incarnation, PeerId, Role},
    limits::{MAX_EPOCH_STEP, SEAT_LEASE},
    name::{Name, PEER_PREFIX, TRACKER_PREFIX},
    rpc::nameserver::{Claim, ClaimError, Seat, SeatGrant, SeatView},
    time::Timestamp,
};

use super::{
    Registry, TRACKER_TAG,
    change::{Change, NameRow},
    lease::Lease,
    table::SeatState,
};

impl Registry {
    /// Returns the highest epoch and the seat, if its lease has not ended.
    pub fn seat(&self, now: Timestamp) -> SeatView {
        SeatView { epoch_high: self.tables.epoch_high(), seat: self.live_seat(now).map(|state| state.seat.clone()) }
    }

    /// Grants the seat to the caller. No epoch is granted twice: a repeated claim to an epoch that the caller holds
    /// returns [`ClaimError::Moved`] with the caller as holder.
    ///
    /// # Errors
    /// See [`ClaimError`]; the registry is unchanged then.
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
            let silent_at = incumbent.renewed_at + SEAT_SILENCE;
            if !claim.force && !incumbent.port_closed && now < silent_at {
                return Err(ClaimError::Held { retry_after: silent_at.min(incumbent.deadline).since(now) });
            }
        }

        let trackers = self.tables.names_under(TRACKER_PREFIX);
        let older: Vec<Name> =
            trackers.filter(|name| name.as_tracker().is_some_and(|epoch| epoch < claim.epoch)).cloned().collect();
        for name in older {
            self.tables.apply(Change::NameRemoved(name), now);
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
        self.tables.apply(Change::NamePut(Name::tracker(epoch), Arc::new(row)), now);
        self.tables.apply(Change::SeatTaken(Seat { epoch, peer: claimant, endpoint }), now);
        Ok(SeatGrant { epoch, lease: SEAT_LEASE })
    }

    /// Extends the lease of the seat.
    ///
    /// # Errors
    /// [`ClaimError::Moved`] when the caller does not hold the seat of this epoch, [`ClaimError::NotAuthorised`] when
    /// the caller is not a peer.
    pub fn renew_seat(&mut self, now: Timestamp, caller: &Role, epoch: Epoch) -> Result<SeatGrant, ClaimError> {
        self.check_holder(now, caller, epoch)?;
        if let Some(state) = self.tables.seat_mut() {
            state.deadline = now + SEAT_LEASE;
            state.renewed_at = now;
            state.port_closed = false;
        }
        Ok(SeatGrant { epoch, lease: SEAT_LEASE })
    }

    /// Records that a probe, started at `since`, found the port of the holder of `epoch` closed. Returns whether the
    /// result is valid: it is not when another peer holds the seat or the holder has renewed it since.
    pub fn record_closed_port(&mut self, now: Timestamp, epoch: Epoch, since: Timestamp) -> bool {
        let valid = self.live_seat(now).is_some_and(|state| state.seat.epoch == epoch && state.renewed_at < since);
        if let Some(state) = self.tables.seat_mut().filter(|_| valid) {
            state.port_closed = true;
        }
        valid
    }

    /// Resigns from the seat.
    ///
    /// # Errors
    /// [`ClaimError::Moved`] when the caller does not hold the seat of this epoch, [`ClaimError::NotAuthorised`] when
    /// the caller is not a peer.
    pub fn resign(&mut self, now: Timestamp, caller: &Role, epoch: Epoch) -> Result<(), ClaimError> {
        self.check_holder(now, caller, epoch)?;
        self.vacate(now, epoch);
        Ok(())
    }

    /// Returns the seat unless its lease has ended.
    pub(super) fn live_seat(&self, now: Timestamp) -> Option<&SeatState> {
        self.tables.seat().filter(|state| now < state.deadline)
    }

    /// Ends the seat and removes its name.
    pub(super) fn vacate(&mut self, now: Timestamp, epoch: Epoch) {
        self.tables.apply(Change::SeatVacated(epoch), now);
        self.tables.apply(Change::NameRemoved(Name::tracker(epoch)), now);
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
        let excluded = (incumbent != claimant && !votes.contains(incumbent)).then_some(incumbent);
        let live = self.live_peers(now);
        let electors = electors(live.iter().filter(|peer| Some(*peer) != excluded));
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
