//! Results as a table and as JSON.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

use crate::{demand::Demand, machine::Machine};

/// One figure.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    unit: &'static str,
    value: f64,
    demanded: Option<Demand>,
    is_met: Option<bool>,
}

/// Results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    machine: Machine,
    peers: usize,
    files: usize,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(peers: usize, files: usize) -> Self {
        Self { machine: Machine::detect(), peers, files, rows: Vec::new() }
    }

    pub fn figure(&mut self, what: &str, unit: &'static str, value: f64, demanded: Option<Demand>) {
        let is_met = demanded.map(|demand| demand.is_met(value));
        self.rows.push(Row { what: what.to_owned(), unit, value, demanded, is_met });
    }

    /// Adds the rate of operations that ran one after another.
    pub fn rate(&mut self, what: &str, taken: &[Duration]) {
        let seconds: f64 = taken.iter().map(Duration::as_secs_f64).sum();
        self.figure(what, "1/s", taken.len() as f64 / seconds, None);
    }

    /// Adds median, 99th percentile and maximum. The demand is on the 99th percentile.
    pub fn latency(&mut self, what: &str, mut taken: Vec<Duration>, demanded: Option<Duration>) {
        taken.sort_unstable();
        let at = |percent: usize| taken[(taken.len() * percent / 100).min(taken.len() - 1)].as_secs_f64() * 1e6;
        let demanded = demanded.map(|bound| Demand::AtMost(bound.as_secs_f64() * 1e6));
        self.figure(&format!("{what}, median"), "us", at(50), None);
        self.figure(&format!("{what}, p99"), "us", at(99), demanded);
        self.figure(&format!("{what}, longest"), "us", at(100), None);
    }

    pub fn table(&self) -> String {
        let Self { machine, peers, files, rows } = self;
        let mut text = format!("{peers} peers, {files} files; {machine}\n\n");
        text.push_str("| what | value | unit | demanded |\n|---|---|---|---|\n");
        for Row { what, unit, value, demanded, is_met } in rows {
            let digits = if *value < 100.0 { 1 } else { 0 };
            let missed = if *is_met == Some(false) { ", MISSED" } else { "" };
            let demanded = match demanded {
                Some(Demand::AtMost(bound)) => format!("at most {bound}{missed}"),
                Some(Demand::AtLeast(bound)) => format!("at least {bound}{missed}"),
                None => String::new(),
            };
            writeln!(text, "| {what} | {value:.digits$} | {unit} | {demanded} |").expect("a string accepts all writes");
        }
        text
    }

    /// Number of demands that are not met.
    pub fn missed(&self) -> usize {
        self.rows.iter().filter(|row| row.is_met == Some(false)).count()
    }
}
