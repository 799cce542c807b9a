//! Commands of a running peer.

use crate::runtime::params;
use std::{num::NonZeroU64, time::Duration};

use futures::future::BoxFuture;
use shared::{
    content::{FileMeta, HashPrefix},
    epoch::Epoch,
    error::{Failure, FailureCode},
    id::PeerId,
    limits,
    name::Endpoint,
    rpc::nameserver::Seat,
};
use tokio::time::{sleep, timeout};

use super::peer::Peer;
use crate::{
    api::{
        AddRequest, Added, Discarded, DownloadRequest, Fetched, GlobalListing, PeerApi, ProgressSink, Status,
        parse_name,
    },
    core_handle::ShareChange,
    discovery::{TrackerQueryError, stopping},
};
use protocol::election::{ElectionFailure, Event, Reply};

/// Time that a command waits for the announcement of its change to the share. The announcement continues after it.
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);
/// Maximum number of attempts of `eleger`; a transient error is followed by another one.
const ELECTION_TRIES: u32 = 5;
/// Deadline of one election.
const ELECTION_WAIT: Duration = Duration::from_secs(10);

impl PeerApi for Peer {
    fn id(&self) -> PeerId {
        self.id.clone()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<FileMeta>, Failure>> {
        Box::pin(async {
            self.settle().await?;
            Ok(self.share.list())
        })
    }

    fn list_all(&self) -> BoxFuture<'_, Result<GlobalListing, Failure>> {
        Box::pin(async {
            self.settle().await?;
            self.until_announced(ShareChange::None).await;
            match self.discovery.list_all("", params::TRACKER_WAIT).await {
                Err(TrackerQueryError::NoTracker { why }) => {
                    tracing::info!(%why, "no tracker; listing the files of the known peers");
                    let files = self.discovery.ask_around("").await;
                    Ok(GlobalListing { epoch: self.core.view().epoch(), tracker: None, files })
                }
                listing => Ok(listing?),
            }
        })
    }

    fn add(&self, request: AddRequest) -> BoxFuture<'_, Result<Added, Failure>> {
        Box::pin(async move {
            let added = self.add_to_share(request).await?;
            self.until_announced(ShareChange::Added(added.files.clone())).await;
            Ok(added)
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<FileMeta, Failure>> {
        Box::pin(async move {
            // `list` shows a directory with a `/`.
            let name = parse_name(name.strip_suffix('/').unwrap_or(name))?;
            let removed = self.share.remove(&name).await?;
            self.until_announced(ShareChange::Removed(name)).await;
            Ok(removed)
        })
    }

    fn download(&self, request: DownloadRequest, progress: ProgressSink) -> BoxFuture<'_, Result<Fetched, Failure>> {
        Box::pin(async move {
            let downloaded = self.downloader.fetch(request, progress).await?;
            let shared = downloaded
                .files
                .iter()
                .filter(|done| done.path.starts_with(self.share.path()))
                // A directory with entries is not itself an entry of the share.
                .filter(|done| !done.file.is_directory() || self.share.get(&done.file.name).is_some())
                .map(|done| done.file.name.clone())
                .collect();
            self.until_announced(ShareChange::Present(shared)).await;
            Ok(downloaded)
        })
    }

    fn discard<'a>(
        &'a self,
        name: &'a str,
        version: Option<&'a HashPrefix>,
    ) -> BoxFuture<'a, Result<Vec<Discarded>, Failure>> {
        Box::pin(async move { Ok(self.share.discard(name, version).await?) })
    }

    fn tracker(&self) -> BoxFuture<'_, Result<Seat, Failure>> {
        Box::pin(async { Ok(self.discovery.tracker(params::TRACKER_WAIT).await?) })
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<(PeerId, Endpoint)>, Failure>> {
        Box::pin(async {
            let mut peers = self.discovery.endpoints().await;
            // Without the nameserver the list contains at least this peer.
            peers.insert(self.id.clone(), self.endpoint.clone());
            Ok(peers.into_iter().collect())
        })
    }

    fn elect(&self) -> BoxFuture<'_, Result<(Epoch, PeerId), Failure>> {
        Box::pin(async {
            let mut tries = 1;
            loop {
                match self.elect_once().await? {
                    Ok(elected) => return Ok(elected),
                    // Transient errors: a first handshake with a voter takes longer than a candidate waits for votes,
                    // a new voter is not known yet, and only the first call to a restarted nameserver detects that the
                    // connection is lost.
                    Err(
                        ElectionFailure::NoMajority { .. }
                        | ElectionFailure::Busy
                        | ElectionFailure::NameserverUnreachable,
                    ) if tries < ELECTION_TRIES => {
                        tries += 1;
                        sleep(limits::ELECTION_BACKOFF).await;
                    }
                    // A claim of this peer was accepted after its answer was no longer waited for.
                    Err(ElectionFailure::Lost(view))
                        if tries < ELECTION_TRIES && view.seat.as_ref().is_some_and(|seat| seat.peer == self.id) =>
                    {
                        tries += 1;
                        sleep(limits::ELECTION_BACKOFF).await;
                    }
                    Err(why) => return Err(election_failure(&why)),
                }
            }
        })
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>> {
        Box::pin(async {
            let view = self.core.view();
            let stats = self.share.stats();
            let mut warnings = self.warnings.list();
            if stats.skipped > 0 {
                warnings
                    .push(format!("{} names in the share cannot be shared; the log says which and why", stats.skipped));
            }
            if let Err(error) = self.discovery.calls.ping().await {
                warnings.push(format!("the nameserver does not answer: {error}; this peer joins it when it does"));
            }
            Ok(Status {
                id: self.id.clone(),
                endpoint: self.endpoint.clone(),
                nameserver: self.nameserver.clone(),
                role: view.role,
                epoch: view.epoch(),
                tracker: view.tracker().map(|seat| seat.peer.clone()),
                share_dir: self.share.path().to_owned(),
                files: stats.files,
                bytes: stats.bytes,
                uploads: self.uploads.active(),
                uploads_waiting: self.uploads.waiting(),
                upload_slots: self.upload_slots as u64,
                limit_up: self.uploads.throttle().bytes_per_second().map(NonZeroU64::get),
                limit_down: self.downloader.limit(),
                running: self.downloader.running().await,
                downloads: self.downloader.active(),
                bytes_up: self.uploads.bytes(),
                bytes_down: self.downloader.bytes(),
                unfinished: self.share.unfinished().await?,
                warnings,
            })
        })
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.stop())
    }

    fn joined(&self) -> BoxFuture<'_, ()> {
        Box::pin(Self::joined(self))
    }

    fn failed(&self) -> BoxFuture<'_, Failure> {
        Box::pin(Self::failed(self))
    }
}

impl Peer {
    async fn elect_once(&self) -> Result<Result<(Epoch, PeerId), ElectionFailure>, Failure> {
        let asked = self.core.request(|token| Event::ElectionRequested { token });
        let answer = timeout(ELECTION_WAIT, asked).await.map_err(|_| {
            Failure::new(FailureCode::Timeout, "the election did not end", "no decision in time", "try again")
        })?;
        match answer.map_err(stopping)? {
            Reply::Elected(elected) => Ok(elected.map(|seat| (seat.epoch, seat.peer))),
            _ => Err(Failure::new(FailureCode::Internal, "no election", "an answer of the wrong kind", "report this")),
        }
    }

    /// Waits until the files of the share are hashed, at most [`params::SETTLE_WAIT`].
    async fn settle(&self) -> Result<(), Failure> {
        match timeout(params::SETTLE_WAIT, self.share.settled()).await {
            Ok(settled) => Ok(settled?),
            Err(_) => {
                tracing::warn!("the list is incomplete: files are still being hashed");
                Ok(())
            }
        }
    }

    async fn add_to_share(&self, request: AddRequest) -> Result<Added, Failure> {
        let AddRequest { path, bare_name } = request;
        if let (Some(name), false) = (bare_name, path.symlink_metadata().is_ok()) {
            if let Some(file) = self.share.get(&name) {
                return Ok(Added { files: vec![file], note: Some(format!("{name} is shared already")) });
            }
            let file = self.share.add_note(&name).await?;
            let note = format!("{name} exists nowhere; a small text file of that name was made");
            return Ok(Added { files: vec![file], note: Some(note) });
        }
        let files = self.share.add_copy(&path).await?;
        Ok(Added { files, note: None })
    }

    /// Waits until the tracker has a change of the share, at most [`ANNOUNCE_WAIT`].
    async fn until_announced(&self, change: ShareChange) {
        if !self.candidate && self.core.view().tracker().is_none() {
            // This peer runs for one command and does not become the tracker itself.
            return;
        }
        if timeout(ANNOUNCE_WAIT, self.core.announced(change)).await.is_err() {
            tracing::info!("the tracker does not have the change yet; it is announced when the tracker answers");
        }
    }
}

fn election_failure(why: &ElectionFailure) -> Failure {
    let (code, hint) = match why {
        ElectionFailure::NoMajority { .. } => (FailureCode::NoTracker, "try again when more peers answer"),
        ElectionFailure::Lost(_) => (FailureCode::NoTracker, "`tracker` shows who won; try again if you must"),
        ElectionFailure::NameserverUnreachable => {
            (FailureCode::NameserverUnreachable, "try again when the nameserver is back")
        }
        ElectionFailure::NotStored => (FailureCode::Io, "`status` says why; give the command to another peer"),
        ElectionFailure::NoCandidate => (FailureCode::NotRunning, "start the peer first, with a prompt or --headless"),
        ElectionFailure::Refused(_) | ElectionFailure::Busy => (FailureCode::NoTracker, "try again in a moment"),
        ElectionFailure::Stopping => (FailureCode::Interrupted, "start the peer again"),
    };
    Failure::new(code, "no new tracker was elected", why, hint)
}
