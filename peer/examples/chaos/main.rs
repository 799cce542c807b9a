//! Chaos test: a nameserver and peers as real processes, under faults drawn from a seed.
//!
//! ```text
//! cargo run --release -p peer --example chaos -- --minutes 5 --seed 1
//! ```
//!
//! Needs Linux; network faults also need root and `ip` (iproute2). Prints counts of faults and operations, convergence
//! times and violations. `docs/chaos.md` describes the faults and the checks. Exit status: 0 without violations;
//! 1 with violations, and the folder with logs and shares is kept; 3 when the run is not possible.
//!
//! | module | purpose |
//! |---|---|
//! | `run` | rounds of faults and operations |
//! | `plan`, `faults`, `operations` | draws faults and operations from the seed, and carries them out |
//! | `cluster`, `process` | the processes under test |
//! | `testbed`, `relay`, `impairment`, `topology` | the network between them |
//! | `model`, `listing`, `checker` | the expected state and its comparison with the real one |
//! | `report` | statistics, elections from the logs |
//! | `deadline` | deadlines that exclude suspensions of this process |

#![expect(clippy::print_stdout, reason = "the program prints its report")]
#![expect(clippy::print_stderr, reason = "the program prints its errors")]
#![expect(unreachable_pub, reason = "`pub` marks the interface of a module; a binary exports nothing")]

mod checker;
mod cluster;
mod deadline;
mod faults;
mod impairment;
mod listing;
mod model;
mod operations;
mod plan;
mod process;
mod relay;
mod report;
mod run;
mod testbed;
mod topology;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use clap::Parser;
use report::Report;
use run::Settings;
use tokio::signal::unix::{SignalKind, signal};

/// Exit status when the run is not possible.
const NOT_RUN: u8 = 3;
/// Upper bound of the peers: the network has no more addresses.
const MAX_PEERS: u64 = 200;

/// Runs a nameserver and peers as processes under faults drawn from a seed.
#[derive(Parser)]
struct Args {
    /// Duration of the faults, minutes
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Seed of all random choices [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of peers
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=MAX_PEERS))]
    peers: u64,
    /// Also write the report to this file as JSON
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Directory of `peer`, `nameserver` and `nsc` [default: beside this program, built first when cargo runs it]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Keep the folder with logs and shares
    #[arg(long)]
    keep: bool,
    /// Run as the relay
    #[arg(long, hide = true, value_name = "SEED")]
    relay: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(seed) = args.relay {
        return match relay::run(seed, topology::nameserver_address()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => not_run(&format!("the relay failed: {error}")),
        };
    }
    match chaos(&args) {
        Ok(code) => code,
        Err(error) => not_run(&error),
    }
}

fn not_run(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(NOT_RUN)
}

fn chaos(args: &Args) -> Result<ExitCode, String> {
    let duration = Duration::try_from_secs_f64(args.minutes * 60.0).map_err(|error| format!("--minutes: {error}"))?;
    let programs = match &args.programs {
        Some(programs) => programs.canonicalize().map_err(|error| format!("--programs: {error}"))?,
        None => find_programs()?,
    };
    let peers = usize::try_from(args.peers).map_err(|error| error.to_string())?;
    let settings = Settings { duration, seed: args.seed.unwrap_or_else(|| fastrand::u64(..)), peers, programs };
    let folder = tempfile::Builder::new().prefix("brasa-chaos-").tempdir().map_err(|error| error.to_string())?;
    println!("seed {}, {peers} peers, {:.1} minutes, in {}", settings.seed, args.minutes, folder.path().display());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let result = runtime.block_on(async {
        tokio::select! {
            report = run::run(&settings, folder.path()) => Some(report),
            () = termination() => None,
        }
    });
    // Dropping the tasks kills all processes and removes the namespaces.
    drop(runtime);
    let Some(result) = result else { return Err("interrupted".to_owned()) };
    let failed = result.as_ref().map_or(true, |report| report.violations().next().is_some());
    if args.keep || failed {
        println!("logs and shares: {}", folder.keep().display());
    }
    let report = result?;
    print!("{report}");
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Waits for SIGINT or SIGTERM.
async fn termination() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("warning: cannot handle SIGINT and SIGTERM");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn write_json(path: &Path, report: &Report) -> Result<(), String> {
    fs::write(path, format!("{:#}\n", report.json())).map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns the directory of the programs: this program's, or its parent, since cargo puts examples into a subdirectory.
fn find_programs() -> Result<PathBuf, String> {
    let this = env::current_exe().map_err(|error| format!("cannot find this executable: {error}"))?;
    let beside = this.parent().ok_or("this executable has no parent directory")?;
    let above = beside.parent().unwrap_or(beside);
    // `cargo run --example` does not build the binaries.
    if let Some(cargo) = env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "peer", "-p", "nameserver", "--bins"]);
        if above.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().map_err(|error| format!("cargo: {error}"))?;
        if !status.success() {
            return Err("cannot build the programs".to_owned());
        }
    }
    let has_all = |folder: &&Path| ["peer", "nameserver", "nsc"].iter().all(|name| folder.join(name).is_file());
    let found = [beside, above].into_iter().find(has_all);
    found.map(Path::to_owned).ok_or_else(|| format!("peer, nameserver and nsc are not in {}", above.display()))
}
