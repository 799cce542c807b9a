//! Bounds and timings of `runtime`, each with its unit and reason.

use std::time::Duration;

/// Wait of a command for a tracker that answers: longer than a failover.
pub const TRACKER_WAIT: Duration = Duration::from_secs(5);
