//! The accepting side: counts, authenticates, and hands streams to whoever answers them.

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

use super::{CloseCode, NetError, StreamKind};
use crate::{id::Role, limits, rpc::ENROL_ALPN};

/// Who is at the other end of an accepted connection.
#[derive(Debug)]
pub struct Remote {
    /// By its certificate.
    pub caller: Caller,
    /// The connection.
    pub connection: quinn::Connection,
}

impl Remote {
    /// The member's role; `None` for a newcomer.
    pub fn member(&self) -> Option<&Role> {
        match &self.caller {
            Caller::Member(role) => Some(role),
            Caller::Applicant(_) => None,
        }
    }

    /// Its address, IPv4 written as IPv4.
    pub fn address(&self) -> SocketAddr {
        let address = self.connection.remote_address();
        SocketAddr::new(address.ip().to_canonical(), address.port())
    }
}

/// Answers streams.
pub trait Handler: Send + Sync + 'static {
    /// Answers one stream whose kind has been told; dropped when the connection ends.
    /// Kinds that are not offered are refused by returning at once.
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()>;
}

/// Accepts connections until `stop`, then waits until every task it made has ended. Streams that are being
/// answered then go on until they or their connections end, so close the endpoint too.
pub async fn serve<H: Handler>(endpoint: quinn::Endpoint, handler: Arc<H>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let handshakes = Arc::new(Counts::default());
    let members = Arc::new(Counts::default());
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stop.cancelled() => break,
        };
        let Some(incoming) = incoming else { break };
        if endpoint.open_connections() >= limits::MAX_CONNECTIONS {
            incoming.refuse();
            continue;
        }
        // Under load a newcomer proves its address first, so that forged ones cost nothing (RFC 9000 section 8.1),
        // and a true one has its share. What came before the load counts for no address: it may be forged.
        let crowded = handshakes.total() >= limits::MAX_HANDSHAKES;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "address validation was not possible");
            }
            continue;
        }
        let (proven, limit) = if crowded {
            (Some(incoming.remote_address().ip().to_canonical()), limits::MAX_HANDSHAKES_PER_ADDRESS)
        } else {
            (None, limits::MAX_HANDSHAKES)
        };
        let Some(handshake) = handshakes.enter(proven, limit) else {
            incoming.refuse();
            continue;
        };
        let connection = connection(incoming, handshake, handler.clone(), members.clone(), tasks.clone());
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

async fn connection<H: Handler>(
    incoming: quinn::Incoming,
    handshake: Counted<Option<IpAddr>>,
    handler: Arc<H>,
    members: Arc<Counts<Option<Role>>>,
    tasks: TaskTracker,
) {
    let from = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return tracing::debug!(%from, %error, "a connection failed before its handshake"),
    };
    let connection = match timeout(limits::DIAL_DEADLINE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let error = NetError::from_connection(&from.to_string(), &error);
            return tracing::warn!(%from, %error, "a connection was refused");
        }
        Err(_) => return tracing::debug!(%from, "a handshake took too long"),
    };
    drop(handshake);
    let caller = match admit(&connection) {
        Ok(caller) => caller,
        Err(reason) => {
            tracing::warn!(%from, reason, "a connection was refused");
            return connection.close(CloseCode::NotAuthorised.to_varint(), reason.as_bytes());
        }
    };
    // Newcomers count together: what they are called is not known yet.
    let (who, limit, streams) = match &caller {
        Caller::Member(role) => (Some(role.clone()), limits::MAX_CONNECTIONS_PER_IDENTITY, limits::MAX_CALL_STREAMS),
        Caller::Applicant(_) => (None, limits::MAX_NEWCOMERS, limits::MAX_NEWCOMER_STREAMS),
    };
    let name = who.as_ref().map_or_else(|| "newcomers".to_owned(), Role::to_string);
    let Some(_counted) = members.enter(who, limit) else {
        tracing::warn!(%from, name, "too many connections of one identity");
        return connection.close(CloseCode::Overloaded.to_varint(), b"too many connections of this identity");
    };
    let remote = Arc::new(Remote { caller, connection });
    let call_streams = Arc::new(Semaphore::new(streams));
    let accept = accept_streams(remote.clone(), handler, call_streams, tasks);
    if remote.member().is_some() {
        remote.connection.set_receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES));
        accept.await;
    } else if timeout(limits::NEWCOMER_STAY, accept).await.is_err() {
        remote.connection.close(CloseCode::Overloaded.to_varint(), b"enrolment took too long");
    }
}

/// Hands a connection's streams to the handler, each in a task of its own, until the connection ends.
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
        tasks.spawn(stream(remote.clone(), handler.clone(), call_streams.clone(), send, recv));
    }
}

async fn stream<H: Handler>(
    remote: Arc<Remote>,
    handler: Arc<H>,
    call_streams: Arc<Semaphore>,
    send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) {
    let mut kind = [0];
    let told = timeout(limits::STREAM_HEADER_DEADLINE, recv.read_exact(&mut kind)).await;
    let kind = match (told, StreamKind::from_byte(kind[0])) {
        (Ok(Ok(())), Some(kind)) => kind,
        (Ok(Ok(())), None) => {
            return remote.connection.close(CloseCode::Protocol.to_varint(), b"unknown kind of stream");
        }
        (Ok(Err(_)) | Err(_), _) => return,
    };
    // Bulk streams hold no frames; whoever serves them counts them.
    let _permit = match kind {
        StreamKind::Bulk | StreamKind::Pack | StreamKind::Swarm => None,
        StreamKind::Names | StreamKind::Tracker | StreamKind::Peer | StreamKind::Enrol => {
            let Ok(permit) = call_streams.try_acquire_owned() else {
                return tracing::debug!(from = %remote.address(), "too many streams with calls");
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

/// Who is there, if it may be: newcomers on the enrolment protocol and members on the other, nobody else.
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

/// How many there are of each kind.
struct Counts<K>(Mutex<HashMap<K, usize>>);

/// One of those that are counted, until it is dropped.
struct Counted<K: Eq + Hash>(Arc<Counts<K>>, K);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone> Counts<K> {
    /// One more of `key`, unless there are `limit` of it.
    fn enter(self: &Arc<Self>, key: K, limit: usize) -> Option<Counted<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&key).copied().unwrap_or_default();
        if count >= limit {
            return None;
        }
        counts.insert(key.clone(), count + 1);
        Some(Counted(self.clone(), key))
    }

    /// Of all kinds together.
    fn total(&self) -> usize {
        // At most `limits::MAX_CONNECTIONS` entries.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
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
