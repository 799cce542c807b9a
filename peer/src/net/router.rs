//! Dispatch of the streams that other members open.

use std::sync::Arc;

use futures::future::BoxFuture;
use shared::{
    id::Role,
    net::{
        StreamKind,
        rpc_transport::serve_calls,
        serve::{Handler, Remote},
    },
    rpc::{peer::PeerService as _, tracker::TrackerService as _},
};

use super::rpc_server::{PeerRpc, RpcServer, TrackerRpc};
use crate::{swarm::Swarms, upload::Uploads};

/// Routes incoming streams by their kind.
pub struct StreamRouter {
    /// Serves calls.
    pub rpc_server: RpcServer,
    /// Serves bulk and pack streams.
    pub uploads: Arc<Uploads>,
    /// Serves swarm streams.
    pub swarms: Swarms,
}

impl Handler for StreamRouter {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(role) = remote.member() else { return };
            match kind {
                StreamKind::Tracker => {
                    let service = TrackerRpc(self.rpc_server.for_caller(role));
                    serve_calls(send, recv, service.serve()).await;
                }
                StreamKind::Peer => {
                    let service = PeerRpc(self.rpc_server.for_caller(role));
                    serve_calls(send, recv, service.serve()).await;
                }
                StreamKind::Bulk | StreamKind::Pack | StreamKind::Swarm => {
                    // Only peers transfer files.
                    let Role::Peer(peer) = role else { return };
                    match kind {
                        StreamKind::Bulk => self.uploads.serve(peer, &remote.connection, send, recv).await,
                        StreamKind::Pack => self.uploads.serve_pack(peer, &remote.connection, send, recv).await,
                        _ => self.swarms.accept(peer.clone(), send, recv).await,
                    }
                }
                // A peer does not serve these. Dropping the stream ends it.
                StreamKind::Names | StreamKind::Enrol => {}
            }
        })
    }
}
