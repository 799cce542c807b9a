//! RPC services of a peer. A call becomes an event or a query for the core, and the core's answer the reply.
//!
//! The id of the caller comes from its certificate, never from a message.

use std::sync::Arc;

use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId, Role},
    limits,
    name::Endpoint,
    rpc::{
        nameserver::SeatView,
        peer::{DirectoryMeta, FilePage, PeerInfo, PeerService, SeatNotice, UploadReport, VoteReply, VoteRequest},
        tracker::{
            Announcement, Heartbeat, HeartbeatAck, IndexPage, ListAll, TrackerError, TrackerService, Version, WhoHas,
        },
    },
};
use tarpc::context::Context;

use crate::{
    core_handle::{CoreHandle, Stopped},
    store::Share,
    swarm::Swarms,
    upload::Uploads,
};
use protocol::election::{Event, Reply};

/// Services of one peer. Cheap to clone.
#[derive(Clone)]
pub struct RpcServer(Arc<Inner>);

struct Inner {
    me: PeerId,
    incarnation: Incarnation,
    endpoint: Endpoint,
    core: CoreHandle,
    share: Share,
    uploads: Arc<Uploads>,
    swarms: Swarms,
}

/// Services for one caller.
#[derive(Clone)]
pub struct CallerContext {
    inner: Arc<Inner>,
    caller: Role,
}

/// [`TrackerService`] for one caller.
#[derive(Clone)]
pub struct TrackerRpc(pub CallerContext);

/// [`PeerService`] for one caller.
#[derive(Clone)]
pub struct PeerRpc(pub CallerContext);

impl RpcServer {
    /// Creates the services of `me`.
    pub fn new(
        me: PeerId,
        incarnation: Incarnation,
        endpoint: Endpoint,
        core: CoreHandle,
        share: Share,
        uploads: Arc<Uploads>,
        swarms: Swarms,
    ) -> Self {
        Self(Arc::new(Inner { me, incarnation, endpoint, core, share, uploads, swarms }))
    }

    /// Returns the services for `caller`.
    pub fn for_caller(&self, caller: &Role) -> CallerContext {
        CallerContext { inner: self.0.clone(), caller: caller.clone() }
    }
}

fn stopping(_: Stopped) -> TrackerError {
    TrackerError::Unavailable("this peer is stopping".to_owned())
}

impl CallerContext {
    /// Returns the calling peer. An admin only reads.
    fn peer(&self) -> Result<PeerId, TrackerError> {
        self.caller.peer().cloned().ok_or_else(|| TrackerError::Unavailable("only peers announce".to_owned()))
    }
}

impl TrackerService for TrackerRpc {
    async fn heartbeat(self, _: Context, beat: Heartbeat) -> Result<HeartbeatAck, TrackerError> {
        let from = self.0.peer()?;
        self.0.inner.core.heartbeat(from, beat).await.map_err(stopping)?
    }

    async fn announce(self, _: Context, announcement: Announcement) -> Result<(), TrackerError> {
        let from = self.0.peer()?;
        self.0.inner.core.announce(from, announcement).await.map_err(stopping)?
    }

    async fn who_has(self, _: Context, query: WhoHas) -> Result<Vec<Version>, TrackerError> {
        // An admin receives the same answer as this peer.
        let asker = self.0.peer().unwrap_or_else(|_| self.0.inner.me.clone());
        self.0.inner.core.who_has(asker, query).await.map_err(stopping)?
    }

    async fn list_all(self, _: Context, query: ListAll) -> Result<IndexPage, TrackerError> {
        self.0.inner.core.list_all(query).await.map_err(stopping)?
    }

    async fn leave(self, _: Context, epoch: Epoch, incarnation: Incarnation) -> Result<(), TrackerError> {
        let from = self.0.peer()?;
        self.0.inner.core.leave(from, epoch, incarnation).await.map_err(stopping)?
    }
}

impl PeerService for PeerRpc {
    async fn info(self, _: Context) -> PeerInfo {
        let Inner { me, incarnation, endpoint, core, share, .. } = &*self.0.inner;
        let stats = share.stats();
        PeerInfo {
            peer: me.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: *incarnation,
            endpoint: endpoint.clone(),
            seat: core.view().seat,
            files: stats.files,
            bytes: stats.bytes,
        }
    }

    async fn list(self, _: Context, after: Option<FileName>) -> FilePage {
        // The additional file shows that there is another page.
        let mut files = self.0.inner.share.page(after.as_ref(), limits::FILES_PER_PAGE + 1);
        let more = files.len() > limits::FILES_PER_PAGE;
        files.truncate(limits::FILES_PER_PAGE);
        let next = files.last().filter(|_| more).map(|file| file.name.clone());
        FilePage { files, next }
    }

    async fn have(self, _: Context, name: String, version: Option<HashPrefix>) -> Option<FileMeta> {
        let name = name.parse().ok()?;
        let file = self.0.inner.share.get(&name)?;
        version.is_none_or(|version| version.matches(&file.hash)).then_some(file)
    }

    async fn request_vote(self, _: Context, request: VoteRequest) -> VoteReply {
        let refused = |epoch| {
            let seat = self.0.inner.core.view().seat;
            VoteReply { epoch, granted: false, seat, voted_epoch: Epoch::NONE, electors: Vec::new() }
        };
        let epoch = request.epoch;
        let Ok(from) = self.0.peer() else { return refused(epoch) };
        match self.0.inner.core.request(|token| Event::VoteRequested { token, from, request }).await {
            Ok(Reply::Vote(reply)) => reply,
            _ => refused(epoch),
        }
    }

    async fn seat_notice(self, _: Context, notice: SeatNotice) -> SeatView {
        let seen = self.0.inner.core.view().seat;
        let Ok(from) = self.0.peer() else { return seen };
        self.0.inner.core.notice(from, notice).await.unwrap_or(seen)
    }

    async fn upload_report(self, _: Context, hash: ContentHash) -> Option<UploadReport> {
        self.0.inner.uploads.report(self.0.caller.peer()?, &hash)
    }

    async fn directories(self, _: Context, mut names: Vec<String>) -> Vec<Option<DirectoryMeta>> {
        names.truncate(limits::FILES_PER_PAGE);
        let names = names.into_iter().map(|name| name.parse().ok()).collect();
        self.0.inner.share.directories(names).await.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "cannot read the metadata of directories");
            Vec::new()
        })
    }

    async fn receiving(self, _: Context, prefix: String) -> Vec<FileMeta> {
        self.0.inner.swarms.receiving(&prefix, limits::FILES_PER_PAGE)
    }
}
