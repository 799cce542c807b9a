//! One, two and four owners with equal rate limits: the rate of k owners relative to k times the rate of one.

use std::fs;

use crate::{
    cluster::{Cluster, has_flag},
    demand::Demand,
    files,
    programs::NAMESERVER_HOST,
    report::{Report, ratios},
    settings::Settings,
    testbed::{LinkRates, Testbed},
    usage::timed,
};

pub const NAME: &str = "owners";

const OWNERS: [&str; 4] = ["owner1", "owner2", "owner3", "owner4"];
const COUNTS: [usize; 3] = [1, 2, 4];
/// Rate limit of an owner for `--limit-up`. Four owners at this rate do not saturate the processors.
const LIMIT: &str = "20MB";
/// The same limit as a link rate.
const LIMIT_MBIT: u32 = 160;
/// Lower bound of the rate of k owners, relative to k times the rate of one.
const MIN_EFFICIENCY: f64 = 0.95;

pub fn run(settings: &Settings, report: &mut Report) {
    let bytes: u64 = settings.pick(256 << 20, 32 << 20);
    let by_flag = has_flag("--limit-up");
    let mut testbed = None;
    if by_flag {
        report.note(NAME, format!("each owner is limited by --limit-up {LIMIT}"));
    } else {
        match Testbed::unavailable() {
            None => testbed = Some(new_testbed()),
            Some(reason) => return report.note(NAME, format!("skipped: peer has no --limit-up, and {reason}")),
        }
        report.note(NAME, format!("each owner is behind a link of {LIMIT_MBIT} Mbit/s: peer has no --limit-up"));
    }
    let folder = settings.folder();
    let mut cluster = Cluster::start(folder.path(), testbed);
    cluster.start_peer("receiver", &[]);
    let flags: &[&str] = if by_flag { &["--limit-up", LIMIT] } else { &[] };
    for (count, seed) in COUNTS.into_iter().zip(3..) {
        let path = folder.path().join(file(count));
        files::create(&path, bytes, seed);
        for owner in &OWNERS[..count] {
            fs::hard_link(&path, cluster.share(owner).join(file(count))).expect("the file system has hard links");
        }
    }
    for owner in OWNERS {
        cluster.start_peer(owner, flags);
    }
    let wait_for_owners =
        |cluster: &Cluster, count| cluster.wait_for_owners("receiver", &file(count), &OWNERS[..count]);
    COUNTS.into_iter().for_each(|count| wait_for_owners(&cluster, count));

    let mut rates = COUNTS.map(|_| Vec::new());
    for run in 0..settings.runs {
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
            wait_for_owners(&cluster, count);
        }
    }
    for (count, rates) in COUNTS.into_iter().zip(&rates) {
        report.add(NAME, format!("rate of {count}"), "MB/s", rates.clone(), None);
    }
    for (count, several) in COUNTS.into_iter().zip(&rates).skip(1) {
        let efficiencies = ratios(several, &rates[0]).into_iter().map(|ratio| ratio / count as f64).collect();
        let demand = Some(Demand::AtLeast(MIN_EFFICIENCY));
        report.add(NAME, format!("rate of {count} / {count} times the rate of 1"), "ratio", efficiencies, demand);
    }
}

/// Returns the name of the file with this number of owners. Each file has its own content.
fn file(owners: usize) -> String {
    format!("of-{owners}.bin")
}

fn new_testbed() -> Testbed {
    let mut testbed = Testbed::new();
    testbed.add(NAMESERVER_HOST, LinkRates::default());
    testbed.add("receiver", LinkRates::default());
    for owner in OWNERS {
        testbed.add(owner, LinkRates { up_mbit: Some(LIMIT_MBIT), down_mbit: None });
    }
    testbed
}
