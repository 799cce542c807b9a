//! What was measured, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

use crate::How;

/// Times of one kind, milliseconds.
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

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    cpus: usize,
    /// Of the minute before: on a machine that is busy otherwise the figures mean little.
    load_before: String,
    peers: u32,
    files: usize,
    rounds: u32,
    rows: Vec<Row>,
}

impl Report {
    pub fn new(peers: u32, files: usize, rounds: u32) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load_before: load.split_whitespace().next().unwrap_or("unknown").to_owned(),
            peers,
            files,
            rounds,
            rows: Vec::new(),
        }
    }

    pub fn heading(&self) -> String {
        let Self { cpus, load_before, peers, files, rounds, .. } = self;
        format!(
            "{cpus} CPUs, load {load_before} before; {peers} peers, {files} files, {rounds} rounds each\n\n\
             | tracker | p50 | p99 | min | max | demanded p50 / p99 |\n|---|---|---|---|---|---|"
        )
    }

    /// Keeps the times of one kind; the line of the table.
    pub fn add(&mut self, how: How, times: Vec<Duration>) -> String {
        let rounds: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        // Nearest rank: with fewer than a hundred rounds the 99th percentile is the longest.
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        let (p50, p99) = (rank(50), rank(99));
        let (p50_demanded, p99_demanded) = demanded(how);
        let is_met = p50 < p50_demanded && p99_demanded.is_none_or(|demanded| p99 < demanded);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let tracker = format!("{how:?}");
        let demands = p99_demanded.map_or_else(String::new, |demanded| format!(" / {demanded:.0}"));
        let missed = if is_met { "" } else { ", MISSED" };
        let line = format!(
            "| {tracker} | {p50:.0} ms | {p99:.0} ms | {min:.0} ms | {max:.0} ms | {p50_demanded:.0}{demands} ms{missed} |"
        );
        self.rows.push(Row { tracker, p50, p99, min, max, rounds, p50_demanded, p99_demanded, is_met });
        line
    }

    pub fn is_any_demand_missed(&self) -> bool {
        self.rows.iter().any(|row| !row.is_met)
    }
}

/// What the median and the 99th percentile must be below, milliseconds.
fn demanded(how: How) -> (f64, Option<f64>) {
    match how {
        How::Killed => (150.0, Some(500.0)),
        How::Frozen | How::CutOff => (800.0, Some(1500.0)),
        How::Left => (50.0, None),
    }
}
