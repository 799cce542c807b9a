//! Bounds and timings of `store`, each with its unit and reason.

use std::time::Duration;

/// Interval of full scans of the share. They find changes that cause no file-system notification, such as those on
/// network file systems.
pub const RESCAN: Duration = Duration::from_secs(30);
/// Quiet time after a notification before the share is scanned, so that a burst of notifications causes one scan.
pub const SCAN_DEBOUNCE: Duration = Duration::from_millis(100);
/// Depth of directories to which a share is scanned.
pub const MAX_SHARE_DEPTH: usize = 64;
/// Age of the last change below which a hash is not cached for good: the file may change again within one tick of its
/// file system's clock (FAT counts in 2 s) without a visible difference.
pub const RACY_WINDOW: Duration = Duration::from_secs(2);
/// Quiet time after which a file that changed while it was hashed is hashed again.
pub const WRITER_QUIET: Duration = Duration::from_secs(1);
/// First and longest pause before a hash cache that failed is opened again: room on a disk appears within seconds or
/// not for hours.
pub const CACHE_RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`CACHE_RETRY_MIN`].
pub const CACHE_RETRY_MAX: Duration = Duration::from_secs(60);
/// First pause before a share that is missing or cannot be read is scanned again. Doubles up to [`RESCAN`].
pub const SHARE_RETRY_MIN: Duration = Duration::from_secs(1);
/// Moved and deleted paths that are remembered between two scans, to watch what of them was watched again. Beyond that
/// number, all directories are watched again.
pub const MAX_LOST_WATCHES: usize = 4096;
/// Memory of the hash cache's pages, bytes.
pub const HASH_CACHE_BYTES: usize = 4 << 20;
/// Minimum age of an outboard without a file before it is deleted: it may belong to a file that is being imported.
pub const OUTBOARD_GRACE: Duration = Duration::from_secs(600);
/// Smallest file that is written with direct I/O when it arrives fast, bytes. Smaller files are likely to be read soon.
pub const DIRECT_MIN_FILE_BYTES: u64 = 64 << 20;
/// Shortest run that is written with direct I/O, bytes. Shorter runs, of slow arrivals, go through the page cache.
pub const DIRECT_MIN_RUN_BYTES: usize = 512 << 10;
/// Bytes over which direct I/O is judged: a disk that takes longer than [`DIRECT_TRIAL_TIME`] gets the next
/// [`DIRECT_REST_BYTES`] through the page cache.
pub const DIRECT_TRIAL_BYTES: u64 = 128 << 20;
/// Time for [`DIRECT_TRIAL_BYTES`]: 160 MiB a second. Rotating disks are slower with scattered writes, other disks
/// are faster.
pub const DIRECT_TRIAL_TIME: Duration = Duration::from_millis(800);
/// Bytes that go through the page cache after a failed trial of direct I/O.
pub const DIRECT_REST_BYTES: u64 = 1 << 30;
/// Largest file that is fetched again from the start after an interruption, bytes: that costs less than a resume file.
pub const RESUME_MIN_BYTES: u64 = 1 << 20;
/// Received bytes after which a background sync begins: small enough to lose little in a power cut, large enough for
/// long writes.
pub const CHECKPOINT_BYTES: u64 = 32 << 20;
/// Longest time between such syncs.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum number of received bytes of a file that are not known to be on disk. At the limit, the download waits for
/// the disk. Bounds the loss in a power cut.
pub const MAX_UNSYNCED_BYTES: u64 = 64 << 20;
/// Largest header of a resume file, bytes: it holds two paths of up to 4 KiB.
pub const MAX_RESUME_HEADER_BYTES: usize = 16 << 10;
/// Largest resume file, bytes: a file of 1 TiB whose pieces arrived in any order takes half of it. Groups without a
/// record are fetched again.
pub const MAX_RESUME_FILE_BYTES: usize = 4 << 20;
/// Length, bytes, from which a resume file that is more than twice as long as necessary is rewritten.
pub const RESUME_COMPACT_BYTES: usize = 256 << 10;
/// Time by which a partial file may be newer than its last record without being verified again: a write that its
/// process did not record before it was killed.
pub const RESUME_SLACK: Duration = Duration::from_secs(1);
/// Unfinished downloads that are listed. Further ones can still be resumed.
pub const MAX_UNFINISHED: usize = 1000;
/// Age after which the journal of the directories that an abandoned download created is deleted. A later repetition
/// leaves these directories with the modes with which they were created.
pub const DIR_JOURNAL_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time for which a download waits until a download of the same content that was just stopped releases the partial
/// file.
pub const PARTIAL_WAIT: Duration = Duration::from_secs(1);
/// Interval at which the download tries to lock the partial file.
pub const PARTIAL_POLL: Duration = Duration::from_millis(20);
