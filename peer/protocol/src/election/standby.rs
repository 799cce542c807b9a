//! Being a standby: following what all peers announce, so that the index is there when the tracker is gone.

use shared::{
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::REDUCED_HEARTBEAT,
    rpc::tracker::{Announcement, Heartbeat, HeartbeatAck, TrackerError},
    time::Timestamp,
};

use super::{Action, Core, liveness::Liveness, state::Standing};
use crate::{index::Index, replication::admission::Turns};

/// A standby's copy of the index: all but the tracker's and its own files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standby {
    pub(crate) index: Index,
    pub(crate) liveness: Liveness,
    turns: Turns,
}

impl Standby {
    /// What the tracker `me` knew when it stepped down.
    pub(crate) fn of(mut index: Index, me: &PeerId) -> Self {
        index.remove(me);
        Self { index, ..Self::default() }
    }

    /// Another tracker is followed, or this process slept: whoever was not heard meanwhile may be there.
    pub(crate) fn forgive(&mut self, now: Timestamp) {
        self.liveness.forgive(std::time::Duration::MAX, now);
    }

    pub(crate) fn forget(&mut self, peer: &PeerId) {
        self.index.remove(peer);
        self.liveness.remove(peer);
        self.turns.remove(peer);
    }
}

impl Core {
    /// The tracker names this peer as a standby, or does not any more.
    pub(crate) fn be_standby(&mut self, named: bool) {
        if !named {
            self.standby = None;
        } else if self.standby.is_none() {
            self.standby = Some(Box::default());
        }
    }

    /// Those who were silent for too long are no members of the next tracker either.
    pub(crate) fn run_standby_timers(&mut self, now: Timestamp) {
        if let (Some(standby), Standing::Following(_)) = (&mut self.standby, &self.standing) {
            for peer in standby.liveness.sweep(now) {
                standby.forget(&peer);
            }
        }
    }

    /// Only who follows a tracker hears what is announced to its standbys.
    pub(crate) fn standby_deadline(&self) -> Option<Timestamp> {
        let standby = self.standby.as_ref().filter(|_| matches!(self.standing, Standing::Following(_)))?;
        standby.liveness.deadline()
    }

    /// Lets a call of `epoch` through to what a standby of that epoch's tracker keeps.
    fn fence_standby(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        out: &mut Vec<Action>,
    ) -> Result<&mut Standby, TrackerError> {
        let view = self.hear_caller(now, epoch, out);
        if epoch < self.durable.epoch_high {
            return Err(TrackerError::StaleEpoch(view));
        }
        match (&self.standing, &mut self.standby) {
            (Standing::Following(following), Some(standby)) if following.seat.epoch == epoch => Ok(standby),
            _ => Err(TrackerError::NotTracker(view)),
        }
    }

    pub(crate) fn on_standby_heartbeat(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        beat: &Heartbeat,
        out: &mut Vec<Action>,
    ) -> Result<HeartbeatAck, TrackerError> {
        let standby = self.fence_standby(now, beat.epoch, out)?;
        let known_seq = standby.index.meet(from, beat)?;
        standby.liveness.heard(from, REDUCED_HEARTBEAT, now);
        Ok(HeartbeatAck { epoch: beat.epoch, known_seq, next_beat: REDUCED_HEARTBEAT, standbys: Vec::new() })
    }

    pub(crate) fn on_standby_announcement(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        announcement: Announcement,
        out: &mut Vec<Action>,
    ) -> Result<(), TrackerError> {
        let standby = self.fence_standby(now, announcement.epoch, out)?;
        if standby.index.incarnation(from).is_some() {
            standby.turns.take(now, from, &announcement)?;
        }
        standby.index.announce(from, announcement)
    }

    /// A follower of the same tracker goes.
    pub(crate) fn on_standby_leave(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        epoch: Epoch,
        incarnation: Incarnation,
        out: &mut Vec<Action>,
    ) -> Result<(), TrackerError> {
        let standby = self.fence_standby(now, epoch, out)?;
        if standby.index.incarnation(from).is_some_and(|known| incarnation < known) {
            return Err(TrackerError::Superseded);
        }
        standby.forget(from);
        Ok(())
    }
}
