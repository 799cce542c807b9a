//! What a swarm is told and what it wants done.

use std::{fmt, ops::Range, time::Duration};

use shared::group_ranges::GroupRanges;

/// An owner as the shell numbers it: one number for one peer, as long as the download lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderId(pub u32);

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {}", self.0)
    }
}

/// One request to one owner, that is one bulk stream. It carries its owner so that a late report, of a request that
/// was cancelled in the meantime, still tells whom it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Who is asked.
    pub owner: ProviderId,
    /// Never reused within a swarm.
    pub serial: u64,
}

/// What an owner has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Has {
    /// The whole version.
    All,
    /// These groups, possibly none (yet).
    Groups(GroupRanges),
}

/// Why a request brought no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The owner sent bytes that are not the version's. It is never asked again.
    Lied,
    /// The owner has another content now. It is never asked again, unless it is added anew.
    Changed,
    /// The owner does not have the version (any more). As [`Failure::Changed`].
    NotHere,
    /// The owner will not serve this request whatever comes. As [`Failure::Changed`].
    Refused,
    /// The owner serves as many as it can; its requests under way go on.
    Busy {
        /// How long it wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// The owner said nothing for too long, as the shell measured it.
    Silent,
    /// The stream or the connection broke, or could not be opened.
    Broken,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An owner is there, or there again: what was held against it is forgotten, except a lie.
    ProviderAdded {
        /// Who.
        owner: ProviderId,
        /// What it has.
        has: Has,
        /// Round-trip time of its connection, if there is one.
        rtt: Option<Duration>,
    },
    /// An owner has more than it had.
    ProviderGained {
        /// Who.
        owner: ProviderId,
        /// What came to it.
        gained: GroupRanges,
    },
    /// An owner is gone. Its requests are over; the shell need not report them.
    ProviderLost {
        /// Who.
        owner: ProviderId,
    },
    /// This peer is at `place` (from 0) of `receivers` that fetch the content now, in an order in which all of them see
    /// themselves. What only one owner has they divide among themselves by it, so that its uplink carries it once.
    Placed {
        /// Less than `receivers`.
        place: u32,
        /// This one included.
        receivers: u32,
    },
    /// Bytes come from an owner though no group is proven yet: it is not silent, whatever this peer's disk does.
    Heard {
        /// Who.
        owner: ProviderId,
        /// Its round-trip time, if measured since.
        rtt: Option<Duration>,
    },
    /// An owner begins to send what a request asked for: what is given up of it from now on has been sent for nothing.
    Begun {
        /// Which request.
        request: RequestId,
    },
    /// Groups of a request are proven and kept, in order and without gaps within one request. A request all of whose
    /// groups are proven is done. Also counts for requests that were cancelled.
    Verified {
        /// Of which request.
        request: RequestId,
        /// Which groups.
        groups: Range<u64>,
    },
    /// A request ended as an owner wanted it to end. Before its last group this is a failure.
    RequestDone {
        /// Which.
        request: RequestId,
    },
    /// A request ended early. What was proven of it stays.
    RequestFailed {
        /// Which.
        request: RequestId,
        /// Why.
        why: Failure,
    },
    /// [`super::Swarm::next_deadline`] has come.
    Tick,
    /// Ask for nothing until [`Event::Resume`].
    Pause,
    /// Go on.
    Resume,
}

/// Why an owner is asked for nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It sent wrong bytes: blame it by name. The one thing that is never forgiven.
    Lied,
    /// It has another content now.
    Changed,
    /// It does not have the version.
    NotHere,
    /// It will not serve.
    Refused,
    /// It failed [`crate::provider_health::MAX_PROVIDER_FAILURES`] times in a row, without a proven group in between.
    Failing,
    /// There are [`crate::swarm::params::MAX_SWARM_PROVIDERS`] already. It may be added when one is lost.
    TooMany,
}

/// What the shell is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a bulk stream and ask for these groups. What comes is reported as [`Event::Verified`].
    Request {
        /// Names it in reports.
        request: RequestId,
        /// Which groups: one run, not empty.
        groups: Range<u64>,
    },
    /// Stop reading a request's stream at a group that is still ahead, then close it. It is done when the groups before
    /// are proven.
    Truncate {
        /// Which request.
        request: RequestId,
        /// The first group that is not wanted from it any more.
        at_group: u64,
    },
    /// Close a request's stream now. Groups of it that are proven already may still be reported.
    Cancel {
        /// Which request.
        request: RequestId,
    },
    /// An owner is asked for nothing any more; its requests are cancelled by actions of their own.
    Drop {
        /// Who.
        owner: ProviderId,
        /// Why.
        why: Dropped,
    },
    /// Nobody who is left can deliver what is missing. It goes on by itself when somebody comes who can. How long that is waited for is
    /// the shell's to say: from now on, whenever a group came last (the last owner may have taken long to be given up).
    Stuck,
    /// Every group is proven. Said once.
    Finished,
}
