//! State of a pack from its request to its end.

use std::collections::BTreeSet;

use shared::time::Timestamp;

use super::event::ItemId;

/// A pack in flight.
#[derive(Debug)]
pub(super) struct Pack {
    /// Items that have not arrived, in the order of the request.
    pub(super) left: BTreeSet<ItemId>,
    /// Cost of `left`.
    pub(super) left_cost: u64,
    /// Cost of the items that arrived.
    pub(super) came_cost: u64,
    /// Time of the request.
    pub(super) since: Timestamp,
}
