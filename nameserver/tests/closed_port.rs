//! The nameserver probes the port of a suspected tracker: a killed tracker is replaced at once, a live one is not.
#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

mod common;

use std::{net::UdpSocket, time::Duration};

use common::{TestServer, leased};
use nameserver::{config::StorageChoice, params::SEAT_SILENCE};
use shared::{
    epoch::Epoch,
    rpc::nameserver::{Claim, ClaimError},
    time::Clock,
};

/// Rounds after which the machine counts as too busy for this test.
const MAX_ROUNDS: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claim_against_a_tracker_with_a_closed_port_is_granted_at_once() {
    for _ in 0..MAX_ROUNDS {
        if claim_live_then_closed().await {
            return;
        }
    }
    panic!("in {MAX_ROUNDS} rounds no claim was answered within SEAT_SILENCE of a renewal");
}

/// Claims the seat of a live tracker, then of the same tracker with its port closed, each right after a renewal.
/// Returns false if the machine took so long that the tracker's silence may explain an answer.
async fn claim_live_then_closed() -> bool {
    let server = TestServer::start(StorageChoice::Memory).await;
    let (a, b) = (server.peer("a").await, server.peer("b").await);
    for (member, name) in [(&a, "peer.a"), (&b, "peer.b")] {
        member.register(leased(name, Duration::from_secs(60))).await.unwrap();
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
    let clock = Clock::start();
    let begun = clock.now();
    a.call(|c, cx| async move { c.claim(cx, first).await }).await.unwrap();
    let alive = b.call(|c, cx| async move { c.claim(cx, second).await }).await;
    if clock.now().since(begun) >= SEAT_SILENCE {
        return false;
    }
    assert!(matches!(alive, Err(ClaimError::Held { .. })), "{alive:?}");
    drop(socket);
    let renewed = clock.now();
    if a.call(|c, cx| async move { c.renew_seat(cx, Epoch(1)).await }).await.is_err() {
        return false;
    }
    let granted = b.call(|c, cx| async move { c.claim(cx, third).await }).await;
    if clock.now().since(renewed) >= SEAT_SILENCE {
        return false;
    }
    assert_eq!(granted.unwrap().epoch, Epoch(2));
    true
}
