//! What a front end can ask of a running peer, and what it is told.
//!
//! The commands know a peer only through [`PeerApi`], so that they are tested without a network.

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

/// A running peer, as its commands see it. Dropping a returned future abandons what it was doing.
pub trait PeerApi: Send + Sync {
    /// Who this peer is.
    fn id(&self) -> PeerId;

    /// The files it shares, in any order.
    fn list(&self) -> BoxFuture<'_, Result<Vec<FileMeta>, Failure>>;

    /// All files of the network, in any order.
    fn list_all(&self) -> BoxFuture<'_, Result<GlobalListing, Failure>>;

    /// Shares a copy of a file or directory.
    fn add(&self, request: AddRequest) -> BoxFuture<'_, Result<Added, Failure>>;

    /// Takes a file, by its name in the share, out of the share. Deletes it there, nowhere else.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<FileMeta, Failure>>;

    /// Fetches all files that a request names. Files that are complete stay when the future is dropped.
    fn download(&self, request: DownloadRequest, progress: ProgressSink) -> BoxFuture<'_, Result<Fetched, Failure>>;

    /// Gives up the unfinished downloads of a file, or of one version of it.
    fn discard<'a>(
        &'a self,
        name: &'a str,
        version: Option<&'a HashPrefix>,
    ) -> BoxFuture<'a, Result<Vec<Discarded>, Failure>>;

    /// Who is tracker.
    fn tracker(&self) -> BoxFuture<'_, Result<Seat, Failure>>;

    /// Who is there, this peer included, in any order.
    fn peers(&self) -> BoxFuture<'_, Result<Vec<(PeerId, Endpoint)>, Failure>>;

    /// Forces an election and tells who won it, under which epoch.
    fn elect(&self) -> BoxFuture<'_, Result<(Epoch, PeerId), Failure>>;

    /// How this peer is.
    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>>;

    /// Leaves the network and stops; bounded in time. Asking again does nothing.
    fn shutdown(&self) -> BoxFuture<'_, ()>;

    /// Resolves when the peer cannot go on although nobody stopped it, with the reason; never for a backend that
    /// always can.
    fn failed(&self) -> BoxFuture<'_, Failure> {
        Box::pin(std::future::pending())
    }
}

/// What the tracker has in its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalListing {
    /// The epoch of the tracker that was asked.
    pub epoch: Epoch,
    /// Who that was.
    pub tracker: PeerId,
    /// One entry a version.
    pub files: Vec<IndexedFile>,
}

/// What to share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddRequest {
    /// The file or directory, absolute.
    pub path: PathBuf,
    /// Set when the user typed a bare name and not a path: what the file is made as when it exists
    /// neither at `path` nor in the share.
    pub bare_name: Option<FileName>,
}

/// What was shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The files, in any order.
    pub files: Vec<FileMeta>,
    /// What the user should know besides, for example that a file was made.
    pub note: Option<String>,
}

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownloadRequest {
    /// A file name, a directory (with or without a `/` at the end), or a glob.
    pub pattern: String,
    /// Only the version whose hash begins so.
    pub version: Option<HashPrefix>,
    /// Only from this peer.
    pub from: Option<PeerId>,
    /// Where to, absolute; `None` is the share. An existing folder, or a path that ends with `/`, takes the
    /// files under their own names.
    pub to: Option<PathBuf>,
    /// Overwrite what is there with other content.
    pub force: bool,
    /// Say what limited it.
    pub explain: bool,
}

/// What a download brought.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fetched {
    /// The files, in any order.
    pub files: Vec<Downloaded>,
    /// What limited it, if that was asked for.
    pub explained: Option<Explained>,
}

/// Why a download took as long as it did.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// What was asked for.
    pub name: String,
    /// Bytes that were fetched; what was there already does not count.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Who sent, by id.
    pub sources: Vec<ExplainedSource>,
    /// What took the time, the most first.
    pub findings: Vec<Finding>,
}

/// A source of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedSource {
    /// Who.
    pub peer: PeerId,
    /// Bytes fetched of it.
    pub bytes: u64,
    /// While it sent.
    pub bytes_per_second: u64,
    /// Round-trip time, if known.
    pub rtt: Option<Duration>,
}

/// A download that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct RunningDownload {
    /// What was asked for.
    pub name: String,
    /// Bytes that are there and verified.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Bytes a second, of the last seconds.
    pub bytes_per_second: u64,
    /// Peers that send at the moment.
    pub sources: u32,
    /// What takes the time at present, the most first.
    pub findings: Vec<Finding>,
}

/// A file that was fetched, or that was there already with the same content.
#[derive(Debug, Clone, PartialEq)]
pub struct Downloaded {
    /// The file.
    pub file: FileMeta,
    /// Where it lies.
    pub path: PathBuf,
    /// How long it took.
    pub seconds: f64,
    /// Who sent how many bytes of it, in any order; empty when nothing had to be sent.
    pub sources: Vec<(PeerId, u64)>,
}

/// How a peer is.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Who.
    pub id: PeerId,
    /// Where it answers.
    pub endpoint: Endpoint,
    /// The nameserver it is registered with.
    pub nameserver: Endpoint,
    /// What it is to the tracker's seat.
    pub role: SeatRole,
    /// The epoch it follows.
    pub epoch: Epoch,
    /// The tracker as it knows it.
    pub tracker: Option<PeerId>,
    /// The folder it shares.
    pub share_dir: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Uploads that run.
    pub uploads: u64,
    /// Requests that wait for an upload slot.
    pub uploads_waiting: u64,
    /// Uploads at a time.
    pub upload_slots: u64,
    /// The cap on what goes out, bytes a second.
    pub limit_up: Option<u64>,
    /// The cap on what comes in, bytes a second.
    pub limit_down: Option<u64>,
    /// Downloads that run, in the order in which they began.
    pub running: Vec<RunningDownload>,
    /// How many that are.
    pub downloads: u64,
    /// Bytes of content sent since it started.
    pub bytes_up: u64,
    /// Bytes of content received since it started.
    pub bytes_down: u64,
    /// Downloads that can be continued, by name.
    pub unfinished: Vec<Unfinished>,
    /// Limits it runs into and what else its user should know, a sentence each.
    pub warnings: Vec<String>,
}

/// How far a download is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The file that moves at the moment.
    pub file: FileName,
    /// Bytes of all files of the download that are there and verified.
    pub bytes_done: u64,
    /// Bytes of all files of the download.
    pub bytes_total: u64,
    /// Bytes a second that came in the last seconds; what was there already does not count.
    pub bytes_per_second: u64,
    /// Peers that send at the moment.
    pub sources: u32,
    /// Files that are complete.
    pub files_done: u64,
    /// Files in all.
    pub files_total: u64,
}

/// Where a download tells how far it is. Cheap to clone and to call: only the latest state is kept, so whoever
/// shows it, however slowly, never holds up the transfer.
#[derive(Debug, Clone)]
pub struct ProgressSink(Option<Arc<watch::Sender<Option<Progress>>>>);

impl ProgressSink {
    /// A sink that nobody watches.
    pub fn none() -> Self {
        Self(None)
    }

    /// A sink, and where its latest state is read; `None` stands there until the first.
    pub fn channel() -> (Self, watch::Receiver<Option<Progress>>) {
        let (sender, receiver) = watch::channel(None);
        (Self(Some(Arc::new(sender))), receiver)
    }

    /// Tells the latest state.
    pub fn update(&self, progress: Progress) {
        if let Some(sender) = &self.0 {
            sender.send_replace(Some(progress));
        }
    }
}

/// A name as a user typed it.
pub(crate) fn parse_name(name: &str) -> Result<FileName, Failure> {
    name.parse().map_err(|error| invalid_name(&error))
}

/// Failure of a command with an invalid name.
pub(crate) fn invalid_name(error: &InvalidFileName) -> Failure {
    let shown = format!("{:?} is not a name in a share", error.name);
    Failure::new(FailureCode::InvalidName, shown, &error.reason, "`list` and `listAll` show names")
}
