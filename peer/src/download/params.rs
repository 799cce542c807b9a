//! Bounds and timings of `download`, each with its unit and reason.

use std::time::Duration;

use shared::limits::MAX_OWNERS_TRIED;

/// Time for which a download waits for a tracker before it asks the known peers.
pub const TRACKER_WAIT_BEFORE_FAN_OUT: Duration = Duration::from_millis(1500);
/// Large files of one download that are fetched at a time.
pub const FILES_AT_A_TIME: usize = 8;
/// Time without a verified group after which a download ends when no provider has the missing groups and it waits for
/// other receivers.
pub const RECEIVERS_STALL: Duration = Duration::from_secs(10);
/// Number of times that one download asks the known peers for receivers of its content.
pub const MAX_SWARM_FAN_OUTS: u32 = 4;
/// Minimum number of small files in a download that travel in packs. A pack of one file would save nothing.
pub const MIN_PACKED_FILES: usize = 2;
/// Owners of one packed content that a download remembers: bounds its memory with a million files.
pub const MAX_OWNERS_PER_PACKED: usize = MAX_OWNERS_TRIED;
/// Files that are made durable together: a sync costs about the same for one and for a thousand.
pub const COMMIT_FILES: usize = 2048;
/// Bytes of files that are made durable together.
pub const COMMIT_BYTES: u64 = 64 << 20;
/// Time for which a received small file waits for others that are made durable with it.
pub const COMMIT_WAIT: Duration = Duration::from_millis(500);
/// Small files that one blocking task compares with the share: a thousand take some milliseconds, after which it can
/// be cancelled.
pub const INSPECTED_AT_A_TIME: usize = 1024;
/// Number of contents, the largest ones, for which a receiver asks an owner for its upload statistics.
pub const REPORTS_ASKED: usize = 4;
/// Deadline of that query: the download is complete, and a person waits for its result.
pub const REPORT_DEADLINE: Duration = Duration::from_millis(500);
/// Number of owners that a download asks for the times and modes of directories.
pub const DIRECTORY_OWNERS_ASKED: usize = 4;
/// Deadline of those queries together. They run while the files arrive.
pub const DIRECTORIES_DEADLINE: Duration = Duration::from_secs(2);
/// Time for which a download waits for the answers after all files have arrived.
pub const DIRECTORIES_GRACE: Duration = Duration::from_millis(500);
