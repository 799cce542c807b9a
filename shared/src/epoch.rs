//! The number of a tracker seat.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::PROVISIONAL_EPOCHS;

/// The number of a tracker seat: rises with every accepted claim and is never used twice.
///
/// Multiples of [`PROVISIONAL_EPOCHS`] are for trackers that were elected while the nameserver was away; they keep
/// theirs when they register. `Epoch::NONE` (0) stands for "no seat was ever claimed"; the first tracker has epoch 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before the first seat.
    pub const NONE: Self = Self(0);

    /// The next epoch that is claimed from the nameserver. Saturates: 2^64 elections do not happen.
    pub fn next(self) -> Self {
        let next = Self(self.0.saturating_add(1));
        if next.is_provisional() { Self(next.0.saturating_add(1)) } else { next }
    }

    /// The next epoch that is won by votes alone.
    pub fn next_provisional(self) -> Self {
        Self((self.0 / PROVISIONAL_EPOCHS).saturating_add(1).saturating_mul(PROVISIONAL_EPOCHS))
    }

    /// Whether it is won by votes alone.
    pub fn is_provisional(self) -> bool {
        self != Self::NONE && self.0.is_multiple_of(PROVISIONAL_EPOCHS)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_ways_to_an_epoch_never_meet() {
        for number in 0..300 {
            let epoch = Epoch(number);
            let (claimed, elected) = (epoch.next(), epoch.next_provisional());
            assert!(claimed > epoch && !claimed.is_provisional());
            assert!(elected > epoch && elected.is_provisional());
        }
        assert_eq!(
            (Epoch(63).next(), Epoch(64).next(), Epoch(64).next_provisional()),
            (Epoch(65), Epoch(65), Epoch(128))
        );
    }
}
