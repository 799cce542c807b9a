//! Statistics of a run, elections from the peers' logs, and the report of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use shared::limits::PROVISIONAL_EPOCHS;

use crate::{
    relay::Traffic,
    topology::{PeerIndex, peer_name},
};

/// Reports of a peer's election core that are counted.
const COUNTED_REPORTS: [&str; 8] = [
    "BecameTracker",
    "BecameProvisional",
    "TrackerSuspected",
    "SuspicionLifted",
    "Candidate",
    "ElectionFailed",
    "SteppedDown",
    "PeerGone",
];

/// Statistics of a run.
#[derive(Debug, Default)]
pub struct Stats {
    counts: BTreeMap<String, BTreeMap<String, u64>>,
    /// Violations, each with its time.
    pub violations: Vec<String>,
    /// Bytes of all downloads that were compared.
    pub downloaded_bytes: u64,
    /// Time from healing until all peers name one tracker, for each round.
    pub one_tracker: Vec<Duration>,
    /// Time from the last change until all listings are complete, for each round.
    pub full_index: Vec<Duration>,
    /// Polls for the tracker during faults.
    pub asked: u64,
    /// Polls that named a tracker.
    pub answered: u64,
    /// Traffic through the relay.
    pub traffic: Option<Traffic>,
}

impl Stats {
    /// Increments the counter `counter` in the group `group`.
    pub fn count(&mut self, group: &str, counter: &str) {
        *self.counts.entry(group.to_owned()).or_default().entry(counter.to_owned()).or_default() += 1;
    }
}

/// Elections according to the peers' logs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Elections {
    /// Number of log lines by report.
    pub reports: BTreeMap<String, u64>,
    /// Peers that became tracker, by epoch.
    pub trackers: BTreeMap<u64, BTreeSet<String>>,
    /// Violations.
    pub violations: Vec<String>,
    /// Log lines at level error.
    pub errors: Vec<String>,
}

impl Elections {
    /// Reads the log of a peer.
    pub fn read(&mut self, peer: PeerIndex, log: &Path) {
        // A peer that logged nothing has an empty log.
        let text = std::fs::read_to_string(log).unwrap_or_default();
        self.parse(&peer_name(peer), &text);
    }

    fn parse(&mut self, peer: &str, text: &str) {
        for line in text.lines() {
            if line.contains("panicked at") {
                self.violations.push(format!("{peer}: {line}"));
            } else if line.contains(" ERROR ") {
                self.errors.push(format!("{peer}: {line}"));
            }
            let Some((_, report)) = line.split_once("report=") else { continue };
            let Some(kind) = COUNTED_REPORTS.iter().find(|kind| report.starts_with(**kind)) else { continue };
            *self.reports.entry((*kind).to_owned()).or_default() += 1;
            if kind.starts_with("Became")
                && let Some(epoch) = epoch(report)
            {
                self.trackers.entry(epoch).or_default().insert(peer.to_owned());
            }
        }
    }

    /// Checks that no epoch has two trackers. Two *provisional* trackers are possible among peers that do not know of
    /// each other (`docs/election.md`) and are only counted. Logs without any tracker are a violation, because then
    /// this check would pass whatever happened.
    pub fn check(&mut self) {
        if self.trackers.is_empty() {
            self.violations.push("the logs name no tracker: their format has changed".to_owned());
        }
        for (epoch, trackers) in &self.trackers {
            if trackers.len() < 2 {
                continue;
            }
            if epoch % PROVISIONAL_EPOCHS == 0 {
                *self.reports.entry("two provisional trackers of one epoch".to_owned()).or_default() += 1;
            } else {
                self.violations.push(format!("epoch {epoch} had more than one tracker: {trackers:?}"));
            }
        }
    }
}

fn epoch(report: &str) -> Option<u64> {
    let (_, from) = report.split_once("epoch:")?;
    let digits: String = from.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Report of a run.
#[derive(Debug)]
pub struct Report {
    /// Seed of the run.
    pub seed: u64,
    /// Number of peers.
    pub peers: usize,
    /// Number of rounds.
    pub rounds: usize,
    /// Duration of the run, checks included.
    pub took: Duration,
    /// Reason for a run without network faults.
    pub no_network: Option<String>,
    /// Statistics.
    pub stats: Stats,
    /// Elections.
    pub elections: Elections,
}

impl Report {
    /// Returns all violations.
    pub fn violations(&self) -> impl Iterator<Item = &String> {
        self.stats.violations.iter().chain(&self.elections.violations)
    }

    /// Returns the report as a JSON document.
    pub fn json(&self) -> Value {
        let seconds = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
        json!({
            "seed": self.seed,
            "peers": self.peers,
            "rounds": self.rounds,
            "seconds": self.took.as_secs_f64(),
            "network_faults_missing": self.no_network,
            "counts": self.stats.counts,
            "downloaded_bytes": self.stats.downloaded_bytes,
            "one_tracker_seconds": seconds(&self.stats.one_tracker),
            "full_index_seconds": seconds(&self.stats.full_index),
            "tracker_asked": self.stats.asked,
            "tracker_answered": self.stats.answered,
            "traffic": self.stats.traffic,
            "elections": self.elections.reports,
            "epochs": self.elections.trackers.len(),
            "highest_epoch": self.elections.trackers.keys().last(),
            "logged_errors": self.elections.errors,
            "violations": self.violations().collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, peers, rounds, took, .. } = self;
        writeln!(f, "seed {seed}: {peers} peers, {rounds} rounds, {:.0} s", took.as_secs_f64())?;
        if let Some(reason) = &self.no_network {
            writeln!(f, "no network faults: {reason}")?;
        }
        for (group, counts) in &self.stats.counts {
            let sum: u64 = counts.values().sum();
            writeln!(f, "{group}: {sum}")?;
            for (counter, count) in counts {
                writeln!(f, "  {count:>6} {counter}")?;
            }
        }
        writeln!(f, "downloaded and compared: {:.1} MiB", self.stats.downloaded_bytes as f64 / f64::from(1 << 20))?;
        if let Some(traffic) = &self.stats.traffic {
            writeln!(f, "datagrams: {traffic:?}")?;
        }
        let (asked, answered) = (self.stats.asked, self.stats.answered);
        writeln!(f, "a tracker was named by {answered} of {asked} polls during faults")?;
        let mut elections = String::new();
        for (report, count) in &self.elections.reports {
            write!(elections, " {report} {count},")?;
        }
        let (epochs, highest) = (self.elections.trackers.len(), self.elections.trackers.keys().last());
        writeln!(
            f,
            "elections:{elections} {epochs} epochs with a tracker, the highest {}",
            highest.copied().unwrap_or_default()
        )?;
        writeln!(f, "healing to one tracker for all peers: {}", spread(&self.stats.one_tracker))?;
        writeln!(f, "last change to complete listings of all peers: {}", spread(&self.stats.full_index))?;
        for error in &self.elections.errors {
            writeln!(f, "logged error: {error}")?;
        }
        let violations = self.violations().count();
        writeln!(f, "violations: {violations}")?;
        self.violations().try_for_each(|violation| writeln!(f, "  {violation}"))
    }
}

/// Median, minimum and maximum of the rounds' times.
fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort();
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(min), Some(median), Some(max)) => {
            let [min, median, max] = [min, median, max].map(Duration::as_secs_f64);
            format!("{median:.1} s ({min:.1}-{max:.1}, {} rounds)", sorted.len())
        }
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elections(logs: &[(&str, &str)]) -> Elections {
        let mut elections = Elections::default();
        logs.iter().for_each(|(peer, text)| elections.parse(peer, text));
        elections.check();
        elections
    }

    fn became_tracker(epoch: u64) -> String {
        format!("2026 INFO peer: report=BecameTracker {{ epoch: Epoch({epoch}) }}\n")
    }

    #[test]
    fn two_trackers_of_one_epoch_are_a_violation_unless_provisional() {
        let correct =
            elections(&[("peer1", &became_tracker(3)), ("peer2", &became_tracker(4)), ("peer1", &became_tracker(3))]);
        assert_eq!((correct.violations.len(), correct.reports["BecameTracker"]), (0, 3));
        let wrong = elections(&[("peer1", &became_tracker(3)), ("peer2", &became_tracker(3))]);
        assert_eq!(wrong.violations.len(), 1, "{wrong:?}");
        let provisional = elections(&[("peer1", &became_tracker(64)), ("peer2", &became_tracker(64))]);
        assert!(provisional.violations.is_empty(), "{provisional:?}");
    }

    #[test]
    fn panic_in_a_log_is_a_violation() {
        let log = became_tracker(3) + "thread 'main' (1) panicked at peer/src/x.rs:1:1:\nno\n";
        assert_eq!(elections(&[("peer1", &log)]).violations.len(), 1);
    }

    #[test]
    fn logs_without_a_tracker_are_a_violation() {
        assert_eq!(elections(&[("peer1", "2026 INFO peer: started\n")]).violations.len(), 1);
    }
}
