//! `nameserver`: the program.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::Parser;
use nameserver::{
    config::{Advertise, Config, StorageChoice, parse_host},
    server::Server,
};
use shared::{
    error::{Failure, FailureCode},
    name::Host,
    net::session::{DEFAULT_PORT, StateDir},
};
use tokio::signal::unix::{SignalKind, signal};

/// The name server of a Brasa network.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to listen at; 0.0.0.0 or :: for all
    #[arg(short = 'n', long, default_value = "127.0.0.1", value_parser = parse_host)]
    host: Host,
    /// UDP port; 0 takes a free one
    #[arg(short, long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Where names are kept: memory, redb or redb:PATH
    #[arg(short, long, default_value = "redb")]
    storage: StorageChoice,
    /// Base of all state [default: $BRASA_STATE_DIR, $XDG_STATE_HOME/brasa or ~/.local/state/brasa]
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// What others are told to call: HOST or HOST:PORT
    #[arg(long)]
    advertise: Option<Advertise>,
}

fn main() -> ExitCode {
    shared::telemetry::init();
    let done = match Arguments::try_parse() {
        Ok(arguments) => run(arguments),
        // Help and version; who closed the pipe does not want to read more.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            Ok(())
        }
        Err(error) => Err(Failure::from_parser("nameserver", &error.to_string(), "the form is: nameserver [OPTIONS]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing is left to do when standard error is gone too.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            ExitCode::from(failure.code.exit_status())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { host, port, storage, state_dir, advertise } = arguments;
    let state_dir = state_dir.map_or_else(StateDir::of_user, Ok)?;
    let config = Config { host, port, storage, state_dir, advertise };
    // Two threads for connections beside the registry's own; more would cost memory and find nothing to do.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let system = |error| Failure::new(FailureCode::Io, "the nameserver cannot run", error, "check the system's limits");
    runtime.map_err(system)?.block_on(async {
        // Before anything else, so that a signal that comes early ends it cleanly too.
        let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
        let server = Server::start(config).await?;
        // Whoever started it may not listen; it serves all the same.
        let _ = writeln!(std::io::stdout(), "NS running on {}", server.local_addr());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        server.shutdown().await;
        Ok(())
    })
}
