//! Looking for a tracker: what the nameserver says of the seat.

use shared::{
    contact::Contact,
    electors::provisional_quorum,
    limits::{HEARTBEAT, SEAT_POLL, VOTE_WAIT},
    rpc::nameserver::{Seat, SeatView},
    time::Timestamp,
};

use super::{
    Action, CallFailure, Core, ElectionFailure,
    campaign::{Campaign, Kind},
    state::{Seeking, Standing, Word},
};
use crate::CallId;

impl Core {
    /// Only who has no tracker asks for the seat.
    pub(crate) fn seat_poll_deadline(&self) -> Option<Timestamp> {
        matches!(self.standing, Standing::Seeking(_)).then(|| self.seat_poll.deadline())
    }

    pub(crate) fn seeking_deadline(&self, seeking: &Seeking) -> Option<Timestamp> {
        let beat = seeking.suspected.is_some().then_some(seeking.next_beat);
        let turn = (self.can_stand(seeking) && self.campaign.is_none()).then_some(seeking.campaign_at);
        beat.into_iter().chain(turn).min()
    }

    /// Whether there is a way to the seat: the nameserver's word on it, or enough others to elect a tracker without it.
    /// (Who knows nobody could not tell whether it is alone.)
    fn can_stand(&self, seeking: &Seeking) -> bool {
        match &seeking.word {
            Some(Word::Vacant | Word::Held(_)) => true,
            Some(Word::Away) => {
                let there = self.electors.iter().filter(|elector| Some(*elector) != seeking.former.as_ref()).count();
                !self.members.is_empty() && there >= provisional_quorum(self.electors.len())
            }
            None => false,
        }
    }

    pub(crate) fn run_seeking_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Seeking(seeking) = &mut self.standing else { return };
        if seeking.next_beat <= now
            && let Some(seat) = seeking.suspected.clone()
        {
            seeking.next_beat = now + HEARTBEAT;
            self.send_heartbeat(&seat, out);
        }
        let Standing::Seeking(seeking) = &self.standing else { return };
        if seeking.campaign_at <= now && self.campaign.is_none() && self.can_stand(seeking) {
            match seeking.word.clone() {
                Some(Word::Vacant) => self.claim_vacant(now, out),
                Some(Word::Held(incumbent)) => self.ask_for_votes(now, Some(incumbent), Kind::Ordinary, out),
                Some(Word::Away) => {
                    let missed = seeking.former.clone();
                    self.ask_for_votes(now, missed, Kind::Provisional, out);
                }
                None => {}
            }
        }
    }

    pub(crate) fn on_seat_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        result: Result<SeatView, CallFailure>,
        out: &mut Vec<Action>,
    ) {
        if !self.seat_poll.answered(call) {
            // Late, but epochs only rise: what is above all that is known is news.
            if let Ok(view) = result
                && view.epoch_high > self.durable.epoch_high
            {
                self.on_seat_view(now, &view, out);
            }
            return;
        }
        self.seat_poll.at = now + SEAT_POLL + self.jitter(SEAT_POLL / 4);
        match result {
            Ok(view) => {
                // It is back: what is decided is decided with it.
                let alone = |own: &Campaign| own.kind == Kind::Provisional && own.is_voting();
                if self.campaign.as_ref().is_some_and(alone) {
                    self.end_campaign(now, ElectionFailure::Lost(view.clone()), out);
                }
                self.no_longer_alone(now);
                self.on_seat_view(now, &view, out);
            }
            Err(CallFailure::NoAnswer | CallFailure::Unreachable) => self.nameserver_is_away(),
        }
    }

    /// The nameserver does not answer: who misses the tracker turns to the other peers.
    pub(crate) fn nameserver_is_away(&mut self) {
        if let Standing::Seeking(seeking) = &mut self.standing {
            seeking.word = Some(Word::Away);
        }
    }

    /// The nameserver answers. Whoever missed it too was perhaps cut off from all: the suspect gets the time of an answer
    /// before anything is done against it.
    fn no_longer_alone(&mut self, now: Timestamp) {
        if let Standing::Seeking(seeking) = &mut self.standing
            && seeking.word.take() == Some(Word::Away)
            && seeking.suspected.is_some()
        {
            seeking.next_beat = now;
            seeking.campaign_at = seeking.campaign_at.max(now + VOTE_WAIT);
        }
    }

    pub(crate) fn forget_word(&mut self) {
        if let Standing::Seeking(seeking) = &mut self.standing {
            seeking.word = None;
        }
    }

    /// The nameserver's word on the seat.
    pub(crate) fn on_seat_view(&mut self, now: Timestamp, view: &SeatView, out: &mut Vec<Action>) {
        self.raise(now, view.epoch_high, out);
        // Lower than what is known here when the nameserver lost its memory: a claim has to name its number
        // while the epoch claimed stays above all that were ever seen.
        self.expected = view.epoch_high;
        self.confirmed = self.confirmed.max(view.epoch_high);
        match (&view.seat, &mut self.standing) {
            (Some(seat), _) if seat.peer == self.id => self.on_own_seat(now, seat, out),
            (Some(seat), Standing::Seeking(seeking)) if seat.epoch < self.durable.epoch_high => {
                // Its holder does not know of the higher epochs; the heartbeat tells it.
                seeking.word = Some(Word::Held(seat.peer.clone()));
                self.send_heartbeat(seat, out);
            }
            (Some(seat), Standing::Seeking(seeking)) => {
                if seeking.suspected.as_ref() == Some(seat) {
                    seeking.word = Some(Word::Held(seat.peer.clone()));
                } else if seat.epoch <= self.vacated {
                    seeking.word = Some(Word::Held(seat.peer.clone()));
                    self.seat_poll.at = now + SEAT_POLL / 4;
                } else {
                    self.follow(now, seat.clone(), out);
                }
            }
            (None, Standing::Seeking(seeking)) => seeking.word = Some(Word::Vacant),
            (held, Standing::Tracking(term)) if self.campaign.is_none() => {
                let (epoch, mandate) = (term.seat.epoch, term.mandate.clone());
                match (held, mandate) {
                    (Some(seat), _) if seat.epoch >= epoch => {}
                    // Its own epoch was registered, the answer lost, and the lease has run out: no epoch is given twice.
                    (None, Some(_)) if view.epoch_high >= epoch => self.claim_vacant(now, out),
                    (held, Some(mandate)) => {
                        // Elected without the nameserver, which has an older tracker or none.
                        if let Some(seat) = held {
                            self.send_heartbeat(seat, out);
                        }
                        self.register_provisional(now, epoch, mandate, out);
                    }
                    (None, None) => self.claim_vacant(now, out),
                    (Some(_), None) => {}
                }
            }
            (_, Standing::Following(_) | Standing::Tracking(_) | Standing::Leaving(_)) => {}
        }
    }

    /// The nameserver thinks that the seat is this peer's.
    fn on_own_seat(&mut self, now: Timestamp, seat: &Seat, out: &mut Vec<Action>) {
        if !matches!(self.standing, Standing::Seeking(_)) {
            return;
        }
        if self.claimed == Some(seat.epoch) && seat.epoch == self.durable.epoch_high {
            // The claim was accepted and its answer lost. The lease is not known until it is renewed.
            self.take_seat(now, seat.epoch, None, None, out);
            return;
        }
        // An earlier run's, or one that was stepped down from: nobody follows it any more.
        self.forget_word();
        let call = self.call();
        out.push(Action::Resign { call, epoch: seat.epoch });
    }

    /// The seat was given up, or that failed: look again.
    pub(crate) fn on_resign_answered(&mut self, now: Timestamp, call: CallId, out: &mut Vec<Action>) {
        match &self.standing {
            Standing::Leaving(leaving) if leaving.call == call => self.stop_leaving(out),
            Standing::Seeking(_) if self.seat_poll.pending.is_none() => self.seat_poll.at = now,
            _ => {}
        }
    }

    pub(crate) fn contact_of(seat: &Seat) -> Contact {
        Contact { peer: seat.peer.clone(), endpoint: seat.endpoint.clone() }
    }
}
