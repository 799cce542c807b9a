//! Hostile clients: an attack affects only its own connection or stream.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering,
    time::Duration,
};

use certs::{Authority, trust};
use shared::{
    limits,
    net::{
        CloseCode, NetError, StreamKind,
        connection::{dial, open_stream},
        endpoint,
    },
    rpc::{
        ALPN,
        peer::{PeerServiceRequest, PeerServiceResponse},
    },
};
use tarpc::{Response, trace};
use tokio::{net::UdpSocket, time::timeout};

use crate::harness::{DEADLINE, LIFETIME, Node, client_pool, eventually, loopback, peer, retry_until_ok};

#[tokio::test]
async fn garbage_datagrams_do_not_affect_other_connections() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    a.whoami(&b.target()).await.unwrap();
    let attacker = UdpSocket::bind(loopback()).await.unwrap();
    attacker.connect(b.address()).await.unwrap();
    // Every first byte, with long and short headers and arbitrary versions, from a fixed seed.
    for at in 0..2000_u32 {
        let seed = blake3::hash(&at.to_le_bytes());
        let mut bytes = vec![0; 1 + at as usize % 1400];
        blake3::Hasher::new_keyed(seed.as_bytes()).finalize_xof().fill(&mut bytes);
        bytes[0] = at as u8;
        if at % 3 == 0 && bytes.len() > 5 {
            // QUIC version 1, so the endpoint parses the packet further.
            bytes[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        // The test does not depend on any single datagram, so errors are ignored.
        let _ = attacker.send(&bytes).await;
    }
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
    assert_eq!(Node::new(&authority, "c").whoami(&b.target()).await.unwrap(), "c");
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn stream_of_unknown_kind_closes_only_its_own_connection() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b, attacker) = (Node::new(&authority, "a"), Node::new(&authority, "b"), Node::new(&authority, "attacker"));
    a.whoami(&b.target()).await.unwrap();
    let connection = dial(&attacker.endpoint, &b.target()).await.unwrap();
    // The server ignores a stream that ends without a kind byte.
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.finish().unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[0xee]).await.unwrap();
    let ended = timeout(DEADLINE, connection.closed()).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = ended else { panic!("{ended:?}") };
    assert_eq!(CloseCode::from_varint(close.error_code), CloseCode::Protocol);
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 1);
}

/// Encodes a frame: length prefix and body.
fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

#[tokio::test]
async fn garbage_frame_ends_only_its_own_stream() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    a.whoami(&b.target()).await.unwrap();
    let connection = a.connections.connection(&b.target()).await.unwrap();
    let too_long = (u32::try_from(limits::MAX_FRAME_BYTES).unwrap() + 1).to_be_bytes().to_vec();
    for garbage in [vec![0xff; 64], too_long, frame(b"nonsense"), frame(&[0xff; 40]), frame(b"")] {
        let (mut send, mut recv) = open_stream(&connection, StreamKind::Peer).await.unwrap();
        send.write_all(&garbage).await.unwrap();
        let ended = timeout(DEADLINE, recv.read_to_end(1 << 20)).await.expect("the server did not end the stream");
        assert!(ended.is_ok_and(|bytes| bytes.is_empty()), "{garbage:02x?}");
    }
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
    assert_eq!(a.connections.connection(&b.target()).await.unwrap().stable_id(), connection.stable_id());
}

#[tokio::test]
async fn call_with_an_overflowing_deadline_is_answered() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let connection = a.connections.connection(&b.target()).await.unwrap();
    let (mut send, mut recv) = open_stream(&connection, StreamKind::Peer).await.unwrap();
    for (id, deadline) in [(1_u64, Duration::MAX), (2, Duration::from_secs(1 << 40)), (3, Duration::from_secs(9))] {
        // The encoding of a call, as in `golden/envelope.txt`.
        let call = (0_u32, (deadline, trace::Context::default()), id, PeerServiceRequest::Info {});
        send.write_all(&frame(&postcard::to_stdvec(&call).unwrap())).await.unwrap();
        let mut length = [0; 4];
        timeout(DEADLINE, recv.read_exact(&mut length)).await.unwrap().expect("the server did not answer the call");
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        recv.read_exact(&mut body).await.unwrap();
        let answer: Response<PeerServiceResponse> = postcard::from_bytes(&body).unwrap();
        assert!(answer.request_id == id && matches!(answer.message, Ok(PeerServiceResponse::Info(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn connections_over_the_limit_of_one_identity_are_refused_and_others_are_accepted() {
    let authority = Authority::ephemeral().unwrap();
    let (greedy, b) = (Node::new(&authority, "greedy"), Node::new(&authority, "b"));
    let mut held = Vec::new();
    for _ in 0..shared::net::params::MAX_CONNECTIONS_PER_IDENTITY {
        let connection = dial(&greedy.endpoint, &b.target()).await.unwrap();
        // The answer to a stream shows that the server has counted the connection.
        let (_send, mut recv) = open_stream(&connection, StreamKind::Names).await.unwrap();
        timeout(DEADLINE, recv.read_to_end(0)).await.unwrap().unwrap();
        held.push(connection);
    }
    let error = greedy.whoami(&b.target()).await.unwrap_err();
    assert!(matches!(&error, NetError::Refused { why, .. } if why.contains("too many")), "{error:?}");
    assert!(held.iter().all(|connection| connection.close_reason().is_none()));
    assert_eq!(Node::new(&authority, "a").whoami(&b.target()).await.unwrap(), "a");

    let gone = held.pop().unwrap();
    gone.close(CloseCode::Done.to_varint(), b"");
    retry_until_ok("a call after one connection was closed", async || greedy.whoami(&b.target()).await).await;
}

#[tokio::test]
async fn call_streams_over_the_limit_are_refused_and_bulk_streams_are_accepted() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let connection = a.connections.connection(&b.target()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..shared::net::params::MAX_CALL_STREAMS {
        let (mut send, recv) = open_stream(&connection, StreamKind::Peer).await.unwrap();
        // An incomplete frame.
        send.write_all(&[0, 1, 0, 0]).await.unwrap();
        held.push((send, recv));
    }
    let all = || b.stats.streams.load(Ordering::SeqCst) == shared::net::params::MAX_CALL_STREAMS;
    eventually("all streams have reached the handler", all).await;
    let (_send, mut recv) = open_stream(&connection, StreamKind::Peer).await.unwrap();
    let refused = timeout(DEADLINE, recv.read_to_end(0)).await.unwrap().unwrap();
    assert!(refused.is_empty(), "the server answered a stream over the limit");
    assert!(all());
    let (_send, mut recv) = open_stream(&connection, StreamKind::Bulk).await.unwrap();
    timeout(DEADLINE, recv.read_to_end(0)).await.unwrap().unwrap();
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), shared::net::params::MAX_CALL_STREAMS + 1);
    held.pop();
    retry_until_ok("a call after one stream ended", async || a.whoami(&b.target()).await).await;
}

/// Returns the destination connection id of an Initial packet (RFC 9000 section 17.2.2).
fn destination(packet: &[u8]) -> Vec<u8> {
    let length = usize::from(packet[5]);
    packet[6..6 + length].to_vec()
}

#[tokio::test]
async fn half_open_handshakes_do_not_lock_out_members() {
    const FLOOD: usize = shared::net::params::MAX_HANDSHAKES + 50;
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));

    // Record the first flights of many handshakes, two datagrams each, at a socket that never answers.
    let recorder = UdpSocket::bind(loopback()).await.unwrap();
    let attacker = authority.identity(&peer("attacker"), LIFETIME).unwrap();
    let attacker =
        endpoint::bind(loopback(), None, trust::member_client(&attacker, &[ALPN]).unwrap()).unwrap().endpoint;
    let mut flights: HashMap<Vec<u8>, HashSet<Vec<u8>>> = HashMap::new();
    let mut connecting = Vec::new();
    let mut buffer = [0; 2048];
    for started in 1..=FLOOD {
        connecting.push(attacker.connect(recorder.local_addr().unwrap(), "b.peer.brasa").unwrap());
        while flights.len() < started || flights.values().any(|flight| flight.len() < 2) {
            let length = timeout(DEADLINE, recorder.recv(&mut buffer)).await.unwrap().unwrap();
            let packet = buffer[..length].to_vec();
            flights.entry(destination(&packet)).or_default().insert(packet);
        }
    }
    drop(connecting);

    for flight in flights.values() {
        for packet in flight {
            recorder.send_to(packet, b.address()).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
    eventually("the handshake limit is reached", || {
        b.endpoint.open_connections() >= shared::net::params::MAX_HANDSHAKES
    })
    .await;
    assert!(b.endpoint.open_connections() <= shared::net::params::MAX_HANDSHAKES, "{}", b.endpoint.open_connections());
    // A member validates its address and connects while the half-open handshakes are still held.
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
    assert!(
        b.endpoint.open_connections() > shared::net::params::MAX_HANDSHAKES / 2,
        "{}",
        b.endpoint.open_connections()
    );
    eventually("the half-open handshakes time out", || b.endpoint.open_connections() <= 1).await;
    assert_eq!(Node::new(&authority, "c").whoami(&b.target()).await.unwrap(), "c");
}

#[tokio::test]
async fn streams_without_a_kind_byte_do_not_block_other_connections() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    let identity = authority.identity(&peer("mute"), LIFETIME).unwrap();
    let mute = client_pool(trust::member_client(&identity, &[ALPN]).unwrap());
    let connection = mute.connection(&b.target()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..shared::net::params::MAX_STREAMS_PER_CONNECTION {
        let (send, recv) = connection.open_bi().await.unwrap();
        streams.push((send, recv));
    }
    // A stream over the limit of the connection does not open.
    assert!(timeout(Duration::from_millis(200), connection.open_bi()).await.is_err());
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
    assert!(connection.close_reason().is_none());
}
