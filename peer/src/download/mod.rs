//! Downloads: selection of versions, providers, and recovery from providers that fail.
//!
//! ```text
//! request ─ plan (tracker, or known peers) ─ each file ┬ present at its destination ──────────────────── done
//!                                                      └ partial file ─ engine ─ fsync, rename ───────── done
//! ```
//!
//! | module | contents |
//! |---|---|
//! | `plan`, `select`, `job` | request to jobs: versions, destinations, providers |
//! | `file`, `engine` | one file: its destination; the I/O of its swarm core |
//! | `running`, `request` | running requests of a file; one bulk stream |
//! | `providers`, `stall_policy` | providers of a file, and what happens when none is left (pure) |
//! | `packs` | small files, if there are at least two |
//! | `directories` | empty directories, times and modes of all |
//! | `context`, `profile`, `explain` | progress of a running download, its profile, the explanation of its speed |
//! | `error` | error types, and their mapping to API failures |

mod context;
mod directories;
mod engine;
mod error;
mod explain;
mod file;
mod job;
mod packs;
pub mod params;
mod plan;
mod profile;
mod providers;
mod request;
mod running;
mod select;
mod stall_policy;

use std::{
    num::NonZeroU64,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt, future::join_all, stream};
use shared::{id::PeerId, net::Connections};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{DownloadRequest, Downloaded, Fetched, ProgressSink, RunningDownload},
    diagnostics::{gauge::GaugeGuard, system::Machine},
    discovery::Discovery,
    store::Share,
    swarm::Swarms,
    transfer::throttle::Throttle,
};
use context::DownloadContext;
use directories::{MetadataCollector, collect_metadata, create_directories, create_folders};
pub use error::{DownloadError, FileError};
use explain::Explainer;
use file::{ContentLocks, FileFetcher};
use job::{NumberedJobs, split_by_size};
use packs::PackFetcher;
use plan::{Plan, Planner};
use profile::DownloadProfile;
pub use select::SelectError;

/// Parameters of a [`Downloader`].
pub struct DownloaderConfig {
    /// Id of this peer.
    pub me: PeerId,
    /// Share of this peer.
    pub share: Share,
    /// Connections for bytes.
    pub bulk: Connections,
    /// Swarms of which this peer is a member.
    pub swarms: Swarms,
    /// Finds files and peers.
    pub discovery: Discovery,
    /// Rate limit of the bytes that this peer receives.
    pub throttle: Throttle,
    /// Counters of this machine.
    pub machine: Arc<Machine>,
    /// Receive buffer of the socket in bytes, if the system granted less than requested.
    pub clamped_buffer: Option<u64>,
}

/// Executes the downloads of one peer.
pub struct Downloader {
    me: PeerId,
    share: Share,
    bulk: Connections,
    swarms: Swarms,
    discovery: Discovery,
    throttle: Throttle,
    clamped_buffer: Option<u64>,
    stats: DownloadStats,
    locks: ContentLocks,
}

/// Counters and running downloads.
struct DownloadStats {
    active: AtomicU64,
    /// Bytes fetched since the start.
    bytes: Arc<AtomicU64>,
    /// Running downloads, in the order in which they began.
    running: Mutex<Vec<Arc<DownloadContext>>>,
    machine: Arc<Machine>,
}

impl Downloader {
    /// Creates a downloader without downloads.
    pub fn new(config: DownloaderConfig) -> Self {
        let DownloaderConfig { me, share, bulk, swarms, discovery, throttle, machine, clamped_buffer } = config;
        let stats =
            DownloadStats { active: AtomicU64::new(0), bytes: Arc::default(), running: Mutex::default(), machine };
        Self { me, share, bulk, swarms, discovery, throttle, clamped_buffer, stats, locks: ContentLocks::default() }
    }

    /// Returns the number of downloads that are being planned or are running.
    pub fn active(&self) -> u64 {
        self.stats.active.load(Ordering::Relaxed)
    }

    /// Returns the bytes of content received since the start.
    pub fn bytes(&self) -> u64 {
        self.stats.bytes.load(Ordering::Relaxed)
    }

    /// Returns the rate limit of received bytes, bytes a second.
    pub fn limit(&self) -> Option<u64> {
        self.throttle.bytes_per_second().map(NonZeroU64::get)
    }

    /// Describes the running downloads, in the order in which they began.
    pub async fn running(&self) -> Vec<RunningDownload> {
        let running = self.stats.running().clone();
        let explainer = self.explainer();
        join_all(running.iter().map(|context| explainer.describe(context))).await
    }

    /// Fetches all files that a request names. Dropping the future cancels the download.
    ///
    /// # Errors
    /// The first failure. All files without a failure are complete and stay.
    pub async fn fetch(&self, request: DownloadRequest, sink: ProgressSink) -> Result<Fetched, DownloadError> {
        let _active = GaugeGuard::new(&self.stats.active);
        let planner = Planner { me: &self.me, share: &self.share, discovery: &self.discovery };
        let Plan { jobs, directories: set, folders } = planner.plan(&request).await?;
        let totals = (jobs.iter().map(|job| job.file.size).sum(), jobs.len() as u64);
        let (directories, files): (NumberedJobs, _) =
            jobs.into_iter().enumerate().partition(|(_, job)| job.file.is_directory());
        let providers = set.providers(files.iter().chain(&directories).map(|(_, job)| job), &self.me);
        let collector = MetadataCollector::new(self.share.clone(), set);
        let contents = files.iter().map(|(_, job)| (job.file.size, job.file.hash)).collect();
        let (packed, large) = split_by_size(files);
        let profile = DownloadProfile::new(self.stats.machine.clone(), contents, !packed.is_empty());
        let context = Arc::new(DownloadContext::new(request.pattern.clone(), request.force, profile, totals, sink));
        let _running = self.stats.begin(&context);
        let arrived = CancellationToken::new();
        let all = async {
            let _arrived = arrived.clone().drop_guard();
            create_folders(folders).await?;
            let created = create_directories(&self.share, directories, &context).await?;
            self.fetch_files(packed, large, created, request.to.as_deref(), &context).await
        };
        let metadata = collect_metadata(&collector, &self.discovery.connections, providers, &arrived);
        let (files, ()) = tokio::join!(all, metadata);
        let files = match files {
            Ok(files) => files,
            Err(error) => {
                collector.apply_modes().await;
                return Err(error);
            }
        };
        collector.apply().await?;
        let explained = if request.explain { Some(self.explainer().explain(&context).await) } else { None };
        Ok(Fetched { files, explained })
    }

    /// Fetches the files. Returns them and the directories that were `created`, in the order of the request.
    async fn fetch_files(
        &self,
        packed: NumberedJobs,
        large: NumberedJobs,
        created: Vec<(usize, Result<Downloaded, FileError>)>,
        to: Option<&Path>,
        context: &Arc<DownloadContext>,
    ) -> Result<Vec<Downloaded>, DownloadError> {
        let fetcher = self.file_fetcher();
        let large = stream::iter(large)
            .map(|(place, job)| {
                let fetched = fetcher.fetch(job, context);
                async move { (place, fetched.await) }
            })
            .buffer_unordered(params::FILES_AT_A_TIME)
            .collect::<Vec<_>>();
        let packed = self.fetch_packed(packed, to, context);
        let (large, packed) = tokio::join!(large, packed);
        let (mut done, mut failures) = (Vec::new(), Vec::new());
        for (place, outcome) in large.into_iter().chain(packed).chain(created) {
            match outcome {
                Ok(file) => done.push((place, file)),
                Err(error) => failures.push((place, error)),
            }
        }
        if let Some(error) = DownloadError::of_files(failures) {
            return Err(error);
        }
        done.sort_by_key(|(place, _)| *place);
        Ok(done.into_iter().map(|(_, file)| file).collect())
    }

    async fn fetch_packed(
        &self,
        jobs: NumberedJobs,
        to: Option<&Path>,
        context: &Arc<DownloadContext>,
    ) -> Vec<(usize, Result<Downloaded, FileError>)> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let (places, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        let fetcher = PackFetcher {
            me: &self.me,
            share: &self.share,
            bulk: &self.bulk,
            throttle: &self.throttle,
            all_bytes: &self.stats.bytes,
        };
        let outside = to.filter(|to| to.is_dir());
        places.into_iter().zip(fetcher.fetch(jobs, outside, context.clone()).await).collect()
    }

    fn file_fetcher(&self) -> FileFetcher<'_> {
        FileFetcher {
            me: &self.me,
            share: &self.share,
            bulk: &self.bulk,
            swarms: &self.swarms,
            discovery: &self.discovery,
            throttle: &self.throttle,
            all_bytes: &self.stats.bytes,
            locks: &self.locks,
        }
    }

    fn explainer(&self) -> Explainer<'_> {
        Explainer {
            connections: &self.discovery.connections,
            limit_down: self.limit(),
            clamped_buffer: self.clamped_buffer,
        }
    }
}

impl DownloadStats {
    /// Lists a download as running until the guard is dropped.
    fn begin(&self, context: &Arc<DownloadContext>) -> RunningGuard<'_> {
        self.running().push(context.clone());
        RunningGuard { stats: self, context: context.clone() }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<DownloadContext>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A download that is listed as running.
struct RunningGuard<'a> {
    stats: &'a DownloadStats,
    context: Arc<DownloadContext>,
}

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        self.stats.running().retain(|context| !Arc::ptr_eq(context, &self.context));
    }
}
