//! Start of a peer.
//!
//! ```text
//! lock ─ session (identity, socket) ─ share ─ accept connections ─ register the name ─ core ─ ready
//! ```
//!
//! Without the nameserver the session uses the stored identity, and the peers of an earlier run take the place of the
//! registration, which goes on in the background.

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
        CloseCode, Connections,
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

use super::{core_task::CoreTask, durable_file, lock, params::READY_WAIT, peer::Peer};
use crate::{
    config::{PeerConfig, Purpose},
    core_handle::{CoreEnd, CoreHandle},
    diagnostics::{
        system::Machine,
        upload_stats::UploadStats,
        warnings::{Topic, Warnings},
    },
    discovery::Discovery,
    download::{Downloader, DownloaderConfig},
    net::{
        known_peers, nameserver_watch,
        registration::{Registration, RegistrationEnd, RegistrationState},
        rejoin::{ask, rejoin},
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

/// State of this peer on the disk that its core starts with.
struct CoreState {
    incarnation: Incarnation,
    durable_file: PathBuf,
    durable: DurableState,
}

impl CoreState {
    fn load(state_dir: &Path, warnings: &Warnings) -> Result<Self, Failure> {
        let durable_file = state_dir.join("election");
        let durable = durable_file::load(&durable_file)?;
        let incarnation = lock::next_incarnation(&state_dir.join("incarnation"), warnings)?;
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

    /// Keeps the registration, which has the `state`. Returns the failure that ends the peer, and the state.
    fn keep_registration(
        &self,
        registration: Registration,
        state: RegistrationState,
        core: &CoreHandle,
    ) -> (oneshot::Receiver<Failure>, watch::Receiver<RegistrationState>) {
        let (end, ended) = oneshot::channel();
        let (publish, state) = watch::channel(state);
        let (id, stop) = (registration.id.clone(), self.stop.clone());
        let kept = async move {
            let ended = registration.keep(&publish, stop).await;
            publish.send_replace(RegistrationState::Ended);
            ended
        };
        self.tasks.spawn(supervise(kept, core.clone(), id, end));
        (ended, state)
    }

    /// Remembers the known peers. While the nameserver has not registered this peer, joins those of an earlier run.
    /// Returns whether this peer has joined the network.
    fn keep_known_peers(
        &self,
        known: KnownPeers,
        me: PeerId,
        core: &CoreHandle,
        registration: watch::Receiver<RegistrationState>,
        warnings: &Warnings,
    ) -> watch::Receiver<bool> {
        let KnownPeers { file, contacts } = known;
        let waiting = *registration.borrow() == RegistrationState::Waiting;
        let (joined, has_joined) = watch::channel(!waiting);
        if waiting {
            let (calls, core, stop) = (self.calls.clone(), core.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                // Fails only if the core has stopped.
                let _ = core.send(Event::PeersRemembered { peers: contacts.clone() }).await;
                rejoin(contacts, calls, core, registration, joined, stop).await;
            });
        }
        self.tasks.spawn(known_peers::keep(file, me, core.clone(), warnings.clone(), self.stop.clone()));
        has_joined
    }

    /// Ends the tasks of a start that failed.
    async fn abandon(&self, session: &Session) {
        self.stop.cancel();
        session.connections.close(CloseCode::ShuttingDown, "the peer does not start").await;
    }
}

/// Peers that an earlier run knew, and the file that keeps them.
struct KnownPeers {
    file: PathBuf,
    contacts: Vec<Contact>,
}

/// Session of a start.
struct Opened {
    session: Session,
    embedded_nameserver: Option<Server>,
    /// Reason why the nameserver was not reached.
    unreachable: Option<Failure>,
}

impl Peer {
    /// Starts a peer and joins the network. Other peers can reach it when this returns, unless the peer is a service and
    /// the nameserver does not answer: then it waits in the background, see [`Peer::joined`].
    ///
    /// # Errors
    /// `AlreadyRunning`, `NameserverUnreachable`, `NotAuthorised`, `LimitReached`, or `Io` if a directory cannot be
    /// used.
    pub async fn start(config: PeerConfig) -> Result<Self, Failure> {
        // Before anything is written into a folder that the peer would share.
        check_apart(&config.share_dir, &config.state_dir)?;
        let state_dir = config.peer_state_dir();
        let warnings = Warnings::default();
        let lock = lock::acquire(&state_dir, &config.id).await?;
        let CoreState { incarnation, durable_file, durable } = CoreState::load(&state_dir, &warnings)?;
        let file = state_dir.join("peers");
        let known = KnownPeers { contacts: known_peers::load(&file), file };
        let Opened { session, embedded_nameserver, unreachable } = open_session(&config, &known.contacts).await?;
        let endpoint = session.advertised().map_err(|error| Failure::unusable(&state_dir, &error))?;
        if let Some(warning) = &session.buffer_warning {
            warnings.set(Topic::Machine, "UDP buffers", warning);
        }
        let private = vec![config.state_dir.clone()];
        let share_options = ShareOptions { warnings: warnings.clone(), private, ..ShareOptions::default() };
        let (share_events, changes) = mpsc::channel(limits::MAX_QUEUED_EVENTS);
        let share = Share::open(&config.share_dir, &state_dir, share_options, share_events).await?;

        let (core_task, core) = CoreTask::new(durable_file, warnings.clone());
        let me = Contact { peer: config.id.clone(), endpoint: endpoint.clone() };
        let services = Services::new(&config, &session, me, &share);
        let (uploads, swarms) = (services.uploads.clone(), services.swarms.clone());
        let id = config.id.clone();
        let server = RpcServer::new(id, incarnation, endpoint.clone(), core.clone(), share.clone(), uploads, swarms);
        // Other peers can call as soon as the name is registered, so accepting connections comes first.
        services.accept(&session, server);
        let registration = Registration {
            calls: services.calls.clone(),
            id: config.id.clone(),
            incarnation,
            endpoint: endpoint.clone(),
            warnings: warnings.clone(),
        };
        let state = match join(&config, &registration, unreachable, &known.contacts).await {
            Ok(state) => state,
            Err(failure) => {
                services.abandon(&session).await;
                return Err(failure);
            }
        };
        let core_config = CoreConfig {
            id: config.id.clone(),
            incarnation,
            endpoint: endpoint.clone(),
            seed: incarnation.0,
            durable,
            candidate: config.purpose != Purpose::Command,
        };
        services.run_core(core_task, core_config, &core, changes);
        let (ended, registered) = services.keep_registration(registration, state, &core);
        let joined = services.keep_known_peers(known, config.id.clone(), &core, registered.clone(), &warnings);

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
            candidate: config.purpose != Purpose::Command,
            stop: services.stop,
            tasks: services.tasks,
            ended: Mutex::new(Some(ended)),
            registered,
            joined,
            embedded_nameserver: tokio::sync::Mutex::new(embedded_nameserver),
            _lock: lock,
        };
        if state == RegistrationState::Registered {
            peer.wait_for_tracker(READY_WAIT).await;
        }
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

/// Registers the name, unless the nameserver is `unreachable`. Without the nameserver a service goes on and waits;
/// another peer needs an answer of one of the `known` peers.
async fn join(
    config: &PeerConfig,
    registration: &Registration,
    unreachable: Option<Failure>,
    known: &[Contact],
) -> Result<RegistrationState, Failure> {
    let failure = match unreachable {
        Some(failure) => failure,
        None => match registration.register().await {
            Ok(()) => return Ok(RegistrationState::Registered),
            Err(failure) => failure,
        },
    };
    // The nameserver does not answer, or cannot register the name at the moment.
    let passes = matches!(failure.code, FailureCode::NameserverUnreachable | FailureCode::LimitReached);
    let goes_on = match config.purpose {
        _ if !passes => false,
        Purpose::Service => true,
        Purpose::Script | Purpose::Command | Purpose::Query => !ask(&registration.calls, known).await.is_empty(),
    };
    if !goes_on {
        return Err(failure);
    }
    match config.purpose {
        Purpose::Service => tracing::warn!(%failure, "starting without the nameserver; joining when it answers"),
        // The command is carried out as with it.
        _ => tracing::info!(%failure, "starting without the nameserver"),
    }
    Ok(RegistrationState::Waiting)
}

pub(super) fn session_config(config: &PeerConfig) -> SessionConfig {
    SessionConfig {
        role: Role::Peer(config.id.clone()),
        state_dir: config.state_dir.clone(),
        nameserver: config.nameserver.clone(),
        join: config.join.clone(),
    }
}

/// Opens the session. If no nameserver answers and the configuration permits it, starts one in this process first;
/// otherwise uses the stored identity.
async fn open_session(config: &PeerConfig, known: &[Contact]) -> Result<Opened, Failure> {
    let session_config = session_config(config);
    let opened = |session, embedded_nameserver| Opened { session, embedded_nameserver, unreachable: None };
    let failure = match Session::open(&session_config).await {
        Ok(session) => return Ok(opened(session, None)),
        Err(failure) => failure,
    };
    if failure.code != FailureCode::NameserverUnreachable {
        return Err(failure);
    }
    if config.with_nameserver {
        let server = match start_nameserver(config).await {
            Ok(server) => Some(server),
            // Another peer may have become the nameserver in the meantime.
            Err(failure) => {
                return Session::open(&session_config).await.map(|it| opened(it, None)).map_err(|_| failure);
            }
        };
        return Ok(opened(Session::open(&session_config).await?, server));
    }
    let addresses: Vec<Endpoint> = known.iter().map(|contact| contact.endpoint.clone()).collect();
    match Session::open_stored(&session_config, &addresses).await? {
        Some(session) => Ok(Opened { session, embedded_nameserver: None, unreachable: Some(failure) }),
        None => Err(failure),
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
    // An error means that the core's task was aborted.
    let stopped = async { views.wait_for(|view| view.stopped.is_some()).await.ok().and_then(|view| view.stopped) };
    let superseded = tokio::select! {
        ended = &mut registration => ended == RegistrationEnd::Superseded,
        core_end = stopped => match core_end {
            Some(CoreEnd::Superseded) => true,
            Some(CoreEnd::Stopped) | None => {
                // The peer was stopped. The registration removes the name when its token is cancelled.
                registration.await;
                false
            }
        },
    };
    if superseded {
        let failure = Failure::new(
            FailureCode::AlreadyRunning,
            format!("{id} has to stop"),
            "a later run with its identity has taken its place",
            "two machines use one identity: stop the other one and start this one again, or join with another peer id",
        );
        // Fails only if the process ends at the same time.
        let _ = end.send(failure);
    }
}
