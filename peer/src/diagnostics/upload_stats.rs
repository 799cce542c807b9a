//! What this peer can say of its uploads: where their time went, for each peer and content. Bounded; the oldest are
//! forgotten.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use shared::{
    content::ContentHash,
    id::PeerId,
    limits,
    rpc::peer::{PathReport, UploadReport},
    time::{Clock, Timestamp},
};

use super::{
    meter::UploadMeter,
    system::{Machine, Sample},
};

/// The uploads that are remembered.
#[derive(Debug)]
pub struct UploadStats {
    clock: Clock,
    machine: Arc<Machine>,
    slots: u32,
    peers: Mutex<HashMap<PeerId, Vec<ContentStats>>>,
}

/// Uploads of one content to one peer.
#[derive(Debug)]
struct ContentStats {
    hash: ContentHash,
    /// When one last began or ended.
    used: Timestamp,
    running: u32,
    uploads: u64,
    meter: Arc<UploadMeter>,
    path: PathReport,
    /// When the first began, and when the last ended.
    machine: (Sample, Sample),
}

/// An upload that runs; it is over when this is dropped.
pub struct ActiveUpload {
    reports: Arc<UploadStats>,
    peer: PeerId,
    hash: ContentHash,
    connection: quinn::Connection,
    before: quinn::PathStats,
    /// Where its time is counted.
    pub meter: Arc<UploadMeter>,
}

impl UploadStats {
    /// Nothing to remember yet; `slots` is how many uploads this peer serves at a time.
    pub fn new(machine: Arc<Machine>, slots: usize) -> Arc<Self> {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        Arc::new(Self { clock: Clock::start(), machine, slots, peers: Mutex::default() })
    }

    /// The clock for what is counted.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// An upload to `peer` begins.
    pub fn begin(self: &Arc<Self>, peer: &PeerId, hash: ContentHash, connection: &quinn::Connection) -> ActiveUpload {
        let meter = self.begin_at(self.clock.now(), peer, hash);
        let before = connection.stats().path;
        let (reports, peer, connection) = (self.clone(), peer.clone(), connection.clone());
        ActiveUpload { reports, peer, hash, connection, before, meter }
    }

    fn begin_at(&self, now: Timestamp, peer: &PeerId, hash: ContentHash) -> Arc<UploadMeter> {
        let sample = self.machine.sample();
        let mut peers = self.peers();
        if !peers.contains_key(peer)
            && peers.len() >= limits::MAX_REPORTED_PEERS
            && let Some(oldest) = peers.iter().min_by_key(|(_, of)| last_use(of)).map(|(peer, _)| peer.clone())
        {
            peers.remove(&oldest);
        }
        let of_peer = peers.entry(peer.clone()).or_default();
        let is_over = |known: &ContentStats| known.running == 0 && now.since(known.used) > limits::REPORT_PAUSE;
        of_peer.retain(|known| known.hash != hash || !is_over(known));
        let known = match of_peer.iter().position(|known| known.hash == hash) {
            Some(place) => of_peer.remove(place),
            None => ContentStats {
                hash,
                used: now,
                running: 0,
                uploads: 0,
                meter: Arc::default(),
                path: PathReport::default(),
                machine: (sample, sample),
            },
        };
        if of_peer.len() >= limits::MAX_REPORTS_PER_PEER {
            of_peer.remove(0);
        }
        let meter = known.meter.clone();
        // The latest is the last.
        of_peer.push(ContentStats { used: now, running: known.running + 1, uploads: known.uploads + 1, ..known });
        meter
    }

    fn end_at(
        &self,
        now: Timestamp,
        peer: &PeerId,
        hash: ContentHash,
        before: &quinn::PathStats,
        path: &quinn::PathStats,
    ) {
        let sample = self.machine.sample();
        let mut peers = self.peers();
        let of_peer = peers.get_mut(peer).into_iter().flatten();
        for known in of_peer.filter(|known| known.hash == hash) {
            known.running = known.running.saturating_sub(1);
            known.used = now;
            known.machine.1 = sample;
            let PathReport { sent_packets, lost_packets, congestion_events, .. } = known.path;
            known.path = PathReport {
                rtt: path.rtt,
                window_bytes: path.cwnd,
                sent_packets: sent_packets + path.sent_packets.saturating_sub(before.sent_packets),
                lost_packets: lost_packets + path.lost_packets.saturating_sub(before.lost_packets),
                congestion_events: congestion_events + path.congestion_events.saturating_sub(before.congestion_events),
                datagram_bytes: path.current_mtu,
            };
        }
    }

    /// What is remembered of the uploads of a content to `peer`.
    pub fn of(&self, peer: &PeerId, hash: &ContentHash, limit_up: Option<u64>) -> Option<UploadReport> {
        let now = self.machine.sample();
        let peers = self.peers();
        let known = peers.get(peer)?.iter().find(|known| known.hash == *hash)?;
        let meter = &known.meter;
        let (sending, network_wait) = (meter.sending.total(), meter.network_wait.total());
        let until = if known.running > 0 { now } else { known.machine.1 };
        Some(UploadReport {
            uploads: known.uploads,
            bytes: meter.bytes.load(Ordering::Relaxed),
            served: meter.served.total(),
            network_wait,
            throttle_wait: if limit_up.is_some() { sending.saturating_sub(network_wait) } else { Default::default() },
            slot_wait: meter.slot_wait.total(),
            limit_up,
            slots: self.slots,
            path: known.path,
            machine: until.report_since(&known.machine.0),
        })
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<PeerId, Vec<ContentStats>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn last_use(of_peer: &[ContentStats]) -> Timestamp {
    of_peer.iter().map(|known| known.used).max().unwrap_or_default()
}

impl Drop for ActiveUpload {
    fn drop(&mut self) {
        let path = self.connection.stats().path;
        self.reports.end_at(self.reports.clock.now(), &self.peer, self.hash, &self.before, &path);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_secs(seconds))
    }

    fn hash(fill: u8) -> ContentHash {
        ContentHash([fill; 32])
    }

    fn peer(number: usize) -> PeerId {
        format!("p{number}").parse().unwrap()
    }

    fn end(reports: &UploadStats, now: Timestamp, peer: &PeerId, hash: ContentHash) {
        let none = quinn::PathStats::default();
        let mut some = none;
        (some.sent_packets, some.lost_packets, some.cwnd) = (10, 1, 14_000);
        reports.end_at(now, peer, hash, &none, &some);
    }

    #[test]
    fn uploads_of_one_download_are_one_report_and_a_later_one_begins_anew() {
        let reports = UploadStats::new(Arc::default(), 8);
        let me = peer(1);
        for second in [1, 2, 6] {
            let meter = reports.begin_at(at(second), &me, hash(1));
            meter.served.add(Duration::from_secs(1));
            meter.sending.add(Duration::from_millis(900));
            meter.network_wait.add(Duration::from_millis(100));
            end(&reports, at(second), &me, hash(1));
        }
        let report = reports.of(&me, &hash(1), Some(1000)).unwrap();
        assert_eq!((report.uploads, report.served, report.slots), (3, Duration::from_secs(3), 8));
        assert_eq!(
            (report.throttle_wait, report.network_wait),
            (Duration::from_millis(2400), Duration::from_millis(300))
        );
        assert_eq!((report.path.sent_packets, report.path.lost_packets, report.path.window_bytes), (30, 3, 14_000));
        assert_eq!(
            reports.of(&me, &hash(1), None).unwrap().throttle_wait,
            Duration::ZERO,
            "without a cap nothing waits for it"
        );
        reports.begin_at(at(60), &me, hash(1));
        assert_eq!(reports.of(&me, &hash(1), None).unwrap().uploads, 1);
    }

    #[test]
    fn a_peer_is_told_of_its_own_uploads_only() {
        let reports = UploadStats::new(Arc::default(), 8);
        reports.begin_at(at(1), &peer(1), hash(1));
        assert_eq!(reports.of(&peer(2), &hash(1), None), None);
        assert_eq!(reports.of(&peer(1), &hash(2), None), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_latest_stays() {
        let reports = UploadStats::new(Arc::default(), 8);
        for number in 0..limits::MAX_REPORTED_PEERS * 2 {
            let second = number as u64;
            for fill in 0..=limits::MAX_REPORTS_PER_PEER as u8 {
                reports.begin_at(at(second), &peer(number), hash(fill));
            }
        }
        let peers = reports.peers();
        assert_eq!(peers.len(), limits::MAX_REPORTED_PEERS);
        assert!(peers.values().all(|of| of.len() == limits::MAX_REPORTS_PER_PEER));
        drop(peers);
        let last = peer(limits::MAX_REPORTED_PEERS * 2 - 1);
        assert!(reports.of(&last, &hash(limits::MAX_REPORTS_PER_PEER as u8), None).is_some());
        assert!(reports.of(&last, &hash(0), None).is_none());
    }
}
