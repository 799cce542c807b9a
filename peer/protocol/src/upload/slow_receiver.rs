//! Whether the receiver of an upload takes so little that its slot is better given to those who wait.
//!
//! | what an upload took over the last [`SLOW_RECEIVER_SAMPLES`] looks | what it means |
//! |---|---|
//! | nothing | its receiver does not read, or has said of no room for a while (a receiver says so in steps of an eighth of a window) |
//! | less than a [`SLOW_RECEIVER_FRACTION`]th of what uploads took on the average | its path or its disk is slow, or it pretends |
//! | more | it makes use of its slot |
//!
//! Which of these it is cannot be told apart from here: one that drips on purpose looks like one on a bad link. So nothing is taken from
//! either but the slot ([`UploadQueue::park`](super::queue::UploadQueue::park)): the upload goes on beside the others. The measure
//! is what others take, not a rate: where this peer's own uplink or cap is slow, all are, and no more of them at a time would help.

use std::collections::VecDeque;

use crate::upload::params::SLOW_RECEIVER_SAMPLES;
use crate::upload::params::SLOW_RECEIVER_FRACTION;

/// What was seen of one upload; look at it every [`LOOK`](shared::limits::LOOK).
#[derive(Debug, Default)]
pub struct Taking {
    /// Bytes that it took and that all took, at the last looks, the oldest first.
    looks: VecDeque<(u64, u64)>,
}

impl Taking {
    /// Takes how many bytes the upload's stream took so far, how many those of all uploads did, and how many run. Tells whether it
    /// takes too little for a slot that others wait for.
    pub fn look(&mut self, taken: u64, by_all: u64, running: u64) -> bool {
        self.looks.push_back((taken, by_all));
        if self.looks.len() <= SLOW_RECEIVER_SAMPLES {
            return false;
        }
        let Some((taken_then, by_all_then)) = self.looks.pop_front() else { return false };
        let taken = taken.saturating_sub(taken_then);
        let average = by_all.saturating_sub(by_all_then) / running.max(1);
        taken == 0 || taken < average / SLOW_RECEIVER_FRACTION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKS: u64 = SLOW_RECEIVER_SAMPLES as u64;

    /// At which of a hundred looks an upload that takes `mine` a look is too slow, when seven others take `theirs`.
    fn too_slow_at(mine: impl Fn(u64) -> u64, theirs: u64) -> Option<u64> {
        let mut taking = Taking::default();
        let mut taken = 0;
        (0..100).find(|&look| {
            taken += mine(look);
            taking.look(taken, taken + 7 * theirs * look, 8)
        })
    }

    #[test]
    fn one_that_takes_nothing_is_noticed_after_some_looks_even_when_nobody_takes_anything() {
        assert_eq!(too_slow_at(|_| 0, 0), Some(LOOKS));
        assert_eq!(too_slow_at(|_| 0, 1 << 20), Some(LOOKS));
        // When less than a sixteenth of what it took before is in the window still.
        let stops = too_slow_at(|look| if look < 50 { 1 << 20 } else { 0 }, 1 << 20);
        assert!(stops.is_some_and(|look| (50 + LOOKS - 3..50 + LOOKS).contains(&look)), "{stops:?}");
    }

    #[test]
    fn one_that_drips_is_noticed_where_others_take_more() {
        assert_eq!(too_slow_at(|look| u64::from(look % 10 == 0), 1 << 20), Some(LOOKS));
        assert_eq!(too_slow_at(|_| 4 << 10, 1 << 20), Some(LOOKS));
    }

    #[test]
    fn one_that_is_as_slow_as_all_or_not_much_slower_keeps_its_slot() {
        assert_eq!(too_slow_at(|_| 500, 500), None, "a slow uplink");
        assert_eq!(too_slow_at(|_| 100 << 10, 1 << 20), None);
        // In steps, as windows open.
        assert_eq!(too_slow_at(|look| if look % (LOOKS / 2) == 0 { 3 << 19 } else { 0 }, 1 << 20), None);
    }
}
