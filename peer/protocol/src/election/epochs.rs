//! The known epochs, and the vote of this peer.

use shared::{epoch::Epoch, id::PeerId, limits::MAX_EPOCH_STEP};

use super::{DurableState, Vote};

/// Epochs by the strength of what is known of them.
#[derive(Debug, Clone)]
pub(crate) struct Epochs {
    /// State that survives a crash: the highest epoch that was claimed, and the last vote.
    pub(crate) durable: DurableState,
    /// Highest epoch claimed as the next claim names it: the nameserver's own number where it has named one.
    pub(crate) expected: Epoch,
    /// Highest epoch that the nameserver itself named.
    confirmed: Epoch,
    /// Highest epoch in which a voter reported that it has voted: this peer could not win below it.
    voted_elsewhere: Epoch,
    /// Epoch that this run claimed last and has not given up. A seat of this peer with another epoch belongs to an
    /// earlier run.
    pub(crate) claimed: Option<Epoch>,
    /// Seats up to this epoch were given up by their trackers, even if the nameserver still names them.
    pub(crate) vacated: Epoch,
}

impl Epochs {
    pub(crate) fn new(durable: DurableState) -> Self {
        let high = durable.epoch_high;
        Self {
            durable,
            expected: high,
            confirmed: high,
            voted_elsewhere: Epoch::NONE,
            claimed: None,
            vacated: Epoch::NONE,
        }
    }

    /// Highest epoch known to have been claimed.
    pub(crate) fn high(&self) -> Epoch {
        self.durable.epoch_high
    }

    /// Raises the highest epoch to `epoch`. Returns whether it rose; then the durable state must be persisted.
    pub(crate) fn observe(&mut self, epoch: Epoch) -> bool {
        let rises = epoch > self.durable.epoch_high;
        if rises {
            self.durable.epoch_high = epoch;
            self.expected = self.expected.max(epoch);
        }
        rises
    }

    /// Takes the highest epoch that the nameserver names. It is lower than [`Self::high`] after the nameserver lost its
    /// state: a claim must name the nameserver's number, while the claimed epoch stays above all that were ever seen.
    pub(crate) fn confirm(&mut self, epoch: Epoch) {
        self.expected = epoch;
        self.confirmed = self.confirmed.max(epoch);
    }

    /// Notes that this peer holds the seat of `epoch`, `registered` with the nameserver or not. Returns whether the
    /// durable state changed.
    pub(crate) fn take_seat(&mut self, epoch: Epoch, registered: bool) -> bool {
        let rises = epoch > self.durable.epoch_high;
        if rises {
            self.durable.epoch_high = epoch;
        }
        if registered {
            self.expected = self.durable.epoch_high;
            self.confirmed = self.confirmed.max(epoch);
        }
        self.claimed = Some(epoch);
        rises
    }

    /// True if an epoch that a *peer* names is credible: at most half of `MAX_EPOCH_STEP` above the nameserver's own
    /// number. That leaves room for claims, and a malicious peer can neither use up the epochs nor push this peer out
    /// of bounds.
    pub(crate) fn is_credible(&self, epoch: Epoch) -> bool {
        epoch.0.saturating_sub(self.confirmed.0) <= MAX_EPOCH_STEP / 2
    }

    /// Notes the epoch in which a voter that refused this peer has voted.
    pub(crate) fn note_vote_elsewhere(&mut self, epoch: Epoch) {
        if self.is_credible(epoch) {
            self.voted_elsewhere = self.voted_elsewhere.max(epoch);
        }
    }

    /// Epoch for which `me` can stand: above all that were claimed, and above all in which it, or a voter that
    /// answered it, has voted for another. An epoch for which it stood in vain is used again, so a failed election
    /// costs no epoch.
    pub(crate) fn next(&self, me: &PeerId, provisional: bool) -> Epoch {
        let above = self.durable.epoch_high.max(self.expected).max(self.voted_elsewhere);
        let next = |above: Epoch| if provisional { above.next_provisional() } else { above.next() };
        match &self.durable.voted {
            Some(vote) if vote.epoch > above && vote.candidate == *me && vote.epoch.is_provisional() == provisional => {
                vote.epoch
            }
            Some(vote) => next(above.max(vote.epoch)),
            None => next(above),
        }
    }

    /// Records a vote. Returns whether it is new; then the durable state must be persisted.
    pub(crate) fn vote(&mut self, epoch: Epoch, candidate: PeerId) -> bool {
        let vote = Some(Vote { epoch, candidate });
        let new = self.durable.voted != vote;
        if new {
            self.durable.voted = vote;
        }
        new
    }

    /// True if this peer has no vote against `candidate` in `epoch`.
    pub(crate) fn is_free_to_vote(&self, epoch: Epoch, candidate: &PeerId) -> bool {
        self.durable
            .voted
            .as_ref()
            .is_none_or(|vote| epoch > vote.epoch || (epoch == vote.epoch && vote.candidate == *candidate))
    }

    /// Epoch of the last vote.
    pub(crate) fn voted_epoch(&self) -> Epoch {
        self.durable.voted.as_ref().map_or(Epoch::NONE, |vote| vote.epoch)
    }
}
