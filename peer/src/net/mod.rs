//! The peer on the network: calls that others make, calls that it makes, and the streams of files it sends.
//!
//! | room | what is in it |
//! |---|---|
//! | [`service`] | the tarpc services it offers, as events for the node |
//! | [`calls`] | the calls that the core wants made, their outcome as events |
//! | [`uploads`], `pack_uploads` | bulk streams and packs it serves |
//! | `looks` | what they sent, when a receiver says that it was wrong |
//! | [`pace`] | how fast |
//! | [`reports`] | where the time of uploads went |
//! | [`swarms`], `room` | who receives what, and tells the others what it has by now |
//! | [`watching`] | who is registered, as it changes |
//! | [`registration`] | its name in the nameserver, kept alive |

pub mod calls;
mod looks;
pub mod pace;
mod pack_uploads;
pub mod registration;
mod room;
pub mod service;
pub mod swarms;
pub mod uploads;
pub mod watching;

use std::sync::Arc;

use futures::future::BoxFuture;
use shared::id::Role;
use shared::net::{
    StreamKind,
    rpc_transport::serve_calls,
    serve::{Handler, Remote},
};
use shared::rpc::{peer::PeerService as _, tracker::TrackerService as _};

/// Gives each stream that others open to who answers it.
pub struct Front {
    /// Answers calls.
    pub service: service::Service,
    /// Answers requests for files.
    pub uploads: Arc<uploads::Uploads>,
    /// Talks about contents.
    pub swarms: swarms::Swarms,
}

impl Handler for Front {
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
                    let service = service::TrackerApi(self.service.for_caller(role));
                    serve_calls(send, recv, service.serve()).await;
                }
                StreamKind::Peer => {
                    let service = service::PeerApi(self.service.for_caller(role));
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
