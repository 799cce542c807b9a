//! Replies of a fake peer to calls of `PeerService`.

use std::{future::pending, sync::Arc};

use futures::future::{BoxFuture, FutureExt as _, ready};
use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    file_name::FileName,
    rpc::{
        nameserver::SeatView,
        peer::{DirectoryMeta, FilePage, PeerInfo, PeerService, SeatNotice, UploadReport, VoteReply, VoteRequest},
    },
};
use tarpc::context::Context;

/// Metadata of directories, in the order of the names in the call.
type DirectoryReply = BoxFuture<'static, Vec<Option<DirectoryMeta>>>;

/// A `PeerService` with replaceable replies to `receiving` and `directories`. Votes, notices and `info` get no reply;
/// everything else gets an empty one.
#[derive(Clone)]
pub(crate) struct FakeService {
    /// Reply to `receiving`.
    pub(crate) receiving: Arc<dyn Fn() -> Vec<FileMeta> + Send + Sync>,
    /// Reply to `directories`.
    pub(crate) directories: Arc<dyn Fn(Vec<String>) -> DirectoryReply + Send + Sync>,
}

impl Default for FakeService {
    fn default() -> Self {
        Self { receiving: Arc::new(Vec::new), directories: Arc::new(|names| ready(vec![None; names.len()]).boxed()) }
    }
}

impl PeerService for FakeService {
    async fn info(self, _: Context) -> PeerInfo {
        pending().await
    }

    async fn list(self, _: Context, _: Option<FileName>) -> FilePage {
        FilePage { files: Vec::new(), next: None }
    }

    async fn have(self, _: Context, _: String, _: Option<HashPrefix>) -> Option<FileMeta> {
        None
    }

    async fn request_vote(self, _: Context, _: VoteRequest) -> VoteReply {
        pending().await
    }

    async fn seat_notice(self, _: Context, _: SeatNotice) -> SeatView {
        pending().await
    }

    async fn upload_report(self, _: Context, _: ContentHash) -> Option<UploadReport> {
        None
    }

    async fn directories(self, _: Context, names: Vec<String>) -> Vec<Option<DirectoryMeta>> {
        (self.directories)(names).await
    }

    async fn receiving(self, _: Context, _: String) -> Vec<FileMeta> {
        (self.receiving)()
    }
}
