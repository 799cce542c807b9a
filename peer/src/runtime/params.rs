//! Bounds and timings of `runtime`, each with its unit and reason.

use std::time::Duration;

/// Time for which a command waits for an answer of a tracker: longer than a failover.
pub const TRACKER_WAIT: Duration = Duration::from_secs(5);
