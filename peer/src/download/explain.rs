//! Why a download is as slow as it is: what was measured here, what its sources say, put together for
//! [`crate::diagnostics::bottleneck`].

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use shared::{
    contact::Contact,
    content::ContentHash,
    id::PeerId,
    limits,
    net::{Target, pack::PACKS_HASH},
    rpc::peer::{PeerServiceClient, UploadReport},
    time::{Clock, Timestamp},
};

use super::Run;
use crate::{
    api::{Explained, ExplainedSource, RunningDownload},
    diagnostics::{
        bottleneck::{Measured, Source, SourceTime, findings},
        meter::{DownloadMeter, SourceMeter},
        system::{Machine, Sample},
    },
    runtime::peer::{Downloads, Peer},
};

/// What is measured of one download.
pub(crate) struct RunMeter {
    download: Arc<DownloadMeter>,
    machine: Arc<Machine>,
    /// Of the largest files that have one to themselves, and of packs if there are any: what sources have reports on.
    hashes: Vec<ContentHash>,
    sources: Mutex<BTreeMap<PeerId, (Contact, Arc<SourceMeter>)>>,
    begun: Mark,
    /// How it was some seconds ago, and some more: what happens now is measured from the earlier one on.
    lately: Mutex<[Mark; 2]>,
}

/// All counters at one time.
#[derive(Clone, Default)]
struct Mark {
    at: Timestamp,
    active: Duration,
    sync: Duration,
    machine: Sample,
    sources: BTreeMap<PeerId, SourceTime>,
}

impl RunMeter {
    /// A download that begins now; `contents` are its files, with their sizes, and `packed` says whether the small ones come in packs.
    pub(crate) fn new(machine: Arc<Machine>, mut contents: Vec<(u64, ContentHash)>, packed: bool) -> Self {
        contents.retain(|(size, _)| !packed || *size > limits::MAX_PACKED_FILE_BYTES);
        contents.sort_unstable_by(|a, b| b.cmp(a));
        let large = contents.into_iter().take(limits::REPORTS_ASKED).map(|(_, hash)| hash);
        let hashes = large.chain(packed.then_some(PACKS_HASH)).collect();
        let begun = Mark { machine: machine.sample(), ..Mark::default() };
        let lately = Mutex::new([begun.clone(), begun.clone()]);
        let download = DownloadMeter::new(Clock::start());
        Self { download, machine, hashes, sources: Mutex::default(), begun, lately }
    }

    /// The meter of one source.
    pub(crate) fn source(&self, contact: &Contact) -> Arc<SourceMeter> {
        let mut sources = self.sources();
        if let Some((_, meter)) = sources.get(&contact.peer) {
            return meter.clone();
        }
        let meter = SourceMeter::new(self.download.clone());
        sources.insert(contact.peer.clone(), (contact.clone(), meter.clone()));
        meter
    }

    /// Bytes that came lately, a second.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.download.rate().1
    }

    /// Does `work`, which makes a file durable.
    pub(crate) async fn syncing<T>(&self, work: impl Future<Output = T>) -> T {
        let begun = self.download.now();
        let done = work.await;
        self.download.sync().add(self.download.now().since(begun));
        done
    }

    /// Some bytes more are there: takes note now and then of how it is.
    pub(crate) fn note(&self) {
        let now = self.download.now();
        let is_due = |lately: &[Mark; 2]| now.since(lately[1].at) >= limits::SHOWN_RATE_WINDOW / 2;
        if is_due(&self.lately()) {
            let mark = self.mark();
            let mut lately = self.lately();
            if is_due(&lately) {
                lately.rotate_left(1);
                lately[1] = mark;
            }
        }
    }

    fn mark(&self) -> Mark {
        let sources = self.sources().iter().map(|(peer, (_, meter))| (peer.clone(), meter.time())).collect();
        Mark {
            at: self.download.now(),
            active: self.download.active(),
            sync: self.download.sync().total(),
            machine: self.machine.sample(),
            sources,
        }
    }

    /// What was measured here since `earlier`; the sources have said nothing yet.
    fn since(&self, earlier: &Mark) -> Measured {
        let now = self.mark();
        let sources = self.sources();
        let source = |(peer, (_, meter)): (&PeerId, &(Contact, Arc<SourceMeter>))| {
            let before = earlier.sources.get(peer).copied().unwrap_or_default();
            let time = now.sources.get(peer).copied().unwrap_or_default().since(&before);
            (peer.clone(), Source { bytes: meter.bytes(), time, rtt: meter.rtt(), report: None })
        };
        Measured {
            elapsed: now.at.since(earlier.at),
            active: now.active.saturating_sub(earlier.active),
            sync: now.sync.saturating_sub(earlier.sync),
            machine: now.machine.report_since(&earlier.machine),
            udp_drops: now.machine.drops_since(&earlier.machine),
            sources: sources.iter().map(source).collect(),
            ..Measured::default()
        }
    }

    fn sources(&self) -> MutexGuard<'_, BTreeMap<PeerId, (Contact, Arc<SourceMeter>)>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lately(&self) -> MutexGuard<'_, [Mark; 2]> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Downloads {
    /// A download begins; it is over, whatever came of it, when what is returned is dropped.
    pub(crate) fn begins(&self, run: &Arc<Run>) -> Running<'_> {
        self.running().push(run.clone());
        Running { downloads: self, run: run.clone() }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<Run>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A download that is carried out.
pub(crate) struct Running<'a> {
    downloads: &'a Downloads,
    run: Arc<Run>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.downloads.running().retain(|run| !Arc::ptr_eq(run, &self.run));
    }
}

impl Peer {
    /// Why a download that is over took as long as it did.
    pub(crate) async fn explain(&self, pattern: &str, run: &Run) -> Explained {
        let mut measured = run.meter.since(&run.meter.begun);
        self.complete(&run.meter, &mut measured).await;
        let source = |(peer, source): (&PeerId, &Source)| ExplainedSource {
            peer: peer.clone(),
            bytes: source.bytes,
            bytes_per_second: per_second(source.bytes, source.time.streaming),
            rtt: source.report.as_ref().map(|report| report.path.rtt).filter(|rtt| !rtt.is_zero()).or(source.rtt),
        };
        let sent = measured.sources.iter().filter(|(_, source)| source.bytes > 0);
        Explained {
            name: pattern.to_owned(),
            bytes: run.meter.download.rate().0,
            seconds: measured.elapsed.as_secs_f64(),
            sources: sent.map(source).collect(),
            findings: findings(&measured),
        }
    }

    /// The downloads that run, in the order in which they began.
    pub(crate) async fn running_downloads(&self) -> Vec<RunningDownload> {
        let running = self.downloads.running().clone();
        join_all(running.into_iter().map(|run| async move {
            let earlier = run.meter.lately()[0].clone();
            let mut measured = run.meter.since(&earlier);
            self.complete(&run.meter, &mut measured).await;
            RunningDownload {
                name: run.pattern.clone(),
                bytes_done: run.bytes_done.load(Ordering::Relaxed),
                bytes_total: run.bytes_total,
                bytes_per_second: run.meter.bytes_per_second(),
                sources: u32::try_from(run.sources.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
                findings: findings(&measured),
            }
        }))
        .await
    }

    /// Adds what this peer knows of itself and what the sources say. One that does not answer in time stays unexplained.
    async fn complete(&self, meter: &RunMeter, measured: &mut Measured) {
        measured.limit_down = self.downloads.pace.bytes_per_second().map(NonZeroU64::get);
        measured.clamped_buffer = self.clamped_buffer;
        let contacts: Vec<Contact> = {
            let sources = meter.sources();
            let asked = sources.values().filter(|(_, source)| source.time().requests > 0);
            asked.map(|(contact, _)| contact.clone()).collect()
        };
        // Those with which most time passed, so that a swarm of hundreds is not asked about each of them.
        let mut contacts = contacts;
        contacts
            .sort_by_key(|contact| std::cmp::Reverse(measured.sources.get(&contact.peer).map(|of| of.time.streaming)));
        contacts.truncate(protocol::swarm::params::MAX_ACTIVE_PROVIDERS);
        let asked = contacts.iter().map(|contact| self.report_of(contact, &meter.hashes));
        for (contact, report) in contacts.iter().zip(join_all(asked).await) {
            if let Some(source) = measured.sources.get_mut(&contact.peer) {
                source.report = report;
            }
        }
    }

    async fn report_of(&self, contact: &Contact, hashes: &[ContentHash]) -> Option<UploadReport> {
        let target = Target::from(contact);
        let ask = |hash: ContentHash| {
            let call = move |peer: PeerServiceClient, cx| async move { peer.upload_report(cx, hash).await };
            self.connections.call(&target, limits::REPORT_DEADLINE, call)
        };
        let answers = join_all(hashes.iter().map(|hash| ask(*hash))).await;
        let reports = answers.into_iter().filter_map(|answer| match answer {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(%error, peer = %contact.peer, "a source does not say where the time went");
                None
            }
        });
        reports.reduce(|mut sum, report| {
            sum.uploads += report.uploads;
            sum.bytes += report.bytes;
            sum.served += report.served;
            sum.network_wait += report.network_wait;
            sum.throttle_wait += report.throttle_wait;
            sum.slot_wait += report.slot_wait;
            sum.path.sent_packets += report.path.sent_packets;
            sum.path.lost_packets += report.path.lost_packets;
            sum.path.congestion_events += report.path.congestion_events;
            sum
        })
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { (bytes as f64 / seconds) as u64 } else { 0 }
}
