//! Faults of the tracker, and the demands on the failover from each.

use clap::ValueEnum;

/// Fault that the tracker suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// SIGKILL
    Killed,
    /// SIGSTOP, then SIGCONT when there is another tracker
    Frozen,
    /// Its host is disconnected from the network; needs root
    CutOff,
    /// SIGTERM
    Left,
}

impl Fault {
    /// Upper bounds of the median and the 99th percentile, milliseconds.
    pub fn demands(self) -> (f64, Option<f64>) {
        match self {
            Self::Killed => (150.0, Some(500.0)),
            Self::Frozen | Self::CutOff => (800.0, Some(1500.0)),
            Self::Left => (50.0, None),
        }
    }
}
