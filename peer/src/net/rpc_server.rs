//! The services that every peer offers: a call becomes an event or a look, and the core's answer its reply.
//!
//! The caller's id comes from its certificate, never from a message.

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
use protocol::election::{Event, Reply, Token};

/// What the services need.
#[derive(Clone)]
pub struct RpcServer(Arc<Inner>);

struct Inner {
    me: PeerId,
    incarnation: Incarnation,
    endpoint: Endpoint,
    node: CoreHandle,
    share: Share,
    uploads: Arc<Uploads>,
    swarms: Swarms,
}

/// The services as one caller sees them.
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
    /// Services of `me`.
    pub fn new(
        me: PeerId,
        incarnation: Incarnation,
        endpoint: Endpoint,
        node: CoreHandle,
        share: Share,
        uploads: Arc<Uploads>,
        swarms: Swarms,
    ) -> Self {
        Self(Arc::new(Inner { me, incarnation, endpoint, node, share, uploads, swarms }))
    }

    /// The services as `caller` sees them.
    pub fn for_caller(&self, caller: &Role) -> CallerContext {
        CallerContext { inner: self.0.clone(), caller: caller.clone() }
    }
}

fn stopping(_: Stopped) -> TrackerError {
    TrackerError::Unavailable("this peer is stopping".to_owned())
}

/// A reply of another kind than was asked for cannot come from the core.
fn mismatched() -> TrackerError {
    TrackerError::Unavailable("an internal answer was of the wrong kind".to_owned())
}

impl CallerContext {
    /// The calling peer; admins read, but have nothing to announce.
    fn peer(&self) -> Result<PeerId, TrackerError> {
        self.caller.peer().cloned().ok_or_else(|| TrackerError::Unavailable("only peers announce".to_owned()))
    }

    async fn ask(&self, make: impl FnOnce(Token) -> Event + Send + 'static) -> Result<Reply, TrackerError> {
        self.inner.node.request(make).await.map_err(stopping)
    }
}

impl TrackerService for TrackerRpc {
    async fn heartbeat(self, _: Context, beat: Heartbeat) -> Result<HeartbeatAck, TrackerError> {
        let from = self.0.peer()?;
        match self.0.ask(|token| Event::HeartbeatReceived { token, from, beat }).await? {
            Reply::Heartbeat(answer) => answer,
            _ => Err(mismatched()),
        }
    }

    async fn announce(self, _: Context, announcement: Announcement) -> Result<(), TrackerError> {
        let from = self.0.peer()?;
        match self.0.ask(|token| Event::AnnouncementReceived { token, from, announcement }).await? {
            Reply::Announcement(answer) => answer,
            _ => Err(mismatched()),
        }
    }

    async fn who_has(self, _: Context, query: WhoHas) -> Result<Vec<Version>, TrackerError> {
        // An admin asks as this peer would.
        let asker = self.0.peer().unwrap_or_else(|_| self.0.inner.me.clone());
        self.0.inner.node.who_has(asker, query).await.map_err(stopping)?
    }

    async fn list_all(self, _: Context, query: ListAll) -> Result<IndexPage, TrackerError> {
        self.0.inner.node.list_all(query).await.map_err(stopping)?
    }

    async fn leave(self, _: Context, epoch: Epoch, incarnation: Incarnation) -> Result<(), TrackerError> {
        let from = self.0.peer()?;
        match self.0.ask(move |token| Event::LeaveReceived { token, from, epoch, incarnation }).await? {
            Reply::Leave(answer) => answer,
            _ => Err(mismatched()),
        }
    }
}

impl PeerService for PeerRpc {
    async fn info(self, _: Context) -> PeerInfo {
        let Inner { me, incarnation, endpoint, node, share, .. } = &*self.0.inner;
        let stats = share.stats();
        PeerInfo {
            peer: me.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: *incarnation,
            endpoint: endpoint.clone(),
            seat: node.view().seat,
            files: stats.files,
            bytes: stats.bytes,
        }
    }

    async fn list(self, _: Context, after: Option<FileName>) -> FilePage {
        // One more than a page tells whether there is a next.
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
            let seat = self.0.inner.node.view().seat;
            VoteReply { epoch, granted: false, seat, voted_epoch: Epoch::NONE, electors: Vec::new() }
        };
        let epoch = request.epoch;
        let Ok(from) = self.0.peer() else { return refused(epoch) };
        match self.0.ask(|token| Event::VoteRequested { token, from, request }).await {
            Ok(Reply::Vote(reply)) => reply,
            _ => refused(epoch),
        }
    }

    async fn seat_notice(self, _: Context, notice: SeatNotice) -> SeatView {
        let seen = self.0.inner.node.view().seat;
        let Ok(from) = self.0.peer() else { return seen };
        match self.0.ask(|token| Event::NoticeReceived { token, from, notice }).await {
            Ok(Reply::Notice(view)) => view,
            _ => seen,
        }
    }

    async fn upload_report(self, _: Context, hash: ContentHash) -> Option<UploadReport> {
        self.0.inner.uploads.report(self.0.caller.peer()?, &hash)
    }

    async fn directories(self, _: Context, mut names: Vec<String>) -> Vec<Option<DirectoryMeta>> {
        names.truncate(limits::FILES_PER_PAGE);
        let names = names.into_iter().map(|name| name.parse().ok()).collect();
        self.0.inner.share.directories(names).await.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "what is known of directories cannot be told");
            Vec::new()
        })
    }

    async fn receiving(self, _: Context, prefix: String) -> Vec<FileMeta> {
        self.0.inner.swarms.receiving(&prefix, limits::FILES_PER_PAGE)
    }
}
