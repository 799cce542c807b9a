//! `peer`: shares a folder with other peers. The commands are in [`peer::cli`], the peer itself in [`peer::peer`].

use std::{process::exit, sync::Arc};

use peer::{
    cli::{
        backend::Backend,
        console::Console,
        front::{Program, fail},
        output::Rendered,
        session::print,
    },
    config::{Environment, Invocation},
    peer::Peer,
};
use shared::error::{Failure, FailureCode};

/// Threads that move bytes and answer calls; hashing and disks have threads of their own.
const WORKERS: usize = 2;

fn main() {
    // A usage error is JSON too for who asked for JSON, even when the words could not be understood.
    let json = std::env::args_os().any(|word| word == "--json");
    // Not by returning: reading standard input cannot be cancelled, so its thread may still wait.
    exit(run().unwrap_or_else(|failure| fail(&failure, json)).into());
}

fn run() -> Result<u8, Failure> {
    let environment = Environment::of_process()?;
    let invocation = Invocation::parse(std::env::args_os(), &environment)?;
    let console = Console::default();
    let log = console.clone();
    shared::telemetry::init_to(move || log.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::env::var("BW").ok().and_then(|w| w.parse().ok()).unwrap_or(WORKERS))
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(FailureCode::Internal, "the program cannot start", error, "close other programs and try again")
        })?;
    match invocation {
        Invocation::Print(text) => {
            // Who closed the pipe has read enough.
            let _ = print(&Rendered { out: text, err: String::new() });
            Ok(0)
        }
        Invocation::Demo => runtime.block_on(peer::demo::run()).map(|()| 0),
        Invocation::Peer { config, mode, json } => {
            let program = Program { config, mode, json, working_dir: environment.working_dir, console };
            let start = async |config| Ok(Arc::new(Peer::start(config).await?) as Arc<dyn Backend>);
            Ok(runtime.block_on(program.run(start)))
        }
    }
}
