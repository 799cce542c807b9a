//! Rarest first, in runs.
//!
//! Receivers that start together must not fetch the same pieces from the one owner there is: each begins at a random
//! place and goes on from there, and where it meets what another has by now, that piece is not rare any more, so it
//! jumps to a random place again. Random runs collide far less often than random pieces: only jumps can collide.
//! (Legout, Urvoy-Keller and Michiardi, "Rarest first and choke algorithms are enough", IMC 2006.)

use super::{Choice, Picker};

#[derive(Debug)]
pub(super) struct RarestFirst;

impl Picker for RarestFirst {
    fn pick(&self, choice: &Choice<'_>, rng: &mut fastrand::Rng) -> Option<u32> {
        let mut rarest = u32::MAX;
        let mut first = None;
        let mut picked = None;
        let mut alike = 0;
        for piece in choice.open() {
            let owners = choice.pieces.owners(piece);
            if owners > rarest {
                continue;
            }
            if owners < rarest {
                (rarest, alike, first) = (owners, 0, Some(piece));
            }
            alike += 1;
            // Each of those alike is picked with the same probability (reservoir sampling, Knuth vol. 2, 3.4.2).
            if rng.u64(..alike) == 0 {
                picked = Some(piece);
            }
        }
        let goes_on = choice.following().filter(|&piece| choice.pieces.owners(piece) == rarest);
        // What fits one request anyway is not cut in two by beginning in its middle.
        let small = first.filter(|_| choice.is_alone && alike <= choice.wanted);
        goes_on.or(small).or(picked)
    }

    fn goes_on(&self, choice: &Choice<'_>, first: u32, next: u32) -> bool {
        choice.pieces.owners(next) <= choice.pieces.owners(first)
    }
}
