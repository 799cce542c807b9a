//! From the beginning to the end.

use super::{Choice, Picker};

#[derive(Debug)]
pub(super) struct Sequential;

impl Picker for Sequential {
    fn pick(&self, choice: &Choice<'_>, _rng: &mut fastrand::Rng) -> Option<u32> {
        choice.open().next()
    }

    fn goes_on(&self, _choice: &Choice<'_>, _first: u32, _next: u32) -> bool {
        true
    }
}
