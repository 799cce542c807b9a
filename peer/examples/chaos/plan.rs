//! What shall happen and when, drawn from a seed. Pure: the same seed gives the same plan. What comes of it depends on the
//! machine, and on who is tracker at the time.

use std::{collections::BTreeSet, fmt, time::Duration};

use crate::impair::{Host, Impairment, NAMESERVER, Weather};

/// Mean time between two faults in a network of [`REFERENCE_PEERS`].
const BETWEEN_FAULTS: Duration = Duration::from_millis(1800);
/// Mean time between two deeds in a network of [`REFERENCE_PEERS`].
const BETWEEN_DEEDS: Duration = Duration::from_millis(300);
/// More peers have more faults and deeds a second, fewer have fewer.
const REFERENCE_PEERS: usize = 12;
/// File names in use. Few, so that names have several versions and are written again.
const NAMES: u64 = 60;
/// One name in so many lies in a directory.
const NESTED: u64 = 4;
/// At most one peer in so many is killed, frozen or alone at a time, so that there is a majority now and then.
const HARMED_AT_A_TIME: usize = 3;

/// How large a plan is.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How many peers there are.
    pub peers: usize,
    /// All is over after this time.
    pub time: Duration,
    /// Whether the network can be harmed, too.
    pub network: bool,
}

/// A number of a peer, from 0.
pub type Peer = usize;

/// The machine of a peer.
pub fn host_of(peer: Peer) -> Host {
    Host::try_from(peer).map_or(Host::MAX, |peer| peer.saturating_add(NAMESERVER + 1))
}

/// Whom a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// This peer.
    Peer(Peer),
    /// Who is tracker then.
    Tracker,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Harm {
    /// `SIGKILL`; started again, with its state, afterwards.
    Kill(Who),
    /// `SIGSTOP`, and `SIGCONT` afterwards.
    Freeze(Who),
    /// Neither hears nor is heard.
    Isolate(Who),
    /// The network is not what it should be.
    Network(Impairment),
    /// The nameserver is killed, and started again afterwards.
    KillNameserver,
}

/// Something that goes wrong for a while.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// What it is.
    pub harm: Harm,
}

/// How a file gets into a share, or out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By a command to the peer.
    Command,
    /// In the folder, in one step.
    Folder,
    /// In the folder, byte by byte over what is there.
    InPlace,
}

/// What users do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A file is written, new or over what is there.
    Write {
        /// Its name in the share.
        name: String,
        /// What is in it ([`content`]).
        content: u64,
        /// Bytes.
        size: usize,
        /// How.
        way: Way,
    },
    /// One of the share's files goes; which is drawn from what is there then.
    Remove {
        /// Draws the file.
        draw: u64,
        /// How.
        way: Way,
    },
    /// A file that somebody published is downloaded; which is drawn from what was published until then.
    Download {
        /// Draws the file.
        draw: u64,
        /// Into the share, not elsewhere.
        into_share: bool,
    },
    /// An election is forced.
    Elect,
}

/// Something that a user does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// When.
    pub at: Duration,
    /// With which peer.
    pub peer: Peer,
    /// What.
    pub act: Act,
}

/// All of it, each list by time.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// What users do.
    pub deeds: Vec<Deed>,
}

impl Plan {
    /// The plan of this seed.
    pub fn new(seed: u64, bounds: Bounds) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let faults = faults(&mut random.fork(), bounds);
        Self { faults, deeds: deeds(&mut random, bounds) }
    }
}

/// What is in a file of this number: bytes that look random.
pub fn content(number: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn faults(random: &mut fastrand::Rng, bounds: Bounds) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += gap(random, BETWEEN_FAULTS, bounds.peers);
        if at >= bounds.time {
            return faults;
        }
        let harm = draw_harm(random, bounds);
        let lasts = duration(random, &harm).min(bounds.time - at);
        let running: Vec<&Harm> =
            faults.iter().filter(|fault| fault.at + fault.lasts >= at).map(|fault| &fault.harm).collect();
        if goes_with(&harm, &running, bounds.peers) {
            faults.push(Fault { at, lasts, harm });
        }
    }
}

fn draw_harm(random: &mut fastrand::Rng, bounds: Bounds) -> Harm {
    let who = |random: &mut fastrand::Rng| match random.u8(..10) {
        // Of twelve peers the tracker is the one whose fate matters most.
        0..3 => Who::Tracker,
        _ => Who::Peer(random.usize(..bounds.peers)),
    };
    match random.u8(..if bounds.network { 100 } else { 55 }) {
        0..25 => Harm::Kill(who(random)),
        25..45 => Harm::Freeze(who(random)),
        45..55 => Harm::KillNameserver,
        55..65 => Harm::Isolate(who(random)),
        65..78 => Harm::Network(Impairment::Partition(some_hosts(random, bounds.peers))),
        78..90 => {
            let from = some_hosts(random, bounds.peers);
            let to = some_hosts(random, bounds.peers).difference(&from).copied().collect();
            Harm::Network(Impairment::Cut(from, to))
        }
        _ => Harm::Network(Impairment::Weather(Weather {
            loss: random.f64() * 0.2,
            twice: random.f64() * 0.1,
            delay: Duration::from_millis(random.u64(0..40)),
            jitter: Duration::from_millis(random.u64(0..40)),
        })),
    }
}

/// One or some machines, the nameserver's perhaps among them.
fn some_hosts(random: &mut fastrand::Rng, peers: usize) -> BTreeSet<Host> {
    let all = peers + 1;
    let count = if random.bool() { 1 } else { random.usize(1..=all / 2) };
    let mut hosts: Vec<Host> = (0..peers).map(host_of).chain([NAMESERVER]).collect();
    random.shuffle(&mut hosts);
    hosts.into_iter().take(count).collect()
}

fn duration(random: &mut fastrand::Rng, harm: &Harm) -> Duration {
    let (least_ms, most_ms) = match harm {
        Harm::Kill(_) => (50, 6_000),
        // From what is hardly noticed to what looks like a death.
        Harm::Freeze(_) => (100, 6_000),
        Harm::Isolate(_) => (300, 8_000),
        Harm::Network(Impairment::Weather(_)) => (3_000, 15_000),
        Harm::Network(_) => (300, 8_000),
        Harm::KillNameserver => (100, 8_000),
    };
    // Short ones as often as long ones, by order of magnitude.
    let (least, most) = (f64::from(least_ms), f64::from(most_ms));
    Duration::from_secs_f64(least * (most / least).powf(random.f64()) / 1000.0)
}

fn goes_with(harm: &Harm, running: &[&Harm], peers: usize) -> bool {
    let victim = |harm: &Harm| match harm {
        Harm::Kill(who) | Harm::Freeze(who) | Harm::Isolate(who) => Some(*who),
        Harm::Network(_) | Harm::KillNameserver => None,
    };
    match harm {
        Harm::KillNameserver => !running.iter().any(|other| matches!(other, Harm::KillNameserver)),
        Harm::Network(_) => true,
        _ => {
            let harmed: Vec<_> = running.iter().filter_map(|other| victim(other)).collect();
            harmed.len() < (peers / HARMED_AT_A_TIME).max(1)
                && victim(harm).is_some_and(|victim| !harmed.contains(&victim))
        }
    }
}

fn deeds(random: &mut fastrand::Rng, bounds: Bounds) -> Vec<Deed> {
    let mut deeds = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += gap(random, BETWEEN_DEEDS, bounds.peers);
        if at >= bounds.time {
            return deeds;
        }
        deeds.push(Deed { at, peer: random.usize(..bounds.peers), act: draw_act(random) });
    }
}

/// A write of a peer's share, as before the first fault.
pub fn draw_write(random: &mut fastrand::Rng) -> Act {
    let way = [Way::Command, Way::Folder, Way::InPlace][random.usize(..3)];
    let number = random.u64(..NAMES);
    // `add` knows the name of a file, not the directory it is to go to.
    let name = match number % NESTED {
        0 if way != Way::Command => format!("d{}/f{number}.bin", number % 3),
        _ => format!("f{number}.bin"),
    };
    let size = match random.u8(..100) {
        0..5 => 0,
        5..60 => random.usize(1..16 << 10),
        60..90 => random.usize(16 << 10..1 << 20),
        90..99 => random.usize(1 << 20..6 << 20),
        _ => random.usize(6 << 20..24 << 20),
    };
    Act::Write { name, content: random.u64(..), size, way }
}

fn draw_act(random: &mut fastrand::Rng) -> Act {
    match random.u8(..100) {
        0..30 => draw_write(random),
        30..42 => Act::Remove { draw: random.u64(..), way: if random.bool() { Way::Command } else { Way::Folder } },
        42..98 => Act::Download { draw: random.u64(..), into_share: random.u8(..10) < 6 },
        _ => Act::Elect,
    }
}

/// The time to the next event of many that know nothing of each other.
fn gap(random: &mut fastrand::Rng, mean: Duration, peers: usize) -> Duration {
    let mean = mean.as_secs_f64() * REFERENCE_PEERS as f64 / peers as f64;
    Duration::from_secs_f64(-(1.0 - random.f64()).ln() * mean)
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => write!(f, "{}", peer_name(*peer)),
            Self::Tracker => f.write_str("the tracker"),
        }
    }
}

/// What a peer is called.
pub fn peer_name(peer: Peer) -> String {
    format!("peer{}", peer + 1)
}

impl Harm {
    /// What is counted in the report.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(Who::Peer(_)) => "peer killed",
            Self::Kill(Who::Tracker) => "tracker killed",
            Self::Freeze(Who::Peer(_)) => "peer frozen",
            Self::Freeze(Who::Tracker) => "tracker frozen",
            Self::Isolate(Who::Peer(_)) => "peer isolated",
            Self::Isolate(Who::Tracker) => "tracker isolated",
            Self::Network(Impairment::Partition(_)) => "partition",
            Self::Network(Impairment::Cut(..)) => "one-way cut",
            Self::Network(Impairment::Weather(_)) => "loss, delay, reordering, duplicates",
            Self::KillNameserver => "nameserver killed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { peers: 12, time: Duration::from_secs(600), network: true };

    #[test]
    fn a_seed_gives_one_plan_and_another_seed_another() {
        assert_eq!(Plan::new(1, BOUNDS), Plan::new(1, BOUNDS));
        assert_ne!(Plan::new(1, BOUNDS), Plan::new(2, BOUNDS));
    }

    #[test]
    fn a_long_plan_has_every_kind_of_fault_and_all_end_in_time() {
        let plan = Plan::new(3, BOUNDS);
        let kinds: BTreeSet<_> = plan.faults.iter().map(|fault| fault.harm.kind()).collect();
        assert_eq!(kinds.len(), 10, "{kinds:?}");
        assert!(plan.faults.iter().all(|fault| fault.at + fault.lasts <= BOUNDS.time));
        assert!(plan.faults.is_sorted_by_key(|fault| fault.at) && plan.deeds.is_sorted_by_key(|deed| deed.at));
    }

    #[test]
    fn no_more_than_a_third_of_the_peers_are_harmed_at_a_time() {
        for seed in 0..20 {
            let plan = Plan::new(seed, BOUNDS);
            for fault in &plan.faults {
                let together = plan.faults.iter().filter(|other| {
                    matches!(other.harm, Harm::Kill(_) | Harm::Freeze(_) | Harm::Isolate(_))
                        && (other.at..=other.at + other.lasts).contains(&fault.at)
                });
                assert!(together.count() <= BOUNDS.peers / HARMED_AT_A_TIME);
            }
        }
    }

    #[test]
    fn without_a_network_of_its_own_no_fault_is_the_networks() {
        let plan = Plan::new(4, Bounds { network: false, ..BOUNDS });
        let harmless = |harm: &Harm| matches!(harm, Harm::Kill(_) | Harm::Freeze(_) | Harm::KillNameserver);
        assert!(!plan.faults.is_empty() && plan.faults.iter().all(|fault| harmless(&fault.harm)));
    }

    #[test]
    fn a_directory_and_a_file_never_have_the_same_name() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..1000 {
            if let Act::Write { name, way, .. } = draw_write(&mut random) {
                assert!(way != Way::Command || !name.contains('/'), "{name}");
            }
        }
    }
}
