//! Members with a valid certificate whose behaviour a test decides: they announce any files, and a handler of the test
//! serves their streams.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

pub(crate) mod corrupt;
pub(crate) mod departing;
pub(crate) mod directories;
pub(crate) mod service;
pub(crate) mod unstable;

use std::{sync::Arc, time::Duration};

use shared::{
    digest::ShareDigest,
    id::{Incarnation, Role},
    limits::{CALL_DEADLINE, DEFAULT_LEASE, FILES_PER_PAGE},
    name::{Endpoint, Name},
    net::{
        Target,
        serve::{Handler, serve},
        session::{Session, SessionConfig},
    },
    rpc::{
        nameserver::{Condition, LeaseRequest, NameServiceClient, Register, Seat},
        tracker::{Addressee, Announcement, AnnouncementKind, Heartbeat, TrackerServiceClient, WireFile},
    },
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Network, POLL_INTERVAL, process::WAIT};

/// A running fake peer; it ends when dropped.
pub(crate) struct Running(Vec<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Opens the session of a member that has a certificate and nothing else.
pub(crate) async fn session(network: &Network, role: Role) -> Session {
    let nameserver = Endpoint::from_host_port(&network.address).unwrap();
    let state_dir = network.folder().join("state");
    Session::open(&SessionConfig { role, state_dir, nameserver: Some(nameserver), join: None }).await.unwrap()
}

/// The same for the role of a peer.
pub(crate) async fn peer_session(network: &Network, id: &str) -> Session {
    session(network, Role::Peer(id.parse().unwrap())).await
}

/// Waits until the nameserver knows a tracker and returns its seat.
pub(crate) async fn tracker(session: &Session) -> Seat {
    let elected = async {
        loop {
            let seat = |names: NameServiceClient, cx| async move { names.seat(cx).await };
            let view = session.connections.call(&session.nameserver, CALL_DEADLINE, seat).await.unwrap();
            if let Some(seat) = view.seat {
                return seat;
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(WAIT, elected).await.expect("the nameserver knows a tracker within the deadline")
}

/// Address of the tracker that holds `seat`.
pub(crate) fn target_of(seat: &Seat) -> Target {
    Target { role: Role::Peer(seat.peer.clone()), endpoint: seat.endpoint.clone() }
}

/// Finishes a stream and waits until the receiver has all of it.
pub(crate) async fn finish(mut send: quinn::SendStream) {
    let _ = send.finish();
    let _ = send.stopped().await;
}

/// Joins as `id`, announces `files` to the tracker and serves streams with `handler`. Waits for a tracker.
pub(crate) async fn start(network: &Network, id: &str, handler: impl Handler, files: Vec<WireFile>) -> Running {
    assert!(files.len() <= FILES_PER_PAGE, "one announcement holds all files");
    let session = peer_session(network, id).await;
    let endpoint = session.advertised().unwrap();
    let serving = tokio::spawn(serve(session.endpoint.clone(), Arc::new(handler), CancellationToken::new()));

    let request = Register {
        name: Name::peer(&id.parse().unwrap()).to_string(),
        uri: endpoint.to_string(),
        tags: None,
        lease: LeaseRequest::For(DEFAULT_LEASE),
        condition: Condition::Always,
        incarnation: Incarnation(1),
    };
    let register = |names: NameServiceClient, cx| async move { names.register(cx, request).await };
    session.connections.call(&session.nameserver, CALL_DEADLINE, register).await.unwrap().unwrap();
    let seat = tracker(&session).await;
    let (epoch, tracker) = (seat.epoch, target_of(&seat));
    let mut digest = ShareDigest::default();
    files.iter().for_each(|file| digest.add(&file.clone().try_into().unwrap()));
    let (to, incarnation) = (Addressee::Tracker, Incarnation(1));
    let heartbeat = move |seq| Heartbeat { to, epoch, incarnation, seq, digest, endpoint: endpoint.clone() };
    let announcement = Announcement {
        to,
        epoch,
        incarnation: Incarnation(1),
        seq: 1,
        kind: AnnouncementKind::Snapshot { page: 0, last: true },
        upserts: files,
        removals: Vec::new(),
    };
    let first = heartbeat(0);
    let call = |tracker: TrackerServiceClient, cx| async move { tracker.heartbeat(cx, first).await };
    session.connections.call(&tracker, CALL_DEADLINE, call).await.unwrap().unwrap();
    let call = |tracker: TrackerServiceClient, cx| async move { tracker.announce(cx, announcement).await };
    session.connections.call(&tracker, CALL_DEADLINE, call).await.unwrap().unwrap();
    let beating = tokio::spawn(async move {
        loop {
            let next = heartbeat(1);
            let call = |tracker: TrackerServiceClient, cx| async move { tracker.heartbeat(cx, next).await };
            // The tracker may be gone at the end of the test.
            let _ = session.connections.call(&tracker, CALL_DEADLINE, call).await;
            sleep(Duration::from_millis(300)).await;
        }
    });
    Running(vec![serving, beating])
}
