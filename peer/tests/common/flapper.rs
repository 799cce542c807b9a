//! A member that says it receives a file, says that it has all of it, and is gone, again and again.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures::future::BoxFuture;
use shared::{
    content::FileMeta,
    net::{
        StreamKind,
        bulk::{read_header, write_header},
        rpc_transport::serve_calls,
        serve::{Handler, Remote},
        swarm::{SwarmHello, SwarmUpdate},
    },
    rpc::peer::PeerService as _,
};

use super::answers::Answers;

/// See the module. What was asked of it.
#[derive(Clone)]
pub(crate) struct Flapper {
    answers: Answers,
    /// How often somebody asked what it receives.
    pub(crate) asked: Arc<AtomicU32>,
    /// How often somebody talked to it about the content.
    pub(crate) talks: Arc<AtomicU32>,
}

impl Flapper {
    /// Says that it receives `file`.
    pub(crate) fn of(file: FileMeta) -> Self {
        let asked = Arc::<AtomicU32>::default();
        let count = asked.clone();
        let receiving = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            vec![file.clone()]
        });
        Self { answers: Answers { receiving, ..Answers::default() }, asked, talks: Arc::default() }
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
                StreamKind::Peer => serve_calls(send, recv, self.answers.clone().serve()).await,
                StreamKind::Swarm => {
                    read_header::<SwarmHello>(&mut recv).await.unwrap();
                    self.talks.fetch_add(1, Ordering::Relaxed);
                    // The other may be gone at the end of the test.
                    let _ = write_header(&mut send, &SwarmUpdate::HasAll).await;
                    let _ = send.finish();
                    let _ = send.stopped().await;
                }
                _ => {}
            }
        })
    }
}
