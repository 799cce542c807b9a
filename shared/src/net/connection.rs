//! Connection pool: dials on demand, reuses connections, replaces failed ones.

use crate::net::params;
use std::{
    any::Any,
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tarpc::{client::RpcError, context};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    close_code::CloseCode, error::NetError, port_probe::PortProbe, rpc_transport::ServiceClient,
    stream_kind::StreamKind,
};
use crate::{contact::Contact, id::Role, limits, name::Endpoint};

/// Callee: an endpoint and the role that must answer there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Role that the certificate of the other side must have.
    pub role: Role,
    /// Endpoint to dial.
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

/// Pool of outgoing connections, at most one per target. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    endpoint: quinn::Endpoint,
    links: Arc<Mutex<HashMap<Target, Link>>>,
}

/// Pool entry of a target.
///
/// ```text
/// (none) ──open──▶ Dialling ──connected──▶ Open ──forget, closed──▶ (none)
///   ▲                 │ failed
///   └─────────────────┘
/// ```
enum Link {
    /// A task dials. All callers that need the connection wait for the task and share its result.
    Dialling(Dialling),
    /// The connection is established, but may have been closed since.
    Open(Open),
}

type Dialling = Shared<BoxFuture<'static, Result<Open, NetError>>>;

#[derive(Clone)]
struct Open {
    connection: quinn::Connection,
    clients: Arc<tokio::sync::Mutex<HashMap<StreamKind, Box<dyn Any + Send + Sync>>>>,
}

impl Connections {
    /// Creates a pool that dials from `endpoint` with its default client configuration.
    pub fn new(endpoint: quinn::Endpoint) -> Self {
        Self { endpoint, links: Arc::default() }
    }

    /// Makes a call. `call` receives the service's client and a context with the deadline `wait` from now.
    ///
    /// A call without an answer removes the connection from the pool, so the next call dials again. A killed process
    /// does not close its connections, so a missing answer can mean that another process has taken its place.
    ///
    /// # Errors
    /// Fails if the target cannot be reached, has another role, or does not answer before the deadline.
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
            // The request was not sent, so the error is no evidence against the connection.
            Ok(Err(RpcError::Send(error))) => {
                return Err(NetError::Local(format!("a request to {target} cannot be sent: {error}")));
            }
            // The server answered with an error, so the connection works.
            Ok(Err(error @ RpcError::Server(_))) => {
                return Err(NetError::from_rpc(&target.to_string(), &error, &open.connection));
            }
            Ok(Err(error)) => NetError::from_rpc(&target.to_string(), &error, &open.connection),
            Err(_) => late(),
        };
        self.forget(target, &open.connection);
        Err(error)
    }

    /// Opens a bulk stream and sends its kind byte.
    ///
    /// # Errors
    /// Fails if the target cannot be reached or has another role.
    pub async fn bulk(&self, target: &Target) -> Result<(quinn::SendStream, quinn::RecvStream), NetError> {
        let open = self.open(target).await?;
        self.stream(target, &open, StreamKind::Bulk).await
    }

    /// Opens a swarm stream and sends its kind byte.
    ///
    /// # Errors
    /// Fails if the target cannot be reached or has another role.
    pub async fn swarm(&self, target: &Target) -> Result<(quinn::SendStream, quinn::RecvStream), NetError> {
        let open = self.open(target).await?;
        self.stream(target, &open, StreamKind::Swarm).await
    }

    /// Opens a pack stream and sends its kind byte.
    ///
    /// # Errors
    /// Fails if the target cannot be reached or has another role.
    pub async fn pack(&self, target: &Target) -> Result<(quinn::SendStream, quinn::RecvStream), NetError> {
        let open = self.open(target).await?;
        self.stream(target, &open, StreamKind::Pack).await
    }

    /// Returns the connection to a target; dials if there is none.
    ///
    /// # Errors
    /// Fails if the target cannot be reached or has another role.
    pub async fn connection(&self, target: &Target) -> Result<quinn::Connection, NetError> {
        Ok(self.open(target).await?.connection)
    }

    /// Removes `connection` from the pool without closing it. Open streams on it continue.
    pub fn forget(&self, target: &Target, connection: &quinn::Connection) {
        let mut links = self.links();
        // Another task may have replaced the connection already.
        if matches!(links.get(target), Some(Link::Open(open)) if open.connection.stable_id() == connection.stable_id())
        {
            links.remove(target);
        }
    }

    /// Closes all connections of the endpoint and waits up to [`limits::CLOSE_DEADLINE`] for the other sides to
    /// acknowledge.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.endpoint.close(code.to_varint(), reason.as_bytes());
        // A peer that misses the close detects it from its idle timeout.
        let _ = timeout(limits::CLOSE_DEADLINE, self.endpoint.wait_idle()).await;
    }

    async fn open(&self, target: &Target) -> Result<Open, NetError> {
        let dialling = {
            let mut links = self.links();
            match links.get(target) {
                Some(Link::Open(open)) if open.is_open() => return Ok(open.clone()),
                Some(Link::Dialling(dialling)) => dialling.clone(),
                Some(Link::Open(_)) | None => {
                    evict(&mut links);
                    let dialling = self.dial(target.clone());
                    links.insert(target.clone(), Link::Dialling(dialling.clone()));
                    dialling
                }
            }
        };
        dialling.await
    }

    /// Dials in a separate task. A caller whose deadline is shorter than a handshake thus does not cancel the
    /// handshake, and the next caller uses its result.
    fn dial(&self, target: Target) -> Dialling {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let dialled =
                dial(&this.endpoint, &target).await.map(|connection| Open { connection, clients: Arc::default() });
            // `open` holds the lock until it has inserted `Dialling`, so this update comes later.
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
            None => NetError::Refused { address: target.to_string(), why: "it stopped the stream".to_owned() },
        })
    }
}

impl Open {
    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

/// Makes space for one entry in a full pool: removes all closed connections or, if there are none, an arbitrary open
/// one. A removed connection stays open until its last user drops it.
fn evict(links: &mut HashMap<Target, Link>) {
    if links.len() < params::MAX_CONNECTIONS {
        return;
    }
    links.retain(|_, link| match link {
        Link::Dialling(_) => true,
        Link::Open(open) => open.is_open(),
    });
    if links.len() >= params::MAX_CONNECTIONS {
        let any = links.iter().find(|(_, link)| matches!(link, Link::Open(_))).map(|(target, _)| target.clone());
        if let Some(any) = any {
            links.remove(&any);
        }
    }
}

/// Opens a stream and sends its kind byte.
///
/// # Errors
/// Returns the reason why the connection ended, or `None` if the other side stopped only the stream.
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

/// Dials `target` with the endpoint's default client configuration.
///
/// Tries the addresses of a host name in turn: `localhost` often resolves to `::1` first, where nothing may listen.
///
/// # Errors
/// Fails if no address answers or the callee has another role.
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

/// Waits for a handshake. Returns early if probes show that the port is closed.
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
        () = tokio::time::sleep(params::DIAL_DEADLINE) => {
            Err(NetError::Unreachable { address: name, why: "no answer".to_owned() })
        }
    }
}

/// Resolves an endpoint to between one and [`crate::net::params::MAX_DIAL_ADDRESSES`] socket addresses.
///
/// # Errors
/// Fails if the host is a name that does not resolve.
pub async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, NetError> {
    if let Some(address) = endpoint.socket_addr() {
        return Ok(vec![address]);
    }
    let host_port = endpoint.host_port();
    let unknown = |why: &dyn fmt::Display| NetError::Local(format!("cannot resolve {host_port}: {why}"));
    let addresses = tokio::net::lookup_host(&host_port).await.map_err(|error| unknown(&error))?;
    let addresses: Vec<_> = addresses.take(params::MAX_DIAL_ADDRESSES).collect();
    if addresses.is_empty() { Err(unknown(&"it has no address")) } else { Ok(addresses) }
}

/// Returns the unspecified address of the address family of the first endpoint, with port 0.
pub(super) async fn unspecified_address(endpoints: &[Endpoint]) -> SocketAddr {
    let ipv6 = match endpoints.first() {
        Some(first) => resolve(first).await.is_ok_and(|addresses| addresses.iter().any(SocketAddr::is_ipv6)),
        None => false,
    };
    let ip: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, 0)
}

/// Interval between port probes during a handshake, and the time to wait for each refusal.
const PROBE_EVERY: Duration = Duration::from_millis(60);

/// Returns when two consecutive port probes are refused ([`super::port_probe`]), and never otherwise. The hint is
/// sufficient to end a first handshake early.
async fn port_closed(address: SocketAddr) {
    let Ok(probe) = PortProbe::connect(address).await else { return std::future::pending().await };
    let mut refusals = 0;
    // Two refusals, because a process that is just starting refuses the first probe.
    while refusals < 2 {
        tokio::time::sleep(PROBE_EVERY).await;
        refusals = if probe.is_refused(PROBE_EVERY).await { refusals + 1 } else { 0 };
    }
}

/// Returns a call context with the deadline `wait` from now (tarpc's default is 10 s).
#[expect(clippy::disallowed_methods, reason = "tarpc takes deadlines of the real clock")]
pub fn call_context(wait: Duration) -> context::Context {
    let mut context = context::current();
    context.deadline = std::time::Instant::now() + wait;
    context
}
