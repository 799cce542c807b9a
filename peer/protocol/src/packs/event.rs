//! Input and output of the pack scheduler.

use std::collections::BTreeSet;

use crate::swarm::ProviderId;

/// Index of a wanted content in the list given to [`Packs::new`](super::Packs::new).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(pub u32);

/// Id of a pack, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackId {
    /// Receiver of the request.
    pub provider: ProviderId,
    /// Number that is unique within one scheduler.
    pub number: u64,
}

/// Reason why a provider did not deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackFailure {
    /// It refused this item. Other items may be requested from it.
    Refused,
    /// It has no upload slot and no place in its queue. It is retried later.
    Busy,
    /// It sent nothing for too long.
    Silent,
    /// The stream or the connection failed.
    Broken,
    /// It sent bytes that are not the content's. It is dropped for the rest of the download.
    SentCorruptData,
}

/// Input of [`Packs::handle`](super::Packs::handle).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An item arrived and was verified. Counts even if the pack is over.
    Delivered(PackId, ItemId),
    /// The provider leaves this item out of the pack.
    Refused(PackId, ItemId),
    /// The stream of a pack ended regularly. A failure while items are missing that were not refused.
    Done(PackId),
    /// A pack ended early. Items that were not delivered are requested from other providers.
    Failed(PackId, PackFailure),
    /// The provider is active: bytes arrive, it reports that the request is queued, or this peer is slow to read.
    Activity(ProviderId),
    /// Time has passed.
    Tick,
}

/// Output of [`Packs::handle`](super::Packs::handle), to be carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Request these items, in this order.
    Request(PackId, Vec<ItemId>),
    /// Close the stream of a pack, which is over. Its end need not be reported.
    Cancel(PackId),
    /// The provider is no longer used.
    Drop(ProviderId, PackFailure),
    /// No provider is left for this item; with the failure of each.
    Failed(ItemId, Vec<(ProviderId, PackFailure)>),
    /// Every item was delivered or has failed. Emitted once.
    Finished,
}

/// A wanted content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Size in bytes, at most [`MAX_PACKED_FILE_BYTES`](shared::limits::MAX_PACKED_FILE_BYTES).
    pub size: u64,
    /// Providers that have it.
    pub providers: BTreeSet<ProviderId>,
}
