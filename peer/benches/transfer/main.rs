//! How fast files move: against what the machine can do, with many files, owners and receivers, and when an owner fails.
//!
//! ```text
//! cargo build --release -p nameserver && cargo bench -p peer --bench transfer [-- FLAGS]
//! ```
//!
//! Real programs as processes of their own, driven by one-shot commands. Every ratio is made of runs that took turns
//! within one run of this program. `BRASA_BENCH_BIN_DIR` names a folder with other builds of `peer` and `nameserver`.
//!
//! | room | what is in it |
//! |---|---|
//! | [`sections`] | what is measured, a file a question |
//! | [`cluster`], [`process`], [`lab`] | a nameserver and peers, one process, machines with slow links |
//! | [`tools`], [`sshd`] | what Brasa is measured against, in processes of their own |
//! | [`report`], [`files`] | tables and JSON; files to move |

#![expect(clippy::print_stdout, reason = "a benchmark prints its tables")]
#![expect(unreachable_pub, reason = "a program of rooms: everything is reachable from here and nothing from outside")]

mod cluster;
mod files;
mod lab;
mod process;
mod report;
mod sections;
mod sshd;
mod tools;

use std::{fs, path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum as _};

use report::Report;
use sections::{Plan, Section};

#[derive(Parser)]
#[command(name = "transfer", about = "How fast Brasa moves files")]
struct Args {
    /// Only these sections
    #[arg(long, value_enum)]
    only: Vec<Section>,

    /// Runs of each contestant [default: 5, quick: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,

    /// Small files and few runs: whether it works, not how fast it is
    #[arg(long)]
    quick: bool,

    /// Folder in which the files lie, e.g. /dev/shm to leave the disk out [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Gibibytes of memory to touch before each contestant of `one-owner`, for virtual machines whose host takes free memory
    /// back: nearly as much as is free, else who comes to pages that are gone is several times slower
    #[arg(long, value_name = "GIB", default_value_t = 0)]
    touch: u64,

    /// Write the results here as JSON as well
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,

    /// Exit with status 1 when a demand is missed
    #[arg(long)]
    check: bool,

    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,

    #[command(subcommand)]
    tool: Option<tools::Tool>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(tool) = args.tool {
        tool.run();
        return ExitCode::SUCCESS;
    }
    let dir = args.dir.unwrap_or_else(std::env::temp_dir);
    let dir = fs::canonicalize(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let runs = args.runs.unwrap_or(if args.quick { 2 } else { 5 });
    let plan = Plan { runs, quick: args.quick, dir, touch: args.touch << 30 };
    let mut report = Report::new(&plan);
    println!("{}", report.heading());
    let sections = if args.only.is_empty() { Section::value_variants() } else { &args.only };
    for section in sections {
        section.run(&plan, &mut report);
        println!("{}", report.section(section.name()));
        // After each section: what an interrupted run has measured is not lost.
        if let Some(path) = &args.json {
            let json = serde_json::to_string_pretty(&report).expect("numbers and strings have a JSON form");
            fs::write(path, json + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
    ExitCode::from(u8::from(args.check && report.is_any_demand_missed()))
}
