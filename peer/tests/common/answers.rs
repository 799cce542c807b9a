//! What an impostor answers to calls.

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

/// What it says of directories, in the order of their names.
type Described = BoxFuture<'static, Vec<Option<DirectoryMeta>>>;

/// See the module. What no test needs is not answered, or with nothing.
#[derive(Clone)]
pub(crate) struct Answers {
    /// What it says that it receives.
    pub(crate) receiving: Arc<dyn Fn() -> Vec<FileMeta> + Send + Sync>,
    /// What it says of directories.
    pub(crate) directories: Arc<dyn Fn(Vec<String>) -> Described + Send + Sync>,
}

impl Default for Answers {
    fn default() -> Self {
        Self { receiving: Arc::new(Vec::new), directories: Arc::new(|names| ready(vec![None; names.len()]).boxed()) }
    }
}

impl PeerService for Answers {
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
