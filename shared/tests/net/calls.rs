//! Calls between members: connection pool, deadlines, server restarts.

use std::{
    net::UdpSocket,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use certs::{Authority, trust};
use futures::future::join_all;
use shared::{
    limits,
    name::Endpoint,
    net::{NetError, Target, endpoint, serve::serve},
    rpc::{ALPN, peer::PeerServiceClient},
    time::Clock,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{DEADLINE, KillableServer, LIFETIME, Node, ServerStats, TestHandler, eventually, loopback, peer};

#[tokio::test]
async fn calls_share_one_connection_and_identify_the_caller() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    for _ in 0..3 {
        assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
    }
    assert_eq!(b.whoami(&a.target()).await.unwrap(), "b");
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 1, "three calls need one stream");
    assert_eq!(a.endpoint.open_connections(), 2);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_concurrent_calls_are_answered_over_one_connection() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let target = b.target();
    // More calls than the server runs at a time, all without an open connection.
    let names: Vec<_> = (0..1000).map(|at| format!("file{at}")).collect();
    let calls = names.iter().map(|name| a.have(&target, name, DEADLINE));
    for answer in join_all(calls).await {
        assert!(answer.unwrap());
    }
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 1);
    assert_eq!(b.endpoint.open_connections(), 1);
}

#[tokio::test]
async fn late_call_fails_with_deadline_and_is_cancelled_at_the_server() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let target = b.target();
    a.whoami(&target).await.unwrap();
    let clock = Clock::start();
    let before = clock.now();
    let wait = Duration::from_millis(150);
    let (late, longer) = tokio::join!(a.have(&target, "slow", wait), async {
        tokio::time::sleep(wait).await;
        a.have(&target, "file", limits::CALL_DEADLINE).await
    });
    assert!(matches!(late, Err(NetError::Deadline { .. })), "{late:?}");
    let waited = clock.now().since(before);
    assert!(waited >= wait, "{waited:?}");
    assert!(longer.unwrap());
    eventually("the server cancels the late call", || b.stats.calls.load(Ordering::SeqCst) == 0).await;
    assert!(a.whoami(&target).await.is_ok());
}

#[tokio::test]
async fn handshake_continues_after_its_caller_timed_out() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    // A server that does not accept connections yet.
    let identity = authority.identity(&peer("b"), LIFETIME).unwrap();
    let server = trust::member_server(&identity, &[ALPN]).unwrap();
    let client = trust::member_client(&identity, &[ALPN]).unwrap();
    let b = endpoint::bind(loopback(), Some(server), client).unwrap().endpoint;
    let target = Target { role: peer("b"), endpoint: Endpoint::from(b.local_addr().unwrap()) };

    for _ in 0..3 {
        let early = a.whoami_within(&target, Duration::from_millis(50)).await;
        assert!(matches!(early, Err(NetError::Deadline { .. })), "{early:?}");
    }
    let stats = Arc::new(ServerStats::default());
    let stop = CancellationToken::new();
    tokio::spawn(serve(b.clone(), Arc::new(TestHandler(stats.clone())), stop));
    assert_eq!(a.whoami(&target).await.unwrap(), "a");
    assert_eq!(b.open_connections(), 1, "the pool dialled again instead of using the pending handshake");
}

#[tokio::test]
async fn dial_to_a_closed_port_fails_before_a_dial_to_a_silent_one() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    let (silent, free) = (UdpSocket::bind(loopback()).unwrap(), UdpSocket::bind(loopback()).unwrap());
    let to = |socket: &UdpSocket| Target { role: peer("b"), endpoint: Endpoint::from(socket.local_addr().unwrap()) };
    let (silent_target, closed_target) = (to(&silent), to(&free));
    drop(free);
    let (until_timeout, until_refusal) = (a.whoami_within(&silent_target, DEADLINE), a.whoami(&closed_target));
    tokio::select! {
        biased;
        refused = until_refusal => assert!(matches!(refused, Err(NetError::Unreachable { .. })), "{refused:?}"),
        timed_out = until_timeout => panic!("the dial to a closed port waits for a timeout: {timed_out:?}"),
    }
}

#[tokio::test]
async fn concurrent_callers_share_the_timeout_of_one_dial() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    let silent = UdpSocket::bind(loopback()).unwrap();
    let target = Target { role: peer("b"), endpoint: Endpoint::from(silent.local_addr().unwrap()) };
    let clock = Clock::start();
    let before = clock.now();
    let calls = (0..20).map(|_| a.whoami_within(&target, DEADLINE));
    for answer in join_all(calls).await {
        assert!(matches!(answer, Err(NetError::Unreachable { .. })), "{answer:?}");
    }
    // One after the other, twenty dials would take four times as long as this bound.
    let waited = clock.now().since(before);
    assert!(waited < shared::net::params::DIAL_DEADLINE * 5, "{waited:?}");
}

#[tokio::test]
async fn second_call_after_a_server_was_killed_and_restarted_succeeds() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    let identity = authority.identity(&peer("b"), LIFETIME).unwrap();
    let first = KillableServer::start(&identity, loopback()).await;
    let target = first.target.clone();
    assert_eq!(a.whoami(&target).await.unwrap(), "a");
    let old = a.connections.connection(&target).await.unwrap();

    first.kill();
    let _second = KillableServer::start(&identity, target.endpoint.socket_addr().unwrap()).await;
    assert!(old.close_reason().is_none(), "a killed process closed its connection");
    // tarpc and the pool each have a timer for the deadline; either may fire first.
    let wait = Duration::from_millis(200);
    let lost = a.whoami_within(&target, wait).await;
    assert!(matches!(lost, Err(NetError::Deadline { .. })), "{lost:?}");
    assert_eq!(a.whoami(&target).await.unwrap(), "a");
}

#[tokio::test]
async fn call_to_a_stopping_server_fails_and_its_successor_is_reached() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    let identity = authority.identity(&peer("b"), LIFETIME).unwrap();
    let b = Node::of(&identity);
    let target = b.target();
    let pending = a.have(&target, "slow", DEADLINE);
    let stopping = async {
        eventually("the call has begun", || b.stats.calls.load(Ordering::SeqCst) == 1).await;
        b.stop().await;
    };
    let (pending, ()) = tokio::join!(pending, stopping);
    assert!(matches!(&pending, Err(NetError::Unreachable { why, .. }) if why.contains("stopped")), "{pending:?}");

    let _successor = KillableServer::start(&identity, target.endpoint.socket_addr().unwrap()).await;
    assert_eq!(a.whoami(&target).await.unwrap(), "a");
}

#[tokio::test]
async fn dial_to_a_host_name_tries_all_its_addresses() {
    let authority = Authority::ephemeral().unwrap();
    // `localhost` often resolves to `::1` first, where `b` does not listen.
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let endpoint = Endpoint::from_host_port(&format!("localhost:{}", b.address().port())).unwrap();
    assert_eq!(a.whoami(&Target { role: peer("b"), endpoint }).await.unwrap(), "a");
    let endpoint = Endpoint::from_host_port("no-such-host.invalid:9090").unwrap();
    let error = a.whoami_within(&Target { role: peer("b"), endpoint }, DEADLINE).await.unwrap_err();
    assert!(matches!(&error, NetError::Local(why) if why.contains("no-such-host.invalid")), "{error:?}");
}

#[tokio::test]
async fn message_over_the_frame_limit_fails_only_its_own_call() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let target = b.target();
    let other = a.have(&target, "slow", Duration::from_millis(700));
    let long = async {
        eventually("the other call has begun", || b.stats.calls.load(Ordering::SeqCst) == 1).await;
        let connection = a.connections.connection(&target).await.unwrap().stable_id();
        let just_fits = "x".repeat(limits::MAX_FRAME_BYTES - 64);
        assert!(!a.have(&target, &just_fits, limits::CALL_DEADLINE).await.unwrap());
        let question = "x".repeat(limits::MAX_FRAME_BYTES + 1);
        let asked = timeout(limits::CALL_DEADLINE, a.have(&target, &question, DEADLINE)).await.unwrap();
        assert!(matches!(&asked, Err(NetError::Local(why)) if why.contains("frame")), "{asked:?}");

        let list = |client: PeerServiceClient, context| async move {
            client.list(context, Some("long".parse().unwrap())).await
        };
        let answered = a.connections.call(&target, DEADLINE, list);
        let answered = timeout(limits::CALL_DEADLINE, answered).await.unwrap();
        assert!(matches!(&answered, Err(NetError::Refused { why, .. }) if why.contains("frame")), "{answered:?}");
        assert_eq!(a.whoami(&target).await.unwrap(), "a");
        assert_eq!(a.connections.connection(&target).await.unwrap().stable_id(), connection);
        assert_eq!(b.stats.streams.load(Ordering::SeqCst), 1, "the client opened a second stream");
    };
    let (other, ()) = tokio::join!(other, long);
    // `Deadline` rather than `Closed`: the call was still running when its deadline passed.
    assert!(matches!(other, Err(NetError::Deadline { .. })), "{other:?}");
}
