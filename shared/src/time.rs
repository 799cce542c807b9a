//! Time as the pure cores see it: a number handed in, never a clock read.

use std::{
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

/// A point on one process's monotonic clock, counted from an origin that only that process knows.
///
/// Cores take it as an argument, shells make it from [`Clock`], simulations make it up. It means nothing
/// on another machine and is never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// The clock's origin.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The point `since_origin` after the clock's origin.
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// How long after the clock's origin this is.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(wait))
    }
}

impl AddAssign<Duration> for Timestamp {
    fn add_assign(&mut self, wait: Duration) {
        *self = *self + wait;
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(wait))
    }
}

/// The shells' source of [`Timestamp`]s: the operating system's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock whose origin is now.
    #[expect(clippy::disallowed_methods, reason = "this is the place that all others use instead")]
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// The time on this clock.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.origin.elapsed())
    }

    /// The operating system's name for `at`, for timers.
    pub fn instant(&self, at: Timestamp) -> std::time::Instant {
        self.origin + at.0
    }
}

/// Microseconds since 1970 by the wall clock: only for things shown to people, file times and incarnations,
/// never for deciding who is alive.
#[expect(clippy::disallowed_methods, reason = "this is the place that all others use instead")]
pub fn unix_micros() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
