//! Results as tables and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{demand::Demand, files, machine::Machine, programs::program, settings::Settings};

/// One figure with its value in each run.
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
    /// Verdict on the median; `None` without a demand.
    is_met: Option<bool>,
}

/// Remark on a section: its conditions, or why it was skipped.
#[derive(Debug, Serialize)]
struct Note {
    section: &'static str,
    text: String,
}

/// Results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    machine: Machine,
    folder: String,
    file_system: String,
    programs: String,
    quick: bool,
    rows: Vec<Row>,
    notes: Vec<Note>,
}

impl Report {
    pub fn new(settings: &Settings) -> Self {
        Self {
            machine: Machine::detect(),
            folder: settings.dir.display().to_string(),
            file_system: files::file_system(&settings.dir),
            programs: program("peer").display().to_string(),
            quick: settings.quick,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn heading(&self) -> String {
        let Self { machine, folder, file_system, programs, quick, .. } = self;
        let kind = if *quick { "; quick: the figures are not representative" } else { "" };
        format!("{machine}; files in {folder} ({file_system}); {programs}{kind}\n")
    }

    /// Adds a figure with its value in each run. A figure without runs is not added.
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

    /// Adds a remark on a section.
    pub fn note(&mut self, section: &'static str, text: impl Into<String>) {
        self.notes.push(Note { section, text: text.into() });
    }

    pub fn is_any_demand_missed(&self) -> bool {
        self.rows.iter().any(|row| row.is_met == Some(false))
    }

    /// Returns the table of one section.
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
                .expect("a string accepts all writes");
        }
        for note in self.notes.iter().filter(|note| note.section == section) {
            writeln!(text, "\n- {}", note.text).expect("a string accepts all writes");
        }
        text
    }
}

/// Returns the median: the middle value, or the mean of the two middle values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(upper, sorted[sorted.len() / 2 - 1]) })
}

/// Returns `numerator / denominator` of each run.
pub fn ratios(numerators: &[f64], denominators: &[f64]) -> Vec<f64> {
    numerators.iter().zip(denominators).map(|(numerator, denominator)| numerator / denominator).collect()
}

/// Formats a value with three significant digits, about the precision of the runs.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
