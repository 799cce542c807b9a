//! The process's UDP socket and how QUIC is spoken on it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::NetError;
use crate::limits;

/// A socket that is bound and speaks QUIC, and what the kernel did not grant it.
pub struct Bound {
    /// Client and server.
    pub endpoint: quinn::Endpoint,
    /// Said when the kernel gave smaller socket buffers than asked for, with what to do about it.
    pub buffer_warning: Option<String>,
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
    let local = |error: &dyn std::fmt::Display| NetError::Local(format!("cannot use UDP port {address}: {error}"));
    let (socket, buffer_warning) = open_socket(address).map_err(|error| local(&error))?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(limits::MAX_DATAGRAM_BYTES).map_err(|error| local(&error))?;
    let server = server.map(server_config).transpose()?;
    let runtime = Arc::new(TokioRuntime);
    let mut endpoint = quinn::Endpoint::new(config, server, socket, runtime).map_err(|error| local(&error))?;
    endpoint.set_default_client_config(client_config(client)?);
    Ok(Bound { endpoint, buffer_warning })
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
    let mut transport = TransportConfig::default();
    transport
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

fn open_socket(address: SocketAddr) -> std::io::Result<(std::net::UdpSocket, Option<String>)> {
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
    Ok((socket.into(), buffer_warning))
}
