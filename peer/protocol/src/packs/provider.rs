//! State of one provider of packs.
//!
//! | state | receives requests | next state |
//! |---|---|---|
//! | ready | up to [`PACKS_PER_PROVIDER`] | waiting: busy, silent or broken; dropped: corrupt data, too many failures |
//! | waiting | no | ready: the wait is over |
//! | dropped | no | none |
//!
//! [`PACKS_PER_PROVIDER`]: super::params::PACKS_PER_PROVIDER

use std::{collections::BTreeSet, time::Duration};

use shared::time::Timestamp;

use super::{event::PackFailure, pack::Pack};
use crate::provider_health::ProviderHealth;

/// One provider.
#[derive(Debug)]
pub(super) struct Provider {
    /// Classes of waiting items that it has, as number of providers and number of the class: those with few providers
    /// come first.
    pub(super) classes: BTreeSet<(usize, usize)>,
    /// Number of packs in flight.
    pub(super) packs: usize,
    /// Cost delivered per second; `None` before a pack is complete.
    pub(super) rate: Option<f64>,
    /// Reason why it is no longer used.
    pub(super) dropped: Option<PackFailure>,
    /// A request that is sent while nothing is in flight restarts its silence.
    health: ProviderHealth,
    /// Time since which it can have been sending the first pack in flight.
    free_since: Timestamp,
    rng: fastrand::Rng,
}

impl Provider {
    pub(super) fn new(rng: fastrand::Rng) -> Self {
        Self {
            classes: BTreeSet::new(),
            packs: 0,
            rate: None,
            dropped: None,
            health: ProviderHealth::new(Timestamp::ZERO),
            free_since: Timestamp::ZERO,
            rng,
        }
    }

    /// True if it may receive requests.
    pub(super) fn is_ready(&self, now: Timestamp) -> bool {
        self.dropped.is_none() && self.health.is_available(now)
    }

    /// True if it may receive requests and has no pack in flight.
    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        self.packs == 0 && self.is_ready(now)
    }

    pub(super) fn on_request(&mut self, now: Timestamp) {
        if self.packs == 0 {
            self.health.start_silence(now);
            self.free_since = now;
        }
        self.packs += 1;
        self.health.end_wait(now);
    }

    pub(super) fn on_activity(&mut self, now: Timestamp) {
        self.health.on_activity(now);
    }

    pub(super) fn on_delivery(&mut self, now: Timestamp) {
        self.health.on_delivery(now);
    }

    /// Records the end of a pack that was sent at `since` and of which items of `cost` arrived.
    pub(super) fn on_pack_done(&mut self, now: Timestamp, since: Timestamp, cost: u64) {
        self.packs -= 1;
        self.health.on_activity(now);
        let begun = since.max(self.free_since);
        self.free_since = now;
        let seconds = now.since(begun).as_secs_f64();
        if cost > 0 && seconds > 0.0 {
            let rate = cost as f64 / seconds;
            // The newest sample counts half: the estimate follows changes, and no single pack determines it.
            self.rate = Some(self.rate.map_or(rate, |before| (before + rate) / 2.0));
        }
    }

    /// Records a failure and returns the number of consecutive ones. Packs that fail together are one failure.
    pub(super) fn on_failure(&mut self, now: Timestamp) -> u32 {
        self.health.end_wait(now);
        let was_waiting = self.health.is_waiting();
        let failures = self.health.record_failure();
        if !was_waiting {
            self.health.back_off(now, None, &mut self.rng);
        }
        failures
    }

    /// Records a refusal as busy, which is no failure but starts a wait.
    pub(super) fn on_refusal(&mut self, now: Timestamp) {
        self.health.end_wait(now);
        if !self.health.is_waiting() {
            self.health.record_refusal();
            self.health.back_off(now, None, &mut self.rng);
        }
    }

    pub(super) fn is_silent(&self, now: Timestamp) -> bool {
        self.packs > 0 && now >= self.health.silence_deadline()
    }

    /// Time of the next tick that this provider needs.
    pub(super) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        if self.dropped.is_some() {
            return None;
        }
        let silence = (self.packs > 0).then(|| self.health.silence_deadline());
        // An expired wait needs no tick: there was nothing to request when it expired.
        silence.into_iter().chain(self.health.retry_at().filter(|until| *until > now)).min()
    }

    /// Expected time for the rest of a pack.
    pub(super) fn time_for(&self, now: Timestamp, pack: &Pack) -> Duration {
        let in_flight = now.since(pack.since.max(self.free_since));
        let seconds = in_flight.as_secs_f64();
        let rate = if pack.came_cost > 0 && seconds > 0.0 { Some(pack.came_cost as f64 / seconds) } else { self.rate };
        match rate {
            // By the rate so far, but at least the time without activity: a stalled pack is slow at any earlier rate.
            Some(rate) => {
                let time = Duration::try_from_secs_f64(pack.left_cost as f64 / rate).unwrap_or(Duration::MAX);
                time.max(now.since(self.health.last_activity()))
            }
            None => in_flight,
        }
    }
}
