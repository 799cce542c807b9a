//! Bounds and timings of the nameserver, each with its unit and reason.

use std::time::Duration;

use shared::limits::MAX_QUEUED_EVENTS;

/// Maximum number of tags of a name.
pub const MAX_TAGS: usize = 64;
/// Entries on a page of names.
pub const NAMES_PER_PAGE: usize = 1000;
/// Names examined for one page: a filter that matches little must not delay lease renewals.
pub const NAMES_SCANNED_PER_PAGE: usize = 20_000;
/// Changes of names that the nameserver keeps for watchers. A watcher that is further behind lists all names again.
pub const MAX_CHANGES_REMEMBERED: usize = 10_000;
/// Registrations that expire in one step of the nameserver; the rest expire in the next.
pub const EXPIRIES_PER_SWEEP: usize = 1000;
/// Names that one identity may hold: far more than a peer needs, and a hundredth of [`MAX_NAMES`].
pub const MAX_NAMES_PER_IDENTITY: usize = 10_000;
/// Names in total: bounds the memory of the nameserver at some hundreds of MiB.
pub const MAX_NAMES: usize = 1_000_000;
/// Longest regular expression, bytes.
pub const MAX_REGEX_BYTES: usize = 1024;
/// Memory of one compiled regular expression, bytes: a short pattern can compile into a large program.
pub const MAX_REGEX_PROGRAM_BYTES: usize = 1 << 20;
/// Join tokens outstanding at a time.
pub const MAX_TOKENS: usize = 10_000;
/// Uses of one join token.
pub const MAX_TOKEN_USES: u32 = 10_000;
/// Peers ever enrolled: ten times as many as one core tracks at a time.
pub const MAX_ENROLMENTS: usize = 100_000;
/// Shortest lease that is granted; shorter ones would cause a storm of renewals.
pub const MIN_LEASE: Duration = Duration::from_secs(1);
/// Longest lease that is granted. A name that must stay longer is permanent, and only an admin registers it.
pub const MAX_LEASE: Duration = Duration::from_secs(24 * 3600);
/// Time without a call of the incumbent to the nameserver after which a majority may replace it.
pub const SEAT_SILENCE: Duration = Duration::from_millis(400);
/// Writes of one identity that wait at the nameserver: an eighth of the queue, so that no identity fills it alone.
pub const MAX_WRITES_PER_IDENTITY: usize = MAX_QUEUED_EVENTS / 8;
/// Requests that the nameserver answers after one durable write: they share its cost, and the wait stays short.
pub const COMMANDS_PER_COMMIT: usize = 128;
/// Life of a node's certificate.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Longest life of a join token.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
