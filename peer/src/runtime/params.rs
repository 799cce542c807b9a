//! Bounds and timings of `runtime`, each with its unit and reason.

use std::time::Duration;

/// Time for which a command waits for an answer of a tracker: longer than a failover.
pub const TRACKER_WAIT: Duration = Duration::from_secs(5);
/// Shortest pause before a state that could not be stored is written again.
pub const STORE_SHORTEST: Duration = Duration::from_millis(500);
/// Longest pause before it is written again: the time for which a peer stays out of elections after its disk has room.
pub const STORE_LONGEST: Duration = Duration::from_secs(10);
/// Time for which a start waits for the lock of a process that is ending: the kernel releases it some time after the
/// process has closed its connections.
pub const LOCK_WAIT: Duration = Duration::from_millis(500);
/// Interval at which it tries to take the lock.
pub const LOCK_POLL: Duration = Duration::from_millis(10);
/// Time that a start waits for a tracker before it completes without one.
pub const READY_WAIT: Duration = Duration::from_millis(300);
/// Interval at which a command without a running peer asks for the seat again while there is no tracker.
pub const SEAT_INTERVAL: Duration = Duration::from_millis(100);
/// Time for which `list` waits for files that are being hashed.
pub const SETTLE_WAIT: Duration = Duration::from_secs(30);
