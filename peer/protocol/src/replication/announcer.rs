//! Brings one receiver, the tracker or a standby, up to date with this peer's share: by a snapshot where the receiver
//! has nothing, by deltas where it is behind.
//!
//! | state | waits for | next |
//! |---|---|---|
//! | Asking | the answer to a heartbeat, which names the number that the receiver has | Known, Snapshot |
//! | Known | a change of the share | InFlight with a delta; Snapshot when the log does not reach back |
//! | Snapshot | the time to send a page | InFlight |
//! | InFlight | the answer | Known, Snapshot (next page), Asking (refused), InFlight (lost: the same again) |

use shared::{
    epoch::Epoch,
    file_name::FileName,
    id::Incarnation,
    limits::CALL_DEADLINE,
    rpc::tracker::{Addressee, Announcement, AnnouncementKind, WireFile},
    time::Timestamp,
};

use super::share_log::ShareLog;
use crate::CallId;

/// Announcements to one receiver, one at a time: each builds on the one before.
#[derive(Debug, Clone)]
pub(crate) struct Announcer {
    to: Addressee,
    epoch: Epoch,
    incarnation: Incarnation,
    /// First call whose answer counts: answers to earlier heartbeats do not cover what was announced since.
    valid_from: CallId,
    /// Earliest time of the next announcement.
    hold_until: Timestamp,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// The number that the receiver has is not known.
    Asking,
    /// The receiver has the share up to this number.
    Known(u64),
    /// A page of a snapshot is to be sent.
    Snapshot(Cursor),
    /// An announcement was sent, or is to be sent again unchanged.
    InFlight(InFlight),
}

/// Position in a snapshot.
#[derive(Debug, Clone)]
struct Cursor {
    seq: u64,
    page: u32,
    after: Option<FileName>,
}

/// Announcement under way. It is kept whole, since a repetition must be identical: otherwise the share that the
/// receiver has and the share that this peer takes it to have could differ.
#[derive(Debug, Clone)]
struct InFlight {
    /// Call that carries it; `None` when it is to be sent (again).
    call: Option<CallId>,
    until: Timestamp,
    announcement: Announcement,
    /// Next page of the snapshot; `None` for a delta or the last page.
    next: Option<Cursor>,
}

impl Announcer {
    /// Announcer to the tracker of `epoch`, or to a standby of it. Answers to calls before `first_call` are ignored.
    pub(crate) fn new(
        epoch: Epoch,
        incarnation: Incarnation,
        to: Addressee,
        first_call: CallId,
        now: Timestamp,
    ) -> Self {
        Self { to, epoch, incarnation, valid_from: first_call, hold_until: now, state: State::Asking }
    }

    /// True if the receiver has the whole share.
    pub(crate) fn is_up_to_date(&self, share: &ShareLog) -> bool {
        matches!(self.state, State::Known(known) if known == share.seq())
    }

    /// Time at which an announcement is to be sent, or the one under way counts as lost.
    pub(crate) fn deadline(&self, share: &ShareLog) -> Option<Timestamp> {
        match &self.state {
            State::Asking => None,
            State::Known(known) => (*known < share.seq()).then_some(self.hold_until),
            State::Snapshot(_) => Some(self.hold_until),
            State::InFlight(in_flight) if in_flight.call.is_some() => Some(in_flight.until),
            State::InFlight(_) => Some(self.hold_until),
        }
    }

    /// Takes the number that the receiver has from its answer to the heartbeat `call`.
    pub(crate) fn on_ack(&mut self, call: CallId, known_seq: Option<u64>, share: &ShareLog) {
        if call < self.valid_from || !matches!(self.state, State::Asking | State::Known(_)) {
            return;
        }
        let usable = known_seq.filter(|known| *known == share.seq() || share.delta_after(*known).is_some());
        self.state = usable.map_or_else(|| first_page(share), State::Known);
    }

    /// Announcement to send now, if any. The caller sends it and calls [`Self::sent`].
    pub(crate) fn next(&mut self, now: Timestamp, share: &ShareLog) -> Option<Announcement> {
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
            self.state = self.delta(now, known, share).unwrap_or_else(|| first_page(share));
        }
        if let State::Snapshot(cursor) = &self.state {
            self.state = self.page(now, cursor, share);
        }
        match &self.state {
            State::InFlight(in_flight) if in_flight.call.is_none() => Some(in_flight.announcement.clone()),
            _ => None,
        }
    }

    fn delta(&self, now: Timestamp, known: u64, share: &ShareLog) -> Option<State> {
        let delta = share.delta_after(known)?;
        let upserts = delta.upserts.iter().cloned().map(Into::into).collect();
        let removals = delta.removals.iter().cloned().map(Into::into).collect();
        let announcement = self.announcement(delta.seq, AnnouncementKind::Delta, upserts, removals);
        Some(State::InFlight(InFlight { call: None, until: now, announcement, next: None }))
    }

    fn page(&self, now: Timestamp, Cursor { seq, page, after }: &Cursor, share: &ShareLog) -> State {
        let (files, last) = share.page(after.as_ref());
        let after = files.last().map(|file| file.name.clone());
        let next = (!last).then_some(Cursor { seq: *seq, page: *page + 1, after });
        let kind = AnnouncementKind::Snapshot { page: *page, last };
        let upserts = files.into_iter().map(Into::into).collect();
        let announcement = self.announcement(*seq, kind, upserts, Vec::new());
        State::InFlight(InFlight { call: None, until: now, announcement, next })
    }

    fn announcement(
        &self,
        seq: u64,
        kind: AnnouncementKind,
        upserts: Vec<WireFile>,
        removals: Vec<String>,
    ) -> Announcement {
        let Self { to, epoch, incarnation, .. } = *self;
        Announcement { to, epoch, incarnation, seq, kind, upserts, removals }
    }

    /// Notes the call that carries the announcement.
    pub(crate) fn sent(&mut self, call: CallId, now: Timestamp) {
        if let State::InFlight(in_flight) = &mut self.state {
            in_flight.call = Some(call);
            in_flight.until = now + CALL_DEADLINE;
        }
    }

    /// True if `call` carries the announcement under way.
    pub(crate) fn is_in_flight(&self, call: CallId) -> bool {
        matches!(&self.state, State::InFlight(in_flight) if in_flight.call == Some(call))
    }

    /// Notes that the receiver accepted the announcement. `next_call` is the first call after that.
    pub(crate) fn accepted(&mut self, next_call: CallId) {
        if let State::InFlight(in_flight) = &mut self.state {
            let seq = in_flight.announcement.seq;
            self.state = in_flight.next.take().map_or(State::Known(seq), State::Snapshot);
            self.valid_from = next_call;
        }
    }

    /// Schedules the same announcement again, after a loss or a refusal that is temporary.
    pub(crate) fn retry(&mut self, at: Timestamp) {
        if let State::InFlight(in_flight) = &mut self.state {
            in_flight.call = None;
            self.hold_until = at;
        }
    }

    /// Starts over after a refusal: waits for the receiver to name the number that it has.
    pub(crate) fn restart(&mut self, next_call: CallId, at: Timestamp) {
        self.state = State::Asking;
        self.valid_from = next_call;
        self.hold_until = at;
    }
}

fn first_page(share: &ShareLog) -> State {
    State::Snapshot(Cursor { seq: share.seq(), page: 0, after: None })
}
