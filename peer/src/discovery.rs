//! Finding things: files by the tracker, peers by the nameserver, and both by asking around when those are away.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shared::{
    contact::Contact,
    content::{DIRECTORY_HASH, FileMeta, HashPrefix},
    error::{Failure, FailureCode},
    file_name::FileName,
    id::PeerId,
    limits,
    name::Endpoint,
    net::{Connections, NetError, Target, pack::PACKS_HASH},
    rpc::{
        nameserver::Seat,
        peer::{FilePage, PeerServiceClient},
        tracker::{IndexedFile, ListAll, Owner, TrackerError, TrackerServiceClient, Version, WhoHas},
    },
};
use tokio::time::{sleep, timeout};

use crate::{
    api::GlobalListing,
    core_handle::{CoreHandle, Stopped},
    net::rpc_client::RpcClient,
    store::Share,
};

/// How long after a refusal the tracker is asked again, unless the seat changes before.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Finds files and peers.
#[derive(Clone)]
pub struct Discovery {
    /// Who this peer is.
    pub me: PeerId,
    /// The node.
    pub node: CoreHandle,
    /// Connections to others.
    pub connections: Connections,
    /// RpcClient to the nameserver.
    pub calls: Arc<RpcClient>,
    /// This peer's own files.
    pub share: Share,
    /// The peers that the nameserver named last, for when it is away. The core's own list is some seconds old.
    pub last_seen: Arc<Mutex<Vec<Contact>>>,
}

impl Discovery {
    /// The tracker, as soon as there is one.
    ///
    /// # Errors
    /// `NoTracker` when there is none for `wait`.
    pub async fn tracker(&self, wait: Duration) -> Result<Seat, Failure> {
        let mut views = self.node.watch();
        let found = async {
            loop {
                if let Some(seat) = views.borrow_and_update().tracker() {
                    return Ok(seat.clone());
                }
                views.changed().await.map_err(|_| Stopped)?;
            }
        };
        match timeout(wait, found).await {
            Ok(found) => found.map_err(stopping),
            Err(_) => Err(no_tracker(&"none was elected in time")),
        }
    }

    /// All files whose names begin with `prefix`, from the tracker.
    ///
    /// # Errors
    /// `NoTracker` when none answers for `wait`.
    pub async fn list_all(&self, prefix: &str, wait: Duration) -> Result<GlobalListing, Failure> {
        self.ask_tracker(wait, |seat| async move {
            let mut files = Vec::new();
            let mut after = None;
            loop {
                let query = ListAll { epoch: seat.epoch, prefix: prefix.to_owned(), after };
                let page = if seat.peer == self.me {
                    self.node.list_all(query).await.map_err(Problem::Stopping)?
                } else {
                    self.call_tracker(&seat, |tracker, cx| async move { tracker.list_all(cx, query).await }).await?
                };
                let page = page.map_err(Problem::Refused)?;
                files.extend(page.files);
                match page.next {
                    Some(next) => after = Some(next),
                    None => return Ok(GlobalListing { epoch: page.epoch, tracker: seat.peer, files }),
                }
            }
        })
        .await
    }

    /// The versions of a file with their owners, from the tracker.
    ///
    /// # Errors
    /// `NoTracker` when none answers for `wait`.
    pub async fn who_has(
        &self,
        name: &FileName,
        version: Option<&HashPrefix>,
        wait: Duration,
    ) -> Result<Vec<Version>, Failure> {
        self.ask_tracker(wait, |seat| async move {
            let query = WhoHas { epoch: seat.epoch, name: name.to_string(), version: version.cloned() };
            let answer = if seat.peer == self.me {
                self.node.who_has(self.me.clone(), query).await.map_err(Problem::Stopping)?
            } else {
                self.call_tracker(&seat, |tracker, cx| async move { tracker.who_has(cx, query).await }).await?
            };
            answer.map_err(Problem::Refused)
        })
        .await
    }

    /// The files whose names begin with `prefix` that the known peers say they have, for when there is no tracker.
    /// Asks at most [`limits::MAX_FAN_OUT`] peers.
    pub async fn ask_around(&self, prefix: &str) -> Vec<IndexedFile> {
        let mut versions: BTreeMap<_, IndexedFile> = BTreeMap::new();
        let mut note = |owner: &PeerId, file: FileMeta| {
            let entry = versions
                .entry((file.name.clone(), file.hash))
                .or_insert_with(|| IndexedFile { file, owners: Vec::new() });
            entry.owners.push(owner.clone());
        };
        for file in self.share.list() {
            if file.name.as_str().starts_with(prefix) {
                note(&self.me, file);
            }
        }
        let peers = self.known_peers().await;
        let others = peers.into_iter().filter(|contact| contact.peer != self.me).take(limits::MAX_FAN_OUT);
        let answers = others.map(|contact| async move {
            let files = self.files_of(&contact, prefix).await;
            (contact.peer, files)
        });
        for (peer, files) in futures::future::join_all(answers).await {
            for file in files {
                note(&peer, file);
            }
        }
        versions.into_values().collect()
    }

    /// The files whose names begin with `prefix` that the known peers receive, with those who do in place of owners: how many they are
    /// says which version is meant, but none of them has it, and what they have is to be asked of them. For when nobody shares such a file.
    pub async fn received(&self, prefix: &str) -> Vec<IndexedFile> {
        by_receivers(self.receivers(prefix).await)
    }

    /// Who receives files whose names begin with `prefix`. Asks at most [`limits::MAX_FAN_OUT`] of the known peers, which ones is left to
    /// chance, and waits no longer than [`limits::RECEIVERS_DEADLINE`] for them.
    pub async fn receivers(&self, prefix: &str) -> Vec<(Contact, FileMeta)> {
        let mut others = self.known_peers().await;
        others.retain(|contact| contact.peer != self.me);
        fastrand::shuffle(&mut others);
        let asked = others.into_iter().take(limits::MAX_FAN_OUT).map(|contact| async move {
            let prefix = prefix.to_owned();
            let ask = |peer: PeerServiceClient, cx| async move { peer.receiving(cx, prefix).await };
            let asked = Target::from(&contact);
            let call = self.connections.call(&asked, limits::RECEIVERS_DEADLINE, ask);
            match timeout(limits::RECEIVERS_DEADLINE, call).await {
                Ok(Ok(files)) => files.into_iter().map(|file| (contact.clone(), file)).collect(),
                Ok(Err(error)) => {
                    tracing::debug!(%error, peer = %contact.peer, "a peer does not say what it receives");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            }
        });
        let found: Vec<Vec<_>> = futures::future::join_all(asked).await;
        found.into_iter().flatten().filter(|(_, file)| file.name.as_str().starts_with(prefix)).collect()
    }

    /// All registered peers; those this peer knows of when the nameserver does not answer.
    pub async fn known_peers(&self) -> Vec<Contact> {
        match self.calls.peers().await {
            Ok(peers) => {
                self.last_seen.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&peers);
                peers
            }
            Err(error) => {
                tracing::debug!(%error, "the nameserver does not answer; using the peers known");
                let mut known = self.node.members().await.unwrap_or_default();
                for contact in self.last_seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    known.entry(contact.peer.clone()).or_insert_with(|| contact.endpoint.clone());
                }
                known.into_iter().map(|(peer, endpoint)| Contact { peer, endpoint }).collect()
            }
        }
    }

    /// Where these peers answer, as far as anybody knows.
    pub async fn endpoints(&self) -> BTreeMap<PeerId, Endpoint> {
        self.known_peers().await.into_iter().map(|contact| (contact.peer, contact.endpoint)).collect()
    }

    async fn files_of(&self, contact: &Contact, prefix: &str) -> Vec<FileMeta> {
        let mut files = Vec::new();
        let mut after = None;
        loop {
            let ask = |peer: PeerServiceClient, cx| async move { peer.list(cx, after).await };
            match self.connections.call(&Target::from(contact), limits::CALL_DEADLINE, ask).await {
                Ok(FilePage { files: page, next }) => {
                    files.extend(page.into_iter().filter(|file| file.name.as_str().starts_with(prefix)));
                    match next {
                        Some(next) if files.len() < limits::MAX_FILES_PER_PEER => after = Some(next),
                        _ => return files,
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a peer could not be asked");
                    return files;
                }
            }
        }
    }

    async fn call_tracker<T, F>(
        &self,
        seat: &Seat,
        call: impl FnOnce(TrackerServiceClient, tarpc::context::Context) -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, tarpc::client::RpcError>>,
    {
        let contact = Contact { peer: seat.peer.clone(), endpoint: seat.endpoint.clone() };
        self.connections.call(&Target::from(&contact), limits::CALL_DEADLINE, call).await.map_err(Problem::Net)
    }

    /// Asks whoever is tracker, again and again through a failover, for at most `wait`.
    async fn ask_tracker<T, F>(&self, wait: Duration, ask: impl Fn(Seat) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let mut views = self.node.watch();
        let mut last = None;
        let answered = async {
            loop {
                let seat = views.borrow_and_update().tracker().cloned();
                if let Some(seat) = seat {
                    match ask(seat).await {
                        Ok(answer) => return Ok(answer),
                        Err(Problem::Stopping(stopped)) => return Err(stopping(stopped)),
                        Err(problem) => {
                            tracing::debug!(?problem, "the tracker did not answer; asking again");
                            last = Some(problem);
                        }
                    }
                }
                tokio::select! {
                    changed = views.changed() => changed.map_err(|_| stopping(Stopped))?,
                    () = sleep(ASK_AGAIN) => {}
                }
            }
        };
        match timeout(wait, answered).await {
            Ok(answered) => answered,
            Err(_) => Err(match last {
                Some(Problem::Refused(TrackerError::LimitReached { what, limit })) => Failure::new(
                    FailureCode::LimitReached,
                    "the tracker cannot answer",
                    format!("too many {what}, at most {limit}"),
                    "share fewer files",
                ),
                Some(Problem::Refused(error)) => no_tracker(&error),
                Some(Problem::Net(error)) => no_tracker(&error),
                Some(Problem::Stopping(_)) | None => no_tracker(&"none was elected in time"),
            }),
        }
    }
}

#[derive(Debug)]
enum Problem {
    Net(NetError),
    Refused(TrackerError),
    Stopping(Stopped),
}

fn no_tracker(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        FailureCode::NoTracker,
        "no tracker answers",
        why,
        "try again in a moment; `tracker` shows who it is, `eleger` elects one",
    )
}

/// Versions with those who receive them. What cannot be received in company is left out, and of what several say of one version the
/// oldest time counts, so that nobody can make it newer alone. Pure.
fn by_receivers(received: Vec<(Contact, FileMeta)>) -> Vec<IndexedFile> {
    let can_be = |file: &FileMeta| {
        file.size >= limits::MIN_SWARM_BYTES && file.hash != PACKS_HASH && file.hash != DIRECTORY_HASH
    };
    let mut versions: BTreeMap<_, (FileMeta, BTreeSet<PeerId>)> = BTreeMap::new();
    for (contact, file) in received.into_iter().filter(|(_, file)| can_be(file)) {
        let version = (file.name.clone(), file.hash, file.size);
        let (known, receivers) = versions.entry(version).or_insert_with(|| (file.clone(), BTreeSet::new()));
        known.mtime_micros = known.mtime_micros.min(file.mtime_micros);
        receivers.insert(contact.peer);
    }
    let versions = versions.into_values();
    versions.map(|(file, receivers)| IndexedFile { file, owners: receivers.into_iter().collect() }).collect()
}

/// What a user is told when the peer stops while a command runs.
pub fn stopping(stopped: Stopped) -> Failure {
    Failure::new(FailureCode::Interrupted, "the command was not finished", stopped, "start the peer again")
}

/// The owners of a version as contacts.
pub fn contacts(owners: Vec<Owner>) -> Vec<Contact> {
    owners.into_iter().map(|Owner { peer, endpoint }| Contact { peer, endpoint }).collect()
}

#[cfg(test)]
mod tests {
    use shared::content::ContentHash;

    use super::*;

    fn said(peer: &str, hash: ContentHash, size: u64, mtime_micros: i64) -> (Contact, FileMeta) {
        let contact = Contact { peer: peer.parse().unwrap(), endpoint: "quic://127.0.0.1:1".parse().unwrap() };
        (contact, FileMeta { name: "a.bin".parse().unwrap(), size, hash, mtime_micros, executable: false })
    }

    #[test]
    fn a_version_counts_each_of_its_receivers_once_and_what_nobody_can_receive_is_none() {
        let (real, phantom) = (ContentHash([1; 32]), ContentHash([2; 32]));
        let size = limits::MIN_SWARM_BYTES;
        let versions = by_receivers(vec![
            said("p1", real, size, 5),
            said("liar", phantom, size, i64::MAX),
            said("liar", phantom, size, i64::MAX),
            said("p2", real, size, 5),
            said("liar", real, size, i64::MAX),
            said("liar", real, size - 1, i64::MAX),
            said("liar", DIRECTORY_HASH, size, i64::MAX),
            said("liar", DIRECTORY_HASH, 0, i64::MAX),
            said("liar", PACKS_HASH, size, i64::MAX),
        ]);
        let counted: Vec<_> =
            versions.iter().map(|found| (found.file.hash, found.file.mtime_micros, found.owners.len())).collect();
        assert_eq!(counted, [(real, 5, 3), (phantom, i64::MAX, 1)]);
    }
}
