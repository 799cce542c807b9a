//! Faults and user operations with their times, drawn from a seed. Pure: the same seed gives the same plan.
//!
//! The effect of a plan depends on the machine and on which peer is the tracker at the time.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    impairment::{Impairment, LinkQuality},
    topology::{Host, NAMESERVER_HOST, PeerIndex, host_of},
};

/// Mean time between two faults in a network of [`REFERENCE_PEERS`].
const FAULT_INTERVAL: Duration = Duration::from_millis(1800);
/// Mean time between two operations in a network of [`REFERENCE_PEERS`].
const OPERATION_INTERVAL: Duration = Duration::from_millis(300);
/// Network size that the intervals refer to. The rates of faults and operations are proportional to the number of
/// peers.
const REFERENCE_PEERS: usize = 12;
/// Distinct file names. There are few of them, so that a name has several versions and is written repeatedly.
const NAMES: u64 = 60;
/// One name in this many lies in a subdirectory.
const NESTED: u64 = 4;
/// At most one peer in this many is killed, frozen or isolated at a time, so that a majority exists now and then.
const MAX_DISTURBED_FRACTION: usize = 3;

/// Size of a plan.
#[derive(Debug, Clone, Copy)]
pub struct PlanConfig {
    /// Number of peers.
    pub peers: usize,
    /// Time by which every fault has ended.
    pub duration: Duration,
    /// Allows network faults.
    pub network_faults: bool,
}

/// Process that a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// This peer.
    Peer(PeerIndex),
    /// The tracker at the time of the fault.
    Tracker,
}

/// Kind of a fault.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// `SIGKILL`, then a restart with the same state.
    Kill(Target),
    /// `SIGSTOP`, then `SIGCONT`.
    Freeze(Target),
    /// A partition of this process alone.
    Isolate(Target),
    /// An impairment of the network.
    Network(Impairment),
    /// `SIGKILL` of the nameserver, then a restart with the same state.
    KillNameserver,
}

/// Scheduled fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Start, from the start of the round.
    pub at: Duration,
    /// Duration.
    pub lasts: Duration,
    /// Kind of the fault.
    pub kind: FaultKind,
}

/// Way in which a file is written or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A command of the peer.
    Command,
    /// A rename into the share, or an unlink in it.
    Filesystem,
    /// A write over the existing file.
    InPlace,
}

/// User operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Writes a new file or a new version of an existing one.
    Write {
        /// Name in the share.
        name: String,
        /// Number of the content, see [`content`].
        content: u64,
        /// Size, bytes.
        size: usize,
        /// Way of writing.
        method: Method,
    },
    /// Removes one of the files that the share holds at the time.
    Remove {
        /// Random number that selects the file.
        draw: u64,
        /// Way of removal.
        method: Method,
    },
    /// Downloads one of the files that were published by then.
    Download {
        /// Random number that selects the file.
        draw: u64,
        /// Downloads into the share instead of a path outside it.
        into_share: bool,
    },
    /// Forces an election.
    Elect,
}

/// Scheduled user operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledOperation {
    /// Start, from the start of the round.
    pub at: Duration,
    /// Peer that carries it out.
    pub peer: PeerIndex,
    /// The operation.
    pub operation: Operation,
}

/// Faults and operations of one round, each list ordered by time.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Scheduled faults.
    pub faults: Vec<Fault>,
    /// Scheduled operations.
    pub operations: Vec<ScheduledOperation>,
}

impl Plan {
    /// Draws the plan of a seed.
    pub fn new(seed: u64, config: PlanConfig) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let faults = draw_faults(&mut rng.fork(), config);
        Self { faults, operations: draw_operations(&mut rng, config) }
    }
}

impl FaultKind {
    /// Label under which the report counts the fault.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Kill(Target::Peer(_)) => "peer killed",
            Self::Kill(Target::Tracker) => "tracker killed",
            Self::Freeze(Target::Peer(_)) => "peer frozen",
            Self::Freeze(Target::Tracker) => "tracker frozen",
            Self::Isolate(Target::Peer(_)) => "peer isolated",
            Self::Isolate(Target::Tracker) => "tracker isolated",
            Self::Network(Impairment::Partition(_)) => "partition",
            Self::Network(Impairment::OneWayCut(..)) => "one-way cut",
            Self::Network(Impairment::Degraded(_)) => "loss, delay, reordering, duplicates",
            Self::KillNameserver => "nameserver killed",
        }
    }
}

/// Returns the content of this number: pseudorandom bytes.
pub fn content(number: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Draws a write.
pub fn draw_write(rng: &mut fastrand::Rng) -> Operation {
    let method = [Method::Command, Method::Filesystem, Method::InPlace][rng.usize(..3)];
    let number = rng.u64(..NAMES);
    // `add` takes a file's name and cannot put it into a subdirectory.
    let name = match number % NESTED {
        0 if method != Method::Command => format!("d{}/f{number}.bin", number % 3),
        _ => format!("f{number}.bin"),
    };
    let size = match rng.u8(..100) {
        0..5 => 0,
        5..60 => rng.usize(1..16 << 10),
        60..90 => rng.usize(16 << 10..1 << 20),
        90..99 => rng.usize(1 << 20..6 << 20),
        _ => rng.usize(6 << 20..24 << 20),
    };
    Operation::Write { name, content: rng.u64(..), size, method }
}

fn draw_faults(rng: &mut fastrand::Rng, config: PlanConfig) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += gap(rng, FAULT_INTERVAL, config.peers);
        if at >= config.duration {
            return faults;
        }
        let kind = draw_kind(rng, config);
        let lasts = draw_duration(rng, &kind).min(config.duration - at);
        let active: Vec<&FaultKind> =
            faults.iter().filter(|fault| fault.at + fault.lasts >= at).map(|fault| &fault.kind).collect();
        if is_compatible(&kind, &active, config.peers) {
            faults.push(Fault { at, lasts, kind });
        }
    }
}

fn draw_kind(rng: &mut fastrand::Rng, config: PlanConfig) -> FaultKind {
    let target = |rng: &mut fastrand::Rng| match rng.u8(..10) {
        // A uniform draw of twelve peers would hit the tracker too rarely.
        0..3 => Target::Tracker,
        _ => Target::Peer(rng.usize(..config.peers)),
    };
    match rng.u8(..if config.network_faults { 100 } else { 55 }) {
        0..25 => FaultKind::Kill(target(rng)),
        25..45 => FaultKind::Freeze(target(rng)),
        45..55 => FaultKind::KillNameserver,
        55..65 => FaultKind::Isolate(target(rng)),
        65..78 => FaultKind::Network(Impairment::Partition(draw_hosts(rng, config.peers))),
        78..90 => {
            let from = draw_hosts(rng, config.peers);
            let to = draw_hosts(rng, config.peers).difference(&from).copied().collect();
            FaultKind::Network(Impairment::OneWayCut(from, to))
        }
        _ => FaultKind::Network(Impairment::Degraded(LinkQuality {
            loss: rng.f64() * 0.2,
            duplication: rng.f64() * 0.1,
            delay: Duration::from_millis(rng.u64(0..40)),
            jitter: Duration::from_millis(rng.u64(0..40)),
        })),
    }
}

/// Draws one host or several, the nameserver's possibly among them.
fn draw_hosts(rng: &mut fastrand::Rng, peers: usize) -> BTreeSet<Host> {
    let all = peers + 1;
    let count = if rng.bool() { 1 } else { rng.usize(1..=all / 2) };
    let mut hosts: Vec<Host> = (0..peers).map(host_of).chain([NAMESERVER_HOST]).collect();
    rng.shuffle(&mut hosts);
    hosts.into_iter().take(count).collect()
}

fn draw_duration(rng: &mut fastrand::Rng, kind: &FaultKind) -> Duration {
    let (min_ms, max_ms) = match kind {
        FaultKind::Kill(_) => (50, 6_000),
        // From a pause below every failure detector's threshold to one that looks like a crash.
        FaultKind::Freeze(_) => (100, 6_000),
        FaultKind::Isolate(_) => (300, 8_000),
        FaultKind::Network(Impairment::Degraded(_)) => (3_000, 15_000),
        FaultKind::Network(_) => (300, 8_000),
        FaultKind::KillNameserver => (100, 8_000),
    };
    // Log-uniform: every order of magnitude is equally likely.
    let (min, max) = (f64::from(min_ms), f64::from(max_ms));
    Duration::from_secs_f64(min * (max / min).powf(rng.f64()) / 1000.0)
}

/// Returns whether a fault may begin while others are active.
fn is_compatible(kind: &FaultKind, active: &[&FaultKind], peers: usize) -> bool {
    let target = |kind: &FaultKind| match kind {
        FaultKind::Kill(target) | FaultKind::Freeze(target) | FaultKind::Isolate(target) => Some(*target),
        FaultKind::Network(_) | FaultKind::KillNameserver => None,
    };
    match kind {
        FaultKind::KillNameserver => !active.iter().any(|other| matches!(other, FaultKind::KillNameserver)),
        FaultKind::Network(_) => true,
        _ => {
            let disturbed: Vec<_> = active.iter().filter_map(|other| target(other)).collect();
            disturbed.len() < (peers / MAX_DISTURBED_FRACTION).max(1)
                && target(kind).is_some_and(|target| !disturbed.contains(&target))
        }
    }
}

fn draw_operations(rng: &mut fastrand::Rng, config: PlanConfig) -> Vec<ScheduledOperation> {
    let mut operations = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += gap(rng, OPERATION_INTERVAL, config.peers);
        if at >= config.duration {
            return operations;
        }
        operations.push(ScheduledOperation { at, peer: rng.usize(..config.peers), operation: draw_operation(rng) });
    }
}

fn draw_operation(rng: &mut fastrand::Rng) -> Operation {
    match rng.u8(..100) {
        0..30 => draw_write(rng),
        30..42 => {
            let draw = rng.u64(..);
            Operation::Remove { draw, method: if rng.bool() { Method::Command } else { Method::Filesystem } }
        }
        42..98 => Operation::Download { draw: rng.u64(..), into_share: rng.u8(..10) < 6 },
        _ => Operation::Elect,
    }
}

/// Draws the time to the next event of a Poisson process.
fn gap(rng: &mut fastrand::Rng, mean: Duration, peers: usize) -> Duration {
    let mean = mean.as_secs_f64() * REFERENCE_PEERS as f64 / peers as f64;
    Duration::from_secs_f64(-(1.0 - rng.f64()).ln() * mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: PlanConfig = PlanConfig { peers: 12, duration: Duration::from_secs(600), network_faults: true };

    #[test]
    fn same_seed_gives_same_plan_and_other_seed_another() {
        assert_eq!(Plan::new(1, CONFIG), Plan::new(1, CONFIG));
        assert_ne!(Plan::new(1, CONFIG), Plan::new(2, CONFIG));
    }

    #[test]
    fn long_plan_has_every_fault_kind_and_ends_in_time() {
        let plan = Plan::new(3, CONFIG);
        let labels: BTreeSet<_> = plan.faults.iter().map(|fault| fault.kind.label()).collect();
        assert_eq!(labels.len(), 10, "{labels:?}");
        assert!(plan.faults.iter().all(|fault| fault.at + fault.lasts <= CONFIG.duration));
        assert!(plan.faults.is_sorted_by_key(|fault| fault.at));
        assert!(plan.operations.is_sorted_by_key(|operation| operation.at));
    }

    #[test]
    fn plan_disturbs_at_most_a_third_of_the_peers_at_a_time() {
        for seed in 0..20 {
            let plan = Plan::new(seed, CONFIG);
            for fault in &plan.faults {
                let active = plan.faults.iter().filter(|other| {
                    matches!(other.kind, FaultKind::Kill(_) | FaultKind::Freeze(_) | FaultKind::Isolate(_))
                        && (other.at..=other.at + other.lasts).contains(&fault.at)
                });
                assert!(active.count() <= CONFIG.peers / MAX_DISTURBED_FRACTION);
            }
        }
    }

    #[test]
    fn plan_without_testbed_has_no_network_faults() {
        let plan = Plan::new(4, PlanConfig { network_faults: false, ..CONFIG });
        let is_process_fault =
            |kind: &FaultKind| matches!(kind, FaultKind::Kill(_) | FaultKind::Freeze(_) | FaultKind::KillNameserver);
        assert!(!plan.faults.is_empty() && plan.faults.iter().all(|fault| is_process_fault(&fault.kind)));
    }

    #[test]
    fn write_by_command_names_no_subdirectory() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..1000 {
            if let Operation::Write { name, method, .. } = draw_write(&mut rng) {
                assert!(method != Method::Command || !name.contains('/'), "{name}");
            }
        }
    }
}
