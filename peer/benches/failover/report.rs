//! Results as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

use crate::{fault::Fault, machine::Machine};

/// Times of one fault, milliseconds.
#[derive(Debug, Serialize)]
struct Row {
    tracker: String,
    p50: f64,
    p99: f64,
    min: f64,
    max: f64,
    rounds: Vec<f64>,
    p50_demanded: f64,
    p99_demanded: Option<f64>,
    is_met: bool,
}

/// Results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    machine: Machine,
    peers: u32,
    files: usize,
    rounds: u32,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(peers: u32, files: usize, rounds: u32) -> Self {
        Self { machine: Machine::detect(), peers, files, rounds, rows: Vec::new() }
    }

    pub fn heading(&self) -> String {
        let Self { machine, peers, files, rounds, .. } = self;
        format!(
            "{machine}; {peers} peers, {files} files, {rounds} rounds each\n\n\
             | tracker | p50 | p99 | min | max | demanded p50 / p99 |\n|---|---|---|---|---|---|"
        )
    }

    /// Adds the times of one fault. Returns its line of the table.
    pub fn add(&mut self, fault: Fault, times: Vec<Duration>) -> String {
        let rounds: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        // Nearest rank: with fewer than a hundred rounds the 99th percentile is the maximum.
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        let (p50, p99) = (rank(50), rank(99));
        let (p50_demanded, p99_demanded) = fault.demands();
        let is_met = p50 < p50_demanded && p99_demanded.is_none_or(|demanded| p99 < demanded);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let tracker = format!("{fault:?}");
        let demands = p99_demanded.map_or_else(String::new, |demanded| format!(" / {demanded:.0}"));
        let missed = if is_met { "" } else { ", MISSED" };
        let line = format!(
            "| {tracker} | {p50:.0} ms | {p99:.0} ms | {min:.0} ms | {max:.0} ms | \
             {p50_demanded:.0}{demands} ms{missed} |"
        );
        self.rows.push(Row { tracker, p50, p99, min, max, rounds, p50_demanded, p99_demanded, is_met });
        line
    }

    pub fn is_any_demand_missed(&self) -> bool {
        self.rows.iter().any(|row| !row.is_met)
    }
}
