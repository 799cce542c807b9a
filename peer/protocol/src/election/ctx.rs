//! Data that every state of the election reads and changes, passed to each step as [`Ctx`].

use std::time::Duration;

use super::{
    Action, ElectionFailure, Report,
    epochs::Epochs,
    members::Members,
    params::{CANDIDATE_RANKS, CANDIDATE_STAGGER, STANDBY_HEAD_START},
    poll::Poll,
    standby::Standby,
};
use shared::{
    contact::Contact,
    electors::rendezvous,
    id::{Incarnation, PeerId},
    limits::ELECTION_BACKOFF,
    name::Endpoint,
    rpc::{
        nameserver::Seat,
        tracker::{Addressee, Heartbeat},
    },
    time::Timestamp,
};

use crate::{CallId, Calls, replication::share_log::ShareLog};

/// Identity of this peer in this run.
#[derive(Debug, Clone)]
pub(crate) struct Me {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) endpoint: Endpoint,
}

/// One step of the core: the time, the actions so far, and the data that outlives each state.
pub(crate) struct Ctx<'a> {
    pub(crate) now: Timestamp,
    pub(crate) out: &'a mut Vec<Action>,
    pub(crate) me: &'a Me,
    pub(crate) rng: &'a mut fastrand::Rng,
    pub(crate) calls: &'a mut Calls,
    pub(crate) epochs: &'a mut Epochs,
    pub(crate) members: &'a mut Members,
    pub(crate) share: &'a mut ShareLog,
    /// This peer's copy of the index while the tracker names it a standby, and until another tracker does not.
    pub(crate) standby: &'a mut Option<Box<Standby>>,
    /// Standbys of the tracker that was followed last, in the order in which they stand for election.
    pub(crate) succession: &'a mut Vec<PeerId>,
    pub(crate) seat_poll: &'a mut Poll,
    /// Until then a lost connection is no reason to suspect the tracker: this process stalled, and the other side may
    /// have closed the connection for that.
    pub(crate) ignore_disconnects_until: Timestamp,
    /// Tracker that answered although a probe of its port was refused: further refusals of this endpoint are ignored.
    pub(crate) misleading_port: &'a mut Option<Contact>,
    /// True if this peer stands for election at its turn.
    pub(crate) candidate: bool,
    /// True if the latest durable state could not be stored.
    pub(crate) storage_fails: bool,
}

impl Ctx<'_> {
    /// Reason why this peer cannot stand for election, if there is one.
    pub(crate) fn obstacle(&self) -> Option<ElectionFailure> {
        match (self.candidate, self.storage_fails) {
            (false, _) => Some(ElectionFailure::NoCandidate),
            (true, true) => Some(ElectionFailure::NotStored),
            (true, false) => None,
        }
    }

    /// Makes the durable state durable before any later action.
    pub(crate) fn persist(&mut self) {
        self.out.push(Action::Persist(self.epochs.durable.clone()));
    }

    pub(crate) fn report(&mut self, report: Report) {
        self.out.push(Action::Report(report));
    }

    /// Gives this peer's vote, durably.
    pub(crate) fn vote(&mut self, epoch: shared::epoch::Epoch, candidate: PeerId) {
        if self.epochs.vote(epoch, candidate) {
            self.persist();
        }
    }

    /// Sends a heartbeat to the holder of `seat`. It names the highest epoch known, which shows a holder of a lower one
    /// that it was replaced.
    pub(crate) fn send_heartbeat(&mut self, seat: &Seat) -> CallId {
        let call = self.calls.next();
        let beat = self.heartbeat(Addressee::Tracker);
        self.out.push(Action::SendHeartbeat { call, to: contact_of(seat), beat });
        call
    }

    /// Heartbeat of this peer as of now.
    pub(crate) fn heartbeat(&self, to: Addressee) -> Heartbeat {
        heartbeat(self.me, self.epochs, self.share, to)
    }

    /// Random time below `bound`.
    pub(crate) fn jitter(&mut self, bound: Duration) -> Duration {
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.u64(0..micros.max(1)))
    }

    /// Time for which this peer lets better-placed ones stand for election first: the standbys of the last tracker in
    /// their order, then peers by rendezvous hash of the next epoch.
    pub(crate) fn stagger(&mut self, incumbent: Option<&PeerId>) -> Duration {
        let mut standbys = self.succession.iter().filter(|standby| Some(*standby) != incumbent);
        if let Some(before) = standbys.clone().position(|standby| *standby == self.me.id) {
            let rank = u32::try_from(before).unwrap_or(CANDIDATE_RANKS);
            return CANDIDATE_STAGGER * rank + self.jitter(CANDIDATE_STAGGER / 2);
        }
        let head_start = if standbys.next().is_some() { STANDBY_HEAD_START } else { Duration::ZERO };
        let key = self.epochs.next(&self.me.id, false).0.to_le_bytes();
        let own = rendezvous(&key, &self.me.id);
        let others = self.members.others.keys().filter(|peer| Some(*peer) != incumbent);
        let before = others.filter(|peer| rendezvous(&key, peer) < own).take(CANDIDATE_RANKS as usize).count();
        let rank = u32::try_from(before).unwrap_or(CANDIDATE_RANKS);
        // One peer has the first rank, unless the peers' lists differ.
        let jitter = if rank == 0 { Duration::ZERO } else { self.jitter(CANDIDATE_STAGGER / 2) };
        // All peers behind the last rank share it, so they spread out.
        let crowd = if rank == CANDIDATE_RANKS { self.jitter(ELECTION_BACKOFF) } else { Duration::ZERO };
        head_start + CANDIDATE_STAGGER * rank + jitter + crowd
    }
}

/// Heartbeat of `me` with the state of its share.
pub(crate) fn heartbeat(me: &Me, epochs: &Epochs, share: &ShareLog, to: Addressee) -> Heartbeat {
    Heartbeat {
        to,
        epoch: epochs.durable.epoch_high,
        incarnation: me.incarnation,
        seq: share.seq(),
        digest: share.digest(),
        endpoint: me.endpoint.clone(),
    }
}

/// Contact of the holder of `seat`.
pub(crate) fn contact_of(seat: &Seat) -> Contact {
    contact(&seat.peer, &seat.endpoint)
}

pub(crate) fn contact(peer: &PeerId, endpoint: &Endpoint) -> Contact {
    Contact { peer: peer.clone(), endpoint: endpoint.clone() }
}
