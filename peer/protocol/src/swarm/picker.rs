//! Choice of the next piece to request from a provider: rarest first, in runs, own partition first.
//!
//! Receivers that start together must not fetch the same pieces from a single provider, because its uplink is the
//! bottleneck of all of them. Each receiver has a partition of the file in which it begins, and continues from piece to
//! piece. Without a partition (it knows of no other receiver yet), or when nothing in it is as rare as elsewhere, it
//! begins at a random piece. Where a run meets a piece that another receiver has by now, that piece is no longer rare,
//! and the run jumps to another random piece. Random runs collide far less often than random pieces: only jumps can
//! collide.
//!
//! A receiver whose partition is done does not simply continue with those of others. The single provider should send
//! every piece once, and what is in flight to another receiver shows only after some hundred milliseconds. Such a
//! receiver takes pieces from the ends of partitions that are far from done, each receiver at a different position, and
//! leaves the rest to the receivers of those partitions ([`pick_from_others`]).
//!
//! On rarest first: Legout, Urvoy-Keller and Michiardi, "Rarest first and choke algorithms are enough", IMC 2006.

use std::{collections::BTreeMap, ops::Range};

use shared::time::Timestamp;

use super::{
    event::ProviderId,
    params::RESERVED_PIECES,
    piece::{Layout, PieceState, Pieces, Rank},
    provider::Provider,
};

/// Result of [`pick`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    /// First piece of the next request.
    Piece(u32),
    /// Nothing for now: what the provider could send is reserved for other receivers.
    Later,
    /// The provider has no open piece.
    Nothing,
}

/// Pieces to choose from, for one provider.
pub(crate) struct Choice<'a> {
    pub(crate) pieces: &'a Pieces,
    pub(crate) provider: &'a Provider,
    pub(crate) layout: Layout,
    pub(crate) rank: Rank,
    /// Partition of this receiver; `None` while it knows of no other receiver.
    pub(crate) own_partition: Option<Range<u32>>,
    pub(crate) now: Timestamp,
    /// All known providers, including this one.
    pub(crate) providers: &'a BTreeMap<ProviderId, Provider>,
    /// Approximate number of pieces of the request.
    pub(crate) wanted: u64,
}

impl Choice<'_> {
    /// True if the piece is in no request and this provider has it.
    pub(crate) fn is_open(&self, piece: u32) -> bool {
        self.pieces.state(piece) == PieceState::Missing && self.provider.has_piece(piece)
    }

    /// True if a run that began with `first` may continue with the open piece `next`.
    pub(crate) fn extends_run(&self, first: u32, next: u32) -> bool {
        self.pieces.providers(next) <= self.pieces.providers(first) && self.is_own(next) == self.is_own(first)
    }

    /// True if pieces that are reserved for other receivers may be taken: no provider delivers, or the reservation has
    /// lasted too long. Visits all providers.
    fn may_take_reserved(&self) -> bool {
        self.provider.is_reservation_over(self.now)
            || !self.providers.values().any(|provider| provider.is_delivering(self.now))
    }

    /// True if the piece is in this receiver's partition.
    fn is_own(&self, piece: u32) -> bool {
        self.own_partition.as_ref().is_some_and(|own| own.contains(&piece))
    }

    /// Open pieces, ascending.
    fn open(&self) -> impl Iterator<Item = u32> {
        (0..self.pieces.count()).filter(|&piece| self.is_open(piece))
    }

    /// Piece after the last request to this provider, if it is open. Sequential reads are a provider's fastest.
    fn following(&self) -> Option<u32> {
        self.provider.next_piece.filter(|&piece| piece < self.pieces.count() && self.is_open(piece))
    }
}

/// Picks the first piece of the next request. One pass over the pieces.
pub(crate) fn pick(choice: &Choice<'_>, rng: &mut fastrand::Rng) -> Pick {
    let mut rarest = u32::MAX;
    let mut first = None;
    let mut random = None;
    let mut alike = 0;
    let mut own = None;
    for piece in choice.open() {
        let providers = choice.pieces.providers(piece);
        if providers > rarest {
            continue;
        }
        if providers < rarest {
            (rarest, alike, first, own) = (providers, 0, Some(piece), None);
        }
        alike += 1;
        if own.is_none() && choice.is_own(piece) {
            own = Some(piece);
        }
        // Reservoir sampling: each of the rarest pieces is picked with the same probability (Knuth vol. 2, 3.4.2).
        if rng.u64(..alike) == 0 {
            random = Some(piece);
        }
    }
    let Some(random) = random else { return Pick::Nothing };
    let is_only_at_full_providers = choice.provider.has_all() && rarest == choice.pieces.full_providers();
    if own.is_none() && choice.own_partition.is_some() && is_only_at_full_providers {
        return pick_from_others(choice, random);
    }
    let is_as_good = |&piece: &u32| choice.pieces.providers(piece) == rarest && (own.is_none() || choice.is_own(piece));
    let next_of_run = choice.following().filter(is_as_good);
    // With a single provider, pieces that fit one request are not split by beginning in their middle.
    let small = first.filter(|_| choice.providers.len() == 1 && alike <= choice.wanted);
    Pick::Piece(next_of_run.or(small).or(own).unwrap_or(random))
}

/// Picks from the partitions of other receivers a piece that only providers of the whole version have.
///
/// The first half of what is left of each partition is reserved for its receiver, whose run continues there. Receivers
/// that do this at the same time take pieces that lie as far apart as their ranks. Each requests one piece at a time,
/// so that the others are notified of it soon. A reserved piece, `random`, is taken only when nothing else arrives: the
/// receiver that should fetch it may be slow.
fn pick_from_others(choice: &Choice<'_>, random: u32) -> Pick {
    if !choice.provider.requests.is_empty() {
        return Pick::Later;
    }
    let rarest = choice.pieces.full_providers();
    let mut takeable = Vec::new();
    for rank in choice.rank.all() {
        let first = takeable.len();
        let is_left = |&piece: &u32| choice.is_open(piece) && choice.pieces.providers(piece) == rarest;
        takeable.extend(choice.layout.partition(rank).into_iter().flatten().filter(is_left));
        let left = takeable.len() - first;
        let reserved = left.div_ceil(2).max(RESERVED_PIECES).min(left);
        takeable.drain(first..first + reserved);
    }
    let next_of_run = choice.following().filter(|piece| takeable.binary_search(piece).is_ok());
    match next_of_run.or_else(|| takeable.get(choice.rank.scaled_to(takeable.len())).copied()) {
        Some(piece) => Pick::Piece(piece),
        None if choice.may_take_reserved() => Pick::Piece(random),
        None => Pick::Later,
    }
}
