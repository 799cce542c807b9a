//! Carries out the calls that the core wants made. Each runs in a task of its own and comes back as an event.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use quinn::ConnectionError;
use shared::{
    contact::Contact,
    id::PeerId,
    limits,
    name::PEER_PREFIX,
    net::{Connections, NetError, Target, port_probe::PortProbe},
    rpc::{
        nameserver::{ListQuery, NameError, NameServiceClient, Page},
        peer::PeerServiceClient,
        tracker::TrackerServiceClient,
    },
};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::core_handle::CoreHandle;
use protocol::election::{Action, CallError, CallFailure, Event};

/// Makes calls to the nameserver, the tracker and other peers.
pub struct RpcClient {
    connections: Connections,
    nameserver: Target,
    tasks: TaskTracker,
    /// Connections whose end is watched for, by peer: quinn's stable id.
    watched: Mutex<HashMap<PeerId, usize>>,
    /// Where is knocked, and the way to the task that does it.
    knocking: Mutex<Option<(Contact, mpsc::Sender<()>)>>,
}

impl RpcClient {
    /// RpcClient on `connections`; the tasks that they run in are counted in `tasks`.
    pub fn new(connections: Connections, nameserver: Target, tasks: TaskTracker) -> Self {
        Self { connections, nameserver, tasks, watched: Mutex::default(), knocking: Mutex::default() }
    }

    /// Starts the call that an action is about; its outcome reaches `node` as an event. Actions that are no calls
    /// are the node's own.
    pub fn start(self: &std::sync::Arc<Self>, action: Action, node: &CoreHandle) {
        if let Action::ProbePort { at } = action {
            return self.knock(at, node);
        }
        let (calls, node) = (self.clone(), node.clone());
        self.tasks.spawn(async move {
            let event = calls.outcome(action, &node).await;
            if let Some(event) = event {
                // A node that has stopped needs no outcome.
                let _ = node.send(event).await;
            }
        });
    }

    async fn outcome(&self, action: Action, node: &CoreHandle) -> Option<Event> {
        Some(match action {
            Action::QuerySeat { call } => {
                let seat = self.names(limits::SEAT_CALL_DEADLINE, |names, cx| async move { names.seat(cx).await });
                Event::SeatAnswered { call, result: seat.await.map_err(failure) }
            }
            Action::QueryPeers { call } => Event::PeersAnswered { call, result: self.peers().await.map_err(failure) },
            Action::Claim { call, claim } => {
                let made =
                    self.names(limits::SEAT_CALL_DEADLINE, |names, cx| async move { names.claim(cx, claim).await });
                Event::ClaimAnswered { call, result: flatten(made.await) }
            }
            Action::RenewSeat { call, epoch } => {
                let made = self
                    .names(limits::SEAT_CALL_DEADLINE, |names, cx| async move { names.renew_seat(cx, epoch).await });
                Event::RenewalAnswered { call, result: flatten(made.await) }
            }
            Action::Resign { call, epoch } => {
                let made =
                    self.names(limits::SEAT_CALL_DEADLINE, |names, cx| async move { names.resign(cx, epoch).await });
                Event::ResignAnswered { call, result: flatten(made.await) }
            }
            Action::SendHeartbeat { call, to, beat } => {
                let made = self.tracker(&to, limits::HEARTBEAT_DEADLINE, |tracker, cx| async move {
                    tracker.heartbeat(cx, beat).await
                });
                let result = flatten(made.await);
                if result.is_ok() {
                    self.watch_connection(&to, node).await;
                }
                Event::HeartbeatAnswered { call, from: to.peer, result }
            }
            Action::SendAnnouncement { call, to, announcement } => {
                let made = self.tracker(&to, limits::CALL_DEADLINE, |tracker, cx| async move {
                    tracker.announce(cx, announcement).await
                });
                Event::AnnouncementAnswered { call, result: flatten(made.await), from: to.peer }
            }
            Action::RequestVote { call, to, request } => {
                let made = self.peer(&to, limits::HEARTBEAT_DEADLINE, |peer, cx| async move {
                    peer.request_vote(cx, request).await
                });
                Event::VoteAnswered { call, result: made.await.map_err(failure), from: to.peer }
            }
            Action::SendNotice { to, notice } => {
                let made =
                    self.peer(
                        &to,
                        limits::HEARTBEAT_DEADLINE,
                        |peer, cx| async move { peer.seat_notice(cx, notice).await },
                    );
                match made.await {
                    Ok(view) => Event::NoticeAnswered { from: to.peer, view },
                    Err(error) => {
                        tracing::debug!(%error, "a notice did not arrive");
                        return None;
                    }
                }
            }
            Action::SendLeave { to, epoch, incarnation } => {
                let made = self.tracker(&to, limits::HEARTBEAT_DEADLINE, |tracker, cx| async move {
                    tracker.leave(cx, epoch, incarnation).await
                });
                if let Err(error) = made.await {
                    tracing::debug!(%error, "the tracker was not told that this peer goes");
                }
                return None;
            }
            Action::ProbePort { .. }
            | Action::Persist(_)
            | Action::Reply { .. }
            | Action::Report(_)
            | Action::Stopped => {
                return None;
            }
        })
    }

    /// Knocks at `at`, from the socket that did so before if there is one.
    fn knock(&self, at: Contact, node: &CoreHandle) {
        // Behind a host's name there may be several addresses, of which the tracker answers at one.
        let Some(address) = at.endpoint.socket_addr() else { return };
        let mut knocking = self.knocking.lock().unwrap_or_else(PoisonError::into_inner);
        let there = knocking.as_ref().filter(|(there, knocks)| *there == at && !knocks.is_closed());
        let knocks = match there {
            Some((_, knocks)) => knocks.clone(),
            None => {
                let (knocks, wanted) = mpsc::channel(1);
                *knocking = Some((at.clone(), knocks.clone()));
                self.tasks.spawn(keep_knocking(at, address, wanted, node.clone()));
                knocks
            }
        };
        // One that waits to be sent is as good as two.
        let _ = knocks.try_send(());
    }

    /// Whether the nameserver answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), NetError> {
        self.names(limits::SEAT_CALL_DEADLINE, |names, cx| async move { names.ping(cx).await }).await.map(|_| ())
    }

    /// All registered peers.
    ///
    /// # Errors
    /// When the nameserver does not answer.
    pub async fn peers(&self) -> Result<Vec<Contact>, NetError> {
        let mut contacts = Vec::new();
        let mut after = None;
        loop {
            let query = ListQuery { prefix: Some(PEER_PREFIX.to_owned()), regex: None, after };
            let page = self.names_flat(limits::CALL_DEADLINE, |names, cx| async move { names.list(cx, query).await });
            let Page { records, next, .. } = page.await?;
            contacts.extend(
                records
                    .into_iter()
                    .filter_map(|record| Some(Contact { peer: record.name.as_peer()?, endpoint: record.uri })),
            );
            match next {
                Some(next) if contacts.len() < limits::MAX_PEERS => after = Some(next),
                _ => return Ok(contacts),
            }
        }
    }

    /// A call to the nameserver that can be refused.
    ///
    /// # Errors
    /// When the nameserver does not answer, or refuses.
    pub(crate) async fn names_flat<T, F>(
        &self,
        wait: Duration,
        call: impl FnOnce(NameServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, NetError>
    where
        F: Future<Output = Result<Result<T, NameError>, tarpc::client::RpcError>>,
    {
        let answer = self.names(wait, call).await?;
        answer.map_err(|error| NetError::Closed { address: self.nameserver.to_string(), why: error.to_string() })
    }

    async fn names<T, F>(
        &self,
        wait: Duration,
        call: impl FnOnce(NameServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, NetError>
    where
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        self.connections.call(&self.nameserver, wait, call).await
    }

    async fn tracker<T, F>(
        &self,
        to: &Contact,
        wait: Duration,
        call: impl FnOnce(TrackerServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, NetError>
    where
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        self.connections.call(&Target::from(to), wait, call).await
    }

    async fn peer<T, F>(
        &self,
        to: &Contact,
        wait: Duration,
        call: impl FnOnce(PeerServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, NetError>
    where
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        self.connections.call(&Target::from(to), wait, call).await
    }

    /// Tells the node when the other side ends the connection: an exit is noticed at once, not by silence.
    async fn watch_connection(&self, to: &Contact, node: &CoreHandle) {
        let Ok(connection) = self.connections.connection(&Target::from(to)).await else { return };
        let id = connection.stable_id();
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(to.peer.clone(), id);
        if watched == Some(id) {
            return;
        }
        let (peer, node) = (to.peer.clone(), node.clone());
        self.tasks.spawn(async move {
            // Only the other side's word counts. A time-out of a connection that was given up long ago is no news,
            // nor is our own end.
            let ended = connection.closed().await;
            let by_other = matches!(
                ended,
                ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) | ConnectionError::Reset
            );
            if by_other {
                let _ = node.send(Event::ConnectionLost { peer }).await;
            }
        });
    }
}

/// Knocks as often as `wanted` says, and tells the node of refusals, until nobody wants it any more or the node has stopped.
async fn keep_knocking(at: Contact, address: SocketAddr, mut wanted: mpsc::Receiver<()>, node: CoreHandle) {
    let knocker = match PortProbe::connect(address).await {
        Ok(knocker) => knocker,
        // Then silence has to tell.
        Err(error) => return tracing::debug!(%error, %address, "it cannot be knocked there"),
    };
    let mut views = node.watch();
    let mut stopped = pin!(async move { drop(views.wait_for(|view| view.stopped.is_some()).await) });
    loop {
        let refused = tokio::select! {
            knock = wanted.recv() => match knock {
                Some(()) => knocker.send().await,
                None => return,
            },
            () = knocker.refused() => true,
            () = &mut stopped => return,
        };
        if refused && node.send(Event::ProbeRefused { at: at.clone() }).await.is_err() {
            return;
        }
    }
}

fn failure(error: NetError) -> CallFailure {
    tracing::debug!(%error, "a call failed");
    match error {
        NetError::Deadline { .. } => CallFailure::NoAnswer,
        _ => CallFailure::Unreachable,
    }
}

fn flatten<T, E>(answer: Result<Result<T, E>, NetError>) -> Result<T, CallError<E>> {
    match answer {
        Ok(answer) => answer.map_err(CallError::Refused),
        Err(error) => Err(CallError::Failed(failure(error))),
    }
}
