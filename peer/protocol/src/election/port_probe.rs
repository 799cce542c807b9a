//! Probes of the tracker's port: a killed process sends nothing, but its machine answers that the port is closed.
//!
//! A refusal is a hint, not a proof (`shared::net::port_probe`). A peer suspects its tracker only after two refusals
//! with an unanswered heartbeat between them. Where a heartbeat is answered although probes were refused, refusals of
//! that endpoint are ignored from then on. A suspicion alone replaces no tracker: the other electors probe the port
//! themselves before they vote ([`VOTE_HOLD`]), and so does the nameserver before it grants a held seat.

use std::time::Duration;

use super::{
    Action, Token,
    ctx::Ctx,
    params::{PROBE_INTERVAL, VOTE_HOLD},
};
use shared::{
    contact::Contact,
    id::PeerId,
    limits::{HEARTBEAT, PROBE_RETRY},
    rpc::peer::VoteRequest,
    time::Timestamp,
};

use crate::CallId;

/// Probes of the followed tracker's port.
#[derive(Debug, Clone)]
pub(crate) struct PortProbe {
    /// False where refusals proved meaningless.
    is_meaningful: bool,
    /// Time of the next probe; `None` where refusals are meaningless, and on peers that do not elect.
    pub(crate) next: Option<Timestamp>,
    /// First refusal of this tracker's port.
    refusal: Option<Refusal>,
}

/// Refusal of a probe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusal {
    since: Timestamp,
    /// Heartbeat that was sent upon it: an answer to this call or a later one proves that the port is open.
    heartbeat: CallId,
}

impl Refusal {
    /// True if an answer to `call` proves that the port is open.
    pub(crate) fn is_disproved_by(&self, call: CallId) -> bool {
        self.heartbeat <= call
    }
}

/// Effect of a refusal.
pub(crate) enum Refused {
    /// Nothing: it answers an earlier probe, or probes mean nothing.
    Ignored,
    /// A heartbeat and another probe.
    First,
    /// Suspicion of the tracker.
    Confirmed(Refusal),
}

impl PortProbe {
    /// Probes of a tracker that is followed from `now` on.
    pub(crate) fn new(now: Timestamp, is_meaningful: bool) -> Self {
        Self { is_meaningful, next: is_meaningful.then_some(now + PROBE_INTERVAL), refusal: None }
    }

    /// Adapts to the interval of heartbeats that the tracker asks for: electors probe, peers with a reduced heartbeat
    /// do not.
    pub(crate) fn set_heartbeat_interval(&mut self, now: Timestamp, interval: Duration) {
        if self.is_meaningful && interval <= HEARTBEAT {
            self.next.get_or_insert(now + PROBE_INTERVAL);
        } else {
            self.next = None;
        }
    }

    /// Probes the port of `tracker` when that is due.
    pub(crate) fn run_timer(&mut self, ctx: &mut Ctx<'_>, tracker: impl FnOnce() -> Contact) {
        if self.next.is_some_and(|next| next <= ctx.now) {
            self.next = Some(ctx.now + PROBE_INTERVAL);
            ctx.out.push(Action::ProbePort { at: tracker() });
        }
    }

    /// Takes a refusal; `send_heartbeat` sends one to the tracker.
    pub(crate) fn on_refused(&mut self, now: Timestamp, send_heartbeat: impl FnOnce() -> CallId) -> Refused {
        match self.refusal {
            _ if self.next.is_none() => Refused::Ignored,
            None => {
                self.next = Some(now + PROBE_RETRY);
                self.refusal = Some(Refusal { since: now, heartbeat: send_heartbeat() });
                Refused::First
            }
            Some(refusal) if refusal.since + PROBE_RETRY <= now => Refused::Confirmed(refusal),
            // The answer to a probe before the first refusal.
            Some(_) => Refused::Ignored,
        }
    }

    /// The tracker answered `call`. Returns whether its port was refused before that, so that refusals mean nothing.
    pub(crate) fn on_answer(&mut self, call: CallId) -> bool {
        let disproved = self.refusal.take_if(|refusal| refusal.is_disproved_by(call)).is_some();
        if disproved {
            self.is_meaningful = false;
        }
        disproved
    }

    /// Probes at once, before this peer answers a candidate that misses the tracker. Returns false if it does not
    /// probe.
    pub(crate) fn hasten(&mut self, now: Timestamp) -> bool {
        let Some(next) = self.next else { return false };
        if self.refusal.is_none() {
            self.next = Some(next.min(now));
        }
        true
    }
}

/// Candidate whose answer waits until this peer has probed the tracker's port itself.
#[derive(Debug, Clone)]
pub(crate) struct DeferredVote {
    pub(crate) token: Token,
    pub(crate) from: PeerId,
    pub(crate) request: VoteRequest,
    pub(crate) until: Timestamp,
}

impl DeferredVote {
    pub(crate) fn new(now: Timestamp, token: Token, from: &PeerId, request: &VoteRequest) -> Self {
        Self { token, from: from.clone(), request: request.clone(), until: now + VOTE_HOLD }
    }
}
