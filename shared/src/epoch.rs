//! The number of a tracker seat.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a tracker seat: rises with every accepted claim and is never used twice.
///
/// `Epoch::NONE` (0) stands for "no seat was ever claimed"; the first tracker has epoch 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before the first seat.
    pub const NONE: Self = Self(0);

    /// The epoch after this one. Saturates: 2^64 elections do not happen.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
