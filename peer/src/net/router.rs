//! Routes each stream that a remote opens to the service that answers it.

use std::sync::Arc;

use super::rpc_server;
use crate::{swarm, upload};

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

/// Gives each stream that others open to who answers it.
pub struct StreamRouter {
    /// Answers calls.
    pub service: rpc_server::RpcServer,
    /// Answers requests for files.
    pub uploads: Arc<upload::Uploads>,
    /// Talks about contents.
    pub swarms: swarm::Swarms,
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
                    let service = rpc_server::TrackerRpc(self.service.for_caller(role));
                    serve_calls(send, recv, service.serve()).await;
                }
                StreamKind::Peer => {
                    let service = rpc_server::PeerRpc(self.service.for_caller(role));
                    serve_calls(send, recv, service.serve()).await;
                }
                StreamKind::Bulk | StreamKind::Pack | StreamKind::Swarm => {
                    // Files go between peers.
                    let Role::Peer(peer) = role else { return };
                    match kind {
                        StreamKind::Bulk => self.uploads.serve(peer, &remote.connection, send, recv).await,
                        StreamKind::Pack => self.uploads.serve_pack(peer, &remote.connection, send, recv).await,
                        _ => self.swarms.accept(peer.clone(), send, recv).await,
                    }
                }
                // Not offered here: the stream ends, which the caller sees.
                StreamKind::Names | StreamKind::Enrol => {}
            }
        })
    }
}
