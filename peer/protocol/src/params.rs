//! Bounds and timings of several cores, each with its unit and reason.

use std::time::Duration;

/// Delay of a timer beyond which a process distrusts its own measurements of silence.
pub const OVERSLEPT: Duration = Duration::from_millis(100);
/// Interval of the heartbeats of peers that are not electors: they need not notice a failure first.
pub const REDUCED_HEARTBEAT: Duration = Duration::from_secs(1);
