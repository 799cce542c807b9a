//! Reports, and the reasons in them.

use std::time::Duration;

use shared::{
    epoch::Epoch,
    id::PeerId,
    rpc::{
        nameserver::{Seat, SeatView},
        tracker::TrackerError,
    },
};

/// Reason why an election did not make this peer the tracker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElectionFailure {
    /// Too few votes; worth a retry when more peers answer.
    #[error("{votes} of {needed} votes needed")]
    NoMajority {
        /// Votes that count.
        votes: u64,
        /// Votes needed.
        needed: u64,
    },
    /// Another peer took the seat first.
    #[error("another peer took the seat first (epoch {})", .0.epoch_high)]
    Lost(SeatView),
    /// The nameserver does not answer; worth a retry when it does.
    #[error("the nameserver does not answer")]
    NameserverUnreachable,
    /// The nameserver did not accept the claim.
    #[error("the nameserver refused: {0}")]
    Refused(String),
    /// Too many requests for an election are waiting.
    #[error("an election is under way already")]
    Busy,
    /// This peer cannot store a vote, its own included.
    #[error("this peer cannot store its vote")]
    NotStored,
    /// This peer never stands for election.
    #[error("this peer runs for one command and does not stand for election")]
    NoCandidate,
    /// This peer is stopping.
    #[error("this peer is ending")]
    Stopping,
}

/// Reason to suspect the tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// No answer for `crate::election::params::SUSPICION`.
    Silent,
    /// Its connection was lost, or its port is closed.
    Unreachable,
    /// It answers that it is not the tracker.
    NotTracker,
    /// It gave the seat up.
    Vacated,
}

/// Reason why a tracker stepped down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepDown {
    /// A higher epoch was claimed.
    HigherEpoch,
    /// It had neither its lease nor a majority's heartbeats for `crate::election::params::DRAIN_AFTER`.
    Isolated,
    /// Its process stalled past its lease.
    Stalled,
    /// Another tracker was elected in the same epoch without the nameserver.
    Conflict,
    /// Its seat is vacant, and it cannot store the vote with which it would claim it again.
    NotStored,
}

/// Reason why the tracker removed a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// It left.
    Left,
    /// No heartbeat for `crate::election::params::PEER_SILENCE`.
    Silent,
}

/// Fact for logs and tests. Only [`Report::Superseded`] requires an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// This peer took the seat.
    BecameTracker {
        /// Epoch of the seat.
        epoch: Epoch,
    },
    /// This peer was elected while the nameserver is away.
    BecameProvisional {
        /// Epoch of the seat.
        epoch: Epoch,
    },
    /// This peer follows a new tracker.
    Following(Seat),
    /// This peer suspects its tracker.
    TrackerSuspected {
        /// Its seat.
        seat: Seat,
        /// The reason.
        why: Suspicion,
    },
    /// The suspected tracker answered.
    SuspicionLifted {
        /// Its seat.
        seat: Seat,
    },
    /// This peer stands for election.
    Candidate {
        /// Epoch stood for.
        epoch: Epoch,
        /// Votes needed, its own included; 1 for a vacant seat.
        needed: u64,
    },
    /// This peer did not win an election.
    ElectionFailed {
        /// Epoch stood for.
        epoch: Epoch,
        /// The reason.
        why: ElectionFailure,
    },
    /// This peer is no longer the tracker.
    SteppedDown {
        /// Epoch of its seat.
        epoch: Epoch,
        /// The reason.
        why: StepDown,
    },
    /// The tracker's index is complete as far as can be known.
    Settled {
        /// Epoch of the seat.
        epoch: Epoch,
        /// Count of peers whose share was not complete when the time was over.
        missing: usize,
        /// Count of members of the index besides this peer.
        members: usize,
        /// Count of announcements accepted until then; 0 when a standby's index was complete.
        announcements: usize,
    },
    /// The tracker has a new member.
    PeerJoined {
        /// The member.
        peer: PeerId,
    },
    /// The tracker removed a member and its files.
    PeerGone {
        /// The member.
        peer: PeerId,
        /// The reason.
        why: Departure,
    },
    /// The tracker refused this peer's announcement, which is retried later.
    AnnouncementRefused {
        /// The reason.
        why: TrackerError,
    },
    /// Files beyond `limits::MAX_FILES_PER_PEER` are not shared.
    ShareFull {
        /// Count of files left out.
        left_out: usize,
    },
    /// This process stalled; deadlines are extended.
    Stalled {
        /// Time past the deadline.
        late: Duration,
    },
    /// A later run of this peer exists, so this process must stop.
    Superseded,
}
