//! Which of the missing pieces an owner is asked for next.
//!
//! To add one: a file beside this, a variant of [`PickerKind`], a line in [`PickerKind::build`]; the tests below
//! run on every kind.

mod rarest;
mod sequential;

use std::{collections::BTreeMap, fmt, ops::Range};

use shared::time::Timestamp;

use super::{
    event::ProviderId,
    piece::{Layout, PieceState, Pieces, Place},
    provider::Owner,
};

/// The ways to pick pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PickerKind {
    /// What fewest owners have, so that nothing is lost with an owner and receivers have something to exchange.
    #[default]
    RarestFirst,
    /// From the beginning to the end, for those who read while it comes.
    Sequential,
}

impl PickerKind {
    pub(crate) fn build(self) -> Box<dyn Picker> {
        match self {
            Self::RarestFirst => Box::new(rarest::RarestFirst),
            Self::Sequential => Box::new(sequential::Sequential),
        }
    }
}

/// Picks pieces.
pub(crate) trait Picker: fmt::Debug + Send {
    /// The piece with which the next request to the owner begins, out of those for which [`Choice::is_open`];
    /// [`Pick::Nothing`] only when there is none.
    fn pick(&self, choice: &Choice<'_>, rng: &mut fastrand::Rng) -> Pick;

    /// Whether a request that began with `first` may go on with `next`, which is open as well.
    fn goes_on(&self, choice: &Choice<'_>, first: u32, next: u32) -> bool;
}

/// What an owner is asked for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pick {
    Piece(u32),
    /// Nothing for now: what it could be asked for is better left to other receivers.
    Later,
    /// It has nothing that is open.
    Nothing,
}

/// What there is to pick from, for one owner.
pub(crate) struct Choice<'a> {
    pub(crate) pieces: &'a Pieces,
    pub(crate) owner: &'a Owner,
    pub(crate) layout: Layout,
    pub(crate) place: Place,
    /// This peer's part of what receivers divide among themselves; `None` as long as it knows of no others.
    pub(crate) home: Option<Range<u32>>,
    pub(crate) now: Timestamp,
    /// All that are known, this one among them.
    pub(crate) owners: &'a BTreeMap<ProviderId, Owner>,
    /// About how many pieces the request will have.
    pub(crate) wanted: u64,
}

impl Choice<'_> {
    /// Whether nobody is asked for the piece and this owner has it.
    pub(crate) fn is_open(&self, piece: u32) -> bool {
        self.pieces.state(piece) == PieceState::Missing && self.owner.has_piece(piece)
    }

    /// Whether it is the only owner.
    pub(crate) fn is_alone(&self) -> bool {
        self.owners.len() == 1
    }

    /// No other owner brings anything just now, or what they bring has kept this one from being asked for long. Goes through all owners.
    pub(crate) fn is_hungry(&self) -> bool {
        self.owner.was_left_for_long(self.now) || !self.owners.values().any(|owner| owner.is_at_work(self.now))
    }

    /// Whether there are parts.
    pub(crate) fn is_divided(&self) -> bool {
        self.home.is_some()
    }

    /// Whether the piece is in a part that is this peer's own.
    pub(crate) fn is_home(&self, piece: u32) -> bool {
        self.home.as_ref().is_some_and(|home| home.contains(&piece))
    }

    /// The open pieces, ascending.
    pub(crate) fn open(&self) -> impl Iterator<Item = u32> {
        (0..self.pieces.count()).filter(|&piece| self.is_open(piece))
    }

    /// The piece behind the last request to this owner, if it is open: what an owner reads on, it reads fastest.
    pub(crate) fn following(&self) -> Option<u32> {
        self.owner.next_piece.filter(|&piece| piece < self.pieces.count() && self.is_open(piece))
    }
}
