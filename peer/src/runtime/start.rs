//! Start of a peer.
//!
//! ```text
//! lock ─ session (identity, socket) ─ share ─ accept connections ─ register the name ─ core ─ ready
//! ```

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use nameserver::{config::Config as NameserverConfig, server::Server};
use shared::{
    contact::Contact,
    error::{Failure, FailureCode},
    id::{Incarnation, PeerId, Role},
    limits,
    name::Endpoint,
    net::{
        Connections,
        serve::serve,
        session::{Session, SessionConfig},
    },
    time::Clock,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    core_task::{CoreTask, read_durable},
    lock,
    peer::Peer,
};
use crate::{
    config::PeerConfig,
    core_handle::CoreHandle,
    diagnostics::{
        system::Machine,
        upload_stats::UploadStats,
        warnings::{Topic, Warnings},
    },
    discovery::Discovery,
    download::{Downloader, DownloaderConfig},
    net::{
        nameserver_watch,
        registration::{Registration, RegistrationEnd},
        router::StreamRouter,
        rpc_client::RpcClient,
        rpc_server::RpcServer,
    },
    store::{Changes, Share, ShareOptions, check_apart},
    swarm::Swarms,
    transfer::throttle::Throttle,
    upload::Uploads,
};
use protocol::{
    election::{Core, CoreConfig, DurableState, Event, SeatRole},
    upload::queue::UploadLimits,
};

/// Time that a start waits for a tracker before it completes without one.
const READY_WAIT: Duration = Duration::from_millis(300);

/// State of this peer on the disk that its core starts with.
struct CoreState {
    incarnation: Incarnation,
    durable_file: PathBuf,
    durable: DurableState,
}

impl CoreState {
    fn load(state_dir: &Path) -> Result<Self, Failure> {
        let incarnation = lock::next_incarnation(&state_dir.join("incarnation"))
            .map_err(|error| Failure::unusable(state_dir, &error))?;
        let durable_file = state_dir.join("election");
        let durable = read_durable(&durable_file).map_err(|error| Failure::unusable(&durable_file, &error))?;
        Ok(Self { incarnation, durable_file, durable })
    }
}

/// Services that this peer offers to others, and its tasks.
struct Services {
    bulk: Connections,
    swarms: Swarms,
    uploads: Arc<Uploads>,
    machine: Arc<Machine>,
    calls: Arc<RpcClient>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Services {
    fn new(config: &PeerConfig, session: &Session, me: Contact, share: &Share) -> Self {
        let tasks = TaskTracker::new();
        let calls = Arc::new(RpcClient::new(session.connections.clone(), session.nameserver.clone(), tasks.clone()));
        let bulk = Connections::new(session.endpoint.clone());
        let swarms = Swarms::new(me, share.clone(), bulk.clone(), tasks.clone());
        let machine = Arc::new(Machine::default());
        let stats = UploadStats::new(machine.clone(), config.max_uploads);
        let upload_limits = UploadLimits { active: config.max_uploads, ..UploadLimits::default() };
        let uploads = Uploads::new(share.clone(), upload_limits, Throttle::new(config.limit_up), stats);
        Self { bulk, swarms, uploads, machine, calls, tasks, stop: CancellationToken::new() }
    }

    /// Accepts connections of other peers.
    fn accept(&self, session: &Session, server: RpcServer) {
        let router = StreamRouter { rpc_server: server, uploads: self.uploads.clone(), swarms: self.swarms.clone() };
        self.tasks.spawn(serve(session.endpoint.clone(), Arc::new(router), self.stop.clone()));
    }

    /// Runs the core and the tasks that feed it.
    fn run_core(&self, task: CoreTask, config: CoreConfig, core: &CoreHandle, changes: mpsc::Receiver<Changes>) {
        let clock = Clock::start();
        self.tasks.spawn(task.run(Core::new(config, clock.now()), clock, self.calls.clone()));
        self.tasks.spawn(forward_changes(changes, core.clone()));
        let (calls, core, stop) = (self.calls.clone(), core.clone(), self.stop.clone());
        self.tasks.spawn(async move { nameserver_watch::watch(&calls, &core, stop).await });
    }

    /// Keeps the registration. Returns the failure that ends the peer, and whether the name is registered.
    fn keep_registration(
        &self,
        registration: Registration,
        core: &CoreHandle,
    ) -> (oneshot::Receiver<Failure>, watch::Receiver<bool>) {
        let (end, ended) = oneshot::channel();
        let (unregister, registered) = watch::channel(true);
        let (id, stop) = (registration.id.clone(), self.stop.clone());
        let kept = async move {
            let ended = registration.keep(stop).await;
            unregister.send_replace(false);
            ended
        };
        self.tasks.spawn(supervise(kept, core.clone(), id, end));
        (ended, registered)
    }
}

impl Peer {
    /// Starts a peer and joins the network. Other peers can reach it when this returns.
    ///
    /// # Errors
    /// `AlreadyRunning`, `NameserverUnreachable`, `NotAuthorised`, `LimitReached`, or `Io` if a directory cannot be
    /// used.
    pub async fn start(config: PeerConfig) -> Result<Self, Failure> {
        // Before anything is written into a folder that the peer would share.
        check_apart(&config.share_dir, &config.state_dir)?;
        let state_dir = config.peer_state_dir();
        let lock = lock::acquire(&state_dir, &config.id)?;
        let CoreState { incarnation, durable_file, durable } = CoreState::load(&state_dir)?;
        let (session, embedded_nameserver) = open_session(&config).await?;
        let endpoint = session.advertised().map_err(|error| Failure::unusable(&state_dir, &error))?;
        let warnings = Warnings::default();
        if let Some(warning) = &session.buffer_warning {
            warnings.set(Topic::Machine, "UDP buffers", warning);
        }
        let private = vec![config.state_dir.clone()];
        let share_options = ShareOptions { warnings: warnings.clone(), private, ..ShareOptions::default() };
        let (share_events, changes) = mpsc::channel(limits::MAX_QUEUED_EVENTS);
        let share = Share::open(&config.share_dir, &state_dir, share_options, share_events).await?;

        let (core_task, core) = CoreTask::new(durable_file);
        let me = Contact { peer: config.id.clone(), endpoint: endpoint.clone() };
        let services = Services::new(&config, &session, me, &share);
        let (uploads, swarms) = (services.uploads.clone(), services.swarms.clone());
        let id = config.id.clone();
        let server = RpcServer::new(id, incarnation, endpoint.clone(), core.clone(), share.clone(), uploads, swarms);
        // Other peers can call as soon as the name is registered, so accepting connections comes first.
        services.accept(&session, server);
        let registration = registration(&config, &session, incarnation, &endpoint);
        registration.register().await?;
        let core_config =
            CoreConfig { id: config.id.clone(), incarnation, endpoint: endpoint.clone(), seed: incarnation.0, durable };
        services.run_core(core_task, core_config, &core, changes);
        let (ended, registered) = services.keep_registration(registration, &core);

        let discovery = Discovery {
            me: config.id.clone(),
            node: core.clone(),
            connections: session.connections.clone(),
            calls: services.calls,
            share: share.clone(),
            last_seen: Arc::default(),
        };
        let downloader = Downloader::new(DownloaderConfig {
            me: config.id.clone(),
            share: share.clone(),
            // Separate from the connections for calls, so that no heartbeat waits behind a file.
            bulk: services.bulk,
            swarms: services.swarms,
            discovery: discovery.clone(),
            throttle: Throttle::new(config.limit_down),
            machine: services.machine,
            clamped_buffer: session.clamped_buffer,
        });
        let peer = Self {
            id: config.id,
            endpoint,
            nameserver: session.nameserver.endpoint,
            share,
            core,
            discovery,
            uploads: services.uploads,
            downloader,
            connections: session.connections,
            upload_slots: config.max_uploads,
            warnings,
            stop: services.stop,
            tasks: services.tasks,
            ended: Mutex::new(Some(ended)),
            registered,
            embedded_nameserver: tokio::sync::Mutex::new(embedded_nameserver),
            _lock: lock,
        };
        peer.wait_for_tracker(READY_WAIT).await;
        Ok(peer)
    }

    async fn wait_for_tracker(&self, wait: Duration) {
        let mut views = self.core.watch();
        let known = views.wait_for(|view| view.role != SeatRole::Electing);
        if timeout(wait, known).await.is_err() {
            tracing::info!("no tracker is known yet");
        }
    }
}

fn registration(config: &PeerConfig, session: &Session, incarnation: Incarnation, endpoint: &Endpoint) -> Registration {
    Registration {
        connections: session.connections.clone(),
        nameserver: session.nameserver.clone(),
        id: config.id.clone(),
        incarnation,
        endpoint: endpoint.clone(),
    }
}

/// Opens the session. If no nameserver answers and the configuration permits it, starts one in this process first.
async fn open_session(config: &PeerConfig) -> Result<(Session, Option<Server>), Failure> {
    let session_config = SessionConfig {
        role: Role::Peer(config.id.clone()),
        state_dir: config.state_dir.clone(),
        nameserver: config.nameserver.clone(),
        join: config.join.clone(),
    };
    match Session::open(&session_config).await {
        Ok(session) => Ok((session, None)),
        Err(failure) if failure.code == FailureCode::NameserverUnreachable && config.with_nameserver => {
            let server = match start_nameserver(config).await {
                Ok(server) => Some(server),
                // Another peer may have become the nameserver in the meantime.
                Err(failure) => return Session::open(&session_config).await.map(|it| (it, None)).map_err(|_| failure),
            };
            Ok((Session::open(&session_config).await?, server))
        }
        Err(failure) => Err(failure),
    }
}

async fn start_nameserver(config: &PeerConfig) -> Result<Server, Failure> {
    let mut nameserver = NameserverConfig::new(config.state_dir.clone());
    if let Some(endpoint) = &config.nameserver {
        nameserver.host = endpoint.host.clone();
        nameserver.port = endpoint.port;
    }
    let server = Server::start(nameserver).await?;
    tracing::info!(address = %server.local_addr(), "started a nameserver in this process");
    Ok(server)
}

/// Forwards changes of the share to the core.
async fn forward_changes(mut changes: mpsc::Receiver<Changes>, core: CoreHandle) {
    while let Some(Changes { upserts, removals }) = changes.recv().await {
        if core.send(Event::ShareChanged { upserts, removals }).await.is_err() {
            return;
        }
    }
}

/// Sends a failure to `end` if the registration or the core ends although the peer was not stopped.
async fn supervise(
    registration: impl Future<Output = RegistrationEnd>,
    core: CoreHandle,
    id: PeerId,
    end: oneshot::Sender<Failure>,
) {
    let mut views = core.watch();
    let mut registration = pin!(registration);
    let stopped = async {
        match views.wait_for(|view| view.stopped.is_some()).await {
            Ok(view) => view.stopped.clone().and_then(Result::err),
            Err(_) => None,
        }
    };
    let why = tokio::select! {
        ended = &mut registration => match ended {
            RegistrationEnd::Lost(why) => Some(why),
            RegistrationEnd::Stopped => None,
        },
        why = stopped => {
            if why.is_none() {
                // The peer was stopped. The registration removes the name when its token is cancelled.
                registration.await;
            }
            why
        }
    };
    if let Some(why) = why {
        let failure = Failure::new(
            FailureCode::AlreadyRunning,
            format!("{id} cannot go on"),
            why,
            "start it again when that is solved",
        );
        // Fails only if the process ends at the same time.
        let _ = end.send(failure);
    }
}
