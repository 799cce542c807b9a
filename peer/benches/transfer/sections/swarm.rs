//! One owner and eight receivers that start together on equal links: the time relative to the optimum
//! `T* = F/C (1 + floor(log2 N)/M)` for a file of F bits in M pieces, links of C bits a second and N receivers
//! (Mundinger, Weber, Weiss: Optimal scheduling of peer-to-peer file dissemination, 2008).

use protocol::swarm::params::MIN_PIECE_BYTES;
use shared::time::Clock;

use crate::{
    cluster::Cluster,
    demand::Demand,
    files,
    process::DEADLINE,
    programs::NAMESERVER_HOST,
    report::{Report, median},
    settings::Settings,
    testbed::{LinkRates, Testbed},
};

pub const NAME: &str = "swarm";

const OWNER: &str = "owner";
const RECEIVERS: [&str; 8] = ["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"];
const FILE: &str = "film.bin";
const LINK_MBIT: u32 = 100;
/// Upper bound of the median receiver's time, in `T*`.
const MAX_MEDIAN: f64 = 1.15;
/// Upper bound of the last receiver's time, in `T*`.
const MAX_LAST: f64 = 1.30;

pub fn run(settings: &Settings, report: &mut Report) {
    if let Some(reason) = Testbed::unavailable() {
        return report.note(NAME, format!("skipped: {reason}"));
    }
    let bytes: u64 = settings.pick(128 << 20, 16 << 20);
    let folder = settings.folder();
    let mut testbed = Testbed::new();
    testbed.add(NAMESERVER_HOST, LinkRates::default());
    for host in RECEIVERS.into_iter().chain([OWNER]) {
        testbed.add(host, LinkRates { up_mbit: Some(LINK_MBIT), down_mbit: Some(LINK_MBIT) });
    }
    let mut cluster = Cluster::start(folder.path(), Some(testbed));
    let source = cluster.share(OWNER).join(FILE);
    files::create(&source, bytes, 6);
    for peer in RECEIVERS.into_iter().chain([OWNER]) {
        cluster.start_peer(peer, &[]);
    }
    cluster.wait_for_owners(RECEIVERS[0], FILE, &[OWNER]);

    let optimum = optimal_seconds(bytes);
    report.note(
        NAME,
        format!("T* = {optimum:.2} s counts the file's bytes; the {LINK_MBIT} Mbit/s of a link include packet headers"),
    );
    let (mut medians, mut lasts) = (Vec::new(), Vec::new());
    for run in 0..settings.runs {
        files::settle(folder.path());
        let times = all_download(&cluster);
        medians.push(median(&times).expect("the swarm has receivers") / optimum);
        lasts.push(times.iter().copied().fold(0.0, f64::max) / optimum);
        for receiver in RECEIVERS {
            if run == 0 {
                files::assert_same(&source, &cluster.share(receiver).join(FILE));
            }
            cluster.run(receiver, &["remove", FILE]);
        }
        cluster.wait_for_owners(RECEIVERS[0], FILE, &[OWNER]);
    }
    report.add(NAME, "median receiver", "T*", medians, Some(Demand::AtMost(MAX_MEDIAN)));
    report.add(NAME, "last receiver", "T*", lasts, Some(Demand::AtMost(MAX_LAST)));
}

/// Returns `T*` for a file with pieces of the minimum size, which files of up to 256 MiB have.
fn optimal_seconds(bytes: u64) -> f64 {
    let pieces = bytes.div_ceil(MIN_PIECE_BYTES) as f64;
    let rounds = RECEIVERS.len().ilog2();
    bytes as f64 * 8.0 / (f64::from(LINK_MBIT) * 1e6) * (1.0 + f64::from(rounds) / pieces)
}

/// Downloads at all receivers at once. Returns the duration of each download, seconds.
fn all_download(cluster: &Cluster) -> Vec<f64> {
    let clock = Clock::start();
    let commands = RECEIVERS.map(|receiver| {
        let mut command = cluster.command(receiver, &["download", FILE]);
        let child = command.spawn().expect("peer runs");
        std::thread::spawn(move || {
            let output = child.wait_with_output().expect("the command is a child");
            assert!(output.status.success(), "{receiver}: {}", String::from_utf8_lossy(&output.stderr));
            clock.now().since_origin()
        })
    });
    let times = commands.map(|command| command.join().expect("every download succeeds"));
    assert!(times.iter().all(|time| *time < DEADLINE), "all downloads complete within the deadline");
    times.iter().map(std::time::Duration::as_secs_f64).collect()
}
