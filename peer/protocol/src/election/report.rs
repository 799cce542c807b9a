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

/// Why a forced election brought no new tracker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElectionFailure {
    /// Ask again when more peers answer.
    #[error("{votes} of {needed} votes needed")]
    NoMajority {
        /// Votes won.
        votes: u64,
        /// Votes needed.
        needed: u64,
    },
    /// Another peer was faster: there was an election, with another winner.
    #[error("another peer took the seat first (epoch {})", .0.epoch_high)]
    Lost(SeatView),
    /// Ask again when the nameserver is back.
    #[error("the nameserver does not answer")]
    NameserverUnreachable,
    /// The nameserver did not accept the claim.
    #[error("the nameserver refused: {0}")]
    Refused(String),
    /// Too many elections were asked for at once; wait for those.
    #[error("an election is under way already")]
    Busy,
    /// This peer is ending.
    #[error("this peer is ending")]
    Stopping,
}

/// Why a tracker is suspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// It was silent for `limits::SUSPICION`.
    Silent,
    /// Its connection closed or its port is dead.
    Unreachable,
    /// It says that it is not the tracker (any more).
    NotTracker,
    /// It said that it gives the seat up.
    Vacated,
}

/// Why a tracker stepped down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepDown {
    /// A higher epoch exists.
    HigherEpoch,
    /// Neither the lease nor a majority for `limits::DRAIN_AFTER`.
    Isolated,
    /// It slept (was frozen) past its lease.
    Stalled,
    /// Elected without the nameserver, in the same epoch as another.
    Conflict,
}

/// Why the tracker forgot a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// It said that it goes.
    Left,
    /// It was silent for `limits::PEER_SILENCE`.
    Silent,
}

/// Facts for logs, people and tests; nothing has to be done about them, save [`Report::Superseded`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// This peer holds the seat.
    BecameTracker {
        /// Its number.
        epoch: Epoch,
    },
    /// This peer was elected while the nameserver is away.
    BecameProvisional {
        /// Its number.
        epoch: Epoch,
    },
    /// This peer follows a tracker.
    Following(Seat),
    /// The tracker seems to be gone.
    TrackerSuspected {
        /// Who.
        seat: Seat,
        /// Why.
        why: Suspicion,
    },
    /// A suspected tracker answered after all.
    SuspicionLifted {
        /// Who.
        seat: Seat,
    },
    /// This peer stands for election.
    Candidate {
        /// For this epoch.
        epoch: Epoch,
        /// Votes needed, its own included; 1 when the seat is vacant.
        needed: u64,
    },
    /// An election was not won.
    ElectionFailed {
        /// Which.
        epoch: Epoch,
        /// Why.
        why: ElectionFailure,
    },
    /// This peer was tracker.
    SteppedDown {
        /// Of this epoch.
        epoch: Epoch,
        /// Why not any more.
        why: StepDown,
    },
    /// The tracker's index is complete as far as can be known.
    Settled {
        /// The tracker's epoch.
        epoch: Epoch,
        /// Peers that had not announced everything when the time was over.
        missing: usize,
        /// Members of the index besides this peer.
        members: usize,
        /// Announcements that were taken until then; without any, all that the peers have was known from before.
        announcements: usize,
    },
    /// The tracker has a new member.
    PeerJoined {
        /// Who.
        peer: PeerId,
    },
    /// The tracker forgot a peer and what it has.
    PeerGone {
        /// Who.
        peer: PeerId,
        /// Why.
        why: Departure,
    },
    /// The tracker did not take this peer's announcement; it is tried again later.
    AnnouncementRefused {
        /// Why.
        why: TrackerError,
    },
    /// Files beyond `limits::MAX_FILES_PER_PEER` are not shared.
    ShareFull {
        /// How many were left out.
        left_out: usize,
    },
    /// The process ran late; suspicions are lengthened.
    Stalled {
        /// How late.
        late: Duration,
    },
    /// A later run of this peer exists: this process must stop.
    Superseded,
}
