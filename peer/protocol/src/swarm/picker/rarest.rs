//! Rarest first, in runs, each receiver in its own part of the file first.
//!
//! Receivers that start together must not fetch the same pieces from the one owner there is: its uplink is what all of them
//! wait for. Each has a part of the file in which it begins, and goes on from piece to piece. Without a part (it knows of no other
//! receiver yet), or when nothing in it is as rare as elsewhere, it begins at a random place, and where it meets what another has
//! by now, that piece is not rare any more, so it jumps to a random place again. Random runs collide far less often than
//! random pieces: only jumps can collide.
//!
//! When its own part is out, a receiver does not simply go on with those of others: what all of them wait for is that the one
//! owner sends everything once, and what is under way to somebody else is not known here for some hundred milliseconds. It takes
//! from the ends of parts that are far from done, elsewhere than others who do the same, and leaves the rest alone (`of_others`).
//! (Legout, Urvoy-Keller and Michiardi, "Rarest first and choke algorithms are enough", IMC 2006.)

use crate::swarm::params::RESERVED_PIECES;

use super::{Choice, Pick, Picker};

#[derive(Debug)]
pub(crate) struct RarestFirst;

impl Picker for RarestFirst {
    fn pick(&self, choice: &Choice<'_>, rng: &mut fastrand::Rng) -> Pick {
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
        let Some(picked) = picked else { return Pick::Nothing };
        if home.is_none() && choice.is_divided() && choice.owner.has_all() && rarest == choice.pieces.full_owners() {
            return of_others(choice, picked);
        }
        let is_alike =
            |&piece: &u32| choice.pieces.owners(piece) == rarest && (home.is_none() || choice.is_home(piece));
        let goes_on = choice.following().filter(is_alike);
        // What fits one request anyway is not cut in two by beginning in its middle.
        let small = first.filter(|_| choice.is_alone() && alike <= choice.wanted);
        Pick::Piece(goes_on.or(small).or(home).unwrap_or(picked))
    }

    fn goes_on(&self, choice: &Choice<'_>, first: u32, next: u32) -> bool {
        choice.pieces.owners(next) <= choice.pieces.owners(first) && choice.is_home(next) == choice.is_home(first)
    }
}

/// Of what only owners of everything have, and other receivers are to fetch: the next piece. Each part's receiver keeps the
/// first half of what is left of it, into which it goes on. The places where several help out are as far from each other as
/// theirs; and one piece at a time is taken, so that the others know soon. What is kept is taken at `random` only when nothing
/// else comes: whoever was to fetch it may be slow.
fn of_others(choice: &Choice<'_>, random: u32) -> Pick {
    if !choice.owner.requests.is_empty() {
        return Pick::Later;
    }
    let rarest = choice.pieces.full_owners();
    let mut takeable = Vec::new();
    for place in choice.place.all() {
        let first = takeable.len();
        let is_left = |&piece: &u32| choice.is_open(piece) && choice.pieces.owners(piece) == rarest;
        takeable.extend(choice.layout.part(place).into_iter().flatten().filter(is_left));
        let left = takeable.len() - first;
        let kept = left.div_ceil(2).max(RESERVED_PIECES).min(left);
        takeable.drain(first..first + kept);
    }
    let goes_on = choice.following().filter(|piece| takeable.binary_search(piece).is_ok());
    match goes_on.or_else(|| takeable.get(choice.place.of(takeable.len())).copied()) {
        Some(piece) => Pick::Piece(piece),
        None if choice.is_hungry() => Pick::Piece(random),
        None => Pick::Later,
    }
}
