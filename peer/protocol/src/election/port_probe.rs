//! Knocking at the tracker's port: a process that was killed says nothing, but its machine says that nobody listens.
//!
//! A refusal is a hint, not a proof (`shared::net::knock`). So a peer suspects its tracker only after two of them, with
//! a heartbeat between them that nothing answered; and where a heartbeat *is* answered although knocks were refused,
//! refusals mean nothing from then on. All that a suspicion does is to ask: the other electors, who knock themselves
//! before they agree ([`VOTE_HOLD`]), and the nameserver, which does so too.

use std::time::Duration;

use shared::{
    contact::Contact,
    id::PeerId,
    limits::{HEARTBEAT, KNOCK, KNOCK_AGAIN, MAX_ELECTORS, VOTE_HOLD},
    rpc::peer::VoteRequest,
    time::Timestamp,
};

use super::{
    Action, Core, Reply, Suspicion, Token,
    state::{Seeking, Standing},
};
use crate::CallId;

/// What a follower knows from knocking at its tracker's port.
#[derive(Debug, Clone)]
pub(crate) struct Knocking {
    /// False where refusals turned out to mean nothing.
    of_use: bool,
    /// When to knock next; `None` when it is of no use, or others do it.
    pub(crate) next: Option<Timestamp>,
    /// The first refusal of this tracker's port.
    refusal: Option<Refusal>,
}

/// A knock was refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusal {
    since: Timestamp,
    /// Made after it: an answer to this call or a later one proves that somebody listens all the same.
    call: CallId,
}

/// A candidate that waits for this peer to look for itself.
#[derive(Debug, Clone)]
pub(crate) struct HeldVote {
    token: Token,
    from: PeerId,
    request: VoteRequest,
    until: Timestamp,
}

impl Knocking {
    /// A tracker is followed from `now` on.
    pub(crate) fn new(now: Timestamp, of_use: bool) -> Self {
        Self { of_use, next: of_use.then_some(now + KNOCK), refusal: None }
    }

    /// The tracker wants to hear of this peer every `pace`: electors knock, those who rest do not.
    pub(crate) fn pace(&mut self, now: Timestamp, pace: Duration) {
        if self.of_use && pace <= HEARTBEAT {
            self.next.get_or_insert(now + KNOCK);
        } else {
            self.next = None;
        }
    }
}

impl Core {
    /// Whether a refused knock at `tracker`'s port could mean something.
    pub(crate) fn trusts_refusals_of(&self, tracker: &Contact) -> bool {
        self.refused_in_vain.as_ref() != Some(tracker)
    }

    /// Knocks when it is time to.
    pub(crate) fn knock(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Following(following) = &mut self.standing else { return };
        if following.knocking.next.is_some_and(|next| next <= now) {
            following.knocking.next = Some(now + KNOCK);
            out.push(Action::ProbePort { at: following.contact() });
        }
    }

    /// A knock at `at` was refused.
    pub(crate) fn on_knock_refused(&mut self, now: Timestamp, at: &Contact, out: &mut Vec<Action>) {
        let Standing::Following(following) = &mut self.standing else { return };
        if following.contact() != *at || following.knocking.next.is_none() {
            return;
        }
        match following.knocking.refusal {
            None => {
                let seat = following.seat.clone();
                following.knocking.next = Some(now + KNOCK_AGAIN);
                self.send_heartbeat(&seat, out);
                let refusal = Refusal { since: now, call: CallId(self.last_call) };
                if let Standing::Following(following) = &mut self.standing {
                    following.knocking.refusal = Some(refusal);
                }
            }
            Some(refusal) if refusal.since + KNOCK_AGAIN <= now => {
                self.suspect(now, Suspicion::Unreachable, out);
                if let Standing::Seeking(seeking) = &mut self.standing {
                    seeking.refusal = Some(refusal);
                }
            }
            // The answer to a knock before that refusal.
            Some(_) => {}
        }
    }

    /// The tracker, followed or suspected, answered `call`: if its port was refused before that, refusals mean nothing.
    pub(crate) fn disprove_refusal(&mut self, call: CallId) {
        let (refusal, at) = match &mut self.standing {
            Standing::Following(following) => (&mut following.knocking.refusal, Self::contact_of(&following.seat)),
            Standing::Seeking(Seeking { suspected: Some(seat), refusal, .. }) => (refusal, Self::contact_of(seat)),
            _ => return,
        };
        if refusal.take_if(|refusal| refusal.call <= call).is_some() {
            self.refused_in_vain = Some(at);
            if let Standing::Following(following) = &mut self.standing {
                following.knocking.of_use = false;
            }
        }
    }

    /// Whether `from` has to wait for this peer's vote until this peer has looked for itself: it misses the tracker that
    /// this peer still hears. Then this peer knocks at once.
    pub(crate) fn looks_first(&mut self, now: Timestamp, token: Token, from: &PeerId, request: &VoteRequest) -> bool {
        let Standing::Following(following) = &mut self.standing else { return false };
        let about_it = request.expected_epoch == following.seat.epoch && *from != following.seat.peer;
        let elects = self.electors.contains(from) && self.electors.contains(&self.id);
        let Some(next) = following.knocking.next else { return false };
        if request.force || request.provisional || !about_it || !elects || self.held_votes.len() >= MAX_ELECTORS {
            return false;
        }
        if following.knocking.refusal.is_none() {
            following.knocking.next = Some(next.min(now));
        }
        let until = now + VOTE_HOLD;
        self.held_votes.push(HeldVote { token, from: from.clone(), request: request.clone(), until });
        true
    }

    pub(crate) fn held_votes_deadline(&self) -> Option<Timestamp> {
        self.held_votes.iter().map(|held| held.until).min()
    }

    /// Answers the candidates that waited: all of them when this peer misses the tracker too, else those that waited for
    /// long enough.
    pub(crate) fn answer_held_votes(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let hears = matches!(self.standing, Standing::Following(_));
        let (due, waiting) =
            std::mem::take(&mut self.held_votes).into_iter().partition(|held| !hears || held.until <= now);
        self.held_votes = waiting;
        let due: Vec<HeldVote> = due;
        for HeldVote { token, from, request, .. } in due {
            let reply = Reply::Vote(self.on_vote_requested(now, &from, &request, out));
            out.push(Action::Reply { token, reply });
        }
    }
}
