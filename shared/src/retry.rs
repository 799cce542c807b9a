//! Pauses between attempts, and log lines about attempts that fail again and again. Every loop that retries uses both.

use std::{fmt, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use crate::time::Timestamp;

/// Pauses that double from one attempt to the next, with jitter, up to a limit.
pub struct Backoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// Creates pauses from `shortest` to `longest`. Jitter at most doubles a pause, so that many processes that failed
    /// together do not retry together; no pause exceeds `longest`.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times();
        Self { builder, pauses: builder.build(), longest }
    }

    /// Returns the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest).min(self.longest)
    }

    /// Starts again with the shortest pause, after a success.
    pub fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backoff").field("longest", &self.longest).finish_non_exhaustive()
    }
}

/// Limit of repeated log lines: permits one per interval and counts the others.
#[derive(Debug, Clone)]
pub struct LogLimit {
    interval: Duration,
    last: Option<Timestamp>,
    suppressed: u64,
}

impl LogLimit {
    /// Creates a limit of one line per `interval`.
    pub const fn new(interval: Duration) -> Self {
        Self { interval, last: None, suppressed: 0 }
    }

    /// Returns the number of lines suppressed since the last permitted one if a line is permitted at `now`, otherwise
    /// `None`.
    pub fn permit(&mut self, now: Timestamp) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < self.interval) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit_and_start_again_after_a_reset() {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(shortest, longest);
        let first = backoff.pause();
        assert!(first >= shortest && first <= 2 * shortest, "{first:?}");
        for _ in 0..1000 {
            assert!(backoff.pause() <= longest);
        }
        assert_eq!(backoff.pause(), longest);
        backoff.reset();
        assert!(backoff.pause() <= 2 * shortest);
    }

    #[test]
    fn log_limit_permits_one_line_per_interval_and_counts_the_others() {
        let at = |seconds| Timestamp::from_origin(Duration::from_secs(seconds));
        let mut limit = LogLimit::new(Duration::from_secs(10));
        assert_eq!(limit.permit(at(5)), Some(0));
        assert_eq!(limit.permit(at(6)), None);
        assert_eq!(limit.permit(at(14)), None);
        assert_eq!(limit.permit(at(15)), Some(2));
        assert_eq!(limit.permit(at(25)), Some(0));
    }
}
