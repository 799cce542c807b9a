//! Time profile of a running download: its own counters, those of each source, and those of the machine.

use crate::download::params;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    contact::Contact,
    content::ContentHash,
    id::PeerId,
    limits,
    net::pack::PACKS_HASH,
    time::{Clock, Timestamp},
};

use crate::diagnostics::{
    bottleneck::{Measured, Source, SourceTime},
    meter::{DownloadMeter, SourceMeter},
    system::{Machine, Sample},
};

/// Counters of one download, with marks from which intervals are measured.
pub(crate) struct DownloadProfile {
    download: Arc<DownloadMeter>,
    machine: Arc<Machine>,
    /// Contents about which sources have upload reports: the largest files that travel alone, and [`PACKS_HASH`] if
    /// there are packs.
    hashes: Vec<ContentHash>,
    sources: Mutex<BTreeMap<PeerId, (Contact, Arc<SourceMeter>)>>,
    start: Mark,
    /// The two latest marks, oldest first. The recent interval begins at the first of them.
    recent: Mutex<[Mark; 2]>,
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

impl DownloadProfile {
    /// Creates the profile of a download that begins now. `contents` holds size and hash of each file; `has_packs` is
    /// true if the small files travel in packs.
    pub(crate) fn new(machine: Arc<Machine>, mut contents: Vec<(u64, ContentHash)>, has_packs: bool) -> Self {
        contents.retain(|(size, _)| !has_packs || *size > limits::MAX_PACKED_FILE_BYTES);
        contents.sort_unstable_by(|a, b| b.cmp(a));
        let large = contents.into_iter().take(params::REPORTS_ASKED).map(|(_, hash)| hash);
        let hashes = large.chain(has_packs.then_some(PACKS_HASH)).collect();
        let start = Mark { machine: machine.sample(), ..Mark::default() };
        let recent = Mutex::new([start.clone(), start.clone()]);
        let download = DownloadMeter::new(Clock::start());
        Self { download, machine, hashes, sources: Mutex::default(), start, recent }
    }

    /// Returns the meter of one source. Each source has one meter for the whole download.
    pub(crate) fn source(&self, contact: &Contact) -> Arc<SourceMeter> {
        let mut sources = self.sources();
        if let Some((_, meter)) = sources.get(&contact.peer) {
            return meter.clone();
        }
        let meter = SourceMeter::new(self.download.clone());
        sources.insert(contact.peer.clone(), (contact.clone(), meter.clone()));
        meter
    }

    /// Contents about which sources have upload reports.
    pub(crate) fn hashes(&self) -> &[ContentHash] {
        &self.hashes
    }

    /// Sources that have received at least one request.
    pub(crate) fn requested_sources(&self) -> Vec<Contact> {
        let sources = self.sources();
        let requested = sources.values().filter(|(_, source)| source.time().requests > 0);
        requested.map(|(contact, _)| contact.clone()).collect()
    }

    /// Bytes fetched so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.download.rate().0
    }

    /// Rate of the last seconds, bytes a second.
    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.download.rate().1
    }

    /// Runs `work`, which makes a file durable, and counts its time as synchronisation.
    pub(crate) async fn count_sync<T>(&self, work: impl Future<Output = T>) -> T {
        let begun = self.download.now();
        let done = work.await;
        self.download.sync().add(self.download.now().since(begun));
        done
    }

    /// Replaces the older recent mark if the newer one is half a window old.
    pub(crate) fn mark_if_due(&self) {
        let now = self.download.now();
        let is_due = |recent: &[Mark; 2]| now.since(recent[1].at) >= crate::diagnostics::params::SHOWN_RATE_WINDOW / 2;
        if is_due(&self.recent()) {
            let mark = self.mark();
            let mut recent = self.recent();
            if is_due(&recent) {
                recent.rotate_left(1);
                recent[1] = mark;
            }
        }
    }

    /// Measurement of the whole download, without the reports of the sources.
    pub(crate) fn measured(&self) -> Measured {
        self.since(&self.start)
    }

    /// Measurement of the last seconds, without the reports of the sources.
    pub(crate) fn measured_recently(&self) -> Measured {
        let earlier = self.recent()[0].clone();
        self.since(&earlier)
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

    fn recent(&self) -> MutexGuard<'_, [Mark; 2]> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
