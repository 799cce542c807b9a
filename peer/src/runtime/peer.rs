//! A running peer: everything put together, started in order and stopped in order.
//!
//! ```text
//! lock ─ session (identity, socket) ─ share ─ core and node ─ accept ─ register ─ ready
//! ```

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
    time::Duration,
};

use nameserver::{config::Config as NameserverConfig, server::Server};
use shared::{
    contact::Contact,
    content::ContentHash,
    error::{Failure, FailureCode},
    id::{Incarnation, PeerId, Role},
    limits,
    name::Endpoint,
    net::{
        CloseCode, Connections,
        serve::serve,
        session::{Session, SessionConfig},
    },
    time::{Clock, unix_micros},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::core_task::{CoreTask, read_durable};
use crate::{
    config::PeerConfig,
    core_handle::CoreHandle,
    diagnostics::{system::Machine, upload_stats::UploadStats},
    discovery::Lookup,
    download::Run,
    net::{
        nameserver_watch,
        registration::{Registration, RegistrationEnd},
        router::StreamRouter,
        rpc_client::RpcClient,
        rpc_server::RpcServer,
    },
    store::{Changes, Share, ShareOptions},
    swarm::Swarms,
    transfer::throttle::Throttle,
    upload::Uploads,
};
use protocol::{
    election::{Core, CoreConfig, Event, SeatRole},
    upload::queue::UploadLimits,
};

/// How long a start waits to know the tracker before it calls itself ready without one.
const READY_WAIT: Duration = Duration::from_millis(300);

/// A running peer. Stop it with [`Peer::stop`]; dropping it leaves the network as a crash does.
pub struct Peer {
    pub(crate) id: PeerId,
    pub(crate) endpoint: Endpoint,
    pub(crate) nameserver: Endpoint,
    pub(crate) share: Share,
    pub(crate) node: CoreHandle,
    pub(crate) lookup: Lookup,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) swarms: Swarms,
    pub(crate) connections: Connections,
    /// For bytes: apart from the calls, so that no heartbeat waits behind a file.
    pub(crate) bulk: Connections,
    pub(crate) downloads: Downloads,
    /// Uploads at a time.
    pub(crate) upload_slots: usize,
    /// The socket's receive buffer in bytes, when the system gave less than was asked for.
    pub(crate) clamped_buffer: Option<u64>,
    pub(crate) warnings: Vec<String>,
    stop: CancellationToken,
    tasks: TaskTracker,
    ended: Mutex<Option<oneshot::Receiver<Failure>>>,
    /// Whether the name is (to be) registered; false when the registration's task has ended.
    registered: watch::Receiver<bool>,
    embedded_nameserver: tokio::sync::Mutex<Option<Server>>,
    /// Held for as long as this process is this peer.
    _lock: File,
}

/// What runs and ran of downloads.
#[derive(Default)]
pub(crate) struct Downloads {
    pub(crate) active: AtomicU64,
    pub(crate) bytes: Arc<AtomicU64>,
    /// The cap on what comes in.
    pub(crate) pace: Throttle,
    /// Those that run, in the order in which they began.
    pub(crate) running: Mutex<Vec<Arc<Run>>>,
    pub(crate) machine: Arc<Machine>,
    /// Contents that are being fetched: the same content under another name waits for the first, then has it here.
    pub(crate) contents: Mutex<HashMap<ContentHash, Weak<tokio::sync::Mutex<()>>>>,
}

impl Peer {
    /// Starts a peer and joins the network; when it returns others can reach it.
    ///
    /// # Errors
    /// `AlreadyRunning`, `NameserverUnreachable`, `NotAuthorised`, or `Io` when folders cannot be used.
    pub async fn start(config: PeerConfig) -> Result<Self, Failure> {
        let state_dir = config.peer_state_dir();
        let lock = lock(&state_dir, &config.id)?;
        let incarnation =
            next_incarnation(&state_dir.join("incarnation")).map_err(|error| Failure::unusable(&state_dir, &error))?;
        let durable_file = state_dir.join("election");
        let durable = read_durable(&durable_file).map_err(|error| Failure::unusable(&durable_file, &error))?;

        let (session, embedded_nameserver) = open_session(&config).await?;
        let endpoint = session.advertised().map_err(|error| Failure::unusable(&state_dir, &error))?;

        let (share_events, changes) = mpsc::channel(limits::MAX_QUEUED_EVENTS);
        let share = Share::open(&config.share_dir, &state_dir, ShareOptions::default(), share_events).await?;

        let clock = Clock::start();
        let (node, handle) = CoreTask::new(durable_file);
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let calls = Arc::new(RpcClient::new(session.connections.clone(), session.nameserver.clone(), tasks.clone()));
        let bulk = Connections::new(session.endpoint.clone());
        let me = Contact { peer: config.id.clone(), endpoint: endpoint.clone() };
        let swarms = Swarms::new(me, share.clone(), bulk.clone(), tasks.clone());
        let upload_limits = UploadLimits { active: config.max_uploads, ..UploadLimits::default() };
        let machine = Arc::new(Machine::default());
        let reports = UploadStats::new(machine.clone(), config.max_uploads);
        let uploads = Uploads::new(share.clone(), upload_limits, Throttle::new(config.limit_up), reports);
        let front = StreamRouter {
            service: RpcServer::new(
                config.id.clone(),
                incarnation,
                endpoint.clone(),
                handle.clone(),
                share.clone(),
                uploads.clone(),
                swarms.clone(),
            ),
            uploads: uploads.clone(),
            swarms: swarms.clone(),
        };
        // Others may call as soon as the name is registered, so accepting comes first.
        tasks.spawn(serve(session.endpoint.clone(), Arc::new(front), stop.clone()));
        let registration = Registration {
            connections: session.connections.clone(),
            nameserver: session.nameserver.clone(),
            id: config.id.clone(),
            incarnation,
            endpoint: endpoint.clone(),
        };
        registration.register().await?;

        let core_config =
            CoreConfig { id: config.id.clone(), incarnation, endpoint: endpoint.clone(), seed: incarnation.0, durable };
        let (end, ended) = oneshot::channel();
        let (unregister, registered) = watch::channel(true);
        tasks.spawn(node.run(Core::new(core_config, clock.now()), clock, calls.clone()));
        tasks.spawn(forward_changes(changes, handle.clone()));
        tasks.spawn({
            let (calls, node, stop) = (calls.clone(), handle.clone(), stop.clone());
            async move { nameserver_watch::watch(&calls, &node, stop).await }
        });
        let kept = {
            let stop = stop.clone();
            async move {
                let ended = registration.keep(stop).await;
                unregister.send_replace(false);
                ended
            }
        };
        tasks.spawn(watch_over(kept, handle.clone(), config.id.clone(), end));

        let lookup = Lookup {
            me: config.id.clone(),
            node: handle.clone(),
            connections: session.connections.clone(),
            calls,
            share: share.clone(),
            last_seen: Arc::default(),
        };
        let peer = Self {
            id: config.id,
            endpoint,
            nameserver: session.nameserver.endpoint.clone(),
            share,
            node: handle,
            lookup,
            uploads,
            swarms,
            bulk,
            connections: session.connections,
            downloads: Downloads { pace: Throttle::new(config.limit_down), machine, ..Downloads::default() },
            upload_slots: config.max_uploads,
            clamped_buffer: session.clamped_buffer,
            warnings: session.buffer_warning.into_iter().collect(),
            stop,
            tasks,
            ended: Mutex::new(Some(ended)),
            registered,
            embedded_nameserver: tokio::sync::Mutex::new(embedded_nameserver),
            _lock: lock,
        };
        peer.wait_for_a_seat(READY_WAIT).await;
        Ok(peer)
    }

    /// Who this peer is.
    pub fn id(&self) -> &PeerId {
        &self.id
    }

    /// Where it answers.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Resolves when the peer cannot go on although nobody stopped it, with the reason; once.
    pub async fn failed(&self) -> Failure {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended
            && let Ok(failure) = ended.await
        {
            return failure;
        }
        std::future::pending().await
    }

    /// Leaves: gives the seat up if it has it, tells the others, removes its name, closes its connections. Bounded in
    /// time; doing it again does nothing.
    pub async fn stop(&self) {
        if self.node.send(Event::Shutdown).await.is_ok() {
            let mut views = self.node.watch();
            let stopped = views.wait_for(|view| view.stopped.is_some());
            if timeout(limits::CLOSE_DEADLINE * 4, stopped).await.is_err() {
                tracing::warn!("the node did not stop in time");
            }
        }
        self.stop.cancel();
        // The name goes while the connection to the nameserver is still there; whatever else runs is cut off by the
        // close below.
        let mut registered = self.registered.clone();
        if timeout(limits::CLOSE_DEADLINE, registered.wait_for(|registered| !registered)).await.is_err() {
            tracing::debug!("the name stays until its lease runs out");
        }
        self.connections.close(CloseCode::ShuttingDown, "the peer stops").await;
        self.tasks.close();
        if timeout(limits::CLOSE_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::debug!("some tasks were cut off");
        }
        if let Some(server) = self.embedded_nameserver.lock().await.take() {
            server.shutdown().await;
        }
    }

    async fn wait_for_a_seat(&self, wait: Duration) {
        let mut views = self.node.watch();
        let known = views.wait_for(|view| view.role != SeatRole::Electing);
        if timeout(wait, known).await.is_err() {
            tracing::info!("there is no tracker yet");
        }
    }
}

/// Opens the session; if no nameserver answers and this process may be it, becomes it first.
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
            let server = start_nameserver(config).await?;
            let session = Session::open(&session_config).await?;
            Ok((session, Some(server)))
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
    tracing::info!(address = %server.local_addr(), "this peer is the nameserver as well");
    Ok(server)
}

/// Takes the lock that says which process is this peer.
fn lock(state_dir: &Path, id: &PeerId) -> Result<File, Failure> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|error| Failure::unusable(state_dir, &error))?;
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::unusable(&path, &error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::new(
            FailureCode::AlreadyRunning,
            format!("{id} is running already"),
            format!("another process holds {}", path.display()),
            format!("give it commands with `peer {id} COMMAND`, stop it, or take another peer id"),
        )),
        Err(error) => Err(Failure::unusable(&path, io::Error::from(error))),
    }
}

/// The number of this run: above that of every earlier run, even if the wall clock went back.
fn next_incarnation(file: &Path) -> io::Result<Incarnation> {
    let last = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map_err(|_| io::Error::other("the incarnation is not a number"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let next = unix_micros().max(last + 1);
    certs::write_private(file, format!("{next}\n").as_bytes())?;
    Ok(Incarnation(next))
}

async fn forward_changes(mut changes: mpsc::Receiver<Changes>, node: CoreHandle) {
    while let Some(Changes { upserts, removals }) = changes.recv().await {
        if node.send(Event::ShareChanged { upserts, removals }).await.is_err() {
            return;
        }
    }
}

/// UploadStats when the registration or the node ends by itself.
async fn watch_over(
    registration: impl Future<Output = RegistrationEnd>,
    node: CoreHandle,
    id: PeerId,
    end: oneshot::Sender<Failure>,
) {
    let mut views = node.watch();
    let mut registration = std::pin::pin!(registration);
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
                // A stop that was asked for: the name is removed when the token says so.
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
        // Nobody listens when the process ends at the same time.
        let _ = end.send(failure);
    }
}
