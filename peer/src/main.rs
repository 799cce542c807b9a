//! `peer`: shares a folder with other peers. [`peer::cli`] contains the command line, [`peer::runtime`] the peer.

use std::{process::exit, sync::Arc};

use peer::{
    api::PeerApi,
    cli::{
        app::{App, fail},
        console::Console,
        output::{Rendered, print},
    },
    config::{Invocation, PeerConfig, Purpose},
    runtime::{observer::Observer, peer::Peer},
};
use shared::{
    error::{Failure, FailureCode},
    settings::Environment,
};

/// Upper limit of tokio worker threads. There is one worker for each two processors, at least one: hashing and disk I/O
/// have threads of their own, which need the other half. On two processors a second worker costs a tenth more CPU time
/// and a third more memory a transfer, because the workers wait for each other.
const MAX_WORKERS: usize = 4;

fn main() {
    // With `--json` a usage error is JSON too, even if the arguments cannot be parsed.
    let json = std::env::args_os().any(|word| word == "--json");
    // A return would wait for the thread that reads standard input, which cannot be cancelled.
    exit(run().unwrap_or_else(|failure| fail(&failure, json)).into());
}

fn run() -> Result<u8, Failure> {
    let environment = Environment::of_process().in_working_dir()?;
    let invocation = Invocation::parse(std::env::args_os(), &environment)?;
    let console = Console::default();
    let log = console.clone();
    shared::telemetry::init_to(move || log.clone());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = (processors / 2).clamp(1, MAX_WORKERS);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().map_err(|error| {
            Failure::new(FailureCode::Internal, "cannot start the runtime", error, "close other programs and try again")
        })?;
    match invocation {
        Invocation::Print(text) => {
            // The reader of a closed pipe has ended: not an error.
            let _ = print(&Rendered { out: text, err: String::new() });
            Ok(0)
        }
        Invocation::Demo => runtime.block_on(peer::demo::run()).map(|()| 0),
        Invocation::Peer { config, mode, json } => {
            let start = async |config: PeerConfig| match config.purpose {
                Purpose::Query => Ok(Arc::new(Observer::new(config)) as Arc<dyn PeerApi>),
                Purpose::Service | Purpose::Script | Purpose::Command => {
                    Ok(Arc::new(Peer::start(config).await?) as Arc<dyn PeerApi>)
                }
            };
            let working_dir = environment.working_dir;
            let app = App { config: *config, mode, json, working_dir, console, start };
            Ok(runtime.block_on(app.run()))
        }
    }
}
