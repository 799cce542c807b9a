//! The peer service: what any peer answers to any other.

use serde::{Deserialize, Serialize};

use crate::{
    content::{FileMeta, HashPrefix},
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    name::Endpoint,
    rpc::nameserver::{Seat, SeatView},
};

/// Calls to a peer.
#[tarpc::service]
pub trait PeerService {
    /// Who it is and how it is.
    async fn info() -> PeerInfo;
    /// A page of its own files, by name, after the given one.
    async fn list(after: Option<FileName>) -> FilePage;
    /// Its own version of a file, if it has it.
    async fn have(name: String, version: Option<HashPrefix>) -> Option<FileMeta>;
    /// A candidate, the caller, asks for a vote.
    async fn request_vote(request: VoteRequest) -> VoteReply;
    /// The caller took the seat, or gave it up.
    async fn seat_notice(notice: SeatNotice) -> SeatView;
}

/// Who a peer is and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its id.
    pub peer: PeerId,
    /// Program version.
    pub version: String,
    /// Which run.
    pub incarnation: Incarnation,
    /// Where it answers.
    pub endpoint: Endpoint,
    /// The seat as it sees it.
    pub seat: SeatView,
    /// Files it shares.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Part of a peer's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePage {
    /// At most `limits::FILES_PER_PAGE`, by name.
    pub files: Vec<FileMeta>,
    /// Ask again after this one; `None` when the page is the last.
    pub next: Option<FileName>,
}

/// A candidate's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequest {
    /// The epoch it stands for.
    pub epoch: Epoch,
    /// The seat it wants to replace.
    pub expected_epoch: Epoch,
    /// Replace a living incumbent (`eleger`).
    pub force: bool,
    /// Only asks whether the vote would be given: nothing is promised, nobody's state changes.
    pub probe: bool,
    /// The nameserver does not answer the candidate; the votes alone would make it tracker.
    pub provisional: bool,
}

/// A voter's answer. A vote was made durable before it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// The epoch that was voted on.
    pub epoch: Epoch,
    /// Whether the candidate has this vote.
    pub granted: bool,
    /// The seat as the voter sees it.
    pub seat: SeatView,
    /// The highest epoch in which the voter has voted.
    pub voted_epoch: Epoch,
    /// Who elects, as far as the voter knows; at most `limits::MAX_ELECTORS`.
    pub electors: Vec<PeerId>,
}

/// News of the seat, from the peer that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeatNotice {
    /// The caller holds this seat.
    Taken(Seat),
    /// The caller gave up the seat of this epoch.
    Vacated(Epoch),
}
