//! How long peers are without a complete index when their tracker is killed, frozen, cut off, or leaves.
//!
//! ```text
//! cargo build --release -p nameserver && cargo bench -p peer --bench failover [-- FLAGS]
//! ```
//!
//! Real programs as processes of their own. Timed from the signal (or from when the cable is pulled) until another tracker,
//! under a higher epoch, answers `list_all`, and that listing turns out to have every file of the peers that are left. A
//! tracker that was frozen or cut off comes back afterwards and must have stepped down by itself.
//!
//! | room | what is in it |
//! |---|---|
//! | [`cluster`] | a nameserver and peers, and what is done to their tracker |
//! | [`observer`] | who asks all the time whether there is a tracker again: a process of its own, on the nameserver's machine |
//! | [`report`] | table, JSON, what is demanded |
//! | `lab` | machines with cables that can be pulled, from the transfer benchmark |

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(unreachable_pub, reason = "a program of rooms: everything is reachable from here and nothing from outside")]

mod cluster;
#[path = "../transfer/lab.rs"]
mod lab;
mod observer;
#[path = "../transfer/process.rs"]
#[expect(dead_code, reason = "what the processes cost is not measured here")]
mod process;
mod report;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use cluster::Cluster;
use lab::Lab;
use report::Report;

/// What happens to the tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// SIGKILL
    Killed,
    /// SIGSTOP, and SIGCONT when there is another tracker
    Frozen,
    /// Its machine's cable is pulled; needs root
    CutOff,
    /// SIGTERM
    Left,
}

#[derive(Parser)]
#[command(name = "failover", about = "How long peers are without a tracker")]
struct Args {
    /// Only this
    #[arg(long, value_enum)]
    only: Vec<How>,

    /// Peers
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=200))]
    peers: u32,

    /// Files in all, spread evenly over the peers [default: one a peer]
    #[arg(long)]
    files: Option<usize>,

    /// Rounds of each kind
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Folder in which the files lie [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

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
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// The observer's process
    #[command(hide = true)]
    Observe { state_dir: PathBuf },
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Part::Observe { state_dir }) = args.part {
        observer::run(&state_dir);
        return ExitCode::SUCCESS;
    }
    let dir = args.dir.unwrap_or_else(std::env::temp_dir);
    let files = args.files.unwrap_or(args.peers as usize);
    let mut report = Report::new(args.peers, files, args.rounds);
    println!("{}", report.heading());
    let kinds = if args.only.is_empty() { How::value_variants() } else { &args.only };
    let (cut, here): (Vec<How>, Vec<How>) = kinds.iter().partition(|how| **how == How::CutOff);
    let lab_missing = if cut.is_empty() { None } else { Lab::missing() };
    if let Some(why) = &lab_missing {
        println!("cut-off is skipped: {why}");
    }
    let with_lab = if lab_missing.is_some() { Vec::new() } else { cut };
    for (kinds, lab) in [(here, None), (with_lab, Some(Lab::new))] {
        if kinds.is_empty() {
            continue;
        }
        let folder = tempfile::tempdir_in(&dir).expect("a temporary folder");
        let mut cluster = Cluster::start(folder.path(), lab.map(|make| make()), args.peers, files);
        for how in kinds {
            let times = (0..args.rounds).map(|_| cluster.round(how)).collect();
            println!("{}", report.add(how, times));
            // After each kind: what an interrupted run has measured is not lost.
            if let Some(path) = &args.json {
                let json = serde_json::to_string_pretty(&report).expect("numbers and strings have a JSON form");
                std::fs::write(path, json + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        }
    }
    ExitCode::from(u8::from(args.check && report.is_any_demand_missed()))
}
