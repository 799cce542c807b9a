//! What goes into the core and what comes out of it.

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

/// What a peer must still know after a crash. Written by [`Action::Persist`], read back at start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DurableState {
    /// The last vote given, to oneself included: one grant per epoch, across restarts (invariant S3).
    pub voted: Option<Vote>,
    /// The highest epoch known to have been claimed: what a peer follows never falls (invariant S5).
    pub epoch_high: Epoch,
}

/// A vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// In which epoch.
    pub epoch: Epoch,
    /// For whom.
    pub candidate: PeerId,
}

/// Names a question from outside that the core answers with [`Action::Reply`]; chosen by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Why a call had no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallFailure {
    /// Nothing came within the call's deadline: the other side may be slow, frozen, cut off or dead.
    #[error("no answer in time")]
    NoAnswer,
    /// Nobody is there: refused, reset, closed, or authenticated as somebody else.
    #[error("unreachable")]
    Unreachable,
}

/// Why a call did not bring what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// There was no answer.
    #[error(transparent)]
    Failed(#[from] CallFailure),
    /// The other side answered "no".
    #[error("refused")]
    Refused(E),
}

/// What happened. The shell authenticates every `from` before it hands it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// [`super::Core::next_deadline`] was reached.
    Tick,

    /// Answer to [`Action::QuerySeat`].
    SeatAnswered {
        /// The call.
        call: CallId,
        /// The nameserver's word.
        result: Result<SeatView, CallFailure>,
    },
    /// Answer to [`Action::QueryPeers`].
    PeersAnswered {
        /// The call.
        call: CallId,
        /// All registered `peer.*`, the own one included; at most `limits::MAX_PEERS` are looked at.
        result: Result<Vec<Contact>, CallFailure>,
    },
    /// All registered `peer.*` as they are now, the own one included, told without being asked for.
    PeersWatched {
        /// Them; at most `limits::MAX_PEERS` are looked at.
        peers: Vec<Contact>,
    },
    /// Something happened to the seat in the nameserver.
    SeatChanged,
    /// Answer to [`Action::Claim`].
    ClaimAnswered {
        /// The call.
        call: CallId,
        /// Whether the seat is ours.
        result: Result<SeatGrant, CallError<ClaimError>>,
    },
    /// Answer to [`Action::RenewSeat`].
    RenewalAnswered {
        /// The call.
        call: CallId,
        /// Whether the seat is still ours.
        result: Result<SeatGrant, CallError<ClaimError>>,
    },
    /// Answer to [`Action::Resign`].
    ResignAnswered {
        /// The call.
        call: CallId,
        /// Whether the seat was given up.
        result: Result<(), CallError<ClaimError>>,
    },

    /// Answer to [`Action::SendHeartbeat`].
    HeartbeatAnswered {
        /// The call.
        call: CallId,
        /// Who was asked.
        from: PeerId,
        /// The tracker's answer.
        result: Result<HeartbeatAck, CallError<TrackerError>>,
    },
    /// Answer to [`Action::SendAnnouncement`].
    AnnouncementAnswered {
        /// The call.
        call: CallId,
        /// Who was asked.
        from: PeerId,
        /// The tracker's answer.
        result: Result<(), CallError<TrackerError>>,
    },
    /// The connection to this peer was closed or reset, or its port answers "unreachable". Handed in for any
    /// peer; it matters only when that is the tracker.
    ConnectionLost {
        /// To whom.
        peer: PeerId,
    },
    /// A knock, [`Action::ProbePort`], was refused: the machine says that nobody listens there. (That a knock was not refused
    /// means nothing and is not told.)
    ProbeRefused {
        /// Where.
        at: Contact,
    },
    /// Answer to [`Action::RequestVote`].
    VoteAnswered {
        /// The call.
        call: CallId,
        /// Who was asked.
        from: PeerId,
        /// The voter's answer.
        result: Result<VoteReply, CallFailure>,
    },
    /// Answer to [`Action::SendNotice`]: the seat as the other sees it. (A notice that fails is not reported.)
    NoticeAnswered {
        /// Who answered.
        from: PeerId,
        /// The seat as it sees it.
        view: SeatView,
    },

    /// `PeerService::request_vote` was called.
    VoteRequested {
        /// For the reply.
        token: Token,
        /// The candidate.
        from: PeerId,
        /// What it stands for.
        request: VoteRequest,
    },
    /// This peer's share changed; the first such event brings what it has at start.
    ShareChanged {
        /// Files that are there now, or in this form now.
        upserts: Vec<FileMeta>,
        /// Files that are there no more.
        removals: Vec<FileName>,
    },
    /// The user asks for an election (`eleger`).
    ElectionRequested {
        /// For the reply, [`Reply::Elected`].
        token: Token,
    },
    /// This process ends. [`Action::Stopped`] says when the core is done.
    Shutdown,
}

/// What the shell has to do, strictly in order: what follows a [`Action::Persist`] waits until it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make this durable before anything that follows. If that fails the process must stop.
    Persist(DurableState),

    /// Ask the nameserver for the seat.
    QuerySeat {
        /// The call.
        call: CallId,
    },
    /// Ask the nameserver for all `peer.*`.
    QueryPeers {
        /// The call.
        call: CallId,
    },
    /// Claim the seat.
    Claim {
        /// The call.
        call: CallId,
        /// The claim.
        claim: Claim,
    },
    /// Extend the seat's lease.
    RenewSeat {
        /// The call.
        call: CallId,
        /// The seat's epoch.
        epoch: Epoch,
    },
    /// Give the seat up.
    Resign {
        /// The call.
        call: CallId,
        /// The seat's epoch.
        epoch: Epoch,
    },

    /// Tell the tracker that this peer is there; deadline `limits::HEARTBEAT_DEADLINE`.
    SendHeartbeat {
        /// The call.
        call: CallId,
        /// The tracker.
        to: Contact,
        /// What to say.
        beat: Heartbeat,
    },
    /// Look whether anybody listens at the tracker's port, without saying anything to it.
    ProbePort {
        /// The tracker.
        at: Contact,
    },
    /// Tell the tracker what this peer has; deadline `limits::CALL_DEADLINE`.
    SendAnnouncement {
        /// The call.
        call: CallId,
        /// The tracker.
        to: Contact,
        /// What to say.
        announcement: Announcement,
    },
    /// Ask a peer for its vote; deadline `limits::HEARTBEAT_DEADLINE`.
    RequestVote {
        /// The call; all requests of one round carry the same.
        call: CallId,
        /// The voter.
        to: Contact,
        /// What for.
        request: VoteRequest,
    },
    /// Tell a peer about the seat, without insisting.
    SendNotice {
        /// Whom.
        to: Contact,
        /// What.
        notice: SeatNotice,
    },
    /// Tell the tracker that this peer goes, without insisting.
    SendLeave {
        /// The tracker.
        to: Contact,
        /// The epoch this peer followed.
        epoch: Epoch,
        /// Which run of this peer.
        incarnation: Incarnation,
    },

    /// Answer a question from outside.
    Reply {
        /// Which.
        token: Token,
        /// The answer.
        reply: Reply,
    },
    /// Something that people and tests like to see.
    Report(Report),
    /// The core is done: nothing follows, and questions from outside are not answered any more. The calls before
    /// this deserve a moment, `limits::CLOSE_DEADLINE`.
    Stopped,
}

/// An answer to a question from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Event::VoteRequested`].
    Vote(VoteReply),
    /// To [`Event::ElectionRequested`]: the seat that came of it.
    Elected(Result<Seat, ElectionFailure>),
}
