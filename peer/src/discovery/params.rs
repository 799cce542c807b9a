//! Bounds and timings of `discovery`, each with its unit and reason.

use std::time::Duration;

/// Maximum number of known peers that are asked directly, for example when there is no tracker.
pub const MAX_FAN_OUT: usize = 32;
/// Smallest content, bytes, whose receivers exchange what they have; smaller ones complete before that helps.
pub const MIN_SWARM_BYTES: u64 = 1 << 20;
/// Deadline for the known peers to name what they receive; a person waits to learn that a file exists nowhere.
pub const RECEIVERS_DEADLINE: Duration = Duration::from_secs(1);
