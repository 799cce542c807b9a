//! Bounds that a figure must keep.

use serde::Serialize;

/// Bound of a figure, in the figure's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    AtLeast(f64),
    AtMost(f64),
}

impl Demand {
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}
