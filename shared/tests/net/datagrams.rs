//! Datagram size, which determines the processor time per byte.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use certs::{Authority, trust};
use shared::{
    name::Endpoint,
    net::{Target, connection::dial, endpoint},
    rpc::ALPN,
};
use tokio::net::UdpSocket;

use crate::harness::{LIFETIME, eventually, loopback, peer};

/// UDP payload of a full Ethernet frame, bytes.
const ETHERNET_PAYLOAD: usize = 1472;

/// Relays datagrams between one client and `server`. Drops datagrams over [`ETHERNET_PAYLOAD`] to the server while
/// `is_narrow`.
async fn relay(server: SocketAddr, is_narrow: Arc<AtomicBool>) -> SocketAddr {
    let [front, back] = [UdpSocket::bind(loopback()).await.unwrap(), UdpSocket::bind(loopback()).await.unwrap()];
    back.connect(server).await.unwrap();
    let address = front.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut to_server, mut to_client) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut client = None;
        loop {
            // Datagrams that the kernel rejects are lost, as on any path.
            tokio::select! {
                Ok((len, from)) = front.recv_from(&mut to_server) => {
                    client = Some(from);
                    if len <= ETHERNET_PAYLOAD || !is_narrow.load(Ordering::SeqCst) {
                        let _ = back.send(&to_server[..len]).await;
                    }
                }
                Ok(len) = back.recv(&mut to_client) => {
                    if let Some(client) = client {
                        let _ = front.send_to(&to_client[..len], client).await;
                    }
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn datagram_size_recovers_after_a_path_dropped_large_datagrams() {
    let authority = Authority::ephemeral().unwrap();
    let bound = ["a", "b"].map(|id| {
        let identity = authority.identity(&peer(id), LIFETIME).unwrap();
        let server = trust::member_server(&identity, &[ALPN]).unwrap();
        endpoint::bind(loopback(), Some(server), trust::member_client(&identity, &[ALPN]).unwrap()).unwrap().endpoint
    });
    let [sender, receiver] = bound;
    let is_narrow = Arc::new(AtomicBool::new(false));
    let path = relay(receiver.local_addr().unwrap(), is_narrow.clone()).await;
    tokio::spawn(async move {
        let connection = receiver.accept().await.unwrap().await.unwrap();
        let (_send, mut recv) = connection.accept_bi().await.unwrap();
        let mut bytes = vec![0; 1 << 16];
        while recv.read(&mut bytes).await.unwrap().is_some() {}
    });
    let connection = dial(&sender, &Target { role: peer("b"), endpoint: Endpoint::from(path) }).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let sending = tokio::spawn(async move { while send.write_all(&[0; 1 << 14]).await.is_ok() {} });
    let is_large = || connection.stats().path.current_mtu > shared::net::params::MAX_DATAGRAM_BYTES / 2;

    eventually("large datagrams", is_large).await;
    is_narrow.store(true, Ordering::SeqCst);
    eventually("small datagrams after large ones are lost", || !is_large()).await;
    assert!(connection.stats().path.black_holes_detected > 0);
    is_narrow.store(false, Ordering::SeqCst);
    eventually("large datagrams again", is_large).await;
    sending.abort();
}
