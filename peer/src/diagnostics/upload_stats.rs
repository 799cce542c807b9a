//! Statistics of recent uploads by receiver and content. Bounded: the least recently used entries are removed.

use crate::diagnostics::params;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use shared::{
    content::ContentHash,
    id::PeerId,
    rpc::peer::{PathReport, UploadReport},
    time::{Clock, Timestamp},
};

use super::{
    meter::UploadMeter,
    system::{Machine, Sample},
};

/// Statistics of the uploads of one peer.
#[derive(Debug)]
pub struct UploadStats {
    clock: Clock,
    machine: Arc<Machine>,
    slots: u32,
    peers: Mutex<HashMap<PeerId, Vec<ContentStats>>>,
}

/// Statistics of the uploads of one content to one peer.
#[derive(Debug)]
struct ContentStats {
    hash: ContentHash,
    /// Time of the last start or end of an upload.
    used: Timestamp,
    running: u32,
    uploads: u64,
    meter: Arc<UploadMeter>,
    path: PathReport,
    /// Samples at the start of the first upload and at the end of the last.
    machine: (Sample, Sample),
}

/// Upload in progress, recorded as ended on drop.
pub struct ActiveUpload {
    stats: Arc<UploadStats>,
    peer: PeerId,
    hash: ContentHash,
    connection: quinn::Connection,
    /// Path statistics at the start of the upload.
    before: quinn::PathStats,
    /// Receives the times of the upload.
    pub meter: Arc<UploadMeter>,
}

impl UploadStats {
    /// Creates empty statistics of a peer with `slots` upload slots.
    pub fn new(machine: Arc<Machine>, slots: usize) -> Arc<Self> {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        Arc::new(Self { clock: Clock::start(), machine, slots, peers: Mutex::default() })
    }

    /// Clock of the measurements.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Records the start of an upload to `peer`.
    pub fn begin(self: &Arc<Self>, peer: &PeerId, hash: ContentHash, connection: &quinn::Connection) -> ActiveUpload {
        let meter = self.begin_at(self.clock.now(), peer, hash);
        let before = connection.stats().path;
        let (stats, peer, connection) = (self.clone(), peer.clone(), connection.clone());
        ActiveUpload { stats, peer, hash, connection, before, meter }
    }

    fn begin_at(&self, now: Timestamp, peer: &PeerId, hash: ContentHash) -> Arc<UploadMeter> {
        let sample = self.machine.sample();
        let mut peers = self.peers();
        if !peers.contains_key(peer)
            && peers.len() >= params::MAX_REPORTED_PEERS
            && let Some(oldest) = peers.iter().min_by_key(|(_, of)| last_use(of)).map(|(peer, _)| peer.clone())
        {
            peers.remove(&oldest);
        }
        let of_peer = peers.entry(peer.clone()).or_default();
        let is_over = |known: &ContentStats| known.running == 0 && now.since(known.used) > params::REPORT_PAUSE;
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
        if of_peer.len() >= params::MAX_REPORTS_PER_PEER {
            of_peer.remove(0);
        }
        let meter = known.meter.clone();
        // Sorted by last use.
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

    /// Returns the statistics of the uploads of a content to `peer`. `limit_up` is the current rate limit, bytes per
    /// second.
    pub fn report(&self, peer: &PeerId, hash: &ContentHash, limit_up: Option<u64>) -> Option<UploadReport> {
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
        self.stats.end_at(self.stats.clock.now(), &self.peer, self.hash, &self.before, &path);
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

    fn end(stats: &UploadStats, now: Timestamp, peer: &PeerId, hash: ContentHash) {
        let none = quinn::PathStats::default();
        let mut some = none;
        (some.sent_packets, some.lost_packets, some.cwnd) = (10, 1, 14_000);
        stats.end_at(now, peer, hash, &none, &some);
    }

    #[test]
    fn uploads_within_the_pause_share_one_report_and_a_later_one_starts_a_new_report() {
        let stats = UploadStats::new(Arc::default(), 8);
        let me = peer(1);
        for second in [1, 2, 6] {
            let meter = stats.begin_at(at(second), &me, hash(1));
            meter.served.add(Duration::from_secs(1));
            meter.sending.add(Duration::from_millis(900));
            meter.network_wait.add(Duration::from_millis(100));
            end(&stats, at(second), &me, hash(1));
        }
        let report = stats.report(&me, &hash(1), Some(1000)).unwrap();
        assert_eq!((report.uploads, report.served, report.slots), (3, Duration::from_secs(3), 8));
        assert_eq!(
            (report.throttle_wait, report.network_wait),
            (Duration::from_millis(2400), Duration::from_millis(300))
        );
        assert_eq!((report.path.sent_packets, report.path.lost_packets, report.path.window_bytes), (30, 3, 14_000));
        assert_eq!(
            stats.report(&me, &hash(1), None).unwrap().throttle_wait,
            Duration::ZERO,
            "an unlimited upload waited for the limit"
        );
        stats.begin_at(at(60), &me, hash(1));
        assert_eq!(stats.report(&me, &hash(1), None).unwrap().uploads, 1);
    }

    #[test]
    fn report_covers_only_the_uploads_to_its_peer() {
        let stats = UploadStats::new(Arc::default(), 8);
        stats.begin_at(at(1), &peer(1), hash(1));
        assert_eq!(stats.report(&peer(2), &hash(1), None), None);
        assert_eq!(stats.report(&peer(1), &hash(2), None), None);
    }

    #[test]
    fn statistics_over_the_limit_replace_the_least_recently_used() {
        let stats = UploadStats::new(Arc::default(), 8);
        for number in 0..params::MAX_REPORTED_PEERS * 2 {
            let second = number as u64;
            for fill in 0..=params::MAX_REPORTS_PER_PEER as u8 {
                stats.begin_at(at(second), &peer(number), hash(fill));
            }
        }
        let peers = stats.peers();
        assert_eq!(peers.len(), params::MAX_REPORTED_PEERS);
        assert!(peers.values().all(|of| of.len() == params::MAX_REPORTS_PER_PEER));
        drop(peers);
        let last = peer(params::MAX_REPORTED_PEERS * 2 - 1);
        assert!(stats.report(&last, &hash(params::MAX_REPORTS_PER_PEER as u8), None).is_some());
        assert!(stats.report(&last, &hash(0), None).is_none());
    }
}
