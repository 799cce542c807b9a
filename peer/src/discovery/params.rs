//! Bounds and timings of `discovery`, each with its unit and reason.

use std::time::Duration;

/// Maximum number of known peers that are asked directly, for example when there is no tracker.
pub const MAX_FAN_OUT: usize = 32;
/// Smallest content that has a swarm, bytes. Smaller ones complete before an exchange between receivers would help.
pub const MIN_SWARM_BYTES: u64 = 1 << 20;
/// Deadline for the known peers to list the files that they receive. Until then, a person waits for the result that a
/// file does not exist.
pub const RECEIVERS_DEADLINE: Duration = Duration::from_secs(1);
