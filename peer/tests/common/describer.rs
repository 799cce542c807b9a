//! An owner that sends what it announced and says whatever a test wants of its directories.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

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

use super::{answers::Answers, liar::Liar};

/// What it says of directories.
#[derive(Clone)]
pub(crate) enum Description {
    /// These, one after another and again from the first, as many as there are names and so many more or fewer.
    These(Vec<Option<DirectoryMeta>>, isize),
    /// Nothing, ever.
    Silence,
    /// These bytes, as they are, on every stream of calls.
    Raw(Vec<u8>),
}

/// See the module. Clones are one.
#[derive(Clone)]
pub(crate) struct Describer {
    /// Sends the files.
    pub(crate) files: Arc<Liar>,
    /// From now on.
    pub(crate) says: Arc<Mutex<Description>>,
    /// How often it was asked.
    pub(crate) asked: Arc<AtomicU32>,
}

impl Handler for Describer {
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
            let says = self.says.lock().unwrap().clone();
            if let Description::Raw(bytes) = says {
                self.asked.fetch_add(1, Ordering::Relaxed);
                // The other may have closed it by then.
                let _ = send.write_all(&bytes).await;
                let _ = send.stopped().await;
                return;
            }
            let directories = move |names: Vec<String>| {
                self.asked.fetch_add(1, Ordering::Relaxed);
                match &*self.says.lock().unwrap() {
                    Description::These(metas, more) => {
                        let count = names.len().saturating_add_signed(*more);
                        ready(metas.iter().copied().cycle().take(count).collect()).boxed()
                    }
                    Description::Silence | Description::Raw(_) => pending().boxed(),
                }
            };
            serve_calls(send, recv, Answers { directories: Arc::new(directories), ..Answers::default() }.serve()).await;
        })
    }
}
