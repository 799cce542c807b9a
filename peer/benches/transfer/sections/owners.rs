//! One, two and four owners that each send at most at one rate: how much of k times one owner's rate k bring.

use std::fs;

use super::Plan;
use crate::{
    cluster::{Cluster, NAMESERVER, has_flag},
    files,
    lab::{Lab, Link},
    process::timed,
    report::{Demand, Report, ratios},
};

pub const NAME: &str = "owners";

const OWNERS: [&str; 4] = ["owner1", "owner2", "owner3", "owner4"];
const COUNTS: [usize; 3] = [1, 2, 4];
/// Rate of an owner, as `--limit-up` takes it and as a link has it: four of them leave this machine time to spare.
const LIMIT: &str = "20MB";
const LIMIT_MBIT: u32 = 160;
const LEAST_PART: f64 = 0.95;

pub fn run(plan: &Plan, report: &mut Report) {
    let bytes: u64 = plan.pick(256 << 20, 32 << 20);
    let by_flag = has_flag("--limit-up");
    let mut lab = None;
    if by_flag {
        report.note(NAME, format!("each owner is limited by --limit-up {LIMIT}"));
    } else {
        match Lab::missing() {
            None => lab = Some(slow_owners()),
            Some(why) => return report.note(NAME, format!("skipped: peer has no --limit-up, and {why}")),
        }
        report.note(NAME, format!("each owner is behind a link of {LIMIT_MBIT} Mbit/s: peer has no --limit-up"));
    }
    let folder = plan.folder();
    let mut cluster = Cluster::start(folder.path(), lab);
    cluster.start_peer("receiver", &[]);
    let flags: &[&str] = if by_flag { &["--limit-up", LIMIT] } else { &[] };
    for (count, seed) in COUNTS.into_iter().zip(3..) {
        let made = folder.path().join(file(count));
        files::make(&made, bytes, seed);
        for owner in &OWNERS[..count] {
            fs::hard_link(&made, cluster.share(owner).join(file(count))).expect("a second name for the file");
        }
    }
    for owner in OWNERS {
        cluster.start_peer(owner, flags);
    }
    let ready = |cluster: &Cluster, count| cluster.wait_for_owners("receiver", &file(count), &OWNERS[..count]);
    COUNTS.into_iter().for_each(|count| ready(&cluster, count));

    let mut rates = COUNTS.map(|_| Vec::new());
    for run in 0..plan.runs {
        for (count, rates) in COUNTS.into_iter().zip(&mut rates) {
            files::settle(folder.path());
            let ((), seconds) = timed(|| {
                cluster.run("receiver", &["download", &file(count)]);
            });
            rates.push(bytes as f64 / 1e6 / seconds);
            if run == 0 {
                files::assert_same(&folder.path().join(file(count)), &cluster.share("receiver").join(file(count)));
            }
            cluster.run("receiver", &["remove", &file(count)]);
            ready(&cluster, count);
        }
    }
    for (count, rates) in COUNTS.into_iter().zip(&rates) {
        report.add(NAME, format!("rate of {count}"), "MB/s", rates.clone(), None);
    }
    for (count, several) in COUNTS.into_iter().zip(&rates).skip(1) {
        let parts = ratios(several, &rates[0]).into_iter().map(|ratio| ratio / count as f64).collect();
        let demand = Some(Demand::AtLeast(LEAST_PART));
        report.add(NAME, format!("rate of {count} / {count} times the rate of 1"), "ratio", parts, demand);
    }
}

/// Each has a content of its own, so that the number of its owners is known.
fn file(owners: usize) -> String {
    format!("of-{owners}.bin")
}

fn slow_owners() -> Lab {
    let mut lab = Lab::new();
    lab.add(NAMESERVER, Link::default());
    lab.add("receiver", Link::default());
    for owner in OWNERS {
        lab.add(owner, Link { up_mbit: Some(LIMIT_MBIT), down_mbit: None });
    }
    lab
}
