//! Implementation of [`PeerApi`] without a network, for tests of the command line.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use protocol::election::SeatRole;
use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    epoch::Epoch,
    error::{Failure, FailureCode},
    file_name::FileName,
    id::PeerId,
    name::Endpoint,
    rpc::{nameserver::Seat, tracker::IndexedFile},
};

use crate::{
    api::{
        AddRequest, Added, Discarded, DownloadRequest, Downloaded, Explained, ExplainedSource, Fetched, GlobalListing,
        PeerApi, Progress, ProgressSink, RunningDownload, Status, Unfinished,
    },
    diagnostics::bottleneck::{Cause, Figure, Finding},
};

/// Peer with a fixed share, whose files are also the files of the network. `download slow` never completes.
pub(crate) struct FakePeer {
    files: Mutex<BTreeMap<String, FileMeta>>,
    pub(crate) added: Mutex<Vec<AddRequest>>,
    pub(crate) downloads: Mutex<Vec<DownloadRequest>>,
    /// Number of started `slow` downloads.
    pub(crate) started: AtomicUsize,
    /// Number of dropped `slow` downloads.
    pub(crate) dropped: Arc<AtomicUsize>,
}

/// Creates the metadata of a file; `fill` is every byte of its hash.
pub(crate) fn file(name: &str, size: u64, fill: u8) -> FileMeta {
    FileMeta { name: name.parse().unwrap(), size, hash: ContentHash([fill; 32]), mtime_micros: 0, executable: false }
}

/// Parses a peer id.
pub(crate) fn peer(id: &str) -> PeerId {
    id.parse().unwrap()
}

/// Finding that names the upload limit of peer3.
fn capped() -> Finding {
    let (peers, figure) = (vec![peer("peer3")], Figure::Rate(Some(1 << 20)));
    Finding { cause: Cause::OwnerLimit, peers, share: 0.935, figure }
}

fn endpoint() -> Endpoint {
    "quic://127.0.0.1:40001".parse().unwrap()
}

impl FakePeer {
    pub(crate) fn sharing(names: &[&str]) -> Self {
        let files = names.iter().map(|name| ((*name).to_owned(), file(name, 3, 0xab))).collect();
        Self {
            files: Mutex::new(files),
            added: Mutex::default(),
            downloads: Mutex::default(),
            started: AtomicUsize::new(0),
            dropped: Arc::default(),
        }
    }

    fn all(&self) -> Vec<FileMeta> {
        // Reversed, because the API does not promise an order.
        self.files.lock().unwrap().values().rev().cloned().collect()
    }

    fn missing(name: &str) -> Failure {
        Failure::new(
            FailureCode::NoSuchFile,
            format!("no file {name:?}"),
            "no peer has it",
            "`listAll` shows all files",
        )
    }
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl PeerApi for FakePeer {
    fn id(&self) -> PeerId {
        peer("peer1")
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<FileMeta>, Failure>> {
        async { Ok(self.all()) }.boxed()
    }

    fn list_all(&self) -> BoxFuture<'_, Result<GlobalListing, Failure>> {
        let entry = |file| IndexedFile { file, owners: vec![peer("peer3"), peer("peer1")] };
        let files = self.all().into_iter().map(entry).collect();
        async { Ok(GlobalListing { epoch: Epoch(4), tracker: Some(peer("peer1")), files }) }.boxed()
    }

    fn add(&self, request: AddRequest) -> BoxFuture<'_, Result<Added, Failure>> {
        async move {
            let name = request.path.file_name().unwrap().to_str().unwrap().to_owned();
            self.added.lock().unwrap().push(request);
            if name == "missing" || name.parse::<FileName>().is_err() {
                return Err(Self::missing(&name));
            }
            let file = file(&name, 3, 0xab);
            self.files.lock().unwrap().insert(name, file.clone());
            Ok(Added { files: vec![file], note: Some("created the file".to_owned()) })
        }
        .boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<FileMeta, Failure>> {
        async move { self.files.lock().unwrap().remove(name).ok_or_else(|| Self::missing(name)) }.boxed()
    }

    fn download(&self, request: DownloadRequest, progress: ProgressSink) -> BoxFuture<'_, Result<Fetched, Failure>> {
        async move {
            self.downloads.lock().unwrap().push(request.clone());
            let name = &request.pattern;
            if name == "slow" {
                let _guard = CountDrop(self.dropped.clone());
                progress.update(Progress {
                    file: "slow".parse().unwrap(),
                    bytes_done: 1,
                    bytes_total: 2,
                    bytes_per_second: 1,
                    sources: 1,
                    files_done: 0,
                    files_total: 1,
                });
                self.started.fetch_add(1, Ordering::SeqCst);
                return std::future::pending().await;
            }
            let file = self.files.lock().unwrap().get(name).cloned().ok_or_else(|| Self::missing(name))?;
            let sources = vec![(peer("peer3"), 2), (peer("peer2"), 1)];
            let files = vec![Downloaded { path: PathBuf::from("/share").join(name), file, seconds: 0.01, sources }];
            let explained = request.explain.then(|| Explained {
                name: name.clone(),
                bytes: 3,
                seconds: 0.5,
                sources: vec![ExplainedSource {
                    peer: peer("peer3"),
                    bytes: 2,
                    bytes_per_second: 4,
                    rtt: Some(Duration::from_micros(1500)),
                }],
                findings: vec![capped()],
            });
            Ok(Fetched { files, explained })
        }
        .boxed()
    }

    fn discard<'a>(
        &'a self,
        name: &'a str,
        _version: Option<&'a HashPrefix>,
    ) -> BoxFuture<'a, Result<Vec<Discarded>, Failure>> {
        async move {
            let file = self.files.lock().unwrap().get(name).cloned().ok_or_else(|| Self::missing(name))?;
            Ok(vec![Discarded { destination: PathBuf::from("/share").join(name), file, freed_bytes: 4096 }])
        }
        .boxed()
    }

    fn tracker(&self) -> BoxFuture<'_, Result<Seat, Failure>> {
        async { Ok(Seat { epoch: Epoch(4), peer: peer("peer1"), endpoint: endpoint() }) }.boxed()
    }

    fn peers(&self) -> BoxFuture<'_, Result<Vec<(PeerId, Endpoint)>, Failure>> {
        async { Ok(vec![(peer("peer2"), endpoint()), (peer("peer1"), endpoint())]) }.boxed()
    }

    fn elect(&self) -> BoxFuture<'_, Result<(Epoch, PeerId), Failure>> {
        async { Ok((Epoch(5), peer("peer2"))) }.boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, Failure>> {
        async {
            Ok(Status {
                id: self.id(),
                endpoint: endpoint(),
                nameserver: "quic://127.0.0.1:9090".parse().unwrap(),
                role: SeatRole::Tracker,
                epoch: Epoch(4),
                tracker: Some(self.id()),
                share_dir: "/share".into(),
                files: 2,
                bytes: 6,
                uploads: 2,
                uploads_waiting: 1,
                upload_slots: 8,
                limit_up: None,
                limit_down: Some(1 << 20),
                running: vec![RunningDownload {
                    name: "big.bin".to_owned(),
                    bytes_done: 1 << 20,
                    bytes_total: 4 << 20,
                    bytes_per_second: 1 << 19,
                    sources: 1,
                    findings: vec![capped()],
                }],
                downloads: 1,
                bytes_up: 0,
                bytes_down: 3,
                unfinished: vec![
                    Unfinished {
                        file: file("a b.txt", 2000, 0xab),
                        have_bytes: 819,
                        destination: "/share/a b.txt".into(),
                    },
                    Unfinished { file: file("c.txt", 3, 0xab), have_bytes: 1, destination: "/tmp/c.txt".into() },
                ],
                warnings: vec!["small\u{1b}[2J buffers".to_owned()],
            })
        }
        .boxed()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
