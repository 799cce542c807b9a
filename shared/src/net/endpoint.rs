//! The process's UDP socket and how QUIC is spoken on it.

use std::{fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig,
    VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};

use super::{NetError, socket::Batching};
use crate::limits;

/// A socket that is bound and speaks QUIC, and what the kernel did not grant it.
pub struct Bound {
    /// Client and server.
    pub endpoint: quinn::Endpoint,
    /// Said when the kernel gave smaller socket buffers than asked for, with what to do about it.
    pub buffer_warning: Option<String>,
    /// The receive buffer in bytes, when the kernel gave less than asked for.
    pub clamped_buffer: Option<u64>,
}

/// Keys by which a process that was killed and runs again on the same port tells those who still hold connections to its
/// earlier run that they are over (stateless reset, RFC 9000 section 10.3). Without them they learn it from silence.
///
/// Secret: who has them can end this process's connections.
pub struct ResetKeys {
    reset: [u8; 64],
    connection_ids: u64,
}

impl ResetKeys {
    const BYTES: usize = 72;

    /// The keys kept in the file at `path`, readable by this user only; made there if there are none, or a damaged file.
    ///
    /// # Errors
    /// When the file cannot be read or written, or the system has no randomness.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let bytes = match fs::read(path) {
            Ok(bytes) if bytes.len() == Self::BYTES => bytes,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {
                let mut bytes = vec![0; Self::BYTES];
                getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
                certs::write_private(path, &bytes)?;
                bytes
            }
        };
        let (reset, connection_ids) = bytes.split_at(64);
        let wrong = |_| io::Error::from(io::ErrorKind::InvalidData);
        Ok(Self {
            reset: reset.try_into().map_err(wrong)?,
            connection_ids: u64::from_be_bytes(connection_ids.try_into().map_err(wrong)?),
        })
    }

    fn endpoint_config(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.reset)));
        let key = self.connection_ids;
        // A connection id of an earlier run must be recognised as one's own, or it is taken for noise.
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
        config
    }
}

/// Binds `address` (port 0 takes a free one). Without a server configuration the socket only dials.
///
/// # Errors
/// When the address cannot be bound or the TLS configurations cannot be used with QUIC.
pub fn bind(
    address: SocketAddr,
    server: Option<rustls::ServerConfig>,
    client: rustls::ClientConfig,
) -> Result<Bound, NetError> {
    bind_with(address, server, client, EndpointConfig::default())
}

/// The same for a process that comes back on the same port: with the keys of its earlier runs.
///
/// # Errors
/// As [`bind`].
pub fn bind_again(
    address: SocketAddr,
    server: rustls::ServerConfig,
    client: rustls::ClientConfig,
    keys: &ResetKeys,
) -> Result<Bound, NetError> {
    bind_with(address, Some(server), client, keys.endpoint_config())
}

fn bind_with(
    address: SocketAddr,
    server: Option<rustls::ServerConfig>,
    client: rustls::ClientConfig,
    mut config: EndpointConfig,
) -> Result<Bound, NetError> {
    let local = |error: &dyn std::fmt::Display| NetError::Local(format!("cannot use UDP port {address}: {error}"));
    let (socket, buffer_warning, clamped_buffer) = open_socket(address).map_err(|error| local(&error))?;
    config.max_udp_payload_size(limits::MAX_DATAGRAM_BYTES).map_err(|error| local(&error))?;
    let server = server.map(server_config).transpose()?;
    let runtime = Arc::new(TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket).map_err(|error| local(&error))?;
    let socket = Arc::new(Batching::new(socket));
    let mut endpoint =
        quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime).map_err(|error| local(&error))?;
    endpoint.set_default_client_config(client_config(client)?);
    Ok(Bound { endpoint, buffer_warning, clamped_buffer })
}

/// A QUIC client configuration with Brasa's transport settings.
///
/// # Errors
/// When the TLS configuration lacks what QUIC needs.
pub fn client_config(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, NetError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| NetError::Local(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = transport();
    // One side's keep-alives keep both alive.
    transport.keep_alive_interval(Some(limits::KEEP_ALIVE));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn server_config(tls: rustls::ServerConfig) -> Result<quinn::ServerConfig, NetError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| NetError::Local(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.max_incoming(limits::MAX_HANDSHAKES);
    let mut transport = transport();
    // `serve` opens it for members.
    transport.receive_window(VarInt::from_u32(limits::NEWCOMER_WINDOW_BYTES));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(limits::MAX_DATAGRAM_BYTES);
    mtu.black_hole_cooldown(limits::MTU_SEARCH_PAUSE);
    // An acknowledgement for every other datagram, as RFC 9000 section 13.2.2 has it, is a tenth of the work of a fast
    // transfer (draft-ietf-quic-ack-frequency).
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(limits::DATAGRAMS_PER_ACK));
    let mut transport = TransportConfig::default();
    transport
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::MAX_STREAMS_PER_CONNECTION))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(Some(idle_timeout(limits::IDLE_TIMEOUT)));
    transport
}

fn idle_timeout(wait: Duration) -> IdleTimeout {
    IdleTimeout::try_from(wait).expect("seconds fit the 62 bits of milliseconds that QUIC has for them")
}

fn open_socket(address: SocketAddr) -> io::Result<(std::net::UdpSocket, Option<String>, Option<u64>)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // One socket for both families; where the system forbids that, IPv6 alone is what was asked for.
        if let Err(error) = socket.set_only_v6(false) {
            tracing::debug!(%error, "the socket is for IPv6 only");
        }
    }
    socket.bind(&address.into())?;
    let wanted = limits::SOCKET_BUFFER_BYTES;
    // The kernel clamps silently, so what it granted is read back. Linux counts double (socket(7)).
    socket.set_recv_buffer_size(wanted)?;
    socket.set_send_buffer_size(wanted)?;
    let doubled = if cfg!(target_os = "linux") { 2 } else { 1 };
    let receive = socket.recv_buffer_size()? / doubled;
    let send = socket.send_buffer_size()? / doubled;
    let buffer_warning = (receive.min(send) < wanted).then(|| {
        format!(
            "UDP socket buffers are clamped to {} KiB by the kernel; for fast networks allow {} KiB: \
             sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted}",
            receive.min(send) >> 10,
            wanted >> 10,
        )
    });
    let clamped_buffer = (receive < wanted).then_some(receive as u64);
    Ok((socket.into(), buffer_warning, clamped_buffer))
}
