//! Bounds and timings of several cores, each with its unit and reason.

use std::time::Duration;

/// Lateness of a timer beyond which this process counts as stalled and extends its silence deadlines.
pub const STALL_THRESHOLD: Duration = Duration::from_millis(100);
/// Interval of the heartbeats of peers that are not electors, which need not detect a failure first, and of all
/// heartbeats to standbys.
pub const REDUCED_HEARTBEAT: Duration = Duration::from_secs(1);
