//! `peer`: shares a folder with other peers. The commands are in [`peer::cli`], the peer itself in [`peer::runtime::peer`].

use std::{process::exit, sync::Arc};

use peer::{
    api::PeerApi,
    cli::{
        app::{Program, fail},
        console::Console,
        output::Rendered,
        session::print,
    },
    config::Invocation,
    runtime::peer::Peer,
};
use shared::{
    error::{Failure, FailureCode},
    settings::Environment,
};

/// Threads that move bytes and answer calls: half of the processors, at least one, at most this many. Hashing and disks have
/// threads of their own, which need the other half; where there are two processors, a second thread here only makes the
/// first one wait for it (a tenth of the CPU time of a transfer, and a third of its memory).
const MAX_WORKERS: usize = 4;

fn main() {
    // A usage error is JSON too for who asked for JSON, even when the words could not be understood.
    let json = std::env::args_os().any(|word| word == "--json");
    // Not by returning: reading standard input cannot be cancelled, so its thread may still wait.
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
            let program = Program { config: *config, mode, json, working_dir: environment.working_dir, console };
            let start = async |config| Ok(Arc::new(Peer::start(config).await?) as Arc<dyn PeerApi>);
            Ok(runtime.block_on(program.run(start)))
        }
    }
}
