//! A download from two owners of which one fails halfway: the extra time relative to the undisturbed download of the
//! same run.
//!
//! With a [`Testbed`] the receiver's link is the bottleneck, and one owner alone can saturate it. The extra time is
//! then the detection time of the failure, not the lost rate of the failed owner.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use shared::time::Clock;

use crate::{
    cluster::Cluster,
    demand::Demand,
    files,
    process::pause,
    programs::NAMESERVER_HOST,
    report::Report,
    settings::Settings,
    testbed::{LinkRates, Testbed},
};

pub const NAME: &str = "failures";

const RECEIVER: &str = "receiver";
const OWNERS: [&str; 2] = ["owner1", "owner2"];
/// Owner that fails.
const VICTIM: &str = OWNERS[0];
const FILE: &str = "big.bin";
/// Rate of the receiver's link.
const RECEIVER_LINK_MBIT: u32 = 400;
/// Upper bound of the extra time, seconds.
const MAX_EXTRA_SECONDS: f64 = 2.0;
const MIB: f64 = (1u64 << 20) as f64;

/// One download.
struct Trial {
    seconds: f64,
    /// Data from the victim, MiB. A victim that delivers nothing makes the trial meaningless.
    from_victim: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    CutOff,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed (SIGKILL)",
            Self::Frozen => "frozen (SIGSTOP)",
            Self::CutOff => "cut off (network disconnected)",
        }
    }
}

pub fn run(settings: &Settings, report: &mut Report) {
    let folder = settings.folder();
    let (testbed, bytes, faults): (_, u64, &[Fault]) = match Testbed::unavailable() {
        None => {
            (Some(new_testbed()), settings.pick(256 << 20, 64 << 20), &[Fault::Killed, Fault::Frozen, Fault::CutOff])
        }
        Some(reason) => {
            report.note(NAME, format!("on loopback, without a cut-off: {reason}"));
            (None, settings.pick(1 << 30, 256 << 20), &[Fault::Killed, Fault::Frozen])
        }
    };
    let mut cluster = Cluster::start(folder.path(), testbed);
    cluster.start_peer(RECEIVER, &[]);
    let source = folder.path().join(FILE);
    files::create(&source, bytes, 7);
    for owner in OWNERS {
        std::fs::hard_link(&source, cluster.share(owner).join(FILE)).expect("the file system has hard links");
        cluster.start_peer(owner, &[]);
    }
    cluster.wait_for_owners(RECEIVER, FILE, &OWNERS);

    let (mut undisturbed, mut from_victim) = (Vec::new(), Vec::new());
    let mut extra: Vec<_> = faults.iter().map(|fault| (*fault, Vec::new(), Vec::new())).collect();
    for run in 0..settings.runs {
        files::settle(folder.path());
        let baseline = download(&cluster, None);
        if run == 0 {
            files::assert_same(&source, &cluster.share(RECEIVER).join(FILE));
        }
        remove_download(&cluster);
        undisturbed.push(baseline.seconds);
        from_victim.push(baseline.from_victim);
        for (fault, extra, from_victim) in &mut extra {
            files::settle(folder.path());
            let disturbed = download(&cluster, Some((*fault, Duration::from_secs_f64(baseline.seconds / 2.0))));
            files::assert_same(&source, &cluster.share(RECEIVER).join(FILE));
            extra.push(disturbed.seconds - baseline.seconds);
            from_victim.push(disturbed.from_victim);
            // A restart recovers from every fault.
            cluster.stop_peer(VICTIM);
            if let (Fault::CutOff, Some(testbed)) = (*fault, cluster.testbed()) {
                testbed.set_connected(VICTIM, true);
            }
            cluster.start_peer(VICTIM, &[]);
            remove_download(&cluster);
        }
    }
    report.add(NAME, "undisturbed: time", "s", undisturbed, None);
    report.add(NAME, format!("undisturbed: from {VICTIM}"), "MiB", from_victim, None);
    for (fault, seconds, from_victim) in extra {
        report.add(NAME, format!("{}: extra", fault.name()), "s", seconds, Some(Demand::AtMost(MAX_EXTRA_SECONDS)));
        report.add(NAME, format!("{}: from {VICTIM}", fault.name()), "MiB", from_victim, None);
    }
}

fn new_testbed() -> Testbed {
    let mut testbed = Testbed::new();
    testbed.add(NAMESERVER_HOST, LinkRates::default());
    testbed.add(RECEIVER, LinkRates { up_mbit: None, down_mbit: Some(RECEIVER_LINK_MBIT) });
    for owner in OWNERS {
        testbed.add(owner, LinkRates::default());
    }
    testbed
}

/// Downloads the file. The victim suffers the fault, if any, this long after the start.
fn download(cluster: &Cluster, failure: Option<(Fault, Duration)>) -> Trial {
    let clock = Clock::start();
    let child = cluster.command(RECEIVER, &["download", FILE]).spawn().expect("peer runs");
    let waiting = std::thread::spawn(move || {
        let output = child.wait_with_output().expect("the command is a child");
        (clock.now().since_origin(), output)
    });
    if let Some((fault, after)) = failure {
        pause(after);
        match fault {
            Fault::Killed => cluster.peer(VICTIM).signal(Signal::KILL),
            Fault::Frozen => cluster.peer(VICTIM).signal(Signal::STOP),
            Fault::CutOff => cluster.testbed().expect("a cut-off needs a testbed").set_connected(VICTIM, false),
        }
        assert!(!waiting.is_finished(), "the download is in progress when its owner fails");
    }
    let (took, output) = waiting.join().expect("the waiting thread does not panic");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the command prints a document");
    let sources = answer["files"][0]["sources"].as_array().expect("a download names its sources");
    let victim = sources.iter().find(|source| source["peer"] == VICTIM);
    let bytes = victim.and_then(|source| source["bytes"].as_f64()).unwrap_or(0.0);
    Trial { seconds: took.as_secs_f64(), from_victim: bytes / MIB }
}

/// Removes the downloaded file and waits until the index has only the two owners.
fn remove_download(cluster: &Cluster) {
    cluster.run(RECEIVER, &["remove", FILE]);
    cluster.wait_for_owners(RECEIVER, FILE, &OWNERS);
}
