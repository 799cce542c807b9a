//! Following a tracker: heartbeats, suspicion, announcements.

use std::time::Duration;

use shared::{
    contact::Contact,
    content::FileMeta,
    file_name::FileName,
    id::PeerId,
    limits::{ANNOUNCE_RETRY, HEARTBEAT, MAX_SNAPSHOT_WAIT, REDUCED_HEARTBEAT, SUSPICION},
    rpc::{
        nameserver::Seat,
        tracker::{Addressee, Heartbeat, HeartbeatAck, TrackerError},
    },
    time::Timestamp,
};

use super::{
    Action, CallError, CallFailure, Core, Report, Suspicion,
    port_probe::Knocking,
    standby_feeds::Mirrors,
    state::{Seeking, Standing},
};
use crate::{
    CallId,
    replication::{announcer::Publisher, share_log::Share},
};

/// A peer that follows a tracker.
#[derive(Debug, Clone)]
pub(crate) struct Following {
    pub(crate) seat: Seat,
    /// When silence becomes suspicion.
    pub(crate) suspect_at: Timestamp,
    /// Calls before this one were made to whoever was followed before.
    pub(crate) first_call: CallId,
    /// How often the tracker wants to hear of this peer.
    pub(crate) pace: Duration,
    pub(crate) next_beat: Timestamp,
    pub(crate) knocking: Knocking,
    pub(crate) publisher: Publisher,
    pub(crate) mirrors: Mirrors,
}

impl Following {
    pub(crate) fn contact(&self) -> Contact {
        Core::contact_of(&self.seat)
    }

    pub(crate) fn deadline(&self, share: &Share) -> Timestamp {
        let own = self.next_beat.min(self.suspect_at);
        let own = self.knocking.next.map_or(own, |knock| knock.min(own));
        let mirrors = self.mirrors.deadline(share, self.publisher.is_up_to_date(share));
        [self.publisher.deadline(share), mirrors].into_iter().flatten().fold(own, Timestamp::min)
    }
}

impl Core {
    pub(crate) fn run_following_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Following(following) = &mut self.standing else { return };
        if following.suspect_at <= now {
            self.suspect(now, Suspicion::Silent, out);
            self.run_seeking_timers(now, out);
            return;
        }
        if following.next_beat <= now {
            following.next_beat = now + following.pace;
            let seat = following.seat.clone();
            self.send_heartbeat(&seat, out);
        }
        self.knock(now, out);
        self.publish(now, out);
        self.run_mirrors(now, out);
        self.run_standby_timers(now);
    }

    /// "I am here", to the holder of `seat`. The epoch is the highest known: who holds a lower one learns it.
    pub(crate) fn send_heartbeat(&mut self, seat: &Seat, out: &mut Vec<Action>) {
        let call = self.call();
        let beat = self.beat(Addressee::Tracker);
        out.push(Action::SendHeartbeat { call, to: Self::contact_of(seat), beat });
    }

    pub(crate) fn beat(&self, to: Addressee) -> Heartbeat {
        Heartbeat {
            to,
            epoch: self.durable.epoch_high,
            incarnation: self.incarnation,
            seq: self.share.seq(),
            digest: self.share.digest(),
            endpoint: self.endpoint.clone(),
        }
    }

    fn publish(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Following(following) = &mut self.standing else { return };
        let Some(announcement) = following.publisher.next(now, &self.share) else { return };
        let to = following.contact();
        let call = self.call();
        if let Standing::Following(following) = &mut self.standing {
            following.publisher.sent(call, now);
        }
        out.push(Action::SendAnnouncement { call, to, announcement });
    }

    pub(crate) fn on_heartbeat_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        from: &PeerId,
        result: Result<HeartbeatAck, CallError<TrackerError>>,
        out: &mut Vec<Action>,
    ) {
        if self.on_mirror_answered(now, call, from, result.as_ref().ok())
            && !matches!(result, Err(CallError::Refused(_)))
        {
            return;
        }
        match result {
            Ok(ack) => self.on_sign_of_life(now, call, from, Some(&ack), out),
            Err(CallError::Refused(refusal)) => self.on_refused(now, call, from, refusal, out),
            Err(CallError::Failed(CallFailure::Unreachable)) => self.on_unreachable(now, from, out),
            // Silence is measured by what does arrive.
            Err(CallError::Failed(CallFailure::NoAnswer)) => {}
        }
    }

    fn on_sign_of_life(
        &mut self,
        now: Timestamp,
        call: CallId,
        from: &PeerId,
        ack: Option<&HeartbeatAck>,
        out: &mut Vec<Action>,
    ) {
        let current = |seat: &Seat| seat.peer == *from && ack.is_none_or(|ack| ack.epoch == seat.epoch);
        if self.seat_view().seat.as_ref().is_some_and(current) {
            self.disprove_refusal(call);
        }
        match &mut self.standing {
            Standing::Following(following) if current(&following.seat) && call >= following.first_call => {
                if let Some(ack) = ack {
                    following.pace = ack.next_beat.clamp(HEARTBEAT, REDUCED_HEARTBEAT);
                    // Who was waved to rest, or out of it, has its next heartbeat planned by the old pace.
                    following.next_beat = following.next_beat.min(now + following.pace);
                    following.publisher.on_ack(call, ack.known_seq, &self.share);
                }
                following.knocking.pace(now, following.pace);
                let patience = SUSPICION + following.pace.saturating_sub(HEARTBEAT);
                following.suspect_at = following.suspect_at.max(now + patience);
                if let Some(ack) = ack {
                    self.on_standbys_named(now, call, &ack.standbys);
                }
            }
            Standing::Seeking(Seeking { suspected: Some(seat), .. }) if current(seat) => self.lift_suspicion(now, out),
            _ => {}
        }
    }

    /// The tracker's "no" to a heartbeat or an announcement.
    fn on_refused(
        &mut self,
        now: Timestamp,
        call: CallId,
        from: &PeerId,
        refusal: TrackerError,
        out: &mut Vec<Action>,
    ) {
        match refusal {
            TrackerError::StaleEpoch(view) => self.learn_hearsay(now, &view, out),
            TrackerError::NotTracker(view) => {
                self.learn_hearsay(now, &view, out);
                let current = |following: &Following| following.seat.peer == *from && call >= following.first_call;
                if matches!(&self.standing, Standing::Following(following) if current(following)) {
                    self.suspect(now, Suspicion::NotTracker, out);
                }
            }
            TrackerError::Superseded => {
                out.push(Action::Report(Report::Superseded));
                self.on_shutdown(now, out);
            }
            // It is there, whatever else it lacks.
            TrackerError::SnapshotNeeded
            | TrackerError::InvalidFileName(_)
            | TrackerError::Settling
            | TrackerError::LimitReached { .. }
            | TrackerError::Unavailable(_)
            | TrackerError::Later { .. } => self.on_sign_of_life(now, call, from, None, out),
        }
    }

    /// Nobody answers where the tracker was: no need to wait for silence.
    pub(crate) fn on_unreachable(&mut self, now: Timestamp, peer: &PeerId, out: &mut Vec<Action>) {
        let mistrust = now < self.mistrust_until;
        match &mut self.standing {
            Standing::Following(following) if following.seat.peer == *peer => {
                if mistrust {
                    // It may have given *this* peer up while it slept: knock again before accusing it.
                    following.next_beat = following.next_beat.min(now + HEARTBEAT / 4);
                } else {
                    self.suspect(now, Suspicion::Unreachable, out);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn on_announcement_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        from: &PeerId,
        result: Result<(), CallError<TrackerError>>,
        out: &mut Vec<Action>,
    ) {
        let next_call = CallId(self.last_call + 1);
        let jitter = self.jitter(HEARTBEAT);
        let Standing::Following(following) = &mut self.standing else { return };
        let publisher = if following.publisher.is_in_flight(call) {
            &mut following.publisher
        } else {
            let Some(publisher) = following.mirrors.in_flight(call) else { return };
            publisher
        };
        match result {
            Ok(()) => publisher.taken(next_call),
            // Who comes at its turn is let in; the jitter is for those whose clocks were set by one message.
            Err(CallError::Refused(TrackerError::Later { wait })) => {
                publisher.again(now + wait.min(MAX_SNAPSHOT_WAIT) + jitter);
            }
            Err(CallError::Failed(_)) | Err(CallError::Refused(TrackerError::Unavailable(_))) => {
                publisher.again(now + HEARTBEAT);
            }
            Err(CallError::Refused(refusal)) => {
                let wait = match &refusal {
                    TrackerError::InvalidFileName(_) | TrackerError::LimitReached { .. } => {
                        out.push(Action::Report(Report::AnnouncementRefused { why: refusal.clone() }));
                        ANNOUNCE_RETRY
                    }
                    _ => HEARTBEAT,
                };
                publisher.restart(next_call, now + wait);
                self.on_refused(now, call, from, refusal, out);
            }
        }
    }

    /// What this peer shares has changed.
    pub(crate) fn on_share_changed(&mut self, upserts: Vec<FileMeta>, removals: Vec<FileName>, out: &mut Vec<Action>) {
        let changed = self.share.change(upserts, removals);
        if changed.left_out > 0 {
            out.push(Action::Report(Report::ShareFull { left_out: changed.left_out }));
        }
        // A follower's publisher sees by the number that there is something to say.
        if let Standing::Tracking(term) = &mut self.standing {
            term.index.apply_own(&self.id, &changed.upserts, &changed.removals);
        }
    }
}
