//! Pieces: runs of groups, the unit of scheduling.
//!
//! Every piece is in exactly one state; `docs/swarm.md` has the table with the events that lead from one to another.
//!
//! | state | requests | its groups | leaves it for |
//! |---|---|---|---|
//! | `Missing` | none | some are missing | `Asked`: picked |
//! | `Asked` | one | some are missing | `Whole`; `Missing`: the request ends, is cancelled or cut; `Doubled`: endgame; `Asked` of another: stolen |
//! | `Doubled` | two, of two owners | some are missing | `Whole`: the other request is cut or cancelled; `Asked`: one of them ends |
//! | `Whole` | none | all are proven | never |

use std::ops::Range;

use shared::{
    group_ranges::group_count,
    limits::GROUP_BYTES,
};
use crate::swarm::params::MAX_PIECE_BYTES;
use crate::swarm::params::MAX_PIECES;
use crate::swarm::params::MIN_PIECE_BYTES;
use crate::swarm::params::PIECES_PER_FILE;

use super::event::RequestId;

/// How a version is divided into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    size: u64,
    groups: u64,
    groups_per_piece: u64,
}

impl Layout {
    /// For a version of `size` bytes: pieces of a power of two of bytes, some [`PIECES_PER_FILE`] of them as long as
    /// they lie between [`MIN_PIECE_BYTES`] and [`MAX_PIECE_BYTES`], never more than [`MAX_PIECES`].
    pub(crate) fn new(size: u64) -> Self {
        let comfortable = (size / PIECES_PER_FILE).clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
        let piece_bytes = comfortable.max(size.div_ceil(MAX_PIECES)).checked_next_power_of_two().unwrap_or(1 << 63);
        Self { size, groups: group_count(size), groups_per_piece: piece_bytes / GROUP_BYTES }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn groups(&self) -> u64 {
        self.groups
    }

    pub(crate) fn groups_per_piece(&self) -> u64 {
        self.groups_per_piece
    }

    pub(crate) fn piece_bytes(&self) -> u64 {
        self.groups_per_piece * GROUP_BYTES
    }

    pub(crate) fn pieces(&self) -> u32 {
        u32::try_from(self.groups.div_ceil(self.groups_per_piece)).expect("pieces grow so that there are few")
    }

    /// The part of the file that the receiver at a place fetches first; `None` for one alone, who divides with nobody.
    pub(crate) fn part(&self, Place { place, receivers }: Place) -> Option<Range<u32>> {
        if receivers < 2 {
            return None;
        }
        let pieces = u64::from(self.pieces());
        let bound = |place: u64| u32::try_from(pieces * place / u64::from(receivers)).unwrap_or(u32::MAX);
        Some(bound(place.into())..bound(u64::from(place) + 1))
    }

    pub(crate) fn piece_of(&self, group: u64) -> u32 {
        u32::try_from(group / self.groups_per_piece).expect("groups are within the file, whose pieces are few")
    }

    /// The groups of a piece; the last may have fewer.
    pub(crate) fn groups_of(&self, piece: u32) -> Range<u64> {
        let start = u64::from(piece) * self.groups_per_piece;
        start..(start + self.groups_per_piece).min(self.groups)
    }

    /// The pieces that a run of groups touches.
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

/// Where a peer stands among those that receive the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    place: u32,
    receivers: u32,
}

impl Place {
    /// Of one that knows of no others.
    pub(crate) const ALONE: Self = Self { place: 0, receivers: 1 };

    /// The `place`-th of `receivers`, from 0; alone when that makes no sense.
    pub(crate) fn new(place: u32, receivers: u32) -> Self {
        if place < receivers { Self { place, receivers } } else { Self::ALONE }
    }

    /// The places of all receivers, in their order.
    pub(crate) fn all(self) -> impl Iterator<Item = Self> {
        (0..self.receivers).map(move |place| Self { place, ..self })
    }

    /// As far into `count` things as this place is into all places.
    pub(crate) fn of(self, count: usize) -> usize {
        count * self.place as usize / self.receivers as usize
    }
}

/// The state of a piece; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PieceState {
    Missing,
    Asked(RequestId),
    Doubled(RequestId, RequestId),
    Whole,
}

/// All pieces, and how many owners have each.
#[derive(Debug)]
pub(crate) struct Pieces {
    states: Vec<PieceState>,
    /// Owners that have the piece whole, without those that have everything.
    partial_owners: Vec<u32>,
    /// Owners that have everything.
    full_owners: u32,
    missing: u32,
    whole: u32,
}

impl Pieces {
    pub(crate) fn new(layout: &Layout) -> Self {
        let count = layout.pieces();
        Self {
            states: vec![PieceState::Missing; count as usize],
            partial_owners: vec![0; count as usize],
            full_owners: 0,
            missing: count,
            whole: 0,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.states.len()).expect("made from a u32")
    }

    /// Pieces that nobody is asked for.
    pub(crate) fn missing(&self) -> u32 {
        self.missing
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.whole == self.count()
    }

    pub(crate) fn state(&self, piece: u32) -> PieceState {
        self.states[piece as usize]
    }

    /// How many owners have the piece whole.
    pub(crate) fn owners(&self, piece: u32) -> u32 {
        self.full_owners + self.partial_owners[piece as usize]
    }

    /// How many owners have everything.
    pub(crate) fn full_owners(&self) -> u32 {
        self.full_owners
    }

    pub(crate) fn add_full_owner(&mut self) {
        self.full_owners += 1;
    }

    pub(crate) fn remove_full_owner(&mut self) {
        self.full_owners -= 1;
    }

    pub(crate) fn add_owner(&mut self, piece: u32) {
        self.partial_owners[piece as usize] += 1;
    }

    pub(crate) fn remove_owner(&mut self, piece: u32) {
        self.partial_owners[piece as usize] -= 1;
    }

    /// A request for (part of) the piece goes out. At most two may.
    pub(crate) fn ask(&mut self, piece: u32, request: RequestId) {
        let next = match self.state(piece) {
            PieceState::Missing => PieceState::Asked(request),
            PieceState::Asked(first) if first.owner != request.owner => PieceState::Doubled(first, request),
            state => {
                debug_assert!(false, "{request:?} for piece {piece}, which is {state:?}");
                state
            }
        };
        self.set(piece, next);
    }

    /// A request does not bring the piece any more.
    pub(crate) fn release(&mut self, piece: u32, request: RequestId) {
        let next = match self.state(piece) {
            PieceState::Asked(one) if one == request => PieceState::Missing,
            PieceState::Doubled(one, other) if one == request => PieceState::Asked(other),
            PieceState::Doubled(one, other) if other == request => PieceState::Asked(one),
            state => state,
        };
        self.set(piece, next);
    }

    /// All groups of the piece are proven. Returns the requests that were to bring it.
    pub(crate) fn complete(&mut self, piece: u32) -> [Option<RequestId>; 2] {
        let requests = match self.state(piece) {
            PieceState::Missing | PieceState::Whole => [None, None],
            PieceState::Asked(one) => [Some(one), None],
            PieceState::Doubled(one, other) => [Some(one), Some(other)],
        };
        self.set(piece, PieceState::Whole);
        requests
    }

    fn set(&mut self, piece: u32, next: PieceState) {
        let state = &mut self.states[piece as usize];
        self.missing -= u32::from(*state == PieceState::Missing);
        self.whole -= u32::from(*state == PieceState::Whole);
        self.missing += u32::from(next == PieceState::Missing);
        self.whole += u32::from(next == PieceState::Whole);
        *state = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::event::ProviderId;
    use super::*;

    fn request(owner: u32) -> RequestId {
        RequestId { owner: ProviderId(owner), serial: u64::from(owner) }
    }

    #[test]
    fn pieces_are_small_for_small_files_and_few_for_large_ones() {
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
    fn a_piece_is_asked_of_two_owners_at_most_and_comes_back() {
        let mut pieces = Pieces::new(&Layout::new(1 << 20));
        assert_eq!((pieces.count(), pieces.missing()), (4, 4));
        pieces.ask(1, request(1));
        pieces.ask(1, request(2));
        assert_eq!(pieces.missing(), 3);
        assert_eq!(pieces.state(1), PieceState::Doubled(request(1), request(2)));
        pieces.release(1, request(1));
        pieces.release(1, request(7));
        assert_eq!(pieces.state(1), PieceState::Asked(request(2)));
        pieces.release(1, request(2));
        assert_eq!(pieces.missing(), 4);
        pieces.ask(1, request(3));
        assert_eq!(pieces.complete(1), [Some(request(3)), None]);
        pieces.release(1, request(3));
        assert_eq!(pieces.state(1), PieceState::Whole);
        assert!(!pieces.is_finished());
    }

    proptest! {
        #[test]
        fn every_group_is_in_one_piece(size in 0u64..1 << 34, group in any::<prop::sample::Index>()) {
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
