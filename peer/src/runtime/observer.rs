//! Queries of a peer that does not run: they ask the nameserver, the tracker and other peers as a client, or scan the
//! share. Nothing is registered, announced or elected.

use std::sync::Arc;

use futures::future::BoxFuture;
use protocol::election::SeatRole;
use shared::{
    contact::Contact,
    content::{FileMeta, HashPrefix},
    epoch::Epoch,
    error::{Failure, FailureCode},
    id::PeerId,
    limits::{self, CALL_DEADLINE},
    name::Endpoint,
    net::{CloseCode, Target, session::Session},
    rpc::{
        nameserver::{Seat, SeatView},
        tracker::{ListAll, TrackerServiceClient},
    },
    time::Clock,
};
use tokio::{
    sync::{OnceCell, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::{
    lock,
    params::{SEAT_INTERVAL, SETTLE_WAIT, TRACKER_WAIT},
    start::session_config,
};
use crate::{
    api::{AddRequest, Added, Discarded, DownloadRequest, Fetched, GlobalListing, PeerApi, ProgressSink, Status},
    config::PeerConfig,
    core_handle::View,
    discovery::{Refusal, TrackerQueryError, by_owners, list_each, list_pages},
    net::{known_peers, rejoin::ask, rpc_client::RpcClient},
    store::{Share, ShareOptions, check_apart},
};

/// A peer that does not run.
pub struct Observer {
    config: PeerConfig,
    network: OnceCell<Network>,
}

/// The network as a client sees it.
struct Network {
    session: Session,
    calls: Arc<RpcClient>,
    /// Peers that an earlier run knew, of which some answered, if the nameserver does not.
    known: Option<Known>,
}

/// Answers of known peers.
struct Known {
    contacts: Vec<Contact>,
    seat: SeatView,
}

impl Observer {
    /// Creates the observer. It uses the network only for queries that need it.
    pub fn new(config: PeerConfig) -> Self {
        Self { config, network: OnceCell::new() }
    }

    async fn network(&self) -> Result<&Network, Failure> {
        self.network.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Network, Failure> {
        let (config, state_dir) = (session_config(&self.config), self.config.peer_state_dir());
        // Two processes that enrol at a time would use different keys.
        let _enrolling = match state_dir.join("identity.pem").exists() {
            true => None,
            false => Some(lock::acquire(&state_dir, &self.config.id).await?),
        };
        let failure = match Session::open(&config).await {
            Ok(session) => return Ok(Network::new(session, None)),
            Err(failure) if failure.code == FailureCode::NameserverUnreachable => failure,
            Err(failure) => return Err(failure),
        };
        let contacts = known_peers::load(&state_dir.join("peers"));
        let addresses: Vec<Endpoint> = contacts.iter().map(|contact| contact.endpoint.clone()).collect();
        let Some(session) = Session::open_stored(&config, &addresses).await? else { return Err(failure) };
        let mut network = Network::new(session, None);
        let answers = ask(&network.calls, &contacts).await;
        // The answer with the highest epoch is the newest.
        let seat = answers.into_iter().map(|(_, seat)| seat).max_by_key(|seat| (seat.epoch_high, seat.seat.is_some()));
        let Some(seat) = seat else { return Err(failure) };
        network.known = Some(Known { contacts, seat });
        Ok(network)
    }

    /// Scans the share. A join token that was given is used first: the command is the usual way to enrol.
    async fn scan(&self) -> Result<Vec<FileMeta>, Failure> {
        if self.config.join.is_some() {
            self.network().await?;
        }
        check_apart(&self.config.share_dir, &self.config.state_dir)?;
        if !self.config.share_dir.exists() {
            return Ok(Vec::new());
        }
        let state_dir = self.config.peer_state_dir();
        let _lock = lock::acquire(&state_dir, &self.config.id).await?;
        let (events, mut changes) = mpsc::channel(limits::MAX_QUEUED_EVENTS);
        let drain = tokio::spawn(async move { while changes.recv().await.is_some() {} });
        let options = ShareOptions { private: vec![self.config.state_dir.clone()], ..ShareOptions::default() };
        let share = Share::open(&self.config.share_dir, &state_dir, options, events).await?;
        if timeout(SETTLE_WAIT, share.settled()).await.is_err() {
            tracing::warn!("the list is incomplete: files are still being hashed");
        }
        let files = share.list();
        drop(share);
        // The indexer has ended when its channel is closed; then the caches are closed, too.
        if timeout(limits::CLOSE_DEADLINE * 4, drain).await.is_err() {
            tracing::debug!("the share did not close in time");
        }
        Ok(files)
    }

    async fn list_network(&self) -> Result<GlobalListing, Failure> {
        let network = self.network().await?;
        let seat = network.seat().await;
        let epoch = match &seat {
            Ok(seat) => seat.epoch,
            Err(_) => Epoch::NONE,
        };
        if let Ok(seat) = seat {
            let (_publish, views) = watch::channel(following(seat));
            let listing = list_pages(views, TRACKER_WAIT, |seat, after| async move {
                let query = ListAll { epoch: seat.epoch, prefix: String::new(), after };
                let contact = Contact { peer: seat.peer, endpoint: seat.endpoint };
                let call = |tracker: TrackerServiceClient, cx| async move { tracker.list_all(cx, query).await };
                let page = network.session.connections.call(&Target::from(&contact), CALL_DEADLINE, call).await?;
                page.map_err(Refusal::Tracker)
            });
            match listing.await {
                Err(TrackerQueryError::NoTracker { .. }) => {}
                listing => return Ok(listing?),
            }
        }
        let peers = network.peers().await?;
        if peers.is_empty() {
            return Err(no_peer());
        }
        let files = by_owners(list_each(&network.session.connections, peers, "").await);
        Ok(GlobalListing { epoch, tracker: None, files })
    }

    fn not_running(&self, what: &str) -> Failure {
        let id = &self.config.id;
        Failure::new(
            FailureCode::NotRunning,
            format!("{id} is not running"),
            format!("{what} needs a running peer"),
            format!("start it with `peer {id}` or `peer {id} --headless`"),
        )
    }
}

impl Network {
    fn new(session: Session, known: Option<Known>) -> Self {
        let calls = RpcClient::new(session.connections.clone(), session.nameserver.clone(), TaskTracker::new());
        Self { session, calls: Arc::new(calls), known }
    }

    /// The tracker's seat. Waits up to [`TRACKER_WAIT`] for one, if there are peers that can take it.
    async fn seat(&self) -> Result<Seat, Failure> {
        if let Some(known) = &self.known {
            return known.seat.seat.clone().ok_or_else(no_tracker);
        }
        let clock = Clock::start();
        loop {
            let view = self.calls.seat().await.map_err(|error| error.into_failure("the nameserver does not answer"))?;
            if let Some(seat) = view.seat {
                return Ok(seat);
            }
            if self.peers().await?.is_empty() {
                return Err(no_peer());
            }
            if clock.now().since_origin() > TRACKER_WAIT {
                return Err(no_tracker());
            }
            sleep(SEAT_INTERVAL).await;
        }
    }

    /// Registered peers; without the nameserver, those that an earlier run knew.
    async fn peers(&self) -> Result<Vec<Contact>, Failure> {
        match &self.known {
            Some(known) => Ok(known.contacts.clone()),
            None => self.calls.peers().await.map_err(|error| error.into_failure("the nameserver does not answer")),
        }
    }
}

fn following(seat: Seat) -> View {
    let seat = SeatView { epoch_high: seat.epoch, seat: Some(seat) };
    View { role: SeatRole::Follower, seat, stopped: None }
}

fn no_tracker() -> Failure {
    let hint = "try again in a moment; `eleger`, given to a running peer, elects one";
    Failure::new(FailureCode::NoTracker, "there is no tracker", "none was elected in time", hint)
}

fn no_peer() -> Failure {
    let hint = "start a peer, with a prompt or --headless";
    Failure::new(FailureCode::NoTracker, "there is no tracker", "no peer runs in this network", hint)
}

impl PeerApi for Observer {
    fn id(&self) -> PeerId {
        self.config.id.clone()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<FileMeta>, Failure>> {
        Box::pin(self.scan())
    }

    fn list_all(&self) -> BoxFuture<'_, Result<GlobalListing, Failure>> {
        Box::pin(self.list_network())
    }

    fn add(&self, _request: AddRequest) -> BoxFuture<'_, Result<Added, Failure>> {
        Box::pin(async { Err(self.not_running("add")) })
    }

    fn remove<'a>(&'a self, _name: &'a str) -> BoxFuture<'a, Result<FileMeta, Failure>> {
        Box::pin(async { Err(self.not_running("remove")) })
    }

    fn download(&self, _request: DownloadRequest, _progress: ProgressSink) -> BoxFuture<'_, Result<Fetched, Failure>> {
        Box::pin(async { Err(self.not_running("download")) })
    }

    fn discard<'a>(
        &'a self,
        _name: &'a str,
        _version: Option<&'a HashPrefix>,
    ) -> BoxFuture<'a, Result<Vec<Discarded>, Failure>> {
        Box::pin(async { Err(self.not_running("download --discard")) })
    }

    fn tracker(&self) -> BoxFuture<'_, Result<Seat, Failure>> {
        Box::pin(async { self.network().await?.seat().await })
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<(PeerId, Endpoint)>, Failure>> {
        Box::pin(async {
            let peers = self.network().await?.peers().await?;
            Ok(peers.into_iter().map(|contact| (contact.peer, contact.endpoint)).collect())
        })
    }

    fn elect(&self) -> BoxFuture<'_, Result<(Epoch, PeerId), Failure>> {
        Box::pin(async { Err(self.not_running("eleger")) })
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>> {
        Box::pin(async { Err(self.not_running("status")) })
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(network) = self.network.get() {
                network.session.connections.close(CloseCode::Done, "the query is done").await;
            }
        })
    }
}
