//! Pieces: runs of groups, the unit of scheduling.
//!
//! Every piece is in exactly one state; `docs/swarm.md` has the table with the events that lead from one to another.
//!
//! | state | requests | groups | next state |
//! |---|---|---|---|
//! | `Missing` | none | some are missing | `InFlight`: picked |
//! | `InFlight` | one | some are missing | `Complete`, `Missing`, `Duplicated`, or `InFlight` of another request |
//! | `Duplicated` | two, to two providers | some are missing | `Complete`, `InFlight` |
//! | `Complete` | none | all are verified | none |
//!
//! A piece in flight is `Missing` again when its request ends, is cancelled or is truncated before it; `Duplicated` by
//! the endgame; in flight of another request when another provider takes it over. When a duplicated piece is complete,
//! the other request is truncated or cancelled, unless further pieces follow; when one of the two requests ends, the
//! piece is `InFlight` of the other.

use std::ops::Range;

use shared::{group_ranges::group_count, limits::GROUP_BYTES};

use super::{
    event::RequestId,
    params::{MAX_PIECE_BYTES, MAX_PIECES, MIN_PIECE_BYTES, PIECES_PER_FILE},
};

/// Division of a version into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    size: u64,
    groups: u64,
    groups_per_piece: u64,
}

impl Layout {
    /// Divides a version of `size` bytes into pieces of a power of two of bytes: about [`PIECES_PER_FILE`] as long as
    /// their size lies between [`MIN_PIECE_BYTES`] and [`MAX_PIECE_BYTES`], never more than [`MAX_PIECES`].
    pub(crate) fn new(size: u64) -> Self {
        let preferred = (size / PIECES_PER_FILE).clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
        let piece_bytes = preferred.max(size.div_ceil(MAX_PIECES)).checked_next_power_of_two().unwrap_or(1 << 63);
        Self { size, groups: group_count(size), groups_per_piece: piece_bytes / GROUP_BYTES }
    }

    /// Number of groups.
    pub(crate) fn groups(&self) -> u64 {
        self.groups
    }

    pub(crate) fn groups_per_piece(&self) -> u64 {
        self.groups_per_piece
    }

    /// Size of every piece but the last, bytes.
    pub(crate) fn piece_bytes(&self) -> u64 {
        self.groups_per_piece * GROUP_BYTES
    }

    /// Number of pieces.
    pub(crate) fn pieces(&self) -> u32 {
        u32::try_from(self.groups.div_ceil(self.groups_per_piece)).expect("pieces grow so that there are few")
    }

    /// Pieces that the receiver of a rank fetches first; `None` for a single receiver, which needs no partition.
    pub(crate) fn partition(&self, Rank { rank, receivers }: Rank) -> Option<Range<u32>> {
        if receivers < 2 {
            return None;
        }
        let pieces = u64::from(self.pieces());
        let bound = |rank: u64| u32::try_from(pieces * rank / u64::from(receivers)).unwrap_or(u32::MAX);
        Some(bound(rank.into())..bound(u64::from(rank) + 1))
    }

    pub(crate) fn piece_of(&self, group: u64) -> u32 {
        u32::try_from(group / self.groups_per_piece).expect("groups are within the file, whose pieces are few")
    }

    /// Groups of a piece; the last piece may have fewer.
    pub(crate) fn groups_of(&self, piece: u32) -> Range<u64> {
        let start = u64::from(piece) * self.groups_per_piece;
        start..(start + self.groups_per_piece).min(self.groups)
    }

    /// Pieces that a run of groups touches.
    pub(crate) fn pieces_of(&self, groups: &Range<u64>) -> Range<u32> {
        if groups.is_empty() {
            return 0..0;
        }
        self.piece_of(groups.start)..self.piece_of(groups.end - 1) + 1
    }

    /// Bytes in a run of groups; the file's last group may be short.
    pub(crate) fn bytes(&self, groups: &Range<u64>) -> u64 {
        let byte = |group: u64| group.saturating_mul(GROUP_BYTES).min(self.size);
        byte(groups.end).saturating_sub(byte(groups.start))
    }
}

/// Position of a receiver among all receivers of the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rank {
    rank: u32,
    receivers: u32,
}

impl Rank {
    /// Rank of a receiver that knows of no others.
    pub(crate) const SINGLE: Self = Self { rank: 0, receivers: 1 };

    /// Rank `rank` of `receivers`, from 0; [`Self::SINGLE`] when that is out of range.
    pub(crate) fn new(rank: u32, receivers: u32) -> Self {
        if rank < receivers { Self { rank, receivers } } else { Self::SINGLE }
    }

    /// Ranks of all receivers, ascending.
    pub(crate) fn all(self) -> impl Iterator<Item = Self> {
        (0..self.receivers).map(move |rank| Self { rank, ..self })
    }

    /// Index that is as far into `count` things as this rank is into all ranks.
    pub(crate) fn scaled_to(self, count: usize) -> usize {
        count * self.rank as usize / self.receivers as usize
    }
}

/// State of a piece; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceState {
    Missing,
    InFlight(RequestId),
    Duplicated(RequestId, RequestId),
    Complete,
}

/// States of all pieces, and the number of providers of each.
#[derive(Debug)]
pub(crate) struct Pieces {
    states: Vec<PieceState>,
    /// Providers that have the piece complete, without those that have the whole version.
    partial_providers: Vec<u32>,
    /// Providers that have the whole version.
    full_providers: u32,
    missing: u32,
    complete: u32,
}

impl Pieces {
    pub(crate) fn new(layout: &Layout) -> Self {
        let count = layout.pieces();
        Self {
            states: vec![PieceState::Missing; count as usize],
            partial_providers: vec![0; count as usize],
            full_providers: 0,
            missing: count,
            complete: 0,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.states.len()).expect("made from a u32")
    }

    /// Number of pieces in the state `Missing`.
    pub(crate) fn missing(&self) -> u32 {
        self.missing
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.complete == self.count()
    }

    pub(crate) fn state(&self, piece: u32) -> PieceState {
        self.states[piece as usize]
    }

    /// Number of providers that have the piece complete.
    pub(crate) fn providers(&self, piece: u32) -> u32 {
        self.full_providers + self.partial_providers[piece as usize]
    }

    /// Number of providers that have the whole version.
    pub(crate) fn full_providers(&self) -> u32 {
        self.full_providers
    }

    pub(crate) fn add_full_provider(&mut self) {
        self.full_providers += 1;
    }

    pub(crate) fn remove_full_provider(&mut self) {
        self.full_providers -= 1;
    }

    pub(crate) fn add_provider(&mut self, piece: u32) {
        self.partial_providers[piece as usize] += 1;
    }

    pub(crate) fn remove_provider(&mut self, piece: u32) {
        self.partial_providers[piece as usize] -= 1;
    }

    /// Assigns (part of) the piece to a request. A piece has at most two requests, to different providers.
    pub(crate) fn assign(&mut self, piece: u32, request: RequestId) {
        let next = match self.state(piece) {
            PieceState::Missing => PieceState::InFlight(request),
            PieceState::InFlight(first) if first.provider != request.provider => PieceState::Duplicated(first, request),
            state => {
                debug_assert!(false, "{request:?} for piece {piece}, which is {state:?}");
                state
            }
        };
        self.set(piece, next);
    }

    /// Removes a request from the piece.
    pub(crate) fn release(&mut self, piece: u32, request: RequestId) {
        let next = match self.state(piece) {
            PieceState::InFlight(one) if one == request => PieceState::Missing,
            PieceState::Duplicated(one, other) if one == request => PieceState::InFlight(other),
            PieceState::Duplicated(one, other) if other == request => PieceState::InFlight(one),
            state => state,
        };
        self.set(piece, next);
    }

    /// Marks the piece as verified; returns its requests.
    pub(crate) fn complete(&mut self, piece: u32) -> [Option<RequestId>; 2] {
        let requests = match self.state(piece) {
            PieceState::Missing | PieceState::Complete => [None, None],
            PieceState::InFlight(one) => [Some(one), None],
            PieceState::Duplicated(one, other) => [Some(one), Some(other)],
        };
        self.set(piece, PieceState::Complete);
        requests
    }

    fn set(&mut self, piece: u32, next: PieceState) {
        let state = &mut self.states[piece as usize];
        self.missing -= u32::from(*state == PieceState::Missing);
        self.complete -= u32::from(*state == PieceState::Complete);
        self.missing += u32::from(next == PieceState::Missing);
        self.complete += u32::from(next == PieceState::Complete);
        *state = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::event::ProviderId;
    use super::*;

    fn request(provider: u32) -> RequestId {
        RequestId { provider: ProviderId(provider), serial: u64::from(provider) }
    }

    #[test]
    fn piece_size_grows_with_the_file_within_its_bounds() {
        let layout = |size| (Layout::new(size).piece_bytes(), Layout::new(size).pieces());
        assert_eq!(layout(0), (MIN_PIECE_BYTES, 1), "the empty file has one empty group");
        assert_eq!(layout(1), (MIN_PIECE_BYTES, 1));
        assert_eq!(layout(128 << 20), (256 << 10, 512));
        assert_eq!(layout(1 << 30), (1 << 20, 1024));
        assert_eq!(layout(16 << 30), (MAX_PIECE_BYTES, 4096));
        assert_eq!(layout(1 << 40), (16 << 20, 65536));
        assert!(layout(u64::MAX).1 <= 65536);
    }

    #[test]
    fn released_piece_is_missing_once_both_requests_are_gone() {
        let mut pieces = Pieces::new(&Layout::new(1 << 20));
        assert_eq!((pieces.count(), pieces.missing()), (4, 4));
        pieces.assign(1, request(1));
        pieces.assign(1, request(2));
        assert_eq!(pieces.missing(), 3);
        assert_eq!(pieces.state(1), PieceState::Duplicated(request(1), request(2)));
        pieces.release(1, request(1));
        pieces.release(1, request(7));
        assert_eq!(pieces.state(1), PieceState::InFlight(request(2)));
        pieces.release(1, request(2));
        assert_eq!(pieces.missing(), 4);
        pieces.assign(1, request(3));
        assert_eq!(pieces.complete(1), [Some(request(3)), None]);
        pieces.release(1, request(3));
        assert_eq!(pieces.state(1), PieceState::Complete);
        assert!(!pieces.is_finished());
    }

    proptest! {
        #[test]
        fn every_group_is_in_exactly_one_piece(size in 0u64..1 << 34, group in any::<prop::sample::Index>()) {
            let layout = Layout::new(size);
            let group = group.index(usize::try_from(layout.groups()).unwrap()) as u64;
            let piece = layout.piece_of(group);
            prop_assert!(layout.groups_of(piece).contains(&group));
            prop_assert!(piece < layout.pieces());
            prop_assert_eq!(layout.groups_of(layout.pieces() - 1).end, layout.groups());
            prop_assert_eq!(layout.bytes(&(0..layout.groups())), size);
        }
    }
}
