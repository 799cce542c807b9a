//! Restarts of the program `nameserver`, most of them after `kill -9`: acknowledged writes survive, and members
//! continue.
#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

mod common;

use std::{process::Command, time::Duration};

use common::{DEADLINE, Member, Program, leased, permanent};
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

/// Repeats a call until the restarted nameserver answers it.
async fn call_until_answered<T>(mut call: impl AsyncFnMut() -> Result<T, NetError>) -> T {
    let answered = async {
        loop {
            match call().await {
                Ok(answer) => return answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.expect("the restarted nameserver answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_names_and_highest_epoch_survive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), 0);
    let admin = Member::open(folder.path(), Role::Admin).await.unwrap();
    let tracker = Member::open(folder.path(), peer("a")).await.unwrap();
    tracker.register(leased("peer.a", Duration::from_secs(5))).await.unwrap();
    tracker.call(|c, cx| async move { c.claim(cx, claim(41, 0)).await }).await.unwrap();

    // Kills the nameserver at an arbitrary point between concurrent writes.
    let enough_acknowledged = Notify::new();
    let writing = async {
        for number in 0u64.. {
            let request = permanent(&format!("n{number:06}"));
            let answer = admin.try_call(|c, cx| async move { c.register(cx, request).await }).await;
            match answer {
                Ok(answer) => drop(answer.unwrap()),
                Err(_) => return number,
            }
            if number == 50 {
                enough_acknowledged.notify_one();
            }
        }
        unreachable!("the range is infinite")
    };
    let killing = async {
        enough_acknowledged.notified().await;
        program.kill();
    };
    let (written, ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(writing, killing) }).await.unwrap();

    let mut program = Program::start(folder.path(), program.port());
    let names = call_until_answered(async || {
        admin
            .try_call(|c, cx| async move {
                c.list(cx, ListQuery { prefix: Some("n0".to_owned()), ..ListQuery::default() }).await
            })
            .await
    });
    let names = names.await.unwrap().records;
    let kept = names.len() as u64;
    assert!(kept == written || kept == written + 1, "{written} acknowledged, {kept} kept");

    // The sessions continue: identities and authority are unchanged, and leases have restarted.
    call_until_answered(async || tracker.try_call(|c, cx| async move { c.ping(cx).await }).await).await;
    tracker.renew("peer.a", 1).await.unwrap();
    let view: SeatView = tracker.call(|c, cx| async move { c.seat(cx).await }).await;
    assert_eq!(view.epoch_high, Epoch(41));
    let reused = tracker.call(|c, cx| async move { c.claim(cx, claim(41, 41)).await }).await;
    assert!(matches!(reused, Err(ClaimError::Moved(view)) if view.epoch_high == Epoch(41)));

    // A second kill right after a claim: a granted epoch is never granted again.
    let resigned = tracker.call(|c, cx| async move { c.resign(cx, Epoch(41)).await }).await;
    assert!(matches!(resigned, Ok(()) | Err(ClaimError::Moved(SeatView { seat: None, .. }))), "{resigned:?}");
    tracker.call(|c, cx| async move { c.claim(cx, claim(42, 41)).await }).await.unwrap();
    program.kill();
    let _program = Program::start(folder.path(), program.port());
    let view: SeatView =
        call_until_answered(async || tracker.try_call(|c, cx| async move { c.seat(cx).await }).await).await;
    assert_eq!(view.epoch_high, Epoch(42));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_to_an_earlier_run_is_reset_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), 0);
    let admin = Member::open(folder.path(), Role::Admin).await.unwrap();
    let connection = admin.connection().await;
    program.kill();
    let _program = Program::start(folder.path(), program.port());
    // The later run answers packets for the earlier one with a stateless reset, for which it needs the same reset key.
    let lost = admin.try_call(|c, cx| async move { c.ping(cx).await });
    let (_, ended) = tokio::join!(lost, tokio::time::timeout(DEADLINE, connection.closed()));
    assert!(matches!(ended, Ok(quinn::ConnectionError::Reset)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_sigint_end_the_program_with_status_0() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Program::start(folder.path(), 0);
        let admin = Member::open(folder.path(), Role::Admin).await.unwrap();
        let sent = Command::new("kill").args([format!("-{signal}"), program.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let status = tokio::task::spawn_blocking(move || program.child.wait().unwrap());
        let status = tokio::time::timeout(DEADLINE, status).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "{signal}");
        let gone = admin.try_call(|c, cx| async move { c.ping(cx).await }).await;
        assert!(matches!(gone, Err(NetError::Unreachable { .. })), "the member did not receive the close: {gone:?}");
    }
}
