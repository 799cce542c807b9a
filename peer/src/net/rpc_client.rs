//! Executes the calls that the core requests. Each runs in a separate task, and its result returns as an event.

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quinn::ConnectionError;
use shared::{
    contact::Contact,
    id::PeerId,
    limits,
    name::PEER_PREFIX,
    net::{Connections, NetError, Target, port_probe::PortProbe, rpc_transport::ServiceClient},
    rpc::{
        nameserver::{ListQuery, NameError, NameServiceClient, Page, SeatView},
        peer::PeerServiceClient,
        tracker::TrackerServiceClient,
    },
    time::Clock,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::TaskTracker;

use super::refusals::Refusals;
use crate::core_handle::CoreHandle;
use protocol::election::{Action, CallError, CallFailure, Event, params::SEAT_CALL_DEADLINE};

/// Client of the nameserver, the tracker and other peers.
pub struct RpcClient {
    connections: Connections,
    nameserver: Target,
    tasks: TaskTracker,
    /// `stable_id` of the watched connection of each peer.
    watched: Mutex<HashMap<PeerId, usize>>,
    /// Contact that is probed, and the channel to the task that sends the probes.
    prober: Mutex<Option<(Contact, mpsc::Sender<()>)>>,
    clock: Clock,
    refusals: Mutex<Refusals>,
    /// True while the latest call to the nameserver was not answered.
    nameserver_away: AtomicBool,
    nameserver_back: Notify,
}

impl RpcClient {
    /// Creates a client that dials with `connections` and spawns on `tasks`.
    pub fn new(connections: Connections, nameserver: Target, tasks: TaskTracker) -> Self {
        Self {
            connections,
            nameserver,
            tasks,
            watched: Mutex::default(),
            prober: Mutex::default(),
            clock: Clock::start(),
            refusals: Mutex::default(),
            nameserver_away: AtomicBool::new(false),
            nameserver_back: Notify::new(),
        }
    }

    /// Starts the call of an action; its result reaches `core` as an event. Ignores actions that are not calls.
    pub fn start(self: &std::sync::Arc<Self>, action: Action, core: &CoreHandle) {
        if let Action::ProbePort { at } = action {
            return self.probe(at, core);
        }
        let (calls, core) = (self.clone(), core.clone());
        self.tasks.spawn(async move {
            let event = calls.outcome(action, &core).await;
            if let Some(event) = event {
                // Fails only if the core has stopped.
                let _ = core.send(event).await;
            }
        });
    }

    async fn outcome(&self, action: Action, core: &CoreHandle) -> Option<Event> {
        Some(match action {
            Action::QuerySeat { call } => {
                let seat = self.names(SEAT_CALL_DEADLINE, |names, cx| async move { names.seat(cx).await });
                Event::SeatAnswered { call, result: seat.await.map_err(failure) }
            }
            Action::QueryPeers { call } => Event::PeersAnswered { call, result: self.peers().await.map_err(failure) },
            Action::Claim { call, claim } => {
                let made = self.names(SEAT_CALL_DEADLINE, |names, cx| async move { names.claim(cx, claim).await });
                Event::ClaimAnswered { call, result: flatten(made.await) }
            }
            Action::RenewSeat { call, epoch } => {
                let made = self.names(SEAT_CALL_DEADLINE, |names, cx| async move { names.renew_seat(cx, epoch).await });
                Event::RenewalAnswered { call, result: flatten(made.await) }
            }
            Action::Resign { call, epoch } => {
                let made = self.names(SEAT_CALL_DEADLINE, |names, cx| async move { names.resign(cx, epoch).await });
                Event::ResignAnswered { call, result: flatten(made.await) }
            }
            Action::SendHeartbeat { call, to, beat } => {
                let made = self.tracker(&to, limits::HEARTBEAT_DEADLINE, |tracker, cx| async move {
                    tracker.heartbeat(cx, beat).await
                });
                let result = flatten(made.await);
                if result.is_ok() {
                    self.watch_connection(&to, core).await;
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
                        tracing::debug!(peer = %to.peer, %error, "cannot send a seat notice");
                        return None;
                    }
                }
            }
            Action::SendLeave { to, epoch, incarnation } => {
                let made = self.tracker(&to, limits::HEARTBEAT_DEADLINE, |tracker, cx| async move {
                    tracker.leave(cx, epoch, incarnation).await
                });
                if let Err(error) = made.await {
                    tracing::debug!(peer = %to.peer, %error, "cannot tell the tracker that this peer leaves");
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

    /// Sends a port probe to `at`, from the socket of the earlier probes if there is one.
    fn probe(&self, at: Contact, core: &CoreHandle) {
        // A host name can resolve to several addresses, of which the tracker answers at one.
        let Some(address) = at.endpoint.socket_addr() else { return };
        let mut prober = self.prober.lock().unwrap_or_else(PoisonError::into_inner);
        let current = prober.as_ref().filter(|(contact, requests)| *contact == at && !requests.is_closed());
        let requests = match current {
            Some((_, requests)) => requests.clone(),
            None => {
                let (requests, received) = mpsc::channel(1);
                *prober = Some((at.clone(), requests.clone()));
                self.tasks.spawn(run_prober(at, address, received, core.clone()));
                requests
            }
        };
        // Fails if a probe waits already; a second one adds nothing.
        let _ = requests.try_send(());
    }

    /// Pings the nameserver.
    ///
    /// # Errors
    /// Fails if the nameserver does not answer.
    pub async fn ping(&self) -> Result<(), NetError> {
        self.names(SEAT_CALL_DEADLINE, |names, cx| async move { names.ping(cx).await }).await.map(|_| ())
    }

    /// Waits until the nameserver answers a call after one that it did not answer.
    pub(crate) async fn nameserver_back(&self) {
        self.nameserver_back.notified().await;
    }

    /// Asks a peer for the tracker's seat as it sees it.
    ///
    /// # Errors
    /// Fails if the peer does not answer within `wait`.
    pub async fn seat_of(&self, peer: &Contact, wait: Duration) -> Result<SeatView, NetError> {
        self.peer(peer, wait, |peer, cx| async move { peer.info(cx).await }).await.map(|info| info.seat)
    }

    /// Asks the nameserver for the tracker's seat.
    ///
    /// # Errors
    /// Fails if the nameserver does not answer.
    pub async fn seat(&self) -> Result<SeatView, NetError> {
        self.names(SEAT_CALL_DEADLINE, |names, cx| async move { names.seat(cx).await }).await
    }

    /// Returns all registered peers, at most about [`limits::MAX_PEERS`].
    ///
    /// # Errors
    /// Fails if the nameserver does not answer or refuses the query.
    pub async fn peers(&self) -> Result<Vec<Contact>, NetError> {
        let mut contacts = Vec::new();
        let mut after = None;
        loop {
            let query = ListQuery { prefix: Some(PEER_PREFIX.to_owned()), regex: None, after };
            let page =
                self.call_nameserver(limits::CALL_DEADLINE, |names, cx| async move { names.list(cx, query).await });
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

    /// Makes a call that the nameserver can refuse.
    ///
    /// # Errors
    /// Fails if the nameserver does not answer, and with [`NetError::Refused`] if it refuses the call.
    pub(crate) async fn call_nameserver<T, F>(
        &self,
        wait: Duration,
        call: impl FnOnce(NameServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, NetError>
    where
        F: Future<Output = Result<Result<T, NameError>, tarpc::client::RpcError>>,
    {
        let answer = self.names(wait, call).await?;
        answer.map_err(|error| refused(&self.nameserver, &error))
    }

    /// Makes a call to the nameserver.
    ///
    /// # Errors
    /// Fails if the nameserver does not answer.
    pub(crate) async fn names<T, F>(
        &self,
        wait: Duration,
        call: impl FnOnce(NameServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, NetError>
    where
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        let answer = self.call(&self.nameserver, wait, call).await;
        let away = answer.is_err();
        if self.nameserver_away.swap(away, Ordering::Relaxed) && !away {
            self.nameserver_back.notify_waiters();
        }
        answer
    }

    /// Makes a call, unless `target` rejected this program, or was rejected, a short time ago.
    async fn call<C, T, F>(
        &self,
        target: &Target,
        wait: Duration,
        call: impl FnOnce(C, tarpc::context::Context) -> F,
    ) -> Result<T, NetError>
    where
        C: ServiceClient,
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        if let Some(error) = self.refusals().check(target, self.clock.now()) {
            return Err(error);
        }
        let answer = self.connections.call(target, wait, call).await;
        let pause = self.refusals().note(target, self.clock.now(), answer.as_ref().err());
        if let (Some(pause), Err(error)) = (pause, &answer) {
            tracing::debug!(%error, ?pause, "an authentication failed; the target is not dialled for a while");
        }
        answer
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.call(&Target::from(to), wait, call).await
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
        self.call(&Target::from(to), wait, call).await
    }

    /// Reports to the core when the other side ends its connection, so that an exit is detected without a timeout.
    async fn watch_connection(&self, to: &Contact, core: &CoreHandle) {
        let Ok(connection) = self.connections.connection(&Target::from(to)).await else { return };
        let id = connection.stable_id();
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(to.peer.clone(), id);
        if watched == Some(id) {
            return;
        }
        let (peer, core) = (to.peer.clone(), core.clone());
        self.tasks.spawn(async move {
            // A timeout of a connection that the pool dropped long ago, or a close by this side, is no evidence about
            // the peer.
            let ended = connection.closed().await;
            let by_other = matches!(
                ended,
                ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) | ConnectionError::Reset
            );
            if by_other {
                // Fails only if the core has stopped.
                let _ = core.send(Event::ConnectionLost { peer }).await;
            }
        });
    }
}

/// Sends a probe for each request and reports refusals to the core, until the requests end or the core stops.
async fn run_prober(at: Contact, address: SocketAddr, mut requests: mpsc::Receiver<()>, core: CoreHandle) {
    let probe = match PortProbe::connect(address).await {
        Ok(probe) => probe,
        // The core detects the silence instead.
        Err(error) => return tracing::debug!(%address, %error, "cannot send port probes"),
    };
    let mut views = core.watch();
    let mut stopped = pin!(async move { drop(views.wait_for(|view| view.stopped.is_some()).await) });
    loop {
        let refused = tokio::select! {
            request = requests.recv() => match request {
                Some(()) => probe.send().await,
                None => return,
            },
            () = probe.refused() => true,
            () = &mut stopped => return,
        };
        if refused && core.send(Event::ProbeRefused { at: at.clone() }).await.is_err() {
            return;
        }
    }
}

fn refused(nameserver: &Target, error: &NameError) -> NetError {
    NetError::Refused { address: nameserver.to_string(), why: error.to_string() }
}

fn failure(error: NetError) -> CallFailure {
    tracing::debug!(%error, "a call failed");
    match error {
        // A process that refuses a call is alive.
        NetError::Deadline { .. } | NetError::Refused { .. } => CallFailure::NoAnswer,
        _ => CallFailure::Unreachable,
    }
}

fn flatten<T, E>(answer: Result<Result<T, E>, NetError>) -> Result<T, CallError<E>> {
    match answer {
        Ok(answer) => answer.map_err(CallError::Refused),
        Err(error) => Err(CallError::Failed(failure(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_that_the_nameserver_refuses_is_not_reported_as_a_closed_connection() {
        let nameserver =
            Target { role: shared::id::Role::Nameserver, endpoint: "quic://127.0.0.1:9090".parse().unwrap() };
        let error = refused(&nameserver, &NameError::Unavailable("the disk is full".to_owned()));
        assert!(matches!(&error, NetError::Refused { why, .. } if why.contains("disk is full")), "{error}");
    }
}
