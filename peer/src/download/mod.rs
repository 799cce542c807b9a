//! Downloads: which versions, from whom, and what to do when an owner fails.
//!
//! ```text
//! wish ─ lookup ─ select ─ for each file ┬ there already ──────────────────────────────────── done
//!        (tracker, or the known peers)   └ partial ─ engine ─ all owners at once ─ fsync, rename ─ done
//! ```
//!
//! The way of one file is in `one`. Small files, when there are several, go another way: see `small`.

mod directories;
mod engine;
mod explain;
mod file;
mod packs;
mod providers;
mod request;
mod select;
mod stall_policy;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, TryStreamExt, stream};
use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    error::{Failure, FailureCode},
    file_name::FileName,
    id::PeerId,
    limits,
    name::Endpoint,
    net::{
        NetError,
        bulk::{BulkAbort, BulkRefusal, HeaderError},
    },
    rpc::tracker::IndexedFile,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{DownloadRequest, Downloaded, Fetched, Progress, ProgressSink, parse_name},
    diagnostics::gauge::GaugeGuard,
    discovery::contacts,
    runtime::peer::{Downloads, Peer},
    transfer::FetchError,
};
use directories::{Describing, DirectoriesOf, make_folders};
use explain::RunMeter;
use select::{Wish, common_prefix, listed_prefix, select};

/// Why one owner did not deliver.
#[derive(Debug, thiserror::Error)]
enum OwnerError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("its answer is unreadable: {0}")]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Refused(#[from] BulkRefusal),
    #[error("it did not answer in time")]
    Silent,
    #[error("it says the file has {claimed} bytes, not {announced}")]
    OtherSize { claimed: u64, announced: u64 },
    #[error("its file changed while it was sent")]
    Changed,
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// A file to fetch, and from whom it can be had.
pub(crate) struct Job {
    file: FileMeta,
    owners: Vec<Contact>,
    to: Option<PathBuf>,
    /// Whether others than the owners may be asked: those that receive it at the same time.
    sociable: bool,
}

/// What a request means.
struct Plan {
    jobs: Vec<Job>,
    directories: DirectoriesOf,
    /// Folders outside of the share that are to be there before anything comes.
    folders: BTreeSet<PathBuf>,
}

/// What all files of one download have in common.
pub(crate) struct Run {
    /// As it was asked for.
    pattern: String,
    meter: RunMeter,
    force: bool,
    sink: ProgressSink,
    bytes_total: u64,
    files_total: u64,
    bytes_done: AtomicU64,
    files_done: AtomicU64,
    sources: AtomicU64,
}

impl Run {
    fn tell(&self, file: &FileMeta) {
        self.meter.note();
        self.sink.update(self.progress(file.name.clone()));
    }

    fn progress(&self, file: FileName) -> Progress {
        Progress {
            file,
            bytes_per_second: self.meter.bytes_per_second(),
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
            sources: u32::try_from(self.sources.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
            files_done: self.files_done.load(Ordering::Relaxed),
            files_total: self.files_total,
        }
    }
}

impl Peer {
    /// Fetches all that a request names.
    ///
    /// # Errors
    /// The first failure; files that are complete by then stay.
    pub(crate) async fn fetch_all(&self, request: DownloadRequest, sink: ProgressSink) -> Result<Fetched, Failure> {
        let _active = GaugeGuard::new(&self.downloads.active);
        let Plan { jobs, directories: described, folders } = self.plan(&request).await?;
        let (bytes_total, files_total) = (jobs.iter().map(|job| job.file.size).sum(), jobs.len() as u64);
        let (directories, files): (Numbered, _) =
            jobs.into_iter().enumerate().partition(|(_, job)| job.file.is_directory());
        let asked = described.owners(files.iter().chain(&directories).map(|(_, job)| job), &self.id);
        let describing = Describing::new(self.share.clone(), described);
        let contents = files.iter().map(|(_, job)| (job.file.size, job.file.hash)).collect();
        let (small, large) = split(files);
        let run = Arc::new(Run {
            pattern: request.pattern.clone(),
            meter: RunMeter::new(self.downloads.machine.clone(), contents, !small.is_empty()),
            force: request.force,
            sink,
            bytes_total,
            files_total,
            bytes_done: AtomicU64::new(0),
            files_done: AtomicU64::new(0),
            sources: AtomicU64::new(0),
        });
        let _running = self.downloads.begins(&run);
        let arrived = CancellationToken::new();
        let all = async {
            let _arrived = arrived.clone().drop_guard();
            make_folders(folders).await?;
            let directories = self.make_directories(directories, &run).await?;
            self.fetch_files(small, large, directories, request.to.as_deref(), &run).await
        };
        let (done, ()) = tokio::join!(all, self.look_at_directories(&describing, asked, &arrived));
        let files = match done {
            Ok(files) => files,
            Err(failure) => {
                describing.not_all_came().await;
                return Err(failure);
            }
        };
        describing.all_came().await?;
        let explained = if request.explain { Some(self.explain(&request.pattern, &run).await) } else { None };
        Ok(Fetched { files, explained })
    }

    /// Fetches the files; all that came, with the `directories` that were made, in the order in which they were asked for.
    async fn fetch_files(
        &self,
        small: Numbered,
        large: Numbered,
        directories: Vec<(usize, Result<Downloaded, Failure>)>,
        to: Option<&Path>,
        run: &Arc<Run>,
    ) -> Result<Vec<Downloaded>, Failure> {
        let (places, small): (Vec<_>, Vec<_>) = small.into_iter().unzip();
        let outside = to.filter(|to| to.is_dir());
        let large = stream::iter(large)
            .map(|(place, job)| {
                let fetched = self.fetch_one(job, run.clone());
                async move { fetched.await.map(|done| (place, done)).map_err(|failure| (place, failure)) }
            })
            .buffered(limits::FILES_AT_A_TIME)
            .try_collect::<Vec<_>>();
        let small =
            async { if small.is_empty() { Vec::new() } else { self.fetch_small(small, outside, run.clone()).await } };
        let (large, small) = tokio::join!(large, small);
        let (mut done, mut failures) = match large {
            Ok(done) => (done, Vec::new()),
            Err(failure) => (Vec::new(), vec![failure]),
        };
        for (place, outcome) in places.into_iter().zip(small).chain(directories) {
            match outcome {
                Ok(file) => done.push((place, file)),
                Err(failure) => failures.push((place, failure)),
            }
        }
        if let Some(failure) = first_of(failures) {
            return Err(failure);
        }
        done.sort_by_key(|(place, _)| *place);
        Ok(done.into_iter().map(|(_, file)| file).collect())
    }

    /// Finds out which versions are meant, where they go, and who has them.
    async fn plan(&self, request: &DownloadRequest) -> Result<Plan, Failure> {
        let request = &self.literally(request).await;
        let DownloadRequest { pattern, version, from, to, .. } = request;
        let unfinished: Vec<_> = self.share.unfinished().await?.into_iter().map(|one| one.file.hash).collect();
        let wish = Wish { pattern, version: version.as_ref(), from: from.as_ref(), unfinished: &unfinished };
        let exact = self.exactly(request).await?;
        let (found, known) = match exact {
            // Elsewhere there may be something in a directory that is empty with some.
            Some((found, known)) if !found.iter().any(|found| found.file.is_directory()) => (found, known),
            _ => (self.all_that_begin(listed_prefix(pattern)).await, BTreeMap::new()),
        };
        if found.is_empty() && common_prefix(pattern).len() == pattern.len() {
            // What cannot be a name at all deserves to be told so.
            parse_name(pattern.trim_end_matches('/'))?;
        }
        let chosen = match select(wish, found) {
            Err(failure) if failure.code == FailureCode::NoSuchFile && from.is_none() => {
                // Its owners may have gone while others were receiving it.
                let received = self.lookup.received(listed_prefix(pattern)).await;
                let mut chosen = select(wish, received).map_err(|_| failure)?;
                // So far they have parts at most: the engine finds them, and they say what they have.
                chosen.iter_mut().for_each(|found| found.owners.clear());
                chosen
            }
            chosen => chosen?,
        };
        let one =
            matches!(chosen.as_slice(), [only] if only.file.name.as_str() == pattern && !only.file.is_directory());
        if let (false, Some(to)) = (one, to)
            && to.exists()
            && !to.is_dir()
        {
            let why = format!("{} is no folder", to.display());
            return Err(Failure::new(
                FailureCode::Usage,
                "several files cannot become one",
                why,
                "name a folder with --to",
            ));
        }
        let endpoints = if known.is_empty() { self.lookup.endpoints().await } else { known };
        // Before any of them is made.
        let files = chosen.iter().map(|found| &found.file);
        let directories = DirectoriesOf::download(pattern, files, to.as_deref(), &self.share).await?;
        let mut folders = BTreeSet::new();
        let jobs = chosen
            .into_iter()
            .map(|IndexedFile { file, owners }| {
                let to = match (one, to) {
                    (true, to) => to.clone(),
                    (false, Some(to)) => {
                        let path = file.name.below(to);
                        folders.insert(path.parent().unwrap_or(to).to_path_buf());
                        Some(path)
                    }
                    (false, None) => None,
                };
                let owners = order(owners, from.as_ref(), &endpoints, &self.id);
                Job { file, owners, to, sociable: from.is_none() }
            })
            .collect();
        Ok(Plan { jobs, directories, folders })
    }

    /// `name@hash` may be the whole name of a file: then it is taken as such.
    async fn literally(&self, request: &DownloadRequest) -> DownloadRequest {
        let mut literal = request.clone();
        if let Some(version) = literal.version.take() {
            literal.pattern = format!("{}@{version}", literal.pattern);
            if matches!(self.exactly(&literal).await, Ok(Some(_))) {
                return literal;
            }
        }
        request.clone()
    }

    /// The versions of a plain name, by one short question; `None` when it has to be looked for.
    async fn exactly(
        &self,
        request: &DownloadRequest,
    ) -> Result<Option<(Vec<IndexedFile>, BTreeMap<PeerId, Endpoint>)>, Failure> {
        let Ok(name) = request.pattern.parse() else { return Ok(None) };
        let wait = limits::TRACKER_WAIT_BEFORE_FAN_OUT;
        let versions = match self.lookup.who_has(&name, request.version.as_ref(), wait).await {
            Ok(versions) => versions,
            Err(failure) if failure.code == FailureCode::NoTracker => return Ok(None),
            Err(failure) => return Err(failure),
        };
        if versions.is_empty() {
            return Ok(None);
        }
        let mut endpoints = BTreeMap::new();
        let files = versions.into_iter().map(|version| {
            let owners = contacts(version.owners);
            let ids = owners.iter().map(|owner| owner.peer.clone()).collect();
            endpoints.extend(owners.into_iter().map(|owner| (owner.peer, owner.endpoint)));
            IndexedFile { file: version.file, owners: ids }
        });
        Ok(Some((files.collect(), endpoints)))
    }

    async fn all_that_begin(&self, prefix: &str) -> Vec<IndexedFile> {
        match self.lookup.list_all(prefix, limits::TRACKER_WAIT_BEFORE_FAN_OUT).await {
            Ok(listing) => listing.files,
            Err(failure) => {
                tracing::info!(%failure, "asking the known peers instead");
                self.lookup.ask_around(prefix).await
            }
        }
    }
}

/// Jobs with their places in the order in which they were asked for.
type Numbered = Vec<(usize, Job)>;

/// Small files and the others; one small file alone is fetched like the others.
fn split(jobs: Numbered) -> (Numbered, Numbered) {
    let (small, mut large): (Numbered, Numbered) =
        jobs.into_iter().partition(|(_, job)| job.file.size <= limits::MAX_PACKED_FILE_BYTES);
    if small.len() >= limits::MIN_PACKED_FILES {
        return (small, large);
    }
    large.extend(small);
    (Vec::new(), large)
}

/// The failure of the first file that failed, which tells how many others did.
fn first_of(failures: Vec<(usize, Failure)>) -> Option<Failure> {
    let others = failures.len().saturating_sub(1);
    let (_, mut failure) = failures.into_iter().min_by_key(|(place, _)| *place)?;
    if others > 0 {
        let files = if others == 1 { "file" } else { "files" };
        failure.why = format!("{}; {others} other {files} failed too", failure.why);
    }
    Some(failure)
}

/// What a user is told when nobody who is left can deliver a file; `reasons` are what each owner did.
fn undelivered(name: &FileName, reasons: &[String], all_lied: bool) -> Failure {
    let what = format!("cannot download {name}");
    if reasons.is_empty() {
        let (why, hint) = ("none of its owners is there", "try again when one is back");
        return Failure::new(FailureCode::NoOwner, what, why, hint);
    }
    let (code, hint) = if all_lied {
        (FailureCode::VerificationFailed, "nothing wrong was kept; fetch it from another owner with --from")
    } else {
        (FailureCode::NoOwner, "try again, or `listAll` for other versions")
    };
    Failure::new(code, what, reasons.join(", "), hint)
}

/// Whether the owner broke the stream off because its file changed.
fn was_reset_as_changed(error: &FetchError) -> bool {
    let FetchError::Stream(error) = error else { return false };
    let reset = error.get_ref().and_then(|source| source.downcast_ref::<quinn::ReadError>());
    matches!(reset, Some(quinn::ReadError::Reset(code)) if BulkAbort::from_varint(*code) == Some(BulkAbort::Changed))
}

impl Downloads {
    /// The lock of a content; the same for all who ask while one holds it.
    fn lock_of(&self, hash: ContentHash) -> Arc<tokio::sync::Mutex<()>> {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        contents.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = contents.get(&hash).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        contents.insert(hash, Arc::downgrade(&lock));
        lock
    }
}

/// Owners in the order in which they are tried: at random, so that many askers spread over them; this peer itself last.
fn order(
    owners: Vec<PeerId>,
    only: Option<&PeerId>,
    endpoints: &BTreeMap<PeerId, Endpoint>,
    me: &PeerId,
) -> Vec<Contact> {
    let wanted = owners.into_iter().filter(|owner| only.is_none_or(|only| only == owner));
    let mut contacts: Vec<Contact> =
        wanted.filter_map(|peer| Some(Contact { endpoint: endpoints.get(&peer)?.clone(), peer })).collect();
    fastrand::shuffle(&mut contacts);
    contacts.sort_by_key(|contact| contact.peer == *me);
    contacts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: &str) -> PeerId {
        id.parse().unwrap()
    }

    #[test]
    fn owners_are_tried_once_each_and_this_peer_last() {
        let endpoint: Endpoint = "quic://127.0.0.1:1".parse().unwrap();
        let endpoints: BTreeMap<_, _> = ["a", "b", "c"].into_iter().map(|id| (peer(id), endpoint.clone())).collect();
        let owners = || vec![peer("a"), peer("b"), peer("c"), peer("gone")];
        for _ in 0..20 {
            let mut ids: Vec<_> = order(owners(), None, &endpoints, &peer("a")).into_iter().map(|c| c.peer).collect();
            assert_eq!(ids.pop(), Some(peer("a")));
            ids.sort();
            assert_eq!(ids, [peer("b"), peer("c")]);
        }
        assert_eq!(order(owners(), Some(&peer("c")), &endpoints, &peer("a")).len(), 1);
    }
}
