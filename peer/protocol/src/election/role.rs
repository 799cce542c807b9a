//! Roles of a peer: in detail, and as users and other modules see them.

use serde::{Deserialize, Serialize};

/// Role of a peer in detail, for tests and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It follows a tracker, or searches for one.
    Follower,
    /// It suspects its tracker.
    Suspect,
    /// It asks for votes.
    Candidate,
    /// It asks the nameserver for the seat.
    Claiming,
    /// It holds the seat.
    Tracker,
    /// It gives the seat up before it stops.
    Leaving,
}

/// Role of a peer as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeatRole {
    /// It holds the seat.
    Tracker,
    /// It follows the tracker.
    Follower,
    /// It has no tracker, or takes part in an election.
    Electing,
}

impl SeatRole {
    /// Text for the user interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Follower => "follower",
            Self::Electing => "electing",
        }
    }
}
