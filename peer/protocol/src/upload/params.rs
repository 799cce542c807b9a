//! Parameters of the serving side.

use std::time::Duration;

/// Default maximum number of active uploads; `--max-uploads`. More at a time delay every receiver's first piece and
/// speed up nothing (`docs/swarm.md`).
pub const MAX_UPLOADS: usize = 8;
/// Maximum number of active uploads to one peer. Its next request starts once the one before is sent, so that its
/// pieces complete one after another and can be passed on.
pub const MAX_UPLOADS_PER_PEER: usize = 1;
/// Maximum number of requests that wait for a slot. Further requests are refused as busy.
pub const MAX_WAITING_UPLOADS: usize = 256;
/// Maximum number of requests of one peer that wait for a slot.
pub const MAX_WAITING_UPLOADS_PER_PEER: usize = 64;
/// Maximum number of demoted uploads, each with a thread and some 2 MiB in memory. At the rate at which uploads are
/// demoted, this many together transfer no more than one upload with a slot.
pub const MAX_DEMOTED_UPLOADS: usize = 16;
/// Interval at which an upload's receiver is sampled.
pub const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// Number of consecutive samples without an acknowledgement after which a receiver counts as gone: 1.5 s, longer than a
/// working path is silent, shorter than a user waits.
pub const UNACKNOWLEDGED_SAMPLES: u32 = 6;
/// Number of samples over which a receiver's progress is measured: 5 s, longer than most requests take.
pub const SLOW_RECEIVER_SAMPLES: usize = 20;
/// An upload is slow when it transfers less than the average of all uploads divided by this.
pub const SLOW_RECEIVER_FRACTION: u64 = 16;
/// Amount by which a capped transfer may run ahead of its rate after a pause, as the time that the rate takes for it.
pub const RATE_BURST: Duration = Duration::from_millis(100);
