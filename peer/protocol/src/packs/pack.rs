//! A pack in flight.

use std::collections::BTreeSet;

use shared::time::Timestamp;

use super::event::ItemId;

/// A pack in flight.
#[derive(Debug)]
pub(super) struct Pack {
    /// Items still to come, in the order in which they come.
    pub(super) left: BTreeSet<ItemId>,
    pub(super) left_cost: u64,
    /// Cost of the items that arrived.
    pub(super) came_cost: u64,
    /// Time of the request.
    pub(super) since: Timestamp,
}
