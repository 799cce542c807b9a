//! A network of real processes under faults drawn from a seed: `cargo run --release -p peer --example chaos -- --minutes 5 --seed 1`.
//!
//! What happens and what is checked stands in `docs/chaos.md`. Exit status: 0 nothing wrong; 1 a violation (the folder with
//! logs and shares stays, its path is printed); 3 the run could not be made.

#![expect(clippy::print_stdout, reason = "a run prints its report")]
#![expect(clippy::print_stderr, reason = "and says why there is none")]
#![expect(unreachable_pub, reason = "a program of rooms: everything is reachable from here and nothing from outside")]

mod checker;
mod deeds;
mod faults;
mod impair;
mod lab;
mod ledger;
mod listing;
mod patience;
mod plan;
mod relay;
mod report;
mod run;
mod world;

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

/// A run that could not be made.
const NOT_RUN: u8 = 3;
/// More peers have no address in the network.
const MAX_PEERS: u64 = 200;

/// A nameserver and peers as processes, with faults drawn from a seed.
#[derive(Parser)]
struct Args {
    /// How long faults happen.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Of all that is drawn; drawn itself when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many peers.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=MAX_PEERS))]
    peers: u64,
    /// Writes the report to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where `peer`, `nameserver` and `nsc` are; else beside this program, built first when cargo runs it.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Keeps the folder with logs and shares.
    #[arg(long)]
    keep: bool,
    /// This process is the network between the machines.
    #[arg(long, hide = true, value_name = "SEED")]
    relay: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(seed) = args.relay {
        return match relay::run(seed, lab::nameserver_address()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => cannot(&format!("the relay: {error}")),
        };
    }
    match chaos(&args) {
        Ok(code) => code,
        Err(why) => cannot(&why),
    }
}

fn cannot(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(NOT_RUN)
}

fn chaos(args: &Args) -> Result<ExitCode, String> {
    let time = Duration::try_from_secs_f64(args.minutes * 60.0).map_err(|error| format!("--minutes: {error}"))?;
    let programs = match &args.programs {
        Some(programs) => programs.canonicalize().map_err(|error| format!("--programs: {error}"))?,
        None => find_programs()?,
    };
    let peers = usize::try_from(args.peers).map_err(|error| error.to_string())?;
    let settings = Settings { time, seed: args.seed.unwrap_or_else(|| fastrand::u64(..)), peers, programs };
    let folder = tempfile::Builder::new().prefix("brasa-chaos-").tempdir().map_err(|error| error.to_string())?;
    println!("seed {}, {peers} peers, {:.1} minutes, in {}", settings.seed, args.minutes, folder.path().display());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let ended = runtime.block_on(async {
        tokio::select! {
            report = run::run(&settings, folder.path()) => Some(report),
            () = told_to_end() => None,
        }
    });
    // Every process ends here, and the machines go.
    drop(runtime);
    let Some(ended) = ended else { return Err("interrupted".to_owned()) };
    let is_wrong = ended.as_ref().map_or(true, |report| report.violations().next().is_some());
    if args.keep || is_wrong {
        println!("logs and shares: {}", folder.keep().display());
    }
    let report = ended?;
    print!("{report}");
    if let Some(path) = &args.json {
        write(path, &report)?;
    }
    Ok(if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn told_to_end() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        eprintln!("Ctrl-C is not noticed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn write(path: &Path, report: &Report) -> Result<(), String> {
    fs::write(path, format!("{:#}\n", report.json())).map_err(|error| format!("{}: {error}", path.display()))
}

/// The programs beside this one, or, as cargo has it, in the folder above.
fn find_programs() -> Result<PathBuf, String> {
    let this = env::current_exe().map_err(|error| format!("this program is not found: {error}"))?;
    let beside = this.parent().ok_or("this program lies nowhere")?;
    let above = beside.parent().unwrap_or(beside);
    // An example does not make cargo build the programs.
    if let Some(cargo) = env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "-p", "peer", "-p", "nameserver", "--bins"]);
        if above.ends_with("release") {
            build.arg("--release");
        }
        let built = build.status().map_err(|error| format!("cargo: {error}"))?;
        if !built.success() {
            return Err("the programs cannot be built".to_owned());
        }
    }
    let has_all = |folder: &&Path| ["peer", "nameserver", "nsc"].iter().all(|name| folder.join(name).is_file());
    let found = [beside, above].into_iter().find(has_all);
    found.map(Path::to_owned).ok_or_else(|| format!("peer, nameserver and nsc are not in {}", above.display()))
}
