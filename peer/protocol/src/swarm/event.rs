//! Input and output of the scheduler.

use std::{fmt, ops::Range, time::Duration};

use shared::group_ranges::GroupRanges;

/// Number of a provider within one download. The shell assigns one number to one peer for the whole download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProviderId(pub u32);

impl fmt::Display for ProviderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "provider {}", self.0)
    }
}

/// One request to one provider, which is one bulk stream. It names its provider so that a late report of a cancelled
/// request can still be attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// Receiver of the request.
    pub provider: ProviderId,
    /// Number that is never reused within a swarm.
    pub serial: u64,
}

/// Groups that a provider has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Has {
    /// The whole version.
    All,
    /// These groups, possibly none (yet).
    Groups(GroupRanges),
}

/// Reason why a request ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The provider sent bytes that are not the version's. It is dropped for the rest of the download.
    SentCorruptData,
    /// The provider has different content now. It is dropped until it is added again.
    Changed,
    /// The provider does not have the version (any more). It is dropped until it is added again.
    NotHere,
    /// The provider refuses this request permanently. It is dropped until it is added again.
    Refused,
    /// The provider has no upload slot and no place in its queue. Its requests in flight continue.
    Busy {
        /// Minimum wait that the provider asks for.
        retry_after: Option<Duration>,
    },
    /// The provider sent nothing for too long, as measured by the shell.
    Silent,
    /// The stream or the connection broke, or could not be opened.
    Broken,
}

/// Input of [`super::Swarm::handle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A provider joins, or joins again: its failures and waits are cleared, unless it sent corrupt data.
    ProviderAdded {
        /// New provider.
        provider: ProviderId,
        /// Groups that it has.
        has: Has,
        /// Round-trip time of its connection, if there is one.
        rtt: Option<Duration>,
    },
    /// A provider has more groups than before.
    ProviderGained {
        /// Provider that reports them.
        provider: ProviderId,
        /// Groups that it gained.
        gained: GroupRanges,
    },
    /// A provider left. Its requests are over; the shell need not report them.
    ProviderLost {
        /// Provider that left.
        provider: ProviderId,
    },
    /// This peer is receiver `rank` (from 0) of `receivers` that fetch the version now, in an order on which all of
    /// them agree. The rank determines this peer's partition of what only one provider has, so that the provider's
    /// uplink carries each byte once.
    Ranked {
        /// Less than `receivers`.
        rank: u32,
        /// Number of receivers, including this one.
        receivers: u32,
    },
    /// A provider is active although no group is verified yet: bytes arrive or it reports that the request is queued.
    Activity {
        /// Active provider.
        provider: ProviderId,
        /// Round-trip time, if measured since the last report.
        rtt: Option<Duration>,
    },
    /// The first bytes of a request arrived. Cancelling it from now on wastes what the provider has sent.
    RequestStarted {
        /// Request that started.
        request: RequestId,
    },
    /// Groups of a request are verified and stored, in order and without gaps within one request. A request whose
    /// wanted groups are all verified is over. Groups of cancelled requests count as well.
    Verified {
        /// Request that delivered the groups.
        request: RequestId,
        /// Verified groups.
        groups: Range<u64>,
    },
    /// The stream of a request ended regularly, or reached the group at which it was truncated. A no-op for a request
    /// that is over; a failure while wanted groups are missing.
    RequestDone {
        /// Request that ended.
        request: RequestId,
    },
    /// A request ended early. Its verified groups remain.
    RequestFailed {
        /// Request that ended.
        request: RequestId,
        /// Reason.
        why: Failure,
    },
    /// [`super::Swarm::next_deadline`] has passed.
    Tick,
}

/// Reason why a provider is no longer used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// It sent corrupt data. The only reason that lasts for the whole download.
    SentCorruptData,
    /// It has different content now.
    Changed,
    /// It does not have the version.
    NotHere,
    /// It refuses to serve.
    Refused,
    /// It failed [`crate::provider_health::MAX_PROVIDER_FAILURES`] times in a row without a verified group in between.
    Failing,
    /// There are [`super::params::MAX_SWARM_PROVIDERS`] already. It may be added when one is lost.
    TooMany,
}

/// Output of [`super::Swarm::handle`], to be carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a bulk stream and request these groups. Arriving groups are reported as [`Event::Verified`].
    Request {
        /// Identifies the request in reports.
        request: RequestId,
        /// One run of groups, not empty.
        groups: Range<u64>,
    },
    /// Stop reading a request's stream at a group that is still ahead, then close it. The request is over once the
    /// groups before are verified; like any other, it is then reported once with [`Event::RequestDone`].
    Truncate {
        /// Request to shorten.
        request: RequestId,
        /// First group that is no longer wanted.
        at_group: u64,
    },
    /// Close a request's stream now. The request is over and its end need not be reported; groups that are verified
    /// already may be.
    Cancel {
        /// Request to close.
        request: RequestId,
    },
    /// A provider is no longer used. Separate [`Action::Cancel`]s end its requests.
    Drop {
        /// Provider that is dropped.
        provider: ProviderId,
        /// Reason.
        why: Dropped,
    },
    /// No remaining provider has any of what is missing. The download continues when one does. The shell bounds that
    /// wait, measured from this action: dropping the last provider may have taken long.
    Stuck,
    /// All groups are verified. Emitted once.
    Finished,
}
