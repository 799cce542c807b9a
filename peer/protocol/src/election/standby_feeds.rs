//! Telling the standbys, too, what this peer shares: so that the next tracker has it before it is one.
//!
//! A standby is told as the tracker is, by heartbeats and announcements of its own: each of them orders what it is told by
//! `(incarnation, seq)`, so nothing has to be forwarded, and what is lost is lost to one of them only. The tracker
//! comes first: a standby is told what the tracker has already taken.

use shared::{
    contact::Contact,
    id::PeerId,
    limits::{HEARTBEAT, MAX_STANDBYS, REDUCED_HEARTBEAT},
    rpc::tracker::{Addressee, HeartbeatAck, StandbyContact},
    time::Timestamp,
};

use super::{Action, Core, state::Standing};
use crate::{
    CallId,
    replication::{announcer::Publisher, share_log::Share},
};

/// One standby, as it is told by a follower.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub(crate) to: Contact,
    pub(crate) publisher: Publisher,
    next_beat: Timestamp,
}

/// The standbys, as a follower knows them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mirrors {
    all: Vec<Mirror>,
    /// The heartbeat whose answer named them: an answer to an earlier one is older.
    named_by: Option<CallId>,
}

impl Mirrors {
    /// When a standby is to be told something; `told`: whether the tracker has everything.
    pub(crate) fn deadline(&self, share: &Share, told: bool) -> Option<Timestamp> {
        let beats = self.all.iter().map(|mirror| mirror.next_beat);
        let publishing = self.all.iter().filter_map(|mirror| mirror.publisher.deadline(share)).filter(|_| told);
        beats.chain(publishing).min()
    }

    /// The mirror that waits for this answer to an announcement.
    pub(crate) fn in_flight(&mut self, call: CallId) -> Option<&mut Publisher> {
        self.all.iter_mut().map(|mirror| &mut mirror.publisher).find(|publisher| publisher.is_in_flight(call))
    }

    pub(crate) fn contacts(&self) -> impl Iterator<Item = &Contact> {
        self.all.iter().map(|mirror| &mirror.to)
    }
}

impl Core {
    /// The tracker's answer to the heartbeat `call` names its standbys.
    pub(crate) fn on_standbys_named(&mut self, now: Timestamp, call: CallId, named: &[StandbyContact]) {
        let first_call = self.call();
        let Standing::Following(following) = &mut self.standing else { return };
        let mirrors = &mut following.mirrors;
        if mirrors.named_by.is_some_and(|named_by| call <= named_by) {
            return;
        }
        mirrors.named_by = Some(call);
        let named = &named[..named.len().min(MAX_STANDBYS)];
        let tracker = &following.seat.peer;
        let told = named.iter().filter(|standby| standby.peer != self.id && standby.peer != *tracker);
        let told: Vec<Contact> = told.map(|s| Self::contact(&s.peer, &s.endpoint)).collect();
        mirrors.all.retain(|mirror| told.contains(&mirror.to));
        for to in told {
            if mirrors.all.iter().all(|mirror| mirror.to != to) {
                let (epoch, incarnation) = (following.seat.epoch, self.incarnation);
                let publisher = Publisher::new(epoch, incarnation, Addressee::Standby, first_call, now);
                mirrors.all.push(Mirror { to, publisher, next_beat: now });
            }
        }
        self.heirs = named.iter().map(|standby| standby.peer.clone()).collect();
        self.be_standby(named.iter().any(|standby| standby.peer == self.id));
    }

    /// Tells the standbys what is due.
    pub(crate) fn run_mirrors(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Following(following) = &mut self.standing else { return };
        let told = following.publisher.is_up_to_date(&self.share);
        let mut mirrors = std::mem::take(&mut following.mirrors);
        for mirror in &mut mirrors.all {
            if mirror.next_beat <= now {
                mirror.next_beat = now + REDUCED_HEARTBEAT;
                let call = self.call();
                let beat = self.beat(Addressee::Standby);
                out.push(Action::SendHeartbeat { call, to: mirror.to.clone(), beat });
            }
            if told && let Some(announcement) = mirror.publisher.next(now, &self.share) {
                let call = self.call();
                mirror.publisher.sent(call, now);
                out.push(Action::SendAnnouncement { call, to: mirror.to.clone(), announcement });
            }
        }
        if let Standing::Following(following) = &mut self.standing {
            following.mirrors = mirrors;
        }
    }

    /// A standby's answer to a heartbeat; `None`: it is not ready. Whether `from` is one.
    pub(crate) fn on_mirror_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        from: &PeerId,
        ack: Option<&HeartbeatAck>,
    ) -> bool {
        let Standing::Following(following) = &mut self.standing else { return false };
        let Some(mirror) = following.mirrors.all.iter_mut().find(|mirror| mirror.to.peer == *from) else {
            return false;
        };
        match ack {
            Some(ack) if ack.epoch == following.seat.epoch => {
                mirror.publisher.on_ack(call, ack.known_seq, &self.share);
            }
            Some(_) => {}
            // It will hear from the tracker, soon, that it is a standby.
            None => mirror.next_beat = mirror.next_beat.min(now + HEARTBEAT * 3),
        }
        true
    }
}
