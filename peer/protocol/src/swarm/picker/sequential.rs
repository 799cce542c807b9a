//! From the beginning to the end.

use super::{Choice, Pick, Picker};

#[derive(Debug)]
pub(crate) struct Sequential;

impl Picker for Sequential {
    fn pick(&self, choice: &Choice<'_>, _rng: &mut fastrand::Rng) -> Pick {
        choice.open().next().map_or(Pick::Nothing, Pick::Piece)
    }

    fn goes_on(&self, _choice: &Choice<'_>, _first: u32, _next: u32) -> bool {
        true
    }
}
