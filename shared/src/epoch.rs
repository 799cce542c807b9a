//! Epochs of the tracker seat.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::PROVISIONAL_EPOCHS;

/// Number of one tenure of the tracker seat. It rises with every accepted claim and is never reused.
///
/// Multiples of [`PROVISIONAL_EPOCHS`] belong to trackers that were elected while the nameserver was unreachable. Such
/// a tracker keeps its epoch when it registers. `Epoch::NONE` (0) means that the seat was never claimed; the first
/// tracker has epoch 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Value before the first claim.
    pub const NONE: Self = Self(0);

    /// Returns the next epoch to claim from the nameserver. Saturates at `u64::MAX`.
    pub fn next(self) -> Self {
        let next = Self(self.0.saturating_add(1));
        if next.is_provisional() { Self(next.0.saturating_add(1)) } else { next }
    }

    /// Returns the next epoch for an election without the nameserver.
    pub fn next_provisional(self) -> Self {
        Self((self.0 / PROVISIONAL_EPOCHS).saturating_add(1).saturating_mul(PROVISIONAL_EPOCHS))
    }

    /// Returns true for an epoch that an election without the nameserver uses.
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
    fn claimed_and_provisional_epochs_are_disjoint() {
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
