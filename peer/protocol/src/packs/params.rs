//! Parameters of the pack scheduler.

use std::time::Duration;

/// Cost of an item besides its bytes, as a number of bytes that take as long: opening, hashing, renaming. Determines
/// the length of packs of many tiny files.
pub const PACK_ITEM_COST: u64 = 16 << 10;
/// Minimum cost of a pack, bytes, while more items wait. In smaller packs the request itself dominates the cost.
pub const MIN_PACK_COST: u64 = 512 << 10;
/// Maximum number of packs in flight to one provider: one is sent while the next one waits.
pub const PACKS_PER_PROVIDER: usize = 2;
/// Minimum expected time of the rest of a pack before an idle provider duplicates it.
pub const PACK_DUPLICATE_AFTER: Duration = Duration::from_millis(250);
