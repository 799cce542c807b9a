//! `nameserver`: parses the arguments and runs the server until SIGINT or SIGTERM.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::Parser;
use nameserver::{
    config::{Advertise, Config, StorageChoice},
    server::Server,
};
use shared::{
    error::{Failure, FailureCode},
    name::Host,
    net::session::DEFAULT_PORT,
    settings::{Environment, parse_host},
};
use tokio::signal::unix::{SignalKind, signal};

/// The name server of a Brasa network.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to listen at; 0.0.0.0 or :: for all
    #[arg(short = 'n', long, default_value = "127.0.0.1", value_parser = parse_host)]
    host: Host,
    /// UDP port; 0 takes a free port
    #[arg(short, long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Storage of names: memory, redb or redb:PATH
    #[arg(short, long, default_value = "redb")]
    storage: StorageChoice,
    /// Base folder of all state [default: $BRASA_STATE_DIR, $XDG_STATE_HOME/brasa or ~/.local/state/brasa]
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Address that other machines use: HOST or HOST:PORT
    #[arg(long)]
    advertise: Option<Advertise>,
}

fn main() -> ExitCode {
    shared::telemetry::init();
    let done = match Arguments::try_parse() {
        Ok(arguments) => run(arguments),
        // Help or version. A closed pipe is not an error.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            Ok(())
        }
        Err(error) => Err(Failure::from_parser("nameserver", &error.to_string(), "the form is: nameserver [OPTIONS]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A failure to write to standard error cannot be reported anywhere.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            ExitCode::from(failure.code.exit_status())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { host, port, storage, state_dir, advertise } = arguments;
    let state_dir = Environment::of_process().state_dir(state_dir.as_deref())?;
    let config = Config { host, port, storage, state_dir, advertise };
    // Two threads for connections beside the registry's thread, which is the bottleneck.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let system = |error| Failure::new(FailureCode::Io, "the nameserver cannot run", error, "check the system's limits");
    runtime.map_err(system)?.block_on(async {
        // Installed before the server starts, so that an early signal ends the program in order, too.
        let mut terminate = signal(SignalKind::terminate()).map_err(system)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system)?;
        let server = Server::start(config).await?;
        // The server runs even when nobody reads its standard output.
        let _ = writeln!(std::io::stdout(), "NS running on {}", server.local_addr());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        server.shutdown().await;
        Ok(())
    })
}
