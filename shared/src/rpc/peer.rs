//! Peer service: calls that every peer answers to every other member.

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
    /// Returns the peer's identity and status.
    async fn info() -> PeerInfo;
    /// Returns a page of the peer's own files in the order of their names, from the first one after `after`.
    async fn list(after: Option<FileName>) -> FilePage;
    /// Returns the peer's own version of a file, or `None` if it does not share it.
    async fn have(name: String, version: Option<HashPrefix>) -> Option<FileMeta>;
    /// Requests a vote for the caller, which is a candidate.
    async fn request_vote(request: VoteRequest) -> VoteReply;
    /// Announces that the caller took or released the tracker seat.
    async fn seat_notice(notice: SeatNotice) -> SeatView;
    /// Returns where the peer's recent uploads of this content to the caller spent their time, or `None` if there were
    /// none.
    async fn upload_report(hash: ContentHash) -> Option<UploadReport>;
    /// Returns the metadata of the first `limits::FILES_PER_PAGE` of these directories, in the order of the request;
    /// `None` for a directory that the peer does not share.
    async fn directories(names: Vec<String>) -> Vec<Option<DirectoryMeta>>;
    /// Returns the files with the given name prefix that the peer is downloading and already serves, in the order of
    /// their names, at most `limits::FILES_PER_PAGE`. The tracker's index does not contain them.
    async fn receiving(prefix: String) -> Vec<FileMeta>;
}

/// Metadata of a directory, as its owner reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryMeta {
    /// Time of the last modification, microseconds since the Unix epoch (negative before it).
    pub mtime_micros: i64,
    /// The nine permission bits (`rwxrwxrwx`).
    pub mode: u16,
}

/// Identity and status of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Id of the peer.
    pub peer: PeerId,
    /// Program version of the peer.
    pub version: String,
    /// Incarnation of the peer's process.
    pub incarnation: Incarnation,
    /// Endpoint of the peer.
    pub endpoint: Endpoint,
    /// State of the tracker seat that the peer knows.
    pub seat: SeatView,
    /// Number of shared files.
    pub files: u64,
    /// Total size of the shared files, bytes.
    pub bytes: u64,
}

/// Page of a peer's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePage {
    /// Files in the order of their names, at most `limits::FILES_PER_PAGE`.
    pub files: Vec<FileMeta>,
    /// Value of `after` for the next page; `None` on the last page.
    pub next: Option<FileName>,
}

/// Request of a candidate for a vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRequest {
    /// Epoch for which the candidate stands.
    pub epoch: Epoch,
    /// Epoch of the seat to be replaced.
    pub expected_epoch: Epoch,
    /// Replaces a live incumbent (command `eleger`).
    pub force: bool,
    /// Pre-vote: the voter replies whether it would grant the vote. Neither side changes its state.
    pub pre_vote: bool,
    /// The candidate cannot reach the nameserver; the votes alone elect it.
    pub provisional: bool,
}

/// Reply of a voter. The voter makes a granted vote durable before it replies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteReply {
    /// Epoch of the request.
    pub epoch: Epoch,
    /// Result of the vote.
    pub granted: bool,
    /// State of the tracker seat that the voter knows.
    pub seat: SeatView,
    /// Highest epoch in which the voter has voted.
    pub voted_epoch: Epoch,
    /// Electors that the voter knows, at most `limits::MAX_ELECTORS`.
    pub electors: Vec<PeerId>,
}

/// Change of the tracker seat, announced by its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeatNotice {
    /// The caller holds this seat.
    Taken(Seat),
    /// The caller released the seat of this epoch.
    Vacated(Epoch),
}

/// Breakdown of the time of an owner's uploads of one content to one peer. Times are sums over the uploads, which may
/// overlap, so only their ratios are meaningful (docs/transfer.md, "Why it is slow").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadReport {
    /// Number of uploads.
    pub uploads: u64,
    /// Bytes sent, proofs included.
    pub bytes: u64,
    /// Time from the start to the end of the uploads.
    pub served: Duration,
    /// Part of `served` during which the connection accepted no data: the path or the receiver was the bottleneck.
    pub network_wait: Duration,
    /// Part of `served` during which the owner's rate limit delayed data.
    pub throttle_wait: Duration,
    /// Time that the requests waited for an upload slot, before `served` begins.
    pub slot_wait: Duration,
    /// Upload rate limit of the owner, bytes per second; `None` if unlimited.
    pub limit_up: Option<u64>,
    /// Number of upload slots of the owner.
    pub slots: u32,
    /// Network path from the owner to the caller.
    pub path: PathReport,
    /// Processor usage of the owner's machine; `None` if its operating system does not report it.
    pub machine: Option<MachineReport>,
}

/// Network path as its sender measures it. Counts cover the connection during the uploads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathReport {
    /// Round-trip time.
    pub rtt: Duration,
    /// Congestion window, bytes.
    pub window_bytes: u64,
    /// Number of packets sent.
    pub sent_packets: u64,
    /// Number of packets lost.
    pub lost_packets: u64,
    /// Number of congestion events (RFC 9002 section 7).
    pub congestion_events: u64,
    /// Maximum datagram size of the path at the last sample, bytes; 0 if unknown.
    pub datagram_bytes: u16,
}

/// Processor usage of a machine, thousandths of the total processor time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineReport {
    /// Idle time.
    pub idle_permille: u16,
    /// Time spent by this program.
    pub own_permille: u16,
}
