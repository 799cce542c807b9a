//! Announcements to the standbys, so that the next tracker has this peer's share before it takes the seat.
//!
//! A follower sends each standby heartbeats and announcements of its own, as it does to the tracker. `(incarnation,
//! seq)` orders them at each receiver, so nothing is forwarded, and a lost message is missing at one receiver only.
//! The tracker comes first: standbys get announcements while the tracker is up to date.

use crate::{CallId, Calls, params::REDUCED_HEARTBEAT};
use shared::{
    contact::Contact,
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::HEARTBEAT,
    rpc::tracker::{Addressee, Announcement, HeartbeatAck},
    time::Timestamp,
};

use super::{announcer::Announcer, share_log::ShareLog};

/// Longest time until the next heartbeat to a peer that does not act as a standby yet. The tracker's answer to that
/// peer's next heartbeat appoints it.
const RETRY: std::time::Duration = HEARTBEAT.saturating_mul(3);

/// Standbys of one tracker, as a follower of that tracker sees them.
#[derive(Debug, Clone, Default)]
pub(crate) struct StandbyFeeds {
    feeds: Vec<Feed>,
    /// Heartbeat whose answer named the standbys. Answers to earlier heartbeats are older.
    named_by: Option<CallId>,
}

/// One standby and what it has of this peer's share.
#[derive(Debug, Clone)]
struct Feed {
    to: Contact,
    announcer: Announcer,
    next_heartbeat: Timestamp,
}

/// Message that is due at a standby.
#[derive(Debug)]
pub(crate) enum FeedMessage {
    Heartbeat,
    Announcement(Announcement),
}

impl StandbyFeeds {
    /// Time of the next message. Announcements count while the tracker is up to date.
    pub(crate) fn deadline(&self, share: &ShareLog, tracker_up_to_date: bool) -> Option<Timestamp> {
        let heartbeats = self.feeds.iter().map(|feed| feed.next_heartbeat);
        let announcements =
            self.feeds.iter().filter_map(|feed| feed.announcer.deadline(share)).filter(|_| tracker_up_to_date);
        heartbeats.chain(announcements).min()
    }

    /// Announcer that waits for the answer to `call`.
    pub(crate) fn in_flight(&mut self, call: CallId) -> Option<&mut Announcer> {
        self.feeds.iter_mut().map(|feed| &mut feed.announcer).find(|announcer| announcer.is_in_flight(call))
    }

    /// The standbys.
    pub(crate) fn contacts(&self) -> impl Iterator<Item = &Contact> {
        self.feeds.iter().map(|feed| &feed.to)
    }

    /// Notes that the answer to the heartbeat `call` names the standbys. Returns whether it is the newest such answer.
    pub(crate) fn accept_names(&mut self, call: CallId) -> bool {
        let newest = self.named_by.is_none_or(|named_by| call > named_by);
        if newest {
            self.named_by = Some(call);
        }
        newest
    }

    /// Replaces the standbys; one that stays keeps its progress. A new one is served by `new_announcer`.
    pub(crate) fn replace(&mut self, standbys: Vec<Contact>, now: Timestamp, new_announcer: impl Fn() -> Announcer) {
        self.feeds.retain(|feed| standbys.contains(&feed.to));
        for to in standbys {
            if self.feeds.iter().all(|feed| feed.to != to) {
                self.feeds.push(Feed { to, announcer: new_announcer(), next_heartbeat: now });
            }
        }
    }

    /// Hands the messages that are due to `send`, each with a new call.
    pub(crate) fn poll(
        &mut self,
        now: Timestamp,
        share: &ShareLog,
        tracker_up_to_date: bool,
        calls: &mut Calls,
        mut send: impl FnMut(CallId, &Contact, FeedMessage),
    ) {
        for feed in &mut self.feeds {
            if feed.next_heartbeat <= now {
                feed.next_heartbeat = now + REDUCED_HEARTBEAT;
                send(calls.next(), &feed.to, FeedMessage::Heartbeat);
            }
            if tracker_up_to_date && let Some(announcement) = feed.announcer.next(now, share) {
                let call = calls.next();
                feed.announcer.sent(call, now);
                send(call, &feed.to, FeedMessage::Announcement(announcement));
            }
        }
    }

    /// Takes the answer of `from` to the heartbeat `call`; without an `ack`, `from` does not act as a standby of this
    /// tracker's `epoch`. Returns whether `from` is one of the standbys.
    pub(crate) fn on_heartbeat_answer(
        &mut self,
        now: Timestamp,
        call: CallId,
        from: &PeerId,
        epoch: Epoch,
        ack: Option<&HeartbeatAck>,
        share: &ShareLog,
    ) -> bool {
        let Some(feed) = self.feeds.iter_mut().find(|feed| feed.to.peer == *from) else { return false };
        match ack {
            Some(ack) if ack.epoch == epoch => feed.announcer.on_ack(call, ack.known_seq, share),
            Some(_) => {}
            None => feed.next_heartbeat = feed.next_heartbeat.min(now + RETRY),
        }
        true
    }
}

/// Announcer to a standby of the tracker of `epoch`. Answers to calls before `first_call` are ignored.
pub(crate) fn announcer(epoch: Epoch, incarnation: Incarnation, first_call: CallId, now: Timestamp) -> Announcer {
    Announcer::new(epoch, incarnation, Addressee::Standby, first_call, now)
}
