//! The peer service: what any peer answers to any other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(feature = "net")]
use crate::content::{ContentHash, HashPrefix};
use crate::{
    content::FileMeta,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    name::Endpoint,
    rpc::nameserver::{Seat, SeatView},
};

/// Calls to a peer.
#[cfg(feature = "net")]
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
    /// Where the time went when it lately sent this content to the caller; `None` when it did not.
    async fn upload_report(hash: ContentHash) -> Option<UploadReport>;
    /// What is known of the first `limits::FILES_PER_PAGE` of these directories, in their order; `None` for what it does not share.
    async fn directories(names: Vec<String>) -> Vec<Option<DirectoryMeta>>;
    /// Files whose names begin with `prefix` that it receives at the moment and passes on meanwhile, by name; at most
    /// `limits::FILES_PER_PAGE`. The index knows nothing of them.
    async fn receiving(prefix: String) -> Vec<FileMeta>;
}

/// A directory as the one who shares it describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryMeta {
    /// Last modification, microseconds since 1970 (negative before).
    pub mtime_micros: i64,
    /// Who may read, write and search it: the nine permission bits.
    pub mode: u16,
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

/// Where the time of an owner's uploads of one content to one peer went. Times are sums over the uploads; only their
/// proportions mean something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadReport {
    /// Uploads that began.
    pub uploads: u64,
    /// Bytes sent, proofs included.
    pub bytes: u64,
    /// From their beginning to their end.
    pub served: Duration,
    /// Of that, the network did not take more: the path or the receiver was the slow one.
    pub network_wait: Duration,
    /// Of that, the owner's cap held the bytes back.
    pub pace_wait: Duration,
    /// Before they began: how long they waited for a slot.
    pub slot_wait: Duration,
    /// The owner's cap on what goes out, bytes a second.
    pub limit_up: Option<u64>,
    /// Uploads that the owner serves at a time.
    pub slots: u32,
    /// The way from the owner to the caller, as the owner saw it.
    pub path: PathReport,
    /// The owner's machine meanwhile; `None` where the system does not say.
    pub machine: Option<MachineReport>,
}

/// A path as its sender sees it. Counts are those of the connection while the uploads ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathReport {
    /// Round-trip time.
    pub rtt: Duration,
    /// Congestion window, bytes.
    pub window_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Of these, lost.
    pub lost_packets: u64,
    /// How often the congestion control slowed down.
    pub congestion_events: u64,
    /// Size of a full datagram at the last look, bytes; 0 when it is not known.
    pub datagram_bytes: u16,
}

/// What a machine's processors did, thousandths of their time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineReport {
    /// Nothing.
    pub idle_permille: u16,
    /// This program.
    pub own_permille: u16,
}
