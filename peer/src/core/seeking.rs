//! Looking for a tracker: what the nameserver says of the seat.

use shared::{
    limits::{HEARTBEAT, SEAT_POLL},
    rpc::nameserver::{Seat, SeatView},
    time::Timestamp,
};

use super::{
    Action, CallFailure, CallId, Contact, Core,
    standing::{Seeking, Standing, Word},
};

impl Core {
    /// Only who has no tracker asks for the seat.
    pub(super) fn seat_poll_deadline(&self) -> Option<Timestamp> {
        matches!(self.standing, Standing::Seeking(_)).then(|| self.seat_poll.deadline())
    }

    pub(super) fn seeking_deadline(&self, seeking: &Seeking) -> Option<Timestamp> {
        let beat = seeking.suspected.is_some().then_some(seeking.next_beat);
        let turn = (seeking.word.is_some() && self.campaign.is_none()).then_some(seeking.campaign_at);
        beat.into_iter().chain(turn).min()
    }

    pub(super) fn run_seeking_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Seeking(seeking) = &mut self.standing else { return };
        if seeking.next_beat <= now
            && let Some(seat) = seeking.suspected.clone()
        {
            seeking.next_beat = now + HEARTBEAT;
            self.send_heartbeat(&seat, out);
        }
        let Standing::Seeking(seeking) = &self.standing else { return };
        if seeking.campaign_at <= now && self.campaign.is_none() {
            match &seeking.word {
                Some(Word::Vacant) => self.claim_vacant(now, false, out),
                Some(Word::Held(incumbent)) => {
                    let incumbent = incumbent.clone();
                    self.ask_for_votes(now, Some(incumbent), false, out);
                }
                None => {}
            }
        }
    }

    pub(super) fn on_seat_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        result: Result<SeatView, CallFailure>,
        out: &mut Vec<Action>,
    ) {
        if !self.seat_poll.answered(call) {
            return;
        }
        self.seat_poll.at = now + SEAT_POLL + self.jitter(SEAT_POLL / 4);
        match result {
            Ok(view) => self.on_seat_view(now, &view, out),
            // Without the nameserver nobody can claim; a provisional tracker's place is here.
            Err(CallFailure::NoAnswer | CallFailure::Unreachable) => self.forget_word(),
        }
    }

    pub(super) fn forget_word(&mut self) {
        if let Standing::Seeking(seeking) = &mut self.standing {
            seeking.word = None;
        }
    }

    /// The nameserver's word on the seat.
    pub(super) fn on_seat_view(&mut self, now: Timestamp, view: &SeatView, out: &mut Vec<Action>) {
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
            (None, Standing::Tracking(_)) if self.campaign.is_none() => self.claim_vacant(now, false, out),
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
            self.take_seat(now, seat.epoch, None, out);
            return;
        }
        // An earlier run's, or one that was stepped down from: nobody follows it any more.
        self.forget_word();
        let call = self.call();
        out.push(Action::Resign { call, epoch: seat.epoch });
    }

    /// The seat was given up, or that failed: look again.
    pub(super) fn on_resign_answered(&mut self, now: Timestamp, call: CallId, out: &mut Vec<Action>) {
        match &self.standing {
            Standing::Leaving(leaving) if leaving.call == call => self.stop_leaving(out),
            Standing::Seeking(_) if self.seat_poll.pending.is_none() => self.seat_poll.at = now,
            _ => {}
        }
    }

    pub(super) fn contact_of(seat: &Seat) -> Contact {
        Contact { peer: seat.peer.clone(), endpoint: seat.endpoint.clone() }
    }
}
