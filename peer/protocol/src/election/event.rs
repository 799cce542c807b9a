//! Events, which go into the core, and actions, which come out of it.

use serde::{Deserialize, Serialize};
use shared::{
    contact::Contact,
    content::FileMeta,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    rpc::{
        nameserver::{Claim, ClaimError, Seat, SeatGrant, SeatView},
        peer::{SeatNotice, VoteReply, VoteRequest},
        tracker::{Announcement, Heartbeat, HeartbeatAck, TrackerError},
    },
};

use super::{ElectionFailure, Report};
use crate::CallId;

/// State that must survive a crash. [`Action::Persist`] stores it; the next run starts with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DurableState {
    /// Last vote given, to this peer itself included: one vote per epoch, across restarts (invariant S3).
    pub voted: Option<Vote>,
    /// Highest epoch known to have been claimed: the epoch that a peer follows never falls (invariant S5).
    pub epoch_high: Epoch,
}

/// A vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Epoch of the vote.
    pub epoch: Epoch,
    /// Peer that the vote is for.
    pub candidate: PeerId,
}

/// Id of a request that [`Action::Reply`] answers. The caller of the core chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Reason why a call was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallFailure {
    /// No answer within the call's deadline: the callee may be slow, suspended, cut off or gone.
    #[error("no answer in time")]
    NoAnswer,
    /// The connection was refused, reset or closed, or the callee has another identity.
    #[error("unreachable")]
    Unreachable,
}

/// Reason why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// The call was not answered.
    #[error(transparent)]
    Failed(#[from] CallFailure),
    /// The callee refused.
    #[error("refused")]
    Refused(E),
}

/// Event for [`super::Core::handle`]. The caller of the core has authenticated every `from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// [`super::Core::next_deadline`] has passed.
    Tick,

    /// Outcome of [`Action::QuerySeat`].
    SeatAnswered {
        /// The call.
        call: CallId,
        /// The nameserver's view of the seat.
        result: Result<SeatView, CallFailure>,
    },
    /// Outcome of [`Action::QueryPeers`].
    PeersAnswered {
        /// The call.
        call: CallId,
        /// All registered `peer.*`, this peer included. The core takes `limits::MAX_PEERS` of them at most.
        result: Result<Vec<Contact>, CallFailure>,
    },
    /// Current list of all registered `peer.*`, from a watch of the names.
    PeersWatched {
        /// The peers, this one included. The core takes `limits::MAX_PEERS` of them at most.
        peers: Vec<Contact>,
    },
    /// Peers of the network as an earlier run knew them. They serve until the nameserver's first list.
    PeersRemembered {
        /// The peers. The core takes `limits::MAX_PEERS` of them at most.
        peers: Vec<Contact>,
    },
    /// The seat changed at the nameserver.
    SeatChanged,
    /// Outcome of [`Action::Claim`].
    ClaimAnswered {
        /// The call.
        call: CallId,
        /// The grant, or the reason why there is none.
        result: Result<SeatGrant, CallError<ClaimError>>,
    },
    /// Outcome of [`Action::RenewSeat`].
    RenewalAnswered {
        /// The call.
        call: CallId,
        /// The extended grant, or the reason why there is none.
        result: Result<SeatGrant, CallError<ClaimError>>,
    },
    /// Outcome of [`Action::Resign`].
    ResignAnswered {
        /// The call.
        call: CallId,
        /// Success, or the reason why the seat was not given up.
        result: Result<(), CallError<ClaimError>>,
    },

    /// Outcome of [`Action::SendHeartbeat`].
    HeartbeatAnswered {
        /// The call.
        call: CallId,
        /// Callee.
        from: PeerId,
        /// Its answer.
        result: Result<HeartbeatAck, CallError<TrackerError>>,
    },
    /// Outcome of [`Action::SendAnnouncement`].
    AnnouncementAnswered {
        /// The call.
        call: CallId,
        /// Callee.
        from: PeerId,
        /// Its answer.
        result: Result<(), CallError<TrackerError>>,
    },
    /// The connection to a peer was closed or reset. The event may concern any peer; it matters when that is the
    /// tracker.
    ConnectionLost {
        /// Other end of the connection.
        peer: PeerId,
    },
    /// A probe, [`Action::ProbePort`], was refused: the machine answers that the port is closed. (A probe without an
    /// answer means nothing and is not reported.)
    ProbeRefused {
        /// Probed peer and endpoint.
        at: Contact,
    },
    /// Outcome of [`Action::RequestVote`].
    VoteAnswered {
        /// The call.
        call: CallId,
        /// Voter.
        from: PeerId,
        /// Its answer.
        result: Result<VoteReply, CallFailure>,
    },
    /// Answer to [`Action::SendNotice`]. (A notice that fails is not reported.)
    NoticeAnswered {
        /// Callee.
        from: PeerId,
        /// Its view of the seat.
        view: SeatView,
    },

    /// `PeerService::request_vote` was called. The reply, [`Reply::Vote`], may be deferred.
    VoteRequested {
        /// Token of the reply.
        token: Token,
        /// Candidate.
        from: PeerId,
        /// Its request.
        request: VoteRequest,
    },

    /// This peer's share changed. The first such event carries the share at the start.
    ShareChanged {
        /// Files added or replaced.
        upserts: Vec<FileMeta>,
        /// Names removed.
        removals: Vec<FileName>,
    },
    /// The user requests an election (`eleger`). The reply is [`Reply::Elected`].
    ElectionRequested {
        /// Token of the reply.
        token: Token,
    },
    /// The latest state, [`super::Core::durable`], was stored after [`super::Core::on_persist_failed`].
    Persisted,
    /// This process is to stop. [`Action::Stopped`] follows when the core is done.
    Shutdown,
}

/// Action to execute, strictly in order: actions behind an [`Action::Persist`] wait until the state is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes the state durable. If that fails, [`super::Core::on_persist_failed`] is called, and of the actions behind
    /// this one only those are executed that [`Action::without_durability`] leaves.
    Persist(DurableState),

    /// Asks the nameserver for the seat.
    QuerySeat {
        /// The call.
        call: CallId,
    },
    /// Asks the nameserver for all `peer.*`.
    QueryPeers {
        /// The call.
        call: CallId,
    },
    /// Claims the seat.
    Claim {
        /// The call.
        call: CallId,
        /// The claim.
        claim: Claim,
    },
    /// Extends the lease of the seat.
    RenewSeat {
        /// The call.
        call: CallId,
        /// Epoch of the seat.
        epoch: Epoch,
    },
    /// Gives the seat up.
    Resign {
        /// The call.
        call: CallId,
        /// Epoch of the seat.
        epoch: Epoch,
    },

    /// Sends a heartbeat to the tracker or a standby; deadline `limits::HEARTBEAT_DEADLINE`.
    SendHeartbeat {
        /// The call.
        call: CallId,
        /// Callee.
        to: Contact,
        /// The heartbeat.
        beat: Heartbeat,
    },
    /// Probes whether the tracker's port is closed, without a message to the tracker.
    ProbePort {
        /// The tracker.
        at: Contact,
    },
    /// Sends an announcement to the tracker or a standby; deadline `limits::CALL_DEADLINE`.
    SendAnnouncement {
        /// The call.
        call: CallId,
        /// Callee.
        to: Contact,
        /// The announcement.
        announcement: Announcement,
    },
    /// Requests a vote or a promise; deadline `limits::HEARTBEAT_DEADLINE`.
    RequestVote {
        /// The call; all requests of one round carry the same id.
        call: CallId,
        /// Voter.
        to: Contact,
        /// The request.
        request: VoteRequest,
    },
    /// Sends a notice about the seat once; a failure is ignored.
    SendNotice {
        /// Callee.
        to: Contact,
        /// The notice.
        notice: SeatNotice,
    },
    /// Notifies the tracker or a standby once that this peer leaves; a failure is ignored.
    SendLeave {
        /// Callee.
        to: Contact,
        /// Epoch that this peer followed.
        epoch: Epoch,
        /// Number of this run.
        incarnation: Incarnation,
    },

    /// Answers a request.
    Reply {
        /// Token of the request.
        token: Token,
        /// The answer.
        reply: Reply,
    },
    /// Reports a fact.
    Report(Report),
    /// The core has stopped: no action follows, and open requests stay unanswered. The calls before this one get
    /// `limits::CLOSE_DEADLINE` to finish.
    Stopped,
}

impl Action {
    /// What remains of the action if the state before it is not durable. Votes and all that depends on them are
    /// withdrawn: after a restart they could be given twice (invariant S3).
    pub fn without_durability(self) -> Option<Self> {
        match self {
            Self::RequestVote { request, .. } if !request.pre_vote => None,
            Self::Claim { .. } => None,
            Self::Reply { token, reply: Reply::Vote(vote) } => {
                Some(Self::Reply { token, reply: Reply::Vote(VoteReply { granted: false, ..vote }) })
            }
            action => Some(action),
        }
    }
}

/// Answer to a request that may be deferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Event::VoteRequested`].
    Vote(VoteReply),
    /// To [`Event::ElectionRequested`]: the seat of the tracker that was elected.
    Elected(Result<Seat, ElectionFailure>),
}
