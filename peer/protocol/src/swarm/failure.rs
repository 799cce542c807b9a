//! Failed requests, silent providers and the timer.

use std::time::Duration;

use crate::{params::STALL_THRESHOLD, provider_health::MAX_PROVIDER_FAILURES};
use shared::time::Timestamp;

use super::{
    Refill, Swarm,
    event::{Action, Dropped, Failure, ProviderId, RequestId},
    provider::Provider,
};

impl Swarm {
    pub(super) fn on_failed(&mut self, now: Timestamp, id: RequestId, why: Failure, out: &mut Vec<Action>) {
        if why == Failure::SentCorruptData {
            // Counts even when the request is over.
            self.sent_corrupt_data.insert(id.provider);
            self.end_request(id);
            self.drop_provider(id.provider, Dropped::SentCorruptData, out);
            return;
        }
        if !self.end_request(id) {
            return;
        }
        match why {
            Failure::SentCorruptData => {}
            Failure::Changed => self.drop_provider(id.provider, Dropped::Changed, out),
            Failure::NotHere => self.drop_provider(id.provider, Dropped::NotHere, out),
            Failure::Refused => self.drop_provider(id.provider, Dropped::Refused, out),
            Failure::Busy { retry_after } => {
                if let Some(provider) = self.providers.get_mut(&id.provider) {
                    let until = provider.on_refusal(now, retry_after, &mut self.rng);
                    self.arm(until);
                }
            }
            Failure::Silent | Failure::Broken => self.on_provider_failing(now, id.provider, out),
        }
    }

    /// Cancels the requests of a silent or broken provider, which go to others, and makes it wait or drops it.
    fn on_provider_failing(&mut self, now: Timestamp, id: ProviderId, out: &mut Vec<Action>) {
        self.cancel_all(id, out);
        let Some(provider) = self.providers.get_mut(&id) else { return };
        if provider.record_failure() >= MAX_PROVIDER_FAILURES {
            self.drop_provider(id, Dropped::Failing, out);
        } else {
            let until = provider.back_off(now, None, &mut self.rng);
            self.arm(until);
        }
    }

    /// Extends all silence deadlines if the timer is late: this peer did not run and could not receive anything.
    pub(super) fn extend_deadlines_after_stall(&mut self, now: Timestamp) {
        let late = self.next_deadline().map_or(Duration::ZERO, |due| now.since(due));
        if late > STALL_THRESHOLD {
            self.providers.values_mut().for_each(|provider| provider.extend_deadline(late));
        }
    }

    pub(super) fn run_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let mut silent = Vec::new();
        for (&id, provider) in &mut self.providers {
            provider.end_wait(now);
            if provider.silence_deadline().is_some_and(|deadline| deadline <= now) {
                silent.push(id);
            }
        }
        for id in silent {
            self.on_provider_failing(now, id, out);
        }
        // Those whose wait or suspension is over may get requests. Visiting all is cheap where nothing changed.
        self.refill = Refill::All;
        self.must_rebalance = true;
        let silences = self.providers.values().filter_map(Provider::silence_deadline);
        let waits = self.providers.values().filter_map(Provider::retry_at);
        let suspensions = self.providers.values().filter_map(Provider::suspended_until).filter(|until| *until > now);
        self.timer = silences.chain(waits).chain(suspensions).min();
    }

    /// Makes the timer fire at `due` at the latest.
    pub(super) fn arm(&mut self, due: Timestamp) {
        self.timer = Some(self.timer.map_or(due, |timer| timer.min(due)));
    }
}
