//! One large file from one owner to the disk, verified, between two running peers; against the same bytes over TCP and
//! TLS 1.3, unverified, and over a bare QUIC stream, thrown away. The file is in the page cache of all senders.

use std::{fs, path::Path};

use super::{Plan, size_of};
use crate::{
    cluster::Cluster,
    files,
    process::{Running, Usage, timed},
    report::{Report, ratios},
    tools::{Pair, Took},
};

pub const NAME: &str = "one-owner";

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;
const FILE: &str = "big.bin";

/// What one run of one contestant took and cost.
struct Trial {
    seconds: f64,
    sender: Usage,
    receiver: Usage,
}

/// One that moves the file, with its runs.
struct Contestant {
    name: &'static str,
    trials: Vec<Trial>,
}

impl Contestant {
    fn new(name: &'static str) -> Self {
        Self { name, trials: Vec::new() }
    }

    fn seconds(&self) -> Vec<f64> {
        self.trials.iter().map(|trial| trial.seconds).collect()
    }

    fn report(&self, bytes: f64, report: &mut Report) {
        let Self { name, trials } = self;
        let mut add = |what: &str, unit, value: &dyn Fn(&Trial) -> f64| {
            report.add(NAME, format!("{name}: {what}"), unit, trials.iter().map(value).collect(), None);
        };
        add("time", "s", &|trial| trial.seconds);
        add("rate", "MB/s", &|trial| bytes / 1e6 / trial.seconds);
        add("sender's CPU", "s/GiB", &|trial| trial.sender.cpu_seconds * GIB / bytes);
        add("receiver's CPU", "s/GiB", &|trial| trial.receiver.cpu_seconds * GIB / bytes);
        add("sender's peak", "MiB", &|trial| trial.sender.peak_bytes as f64 / MIB);
        add("receiver's peak", "MiB", &|trial| trial.receiver.peak_bytes as f64 / MIB);
    }
}

pub fn run(plan: &Plan, report: &mut Report) {
    let bytes = plan.pick(1 << 30, 64 << 20);
    let folder = plan.folder();
    let folder = folder.path();
    let mut cluster = Cluster::start(folder, None);
    let source = cluster.share("owner").join(FILE);
    files::make(&source, bytes, 1);
    cluster.start_peer("receiver", &[]);
    cluster.start_peer("owner", &[]);
    cluster.wait_for_owners("receiver", FILE, &["owner"]);
    let tls_target = folder.join("by-tls.bin");
    let mut tls = Pair::tls(folder, &source, &tls_target);
    let mut quic = Pair::quic(folder, bytes);

    let mut by_brasa = Contestant::new("Brasa");
    let mut by_tls = Contestant::new("TLS with fsync");
    let mut by_quic = Contestant::new("bare QUIC");
    let mut unsynced = Vec::new();
    for run in 0..plan.runs {
        plan.settle(folder);
        let peers = [cluster.peer("owner"), cluster.peer("receiver")];
        let before = begin(peers);
        let ((), seconds) = timed(|| {
            cluster.run("receiver", &["download", FILE]);
        });
        by_brasa.trials.push(end(peers, before, seconds));
        let target = cluster.share("receiver").join(FILE);
        if run == 0 {
            files::assert_same(&source, &target);
        }
        cluster.run("receiver", &["remove", FILE]);
        cluster.wait_for_owners("receiver", FILE, &["owner"]);

        plan.settle(folder);
        let (trial, took) = fetch(&mut tls);
        by_tls.trials.push(trial);
        unsynced.push(took.received);
        check_and_remove(&source, &tls_target, run == 0);

        plan.settle(folder);
        by_quic.trials.push(fetch(&mut quic).0);
    }

    let size = bytes as f64;
    by_brasa.report(size, report);
    by_tls.report(size, report);
    report.add(NAME, "TLS without fsync: time", "s", unsynced.clone(), None);
    report.add(NAME, "TLS without fsync: rate", "MB/s", unsynced.iter().map(|took| size / 1e6 / took).collect(), None);
    by_quic.report(size, report);
    let brasa = by_brasa.seconds();
    let mut ratio = |against: &str, times: &[f64]| {
        report.add(NAME, format!("Brasa's rate / {against}"), "ratio", ratios(times, &brasa), None);
    };
    ratio("TLS with fsync", &by_tls.seconds());
    ratio("TLS without fsync", &unsynced);
    ratio("bare QUIC", &by_quic.seconds());
}

/// What two processes have used so far; what they hold now counts as their peak.
fn begin([sender, receiver]: [&Running; 2]) -> [Usage; 2] {
    [sender, receiver].map(|process| {
        process.reset_peak();
        process.usage()
    })
}

/// What they have used since.
fn end([sender, receiver]: [&Running; 2], before: [Usage; 2], seconds: f64) -> Trial {
    let used = |process: &Running, before: Usage| {
        let after = process.usage();
        Usage { cpu_seconds: after.cpu_seconds - before.cpu_seconds, peak_bytes: after.peak_bytes }
    };
    Trial { seconds, sender: used(sender, before[0]), receiver: used(receiver, before[1]) }
}

fn fetch(pair: &mut Pair) -> (Trial, Took) {
    let before = begin([&pair.sender, &pair.receiver]);
    let took = pair.fetch();
    (end([&pair.sender, &pair.receiver], before, took.synced), took)
}

fn check_and_remove(source: &Path, target: &Path, whole: bool) {
    assert_eq!(size_of(source), size_of(target), "all of it came");
    if whole {
        files::assert_same(source, target);
    }
    fs::remove_file(target).expect("it is there");
}
