//! Measured rate of a provider.

use std::time::Duration;

use shared::time::Timestamp;

use super::params::{FIRST_RATE_WINDOW, RATE_WINDOW};

/// Weight of the newest sample: three windows account for most of a change.
const RATE_GAIN: f64 = 0.4;

/// Bytes per second, measured over the time during which requests are in flight.
#[derive(Debug, Default)]
pub(super) struct Rate {
    estimate: Option<f64>,
    window_bytes: u64,
    window: Duration,
    /// End of the measured time; `None` while no request is in flight.
    until: Option<Timestamp>,
}

impl Rate {
    /// Estimated bytes per second; `None` before the first window is complete.
    pub(super) fn estimate(&self) -> Option<f64> {
        self.estimate
    }

    /// Records bytes that arrived.
    pub(super) fn measure(&mut self, now: Timestamp, bytes: u64) {
        // The first bytes after a pause took a round trip: they only start the clock.
        let Some(until) = self.until.replace(now) else { return };
        self.window += now.since(until);
        self.window_bytes += bytes;
        let enough = if self.estimate.is_none() { FIRST_RATE_WINDOW } else { RATE_WINDOW };
        if self.window < enough {
            return;
        }
        let sample = self.window_bytes as f64 / self.window.as_secs_f64();
        self.estimate = Some(self.estimate.map_or(sample, |old| old + (sample - old) * RATE_GAIN));
        self.window = Duration::ZERO;
        self.window_bytes = 0;
    }

    /// Stops the clock: no request is in flight.
    pub(super) fn pause(&mut self) {
        self.until = None;
    }
}

/// Bytes that arrive within `seconds` at a rate, rounded down.
pub(super) fn bytes_at(bytes_per_second: f64, seconds: f64) -> u64 {
    // `as` saturates, and neither is negative.
    (bytes_per_second * seconds) as u64
}
