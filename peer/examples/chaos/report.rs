//! What is counted during a run, what the logs say afterwards, and how both are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use shared::limits::PROVISIONAL_EPOCHS;

use crate::{
    plan::{Peer, peer_name},
    relay::Traffic,
};

/// What was counted.
#[derive(Debug, Default)]
pub struct Tally {
    counts: BTreeMap<String, BTreeMap<String, u64>>,
    /// What must not be, with the time.
    pub violations: Vec<String>,
    /// Of all downloads that were compared.
    pub downloaded_bytes: u64,
    /// From when all was mended until all named one tracker, once a round.
    pub one_tracker: Vec<Duration>,
    /// From when nothing changed any more until all listed everything, once a round.
    pub full_index: Vec<Duration>,
    /// How often somebody was asked for the tracker during the faults.
    pub asked: u64,
    /// How often the answer named one.
    pub answered: u64,
    /// What went through the network.
    pub traffic: Option<Traffic>,
}

impl Tally {
    /// Counts one of a kind.
    pub fn count(&mut self, what: &str, which: &str) {
        *self.counts.entry(what.to_owned()).or_default().entry(which.to_owned()).or_default() += 1;
    }
}

/// What the peers' logs say about elections.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Elections {
    /// How often each thing was reported.
    pub reports: BTreeMap<String, u64>,
    /// Who held a seat, by epoch.
    pub holders: BTreeMap<u64, BTreeSet<String>>,
    /// What must not be.
    pub violations: Vec<String>,
    /// What was logged as an error.
    pub errors: Vec<String>,
}

/// Reports of [`peer`]'s core that are counted.
const REPORTS: [&str; 8] = [
    "BecameTracker",
    "BecameProvisional",
    "TrackerSuspected",
    "SuspicionLifted",
    "Candidate",
    "ElectionFailed",
    "SteppedDown",
    "PeerGone",
];

impl Elections {
    /// Reads the log of a peer.
    pub fn read(&mut self, peer: Peer, log: &Path) {
        // A peer that never said anything has an empty one.
        let text = std::fs::read_to_string(log).unwrap_or_default();
        self.take(&peer_name(peer), &text);
    }

    fn take(&mut self, peer: &str, text: &str) {
        for line in text.lines() {
            if line.contains("panicked at") {
                self.violations.push(format!("{peer}: {line}"));
            } else if line.contains(" ERROR ") {
                self.errors.push(format!("{peer}: {line}"));
            }
            let Some((_, report)) = line.split_once("report=") else { continue };
            let Some(kind) = REPORTS.iter().find(|kind| report.starts_with(**kind)) else { continue };
            *self.reports.entry((*kind).to_owned()).or_default() += 1;
            if kind.starts_with("Became")
                && let Some(epoch) = epoch(report)
            {
                self.holders.entry(epoch).or_default().insert(peer.to_owned());
            }
        }
    }

    /// Looks for two trackers of one epoch. Two *provisional* ones are possible where peers did not know of each other
    /// (`docs/election.md`); they are counted.
    pub fn judge(&mut self) {
        for (epoch, holders) in &self.holders {
            if holders.len() < 2 {
                continue;
            }
            if epoch % PROVISIONAL_EPOCHS == 0 {
                *self.reports.entry("two provisional trackers of one epoch".to_owned()).or_default() += 1;
            } else {
                self.violations.push(format!("epoch {epoch} had more than one tracker: {holders:?}"));
            }
        }
    }
}

fn epoch(report: &str) -> Option<u64> {
    let (_, from) = report.split_once("epoch:")?;
    let digits: String = from.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// Of the plan.
    pub seed: u64,
    /// How many peers.
    pub peers: usize,
    /// Rounds of faults and checks.
    pub rounds: usize,
    /// How long it took.
    pub took: Duration,
    /// Why the network was not harmed, if it was not.
    pub no_network: Option<String>,
    /// What was counted.
    pub tally: Tally,
    /// What the logs say.
    pub elections: Elections,
}

impl Report {
    /// What must not be, all of it.
    pub fn violations(&self) -> impl Iterator<Item = &String> {
        self.tally.violations.iter().chain(&self.elections.violations)
    }

    /// The same as the text, for programs.
    pub fn json(&self) -> Value {
        let seconds = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
        json!({
            "seed": self.seed,
            "peers": self.peers,
            "rounds": self.rounds,
            "seconds": self.took.as_secs_f64(),
            "network_faults_missing": self.no_network,
            "counts": self.tally.counts,
            "downloaded_bytes": self.tally.downloaded_bytes,
            "one_tracker_seconds": seconds(&self.tally.one_tracker),
            "full_index_seconds": seconds(&self.tally.full_index),
            "tracker_asked": self.tally.asked,
            "tracker_answered": self.tally.answered,
            "traffic": self.tally.traffic,
            "elections": self.elections.reports,
            "epochs": self.elections.holders.len(),
            "highest_epoch": self.elections.holders.keys().last(),
            "logged_errors": self.elections.errors,
            "violations": self.violations().collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, peers, rounds, took, .. } = self;
        writeln!(f, "seed {seed}: {peers} peers, {rounds} rounds, {:.0} s", took.as_secs_f64())?;
        if let Some(why) = &self.no_network {
            writeln!(f, "the network was not harmed: {why}")?;
        }
        for (what, counts) in &self.tally.counts {
            let sum: u64 = counts.values().sum();
            writeln!(f, "{what}: {sum}")?;
            for (which, count) in counts {
                writeln!(f, "  {count:>6} {which}")?;
            }
        }
        writeln!(f, "downloaded and compared: {:.1} MiB", self.tally.downloaded_bytes as f64 / f64::from(1 << 20))?;
        if let Some(traffic) = &self.tally.traffic {
            writeln!(f, "datagrams: {traffic:?}")?;
        }
        let (asked, answered) = (self.tally.asked, self.tally.answered);
        writeln!(f, "a tracker was named {answered} times of {asked} during the faults")?;
        let mut elections = String::new();
        for (report, count) in &self.elections.reports {
            write!(elections, " {report} {count},")?;
        }
        let (epochs, highest) = (self.elections.holders.len(), self.elections.holders.keys().last());
        writeln!(
            f,
            "elections:{elections} {epochs} epochs held, the highest {}",
            highest.copied().unwrap_or_default()
        )?;
        writeln!(f, "from mended to one tracker for all: {}", spread(&self.tally.one_tracker))?;
        writeln!(f, "from the last change to full lists everywhere: {}", spread(&self.tally.full_index))?;
        for error in &self.elections.errors {
            writeln!(f, "logged: {error}")?;
        }
        let violations = self.violations().count();
        writeln!(f, "violations: {violations}")?;
        self.violations().try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort();
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(least), Some(median), Some(most)) => {
            let [least, median, most] = [least, median, most].map(Duration::as_secs_f64);
            format!("{median:.1} s ({least:.1}-{most:.1}, {} rounds)", sorted.len())
        }
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(logs: &[(&str, &str)]) -> Elections {
        let mut elections = Elections::default();
        logs.iter().for_each(|(peer, text)| elections.take(peer, text));
        elections.judge();
        elections
    }

    #[test]
    fn two_trackers_of_an_epoch_are_found_in_the_logs() {
        let became =
            |epoch| format!("2026 INFO peer::runtime::core_task: report=BecameTracker {{ epoch: Epoch({epoch}) }}\n");
        let fine = read(&[("peer1", &became(3)), ("peer2", &became(4)), ("peer1", &became(3))]);
        assert_eq!((fine.violations.len(), fine.reports["BecameTracker"]), (0, 3));
        let wrong = read(&[("peer1", &became(3)), ("peer2", &became(3))]);
        assert_eq!(wrong.violations.len(), 1, "{wrong:?}");
        let provisional = read(&[("peer1", &became(64)), ("peer2", &became(64))]);
        assert!(provisional.violations.is_empty(), "{provisional:?}");
    }

    #[test]
    fn a_panic_is_found_in_the_logs() {
        let elections = read(&[("peer1", "thread 'main' (1) panicked at peer/src/x.rs:1:1:\nno\n")]);
        assert_eq!(elections.violations.len(), 1);
    }
}
