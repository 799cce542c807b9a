//! How far a swarm is, and how its owners do.

use std::time::Duration;

use shared::time::Timestamp;

use super::{Swarm, event::ProviderId, provider::Owner};

/// How far a swarm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Something is asked for, or will be when an owner's wait is over.
    Running,
    /// Told to ask for nothing.
    Paused,
    /// Nobody who is left can deliver what is missing.
    Stuck,
    /// Every group is proven.
    Finished,
}

/// A swarm's progress.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// How far it is.
    pub standing: Standing,
    /// Size of the version, bytes.
    pub bytes: u64,
    /// Bytes that are proven, those of earlier runs included.
    pub bytes_proven: u64,
    /// Bytes asked for and not here yet.
    pub bytes_asked: u64,
    /// Bytes that came though they were there already: the price of endgame and stealing.
    pub bytes_twice: u64,
    /// Rates of the owners that are asked for something, together, bytes a second.
    pub bytes_per_second: f64,
}

/// One owner, for `status` and `--explain`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnerStatus {
    /// Who.
    pub owner: ProviderId,
    /// Until when it is left alone: it was busy or failed.
    pub waiting_until: Option<Timestamp>,
    /// It has nothing (more) that is wanted of it.
    pub is_idle: bool,
    /// Whether it has the whole version.
    pub has_all: bool,
    /// Measured while it was asked for something; `None` before that.
    pub bytes_per_second: Option<f64>,
    /// Round-trip time, as told or assumed.
    pub rtt: Duration,
    /// For how long it has brought nothing although it was asked, beyond a round trip.
    pub quiet: Duration,
    /// Requests under way.
    pub requests: usize,
    /// Bytes asked of it and not here yet.
    pub bytes_asked: u64,
    /// Bytes proven of it.
    pub bytes_proven: u64,
    /// Of those, bytes that were there already.
    pub bytes_twice: u64,
}

impl Swarm {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        let busy = || self.owners.values().filter(|owner| !owner.requests.is_empty());
        Progress {
            standing: self.standing,
            bytes: self.layout.size(),
            bytes_proven: self.bytes_proven,
            bytes_asked: busy().map(Owner::backlog_bytes).sum(),
            bytes_twice: self.bytes_twice,
            bytes_per_second: busy().filter_map(Owner::rate).sum(),
        }
    }

    /// The owners that are not dropped, by number.
    pub fn owners(&self, now: Timestamp) -> impl Iterator<Item = OwnerStatus> {
        self.owners.iter().map(move |(&id, owner)| OwnerStatus {
            owner: id,
            waiting_until: owner.waiting_until(),
            is_idle: owner.starved && owner.requests.is_empty(),
            has_all: owner.has_all(),
            bytes_per_second: owner.rate(),
            rtt: owner.rtt(),
            quiet: owner.quiet(now),
            requests: owner.requests.len(),
            bytes_asked: owner.backlog_bytes(),
            bytes_proven: owner.bytes,
            bytes_twice: owner.bytes_twice,
        })
    }
}
