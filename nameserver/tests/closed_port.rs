//! The nameserver probes the port of a suspected tracker: a killed tracker is replaced at once, a live one is not.
#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

mod common;

use std::{net::UdpSocket, time::Duration};

use common::{TestServer, leased};
use nameserver::config::StorageChoice;
use shared::{
    epoch::Epoch,
    rpc::nameserver::{Claim, ClaimError},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_against_a_tracker_with_a_closed_port_is_granted_at_once() {
    let server = TestServer::start(StorageChoice::Memory).await;
    let (a, b) = (server.peer("a").await, server.peer("b").await);
    for (member, name) in [(&a, "peer.a"), (&b, "peer.b")] {
        member.register(leased(name, Duration::from_secs(10))).await.unwrap();
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let claim = |epoch: u64, voter: &str| Claim {
        epoch: Epoch(epoch),
        expected_epoch: Epoch(epoch - 1),
        endpoint: format!("quic://{}", socket.local_addr().unwrap()).parse().unwrap(),
        votes: vec![voter.parse().unwrap()],
        force: false,
    };
    let (first, second, third) = (claim(1, "a"), claim(2, "b"), claim(2, "b"));
    a.call(|c, cx| async move { c.claim(cx, first).await }).await.unwrap();
    let alive = b.call(|c, cx| async move { c.claim(cx, second).await }).await;
    assert!(matches!(alive, Err(ClaimError::Held { .. })), "{alive:?}");
    drop(socket);
    // The tracker has just renewed, so its silence cannot be the reason.
    a.call(|c, cx| async move { c.renew_seat(cx, Epoch(1)).await }).await.unwrap();
    let granted = b.call(|c, cx| async move { c.claim(cx, third).await }).await.unwrap();
    assert_eq!(granted.epoch, Epoch(2));
}
