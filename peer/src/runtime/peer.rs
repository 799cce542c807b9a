//! Running peer: the parts that it is composed of, and its stop.

use std::{
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use nameserver::server::Server;
use protocol::election::Event;
use shared::{
    error::Failure,
    id::PeerId,
    limits,
    name::Endpoint,
    net::{CloseCode, Connections},
};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    core_handle::CoreHandle, diagnostics::warnings::Warnings, discovery::Discovery, download::Downloader,
    net::registration::RegistrationState, store::Share, upload::Uploads,
};

/// Running peer. [`Peer::stop`] leaves the network; a drop without it has the effect of a crash.
pub struct Peer {
    pub(crate) id: PeerId,
    pub(crate) endpoint: Endpoint,
    pub(crate) nameserver: Endpoint,
    pub(crate) share: Share,
    pub(crate) core: CoreHandle,
    pub(crate) discovery: Discovery,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) connections: Connections,
    pub(crate) downloader: Downloader,
    /// Number of upload slots.
    pub(crate) upload_slots: usize,
    pub(crate) warnings: Warnings,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// Failure that ends the peer; taken by [`Peer::failed`].
    pub(super) ended: Mutex<Option<oneshot::Receiver<Failure>>>,
    /// True if this peer stands for election.
    pub(super) candidate: bool,
    pub(super) registered: watch::Receiver<RegistrationState>,
    /// True once this peer has joined the network without the nameserver, or with it from the start.
    pub(super) joined: watch::Receiver<bool>,
    pub(super) embedded_nameserver: tokio::sync::Mutex<Option<Server>>,
    /// Lock of the state directory.
    pub(super) _lock: File,
}

impl Peer {
    /// Id of this peer.
    pub fn id(&self) -> &PeerId {
        &self.id
    }

    /// Endpoint of this peer.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for the failure that ends the peer although it was not stopped. Only the first call returns it.
    pub async fn failed(&self) -> Failure {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended
            && let Ok(failure) = ended.await
        {
            return failure;
        }
        std::future::pending().await
    }

    /// Waits until this peer has joined the network: the nameserver has registered it, or a peer that it knew answers.
    pub async fn joined(&self) {
        let (mut registered, mut joined) = (self.registered.clone(), self.joined.clone());
        // An error means that the task has ended without the state.
        let joins = tokio::select! {
            joins = async { registered.wait_for(|state| *state == RegistrationState::Registered).await.is_ok() } => joins,
            joins = async { joined.wait_for(|joined| *joined).await.is_ok() } => joins,
        };
        if !joins {
            std::future::pending::<()>().await;
        }
    }

    /// Leaves the network: gives up the tracker seat, notifies the other peers, removes the name and closes the
    /// connections. Takes a bounded time. A second call does nothing.
    pub async fn stop(&self) {
        if self.core.send(Event::Shutdown).await.is_ok() {
            let mut views = self.core.watch();
            let stopped = views.wait_for(|view| view.stopped.is_some());
            if timeout(limits::CLOSE_DEADLINE * 4, stopped).await.is_err() {
                tracing::warn!("the core did not stop in time");
            }
        }
        self.stop.cancel();
        // The name is removed while the connection to the nameserver is open. The close below ends everything else.
        let mut registered = self.registered.clone();
        if timeout(limits::CLOSE_DEADLINE, registered.wait_for(|state| *state == RegistrationState::Ended))
            .await
            .is_err()
        {
            tracing::debug!("the name stays until its lease expires");
        }
        self.connections.close(CloseCode::ShuttingDown, "the peer stops").await;
        self.tasks.close();
        if timeout(limits::CLOSE_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::debug!("aborting tasks that did not end in time");
        }
        if let Some(server) = self.embedded_nameserver.lock().await.take() {
            server.shutdown().await;
        }
    }
}
