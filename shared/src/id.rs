//! Who speaks: a peer, and which run of it.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use certs::{InvalidPeerId, PeerId, Role};

/// One run of a peer's process: larger than that of every earlier run of the same peer.
///
/// `(peer, incarnation, seq)` orders a peer's announcements, so that what an earlier run still has in
/// flight never overwrites what a later run said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
