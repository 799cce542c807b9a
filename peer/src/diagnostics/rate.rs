//! Rate of the last seconds, for display. Pure.

use std::collections::VecDeque;

use super::params::{SHOWN_RATE_STEP, SHOWN_RATE_WINDOW};
use shared::time::Timestamp;

/// Rate over the last [`SHOWN_RATE_WINDOW`], or since the start if that is shorter.
#[derive(Debug, Clone)]
pub struct RecentRate {
    /// Total bytes at past times, in ascending order. The first entry is at least as old as the window.
    steps: VecDeque<(Timestamp, u64)>,
    bytes: u64,
}

impl RecentRate {
    /// Starts at `now` with no bytes.
    pub fn new(now: Timestamp) -> Self {
        Self { steps: [(now, 0)].into(), bytes: 0 }
    }

    /// Adds bytes.
    pub fn record(&mut self, now: Timestamp, bytes: u64) {
        self.bytes += bytes;
        if self.steps.back().is_none_or(|(at, _)| now.since(*at) >= SHOWN_RATE_STEP) {
            self.steps.push_back((now, self.bytes));
        }
        while self.steps.get(1).is_some_and(|(at, _)| now.since(*at) >= SHOWN_RATE_WINDOW) {
            self.steps.pop_front();
        }
    }

    /// Total bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rate, bytes per second; 0 if the window contains no bytes.
    pub fn per_second(&self, now: Timestamp) -> u64 {
        let is_old = |(at, _): &&(Timestamp, u64)| now.since(*at) >= SHOWN_RATE_WINDOW;
        let from = self.steps.iter().rev().find(is_old).or(self.steps.front());
        let Some(&(at, before)) = from else { return 0 };
        let seconds = now.since(at).min(SHOWN_RATE_WINDOW + SHOWN_RATE_STEP).as_secs_f64();
        if seconds > 0.0 { ((self.bytes - before) as f64 / seconds) as u64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn rate_covers_the_window_and_decays_without_bytes() {
        let mut rate = RecentRate::new(at(0));
        assert_eq!(rate.per_second(at(0)), 0);
        for step in 1..=100 {
            rate.record(at(step * 100), 100_000);
        }
        let steady = rate.per_second(at(10_000));
        assert!((950_000..1_100_000).contains(&steady), "{steady}");
        for step in 1..=50 {
            rate.record(at(10_000 + step * 100), 10_000);
        }
        let slow = rate.per_second(at(15_000));
        assert!((95_000..110_000).contains(&slow), "the rate includes bytes before the window: {slow}");
        assert_eq!(rate.bytes(), 10_500_000);
        assert!(rate.per_second(at(17_000)) < slow);
        assert!(rate.per_second(at(30_000)) < 10_000);
        assert!(rate.steps.len() < 20);
    }

    #[test]
    fn rate_within_the_first_window_covers_the_time_since_the_start() {
        let mut rate = RecentRate::new(at(0));
        rate.record(at(50), 1000);
        rate.record(at(100), 1000);
        assert_eq!(rate.per_second(at(100)), 20_000);
    }
}
