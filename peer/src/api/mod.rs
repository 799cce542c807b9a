//! Interface of a running peer, with its request and response types.
//!
//! The command line accesses a peer only through [`PeerApi`], so its tests need no network.

mod failures;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use shared::{
    content::{FileMeta, HashPrefix},
    epoch::Epoch,
    error::{Failure, FailureCode},
    file_name::{FileName, InvalidFileName},
    id::PeerId,
    name::Endpoint,
    rpc::{nameserver::Seat, tracker::IndexedFile},
};
use tokio::sync::watch;

use crate::diagnostics::bottleneck::Finding;
pub use crate::store::{Discarded, Unfinished};
use protocol::election::SeatRole;

/// Operations of a running peer. Dropping a returned future stops the operation.
pub trait PeerApi: Send + Sync {
    /// Returns the id of this peer.
    fn id(&self) -> PeerId;

    /// Lists the files of this peer's share, in any order.
    fn list(&self) -> BoxFuture<'_, Result<Vec<FileMeta>, Failure>>;

    /// Lists all files of the network, in any order.
    fn list_all(&self) -> BoxFuture<'_, Result<GlobalListing, Failure>>;

    /// Adds a copy of a file or directory to the share.
    fn add(&self, request: AddRequest) -> BoxFuture<'_, Result<Added, Failure>>;

    /// Deletes the file `name` from the share. Other owners keep their copies.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<FileMeta, Failure>>;

    /// Fetches all files that match a request. Complete files remain when the future is dropped.
    fn download(&self, request: DownloadRequest, progress: ProgressSink) -> BoxFuture<'_, Result<Fetched, Failure>>;

    /// Discards the unfinished downloads of a file, or of one version of it.
    fn discard<'a>(
        &'a self,
        name: &'a str,
        version: Option<&'a HashPrefix>,
    ) -> BoxFuture<'a, Result<Vec<Discarded>, Failure>>;

    /// Returns the current tracker.
    fn tracker(&self) -> BoxFuture<'_, Result<Seat, Failure>>;

    /// Lists the registered peers, including this one, in any order.
    fn peers(&self) -> BoxFuture<'_, Result<Vec<(PeerId, Endpoint)>, Failure>>;

    /// Forces an election. Returns the epoch and the winner.
    fn elect(&self) -> BoxFuture<'_, Result<(Epoch, PeerId), Failure>>;

    /// Returns the state of this peer.
    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>>;

    /// Leaves the network and stops, within a bounded time. Further calls have no effect.
    fn shutdown(&self) -> BoxFuture<'_, ()>;

    /// Waits until the peer has joined the network. The default implementation completes at once.
    fn joined(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Completes with the cause when an error prevents the peer from continuing. The default implementation never
    /// completes.
    fn failed(&self) -> BoxFuture<'_, Failure> {
        Box::pin(std::future::pending())
    }
}

/// Content of the tracker's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalListing {
    /// Epoch of the tracker that answered; without one, the highest known.
    pub epoch: Epoch,
    /// Tracker that answered. `None`: there is none, and the listing has the files of those peers that answered.
    pub tracker: Option<PeerId>,
    /// Entries, one per version of a file.
    pub files: Vec<IndexedFile>,
}

/// Request to add a file or directory to the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddRequest {
    /// File or directory; absolute.
    pub path: PathBuf,
    /// Name if the user typed a bare name instead of a path. A file that exists neither at `path` nor in the share is
    /// created with this name.
    pub bare_name: Option<FileName>,
}

/// Result of adding to the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Added files, in any order.
    pub files: Vec<FileMeta>,
    /// Remark for the user, for example that a file was created.
    pub note: Option<String>,
}

/// Request to fetch files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadRequest {
    /// File name, directory (with or without a final `/`), or glob.
    pub pattern: String,
    /// Prefix of the version's hash; `None` accepts any version.
    pub version: Option<HashPrefix>,
    /// Only source to fetch from; `None` allows all owners.
    pub from: Option<PeerId>,
    /// Destination, absolute; `None` is the share. In an existing folder, or at a path that ends with `/`, the files
    /// keep their names.
    pub to: Option<PathBuf>,
    /// Overwrites existing files that have other content.
    pub force: bool,
    /// Adds an explanation of the rate to the response.
    pub explain: bool,
}

/// Result of a download.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fetched {
    /// Complete files, in any order.
    pub files: Vec<Downloaded>,
    /// Explanation of the rate, if requested.
    pub explained: Option<Explained>,
}

/// Explanation of the rate of a download.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// Requested pattern.
    pub name: String,
    /// Bytes fetched. Content that was already present does not count.
    pub bytes: u64,
    /// Duration, seconds.
    pub seconds: f64,
    /// Sources, ordered by id.
    pub sources: Vec<ExplainedSource>,
    /// Causes of the duration, the largest share first.
    pub findings: Vec<Finding>,
}

/// Source of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedSource {
    /// Id of the source.
    pub peer: PeerId,
    /// Bytes fetched from it.
    pub bytes: u64,
    /// Mean rate while it sent, bytes a second.
    pub bytes_per_second: u64,
    /// Round-trip time; `None` if unknown.
    pub rtt: Option<Duration>,
}

/// Running download.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningDownload {
    /// Requested pattern.
    pub name: String,
    /// Verified bytes.
    pub bytes_done: u64,
    /// Total bytes.
    pub bytes_total: u64,
    /// Rate over the last seconds, bytes a second.
    pub bytes_per_second: u64,
    /// Number of peers that are sending.
    pub sources: u32,
    /// Present causes of the rate, the largest share first.
    pub findings: Vec<Finding>,
}

/// A file that was fetched or already present with the same content.
#[derive(Debug, Clone, PartialEq)]
pub struct Downloaded {
    /// Metadata of the file.
    pub file: FileMeta,
    /// Path on this machine.
    pub path: PathBuf,
    /// Duration, seconds.
    pub seconds: f64,
    /// Sources with the bytes each sent, in any order; empty if the file was already present.
    pub sources: Vec<(PeerId, u64)>,
}

/// State of a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Id of the peer.
    pub id: PeerId,
    /// Endpoint of the peer.
    pub endpoint: Endpoint,
    /// Endpoint of its nameserver.
    pub nameserver: Endpoint,
    /// Role in the election.
    pub role: SeatRole,
    /// Highest epoch that the peer has observed.
    pub epoch: Epoch,
    /// Tracker; `None` if the peer knows none.
    pub tracker: Option<PeerId>,
    /// Shared folder.
    pub share_dir: PathBuf,
    /// Number of files in the share.
    pub files: u64,
    /// Bytes of the files in the share.
    pub bytes: u64,
    /// Number of running uploads.
    pub uploads: u64,
    /// Number of requests that wait for an upload slot.
    pub uploads_waiting: u64,
    /// Number of upload slots.
    pub upload_slots: u64,
    /// Limit of sent bytes a second; `None` is unlimited.
    pub limit_up: Option<u64>,
    /// Limit of received bytes a second; `None` is unlimited.
    pub limit_down: Option<u64>,
    /// Running downloads, in the order of their start.
    pub running: Vec<RunningDownload>,
    /// Number of running downloads.
    pub downloads: u64,
    /// Content bytes sent since the start.
    pub bytes_up: u64,
    /// Content bytes received since the start.
    pub bytes_down: u64,
    /// Downloads that can be resumed, ordered by name.
    pub unfinished: Vec<Unfinished>,
    /// Warnings for the user, for example about limits of the system; one sentence each.
    pub warnings: Vec<String>,
}

/// Progress of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// File that is being fetched.
    pub file: FileName,
    /// Verified bytes of all files of the download.
    pub bytes_done: u64,
    /// Total bytes of all files of the download.
    pub bytes_total: u64,
    /// Rate over the last seconds, bytes a second. Content that was already present does not count.
    pub bytes_per_second: u64,
    /// Number of peers that are sending.
    pub sources: u32,
    /// Number of complete files.
    pub files_done: u64,
    /// Total number of files.
    pub files_total: u64,
}

/// Receiver of the progress of a download. Cloning and calling it is cheap. It keeps only the latest progress, so a
/// slow reader does not delay the transfer.
#[derive(Debug, Clone)]
pub struct ProgressSink(Option<Arc<watch::Sender<Option<Progress>>>>);

impl ProgressSink {
    /// Creates a sink that discards all progress.
    pub fn none() -> Self {
        Self(None)
    }

    /// Creates a sink and the receiver of its latest progress, which is `None` before the first update.
    pub fn channel() -> (Self, watch::Receiver<Option<Progress>>) {
        let (sender, receiver) = watch::channel(None);
        (Self(Some(Arc::new(sender))), receiver)
    }

    /// Replaces the latest progress.
    pub fn update(&self, progress: Progress) {
        if let Some(sender) = &self.0 {
            sender.send_replace(Some(progress));
        }
    }
}

/// Parses a file name that a user typed.
///
/// # Errors
/// `invalid_name` for a name that no shared file can have.
pub(crate) fn parse_name(name: &str) -> Result<FileName, Failure> {
    name.parse().map_err(|error| invalid_name(&error))
}

/// Failure of a command with an invalid file name.
pub(crate) fn invalid_name(error: &InvalidFileName) -> Failure {
    let what = format!("{:?} is not a valid file name", error.name);
    Failure::new(FailureCode::InvalidName, what, &error.reason, "`list` and `listAll` show the names")
}
