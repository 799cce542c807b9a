//! Timestamps and clocks. Pure code takes a [`Timestamp`] as an argument and never reads a clock.

use std::{
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

/// Point on the monotonic clock of one process, relative to an origin that only that process knows.
///
/// The runtime takes timestamps from a [`Clock`]; simulations generate them. A timestamp is meaningless in another
/// process and is never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// Origin of the clock.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// Returns the point `since_origin` after the clock's origin.
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// Returns the time between the clock's origin and this point.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Returns the time between `earlier` and this point, or zero if `earlier` is later.
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

/// Source of [`Timestamp`]s outside pure code: the operating system's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// Creates a clock whose origin is now.
    #[expect(clippy::disallowed_methods, reason = "the one wrapper around the monotonic clock")]
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// Returns the current time of this clock.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.origin.elapsed())
    }

    /// Converts `at` to an [`std::time::Instant`], for timers.
    pub fn instant(&self, at: Timestamp) -> std::time::Instant {
        self.origin + at.0
    }
}

/// Returns the wall-clock time in microseconds since the Unix epoch, or zero before it.
///
/// For display, file times and incarnations only. Liveness uses the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the one wrapper around the wall clock")]
pub fn unix_micros() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
