//! Failures, refusals and silence of one provider, and the waits after them.
//!
//! | report | effect |
//! |---|---|
//! | failure, refusal as busy | a wait of [`PROVIDER_BACKOFF`], doubled with each one in a row, jittered |
//! | [`MAX_PROVIDER_FAILURES`] failures in a row | the caller drops the provider |
//! | verified data | both counts start again |
//! | nothing for [`PROVIDER_SILENCE`] while data is due | a failure |
//!
//! Several requests that fail while the provider already waits are one failure.

use std::time::Duration;

use shared::time::Timestamp;

/// Silence after which a provider from which data is due counts as failed.
pub const PROVIDER_SILENCE: Duration = Duration::from_secs(2);
/// First wait after a failure or a refusal as busy. Doubles with each one in a row.
pub const PROVIDER_BACKOFF: Duration = Duration::from_millis(250);
/// Maximum wait after a failure or a refusal as busy.
pub const MAX_PROVIDER_BACKOFF: Duration = Duration::from_secs(8);
/// Number of consecutive failures after which a provider is dropped. Each failure of an unresponsive provider
/// costs [`PROVIDER_SILENCE`].
pub const MAX_PROVIDER_FAILURES: u32 = 4;

/// Bounds the shift of the first wait; [`MAX_PROVIDER_BACKOFF`] is reached long before.
const MAX_DOUBLINGS: u32 = 16;

/// Health of one provider; see the module's table.
#[derive(Debug)]
pub(crate) struct ProviderHealth {
    /// Last activity, or the time at which data became due.
    last_activity: Timestamp,
    failures: u32,
    refusals: u32,
    retry_at: Option<Timestamp>,
}

impl ProviderHealth {
    /// A healthy provider from which no data is due yet.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { last_activity: now, failures: 0, refusals: 0, retry_at: None }
    }

    /// Clears failures, refusals and the wait.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
        self.refusals = 0;
        self.retry_at = None;
    }

    /// Measures silence from `now` on, because data becomes due now.
    pub(crate) fn start_silence(&mut self, now: Timestamp) {
        self.last_activity = now;
    }

    pub(crate) fn on_activity(&mut self, now: Timestamp) {
        self.last_activity = self.last_activity.max(now);
    }

    /// Records activity that proves the provider useful: data that was verified.
    pub(crate) fn on_delivery(&mut self, now: Timestamp) {
        self.on_activity(now);
        self.failures = 0;
        self.refusals = 0;
    }

    /// Records a failure and returns the number of consecutive ones.
    pub(crate) fn record_failure(&mut self) -> u32 {
        self.failures = self.failures.saturating_add(u32::from(!self.is_waiting()));
        self.failures
    }

    /// Records a refusal as busy, which lengthens the wait but is no failure.
    pub(crate) fn record_refusal(&mut self) {
        self.refusals = self.refusals.saturating_add(u32::from(!self.is_waiting()));
    }

    /// Starts a wait of at least `requested` or extends the present one; returns its end.
    ///
    /// The jitter keeps many receivers from returning to one provider at once.
    pub(crate) fn back_off(
        &mut self,
        now: Timestamp,
        requested: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) -> Timestamp {
        let doublings = self.failures.max(self.refusals).saturating_sub(1).min(MAX_DOUBLINGS);
        let backoff = PROVIDER_BACKOFF.saturating_mul(1 << doublings).min(MAX_PROVIDER_BACKOFF);
        let requested = requested.unwrap_or_default().min(MAX_PROVIDER_BACKOFF);
        let until = now + requested.max(backoff / 2) + (backoff / 2).mul_f64(rng.f64());
        let until = self.retry_at.map_or(until, |earlier| earlier.max(until));
        self.retry_at = Some(until);
        until
    }

    /// Ends a wait that has expired; returns whether there was one.
    pub(crate) fn end_wait(&mut self, now: Timestamp) -> bool {
        self.retry_at.take_if(|until| *until <= now).is_some()
    }

    /// True if a wait was started and not ended by [`Self::end_wait`].
    pub(crate) fn is_waiting(&self) -> bool {
        self.retry_at.is_some()
    }

    /// True if no wait is running at `now`.
    pub(crate) fn is_available(&self, now: Timestamp) -> bool {
        self.retry_at.is_none_or(|until| until <= now)
    }

    /// End of the wait.
    pub(crate) fn retry_at(&self) -> Option<Timestamp> {
        self.retry_at
    }

    pub(crate) fn last_activity(&self) -> Timestamp {
        self.last_activity
    }

    /// Time at which silence becomes a failure, provided that data is due.
    pub(crate) fn silence_deadline(&self) -> Timestamp {
        self.last_activity + PROVIDER_SILENCE
    }

    /// Extends the silence deadline because this peer itself did not run for `stall`.
    pub(crate) fn extend_deadline(&mut self, stall: Duration) {
        self.last_activity += stall;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(mut record: impl FnMut(&mut ProviderHealth)) -> Vec<Duration> {
        let (mut health, mut now) = (ProviderHealth::new(Timestamp::ZERO), Timestamp::ZERO);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut waits = Vec::new();
        for _ in 0..8 {
            record(&mut health);
            let until = health.back_off(now, None, &mut rng);
            assert!(!health.is_available(now) && health.is_available(until));
            waits.push(until.since(now));
            now = until;
            assert!(health.end_wait(now) && !health.is_waiting());
        }
        waits
    }

    #[test]
    fn wait_doubles_with_each_failure_or_refusal_up_to_the_maximum() {
        let after_failures = waits(|health| {
            health.record_failure();
        });
        for waits in [after_failures, waits(ProviderHealth::record_refusal)] {
            for (doublings, wait) in (0..).zip(&waits) {
                let backoff = (PROVIDER_BACKOFF * (1 << doublings)).min(MAX_PROVIDER_BACKOFF);
                assert!(*wait >= backoff / 2 && *wait <= backoff, "{waits:?}");
            }
        }
    }

    #[test]
    fn failures_during_a_wait_count_as_one() {
        let mut health = ProviderHealth::new(Timestamp::ZERO);
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(health.record_failure(), 1);
        let until = health.back_off(Timestamp::ZERO, None, &mut rng);
        assert_eq!(health.record_failure(), 1);
        health.end_wait(until);
        assert_eq!(health.record_failure(), 2);
        health.on_delivery(until);
        assert_eq!(health.record_failure(), 1);
    }

    #[test]
    fn requested_wait_is_honoured_up_to_the_maximum() {
        for (requested, least) in [(5, 5), (3600, MAX_PROVIDER_BACKOFF.as_secs())] {
            let mut health = ProviderHealth::new(Timestamp::ZERO);
            health.record_refusal();
            let requested = Some(Duration::from_secs(requested));
            let until = health.back_off(Timestamp::ZERO, requested, &mut fastrand::Rng::with_seed(1));
            let wait = until.since(Timestamp::ZERO);
            assert!(wait >= Duration::from_secs(least) && wait <= Duration::from_secs(least) + PROVIDER_BACKOFF);
        }
    }
}
