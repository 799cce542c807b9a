//! What was measured, as tables and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{files, sections::Plan};

/// What a figure shall be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Demand {
    AtLeast(f64),
    AtMost(f64),
}

impl Demand {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// One figure of several runs.
#[derive(Debug, Serialize)]
struct Row {
    section: &'static str,
    what: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    runs: Vec<f64>,
    demanded: Option<Demand>,
    /// Whether the median is as demanded.
    is_met: Option<bool>,
}

/// What is to be known about a section besides its figures, or why it was skipped.
#[derive(Debug, Serialize)]
struct Note {
    section: &'static str,
    text: String,
}

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    cpus: usize,
    /// Of the minute before: on a machine that is busy otherwise the figures mean little.
    load_before: String,
    folder: String,
    file_system: String,
    programs: String,
    quick: bool,
    rows: Vec<Row>,
    notes: Vec<Note>,
}

impl Report {
    pub fn new(plan: &Plan) -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load_before: load(),
            folder: plan.dir.display().to_string(),
            file_system: files::file_system(&plan.dir),
            programs: crate::cluster::program("peer").display().to_string(),
            quick: plan.quick,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn heading(&self) -> String {
        let Self { cpus, load_before, folder, file_system, programs, quick, .. } = self;
        let kind = if *quick { "; quick: figures mean little" } else { "" };
        format!("{cpus} CPUs, load {load_before} before; files in {folder} ({file_system}); {programs}{kind}\n")
    }

    /// Keeps one figure, measured in each run. Nothing is kept of no runs.
    pub fn add(
        &mut self,
        section: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        runs: Vec<f64>,
        demanded: Option<Demand>,
    ) {
        let Some(median) = median(&runs) else { return };
        let min = runs.iter().copied().fold(f64::INFINITY, f64::min);
        let max = runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let is_met = demanded.map(|demand| demand.is_met(median));
        self.rows.push(Row { section, what: what.into(), unit, median, min, max, runs, demanded, is_met });
    }

    pub fn note(&mut self, section: &'static str, text: impl Into<String>) {
        self.notes.push(Note { section, text: text.into() });
    }

    pub fn is_any_demand_missed(&self) -> bool {
        self.rows.iter().any(|row| row.is_met == Some(false))
    }

    /// The table of one section.
    pub fn section(&self, section: &str) -> String {
        let mut text = format!("## {section}\n\n");
        let rows: Vec<_> = self.rows.iter().filter(|row| row.section == section).collect();
        if !rows.is_empty() {
            text += "| what | median | min | max | runs | demanded |\n|---|---|---|---|---|---|\n";
        }
        for Row { what, unit, median, min, max, runs, demanded, is_met, .. } in rows {
            let demanded = match demanded {
                None => "-".to_owned(),
                Some(Demand::AtLeast(bound)) => format!(">= {}", figure(*bound)),
                Some(Demand::AtMost(bound)) => format!("<= {}", figure(*bound)),
            };
            let verdict = if *is_met == Some(false) { " MISSED" } else { "" };
            let [median, min, max] = [median, min, max].map(|value| figure(*value));
            let runs = runs.len();
            writeln!(text, "| {what}, {unit} | {median} | {min} | {max} | {runs} | {demanded}{verdict} |")
                .expect("a string takes everything");
        }
        for note in self.notes.iter().filter(|note| note.section == section) {
            writeln!(text, "\n- {}", note.text).expect("a string takes everything");
        }
        text
    }
}

/// How many processes wanted to run, on average over the last minute (proc(5)).
fn load() -> String {
    let loads = std::fs::read_to_string("/proc/loadavg").expect("Linux has it");
    loads.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// The middle of several values, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(upper, sorted[sorted.len() / 2 - 1]) })
}

/// `above / below` of each run.
pub fn ratios(above: &[f64], below: &[f64]) -> Vec<f64> {
    above.iter().zip(below).map(|(above, below)| above / below).collect()
}

/// Three digits that count, no more than the runs are worth.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
