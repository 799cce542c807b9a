//! Bounds and timings of `upload`, each with its unit and reason.

use std::time::Duration;

/// Interval of the notices to a queued request that it still waits: well within the silence that a receiver tolerates.
pub const QUEUE_KEEPALIVE: Duration = Duration::from_millis(500);
/// Maximum number of bytes that an audit of a content hashes after a receiver reported corrupt bytes: one request. Only
/// files of more than 2 TiB have longer pieces.
pub const MAX_AUDIT_BYTES: u64 = 32 << 20;
/// Contents that are audited at a time: some tens of milliseconds of a thread each.
pub const MAX_AUDITS: usize = 4;
