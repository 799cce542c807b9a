//! What a tracker's index costs when it is large: memory, and the time of everything that is asked of it.
//!
//! ```text
//! cargo bench -p peer --bench index [-- --peers N --files N --json PATH --check]
//! ```
//!
//! One real core as the tracker, driven by the events that its node would hand it, in one thread, without a network: what
//! is timed is what the tracker's one task is kept from doing anything else for.
//!
//! | room | what is in it |
//! |---|---|
//! | [`tracker`] | a core that is tracker, and what peers say to it |
//! | [`failover`] | a thousand cores whose tracker dies, with and without its standbys |
//! | [`report`] | the table, the demands, JSON |

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(unreachable_pub, reason = "a program of rooms: everything is reachable from here and nothing from outside")]

mod failover;
mod report;
mod tracker;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use shared::time::Clock;

use failover::{Cost, Network};
use report::{Demand, Report};
use tracker::{Shares, Tracker};

/// Demands on an index of a million files of a thousand peers.
const ENTRY_BYTES: f64 = 160.0;
const WHO_HAS: Duration = Duration::from_micros(100);
/// A change of one file: no more than a few look-ups.
const DELTA: Duration = Duration::from_micros(100);
/// 1000 files of one peer that is gone: a tenth of a heartbeat's interval.
const REMOVAL: Duration = Duration::from_millis(10);
/// How long a heartbeat may wait while all announce themselves: a quarter of what makes a tracker suspicious.
const HEARTBEAT_WAIT: Duration = Duration::from_millis(100);
/// Files that every peer has, beside its own.
const POPULAR: usize = 4;

#[derive(Parser)]
#[command(name = "index", about = "What a large index costs the tracker")]
struct Args {
    /// Peers
    #[arg(long, default_value_t = 1000)]
    peers: usize,

    /// Files of all peers together, all with different names
    #[arg(long, default_value_t = 1_000_000)]
    files: usize,

    /// Questions and changes of each kind
    #[arg(long, default_value_t = 100_000)]
    questions: usize,

    /// Files of each peer in the failovers
    #[arg(long, default_value_t = 1000)]
    files_at_failover: usize,

    /// Write the results here as JSON as well
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,

    /// Exit with status 1 when a demand is missed
    #[arg(long)]
    check: bool,

    /// Ignored: cargo adds it to every benchmark's command line
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let shares = Shares { peers: args.peers, files_per_peer: args.files / args.peers };
    let mut report = Report::new(shares.peers, shares.peers * shares.files_per_peer);
    measure(&shares, args.questions, &mut report);
    fail_over(&Shares { peers: args.peers.min(1000), files_per_peer: args.files_at_failover }, &mut report);
    print!("{}", report.table());
    if let Some(path) = args.json {
        fs::write(&path, report.json()).expect("the results can be written");
    }
    let missed = report.missed();
    if missed > 0 {
        println!("\n{missed} of the demands are missed");
    }
    if args.check && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One tracker's life: all announce themselves, change, ask, list and go.
fn measure(shares: &Shares, questions: usize, report: &mut Report) {
    let clock = Clock::start();
    let mut tracker = Tracker::start();
    (0..shares.peers).for_each(|peer| tracker.join(&Shares::id(peer)));

    // The two texts of the process's own beside the index are its questions and answers: a few hundred KiB.
    let before = report::resident_bytes();
    let mut taken = Vec::new();
    for peer in 0..shares.peers {
        for page in 0..shares.pages() {
            let announcement = shares.page(peer, page);
            let id = Shares::id(peer);
            tracker.pace(&announcement);
            let begun = clock.now();
            tracker.announce(&id, announcement);
            taken.push(clock.now().since(begun));
        }
    }
    let (members, entries) = tracker.size();
    assert_eq!(entries, shares.peers * shares.files_per_peer, "all that was announced is in the index");
    assert_eq!(members, shares.peers + 1, "all peers and the tracker are members");
    let bytes = report::resident_bytes().saturating_sub(before);
    report.figure("memory an entry", "bytes", bytes as f64 / entries as f64, Some(Demand::AtMost(ENTRY_BYTES)));
    let seconds: f64 = taken.iter().map(Duration::as_secs_f64).sum();
    report.figure("snapshot: files taken", "1/s", entries as f64 / seconds, None);
    report.latency("snapshot: a page", taken, None);

    let mut taken = Vec::new();
    for number in 0..questions {
        let peer = number % shares.peers;
        let change = shares.change(peer, number / shares.peers);
        let id = Shares::id(peer);
        let begun = clock.now();
        tracker.announce(&id, change);
        taken.push(clock.now().since(begun));
    }
    report.rate("delta of one file", &taken);
    report.latency("delta of one file", taken, Some(DELTA));

    let mut taken = Vec::new();
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..questions {
        let name = shares.name(rng.usize(0..shares.peers), rng.usize(0..shares.files_per_peer));
        let asker = Shares::id(rng.usize(0..shares.peers));
        let begun = clock.now();
        let found = tracker.who_has(&asker, &name);
        taken.push(clock.now().since(begun));
        assert_eq!(found, 1, "every file has an owner");
    }
    report.rate("who_has", &taken);
    report.latency("who_has", taken, Some(WHO_HAS));

    let mut taken = Vec::new();
    let mut listed = 0;
    let mut after = None;
    loop {
        let begun = clock.now();
        let page = tracker.list("", after);
        taken.push(clock.now().since(begun));
        listed += page.files.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, tracker.size().1, "a listing has every file once");
    let seconds: f64 = taken.iter().map(Duration::as_secs_f64).sum();
    report.figure("listAll: files", "1/s", listed as f64 / seconds, None);
    report.latency("listAll: a page", taken, None);

    // Files that all have: the most owners that a question can meet.
    for peer in 0..shares.peers {
        tracker.announce(&Shares::id(peer), shares.popular(questions.div_ceil(shares.peers), POPULAR));
    }
    let mut taken = Vec::new();
    for number in 0..questions.min(10_000) {
        let asker = Shares::id(number % shares.peers);
        let name = Shares::popular_name(number % POPULAR);
        let begun = clock.now();
        let found = tracker.who_has(&asker, &name);
        taken.push(clock.now().since(begun));
        assert_eq!(found, 16.min(shares.peers), "an answer names a bounded number of owners");
    }
    report.latency("who_has, all peers have it", taken, Some(WHO_HAS));

    let mut taken = Vec::new();
    for peer in 0..shares.peers.min(50) {
        let id = Shares::id(peer);
        let begun = clock.now();
        tracker.leave(&id);
        taken.push(clock.now().since(begun));
    }
    report.latency("removal of a peer and its files", taken, Some(REMOVAL));
}

/// The tracker dies: first alone, then together with its standbys.
fn fail_over(shares: &Shares, report: &mut Report) {
    let mut network = Network::start(shares);
    for (how, with_standbys) in [("with standbys", false), ("without", true)] {
        network.warm_up(shares);
        let cost = network.kill(with_standbys);
        let Cost { seated, settled, complete, .. } = cost;
        let mut figure = |what: &str, unit, value: f64, demanded| {
            report.figure(&format!("failover {how}: {what}"), unit, value, demanded);
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        figure("a tracker", "ms", ms(seated), None);
        figure("its index is open", "ms", ms(settled), None);
        figure("it has everything", "ms", ms(complete), None);
        let nothing = (!with_standbys).then_some(Demand::AtMost(0.0));
        figure("announcements", "", cost.announcements as f64, nothing);
        figure("announcements", "bytes", cost.announcement_bytes as f64, None);
        figure("heartbeats until then", "", cost.heartbeats as f64, None);
        figure("heartbeats until then", "bytes", cost.heartbeat_bytes as f64, None);
        figure("snapshots postponed", "", cost.postponed as f64, None);
        figure("longest wait of a heartbeat", "ms", ms(cost.longest_wait), Some(Demand::AtMost(ms(HEARTBEAT_WAIT))));
    }
}
