//! Diagnosis of a transfer: derives from the measured times what limits it. Pure.
//!
//! The time in which requests were open is divided among the sources in proportion to their work, then by what the
//! streams of each source waited for. The time in which this peer waited for data is divided again by what the owner
//! reports.
//!
//! | cause | share of the time in which |
//! |---|---|
//! | slots of the owner | requests waited for a slot and the owner sent nothing on others |
//! | round trips | requests were sent and none was answered yet |
//! | limit of this peer | streams waited for `--limit-down` |
//! | disk of this peer | streams waited for the decoder, as far as it waited for the disk; and the final sync |
//! | processors of this peer | streams waited for the decoder otherwise; the network's time if this machine was busy |
//! | limit of the owner | streams waited for data, as far as the owner waited for `--limit-up` |
//! | disk of the owner | streams waited for data, as far as the owner had no data read |
//! | the network, divided below | streams waited for data, as far as the owner waited for the network |
//! | processors of the owner | the network's time if only the owner's machine was busy |
//! | the receive buffer | the network's time if no machine was busy and it dropped [`DROPS`] of the packets |
//! | the path | the network's time otherwise |
//! | an owner without a report | streams waited for data |
//!
//! A machine is busy if its processors are idle for at most [`BUSY_IDLE`] of the time. A cause with a share of
//! [`STANDS_OUT`] or more limits the transfer. A share below [`LISTED`] is not listed.

use std::{collections::BTreeMap, time::Duration};

use shared::{
    id::PeerId,
    rpc::peer::{MachineReport, PathReport, UploadReport},
};

/// Least share of the time of a cause that limits the transfer.
pub const STANDS_OUT: f64 = 0.3;
/// Least share of the time of a cause that is listed.
pub const LISTED: f64 = 0.1;
/// Largest idle share of the processors of a busy machine.
pub const BUSY_IDLE: f64 = 0.1;
/// Least share of dropped packets that slows a path down.
pub const DROPS: f64 = 0.001;
/// Shortest transfer with a diagnosis.
pub const SHORTEST: Duration = Duration::from_millis(20);

/// Measurement of a transfer or of a part of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// Duration.
    pub elapsed: Duration,
    /// Part of the duration in which at least one request was open.
    pub active: Duration,
    /// Time for making files durable and moving them to their destination, summed over the files.
    pub sync: Duration,
    /// Rate limit of the downloads, bytes per second.
    pub limit_down: Option<u64>,
    /// Use of the processors of this machine; `None` if the system has no counters.
    pub machine: Option<MachineReport>,
    /// UDP datagrams that the system dropped because a receive buffer was full, of all programs.
    pub udp_drops: u64,
    /// Size of the socket's receive buffer, bytes, if it is smaller than requested.
    pub clamped_buffer: Option<u64>,
    /// Sources of the transfer.
    pub sources: BTreeMap<PeerId, Source>,
}

/// Measurement of one source.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Source {
    /// Verified bytes.
    pub bytes: u64,
    /// Times measured by this peer.
    pub time: SourceTime,
    /// Round-trip time.
    pub rtt: Option<Duration>,
    /// Report of the source.
    pub report: Option<UploadReport>,
}

/// Times of one source. The first three are disjoint; the others are summed over its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceTime {
    /// Requests were open and none was accepted.
    pub opening: Duration,
    /// Requests were accepted and none received data.
    pub queued: Duration,
    /// At least one stream received data.
    pub streaming: Duration,
    /// Sum over all streams.
    pub streams: Duration,
    /// Streams waited for data.
    pub bytes_wait: Duration,
    /// Streams waited for the rate limit.
    pub throttle_wait: Duration,
    /// Decoders waited for data.
    pub decoder_wait: Duration,
    /// Decoders waited for the disk.
    pub disk_wait: Duration,
    /// Writes to the disk, by decoders or concurrently with them.
    pub disk_write: Duration,
    /// Number of requests.
    pub requests: u64,
}

impl SourceTime {
    fn at_work(&self) -> Duration {
        self.opening + self.queued + self.streaming
    }

    /// Returns the difference to an `earlier` measurement.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            opening: self.opening.saturating_sub(earlier.opening),
            queued: self.queued.saturating_sub(earlier.queued),
            streaming: self.streaming.saturating_sub(earlier.streaming),
            streams: self.streams.saturating_sub(earlier.streams),
            bytes_wait: self.bytes_wait.saturating_sub(earlier.bytes_wait),
            throttle_wait: self.throttle_wait.saturating_sub(earlier.throttle_wait),
            decoder_wait: self.decoder_wait.saturating_sub(earlier.decoder_wait),
            disk_wait: self.disk_wait.saturating_sub(earlier.disk_wait),
            disk_write: self.disk_write.saturating_sub(earlier.disk_write),
            requests: self.requests.saturating_sub(earlier.requests),
        }
    }
}

/// Cause that can limit a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The owner's `--limit-up`.
    OwnerLimit,
    /// Other receivers use the upload slots of the owner.
    OwnerSlots,
    /// The disk of the owner.
    OwnerDisk,
    /// The processors of the owner.
    OwnerCpu,
    /// The network path.
    Path,
    /// The round trips of the requests.
    RoundTrips,
    /// The receive buffer of this peer is too small.
    ReceiveBuffer,
    /// This peer's `--limit-down`.
    OwnLimit,
    /// The disk of this peer.
    OwnDisk,
    /// The processors of this peer.
    OwnCpu,
    /// The owner or the path; the owner sends no report.
    Unsaid,
}

impl Cause {
    /// Returns the code in `--json` output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnerLimit => "owner_limit",
            Self::OwnerSlots => "owner_slots",
            Self::OwnerDisk => "owner_disk",
            Self::OwnerCpu => "owner_cpu",
            Self::Path => "path",
            Self::RoundTrips => "round_trips",
            Self::ReceiveBuffer => "receive_buffer",
            Self::OwnLimit => "own_limit",
            Self::OwnDisk => "own_disk",
            Self::OwnCpu => "own_cpu",
            Self::Unsaid => "unsaid",
        }
    }
}

/// Evidence of a cause, of the source with the largest share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figure {
    /// Rate limit, bytes a second; `None` if unknown.
    Rate(Option<u64>),
    /// Upload slots of the owner, and the wait of requests for them.
    Slots {
        /// Number of upload slots; `None` if unknown.
        at_a_time: Option<u32>,
        /// Time in which requests waited and none received data.
        waited: Duration,
    },
    /// Time of waiting for a disk or writing to it.
    Time(Duration),
    /// Use of the processors; `None` if a single thread was busy and not the whole machine.
    Machine(Option<MachineReport>),
    /// Statistics of a path.
    Path(PathReport),
    /// Requests and their minimum duration.
    Requests {
        /// Number of requests.
        count: u64,
        /// Round-trip time, if known.
        rtt: Option<Duration>,
    },
    /// Dropped datagrams.
    Drops {
        /// Number of datagrams.
        count: u64,
        /// Size of the receive buffer, bytes, if it is smaller than requested.
        clamped_buffer: Option<u64>,
    },
}

/// Cause with its share of the time of a transfer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Cause.
    pub cause: Cause,
    /// Sources with this cause, largest share first. Empty for a cause of this peer.
    pub peers: Vec<PeerId>,
    /// Share of the time, 0 to 1.
    pub share: f64,
    /// Evidence.
    pub figure: Figure,
}

impl Finding {
    /// Returns true if the cause limits the transfer.
    pub fn stands_out(&self) -> bool {
        self.share >= STANDS_OUT
    }
}

/// Returns the listed causes, largest share first.
pub fn findings(measured: &Measured) -> Vec<Finding> {
    if measured.elapsed < SHORTEST {
        return Vec::new();
    }
    let mut shares = Shares::default();
    shares.add(Cause::OwnDisk, None, part(measured.sync, measured.elapsed).min(1.0), Figure::Time(measured.sync));
    let at_work: Duration = measured.sources.values().map(|source| source.time.at_work()).sum();
    let active = part(measured.active, measured.elapsed).min(1.0);
    let drops = drop_share(measured);
    for (peer, source) in &measured.sources {
        let weight = active * part(source.time.at_work(), at_work);
        of_source(measured, drops, peer, source, weight, &mut shares);
    }
    shares.findings()
}

/// Adds the causes of a source that has the share `weight` of the time of the transfer.
fn of_source(measured: &Measured, drops: f64, peer: &PeerId, source: &Source, weight: f64, shares: &mut Shares) {
    let Source { time, rtt, report, .. } = source;
    let with = Some(peer);
    let of_time = |duration| weight * part(duration, time.at_work());
    let requests = Figure::Requests { count: time.requests, rtt: *rtt };
    shares.add(Cause::RoundTrips, with, of_time(time.opening), requests);
    let slots = Figure::Slots { at_a_time: report.as_ref().map(|report| report.slots), waited: time.queued };
    shares.add(Cause::OwnerSlots, with, of_time(time.queued), slots);

    let streaming = of_time(time.streaming);
    let of_streams = |duration| streaming * part(duration, time.streams).min(1.0);
    shares.add(Cause::OwnLimit, None, of_streams(time.throttle_wait), Figure::Rate(measured.limit_down));
    // The rest is time in which the channel to the decoder was full.
    let decoder_full = time.streams.saturating_sub(time.bytes_wait + time.throttle_wait);
    let decoding = time.streams.saturating_sub(time.decoder_wait);
    let writing = part(time.disk_wait, decoding).min(1.0);
    shares.add(Cause::OwnDisk, None, of_streams(decoder_full) * writing, Figure::Time(time.disk_write));
    shares.add(Cause::OwnCpu, None, of_streams(decoder_full) * (1.0 - writing), Figure::Machine(None));

    let waiting = of_streams(time.bytes_wait);
    let Some(report) = report.as_ref().filter(|report| !report.served.is_zero()) else {
        let path = PathReport { rtt: rtt.unwrap_or_default(), ..PathReport::default() };
        return shares.add(Cause::Unsaid, with, waiting, Figure::Path(path));
    };
    let of_waiting = |duration| waiting * part(duration, report.served).min(1.0);
    let disk_wait = report.served.saturating_sub(report.throttle_wait + report.network_wait);
    shares.add(Cause::OwnerLimit, with, of_waiting(report.throttle_wait), Figure::Rate(report.limit_up));
    shares.add(Cause::OwnerDisk, with, of_waiting(disk_wait), Figure::Time(disk_wait));
    let busy = |machine: &Option<MachineReport>| {
        machine.is_some_and(|machine| f64::from(machine.idle_permille) <= BUSY_IDLE * 1000.0)
    };
    let network = of_waiting(report.network_wait);
    if busy(&measured.machine) {
        shares.add(Cause::OwnCpu, None, network, Figure::Machine(measured.machine));
    } else if busy(&report.machine) {
        shares.add(Cause::OwnerCpu, with, network, Figure::Machine(report.machine));
    } else if drops >= DROPS {
        let figure = Figure::Drops { count: measured.udp_drops, clamped_buffer: measured.clamped_buffer };
        shares.add(Cause::ReceiveBuffer, None, network, figure);
    } else {
        shares.add(Cause::Path, with, network, Figure::Path(report.path));
    }
}

/// Returns the share of the packets that this machine dropped, of those that the sources report.
fn drop_share(measured: &Measured) -> f64 {
    let reports = measured.sources.values().filter_map(|source| source.report.as_ref());
    let sent: u64 = reports.map(|report| report.path.sent_packets).sum();
    if sent == 0 { 0.0 } else { measured.udp_drops as f64 / sent as f64 }
}

/// Returns `of / whole`, or 0 if `whole` is zero.
fn part(of: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { of.as_secs_f64() / whole.as_secs_f64() }
}

/// Shares of the time by cause and source.
#[derive(Default)]
struct Shares(BTreeMap<Cause, Vec<(f64, Option<PeerId>, Figure)>>);

impl Shares {
    fn add(&mut self, cause: Cause, with: Option<&PeerId>, share: f64, figure: Figure) {
        self.0.entry(cause).or_default().push((share, with.cloned(), figure));
    }

    fn findings(self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self
            .0
            .into_iter()
            .filter_map(|(cause, mut parts)| {
                let share: f64 = parts.iter().map(|(share, ..)| share).sum();
                parts.sort_by(|a, b| b.0.total_cmp(&a.0));
                let &(_, _, figure) = parts.first()?;
                // A source with a negligible part of the cause is not named.
                let named = parts.iter().filter(|(part, ..)| *part >= LISTED * share);
                let peers = named.filter_map(|(_, peer, _)| peer.clone()).collect();
                (share >= LISTED).then_some(Finding { cause, peers, share: share.min(1.0), figure })
            })
            .collect();
        findings.sort_by(|a, b| b.share.total_cmp(&a.share));
        findings
    }
}

#[cfg(test)]
mod tests;
