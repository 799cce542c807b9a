//! The rate of the last seconds, as it is shown to people. Pure.

use std::collections::VecDeque;

use shared::{
    limits::{SHOWN_RATE_STEP, SHOWN_RATE_WINDOW},
    time::Timestamp,
};

/// Bytes a second over the last [`SHOWN_RATE_WINDOW`], or since the beginning if that is less.
#[derive(Debug, Clone)]
pub struct RecentRate {
    /// How many bytes there were by when, the latest last; the first is as old as the window or older.
    steps: VecDeque<(Timestamp, u64)>,
    bytes: u64,
}

impl RecentRate {
    /// No bytes yet.
    pub fn new(now: Timestamp) -> Self {
        Self { steps: [(now, 0)].into(), bytes: 0 }
    }

    /// More bytes are there.
    pub fn record(&mut self, now: Timestamp, bytes: u64) {
        self.bytes += bytes;
        if self.steps.back().is_none_or(|(at, _)| now.since(*at) >= SHOWN_RATE_STEP) {
            self.steps.push_back((now, self.bytes));
        }
        while self.steps.get(1).is_some_and(|(at, _)| now.since(*at) >= SHOWN_RATE_WINDOW) {
            self.steps.pop_front();
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes a second; 0 when nothing came for the whole window.
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
    fn a_rate_is_of_the_last_seconds_and_ends_with_the_bytes() {
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
        assert!((95_000..110_000).contains(&slow), "the fast time is over: {slow}");
        assert_eq!(rate.bytes(), 10_500_000);
        assert!(rate.per_second(at(17_000)) < slow);
        assert!(rate.per_second(at(30_000)) < 10_000);
        assert!(rate.steps.len() < 20);
    }

    #[test]
    fn the_first_second_has_a_rate_too() {
        let mut rate = RecentRate::new(at(0));
        rate.record(at(50), 1000);
        rate.record(at(100), 1000);
        assert_eq!(rate.per_second(at(100)), 20_000);
    }
}
