//! UDP socket of the process, with the QUIC transport settings.

use crate::net::params;
use std::{fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig,
    VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};

use super::{error::NetError, gso_socket::GsoSocket};
use crate::limits;

/// Bound QUIC endpoint, with the limits that the kernel imposed on its socket.
pub struct Bound {
    /// Endpoint for client and server.
    pub endpoint: quinn::Endpoint,
    /// Warning with a remedy, if the kernel granted smaller socket buffers than requested.
    pub buffer_warning: Option<String>,
    /// Size of the receive buffer, bytes, if it is smaller than requested.
    pub clamped_buffer: Option<u64>,
}

/// Keys for stateless resets (RFC 9000 section 10.3).
///
/// A process that was killed and runs again on the same port uses them to reset connections to its earlier run. Without
/// them the other side detects the restart only from its idle timeout.
///
/// The keys are secret: they permit closing the connections of this process.
pub struct ResetKeys {
    reset: [u8; 64],
    connection_ids: u64,
}

impl ResetKeys {
    const BYTES: usize = 72;

    /// Loads the keys from the file at `path`. If the file is missing or damaged, creates it with new keys, readable by
    /// this user only.
    ///
    /// # Errors
    /// Fails if the file cannot be read or written, or the operating system has no randomness.
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
        // With the key the endpoint recognises connection ids of an earlier run. It ignores packets with other ids.
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
        config
    }
}

/// Binds `address`; port 0 selects a free port. Without a server configuration the endpoint accepts no connections.
///
/// # Errors
/// Fails if the address cannot be bound or a TLS configuration does not support QUIC.
pub fn bind(
    address: SocketAddr,
    server: Option<rustls::ServerConfig>,
    client: rustls::ClientConfig,
) -> Result<Bound, NetError> {
    bind_with(address, server, client, EndpointConfig::default())
}

/// Binds `address` with persistent reset keys, for a process that restarts on the same port.
///
/// # Errors
/// Fails like [`bind`].
pub fn bind_with_reset_keys(
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
    config.max_udp_payload_size(params::MAX_DATAGRAM_BYTES).map_err(|error| local(&error))?;
    let server = server.map(server_config).transpose()?;
    let runtime = Arc::new(TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket).map_err(|error| local(&error))?;
    let socket = Arc::new(GsoSocket::new(socket));
    let mut endpoint =
        quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime).map_err(|error| local(&error))?;
    endpoint.set_default_client_config(client_config(client)?);
    Ok(Bound { endpoint, buffer_warning, clamped_buffer })
}

/// Creates a QUIC client configuration with Brasa's transport settings.
///
/// # Errors
/// Fails if the TLS configuration does not support QUIC.
pub fn client_config(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, NetError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| NetError::Local(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = transport();
    // Keep-alives of one side reset the idle timers of both.
    transport.keep_alive_interval(Some(params::KEEP_ALIVE));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn server_config(tls: rustls::ServerConfig) -> Result<quinn::ServerConfig, NetError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| NetError::Local(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.max_incoming(params::MAX_HANDSHAKES);
    let mut transport = transport();
    // `serve` widens the window for members.
    transport.receive_window(VarInt::from_u32(params::APPLICANT_WINDOW_BYTES));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(params::MAX_DATAGRAM_BYTES);
    mtu.black_hole_cooldown(params::MTU_SEARCH_PAUSE);
    // Acknowledging every second datagram (RFC 9000 section 13.2.2) takes a tenth of the processor time of a fast
    // transfer, so the peers acknowledge less often (draft-ietf-quic-ack-frequency).
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(params::DATAGRAMS_PER_ACK));
    let mut transport = TransportConfig::default();
    transport
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(VarInt::from_u32(params::MAX_STREAMS_PER_CONNECTION))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(params::SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(Some(idle_timeout(params::IDLE_TIMEOUT)));
    transport
}

fn idle_timeout(wait: Duration) -> IdleTimeout {
    IdleTimeout::try_from(wait).expect("a timeout of seconds fits into 62 bits of milliseconds")
}

fn open_socket(address: SocketAddr) -> io::Result<(std::net::UdpSocket, Option<String>, Option<u64>)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // A dual-stack socket. Where the operating system forbids it, an IPv6-only socket matches the address.
        if let Err(error) = socket.set_only_v6(false) {
            tracing::debug!(%address, %error, "cannot bind a dual-stack socket; using IPv6 only");
        }
    }
    socket.bind(&address.into())?;
    let wanted = params::SOCKET_BUFFER_BYTES;
    // The kernel clamps the sizes without an error, so the code reads them back. Linux reports twice the usable size
    // (socket(7)).
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
