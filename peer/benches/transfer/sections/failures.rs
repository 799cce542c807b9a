//! An owner fails in the middle of a download from two: how much longer that takes than undisturbed, in the same run.
//!
//! Where there are machines (see [`Lab`]) the receiver's own link is the narrow one, which one owner alone can fill: what
//! is lost is then the time in which the failure goes unnoticed, not the failed owner's rate.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use shared::time::Clock;

use super::Plan;
use crate::{
    cluster::{Cluster, NAMESERVER},
    files,
    lab::{Lab, Link},
    process::pause,
    report::{Demand, Report},
};

pub const NAME: &str = "failures";

const RECEIVER: &str = "receiver";
const OWNERS: [&str; 2] = ["owner1", "owner2"];
/// The one that fails.
const VICTIM: &str = OWNERS[0];
const FILE: &str = "big.bin";
const RECEIVERS_LINK_MBIT: u32 = 400;
const MOST_SECONDS: f64 = 2.0;
const MIB: f64 = (1u64 << 20) as f64;

/// One download.
struct Trial {
    seconds: f64,
    /// What the victim brought. An owner that brings nothing fails without anybody noticing.
    from_victim: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Killed,
    Frozen,
    CutOff,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "killed (SIGKILL)",
            Self::Frozen => "frozen (SIGSTOP)",
            Self::CutOff => "cut off (its cable is pulled)",
        }
    }
}

pub fn run(plan: &Plan, report: &mut Report) {
    let folder = plan.folder();
    let (lab, bytes, ways): (_, u64, &[How]) = match Lab::missing() {
        None => (Some(machines()), plan.pick(256 << 20, 64 << 20), &[How::Killed, How::Frozen, How::CutOff]),
        Some(why) => {
            report.note(NAME, format!("on loopback, nobody is cut off: {why}"));
            (None, plan.pick(1 << 30, 256 << 20), &[How::Killed, How::Frozen])
        }
    };
    let mut cluster = Cluster::start(folder.path(), lab);
    cluster.start_peer(RECEIVER, &[]);
    let source = folder.path().join(FILE);
    files::make(&source, bytes, 7);
    for owner in OWNERS {
        std::fs::hard_link(&source, cluster.share(owner).join(FILE)).expect("a second name for the file");
        cluster.start_peer(owner, &[]);
    }
    cluster.wait_for_owners(RECEIVER, FILE, &OWNERS);

    let (mut undisturbed, mut brought) = (Vec::new(), Vec::new());
    let mut extra: Vec<_> = ways.iter().map(|how| (*how, Vec::new(), Vec::new())).collect();
    for run in 0..plan.runs {
        files::settle(folder.path());
        let quiet = download(&cluster, None);
        if run == 0 {
            files::assert_same(&source, &cluster.share(RECEIVER).join(FILE));
        }
        forget(&cluster);
        undisturbed.push(quiet.seconds);
        brought.push(quiet.from_victim);
        for (how, extra, brought) in &mut extra {
            files::settle(folder.path());
            let disturbed = download(&cluster, Some((*how, Duration::from_secs_f64(quiet.seconds / 2.0))));
            files::assert_same(&source, &cluster.share(RECEIVER).join(FILE));
            extra.push(disturbed.seconds - quiet.seconds);
            brought.push(disturbed.from_victim);
            // However it failed, a new run of it is as good as before.
            cluster.stop_peer(VICTIM);
            if let (How::CutOff, Some(lab)) = (*how, cluster.lab()) {
                lab.set_cable(VICTIM, true);
            }
            cluster.start_peer(VICTIM, &[]);
            forget(&cluster);
        }
    }
    report.add(NAME, "undisturbed: time", "s", undisturbed, None);
    report.add(NAME, format!("undisturbed: from {VICTIM}"), "MiB", brought, None);
    for (how, seconds, brought) in extra {
        report.add(NAME, format!("{}: extra", how.name()), "s", seconds, Some(Demand::AtMost(MOST_SECONDS)));
        report.add(NAME, format!("{}: from {VICTIM}", how.name()), "MiB", brought, None);
    }
}

fn machines() -> Lab {
    let mut lab = Lab::new();
    lab.add(NAMESERVER, Link::default());
    lab.add(RECEIVER, Link { up_mbit: None, down_mbit: Some(RECEIVERS_LINK_MBIT) });
    for owner in OWNERS {
        lab.add(owner, Link::default());
    }
    lab
}

/// How long a download takes in which, so long after its beginning, an owner fails.
fn download(cluster: &Cluster, failure: Option<(How, Duration)>) -> Trial {
    let clock = Clock::start();
    let child = cluster.command(RECEIVER, &["download", FILE]).spawn().expect("peer runs");
    let waiting = std::thread::spawn(move || {
        let output = child.wait_with_output().expect("it can be waited for");
        (clock.now().since_origin(), output)
    });
    if let Some((how, after)) = failure {
        pause(after);
        match how {
            How::Killed => cluster.peer(VICTIM).signal(Signal::KILL),
            How::Frozen => cluster.peer(VICTIM).signal(Signal::STOP),
            How::CutOff => cluster.lab().expect("cables are in labs only").set_cable(VICTIM, false),
        }
        assert!(!waiting.is_finished(), "the download was over before its owner failed");
    }
    let (took, output) = waiting.join().expect("the command is waited for");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("a document");
    let sources = answer["files"][0]["sources"].as_array().expect("a download names its sources");
    let victim = sources.iter().find(|source| source["peer"] == VICTIM);
    let bytes = victim.and_then(|source| source["bytes"].as_f64()).unwrap_or(0.0);
    Trial { seconds: took.as_secs_f64(), from_victim: bytes / MIB }
}

/// Removes what was downloaded and waits until everybody is as before.
fn forget(cluster: &Cluster) {
    cluster.run(RECEIVER, &["remove", FILE]);
    cluster.wait_for_owners(RECEIVER, FILE, &OWNERS);
}
