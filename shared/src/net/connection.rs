//! Connections to others: dialled when needed, kept, replaced when they fail.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tarpc::{client::RpcError, context};
use tokio::time::{Instant, timeout, timeout_at};

use super::{CloseCode, NetError, StreamKind, knock::Knocker, rpc_transport::ServiceClient};
use crate::{contact::Contact, id::Role, limits, name::Endpoint};

/// Whom to talk to: an address, and who must answer there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// What the certificate at the other end must say.
    pub role: Role,
    /// Where.
    pub endpoint: Endpoint,
}

impl From<&Contact> for Target {
    fn from(contact: &Contact) -> Self {
        Self { role: Role::Peer(contact.peer.clone()), endpoint: contact.endpoint.clone() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.role, self.endpoint.host_port())
    }
}

/// The process's connections to others, one a target. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    endpoint: quinn::Endpoint,
    links: Arc<Mutex<HashMap<Target, Link>>>,
}

/// A target's connection, or the way to it.
///
/// ```text
/// (none) ──open──▶ Dialling ──done──▶ Open ──forget, closed──▶ (none)
///   ▲                 │ failed
///   └─────────────────┘
/// ```
enum Link {
    /// A task dials; all who want the connection wait for it, and share its failure.
    Dialling(Dialling),
    Open(Open),
}

type Dialling = Shared<BoxFuture<'static, Result<Open, NetError>>>;

#[derive(Clone)]
struct Open {
    connection: quinn::Connection,
    clients: Arc<tokio::sync::Mutex<HashMap<StreamKind, Box<dyn Any + Send + Sync>>>>,
}

impl Connections {
    /// Connections from `endpoint`'s socket, with its default client configuration.
    pub fn new(endpoint: quinn::Endpoint) -> Self {
        Self { endpoint, links: Arc::default() }
    }

    /// Makes a call: `call` gets the service's client and a context with the deadline `wait` from now.
    ///
    /// A call that gets no answer drops the connection from the pool, so that the next one dials anew: a
    /// process that was killed says nothing, and only silence tells that it is another one by now.
    ///
    /// # Errors
    /// When the target cannot be reached, is not who it should be, or does not answer in time.
    pub async fn call<C, T, F>(
        &self,
        target: &Target,
        wait: Duration,
        call: impl FnOnce(C, context::Context) -> F,
    ) -> Result<T, NetError>
    where
        C: ServiceClient,
        F: Future<Output = Result<T, RpcError>>,
    {
        let until = Instant::now() + wait;
        let context = call_context(wait);
        let late = || NetError::Deadline { address: target.to_string() };
        let ready = async {
            let open = self.open(target).await?;
            let client = self.client::<C>(target, &open).await?;
            Ok((open, client))
        };
        let (open, client) = timeout_at(until, ready).await.map_err(|_| late())??;
        let error = match timeout_at(until, call(client, context)).await {
            Ok(Ok(answer)) => return Ok(answer),
            // The request was never sent; the connection is as good as before.
            Ok(Err(RpcError::Send(error))) => {
                return Err(NetError::Local(format!("a request to {target} cannot be sent: {error}")));
            }
            // It was answered, if only that it cannot be answered.
            Ok(Err(error @ RpcError::Server(_))) => {
                return Err(NetError::from_rpc(&target.to_string(), &error, &open.connection));
            }
            Ok(Err(error)) => NetError::from_rpc(&target.to_string(), &error, &open.connection),
            Err(_) => late(),
        };
        self.forget(target, &open.connection);
        Err(error)
    }

    /// Opens a bulk stream; its kind is told already.
    ///
    /// # Errors
    /// When the target cannot be reached or is not who it should be.
    pub async fn bulk(&self, target: &Target) -> Result<(quinn::SendStream, quinn::RecvStream), NetError> {
        let open = self.open(target).await?;
        self.stream(target, &open, StreamKind::Bulk).await
    }

    /// Opens a swarm stream; its kind is told already.
    ///
    /// # Errors
    /// When the target cannot be reached or is not who it should be.
    pub async fn swarm(&self, target: &Target) -> Result<(quinn::SendStream, quinn::RecvStream), NetError> {
        let open = self.open(target).await?;
        self.stream(target, &open, StreamKind::Swarm).await
    }

    /// Opens a stream for a pack of small files; its kind is told already.
    ///
    /// # Errors
    /// When the target cannot be reached or is not who it should be.
    pub async fn pack(&self, target: &Target) -> Result<(quinn::SendStream, quinn::RecvStream), NetError> {
        let open = self.open(target).await?;
        self.stream(target, &open, StreamKind::Pack).await
    }

    /// The connection to a target, dialled if there is none.
    ///
    /// # Errors
    /// When the target cannot be reached or is not who it should be.
    pub async fn connection(&self, target: &Target) -> Result<quinn::Connection, NetError> {
        Ok(self.open(target).await?.connection)
    }

    /// Drops the pooled connection to a target without closing it: streams that others have on it go on.
    pub fn forget(&self, target: &Target, connection: &quinn::Connection) {
        let mut links = self.links();
        // Somebody may have dialled anew already.
        if matches!(links.get(target), Some(Link::Open(open)) if open.connection.stable_id() == connection.stable_id())
        {
            links.remove(target);
        }
    }

    /// Closes all connections and waits a little for the others to be told.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.endpoint.close(code.to_varint(), reason.as_bytes());
        // Who does not answer within the deadline learns it from silence.
        let _ = timeout(limits::CLOSE_DEADLINE, self.endpoint.wait_idle()).await;
    }

    async fn open(&self, target: &Target) -> Result<Open, NetError> {
        let dialling = {
            let mut links = self.links();
            match links.get(target) {
                Some(Link::Open(open)) if open.is_open() => return Ok(open.clone()),
                Some(Link::Dialling(dialling)) => dialling.clone(),
                Some(Link::Open(_)) | None => {
                    make_room(&mut links);
                    let dialling = self.dial(target.clone());
                    links.insert(target.clone(), Link::Dialling(dialling.clone()));
                    dialling
                }
            }
        };
        dialling.await
    }

    /// Dials in a task of its own, so that a caller whose deadline is shorter than a handshake leaves the
    /// next one a connection, instead of everybody starting from the beginning for ever.
    fn dial(&self, target: Target) -> Dialling {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let dialled =
                dial(&this.endpoint, &target).await.map(|connection| Open { connection, clients: Arc::default() });
            // `open` holds the lock until the slot says `Dialling`, so this comes after it.
            let mut links = this.links();
            match &dialled {
                Ok(open) => links.insert(target, Link::Open(open.clone())),
                Err(_) => links.remove(&target),
            };
            dialled
        });
        async move { task.await.unwrap_or_else(|error| Err(NetError::Local(format!("dialling stopped: {error}")))) }
            .boxed()
            .shared()
    }

    fn links(&self) -> MutexGuard<'_, HashMap<Target, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client<C: ServiceClient>(&self, target: &Target, open: &Open) -> Result<C, NetError> {
        let mut clients = open.clients.lock().await;
        if let Some(client) = clients.get(&C::KIND).and_then(|client| client.downcast_ref::<C>()) {
            return Ok(client.clone());
        }
        let (send, recv) = self.stream(target, open, C::KIND).await?;
        let client = C::on(send, recv);
        clients.insert(C::KIND, Box::new(client.clone()));
        Ok(client)
    }

    async fn stream(
        &self,
        target: &Target,
        open: &Open,
        kind: StreamKind,
    ) -> Result<(quinn::SendStream, quinn::RecvStream), NetError> {
        let stream = open_stream(&open.connection, kind).await;
        stream.inspect_err(|_| self.forget(target, &open.connection)).map_err(|error| match error {
            Some(error) => NetError::from_connection(&target.to_string(), &error),
            None => NetError::Closed { address: target.to_string(), why: "the stream was refused".to_owned() },
        })
    }
}

impl Open {
    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

/// Keeps the pool within its bound: first without those that have ended, then without any one that is there
/// (who uses it goes on; unused it closes).
fn make_room(links: &mut HashMap<Target, Link>) {
    if links.len() < limits::MAX_CONNECTIONS {
        return;
    }
    links.retain(|_, link| match link {
        Link::Dialling(_) => true,
        Link::Open(open) => open.is_open(),
    });
    if links.len() >= limits::MAX_CONNECTIONS {
        let any = links.iter().find(|(_, link)| matches!(link, Link::Open(_))).map(|(target, _)| target.clone());
        if let Some(any) = any {
            links.remove(&any);
        }
    }
}

/// Opens a stream and tells its kind.
///
/// # Errors
/// Why the connection ended; `None` when only the stream was refused.
pub async fn open_stream(
    connection: &quinn::Connection,
    kind: StreamKind,
) -> Result<(quinn::SendStream, quinn::RecvStream), Option<quinn::ConnectionError>> {
    let (mut send, recv) = connection.open_bi().await.map_err(Some)?;
    match send.write_all(&[kind.to_byte()]).await {
        Ok(()) => Ok((send, recv)),
        Err(_) => Err(connection.close_reason()),
    }
}

/// Dials `target` with the endpoint's default client configuration; a name that stands for several addresses
/// is tried at each of them in turn (`localhost` is often `::1` first, where perhaps nothing listens).
///
/// # Errors
/// When it cannot be reached or is not who it should be.
pub async fn dial(endpoint: &quinn::Endpoint, target: &Target) -> Result<quinn::Connection, NetError> {
    let mut last = None;
    for address in resolve(&target.endpoint).await? {
        let attempt = match endpoint.connect(address, &target.role.dns_name()) {
            Ok(connecting) => finish_dial(connecting, target, address).await,
            Err(error) => Err(NetError::Local(format!("cannot dial {target}: {error}"))),
        };
        match attempt {
            Ok(connection) => return Ok(connection),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| NetError::Local(format!("{target} has no address"))))
}

/// Waits for a handshake, and gives up early when the port is seen to be closed.
async fn finish_dial(
    connecting: quinn::Connecting,
    target: &Target,
    address: SocketAddr,
) -> Result<quinn::Connection, NetError> {
    let name = target.to_string();
    tokio::select! {
        connected = connecting => connected.map_err(|error| NetError::from_connection(&name, &error)),
        () = port_closed(address) => {
            Err(NetError::Unreachable { address: name, why: "nothing listens on that port".to_owned() })
        }
        () = tokio::time::sleep(limits::DIAL_DEADLINE) => {
            Err(NetError::Unreachable { address: name, why: "no answer".to_owned() })
        }
    }
}

/// The socket addresses of an endpoint, at least one, at most [`limits::MAX_DIAL_ADDRESSES`].
///
/// # Errors
/// When its host is a name that cannot be resolved.
pub async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, NetError> {
    if let Some(address) = endpoint.socket_addr() {
        return Ok(vec![address]);
    }
    let host_port = endpoint.host_port();
    let unknown = |why: &dyn fmt::Display| NetError::Local(format!("cannot resolve {host_port}: {why}"));
    let addresses = tokio::net::lookup_host(&host_port).await.map_err(|error| unknown(&error))?;
    let addresses: Vec<_> = addresses.take(limits::MAX_DIAL_ADDRESSES).collect();
    if addresses.is_empty() { Err(unknown(&"it has no address")) } else { Ok(addresses) }
}

/// How often a handshake that is not answered looks whether the port is closed.
const PROBE_EVERY: Duration = Duration::from_millis(60);

/// Returns when the host says that nobody listens on the port ([`super::knock`]); never otherwise. To give up a first
/// handshake a little earlier it is good enough.
async fn port_closed(address: SocketAddr) {
    let Ok(knocker) = Knocker::to(address).await else { return std::future::pending().await };
    let mut refusals = 0;
    // Twice, so that a process that is just starting is not missed.
    while refusals < 2 {
        tokio::time::sleep(PROBE_EVERY).await;
        refusals = if knocker.is_refused(PROBE_EVERY).await { refusals + 1 } else { 0 };
    }
}

/// A call's context with the deadline `wait` from now. (tarpc's own default is 10 s.)
#[expect(clippy::disallowed_methods, reason = "tarpc's deadlines are of the real clock")]
pub fn call_context(wait: Duration) -> context::Context {
    let mut context = context::current();
    context.deadline = std::time::Instant::now() + wait;
    context
}
