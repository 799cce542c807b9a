//! Failover benchmark: time without a complete index after the tracker is killed, frozen, cut off, or leaves.
//!
//! ```text
//! cargo build --release -p nameserver && cargo bench -p peer --bench failover [-- FLAGS]
//! ```
//!
//! Runs the real programs as processes; `BRASA_BENCH_BIN_DIR` selects another build of them. `cut-off` needs root and
//! is skipped otherwise. The time runs from the signal (or the disconnection) until another tracker, under a higher
//! epoch, begins to answer `list_all` with every file of the remaining peers. A tracker that was frozen or cut off
//! returns afterwards and must step down. Prints a table with percentiles for each fault.
//!
//! | module | purpose |
//! |---|---|
//! | `cluster` | a nameserver, peers and an observer, and the faults of the tracker |
//! | `fault` | the faults and the demands |
//! | `observer` | a process that polls for the tracker and its listing |
//! | `report` | table and JSON |
//! | `../support` | processes, network namespaces, options |

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(unreachable_pub, reason = "`pub` marks the interface of a module; a binary exports nothing")]

#[path = "../support/args.rs"]
mod args;
mod cluster;
mod fault;
#[path = "../support/machine.rs"]
mod machine;
mod observer;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/programs.rs"]
mod programs;
mod report;
#[path = "../support/testbed.rs"]
mod testbed;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum as _};

use args::CommonArgs;
use cluster::Cluster;
use fault::Fault;
use report::Report;
use testbed::Testbed;

#[derive(Parser)]
#[command(name = "failover", about = "Measures the time without a tracker")]
struct Args {
    /// Measure only this fault; repeatable
    #[arg(long, value_enum)]
    only: Vec<Fault>,

    /// Number of peers
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=200))]
    peers: u32,

    /// Number of files of all peers together [default: one for each peer]
    #[arg(long)]
    files: Option<usize>,

    /// Rounds of each fault
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Directory for the files [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    #[command(flatten)]
    common: CommonArgs,

    #[command(subcommand)]
    process: Option<Process>,
}

#[derive(Subcommand)]
enum Process {
    /// Runs the observer
    #[command(hide = true)]
    Observe { state_dir: PathBuf },
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Process::Observe { state_dir }) = args.process {
        observer::run(&state_dir);
        return ExitCode::SUCCESS;
    }
    let dir = args.dir.unwrap_or_else(std::env::temp_dir);
    let files = args.files.unwrap_or(args.peers as usize);
    let mut report = Report::new(args.peers, files, args.rounds);
    println!("{}", report.heading());
    let faults = if args.only.is_empty() { Fault::value_variants() } else { &args.only };
    let (on_testbed, on_loopback): (Vec<Fault>, Vec<Fault>) = faults.iter().partition(|fault| **fault == Fault::CutOff);
    let unavailable = if on_testbed.is_empty() { None } else { Testbed::unavailable() };
    if let Some(reason) = &unavailable {
        println!("cut-off is skipped: {reason}");
    }
    let on_testbed = if unavailable.is_some() { Vec::new() } else { on_testbed };
    for (faults, new_testbed) in [(on_loopback, None), (on_testbed, Some(Testbed::new))] {
        if faults.is_empty() {
            continue;
        }
        let folder = tempfile::tempdir_in(&dir).expect("a temporary directory");
        let mut cluster = Cluster::start(folder.path(), new_testbed.map(|new| new()), args.peers, files);
        for fault in faults {
            let times = (0..args.rounds).map(|_| cluster.round(fault)).collect();
            println!("{}", report.add(fault, times));
            // Written after each fault, so that an interrupted run keeps its results.
            args.common.write_json(&report);
        }
    }
    args.common.exit_code(report.is_any_demand_missed())
}
