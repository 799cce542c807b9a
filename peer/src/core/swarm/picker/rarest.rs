//! Rarest first, in runs, each receiver in its own part of the file first.
//!
//! Receivers that start together must not fetch the same pieces from the one owner there is: its uplink is what all of them
//! wait for. Each has a part of the file in which it begins, and goes on from piece to piece. Without a part (it knows of no other
//! receiver yet), or when nothing in it is as rare as elsewhere, it begins at a random place, and where it meets what another has
//! by now, that piece is not rare any more, so it jumps to a random place again. Random runs collide far less often than
//! random pieces: only jumps can collide.
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
        let mut home = None;
        for piece in choice.open() {
            let owners = choice.pieces.owners(piece);
            if owners > rarest {
                continue;
            }
            if owners < rarest {
                (rarest, alike, first, home) = (owners, 0, Some(piece), None);
            }
            alike += 1;
            if home.is_none() && choice.is_home(piece) {
                home = Some(piece);
            }
            // Each of those alike is picked with the same probability (reservoir sampling, Knuth vol. 2, 3.4.2).
            if rng.u64(..alike) == 0 {
                picked = Some(piece);
            }
        }
        let is_alike =
            |&piece: &u32| choice.pieces.owners(piece) == rarest && (home.is_none() || choice.is_home(piece));
        let goes_on = choice.following().filter(is_alike);
        // What fits one request anyway is not cut in two by beginning in its middle.
        let small = first.filter(|_| choice.is_alone && alike <= choice.wanted);
        goes_on.or(small).or(home).or(picked)
    }

    fn goes_on(&self, choice: &Choice<'_>, first: u32, next: u32) -> bool {
        choice.pieces.owners(next) <= choice.pieces.owners(first) && choice.is_home(next) == choice.is_home(first)
    }
}
