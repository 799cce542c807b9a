//! Server: accepts and authenticates connections, enforces limits, and dispatches streams to a [`Handler`].

use crate::net::params;
use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use certs::{
    CertificateDer,
    trust::{self, Caller},
};
use futures::future::BoxFuture;
use quinn::{VarInt, crypto::rustls::HandshakeData};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{close_code::CloseCode, error::NetError, stream_kind::StreamKind};
use crate::{id::Role, limits, rpc::ENROL_ALPN};

/// Other side of an accepted connection.
#[derive(Debug)]
pub struct Remote {
    /// Identity according to its certificate.
    pub caller: Caller,
    /// Accepted connection.
    pub connection: quinn::Connection,
}

impl Remote {
    /// Returns the role of a member, or `None` for an applicant.
    pub fn member(&self) -> Option<&Role> {
        match &self.caller {
            Caller::Member(role) => Some(role),
            Caller::Applicant(_) => None,
        }
    }

    /// Returns the remote address; an IPv4-mapped IPv6 address is converted to IPv4.
    pub fn address(&self) -> SocketAddr {
        let address = self.connection.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }
}

/// Service that answers streams.
pub trait Handler: Send + Sync + 'static {
    /// Answers one stream whose kind byte has been read. The future is dropped when the connection ends.
    ///
    /// A handler refuses a kind that it does not serve by returning immediately.
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()>;
}

/// Accepts connections until `stop` is cancelled, then waits until every spawned task has ended.
///
/// Streams in progress continue until they or their connections end, so a caller that stops also closes the endpoint.
pub async fn serve<H: Handler>(endpoint: quinn::Endpoint, handler: Arc<H>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let handshakes = Arc::new(Gauges::default());
    let identities = Arc::new(Gauges::default());
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stop.cancelled() => break,
        };
        let Some(incoming) = incoming else { break };
        if endpoint.open_connections() >= params::MAX_CONNECTIONS {
            incoming.refuse();
            continue;
        }
        let Some((incoming, handshake)) = begin_handshake(incoming, &handshakes) else { continue };
        let connection = serve_connection(incoming, handshake, handler.clone(), identities.clone(), tasks.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = stop.cancelled() => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

/// Counts a handshake. Returns `None` after refusing the connection or requesting address validation.
///
/// With [`crate::net::params::MAX_HANDSHAKES`] in progress the client must first validate its address (RFC 9000
/// section 8.1), so handshakes from forged addresses cost nothing, and each validated address gets its own limit.
/// Handshakes that began before that are counted under no address, because theirs may be forged.
fn begin_handshake(
    incoming: quinn::Incoming,
    handshakes: &Arc<Gauges<Option<IpAddr>>>,
) -> Option<(quinn::Incoming, GaugeGuard<Option<IpAddr>>)> {
    let overloaded = handshakes.total() >= params::MAX_HANDSHAKES;
    if overloaded && !incoming.remote_address_validated() && incoming.may_retry() {
        if let Err(error) = incoming.retry() {
            tracing::debug!(%error, "cannot request address validation");
        }
        return None;
    }
    let (validated, limit) = if overloaded {
        (Some(incoming.remote_address().ip().to_canonical()), params::MAX_HANDSHAKES_PER_ADDRESS)
    } else {
        (None, params::MAX_HANDSHAKES)
    };
    match handshakes.enter(validated, limit) {
        Some(handshake) => Some((incoming, handshake)),
        None => {
            incoming.refuse();
            None
        }
    }
}

async fn serve_connection<H: Handler>(
    incoming: quinn::Incoming,
    handshake: GaugeGuard<Option<IpAddr>>,
    handler: Arc<H>,
    identities: Arc<Gauges<Option<Role>>>,
    tasks: TaskTracker,
) {
    let Some((connection, caller)) = authenticate(incoming).await else { return };
    drop(handshake);
    let from = connection.remote_address();
    // All applicants share one count, because their ids are not known yet.
    let (identity, limit, streams) = match &caller {
        Caller::Member(role) => (Some(role.clone()), params::MAX_CONNECTIONS_PER_IDENTITY, params::MAX_CALL_STREAMS),
        Caller::Applicant(_) => (None, params::MAX_APPLICANTS, params::MAX_APPLICANT_STREAMS),
    };
    let name = identity.as_ref().map_or_else(|| "applicants".to_owned(), Role::to_string);
    let Some(_guard) = identities.enter(identity, limit) else {
        tracing::warn!(%from, identity = name, limit, "refused a connection: too many connections of this identity");
        return connection.close(CloseCode::Overloaded.to_varint(), b"too many connections of this identity");
    };
    let remote = Arc::new(Remote { caller, connection });
    let call_streams = Arc::new(Semaphore::new(streams));
    let accept = accept_streams(remote.clone(), handler, call_streams, tasks);
    if remote.member().is_some() {
        remote.connection.set_receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES));
        accept.await;
    } else if timeout(params::ENROLMENT_TIMEOUT, accept).await.is_err() {
        remote.connection.close(CloseCode::Overloaded.to_varint(), b"enrolment took too long");
    }
}

/// Completes the handshake and authenticates the caller. Returns `None` after closing the connection.
async fn authenticate(incoming: quinn::Incoming) -> Option<(quinn::Connection, Caller)> {
    let from = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::debug!(%from, %error, "a connection failed before its handshake");
            return None;
        }
    };
    let connection = match timeout(params::DIAL_DEADLINE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let error = NetError::from_connection(&from.to_string(), &error);
            tracing::warn!(%from, %error, "a handshake failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%from, "a handshake timed out");
            return None;
        }
    };
    match admit(&connection) {
        Ok(caller) => Some((connection, caller)),
        Err(reason) => {
            tracing::warn!(%from, reason, "refused a connection");
            connection.close(CloseCode::NotAuthorised.to_varint(), reason.as_bytes());
            None
        }
    }
}

/// Spawns a task for each stream of a connection, until the connection ends.
async fn accept_streams<H: Handler>(
    remote: Arc<Remote>,
    handler: Arc<H>,
    call_streams: Arc<Semaphore>,
    tasks: TaskTracker,
) {
    loop {
        let (send, recv) = match remote.connection.accept_bi().await {
            Ok(stream) => stream,
            Err(error) => return tracing::trace!(from = %remote.address(), %error, "a connection ended"),
        };
        tasks.spawn(serve_stream(remote.clone(), handler.clone(), call_streams.clone(), send, recv));
    }
}

/// Reads the kind byte of a stream and passes the stream to the handler.
async fn serve_stream<H: Handler>(
    remote: Arc<Remote>,
    handler: Arc<H>,
    call_streams: Arc<Semaphore>,
    send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) {
    let mut kind = [0];
    let read = timeout(limits::STREAM_HEADER_DEADLINE, recv.read_exact(&mut kind)).await;
    let kind = match (read, StreamKind::from_byte(kind[0])) {
        (Ok(Ok(())), Some(kind)) => kind,
        (Ok(Ok(())), None) => {
            return remote.connection.close(CloseCode::Protocol.to_varint(), b"unknown kind of stream");
        }
        (Ok(Err(_)) | Err(_), _) => return,
    };
    // The limit bounds the memory for RPC frames. The handler limits the streams without frames itself.
    let _permit = match kind {
        StreamKind::Bulk | StreamKind::Pack | StreamKind::Swarm => None,
        StreamKind::Names | StreamKind::Tracker | StreamKind::Peer | StreamKind::Enrol => {
            let Ok(permit) = call_streams.try_acquire_owned() else {
                return tracing::debug!(from = %remote.address(), "refused a stream: too many call streams");
            };
            Some(permit)
        }
    };
    let connection = remote.connection.clone();
    tokio::select! {
        () = handler.stream(remote, kind, send, recv) => {}
        _ = connection.closed() => {}
    }
}

/// Returns the caller if its certificate permits the negotiated protocol: applicants only enrol, members never do.
fn admit(connection: &quinn::Connection) -> Result<Caller, String> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("a certificate is required")?;
    let caller = trust::caller(&chain).map_err(|error| error.to_string())?;
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    let enrols = protocol.as_deref() == Some(ENROL_ALPN);
    match (&caller, enrols) {
        (Caller::Applicant(_), true) | (Caller::Member(_), false) => Ok(caller),
        (Caller::Applicant(_), false) => Err("a certificate of this network's authority is required".to_owned()),
        (Caller::Member(_), true) => Err("a member need not enrol".to_owned()),
    }
}

/// Number of live [`GaugeGuard`]s for each key.
struct Gauges<K>(Mutex<HashMap<K, usize>>);

/// Unit of a gauge, released on drop.
struct GaugeGuard<K: Eq + Hash>(Arc<Gauges<K>>, K);

impl<K> Default for Gauges<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Gauges<K> {
    /// Increments the gauge of `key`, or returns `None` if it is at `limit`.
    fn enter(self: &Arc<Self>, key: K, limit: usize) -> Option<GaugeGuard<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&key).copied().unwrap_or_default();
        if count >= limit {
            return None;
        }
        counts.insert(key.clone(), count + 1);
        Some(GaugeGuard(self.clone(), key))
    }

    /// Returns the sum over all keys.
    fn total(&self) -> usize {
        // At most `crate::net::params::MAX_CONNECTIONS` entries.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl<K: Eq + Hash> Drop for GaugeGuard<K> {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}
