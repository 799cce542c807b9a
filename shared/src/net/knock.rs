//! Whether anybody listens on a UDP port: what the other machine says of it.
//!
//! A process that is killed says nothing, and QUIC must not believe ICMP (RFC 9000 section 21.7), so quinn does not. But
//! a plain socket that is *connected* is told "connection refused" when a datagram of its own came to a port that nobody
//! has (ICMP port unreachable, RFC 1122 section 4.1.3.1): on a living machine within a round trip.
//!
//! It is a hint. That it does not come means nothing: a frozen process still has its port, a machine that is cut off says
//! nothing, firewalls swallow ICMP, and systems limit how much of it they send. That it comes can be a mistake (a firewall
//! that rejects *this* socket's packets) or a forgery by whoever sees the packets. So whoever acts on it asks for more.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

use crate::limits::{KNOCK_AGAIN, KNOCK_WAIT};

/// What is sent. Too short for the connection id that a QUIC endpoint looks for in it, so it is dropped before anything
/// is looked up, and nothing is answered: neither a version negotiation nor a stateless reset, which would have to be
/// shorter than what it answers (RFC 9000 section 10.3).
const KNOCK: [u8; 1] = [0];

/// A plain socket that knocks at one address.
#[derive(Debug)]
pub struct Knocker {
    socket: UdpSocket,
}

impl Knocker {
    /// A socket for knocking at `address`. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When there is no socket left, or no way to the address.
    pub async fn to(address: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        Ok(Self { socket })
    }

    /// Knocks. Whether it is known by now that an earlier knock was refused; this one then was not sent.
    pub async fn knock(&self) -> bool {
        // Other errors say nothing of the port.
        self.socket.send(&KNOCK).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    }

    /// Returns when a knock is refused; never otherwise.
    pub async fn refused(&self) {
        loop {
            // An error is told once for each ICMP message, a datagram is nothing that was asked for: no busy loop.
            if let Err(error) = self.socket.recv(&mut [0; 1]).await
                && error.kind() == ErrorKind::ConnectionRefused
            {
                return;
            }
        }
    }

    /// Knocks once; whether that was refused within `wait`.
    pub async fn is_refused(&self, wait: Duration) -> bool {
        self.knock().await || timeout(wait, self.refused()).await.is_ok()
    }
}

/// Whether nobody listens at `address`: two knocks, [`KNOCK_AGAIN`] apart, were refused within [`KNOCK_WAIT`] each.
pub async fn is_port_closed(address: SocketAddr) -> bool {
    let Ok(knocker) = Knocker::to(address).await else { return false };
    if !knocker.is_refused(KNOCK_WAIT).await {
        return false;
    }
    sleep(KNOCK_AGAIN).await;
    knocker.is_refused(KNOCK_WAIT).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_port_is_open_until_its_socket_is_gone() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        assert!(!is_port_closed(address).await);
        drop(socket);
        assert!(is_port_closed(address).await);
    }

    #[tokio::test]
    async fn a_socket_that_knocked_before_sees_the_port_close() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let knocker = Knocker::to(socket.local_addr().unwrap()).await.unwrap();
        for _ in 0..3 {
            assert!(!knocker.knock().await);
        }
        drop(socket);
        assert!(!knocker.knock().await, "nothing is known before the answer");
        timeout(SOON, knocker.refused()).await.expect("the refusal comes in time");
    }

    #[tokio::test]
    async fn a_quic_endpoint_ignores_knocks() {
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
            socket.send(&KNOCK).await.unwrap();
        }
        let answer = timeout(KNOCK_WAIT * 2, socket.recv(&mut [0; 1])).await;
        assert!(answer.is_err(), "{answer:?}");
    }
}
