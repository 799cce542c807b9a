//! `kill -9` of the real program: what it acknowledged is there when it is back, and its members carry on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{process::Command, time::Duration};

use common::{Member, PATIENCE, Program, leased, permanent};
use shared::{
    epoch::Epoch,
    id::Role,
    net::NetError,
    rpc::nameserver::{Claim, ClaimError, ListQuery, SeatView},
};
use tokio::sync::Notify;

fn peer(id: &str) -> Role {
    Role::Peer(id.parse().unwrap())
}

fn claim(epoch: u64, expected: u64) -> Claim {
    Claim {
        epoch: Epoch(epoch),
        expected_epoch: Epoch(expected),
        endpoint: "quic://127.0.0.1:1".parse().unwrap(),
        votes: Vec::new(),
        force: false,
    }
}

/// Repeats a call until the nameserver is back: a caller learns that only by calling.
async fn back<T>(mut call: impl AsyncFnMut() -> Result<T, NetError>) -> T {
    let again = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("the nameserver is back and answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_names_and_the_highest_epoch_outlive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), 0);
    let admin = Member::open(folder.path(), Role::Admin).await.unwrap();
    let tracker = Member::open(folder.path(), peer("a")).await.unwrap();
    tracker.register(leased("peer.a", Duration::from_secs(5))).await.unwrap();
    tracker.call(|c, cx| async move { c.claim(cx, claim(41, 0)).await }).await.unwrap();

    // Killed in the middle of writes, at a moment that nobody chose.
    let many_are_acknowledged = Notify::new();
    let writing = async {
        for number in 0u64.. {
            let request = permanent(&format!("n{number:06}"));
            let answer = admin.try_call(|c, cx| async move { c.register(cx, request).await }).await;
            match answer {
                Ok(answer) => drop(answer.unwrap()),
                Err(_) => return number,
            }
            if number == 50 {
                many_are_acknowledged.notify_one();
            }
        }
        unreachable!("the numbers do not end")
    };
    let killing = async {
        many_are_acknowledged.notified().await;
        program.kill();
    };
    let (written, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(writing, killing) }).await.unwrap();

    let mut program = Program::start(folder.path(), program.port());
    let names = back(async || {
        admin
            .try_call(|c, cx| async move {
                c.list(cx, ListQuery { prefix: Some("n0".to_owned()), ..ListQuery::default() }).await
            })
            .await
    });
    let names = names.await.unwrap().records;
    let kept = names.len() as u64;
    assert!(kept == written || kept == written + 1, "{written} acknowledged, {kept} kept");

    // The same sessions go on: identities and authority are the same, leases began anew.
    back(async || tracker.try_call(|c, cx| async move { c.ping(cx).await }).await).await;
    tracker.renew("peer.a", 1).await.unwrap();
    let view: SeatView = tracker.call(|c, cx| async move { c.seat(cx).await }).await;
    assert_eq!(view.epoch_high, Epoch(41));
    let reused = tracker.call(|c, cx| async move { c.claim(cx, claim(41, 41)).await }).await;
    assert!(matches!(reused, Err(ClaimError::Moved(view)) if view.epoch_high == Epoch(41)));

    // A second kill right after a claim: an epoch that was granted is never granted again.
    let resigned = tracker.call(|c, cx| async move { c.resign(cx, Epoch(41)).await }).await;
    assert!(matches!(resigned, Ok(()) | Err(ClaimError::Moved(SeatView { seat: None, .. }))), "{resigned:?}");
    tracker.call(|c, cx| async move { c.claim(cx, claim(42, 41)).await }).await.unwrap();
    program.kill();
    let _program = Program::start(folder.path(), program.port());
    let view: SeatView = back(async || tracker.try_call(|c, cx| async move { c.seat(cx).await }).await).await;
    assert_eq!(view.epoch_high, Epoch(42));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_an_earlier_run_are_told_that_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), 0);
    let admin = Member::open(folder.path(), Role::Admin).await.unwrap();
    let connection = admin.connection().await;
    program.kill();
    let _program = Program::start(folder.path(), program.port());
    // Whatever is sent to the earlier run is answered by the later one; without its keys only silence would tell.
    let lost = admin.try_call(|c, cx| async move { c.ping(cx).await });
    let (_, ended) = tokio::join!(lost, tokio::time::timeout(PATIENCE, connection.closed()));
    assert!(matches!(ended, Ok(quinn::ConnectionError::Reset)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_ends_it_cleanly_with_status_0() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::start(folder.path(), 0);
        let admin = Member::open(folder.path(), Role::Admin).await.unwrap();
        let sent = Command::new("kill").args([format!("-{signal}"), program.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let status = tokio::task::spawn_blocking(move || program.child.wait().unwrap());
        let status = tokio::time::timeout(PATIENCE, status).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{signal}");
        let gone = admin.try_call(|c, cx| async move { c.ping(cx).await }).await;
        assert!(matches!(gone, Err(NetError::Unreachable { .. })), "its members are told: {gone:?}");
    }
}
