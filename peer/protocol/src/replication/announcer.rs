//! Telling one tracker, or one standby, what this peer shares: a snapshot where it knows nothing, deltas where it is behind.

use shared::{
    epoch::Epoch,
    file_name::FileName,
    id::Incarnation,
    limits::CALL_DEADLINE,
    rpc::tracker::{Addressee, Announcement, AnnouncementKind},
    time::Timestamp,
};

use super::share_log::Share;
use crate::CallId;

/// Brings one tracker up to date. One announcement at a time: each depends on the one before having been taken.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    to: Addressee,
    epoch: Epoch,
    incarnation: Incarnation,
    /// Answers to heartbeats before this call say nothing about what was announced since.
    valid_from: CallId,
    /// Nothing is sent before this.
    hold_until: Timestamp,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Waits for the tracker to say how far it is.
    Asking,
    /// The tracker has the share up to this number.
    Known(u64),
    /// A page of a snapshot is to be made.
    Snapshot(Cursor),
    /// Waits for an answer, or for the time to send the same again.
    InFlight(InFlight),
}

/// Where a snapshot stands.
#[derive(Debug, Clone)]
struct Cursor {
    seq: u64,
    page: u32,
    after: Option<FileName>,
}

/// The announcement under way. Kept whole: sent again it must be the same, or what the tracker has taken and
/// what this peer thinks it has taken drift apart.
#[derive(Debug, Clone)]
struct InFlight {
    /// `None`: it is to be sent (again).
    call: Option<CallId>,
    until: Timestamp,
    announcement: Announcement,
    /// The next page of the snapshot; `None` when this is a delta or the last page.
    next: Option<Cursor>,
}

impl Publisher {
    /// Tells the tracker of `epoch`, or a standby of it; what it says in answer to calls before `first_call` does not count.
    pub(crate) fn new(
        epoch: Epoch,
        incarnation: Incarnation,
        to: Addressee,
        first_call: CallId,
        now: Timestamp,
    ) -> Self {
        Self { to, epoch, incarnation, valid_from: first_call, hold_until: now, state: State::Asking }
    }

    /// Whether the tracker has everything.
    pub(crate) fn is_up_to_date(&self, share: &Share) -> bool {
        matches!(self.state, State::Known(known) if known == share.seq())
    }

    /// When there is something to send, or to give up.
    pub(crate) fn deadline(&self, share: &Share) -> Option<Timestamp> {
        match &self.state {
            State::Asking => None,
            State::Known(known) => (*known < share.seq()).then_some(self.hold_until),
            State::Snapshot(_) => Some(self.hold_until),
            State::InFlight(in_flight) if in_flight.call.is_some() => Some(in_flight.until),
            State::InFlight(_) => Some(self.hold_until),
        }
    }

    /// The tracker answered a heartbeat: how far it is.
    pub(crate) fn on_ack(&mut self, call: CallId, known_seq: Option<u64>, share: &Share) {
        if call < self.valid_from || !matches!(self.state, State::Asking | State::Known(_)) {
            return;
        }
        let usable = known_seq.filter(|known| *known == share.seq() || share.delta_after(*known).is_some());
        self.state = usable.map_or_else(|| first_page(share), State::Known);
    }

    /// What to send now, if anything; [`Self::sent`] must follow.
    pub(crate) fn next(&mut self, now: Timestamp, share: &Share) -> Option<Announcement> {
        if let State::InFlight(in_flight) = &mut self.state
            && in_flight.until <= now
        {
            in_flight.call = None;
        }
        if now < self.hold_until {
            return None;
        }
        if let State::Known(known) = self.state
            && known < share.seq()
        {
            self.state = match share.delta_after(known) {
                Some(delta) => {
                    let upserts = delta.upserts.iter().cloned().map(Into::into).collect();
                    let removals = delta.removals.iter().cloned().map(Into::into).collect();
                    let announcement = Announcement {
                        to: self.to,
                        epoch: self.epoch,
                        incarnation: self.incarnation,
                        seq: delta.seq,
                        kind: AnnouncementKind::Delta,
                        upserts,
                        removals,
                    };
                    State::InFlight(InFlight { call: None, until: now, announcement, next: None })
                }
                None => first_page(share),
            };
        }
        if let State::Snapshot(Cursor { seq, page, after }) = &self.state {
            let (files, last) = share.page(after.as_ref());
            let after = files.last().map(|file| file.name.clone());
            let next = (!last).then_some(Cursor { seq: *seq, page: *page + 1, after });
            let announcement = Announcement {
                to: self.to,
                epoch: self.epoch,
                incarnation: self.incarnation,
                seq: *seq,
                kind: AnnouncementKind::Snapshot { page: *page, last },
                upserts: files.into_iter().map(Into::into).collect(),
                removals: Vec::new(),
            };
            self.state = State::InFlight(InFlight { call: None, until: now, announcement, next });
        }
        match &self.state {
            State::InFlight(in_flight) if in_flight.call.is_none() => Some(in_flight.announcement.clone()),
            _ => None,
        }
    }

    /// The announcement was sent with this call.
    pub(crate) fn sent(&mut self, call: CallId, now: Timestamp) {
        if let State::InFlight(in_flight) = &mut self.state {
            in_flight.call = Some(call);
            in_flight.until = now + CALL_DEADLINE;
        }
    }

    /// Whether this call is the one under way.
    pub(crate) fn is_in_flight(&self, call: CallId) -> bool {
        matches!(&self.state, State::InFlight(in_flight) if in_flight.call == Some(call))
    }

    /// The announcement under way was taken; `next_call` is the first that will be made from now on.
    pub(crate) fn taken(&mut self, next_call: CallId) {
        if let State::InFlight(in_flight) = &mut self.state {
            let seq = in_flight.announcement.seq;
            self.state = in_flight.next.take().map_or(State::Known(seq), State::Snapshot);
            self.valid_from = next_call;
        }
    }

    /// The announcement under way was lost, or not taken for the moment: the same again, later.
    pub(crate) fn again(&mut self, at: Timestamp) {
        if let State::InFlight(in_flight) = &mut self.state {
            in_flight.call = None;
            self.hold_until = at;
        }
    }

    /// The announcement under way was refused: starts from what the tracker will say then.
    pub(crate) fn restart(&mut self, next_call: CallId, at: Timestamp) {
        self.state = State::Asking;
        self.valid_from = next_call;
        self.hold_until = at;
    }
}

fn first_page(share: &Share) -> State {
    State::Snapshot(Cursor { seq: share.seq(), page: 0, after: None })
}
