//! An owner that serves its files correctly and gives hostile replies to `directories`: absurd metadata, too many or
//! too few entries, silence, or bytes that are no reply.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use futures::future::{BoxFuture, FutureExt as _, ready};
use shared::{
    net::{
        StreamKind,
        rpc_transport::serve_calls,
        serve::{Handler, Remote},
    },
    rpc::peer::{DirectoryMeta, PeerService as _},
};

use super::{corrupt::CorruptOwner, service::FakeService};

/// Reply to `directories`.
#[derive(Clone)]
pub(crate) enum Reply {
    /// These entries, repeated from the first, as many as there are names in the call plus this number.
    Entries(Vec<Option<DirectoryMeta>>, isize),
    /// No reply.
    Silence,
    /// These bytes on every stream of calls, in place of any reply.
    Raw(Vec<u8>),
}

/// See the module. Clones share their state.
#[derive(Clone)]
pub(crate) struct HostileDirectories {
    /// Serves the files.
    pub(crate) files: Arc<CorruptOwner>,
    /// Reply from now on.
    pub(crate) reply: Arc<Mutex<Reply>>,
    /// Calls of `directories`.
    pub(crate) calls: Arc<AtomicU32>,
}

impl Handler for HostileDirectories {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        mut send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        if kind != StreamKind::Peer {
            return self.files.clone().stream(remote, kind, send, recv);
        }
        Box::pin(async move {
            let reply = self.reply.lock().unwrap().clone();
            if let Reply::Raw(bytes) = reply {
                self.calls.fetch_add(1, Ordering::Relaxed);
                // The caller may have closed the stream by then.
                let _ = send.write_all(&bytes).await;
                let _ = send.stopped().await;
                return;
            }
            let directories = move |names: Vec<String>| {
                self.calls.fetch_add(1, Ordering::Relaxed);
                match &*self.reply.lock().unwrap() {
                    Reply::Entries(metas, more) => {
                        let count = names.len().saturating_add_signed(*more);
                        ready(metas.iter().copied().cycle().take(count).collect()).boxed()
                    }
                    Reply::Silence | Reply::Raw(_) => pending().boxed(),
                }
            };
            let service = FakeService { directories: Arc::new(directories), ..FakeService::default() };
            serve_calls(send, recv, service.serve()).await;
        })
    }
}
