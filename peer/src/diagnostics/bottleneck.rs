//! Why a transfer is as slow as it is: from where its time went to what limits it. Pure.
//!
//! The time in which anything was under way is divided among the sources by how long each was at work, then by what its
//! streams waited for. What this peer waited for bytes is divided once more by what the owner says that it waited for.
//!
//! | cause | share of the time in which |
//! |---|---|
//! | the owner's slots | requests waited for their turn and none of that owner was being served |
//! | round trips | requests had been sent and none was answered yet |
//! | this peer's cap | streams waited for `--limit-down` |
//! | this peer's disk | streams waited for the decoder, by the part of its time in which it waited for what it had given to be written; and the sync at the end |
//! | this peer's processors | streams waited for the decoder, by the rest of its time; the network's time (below) when this machine was at most [`BUSY_IDLE`] idle |
//! | the owner's cap | streams waited for bytes, by the part in which the owner waited for `--limit-up` |
//! | the owner's disk | ..., by the part in which the owner had nothing read to send |
//! | the network | ..., by the part in which the network took no more from the owner |
//! | the owner's processors | the network's time when the owner's machine was at most [`BUSY_IDLE`] idle and this one was not |
//! | the receive buffer | the network's time when [`DROPS`] of the packets were dropped for want of it, and no processor was busy |
//! | the path | the network's time otherwise |
//! | an owner that does not say | streams waited for bytes, when it gave no report |
//!
//! What has [`STANDS_OUT`] of the time or more limits the transfer; less than [`LISTED`] is not worth a line.

use std::{collections::BTreeMap, time::Duration};

use shared::{
    id::PeerId,
    rpc::peer::{MachineReport, PathReport, UploadReport},
};

/// Share of the time from which on a cause limits the transfer.
pub const STANDS_OUT: f64 = 0.3;
/// Share of the time from which on a cause is listed.
pub const LISTED: f64 = 0.1;
/// A machine whose processors are idle for this share of the time or less is busy.
pub const BUSY_IDLE: f64 = 0.1;
/// Share of the packets from which on dropped ones slow a path down.
pub const DROPS: f64 = 0.001;
/// Transfers shorter than this are over before anything is known of them.
pub const SHORTEST: Duration = Duration::from_millis(20);

/// Where the time of a transfer, or of a part of it, went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Measured {
    /// How long it took.
    pub elapsed: Duration,
    /// Of that, some request was under way.
    pub active: Duration,
    /// Files were made durable and put in their place; summed over files.
    pub sync: Duration,
    /// The cap on what comes in, bytes a second.
    pub limit_down: Option<u64>,
    /// This machine; `None` where the system does not say.
    pub machine: Option<MachineReport>,
    /// Datagrams that the system dropped because a receive buffer was full. It counts all programs.
    pub udp_drops: u64,
    /// The socket's receive buffer in bytes, when the system gave less than was asked for.
    pub clamped_buffer: Option<u64>,
    /// Who sent.
    pub sources: BTreeMap<PeerId, Source>,
}

/// What was measured of one source.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Source {
    /// Bytes proven of it.
    pub bytes: u64,
    /// The time with it, as this peer measured it.
    pub time: SourceTime,
    /// Round-trip time.
    pub rtt: Option<Duration>,
    /// What it says itself.
    pub report: Option<UploadReport>,
}

/// Times with one source. The first three exclude each other; the others are summed over its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceTime {
    /// Something was asked of it and nothing accepted.
    pub opening: Duration,
    /// Something was accepted and nothing was served.
    pub queued: Duration,
    /// At least one stream ran.
    pub streaming: Duration,
    /// Of all streams together.
    pub streams: Duration,
    /// Streams waited for bytes.
    pub bytes_wait: Duration,
    /// Streams waited for the cap.
    pub throttle_wait: Duration,
    /// Decoders waited for bytes.
    pub decoder_wait: Duration,
    /// Decoders waited for the disk.
    pub disk_wait: Duration,
    /// The disk was written to, by decoders or while they went on.
    pub disk_write: Duration,
    /// Requests made.
    pub requests: u64,
}

impl SourceTime {
    fn at_work(&self) -> Duration {
        self.opening + self.queued + self.streaming
    }

    /// What passed since `earlier`.
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

/// What can limit a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The owner's `--limit-up`.
    OwnerLimit,
    /// The owner serves others first.
    OwnerSlots,
    /// The owner reads too slowly.
    OwnerDisk,
    /// The owner's processors.
    OwnerCpu,
    /// The way between the two.
    Path,
    /// Asking takes longer than sending.
    RoundTrips,
    /// This peer's socket buffer is too small.
    ReceiveBuffer,
    /// This peer's `--limit-down`.
    OwnLimit,
    /// This peer writes too slowly.
    OwnDisk,
    /// This peer's processors.
    OwnCpu,
    /// The owner, or the way from it: it does not say.
    Unsaid,
}

impl Cause {
    /// As scripts know it.
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

/// The figure that shows a cause: of the source where it weighs most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figure {
    /// A cap, bytes a second; `None` when it was not told.
    Rate(Option<u64>),
    /// Uploads at a time, and how long requests waited for their turn.
    Slots {
        /// Uploads that the owner serves at a time; `None` when it did not tell.
        at_a_time: Option<u32>,
        /// How long nothing of it was served while requests waited.
        waited: Duration,
    },
    /// A time: waiting for a disk, or writing to it.
    Time(Duration),
    /// Processors; `None` when it is a thread's work that took the time, not the machine that was busy.
    Machine(Option<MachineReport>),
    /// A path, and the round-trip time that this peer knows.
    Path(PathReport),
    /// Requests, and what each waits at least.
    Requests {
        /// How many.
        count: u64,
        /// Round-trip time, if known.
        rtt: Option<Duration>,
    },
    /// Datagrams dropped, and the buffer's size if it is smaller than was asked for.
    Drops {
        /// How many.
        count: u64,
        /// Bytes.
        clamped_buffer: Option<u64>,
    },
}

/// One thing that took a transfer's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What.
    pub cause: Cause,
    /// With which sources, that where it weighs most first; none when it is this peer's own matter.
    pub peers: Vec<PeerId>,
    /// Share of the time, 0 to 1.
    pub share: f64,
    /// What shows it.
    pub figure: Figure,
}

impl Finding {
    /// Whether it limits the transfer.
    pub fn stands_out(&self) -> bool {
        self.share >= STANDS_OUT
    }
}

/// What took the time, the most first; empty when nothing is worth a line.
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

/// Adds the causes of one source, which has `weight` of the transfer's time.
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
    // What is neither of both is time in which the channel to the decoder was full.
    let room_wait = time.streams.saturating_sub(time.bytes_wait + time.throttle_wait);
    let decoding = time.streams.saturating_sub(time.decoder_wait);
    let writing = part(time.disk_wait, decoding).min(1.0);
    shares.add(Cause::OwnDisk, None, of_streams(room_wait) * writing, Figure::Time(time.disk_write));
    shares.add(Cause::OwnCpu, None, of_streams(room_wait) * (1.0 - writing), Figure::Machine(None));

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

/// Share of the packets that were dropped here, as far as those sent are known.
fn drop_share(measured: &Measured) -> f64 {
    let reports = measured.sources.values().filter_map(|source| source.report.as_ref());
    let sent: u64 = reports.map(|report| report.path.sent_packets).sum();
    if sent == 0 { 0.0 } else { measured.udp_drops as f64 / sent as f64 }
}

/// `of / whole`, 0 when there is no whole.
fn part(of: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { of.as_secs_f64() / whole.as_secs_f64() }
}

/// Shares of the time, by cause and source.
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
                // A source that has next to no part in it is not to be looked at.
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
