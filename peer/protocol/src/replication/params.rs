//! Bounds and timings of `replication`, each with its unit and reason.

use std::time::Duration;

/// Snapshots of several pages that a tracker receives at a time.
pub const MAX_SNAPSHOTS: usize = 16;
/// Cost of one file of a snapshot for the tracker (`peer/benches/index` measures less).
pub const SNAPSHOT_FILE_COST: Duration = Duration::from_micros(8);
/// Cost of one page of a snapshot besides its files, so that small snapshots are not free.
pub const SNAPSHOT_PAGE_COST: Duration = Duration::from_micros(50);
/// Work on snapshots that is admitted ahead of its time: half a heartbeat interval, which bounds the delay of
/// heartbeats.
pub const SNAPSHOT_BURST: Duration = Duration::from_millis(50);
/// Delay before a peer asks again for a snapshot of several pages while [`MAX_SNAPSHOTS`] are in progress.
pub const SNAPSHOT_RETRY: Duration = Duration::from_millis(250);
/// Files in the announcements that a peer keeps, so that a tracker that missed some does not need a snapshot.
pub const MAX_LOGGED_FILES: usize = 10_000;
