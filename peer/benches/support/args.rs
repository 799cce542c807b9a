//! Command-line options that all benchmarks have.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Args;
use serde::Serialize;

#[derive(Args)]
pub struct CommonArgs {
    /// Also write the results to this file as JSON
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,

    /// Exit with status 1 when a demand is missed
    #[arg(long)]
    check: bool,

    /// Ignored: cargo passes it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

impl CommonArgs {
    /// Writes the results so far, if a file was given.
    pub fn write_json(&self, report: &impl Serialize) {
        let Some(path) = &self.json else { return };
        let json = serde_json::to_string_pretty(report).expect("numbers and strings have a JSON form");
        fs::write(path, json + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Returns the exit status of the benchmark.
    pub fn exit_code(&self, is_any_demand_missed: bool) -> ExitCode {
        ExitCode::from(u8::from(self.check && is_any_demand_missed))
    }
}
