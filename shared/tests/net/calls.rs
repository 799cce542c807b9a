//! Calls between members: the pool, deadlines, and servers that come and go.

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

use crate::harness::{TestHandler, KillableServer, LIFETIME, Node, DEADLINE, ServerStats, eventually, loopback, peer};

#[tokio::test]
async fn members_call_each_other_over_one_connection_and_know_who_calls() {
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
async fn a_thousand_calls_at_once_are_all_answered_over_one_connection() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let target = b.target();
    // More than are worked on at a time, from a cold start: all of them want to dial.
    let names: Vec<_> = (0..1000).map(|at| format!("file{at}")).collect();
    let calls = names.iter().map(|name| a.have(&target, name, DEADLINE));
    for answer in join_all(calls).await {
        assert!(answer.unwrap());
    }
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 1);
    assert_eq!(b.endpoint.open_connections(), 1);
}

#[tokio::test]
async fn a_late_answer_is_a_deadline_its_work_stops_and_others_go_on() {
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
    assert!(waited >= wait && waited < Duration::from_secs(2), "{waited:?}");
    assert!(longer.unwrap());
    eventually("the server stops working on it", || b.stats.calls.load(Ordering::SeqCst) == 0).await;
    assert!(a.whoami(&target).await.is_ok());
}

#[tokio::test]
async fn a_handshake_outlives_an_impatient_caller() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    // A server that does not look at who is at its door yet.
    let identity = authority.identity(&peer("b"), LIFETIME).unwrap();
    let server = trust::member_server(&identity, &[ALPN]).unwrap();
    let client = trust::member_client(&identity, &[ALPN]).unwrap();
    let door = endpoint::bind(loopback(), Some(server), client).unwrap().endpoint;
    let target = Target { role: peer("b"), endpoint: Endpoint::from(door.local_addr().unwrap()) };

    for _ in 0..3 {
        let hasty = a.whoami_within(&target, Duration::from_millis(50)).await;
        assert!(matches!(hasty, Err(NetError::Deadline { .. })), "{hasty:?}");
    }
    let stats = Arc::new(ServerStats::default());
    let stop = CancellationToken::new();
    tokio::spawn(serve(door.clone(), Arc::new(TestHandler(stats.clone())), stop));
    assert_eq!(a.whoami(&target).await.unwrap(), "a");
    assert_eq!(door.open_connections(), 1, "the first caller's handshake was used");
}

#[tokio::test]
async fn a_closed_port_is_known_well_under_a_second() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    let free = UdpSocket::bind(loopback()).unwrap();
    let target = Target { role: peer("b"), endpoint: Endpoint::from(free.local_addr().unwrap()) };
    drop(free);
    let clock = Clock::start();
    let before = clock.now();
    let error = a.whoami(&target).await.unwrap_err();
    assert!(matches!(error, NetError::Unreachable { .. }), "{error:?}");
    assert!(clock.now().since(before) < Duration::from_millis(800), "{:?}", clock.now().since(before));
}

#[tokio::test]
async fn silence_is_given_up_once_for_all_who_wait() {
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
    let waited = clock.now().since(before);
    assert!(waited < limits::DIAL_DEADLINE + Duration::from_secs(1), "{waited:?}");
}

#[tokio::test]
async fn after_a_server_was_killed_and_restarted_the_second_call_works() {
    let authority = Authority::ephemeral().unwrap();
    let a = Node::new(&authority, "a");
    let identity = authority.identity(&peer("b"), LIFETIME).unwrap();
    let first = KillableServer::start(&identity, loopback()).await;
    let target = first.target.clone();
    assert_eq!(a.whoami(&target).await.unwrap(), "a");
    let old = a.connections.connection(&target).await.unwrap();

    first.kill();
    let _second = KillableServer::start(&identity, target.endpoint.socket_addr().unwrap()).await;
    assert!(old.close_reason().is_none(), "a killed process says nothing");
    // Whichever of the two clocks of a call runs out first.
    let wait = Duration::from_millis(200);
    let lost = a.whoami_within(&target, wait).await;
    assert!(matches!(lost, Err(NetError::Deadline { .. })), "{lost:?}");
    assert_eq!(a.whoami(&target).await.unwrap(), "a");
}

#[tokio::test]
async fn a_server_that_stops_says_so_and_its_successor_is_found() {
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
async fn a_host_name_is_tried_at_all_its_addresses() {
    let authority = Authority::ephemeral().unwrap();
    // `localhost` is often `::1` first, where `b` does not listen.
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let endpoint = Endpoint::from_host_port(&format!("localhost:{}", b.address().port())).unwrap();
    assert_eq!(a.whoami(&Target { role: peer("b"), endpoint }).await.unwrap(), "a");
    let endpoint = Endpoint::from_host_port("no-such-host.invalid:9090").unwrap();
    let error = a.whoami_within(&Target { role: peer("b"), endpoint }, DEADLINE).await.unwrap_err();
    assert!(matches!(&error, NetError::Local(why) if why.contains("no-such-host.invalid")), "{error:?}");
}

#[tokio::test]
async fn messages_over_the_frame_limit_cost_only_their_own_call() {
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
        assert!(matches!(&answered, Err(NetError::Closed { why, .. }) if why.contains("frame")), "{answered:?}");
        assert_eq!(a.whoami(&target).await.unwrap(), "a");
        assert_eq!(a.connections.connection(&target).await.unwrap().stable_id(), connection);
        assert_eq!(b.stats.streams.load(Ordering::SeqCst), 1, "the stream is still the first");
    };
    let (other, ()) = tokio::join!(other, long);
    // Not `Closed`: it was still being worked on when its own time was over.
    assert!(matches!(other, Err(NetError::Deadline { .. })), "{other:?}");
}
