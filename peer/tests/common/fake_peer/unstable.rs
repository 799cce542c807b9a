//! A swarm member that joins, claims to have everything and leaves, again and again, without ever sending a byte.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

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

use super::{finish, service::FakeService};

/// See the module. Counts what other peers asked of it.
#[derive(Clone)]
pub(crate) struct UnstableMember {
    service: FakeService,
    /// Calls of `receiving`.
    pub(crate) receiving_calls: Arc<AtomicU32>,
    /// Swarm streams that other peers opened.
    pub(crate) swarm_streams: Arc<AtomicU32>,
}

impl UnstableMember {
    /// A member that claims to receive `file`.
    pub(crate) fn of(file: FileMeta) -> Self {
        let receiving_calls = Arc::<AtomicU32>::default();
        let count = receiving_calls.clone();
        let receiving = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            vec![file.clone()]
        });
        let service = FakeService { receiving, ..FakeService::default() };
        Self { service, receiving_calls, swarm_streams: Arc::default() }
    }
}

impl Handler for UnstableMember {
    fn stream(
        self: Arc<Self>,
        _: Arc<Remote>,
        kind: StreamKind,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match kind {
                StreamKind::Peer => serve_calls(send, recv, self.service.clone().serve()).await,
                StreamKind::Swarm => {
                    read_header::<SwarmHello>(&mut recv).await.unwrap();
                    self.swarm_streams.fetch_add(1, Ordering::Relaxed);
                    // The other peer may be gone at the end of the test.
                    let _ = write_header(&mut send, &SwarmUpdate::HasAll).await;
                    finish(send).await;
                }
                _ => {}
            }
        })
    }
}
