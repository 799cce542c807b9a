//! Index benchmark: memory of a large index, and the time of each request to its tracker.
//!
//! ```text
//! cargo bench -p peer --bench index [-- --peers N --files N --json PATH --check]
//! ```
//!
//! Needs Linux. One real core is the tracker and handles events in one thread,
//! without a network: the times are those for which the tracker's task can do nothing else. A simulation with up to
//! 1000 cores then measures the cost of a failover. Prints a table of figures with their demands.
//!
//! | module | purpose |
//! |---|---|
//! | `tracker`, `shares` | a core that is the tracker, and the shares that peers announce to it |
//! | `simulation` | a failover of a thousand cores, with and without standbys |
//! | `report` | table and JSON |
//! | `../support` | options, demands |

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(unreachable_pub, reason = "`pub` marks the interface of a module; a binary exports nothing")]

#[path = "../support/args.rs"]
mod args;
#[path = "../support/demand.rs"]
#[expect(dead_code, reason = "no demand of this benchmark is a lower bound")]
mod demand;
#[path = "../support/machine.rs"]
mod machine;
mod report;
mod shares;
mod simulation;
mod tracker;

use std::{fs, process::ExitCode, time::Duration};

use clap::Parser;
use shared::time::Clock;

use args::CommonArgs;
use demand::Demand;
use report::Report;
use shares::Shares;
use simulation::{Cost, Simulation};
use tracker::Tracker;

/// Memory of an index entry, bytes.
const ENTRY_BYTES: f64 = 160.0;
/// Time of a `who_has` query.
const WHO_HAS: Duration = Duration::from_micros(100);
/// Time of a delta with one file: a few look-ups.
const DELTA: Duration = Duration::from_micros(100);
/// Time to remove a peer with 1000 files: a tenth of the heartbeat interval.
const REMOVAL: Duration = Duration::from_millis(10);
/// Time that a heartbeat waits while all peers announce their shares: a quarter of the time after which a peer
/// suspects the tracker.
const HEARTBEAT_WAIT: Duration = Duration::from_millis(100);
/// Files that every peer shares.
const POPULAR: usize = 4;
/// Upper bound of the owners in an answer.
const MAX_OWNERS: usize = 16;

#[derive(Parser)]
#[command(name = "index", about = "Measures the cost of a large index")]
struct Args {
    /// Number of peers
    #[arg(long, default_value_t = 1000)]
    peers: usize,

    /// Number of files of all peers together, each with its own name
    #[arg(long, default_value_t = 1_000_000)]
    files: usize,

    /// Number of queries and changes of each kind
    #[arg(long, default_value_t = 100_000)]
    questions: usize,

    /// Number of files of each peer in the failover simulation
    #[arg(long, default_value_t = 1000)]
    files_at_failover: usize,

    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let shares = Shares { peers: args.peers, files_per_peer: args.files / args.peers };
    let mut report = Report::new(shares.peers, shares.peers * shares.files_per_peer);
    Measurement { clock: Clock::start(), shares: &shares, questions: args.questions, report: &mut report }.run();
    fail_over(&Shares { peers: args.peers.min(1000), files_per_peer: args.files_at_failover }, &mut report);
    print!("{}", report.table());
    args.common.write_json(&report);
    let missed = report.missed();
    if missed > 0 {
        println!("\n{missed} demands are missed");
    }
    args.common.exit_code(missed > 0)
}

/// Measurement of one tracker.
struct Measurement<'a> {
    clock: Clock,
    shares: &'a Shares,
    questions: usize,
    report: &'a mut Report,
}

impl Measurement<'_> {
    fn run(&mut self) {
        let mut tracker = Tracker::start();
        (0..self.shares.peers).for_each(|peer| tracker.join(&Shares::id(peer)));
        self.snapshots(&mut tracker);
        self.deltas(&mut tracker);
        self.queries(&mut tracker);
        self.listing(&mut tracker);
        self.popular_files(&mut tracker);
        self.removals(&mut tracker);
    }

    /// Returns the duration of an operation and its output.
    fn time<T>(&self, operation: impl FnOnce() -> T) -> (Duration, T) {
        let started = self.clock.now();
        let output = operation();
        (self.clock.now().since(started), output)
    }

    fn snapshots(&mut self, tracker: &mut Tracker) {
        // The growth includes the announcements and replies in flight, a few hundred KiB.
        let before = resident_bytes();
        let mut taken = Vec::new();
        for peer in 0..self.shares.peers {
            for page in 0..self.shares.pages() {
                let announcement = self.shares.page(peer, page);
                let id = Shares::id(peer);
                tracker.advance_by_page(&announcement);
                taken.push(self.time(|| tracker.announce(&id, announcement)).0);
            }
        }
        let (members, entries) = tracker.size();
        assert_eq!(entries, self.shares.peers * self.shares.files_per_peer, "the index has every announced file");
        assert_eq!(members, self.shares.peers + 1, "all peers and the tracker are members");
        let bytes = resident_bytes().saturating_sub(before);
        self.report.figure(
            "memory an entry",
            "bytes",
            bytes as f64 / entries as f64,
            Some(Demand::AtMost(ENTRY_BYTES)),
        );
        self.report.figure("snapshot: files taken", "1/s", entries as f64 / seconds(&taken), None);
        self.report.latency("snapshot: a page", taken, None);
    }

    fn deltas(&mut self, tracker: &mut Tracker) {
        let mut taken = Vec::new();
        for number in 0..self.questions {
            let peer = number % self.shares.peers;
            let change = self.shares.change(peer, number / self.shares.peers);
            let id = Shares::id(peer);
            taken.push(self.time(|| tracker.announce(&id, change)).0);
        }
        self.report.rate("delta of one file", &taken);
        self.report.latency("delta of one file", taken, Some(DELTA));
    }

    fn queries(&mut self, tracker: &mut Tracker) {
        let mut taken = Vec::new();
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..self.questions {
            let name = self.shares.name(rng.usize(0..self.shares.peers), rng.usize(0..self.shares.files_per_peer));
            let asker = Shares::id(rng.usize(0..self.shares.peers));
            let (took, owners) = self.time(|| tracker.who_has(&asker, &name));
            taken.push(took);
            assert_eq!(owners, 1, "every file has one owner");
        }
        self.report.rate("who_has", &taken);
        self.report.latency("who_has", taken, Some(WHO_HAS));
    }

    fn listing(&mut self, tracker: &mut Tracker) {
        let mut taken = Vec::new();
        let mut listed = 0;
        let mut after = None;
        loop {
            let (took, page) = self.time(|| tracker.list("", after));
            taken.push(took);
            listed += page.files.len();
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(listed, tracker.size().1, "a listing has every file once");
        self.report.figure("listAll: files", "1/s", listed as f64 / seconds(&taken), None);
        self.report.latency("listAll: a page", taken, None);
    }

    /// Measures queries for files that all peers share, which have the most owners.
    fn popular_files(&mut self, tracker: &mut Tracker) {
        for peer in 0..self.shares.peers {
            let changes = self.questions.div_ceil(self.shares.peers);
            tracker.announce(&Shares::id(peer), self.shares.popular(changes, POPULAR));
        }
        let mut taken = Vec::new();
        for number in 0..self.questions.min(10_000) {
            let asker = Shares::id(number % self.shares.peers);
            let name = Shares::popular_name(number % POPULAR);
            let (took, owners) = self.time(|| tracker.who_has(&asker, &name));
            taken.push(took);
            assert_eq!(owners, MAX_OWNERS.min(self.shares.peers), "the number of owners in an answer is bounded");
        }
        self.report.latency("who_has, all peers have it", taken, Some(WHO_HAS));
    }

    fn removals(&mut self, tracker: &mut Tracker) {
        let peers = 0..self.shares.peers.min(50);
        let taken = peers.map(Shares::id).map(|id| self.time(|| tracker.leave(&id)).0).collect();
        self.report.latency("removal of a peer and its files", taken, Some(REMOVAL));
    }
}

/// Simulates a crash of the tracker alone, then a crash of the tracker with its standbys.
fn fail_over(shares: &Shares, report: &mut Report) {
    let mut simulation = Simulation::start(shares);
    for (how, with_standbys) in [("with standbys", false), ("without", true)] {
        simulation.warm_up(shares);
        let cost = simulation.kill(with_standbys);
        let Cost { seated, settled, complete, .. } = cost;
        let mut figure = |what: &str, unit, value: f64, demanded| {
            report.figure(&format!("failover {how}: {what}"), unit, value, demanded);
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        figure("a tracker", "ms", ms(seated), None);
        figure("its index is open", "ms", ms(settled), None);
        figure("it has everything", "ms", ms(complete), None);
        let none = (!with_standbys).then_some(Demand::AtMost(0.0));
        figure("announcements", "", cost.announcements as f64, none);
        figure("announcements", "bytes", cost.announcement_bytes as f64, None);
        figure("heartbeats until then", "", cost.heartbeats as f64, None);
        figure("heartbeats until then", "bytes", cost.heartbeat_bytes as f64, None);
        figure("snapshots postponed", "", cost.postponed as f64, None);
        figure("longest wait of a heartbeat", "ms", ms(cost.longest_wait), Some(Demand::AtMost(ms(HEARTBEAT_WAIT))));
    }
}

fn seconds(taken: &[Duration]) -> f64 {
    taken.iter().map(Duration::as_secs_f64).sum()
}

/// Returns the resident memory of this process, bytes. It includes memory that the allocator holds.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has a VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmRSS is a number of kB");
    kib << 10
}
