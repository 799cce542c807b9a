//! A member with a proper certificate that announces what it likes and answers as a test wants.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

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
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use super::Network;

/// An impostor; it ends when dropped.
pub(crate) struct Running(Vec<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// The session of a member that is nothing but its certificate.
pub(crate) async fn session(network: &Network, id: &str) -> Session {
    let nameserver = Endpoint::from_host_port(&network.address).unwrap();
    let role = Role::Peer(id.parse().unwrap());
    let state_dir = network.folder().join("state");
    Session::open(&SessionConfig { role, state_dir, nameserver: Some(nameserver), join: None }).await.unwrap()
}

/// Who is the tracker, and where. There must be one.
pub(crate) async fn tracker(session: &Session) -> Seat {
    let seat = |names: NameServiceClient, cx| async move { names.seat(cx).await };
    session.connections.call(&session.nameserver, CALL_DEADLINE, seat).await.unwrap().seat.unwrap()
}

/// Joins as `id`, announces `files` and has `handler` answer for them. There must be a tracker.
pub(crate) async fn start(network: &Network, id: &str, handler: impl Handler, files: Vec<WireFile>) -> Running {
    assert!(files.len() <= FILES_PER_PAGE, "one announcement takes them all");
    let session = session(network, id).await;
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
    let Seat { epoch, peer, endpoint: at } = tracker(&session).await;
    let tracker = Target { role: Role::Peer(peer), endpoint: at };
    let mut digest = ShareDigest::default();
    files.iter().for_each(|file| digest.add(&file.clone().try_into().unwrap()));
    let (to, incarnation) = (Addressee::Tracker, Incarnation(1));
    let beat = move |seq| Heartbeat { to, epoch, incarnation, seq, digest, endpoint: endpoint.clone() };
    let announcement = Announcement {
        to,
        epoch,
        incarnation: Incarnation(1),
        seq: 1,
        kind: AnnouncementKind::Snapshot { page: 0, last: true },
        upserts: files,
        removals: Vec::new(),
    };
    let first = beat(0);
    let call = |tracker: TrackerServiceClient, cx| async move { tracker.heartbeat(cx, first).await };
    session.connections.call(&tracker, CALL_DEADLINE, call).await.unwrap().unwrap();
    let call = |tracker: TrackerServiceClient, cx| async move { tracker.announce(cx, announcement).await };
    session.connections.call(&tracker, CALL_DEADLINE, call).await.unwrap().unwrap();
    let beating = tokio::spawn(async move {
        loop {
            let next = beat(1);
            let call = |tracker: TrackerServiceClient, cx| async move { tracker.heartbeat(cx, next).await };
            // The tracker may be gone at the end of the test.
            let _ = session.connections.call(&tracker, CALL_DEADLINE, call).await;
            sleep(Duration::from_millis(300)).await;
        }
    });
    Running(vec![serving, beating])
}
