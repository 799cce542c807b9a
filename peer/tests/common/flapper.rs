//! A member that says it receives a file, says that it has all of it, and is gone, again and again.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::future::BoxFuture;
use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    file_name::FileName,
    net::{
        StreamKind,
        bulk::{read_header, write_header},
        rpc_transport::serve_calls,
        serve::{Handler, Remote},
        swarm::{SwarmHello, SwarmNews},
    },
    rpc::{
        nameserver::SeatView,
        peer::{DirectoryMeta, FilePage, PeerInfo, PeerService, SeatNotice, UploadReport, VoteReply, VoteRequest},
    },
};
use tarpc::context::Context;

/// See the module. What was asked of it.
#[derive(Clone)]
pub(crate) struct Flapper {
    file: FileMeta,
    /// How often somebody asked what it receives.
    pub(crate) asked: Arc<AtomicU32>,
    /// How often somebody talked to it about the content.
    pub(crate) talks: Arc<AtomicU32>,
}

impl Flapper {
    /// Says that it receives `file`.
    pub(crate) fn of(file: FileMeta) -> Self {
        Self { file, asked: Arc::default(), talks: Arc::default() }
    }
}

impl Handler for Flapper {
    fn stream(
        self: Arc<Self>,
        _: Arc<Remote>,
        kind: StreamKind,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match kind {
                StreamKind::Peer => serve_calls(send, recv, Self::clone(&self).serve()).await,
                StreamKind::Swarm => {
                    read_header::<SwarmHello>(&mut recv).await.unwrap();
                    self.talks.fetch_add(1, Ordering::Relaxed);
                    // The other may be gone at the end of the test.
                    let _ = write_header(&mut send, &SwarmNews::HasAll).await;
                    let _ = send.finish();
                    let _ = send.stopped().await;
                }
                _ => {}
            }
        })
    }
}

/// What is not needed is not answered.
impl PeerService for Flapper {
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
        vec![None; names.len()]
    }

    async fn receiving(self, _: Context, _: String) -> Vec<FileMeta> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        vec![self.file]
    }
}
