//! Tracker service: the index of all shared files and their owners.
//!
//! Every call carries the epoch that the caller follows. The tracker rejects an epoch below its own with
//! [`TrackerError::StaleEpoch`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    content::{ContentHash, FileMeta, HashPrefix},
    digest::ShareDigest,
    epoch::Epoch,
    file_name::InvalidFileName,
    id::{Incarnation, PeerId},
    name::Endpoint,
    rpc::nameserver::SeatView,
};

/// Calls to the tracker. Every peer serves them and answers [`TrackerError::NotTracker`] unless it holds the seat.
#[cfg(feature = "net")]
#[tarpc::service]
pub trait TrackerService {
    /// Renews the caller's membership and reports its last announcement.
    async fn heartbeat(beat: Heartbeat) -> Result<HeartbeatAck, TrackerError>;
    /// Announces changes of the caller's share.
    async fn announce(announcement: Announcement) -> Result<(), TrackerError>;
    /// Returns the versions of a file name with their owners.
    async fn who_has(query: WhoHas) -> Result<Vec<Version>, TrackerError>;
    /// Returns a page of all files in the index.
    async fn list_all(query: ListAll) -> Result<IndexPage, TrackerError>;
    /// Removes the caller and its files from the index.
    async fn leave(epoch: Epoch, incarnation: Incarnation) -> Result<(), TrackerError>;
}

/// Role in which the callee is addressed. A peer rejects a message for a role that it does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Addressee {
    /// Tracker.
    Tracker,
    /// Standby, which replicates the announcements in order to succeed the tracker.
    Standby,
}

/// Heartbeat of a peer. The peer is the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Role in which the callee is addressed.
    pub to: Addressee,
    /// Epoch that the peer follows.
    pub epoch: Epoch,
    /// Incarnation of the peer's process.
    pub incarnation: Incarnation,
    /// Sequence number of the peer's last announcement.
    pub seq: u64,
    /// Digest of the peer's share at `seq`.
    pub digest: ShareDigest,
    /// Endpoint of the peer.
    pub endpoint: Endpoint,
}

/// Reply to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// Epoch of the tracker.
    pub epoch: Epoch,
    /// Sequence number of the last announcement that the tracker has applied; `None` if it needs a snapshot.
    pub known_seq: Option<u64>,
    /// Time until the next heartbeat: `limits::HEARTBEAT` for electors, up to `protocol::params::REDUCED_HEARTBEAT`
    /// for other peers.
    pub next_beat: Duration,
    /// Standbys of the tracker, to which the peer also sends its announcements. At most
    /// `protocol::election::params::MAX_STANDBYS`; empty in the reply of a standby.
    pub standbys: Vec<StandbyContact>,
}

/// Standby with its endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyContact {
    /// Id of the standby.
    pub peer: PeerId,
    /// Endpoint of the standby.
    pub endpoint: Endpoint,
}

/// Change of a peer's share. The peer is the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Role in which the callee is addressed.
    pub to: Addressee,
    /// Epoch that the peer follows.
    pub epoch: Epoch,
    /// Incarnation of the peer's process.
    pub incarnation: Incarnation,
    /// Sequence number of this announcement, from 1, without gaps. All pages of a snapshot have the same number.
    pub seq: u64,
    /// Snapshot page or delta.
    pub kind: AnnouncementKind,
    /// Files that were added or changed, or, in a snapshot, that the peer has.
    pub upserts: Vec<WireFile>,
    /// Names of files that were removed.
    pub removals: Vec<String>,
}

/// Kind of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnnouncementKind {
    /// Page of the peer's whole share. Page 0 replaces all earlier entries of the peer.
    Snapshot {
        /// Number of the page, from 0.
        page: u32,
        /// True on the last page.
        last: bool,
    },
    /// Change relative to announcement `seq - 1`.
    Delta,
}

/// [`FileMeta`] on the wire, with its name not yet parsed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFile {
    /// Name within the share.
    pub name: String,
    /// Size, bytes.
    pub size: u64,
    /// Hash of the file's bytes.
    pub hash: ContentHash,
    /// Time of the last modification, microseconds since the Unix epoch (negative before it).
    pub mtime_micros: i64,
    /// Execute permission of the file's owner.
    pub executable: bool,
}

impl From<FileMeta> for WireFile {
    fn from(meta: FileMeta) -> Self {
        let FileMeta { name, size, hash, mtime_micros, executable } = meta;
        Self { name: name.into(), size, hash, mtime_micros, executable }
    }
}

impl TryFrom<WireFile> for FileMeta {
    type Error = InvalidFileName;
    fn try_from(wire: WireFile) -> Result<Self, InvalidFileName> {
        let WireFile { name, size, hash, mtime_micros, executable } = wire;
        Ok(Self { name: name.parse()?, size, hash, mtime_micros, executable })
    }
}

/// Query for the owners of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoHas {
    /// Epoch that the caller follows.
    pub epoch: Epoch,
    /// Name of the file.
    pub name: String,
    /// Restricts the answer to the version whose hash has this prefix.
    pub version: Option<HashPrefix>,
}

/// Version of a file name with its owners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Metadata of the version.
    pub file: FileMeta,
    /// Owners, sorted by id; at most `limits::MAX_OWNERS_TRIED` in an answer to `who_has`.
    pub owners: Vec<Owner>,
}

/// Peer that has a version, with its endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Id of the peer.
    pub peer: PeerId,
    /// Endpoint of the peer.
    pub endpoint: Endpoint,
}

/// Query for a page of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAll {
    /// Epoch that the caller follows.
    pub epoch: Epoch,
    /// Literal prefix of the names.
    pub prefix: String,
    /// Exclusive lower bound: the `next` of the previous page.
    pub after: Option<(String, ContentHash)>,
}

/// Page of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexPage {
    /// Epoch of the tracker.
    pub epoch: Epoch,
    /// Files, sorted by name, then by hash; at most `limits::FILES_PER_PAGE`.
    pub files: Vec<IndexedFile>,
    /// Value of `after` for the next page; `None` on the last page.
    pub next: Option<(String, ContentHash)>,
}

/// Version of a file in the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedFile {
    /// Metadata of the version.
    pub file: FileMeta,
    /// Ids of the owners, sorted.
    pub owners: Vec<PeerId>,
}

/// Error of a call to the tracker service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum TrackerError {
    /// The callee is not the tracker. The caller follows the returned seat.
    #[error("this peer is not the tracker")]
    NotTracker(SeatView),
    /// The caller follows an older epoch. It follows the returned one and retries.
    #[error("stale epoch: the tracker is at epoch {}", .0.epoch_high)]
    StaleEpoch(SeatView),
    /// The announcement does not follow the last applied one. The caller sends a snapshot.
    #[error("announcements are missing; a snapshot is needed")]
    SnapshotNeeded,
    /// A file name is not valid.
    #[error(transparent)]
    InvalidFileName(InvalidFileName),
    /// A later run of the same peer is a member. The calling run must stop.
    #[error("a later run of this peer is known")]
    Superseded,
    /// The tracker rebuilds its index after a failover. The caller can retry.
    #[error("the index is being rebuilt")]
    Settling,
    /// A limit is reached.
    #[error("limit reached: {what} (at most {limit})")]
    LimitReached {
        /// Limited quantity.
        what: String,
        /// Value of the limit.
        limit: u64,
    },
    /// The peer is shutting down or overloaded. The caller can try another peer.
    #[error("not possible at the moment: {0}")]
    Unavailable(String),
    /// Too many peers send snapshots at once. The caller sends the same announcement again after `wait`, not earlier.
    #[error("too many snapshots at once; announce again in {} ms", .wait.as_millis())]
    Later {
        /// Time until the caller may announce again.
        wait: Duration,
    },
}
