//! The tracker service: who has what. Every call names the epoch it believes in; lower than the tracker's
//! own is refused with [`TrackerError::StaleEpoch`].

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

/// Calls to the tracker; every peer offers them and answers [`TrackerError::NotTracker`] while it is none.
#[cfg(feature = "net")]
#[tarpc::service]
pub trait TrackerService {
    /// "I am here, and this is how far my announcements go."
    async fn heartbeat(beat: Heartbeat) -> Result<HeartbeatAck, TrackerError>;
    /// What a peer has, or has no more.
    async fn announce(announcement: Announcement) -> Result<(), TrackerError>;
    /// The versions of a file name, with owners.
    async fn who_has(query: WhoHas) -> Result<Vec<Version>, TrackerError>;
    /// A page of all files.
    async fn list_all(query: ListAll) -> Result<IndexPage, TrackerError>;
    /// "I go."
    async fn leave(epoch: Epoch, incarnation: Incarnation) -> Result<(), TrackerError>;
}

/// As what a peer is told something: a standby that is taken for the tracker, or the other way round, must not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Addressee {
    /// As the tracker.
    Tracker,
    /// As one of its standbys, which follow what is announced in order to take its place.
    Standby,
}

/// A peer's sign of life. The peer is the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// As what the callee is told.
    pub to: Addressee,
    /// The epoch the peer follows.
    pub epoch: Epoch,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Number of its last announcement.
    pub seq: u64,
    /// What it shares as of that number.
    pub digest: ShareDigest,
    /// Where it answers.
    pub endpoint: Endpoint,
}

/// The tracker's answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAck {
    /// The tracker's epoch.
    pub epoch: Epoch,
    /// How far the tracker has this run's announcements; `None`: it needs a snapshot.
    pub known_seq: Option<u64>,
    /// How long to wait before the next heartbeat: electors `limits::HEARTBEAT`, others up to
    /// `limits::RESTING_HEARTBEAT`.
    pub next_beat: Duration,
    /// Who follows what is announced besides the tracker: the peer tells them too. At most `limits::MAX_STANDBYS`, none
    /// in a standby's own answer.
    pub standbys: Vec<StandbyContact>,
}

/// A standby and where it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyContact {
    /// Who.
    pub peer: PeerId,
    /// Where it answers.
    pub endpoint: Endpoint,
}

/// A change of what a peer has. The peer is the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// As what the callee is told.
    pub to: Addressee,
    /// The epoch the peer follows.
    pub epoch: Epoch,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Number of this announcement, from 1, without gaps; all pages of a snapshot carry the same.
    pub seq: u64,
    /// Everything, or what changed.
    pub kind: AnnouncementKind,
    /// Files that the peer has (now, or in this form).
    pub upserts: Vec<WireFile>,
    /// Names of files that it has no more.
    pub removals: Vec<String>,
}

/// Everything, or what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnnouncementKind {
    /// A page of all that the peer has; page 0 clears what was known of it.
    Snapshot {
        /// From 0.
        page: u32,
        /// Whether this is the last page.
        last: bool,
    },
    /// Applies on top of `seq - 1`.
    Delta,
}

/// A [`FileMeta`] on the wire, its name not parsed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireFile {
    /// Name within the share.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Hash of its bytes.
    pub hash: ContentHash,
    /// Last modification, microseconds since 1970.
    pub mtime_micros: i64,
    /// Whether its owner may execute it.
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

/// A question for the owners of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoHas {
    /// The epoch the asker follows.
    pub epoch: Epoch,
    /// Name of the file.
    pub name: String,
    /// Only the version whose hash begins so.
    pub version: Option<HashPrefix>,
}

/// One content of a file name and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The file.
    pub file: FileMeta,
    /// Its owners, sorted by id, at most `limits::MAX_OWNERS_TRIED` in an answer to `who_has`.
    pub owners: Vec<Owner>,
}

/// A peer that has a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Who.
    pub peer: PeerId,
    /// Where it answers.
    pub endpoint: Endpoint,
}

/// A question for a page of all files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListAll {
    /// The epoch the asker follows.
    pub epoch: Epoch,
    /// Only names that begin so.
    pub prefix: String,
    /// After this file: a page's `next`.
    pub after: Option<(String, ContentHash)>,
}

/// Part of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexPage {
    /// The tracker's epoch.
    pub epoch: Epoch,
    /// At most `limits::FILES_PER_PAGE`, by name, then hash.
    pub files: Vec<IndexedFile>,
    /// Ask again with `after` set to this; `None` when the page is the last.
    pub next: Option<(String, ContentHash)>,
}

/// One version in the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedFile {
    /// The file.
    pub file: FileMeta,
    /// Ids of its owners, sorted.
    pub owners: Vec<PeerId>,
}

/// Why the tracker did not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum TrackerError {
    /// This peer is not tracker; follow what it knows of the seat.
    #[error("this peer is not the tracker")]
    NotTracker(SeatView),
    /// The caller follows an older epoch; follow this one.
    #[error("stale epoch: the tracker is at epoch {}", .0.epoch_high)]
    StaleEpoch(SeatView),
    /// The announcement does not follow the last one known; send a snapshot.
    #[error("announcements are missing; a snapshot is needed")]
    SnapshotNeeded,
    /// The file's name cannot be shared.
    #[error(transparent)]
    InvalidFileName(InvalidFileName),
    /// A later run of the same peer has announced itself; this run must stop.
    #[error("a later run of this peer is known")]
    Superseded,
    /// The index is still being rebuilt after a failover; try again.
    #[error("the index is being rebuilt")]
    Settling,
    /// A bound is reached.
    #[error("limit reached: {what} (at most {limit})")]
    LimitReached {
        /// Of what there is too much.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The peer is shutting down or overloaded; try again elsewhere.
    #[error("not possible at the moment: {0}")]
    Unavailable(String),
    /// Too many announce all that they have at once; the same again after this time, not before.
    #[error("its turn to announce what it has is in {} ms", .wait.as_millis())]
    Later {
        /// How long to wait.
        wait: Duration,
    },
}
