//! Parameters of the download scheduler.

use std::time::Duration;

/// Minimum size of a piece, bytes. One request per piece costs little beside its transfer, and a receiver can pass the
/// piece on soon.
pub const MIN_PIECE_BYTES: u64 = 256 << 10;
/// Maximum size of a piece, bytes, of a file of up to 256 GiB. Pieces of larger files grow with the file, because their
/// number is limited to [`MAX_PIECES`].
pub const MAX_PIECE_BYTES: u64 = 4 << 20;
/// Number of pieces that the scheduler divides a file into where the piece sizes allow it. With many pieces, receivers
/// have much to exchange.
pub const PIECES_PER_FILE: u64 = 1024;
/// Maximum number of pieces of a file. Bounds the memory of a swarm to some MiB for 1 TiB.
pub const MAX_PIECES: u64 = 65_536;
/// Maximum number of providers of one version that a download keeps.
pub const MAX_SWARM_PROVIDERS: usize = 256;
/// Maximum number of providers with requests in flight: enough to fill any downlink, few enough that requests do not
/// occupy all pieces.
pub const MAX_ACTIVE_PROVIDERS: usize = 16;
/// Maximum number of incomplete pieces of a provider that are tracked group by group. Further ones count once they are
/// complete.
pub const MAX_BEGUN_PIECES_PER_PROVIDER: usize = 1024;
/// Minimum number of pieces at the front of another receiver's partition that stay reserved for it: twice as many as
/// are in flight to it.
pub const RESERVED_PIECES: usize = 4;
/// Maximum time for which a provider stays unused because its pieces are reserved for other receivers.
pub const MAX_RESERVED_TIME: Duration = Duration::from_secs(1);
/// Maximum number of requests in flight to one provider. Beyond [`shared::limits::MIN_REQUESTS_PER_PROVIDER`], requests
/// are sent only while those in flight do not last for a round trip.
pub const MAX_REQUESTS_PER_PROVIDER: usize = 8;
/// Maximum length of a request, bytes, where a piece is not longer. A single provider receives requests of this length.
pub const MAX_REQUEST_BYTES: u64 = 32 << 20;
/// Transfer time of one request when there are several providers: short, so that work can move between them.
pub const REQUEST_TIME: Duration = Duration::from_millis(250);
/// Margin added to the round-trip time when a pipeline is sized: delays within this peer and the provider.
pub const PIPELINE_MARGIN: Duration = Duration::from_millis(50);
/// Round-trip time that is assumed until it is measured.
pub const DEFAULT_RTT: Duration = Duration::from_millis(50);
/// Window of a rate measurement.
pub const RATE_WINDOW: Duration = Duration::from_millis(200);
/// Window of a provider's first rate measurement: short, because any estimate is better than none.
pub const FIRST_RATE_WINDOW: Duration = Duration::from_millis(20);
/// Interval at which idle providers look for work of slower ones.
pub const BALANCE_INTERVAL: Duration = Duration::from_millis(20);
/// Minimum time that moving work to another provider must save. Less is noise.
pub const BALANCE_GAIN: Duration = Duration::from_millis(20);
/// Minimum speed-up of a duplicate request in the endgame: expected time of the first request divided by that of the
/// second.
pub const ENDGAME_GAIN: f64 = 1.5;
