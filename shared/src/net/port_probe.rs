//! Port probe: detects a closed UDP port from ICMP.
//!
//! A killed process sends nothing, and QUIC ignores ICMP errors (RFC 9000 section 21.7). A plain *connected* UDP
//! socket, however, returns "connection refused" after a datagram to a port without a listener (ICMP port unreachable,
//! RFC 1122 section 4.1.3.1). On a running machine this takes one round trip.
//!
//! The result is a hint. A missing refusal proves nothing: a frozen process keeps its port, an unreachable machine
//! sends nothing, firewalls drop ICMP, and operating systems limit its rate. A refusal can be wrong (a firewall
//! rejects only the packets of this socket) or forged by an attacker on the path. A caller that acts on it needs
//! further evidence.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

use super::params::PROBE_TIMEOUT;
use crate::limits::PROBE_RETRY;

/// Payload of a probe. It is too short to contain a connection id, so a QUIC endpoint drops it without a lookup and
/// without a reply: neither version negotiation nor a stateless reset, which must be shorter than the packet that
/// triggers it (RFC 9000 section 10.3).
const PAYLOAD: [u8; 1] = [0];

/// Plain UDP socket that probes one address.
#[derive(Debug)]
pub struct PortProbe {
    socket: UdpSocket,
}

impl PortProbe {
    /// Creates a socket that probes `address`. Requires a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// Fails if no socket is available or the address is not routable.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        Ok(Self { socket })
    }

    /// Sends a probe. Returns true if an earlier probe was refused; in that case this one is not sent.
    pub async fn send(&self) -> bool {
        // Other errors carry no information about the port.
        self.socket.send(&PAYLOAD).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    /// Returns when a probe is refused, and never otherwise.
    pub async fn refused(&self) {
        loop {
            // The socket returns one error per ICMP message, and an unexpected datagram is discarded. Each iteration
            // waits, so this is not a busy loop.
            if let Err(error) = self.socket.recv(&mut [0; 1]).await
                && error.kind() == ErrorKind::ConnectionRefused
            {
                return;
            }
        }
    }

    /// Sends one probe and returns true if it is refused within `wait`.
    pub async fn is_refused(&self, wait: Duration) -> bool {
        self.send().await || timeout(wait, self.refused()).await.is_ok()
    }
}

/// Returns true if `address` has no listener: two probes, [`PROBE_RETRY`] apart, are each refused within
/// [`PROBE_TIMEOUT`].
pub async fn is_port_closed(address: SocketAddr) -> bool {
    let Ok(probe) = PortProbe::connect(address).await else { return false };
    if !probe.is_refused(PROBE_TIMEOUT).await {
        return false;
    }
    sleep(PROBE_RETRY).await;
    probe.is_refused(PROBE_TIMEOUT).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn port_is_closed_only_after_its_socket_is_dropped() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        assert!(!is_port_closed(address).await);
        drop(socket);
        assert!(is_port_closed(address).await);
    }

    #[tokio::test]
    async fn probe_used_before_detects_that_the_port_closes() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let probe = PortProbe::connect(socket.local_addr().unwrap()).await.unwrap();
        for _ in 0..3 {
            assert!(!probe.send().await);
        }
        drop(socket);
        assert!(!probe.send().await, "refused before the first datagram to the closed port");
        timeout(DEADLINE, probe.refused()).await.expect("no refusal before the deadline");
    }

    #[tokio::test]
    async fn quic_endpoint_does_not_answer_probes() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            None,
            server.into_std().unwrap(),
            std::sync::Arc::new(quinn::TokioRuntime),
        )
        .unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(endpoint.local_addr().unwrap()).await.unwrap();
        for _ in 0..100 {
            socket.send(&PAYLOAD).await.unwrap();
        }
        let answer = timeout(PROBE_TIMEOUT * 2, socket.recv(&mut [0; 1])).await;
        assert!(answer.is_err(), "{answer:?}");
    }
}
