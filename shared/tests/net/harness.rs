//! Test harness: members with a small peer service, observable from the tests.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use certs::{Authority, Identity, trust};
use futures::{FutureExt, future::BoxFuture};
use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    file_name::FileName,
    id::{Incarnation, Role},
    limits,
    name::Endpoint,
    net::{
        CloseCode, Connections, NetError, StreamKind, Target, endpoint,
        rpc_transport::serve_calls,
        serve::{Handler, Remote, serve},
    },
    rpc::{
        ALPN,
        nameserver::SeatView,
        peer::{
            DirectoryMeta, FilePage, PeerInfo, PeerService, PeerServiceClient, SeatNotice, UploadReport, VoteReply,
            VoteRequest,
        },
    },
};
use tarpc::context::Context;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::MakeWriter;

/// Deadline of every wait; longer than any step of a test takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const LIFETIME: Duration = Duration::from_secs(3600);

pub(crate) fn peer(id: &str) -> Role {
    Role::Peer(id.parse().unwrap())
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Polls until `holds` returns true, for conditions without a notification. `what` describes the condition.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    retry_until_ok(what, async || holds().then_some(()).ok_or(())).await;
}

/// Repeats `attempt` until it succeeds, for operations that depend on the state of the other side. `what` describes the
/// operation.
pub(crate) async fn retry_until_ok<T, E>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let poll = async {
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(DEADLINE, poll).await.unwrap_or_else(|_| panic!("not before the deadline: {what}"))
}

/// Counters of a server.
#[derive(Default)]
pub(crate) struct ServerStats {
    /// Calls in progress.
    pub(crate) calls: AtomicUsize,
    /// Streams of a known kind, in total.
    pub(crate) streams: AtomicUsize,
    /// Stable ids of the connections of these streams.
    pub(crate) connections: Mutex<Vec<usize>>,
}

/// Peer service of a test server. `info` returns the caller's id. `have` answers immediately, but never for the name
/// `slow`. `list` after the name `long` returns more than a frame holds.
#[derive(Clone)]
struct TestPeerService {
    caller: Arc<Remote>,
    stats: Arc<ServerStats>,
}

struct CallGuard<'a>(&'a AtomicUsize);

impl<'a> CallGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl PeerService for TestPeerService {
    async fn info(self, _: Context) -> PeerInfo {
        PeerInfo {
            peer: self.caller.member().and_then(Role::peer).unwrap().clone(),
            version: String::new(),
            incarnation: Incarnation(0),
            endpoint: Endpoint::from(self.caller.address()),
            seat: SeatView::default(),
            files: 0,
            bytes: 0,
        }
    }

    async fn list(self, _: Context, after: Option<FileName>) -> FilePage {
        let many = if after.is_some_and(|name| name.as_str() == "long") { 40_000 } else { 1 };
        FilePage { files: (0..many).map(|at| file(&format!("file{at}"))).collect(), next: None }
    }

    async fn have(self, _: Context, name: String, _: Option<HashPrefix>) -> Option<FileMeta> {
        let _counted = CallGuard::new(&self.stats.calls);
        if name == "slow" {
            std::future::pending::<()>().await;
        }
        name.parse::<FileName>().ok().map(|name| file(name.as_str()))
    }

    async fn request_vote(self, _: Context, request: VoteRequest) -> VoteReply {
        VoteReply {
            epoch: request.epoch,
            granted: false,
            seat: SeatView::default(),
            voted_epoch: request.expected_epoch,
            electors: Vec::new(),
        }
    }

    async fn seat_notice(self, _: Context, _: SeatNotice) -> SeatView {
        SeatView::default()
    }

    async fn upload_report(self, _: Context, _: ContentHash) -> Option<UploadReport> {
        None
    }

    async fn directories(self, _: Context, _: Vec<String>) -> Vec<Option<DirectoryMeta>> {
        Vec::new()
    }

    async fn receiving(self, _: Context, _: String) -> Vec<FileMeta> {
        Vec::new()
    }
}

fn file(name: &str) -> FileMeta {
    FileMeta { name: name.parse().unwrap(), size: 1, hash: ContentHash([7; 32]), mtime_micros: 0, executable: false }
}

pub(crate) struct TestHandler(pub(crate) Arc<ServerStats>);

impl Handler for TestHandler {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        async move {
            self.0.streams.fetch_add(1, Ordering::SeqCst);
            self.0.connections.lock().unwrap().push(remote.connection.stable_id());
            if kind == StreamKind::Peer {
                serve_calls(send, recv, TestPeerService { caller: remote, stats: self.0.clone() }.serve()).await;
            }
        }
        .boxed()
    }
}

/// Member that serves and calls.
pub(crate) struct Node {
    pub(crate) role: Role,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) connections: Connections,
    pub(crate) stats: Arc<ServerStats>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    pub(crate) fn new(authority: &Authority, id: &str) -> Self {
        Self::of(&authority.identity(&peer(id), LIFETIME).unwrap())
    }

    pub(crate) fn of(identity: &Identity) -> Self {
        let server = trust::member_server(identity, &[ALPN]).unwrap();
        Self::bound(identity, loopback(), server).unwrap()
    }

    pub(crate) fn bound(
        identity: &Identity,
        address: SocketAddr,
        server: rustls::ServerConfig,
    ) -> Result<Self, NetError> {
        let client = trust::member_client(identity, &[ALPN]).unwrap();
        let endpoint = endpoint::bind(address, Some(server), client)?.endpoint;
        let (stats, stop) = (Arc::new(ServerStats::default()), CancellationToken::new());
        let task = tokio::spawn(serve(endpoint.clone(), Arc::new(TestHandler(stats.clone())), stop.clone()));
        let connections = Connections::new(endpoint.clone());
        Ok(Self { role: identity.role().clone(), endpoint, connections, stats, stop, task })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    pub(crate) fn target(&self) -> Target {
        Target { role: self.role.clone(), endpoint: Endpoint::from(self.address()) }
    }

    /// Calls `target` and returns this node's id as the target reports it.
    pub(crate) async fn whoami(&self, target: &Target) -> Result<String, NetError> {
        self.whoami_within(target, limits::CALL_DEADLINE).await
    }

    pub(crate) async fn whoami_within(&self, target: &Target, wait: Duration) -> Result<String, NetError> {
        whoami(&self.connections, target, wait).await
    }

    /// Calls `have` of `target` and returns true if the file exists there.
    pub(crate) async fn have(&self, target: &Target, name: &str, wait: Duration) -> Result<bool, NetError> {
        let call =
            |client: PeerServiceClient, context| async move { client.have(context, name.to_owned(), None).await };
        Ok(self.connections.call(target, wait, call).await?.is_some())
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.connections.close(CloseCode::ShuttingDown, "stopping").await;
        timeout(DEADLINE, self.task).await.expect("the server did not stop before the deadline").unwrap();
    }
}

pub(crate) async fn whoami(connections: &Connections, target: &Target, wait: Duration) -> Result<String, NetError> {
    let call = |client: PeerServiceClient, context| async move { client.info(context).await };
    Ok(connections.call(target, wait, call).await?.peer.to_string())
}

/// Creates a connection pool on a socket without a server, with any TLS configuration.
pub(crate) fn client_pool(tls: rustls::ClientConfig) -> Connections {
    Connections::new(endpoint::bind(loopback(), None, tls).unwrap().endpoint)
}

/// Combines the key and certificate of `stranger` with the root certificate of `authority`, as an attacker can.
pub(crate) fn foreign_identity_trusting(stranger: &Identity, authority: &Authority) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    let files = [folder.path().join("stranger"), folder.path().join("member")];
    stranger.save(&files[0]).unwrap();
    authority.identity(&Role::Admin, LIFETIME).unwrap().save(&files[1]).unwrap();
    let text = files.map(|file| fs::read_to_string(file).unwrap());
    let last = |text: &str| text.rfind("-----BEGIN").unwrap();
    let mixed = format!("{}{}", &text[0][..last(&text[0])], &text[1][last(&text[1])..]);
    let file = folder.path().join("mixed");
    fs::write(&file, mixed).unwrap();
    Identity::load(&file).unwrap().unwrap()
}

/// Log of all tests of this process. A test identifies its own lines by its ports.
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    pub(crate) fn start() -> Self {
        static LOG: OnceLock<CapturedLog> = OnceLock::new();
        let start = || {
            let log = Self::default();
            tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).init();
            // Callsites that were hit before the subscriber was installed have cached that they are disabled.
            tracing::callsite::rebuild_interest_cache();
            log
        };
        LOG.get_or_init(start).clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for CapturedLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Server in its own runtime. Killing the runtime stops the server without sending a close.
pub(crate) struct KillableServer {
    runtime: Option<tokio::runtime::Runtime>,
    pub(crate) target: Target,
}

impl KillableServer {
    /// Binds `address`, which a killed server may still hold for a short time.
    pub(crate) async fn start(identity: &Identity, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut bound = None;
        eventually("the port is free", || {
            let _inside = runtime.enter();
            let server = trust::member_server(identity, &[ALPN]).unwrap();
            bound = Node::bound(identity, address, server).ok();
            bound.is_some()
        })
        .await;
        Self { runtime: Some(runtime), target: bound.unwrap().target() }
    }

    pub(crate) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for KillableServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
