//! Discovery of files through the tracker and of peers through the nameserver. While one of them is unreachable, the
//! known peers are asked instead.

pub mod params;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{
    contact::Contact,
    content::{ContentHash, DIRECTORY_HASH, FileMeta, HashPrefix},
    error::{Failure, FailureCode},
    file_name::FileName,
    id::PeerId,
    limits,
    name::Endpoint,
    net::{Connections, NetError, Target, pack::PACKS_HASH},
    rpc::{
        nameserver::Seat,
        peer::{FilePage, PeerServiceClient},
        tracker::{IndexPage, IndexedFile, ListAll, Owner, TrackerError, TrackerServiceClient, Version, WhoHas},
    },
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    api::GlobalListing,
    core_handle::{CoreHandle, Stopped, View},
    net::rpc_client::RpcClient,
    store::Share,
};

/// Pause after a refusal before the tracker is asked again, unless the seat changes before.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// Number of pages of a share with the maximum number of files. A peer that sends more is faulty.
const MAX_PAGES_PER_PEER: usize = limits::MAX_FILES_PER_PEER.div_ceil(limits::FILES_PER_PAGE) + 1;

/// Reason why a query of the tracker failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TrackerQueryError {
    /// No tracker answered in time. The known peers can be asked instead.
    #[error("no tracker answers: {why}")]
    NoTracker {
        /// Last refusal or failure.
        why: String,
    },
    /// The tracker is at a limit. Another tracker would be at it as well.
    #[error("the tracker is at its limit of {limit} {what}")]
    LimitReached {
        /// Limited quantity.
        what: String,
        /// Value of the limit.
        limit: u64,
    },
    /// This peer is stopping.
    #[error(transparent)]
    Stopping(#[from] Stopped),
}

impl From<TrackerQueryError> for Failure {
    fn from(error: TrackerQueryError) -> Self {
        match error {
            TrackerQueryError::NoTracker { why } => Self::new(
                FailureCode::NoTracker,
                "no tracker answers",
                why,
                "try again in a moment; `tracker` shows who it is, `eleger` elects one",
            ),
            TrackerQueryError::LimitReached { what, limit } => Self::new(
                FailureCode::LimitReached,
                "the tracker cannot answer",
                format!("too many {what}, at most {limit}"),
                "share fewer files",
            ),
            TrackerQueryError::Stopping(stopped) => stopping(stopped),
        }
    }
}

/// Finds files and peers.
#[derive(Clone)]
pub struct Discovery {
    /// Id of this peer.
    pub me: PeerId,
    /// Handle of the election core: the tracker, and the index if this peer is the tracker.
    pub node: CoreHandle,
    /// Connections for calls.
    pub connections: Connections,
    /// Client of the nameserver.
    pub calls: Arc<RpcClient>,
    /// Files of this peer.
    pub share: Share,
    /// Peers in the last list of the nameserver, used while it is unreachable. The list of the election core may be
    /// some seconds older.
    pub last_seen: Arc<Mutex<Vec<Contact>>>,
}

impl Discovery {
    /// Returns the tracker. Waits up to `wait` until there is one.
    ///
    /// # Errors
    /// `NoTracker` if none is elected in time.
    pub async fn tracker(&self, wait: Duration) -> Result<Seat, TrackerQueryError> {
        let mut views = self.node.watch();
        let found = async {
            loop {
                if let Some(seat) = views.borrow_and_update().tracker() {
                    return Ok::<_, Stopped>(seat.clone());
                }
                views.changed().await.map_err(|_| Stopped)?;
            }
        };
        match timeout(wait, found).await {
            Ok(found) => Ok(found?),
            Err(_) => Err(none_elected()),
        }
    }

    /// Lists all files whose names begin with `prefix`, from the tracker. `page_wait` bounds the wait for each page. If
    /// the tracker changes in between, its successor continues the listing.
    ///
    /// # Errors
    /// `NoTracker` if no tracker sends one of the pages in time.
    pub async fn list_all(&self, prefix: &str, page_wait: Duration) -> Result<GlobalListing, TrackerQueryError> {
        list_pages(self.node.watch(), page_wait, |seat, after| async move {
            let query = ListAll { epoch: seat.epoch, prefix: prefix.to_owned(), after };
            let page = if seat.peer == self.me {
                self.node.list_all(query).await?
            } else {
                self.call_tracker(&seat, |tracker, cx| async move { tracker.list_all(cx, query).await }).await?
            };
            page.map_err(Refusal::Tracker)
        })
        .await
    }

    /// Returns the versions of a file with their owners, from the tracker.
    ///
    /// # Errors
    /// `NoTracker` if no tracker answers within `wait`.
    pub async fn who_has(
        &self,
        name: &FileName,
        version: Option<&HashPrefix>,
        wait: Duration,
    ) -> Result<Vec<Version>, TrackerQueryError> {
        ask_tracker(&mut self.node.watch(), wait, |seat| async move {
            let query = WhoHas { epoch: seat.epoch, name: name.to_string(), version: version.cloned() };
            let answer = if seat.peer == self.me {
                self.node.who_has(self.me.clone(), query).await?
            } else {
                self.call_tracker(&seat, |tracker, cx| async move { tracker.who_has(cx, query).await }).await?
            };
            answer.map_err(Refusal::Tracker)
        })
        .await
    }

    /// Lists the files whose names begin with `prefix` in the shares of this peer and of the known peers. Asks up to
    /// [`params::MAX_FAN_OUT`] peers.
    pub async fn ask_around(&self, prefix: &str) -> Vec<IndexedFile> {
        let own = self.share.list().into_iter().filter(|file| file.name.as_str().starts_with(prefix)).collect();
        let others = self.known_peers().await.into_iter().filter(|contact| contact.peer != self.me).collect();
        let mut listings = list_each(&self.connections, others, prefix).await;
        listings.push((self.me.clone(), own));
        by_owners(listings)
    }

    /// Lists the files whose names begin with `prefix` that the known peers are receiving, with the receivers in place
    /// of owners. Their number ranks the versions of a name, although no receiver has a complete version.
    pub async fn received(&self, prefix: &str) -> Vec<IndexedFile> {
        by_receivers(self.receivers(prefix).await)
    }

    /// Returns the peers that receive files whose names begin with `prefix`. Asks up to [`params::MAX_FAN_OUT`] of the
    /// known peers, chosen at random, and waits up to [`params::RECEIVERS_DEADLINE`] for them.
    pub async fn receivers(&self, prefix: &str) -> Vec<(Contact, FileMeta)> {
        let mut others = self.known_peers().await;
        others.retain(|contact| contact.peer != self.me);
        fastrand::shuffle(&mut others);
        let answers = others.into_iter().take(params::MAX_FAN_OUT).map(|contact| async move {
            let prefix = prefix.to_owned();
            let ask = |peer: PeerServiceClient, cx| async move { peer.receiving(cx, prefix).await };
            let target = Target::from(&contact);
            let call = self.connections.call(&target, params::RECEIVERS_DEADLINE, ask);
            match timeout(params::RECEIVERS_DEADLINE, call).await {
                Ok(Ok(files)) => files.into_iter().map(|file| (contact.clone(), file)).collect(),
                Ok(Err(error)) => {
                    tracing::debug!(%error, peer = %contact.peer, "cannot ask a peer what it receives");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            }
        });
        let found: Vec<Vec<_>> = futures::future::join_all(answers).await;
        found.into_iter().flatten().filter(|(_, file)| file.name.as_str().starts_with(prefix)).collect()
    }

    /// Returns all registered peers or, if the nameserver does not answer, those that this peer knows.
    pub async fn known_peers(&self) -> Vec<Contact> {
        match self.calls.peers().await {
            Ok(peers) => {
                self.last_seen.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&peers);
                peers
            }
            Err(error) => {
                tracing::debug!(%error, "the nameserver does not answer; using the known peers");
                let mut known = self.node.members().await.unwrap_or_default();
                for contact in self.last_seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    known.entry(contact.peer.clone()).or_insert_with(|| contact.endpoint.clone());
                }
                known.into_iter().map(|(peer, endpoint)| Contact { peer, endpoint }).collect()
            }
        }
    }

    /// Returns the endpoints of the [known peers](Self::known_peers).
    pub async fn endpoints(&self) -> BTreeMap<PeerId, Endpoint> {
        self.known_peers().await.into_iter().map(|contact| (contact.peer, contact.endpoint)).collect()
    }

    async fn call_tracker<T, F>(
        &self,
        seat: &Seat,
        call: impl FnOnce(TrackerServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        let contact = Contact { peer: seat.peer.clone(), endpoint: seat.endpoint.clone() };
        Ok(self.connections.call(&Target::from(&contact), limits::CALL_DEADLINE, call).await?)
    }
}

/// Asks up to [`params::MAX_FAN_OUT`] of `peers` for their files whose names begin with `prefix`.
pub(crate) async fn list_each(
    connections: &Connections,
    peers: Vec<Contact>,
    prefix: &str,
) -> Vec<(PeerId, Vec<FileMeta>)> {
    let answers = peers.into_iter().take(params::MAX_FAN_OUT).map(|contact| async move {
        let files = files_of(connections, &contact, prefix).await;
        (contact.peer, files)
    });
    futures::future::join_all(answers).await
}

/// Groups the files of several peers by version. Pure.
pub(crate) fn by_owners(listings: Vec<(PeerId, Vec<FileMeta>)>) -> Vec<IndexedFile> {
    let mut versions: BTreeMap<_, IndexedFile> = BTreeMap::new();
    for (owner, files) in listings {
        for file in files {
            let entry = versions
                .entry((file.name.clone(), file.hash))
                .or_insert_with(|| IndexedFile { file, owners: Vec::new() });
            entry.owners.push(owner.clone());
        }
    }
    versions.into_values().collect()
}

/// Lists the files of a peer whose names begin with `prefix`, as far as it sends them.
pub(crate) async fn files_of(connections: &Connections, contact: &Contact, prefix: &str) -> Vec<FileMeta> {
    let target = Target::from(contact);
    let list = |after| {
        let list = |peer: PeerServiceClient, cx| async move { peer.list(cx, after).await };
        connections.call(&target, limits::CALL_DEADLINE, list)
    };
    let (files, ended) = collect_files(prefix, list).await;
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %contact.peer, "the listing of a peer is incomplete");
    }
    files
}

/// Reason why one attempt to query the tracker failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Tracker(TrackerError),
    #[error(transparent)]
    Stopping(#[from] Stopped),
}

/// Position in a listing of the index.
pub(crate) type After = Option<(String, ContentHash)>;

/// Lists the index page by page. `ask` asks a tracker for the page after a position; `page_wait` bounds the wait for
/// each page, through failovers.
pub(crate) async fn list_pages<F>(
    mut views: watch::Receiver<View>,
    page_wait: Duration,
    ask: impl Fn(Seat, After) -> F,
) -> Result<GlobalListing, TrackerQueryError>
where
    F: Future<Output = Result<IndexPage, Refusal>>,
{
    let mut files = Vec::new();
    let mut after: After = None;
    loop {
        let ask_page = |seat: Seat| {
            let tracker = seat.peer.clone();
            let page = ask(seat, after.clone());
            async move { Ok((tracker, page.await?)) }
        };
        let (tracker, page) = ask_tracker(&mut views, page_wait, ask_page).await?;
        files.extend(page.files);
        match page.next {
            Some(next)
                if files.len() > limits::MAX_INDEX_ENTRIES || after.as_ref().is_some_and(|after| next <= *after) =>
            {
                return Err(TrackerQueryError::NoTracker { why: format!("the listing of {tracker} does not end") });
            }
            Some(next) => after = Some(next),
            None => return Ok(GlobalListing { epoch: page.epoch, tracker: Some(tracker), files }),
        }
    }
}

/// Queries the tracker and repeats the query until it succeeds, for up to `wait`. A failover in between is not an
/// error.
async fn ask_tracker<T, F>(
    views: &mut watch::Receiver<View>,
    wait: Duration,
    ask: impl Fn(Seat) -> F,
) -> Result<T, TrackerQueryError>
where
    F: Future<Output = Result<T, Refusal>>,
{
    let mut last = None;
    let answered = async {
        loop {
            let seat = views.borrow_and_update().tracker().cloned();
            if let Some(seat) = seat {
                match ask(seat).await {
                    Ok(answer) => return Ok(answer),
                    Err(Refusal::Stopping(stopped)) => return Err(stopped),
                    Err(refusal) => {
                        tracing::debug!(error = %refusal, "the tracker did not answer; asking again");
                        last = Some(refusal);
                    }
                }
            }
            tokio::select! {
                changed = views.changed() => changed.map_err(|_| Stopped)?,
                () = sleep(RETRY_INTERVAL) => {}
            }
        }
    };
    match timeout(wait, answered).await {
        Ok(answered) => Ok(answered?),
        Err(_) => Err(match last {
            Some(Refusal::Tracker(TrackerError::LimitReached { what, limit })) => {
                TrackerQueryError::LimitReached { what, limit }
            }
            Some(refusal) => TrackerQueryError::NoTracker { why: refusal.to_string() },
            None => none_elected(),
        }),
    }
}

fn none_elected() -> TrackerQueryError {
    TrackerQueryError::NoTracker { why: "none was elected in time".to_owned() }
}

/// Reason why the listing of a peer is incomplete.
#[derive(Debug, thiserror::Error)]
enum ListingError<E> {
    #[error(transparent)]
    Call(E),
    #[error("its pages are not in order")]
    NotInOrder,
    #[error("it has too many pages")]
    TooLong,
}

/// Collects the files of a peer whose names begin with `prefix`. `list` asks for the page after a name. Examines up to
/// [`MAX_PAGES_PER_PEER`] pages and [`limits::MAX_FILES_PER_PEER`] files, whether they match or not, and only pages in
/// the order of names, so that no peer can continue the listing forever.
async fn collect_files<E, F>(
    prefix: &str,
    list: impl Fn(Option<FileName>) -> F,
) -> (Vec<FileMeta>, Result<(), ListingError<E>>)
where
    F: Future<Output = Result<FilePage, E>>,
{
    let mut files = Vec::new();
    let mut examined = 0;
    let mut after: Option<FileName> = None;
    for _ in 0..MAX_PAGES_PER_PEER {
        let FilePage { files: page, next } = match list(after.clone()).await {
            Ok(page) => page,
            Err(error) => return (files, Err(ListingError::Call(error))),
        };
        examined += page.len();
        files.extend(page.into_iter().filter(|file| file.name.as_str().starts_with(prefix)));
        let Some(next) = next else { return (files, Ok(())) };
        if after.as_ref().is_some_and(|after| next <= *after) {
            return (files, Err(ListingError::NotInOrder));
        }
        if examined >= limits::MAX_FILES_PER_PEER {
            break;
        }
        after = Some(next);
    }
    (files, Err(ListingError::TooLong))
}

/// Groups received files by version and leaves out versions that have no swarm. The modification time of a version is
/// the oldest one that a receiver reports, so that no single peer can make a version newer. Pure.
fn by_receivers(received: Vec<(Contact, FileMeta)>) -> Vec<IndexedFile> {
    let has_swarm = |file: &FileMeta| {
        file.size >= params::MIN_SWARM_BYTES && file.hash != PACKS_HASH && file.hash != DIRECTORY_HASH
    };
    let mut versions: BTreeMap<_, (FileMeta, BTreeSet<PeerId>)> = BTreeMap::new();
    for (contact, file) in received.into_iter().filter(|(_, file)| has_swarm(file)) {
        let version = (file.name.clone(), file.hash, file.size);
        let (known, receivers) = versions.entry(version).or_insert_with(|| (file.clone(), BTreeSet::new()));
        known.mtime_micros = known.mtime_micros.min(file.mtime_micros);
        receivers.insert(contact.peer);
    }
    let versions = versions.into_values();
    versions.map(|(file, receivers)| IndexedFile { file, owners: receivers.into_iter().collect() }).collect()
}

/// Failure of a command that the stop of the peer interrupts.
pub fn stopping(stopped: Stopped) -> Failure {
    Failure::new(FailureCode::Interrupted, "the command was not finished", stopped, "start the peer again")
}

/// Converts the owners of a version to contacts.
pub fn contacts(owners: Vec<Owner>) -> Vec<Contact> {
    owners.into_iter().map(|Owner { peer, endpoint }| Contact { peer, endpoint }).collect()
}

#[cfg(test)]
mod tests;
