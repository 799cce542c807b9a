//! Bounds and timings of `diagnostics`, each with its unit and reason.

use std::time::Duration;

/// Receivers for which an owner keeps upload statistics.
pub const MAX_REPORTED_PEERS: usize = 256;
/// Contents for which it keeps them, per receiver.
pub const MAX_REPORTS_PER_PEER: usize = 16;
/// Pause between uploads of one content to one peer after which they belong to different downloads, and earlier
/// statistics are dropped.
pub const REPORT_PAUSE: Duration = Duration::from_secs(5);
/// Shortest interval between readings of the system's counters: with many processors a reading takes up to a
/// millisecond.
pub const MACHINE_SAMPLE: Duration = Duration::from_millis(200);
/// Window over which a displayed rate is measured: long enough to read, short enough to show the present.
pub const SHOWN_RATE_WINDOW: Duration = Duration::from_secs(4);
/// Step in which that window moves.
pub const SHOWN_RATE_STEP: Duration = Duration::from_millis(250);

/// Warnings that `status` lists at most.
pub const MAX_WARNINGS: usize = 64;
