//! One owner and eight receivers that begin together, all on equal links: how much longer than the least possible time
//! `T* = F/C (1 + floor(log2 N)/M)` it takes (Mundinger, Weber, Weiss: Optimal scheduling of peer-to-peer file
//! dissemination, 2008).

use super::Plan;
use crate::{
    cluster::{Cluster, NAMESERVER},
    files,
    lab::{Lab, Link},
    process::STEP,
    report::{Demand, Report, median},
};
use protocol::swarm::params::MIN_PIECE_BYTES;
use shared::time::Clock;

pub const NAME: &str = "swarm";

const OWNER: &str = "owner";
const RECEIVERS: [&str; 8] = ["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"];
const FILE: &str = "film.bin";
const LINK_MBIT: u32 = 100;
const MOST_MEDIAN: f64 = 1.15;
const MOST_LAST: f64 = 1.30;

pub fn run(plan: &Plan, report: &mut Report) {
    if let Some(why) = Lab::missing() {
        return report.note(NAME, format!("skipped: {why}"));
    }
    let bytes: u64 = plan.pick(128 << 20, 16 << 20);
    let folder = plan.folder();
    let mut lab = Lab::new();
    lab.add(NAMESERVER, Link::default());
    for machine in RECEIVERS.into_iter().chain([OWNER]) {
        lab.add(machine, Link { up_mbit: Some(LINK_MBIT), down_mbit: Some(LINK_MBIT) });
    }
    let mut cluster = Cluster::start(folder.path(), Some(lab));
    let source = cluster.share(OWNER).join(FILE);
    files::make(&source, bytes, 6);
    for peer in RECEIVERS.into_iter().chain([OWNER]) {
        cluster.start_peer(peer, &[]);
    }
    cluster.wait_for_owners(RECEIVERS[0], FILE, &[OWNER]);

    let least = least_seconds(bytes);
    report.note(
        NAME,
        format!("T* = {least:.2} s, of the file's bytes alone; links of {LINK_MBIT} Mbit/s, packets' headers included"),
    );
    let (mut medians, mut lasts) = (Vec::new(), Vec::new());
    for run in 0..plan.runs {
        files::settle(folder.path());
        let times = all_download(&cluster);
        medians.push(median(&times).expect("there are receivers") / least);
        lasts.push(times.iter().copied().fold(0.0, f64::max) / least);
        for receiver in RECEIVERS {
            if run == 0 {
                files::assert_same(&source, &cluster.share(receiver).join(FILE));
            }
            cluster.run(receiver, &["remove", FILE]);
        }
        cluster.wait_for_owners(RECEIVERS[0], FILE, &[OWNER]);
    }
    report.add(NAME, "median receiver", "T*", medians, Some(Demand::AtMost(MOST_MEDIAN)));
    report.add(NAME, "last receiver", "T*", lasts, Some(Demand::AtMost(MOST_LAST)));
}

/// `T*` of a file whose pieces have the least size, as they do up to 256 MiB.
fn least_seconds(bytes: u64) -> f64 {
    let pieces = bytes.div_ceil(MIN_PIECE_BYTES) as f64;
    let rounds = RECEIVERS.len().ilog2();
    bytes as f64 * 8.0 / (f64::from(LINK_MBIT) * 1e6) * (1.0 + f64::from(rounds) / pieces)
}

/// All receivers begin at once; how long each took, seconds.
fn all_download(cluster: &Cluster) -> Vec<f64> {
    let clock = Clock::start();
    let commands = RECEIVERS.map(|receiver| {
        let mut command = cluster.command(receiver, &["download", FILE]);
        let child = command.spawn().expect("peer runs");
        std::thread::spawn(move || {
            let output = child.wait_with_output().expect("it can be waited for");
            assert!(output.status.success(), "{receiver}: {}", String::from_utf8_lossy(&output.stderr));
            clock.now().since_origin()
        })
    });
    let times = commands.map(|command| command.join().expect("every download succeeds"));
    assert!(times.iter().all(|time| *time < STEP), "all came in time");
    times.iter().map(std::time::Duration::as_secs_f64).collect()
}
