//! A query to the nameserver that is repeated, one call at a time.

use shared::time::Timestamp;

use crate::CallId;

/// State of a repeated query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Poll {
    /// Call under way and the time at which it counts as lost.
    pending: Option<(CallId, Timestamp)>,
    /// Time of the next query.
    at: Timestamp,
}

impl Poll {
    /// Poll that is due at `at`.
    pub(crate) fn due_at(at: Timestamp) -> Self {
        Self { pending: None, at }
    }

    /// Time of the next query, or at which the one under way counts as lost.
    pub(crate) fn deadline(&self) -> Timestamp {
        self.pending.map_or(self.at, |(_, until)| until)
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Notes that `call` was made: it counts as lost at `lost_at`, and the next query is due at `next`.
    pub(crate) fn sent(&mut self, call: CallId, lost_at: Timestamp, next: Timestamp) {
        *self = Self { pending: Some((call, lost_at)), at: next };
    }

    /// Ends the pending call if it is `call`. Returns whether it was.
    pub(crate) fn answered(&mut self, call: CallId) -> bool {
        let ours = self.pending.is_some_and(|(pending, _)| pending == call);
        if ours {
            self.pending = None;
        }
        ours
    }

    /// Sets the time of the next query after the pending one, if any.
    pub(crate) fn set_next(&mut self, at: Timestamp) {
        self.at = at;
    }

    /// Queries at `now` unless a call is pending.
    pub(crate) fn hasten(&mut self, now: Timestamp) {
        if self.pending.is_none() {
            self.at = now;
        }
    }

    /// Queries at `now` and ignores the answer to a pending call, which may be older than the reason to query.
    pub(crate) fn restart(&mut self, now: Timestamp) {
        *self = Self::due_at(now);
    }
}
