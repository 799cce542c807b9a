//! Bounds that several modules share, each with its unit and the reason for its value. A bound that only one module
//! uses is in the `params.rs` of that module.
//!
//! Exceeding a bound causes a typed, retryable error. It never causes unbounded memory use or a hang.

use std::time::Duration;

// --- names and messages -------------------------------------------------------------------------

/// Longest registered name, bytes. Keeps a page of 1000 names well within a frame.
pub const MAX_NAME_BYTES: usize = 255;
/// Longest endpoint URI, bytes.
pub const MAX_URI_BYTES: usize = 2048;
/// Longest tag, bytes.
pub const MAX_TAG_BYTES: usize = 128;
/// Longest name of a shared file, bytes. Linux allows 4096 (`PATH_MAX`); the difference is left for the path of the
/// share.
pub const MAX_FILE_NAME_BYTES: usize = 1024;
/// Longest part of a file's name, bytes: `NAME_MAX` of every common file system.
pub const MAX_FILE_NAME_PART_BYTES: usize = 255;
/// Largest RPC frame, bytes. Larger answers are paged or streamed.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Largest header of a bulk stream, bytes: a request names one content and at most a few ranges.
pub const MAX_BULK_HEADER_BYTES: usize = 64 << 10;
/// Bytes of entries on a page of names. Half a frame leaves space for the envelope. A page holds fewer entries if their
/// tags are large.
pub const PAGE_BYTES: usize = MAX_FRAME_BYTES / 2;
/// Files on a page of a listing, and in one announcement: 500 names of 1 KiB still fit a frame.
pub const FILES_PER_PAGE: usize = 500;
/// Longest wait for a change in one call. Bounds the time for which a call of a vanished watcher occupies the
/// nameserver.
pub const MAX_WATCH_WAIT: Duration = Duration::from_secs(30);

// --- leases and the seat ------------------------------------------------------------------------

/// Lease of a name that is registered without an explicit lease.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(10);
/// Lease of the tracker seat.
pub const SEAT_LEASE: Duration = Duration::from_millis(750);
/// Largest step above the highest epoch that one claim, vote or notice may take: far more elections than happen
/// during an outage of the nameserver, far too few for a hostile peer to exhaust the epochs.
pub const MAX_EPOCH_STEP: u64 = 1 << 16;

// --- election -----------------------------------------------------------------------------------

/// Interval of an elector's heartbeats to the tracker.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// Delay between a refused probe and the next one: a single refusal proves nothing. Packets in flight have arrived by
/// then, and an answered heartbeat in between outweighs the refusals.
pub const PROBE_RETRY: Duration = Duration::from_millis(5);
/// Maximum number of electors. It is independent of the number of peers, so an election costs the same among ten peers
/// and among ten thousand.
pub const MAX_ELECTORS: usize = 9;
/// Epochs of provisional trackers are multiples of this, epochs of registered ones are not, so the two kinds never
/// collide. [`MAX_EPOCH_STEP`] is 1024 times as large, which suffices for the provisional trackers of one outage of the
/// nameserver.
pub const PROVISIONAL_EPOCHS: u64 = 64;
/// Longest random delay before a campaign is tried or repeated.
pub const ELECTION_BACKOFF: Duration = Duration::from_millis(150);
/// Interval at which a peer asks the nameserver for the registered peers. The election module adds
/// `PEERS_POLL_PER_PEER` for each of them.
pub const PEERS_POLL: Duration = Duration::from_secs(2);
/// Voters and members that one core tracks.
pub const MAX_PEERS: usize = 10_000;
/// Versions in a tracker's index.
pub const MAX_INDEX_ENTRIES: usize = 4_000_000;
/// Files in one peer's share.
pub const MAX_FILES_PER_PEER: usize = 1_000_000;

// --- calls and connections ----------------------------------------------------------------------

/// Deadline of an ordinary call (tarpc has 10 s by default).
pub const CALL_DEADLINE: Duration = Duration::from_secs(3);
/// Deadline of a heartbeat or vote; a later answer is worthless.
pub const HEARTBEAT_DEADLINE: Duration = Duration::from_millis(300);
/// Deadline for the first bytes of an opened stream, which name its kind or request.
pub const STREAM_HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// Time for which a graceful close waits for the other side.
pub const CLOSE_DEADLINE: Duration = Duration::from_millis(250);
/// Messages that wait for the task or thread that owns a core.
pub const MAX_QUEUED_EVENTS: usize = 4096;

// --- transfers ----------------------------------------------------------------------------------

/// Binary logarithm of the chunks (1 KiB) in a group.
pub const GROUP_CHUNK_LOG: u8 = 4;
/// Size of a group, the unit of verification, bytes.
pub const GROUP_BYTES: u64 = 1024 << GROUP_CHUNK_LOG;
/// Receive window of a bulk stream, bytes: 12 MiB fill a path of 100 ms at 1 Gbit/s.
pub const STREAM_WINDOW_BYTES: u32 = 12 << 20;
/// Receive window of a connection, bytes: bounds what a slow receiver buffers of one provider. Slightly more than the
/// window of a stream, so that other streams progress while one waits to be read.
pub const CONNECTION_WINDOW_BYTES: u32 = 14 << 20;
/// Smallest rate of `--limit-up` and `--limit-down`, bytes a second. Below it, a peer that divides its rate among all
/// upload slots would appear dead to each receiver.
pub const MIN_RATE: u64 = 16 << 10;
/// Owners of one file that a download tries.
pub const MAX_OWNERS_TRIED: usize = 16;

/// Minimum number of requests in flight to one provider: one is served while the next one waits, so that the provider
/// is never idle.
pub const MIN_REQUESTS_PER_PROVIDER: usize = 2;

// --- packs of small files -----------------------------------------------------------------------

/// Largest file that travels in a pack, bytes: it is verified and held in memory as a whole.
pub const MAX_PACKED_FILE_BYTES: u64 = 256 << 10;
/// Contents in one pack: a request has 34 bytes a content and stays far within [`MAX_BULK_HEADER_BYTES`].
pub const MAX_PACK_CONTENTS: usize = 512;
/// Bytes of contents in one pack.
pub const MAX_PACK_BYTES: u64 = 8 << 20;

// --- uploads ------------------------------------------------------------------------------------

/// Time in which the receiver of an upload must take at least one byte. It is long because a receiver grants credit
/// only when an eighth of a window is free (quinn's rule): at [`MIN_RATE`] that takes 112 s, and 224 s when two
/// requests share the rate. An upload that is aborted too early sends up to [`CONNECTION_WINDOW_BYTES`] again.
pub const UPLOAD_SILENCE: Duration = Duration::from_secs(240);
const _: () = assert!(
    UPLOAD_SILENCE.as_secs() * MIN_RATE >= CONNECTION_WINDOW_BYTES as u64 / 8 * MIN_REQUESTS_PER_PROVIDER as u64,
    "the slowest receiver is not given up before it can say that it has room"
);

// --- identity -----------------------------------------------------------------------------------

/// Life of a join token that is created without an explicit one.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);

// --- the command line ---------------------------------------------------------------------------

/// Largest file with a join token, bytes; a token has a few hundred.
pub const MAX_TOKEN_FILE_BYTES: u64 = 64 << 10;
