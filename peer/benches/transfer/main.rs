//! Transfer benchmark: transfer rates against what the machine can do, with many files, several owners, a swarm, and
//! owners that fail.
//!
//! ```text
//! cargo build --release -p nameserver && cargo bench -p peer --bench transfer [-- FLAGS]
//! ```
//!
//! Runs the real programs as processes and drives them by one-shot commands; `BRASA_BENCH_BIN_DIR` selects another
//! build of them. Ratios compare series whose runs alternate within one run of this program. Sections that need root,
//! `tc`, rsync or sshd are skipped where these are missing. A full run needs 3 GiB of disk. Prints a table for each
//! section.
//!
//! | module | purpose |
//! |---|---|
//! | `sections` | the measurements, one file each |
//! | `cluster` | a nameserver and peers |
//! | `baselines`, `sshd` | processes that Brasa is compared with |
//! | `files`, `usage` | test files, resource usage of processes |
//! | `settings`, `report` | settings of a run, tables and JSON |
//! | `../support` | processes, network namespaces, options, demands |

#![expect(clippy::print_stdout, reason = "a benchmark prints its tables")]
#![expect(unreachable_pub, reason = "`pub` marks the interface of a module; a binary exports nothing")]

#[path = "../support/args.rs"]
mod args;
mod baselines;
mod cluster;
#[path = "../support/demand.rs"]
mod demand;
mod files;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/programs.rs"]
mod programs;
mod report;
mod sections;
mod settings;
mod sshd;
#[path = "../support/testbed.rs"]
mod testbed;
mod usage;

use std::{fs, path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum as _};

use args::CommonArgs;
use report::Report;
use sections::Section;
use settings::Settings;

#[derive(Parser)]
#[command(name = "transfer", about = "Measures transfer rates")]
struct Args {
    /// Run only this section; repeatable
    #[arg(long, value_enum)]
    only: Vec<Section>,

    /// Runs of each series [default: 5, with --quick: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,

    /// Small files and few runs, to test the benchmark itself
    #[arg(long)]
    quick: bool,

    /// Directory for the files; /dev/shm excludes the disk [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Memory to touch before each measurement of `one-owner`, GiB. For virtual machines whose host reclaims free
    /// memory: choose nearly all of the free memory, else the series that first uses reclaimed pages is several times
    /// slower
    #[arg(long, value_name = "GIB", default_value_t = 0)]
    touch: u64,

    #[command(flatten)]
    common: CommonArgs,

    #[command(subcommand)]
    endpoint: Option<baselines::Endpoint>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(endpoint) = args.endpoint {
        endpoint.run();
        return ExitCode::SUCCESS;
    }
    let dir = args.dir.unwrap_or_else(std::env::temp_dir);
    let dir = fs::canonicalize(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let runs = args.runs.unwrap_or(if args.quick { 2 } else { 5 });
    let settings = Settings { runs, quick: args.quick, dir, touch_bytes: args.touch << 30 };
    let mut report = Report::new(&settings);
    println!("{}", report.heading());
    let sections = if args.only.is_empty() { Section::value_variants() } else { &args.only };
    for section in sections {
        section.run(&settings, &mut report);
        println!("{}", report.section(section.name()));
        // Written after each section, so that an interrupted run keeps its results.
        args.common.write_json(&report);
    }
    args.common.exit_code(report.is_any_demand_missed())
}
