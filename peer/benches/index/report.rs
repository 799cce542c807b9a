//! What was measured, as a table and as JSON.

use std::{fmt::Write as _, fs, time::Duration};

use serde::Serialize;

/// What a figure shall be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    AtMost(f64),
}

impl Demand {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// One figure.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    value: f64,
    demanded: Option<Demand>,
    is_met: Option<bool>,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    cpus: usize,
    /// Of the minute before: on a machine that is busy otherwise the times mean little.
    load_before: String,
    peers: usize,
    files: usize,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(peers: usize, files: usize) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load_before = load.split(' ').next().unwrap_or_default().to_owned();
        Self { cpus, load_before, peers, files, rows: Vec::new() }
    }

    pub fn figure(&mut self, what: &str, unit: &'static str, value: f64, demanded: Option<Demand>) {
        let is_met = demanded.map(|demand| demand.is_met(value));
        self.rows.push(Row { what: what.to_owned(), unit, value, demanded, is_met });
    }

    /// How many a second, one after another.
    pub fn rate(&mut self, what: &str, taken: &[Duration]) {
        let seconds: f64 = taken.iter().map(Duration::as_secs_f64).sum();
        self.figure(what, "1/s", taken.len() as f64 / seconds, None);
    }

    /// Median, 99th percentile and longest; the demand is on the 99th percentile.
    pub fn latency(&mut self, what: &str, mut taken: Vec<Duration>, demanded: Option<Duration>) {
        taken.sort_unstable();
        let at = |part: usize| taken[(taken.len() * part / 100).min(taken.len() - 1)].as_secs_f64() * 1e6;
        let demanded = demanded.map(|bound| Demand::AtMost(bound.as_secs_f64() * 1e6));
        self.figure(&format!("{what}, median"), "us", at(50), None);
        self.figure(&format!("{what}, p99"), "us", at(99), demanded);
        self.figure(&format!("{what}, longest"), "us", at(100), None);
    }

    pub fn table(&self) -> String {
        let Self { cpus, load_before, peers, files, rows } = self;
        let mut text = format!("{peers} peers, {files} files; {cpus} CPUs, load {load_before} before\n\n");
        text.push_str("| what | value | unit | demanded |\n|---|---|---|---|\n");
        for Row { what, unit, value, demanded, is_met } in rows {
            let digits = if *value < 100.0 { 1 } else { 0 };
            let demanded = match demanded {
                Some(Demand::AtMost(bound)) => {
                    format!("at most {bound}{}", if *is_met == Some(false) { ", MISSED" } else { "" })
                }
                None => String::new(),
            };
            writeln!(text, "| {what} | {value:.digits$} | {unit} | {demanded} |").expect("a text takes all");
        }
        text
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("figures are JSON")
    }

    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.is_met == Some(false)).count()
    }
}

/// Memory of this process that lies in RAM, bytes: what the allocator keeps for itself included.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the memory is read on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a resident set");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
    kib << 10
}
