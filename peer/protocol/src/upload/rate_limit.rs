//! Cap on bytes per second, for `--limit-up` and `--limit-down`.

use std::{num::NonZeroU64, time::Duration};

use shared::time::Timestamp;

use super::params::RATE_BURST;

const NANOS: u128 = 1_000_000_000;

/// Token bucket that returns the time at which bytes may be sent ("virtual scheduling", ITU-T I.371, annex A).
///
/// Bytes are booked before they are sent, and may be sent at the returned time. Users of one limit therefore take turns
/// in the order of booking. Over any period no more is sent than the rate allows, plus [`RATE_BURST`], plus one
/// booking.
#[derive(Debug, Clone)]
pub struct RateLimit {
    bytes_per_second: NonZeroU64,
    /// Time at which the bytes booked so far are paid for.
    paid: Timestamp,
    /// Fraction of a nanosecond of `paid`, in 1 / `bytes_per_second`: many small bookings must not add up to an error.
    remainder: u64,
}

impl RateLimit {
    /// A cap of `bytes_per_second`.
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, paid: Timestamp::ZERO, remainder: 0 }
    }

    /// Cap in bytes per second.
    pub fn bytes_per_second(&self) -> NonZeroU64 {
        self.bytes_per_second
    }

    /// Changes the cap for later bookings.
    pub fn set_bytes_per_second(&mut self, bytes_per_second: NonZeroU64) {
        self.bytes_per_second = bytes_per_second;
        self.remainder = 0;
    }

    /// Books `bytes` and returns the time at which they may be sent: `now` or later.
    pub fn book(&mut self, now: Timestamp, bytes: u64) -> Timestamp {
        // Unused credit expires, except for the burst.
        let earliest = now - RATE_BURST;
        if self.paid < earliest {
            self.paid = earliest;
            self.remainder = 0;
        }
        let rate = u128::from(self.bytes_per_second.get());
        let cost = u128::from(bytes) * NANOS + u128::from(self.remainder);
        // The remainder is below the rate, which fits 64 bits.
        self.remainder = u64::try_from(cost % rate).unwrap_or(0);
        self.paid += Duration::from_nanos(u64::try_from(cost / rate).unwrap_or(u64::MAX));
        self.paid.max(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(bytes_per_second: u64) -> RateLimit {
        RateLimit::new(NonZeroU64::new(bytes_per_second).unwrap())
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn bookings_in_a_row_take_the_time_of_the_rate() {
        let mut limit = limit(1_000_000);
        let mut now = at(5000);
        for _ in 0..100 {
            now = limit.book(now, 16 << 10);
        }
        let seconds = now.since(at(5000)).as_secs_f64();
        let expected = 100.0 * 16384.0 / 1e6 - RATE_BURST.as_secs_f64();
        assert!((seconds - expected).abs() < 0.001, "{seconds} s");
    }

    #[test]
    fn pause_earns_no_credit_beyond_the_burst() {
        let mut limit = limit(1000);
        assert_eq!(limit.book(at(1000), 100), at(1000), "the burst");
        assert_eq!(limit.book(at(1000), 1000), at(2000));
        assert_eq!(limit.book(at(100_000), 100), at(100_000));
        assert_eq!(limit.book(at(100_000), 100), at(100_100));
    }

    #[test]
    fn new_cap_applies_to_later_bookings() {
        let mut limit = limit(1000);
        let first = limit.book(at(1000), 1100);
        limit.set_bytes_per_second(NonZeroU64::new(10_000).unwrap());
        assert_eq!(limit.book(at(1000), 1000), first + Duration::from_millis(100));
    }

    proptest! {
        #[test]
        fn bytes_over_any_period_are_within_rate_and_burst(
            rate in 1u64..1 << 40,
            bookings in prop::collection::vec((0u64..50, 0u64..1 << 20), 1..60),
        ) {
            let mut limit = limit(rate);
            let mut now = at(1000);
            let mut booked = 0u128;
            let mut last = Timestamp::ZERO;
            for (wait, bytes) in bookings {
                now += Duration::from_millis(wait);
                booked += u128::from(bytes);
                let goes = limit.book(now, bytes);
                prop_assert!(goes >= now && goes >= last, "in order");
                last = goes;
                let brought = u128::from(rate) * (goes.since(at(1000)) + RATE_BURST).as_nanos() / NANOS;
                prop_assert!(booked <= brought + u128::from(rate) / NANOS + 1, "{booked} of {brought}");
            }
        }
    }
}
