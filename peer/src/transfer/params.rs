//! Bounds and timings of `transfer`, each with its unit and reason.

use std::time::Duration;

/// Length of one step of a rate-limited transfer, as the time that the rate takes for its bytes.
pub const THROTTLE_STEP: Duration = Duration::from_millis(20);
/// Encoded bytes that pass between the hashing thread and the task that owns the stream at a time.
pub const BULK_BATCH_BYTES: usize = 256 << 10;
/// Chunks read from a stream at a time. A chunk is the payload of one datagram: 64 of them are about 90 KB over
/// Ethernet and up to 2 MB over loopback (`shared::net::params::MAX_DATAGRAM_BYTES`).
pub const CHUNKS_PER_READ: usize = 64;
/// Batches of [`BULK_BATCH_BYTES`] in progress per transfer. With the runs of verified bytes they bound the memory of
/// a transfer at 4 to 8 MiB with datagrams of Ethernet size; larger datagrams make larger batches.
pub const BULK_BATCHES: usize = 8;
