//! One large file from one owner, verified and written to the disk by a running peer. The baselines are the same file
//! over TCP and TLS 1.3, written unverified, and the same number of bytes over a plain QUIC stream, discarded. Every
//! sender has the file in the page cache.

use std::{fs, path::Path};

use crate::{
    baselines::{Pair, Timing},
    cluster::Cluster,
    files::{self, size_of},
    process::Process,
    report::{Report, ratios},
    settings::Settings,
    usage::{Usage, reset_peak, timed, usage},
};

pub const NAME: &str = "one-owner";

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;
const FILE: &str = "big.bin";

/// Duration and resource usage of one run.
struct Trial {
    seconds: f64,
    sender: Usage,
    receiver: Usage,
}

/// Runs of one way to transfer the file.
struct Series {
    name: &'static str,
    trials: Vec<Trial>,
}

impl Series {
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

pub fn run(settings: &Settings, report: &mut Report) {
    let bytes = settings.pick(1 << 30, 64 << 20);
    let folder = settings.folder();
    let folder = folder.path();
    let mut cluster = Cluster::start(folder, None);
    let source = cluster.share("owner").join(FILE);
    files::create(&source, bytes, 1);
    cluster.start_peer("receiver", &[]);
    cluster.start_peer("owner", &[]);
    cluster.wait_for_owners("receiver", FILE, &["owner"]);
    let tls_target = folder.join("by-tls.bin");
    let mut tls = Pair::tls(folder, &source, &tls_target);
    let mut quic = Pair::quic(folder, bytes);

    let mut by_brasa = Series::new("Brasa");
    let mut by_tls = Series::new("TLS with fsync");
    let mut by_quic = Series::new("bare QUIC");
    let mut unsynced = Vec::new();
    for run in 0..settings.runs {
        settings.settle(folder);
        let peers = [cluster.peer("owner"), cluster.peer("receiver")];
        let before = start_usage(peers);
        let ((), seconds) = timed(|| {
            cluster.run("receiver", &["download", FILE]);
        });
        by_brasa.trials.push(trial(peers, before, seconds));
        let target = cluster.share("receiver").join(FILE);
        if run == 0 {
            files::assert_same(&source, &target);
        }
        cluster.run("receiver", &["remove", FILE]);
        cluster.wait_for_owners("receiver", FILE, &["owner"]);

        settings.settle(folder);
        let (trial, timing) = fetch(&mut tls);
        by_tls.trials.push(trial);
        unsynced.push(timing.received);
        check_and_remove(&source, &tls_target, run == 0);

        settings.settle(folder);
        by_quic.trials.push(fetch(&mut quic).0);
    }

    let size = bytes as f64;
    by_brasa.report(size, report);
    by_tls.report(size, report);
    report.add(NAME, "TLS without fsync: time", "s", unsynced.clone(), None);
    report.add(
        NAME,
        "TLS without fsync: rate",
        "MB/s",
        unsynced.iter().map(|seconds| size / 1e6 / seconds).collect(),
        None,
    );
    by_quic.report(size, report);
    let brasa = by_brasa.seconds();
    let mut ratio = |against: &str, times: &[f64]| {
        report.add(NAME, format!("Brasa's rate / {against}"), "ratio", ratios(times, &brasa), None);
    };
    ratio("TLS with fsync", &by_tls.seconds());
    ratio("TLS without fsync", &unsynced);
    ratio("bare QUIC", &by_quic.seconds());
}

/// Resets the memory peaks of two processes. Returns their usage so far.
fn start_usage([sender, receiver]: [&Process; 2]) -> [Usage; 2] {
    [sender, receiver].map(|process| {
        reset_peak(process);
        usage(process)
    })
}

/// Returns a trial with the usage of two processes since [`start_usage`].
fn trial([sender, receiver]: [&Process; 2], before: [Usage; 2], seconds: f64) -> Trial {
    let used = |process: &Process, before: Usage| {
        let after = usage(process);
        Usage { cpu_seconds: after.cpu_seconds - before.cpu_seconds, peak_bytes: after.peak_bytes }
    };
    Trial { seconds, sender: used(sender, before[0]), receiver: used(receiver, before[1]) }
}

fn fetch(pair: &mut Pair) -> (Trial, Timing) {
    let before = start_usage([&pair.sender, &pair.receiver]);
    let timing = pair.fetch();
    (trial([&pair.sender, &pair.receiver], before, timing.synced), timing)
}

fn check_and_remove(source: &Path, target: &Path, whole: bool) {
    assert_eq!(size_of(source), size_of(target), "the copy is complete");
    if whole {
        files::assert_same(source, target);
    }
    fs::remove_file(target).expect("the file exists");
}
