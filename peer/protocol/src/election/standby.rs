//! A standby's copy of the index: it receives the announcements of all peers, so that the index is complete when it
//! takes the seat.

use std::time::Duration;

use crate::{index::Index, params::REDUCED_HEARTBEAT, replication::admission::SnapshotAdmission};
use shared::{
    id::{Incarnation, PeerId},
    rpc::tracker::{Announcement, Heartbeat, HeartbeatAck, TrackerError},
    time::Timestamp,
};

use super::liveness::Liveness;

/// Copy of the index, without the files of the tracker and of this peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standby {
    pub(crate) index: Index,
    pub(crate) liveness: Liveness,
    admission: SnapshotAdmission,
}

impl Standby {
    /// Copy of what the tracker `me` knew when it stepped down.
    pub(crate) fn of(mut index: Index, me: &PeerId) -> Self {
        index.remove(me);
        Self { index, ..Self::default() }
    }

    /// Restarts the silence of every member: another tracker is followed, or this process stalled.
    pub(crate) fn extend_deadlines(&mut self, now: Timestamp) {
        self.liveness.extend_deadlines(Duration::MAX, now);
    }

    /// Removes the members that were silent for too long, as the tracker does.
    pub(crate) fn run_timers(&mut self, now: Timestamp) {
        for peer in self.liveness.sweep(now) {
            self.forget(&peer);
        }
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        beat: &Heartbeat,
    ) -> Result<HeartbeatAck, TrackerError> {
        let known_seq = self.index.on_heartbeat(from, beat)?;
        self.liveness.heard(from, REDUCED_HEARTBEAT, now);
        Ok(HeartbeatAck { epoch: beat.epoch, known_seq, next_beat: REDUCED_HEARTBEAT, standbys: Vec::new() })
    }

    pub(crate) fn on_announcement(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        announcement: Announcement,
    ) -> Result<(), TrackerError> {
        if self.index.incarnation(from).is_some() {
            self.admission.admit(now, from, &announcement)?;
        }
        self.index.announce(from, announcement)
    }

    /// A follower of the same tracker leaves.
    pub(crate) fn on_leave(&mut self, from: &PeerId, incarnation: Incarnation) -> Result<(), TrackerError> {
        if self.index.incarnation(from).is_some_and(|known| incarnation < known) {
            return Err(TrackerError::Superseded);
        }
        self.forget(from);
        Ok(())
    }

    fn forget(&mut self, peer: &PeerId) {
        self.index.remove(peer);
        self.liveness.remove(peer);
        self.admission.remove(peer);
    }
}
