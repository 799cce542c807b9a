//! Identity of a peer and of one run of its process.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use certs::{InvalidPeerId, PeerId, Role};

/// Number of one run of a peer's process, larger than that of every earlier run of the same peer.
///
/// `(peer, incarnation, seq)` orders a peer's announcements, so a delayed announcement of an earlier run never
/// overwrites one of a later run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
