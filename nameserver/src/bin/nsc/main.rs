//! `nsc`: name server control. Has the commands and the output of Pyro5's `nsc`, and also creates join tokens and
//! watches names.

mod args;
mod commands;
mod output;
mod render;

use std::{io::Write, process::ExitCode};

use clap::Parser;
use shared::{
    error::{Failure, FailureCode},
    id::Role,
    net::{
        CloseCode,
        session::{Session, SessionConfig},
    },
    settings::Environment,
};

use self::{args::Arguments, commands::NameClient, output::print};

fn main() -> ExitCode {
    shared::telemetry::init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help or version. A closed pipe is not an error.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let failure =
                Failure::from_parser("nsc", &error.to_string(), "the form is: nsc [OPTIONS] COMMAND [ARG]...");
            return fail(&failure);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .map_err(|error| Failure::new(FailureCode::Io, "nsc cannot run", error, "check the system's limits"))
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    // A failure to write to standard error cannot be reported anywhere.
    let _ = writeln!(std::io::stderr(), "error: {failure}");
    ExitCode::from(failure.code.exit_status())
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { host, port, state_dir, verbose, command } = arguments;
    let environment = Environment::of_process();
    let config = SessionConfig {
        role: Role::Admin,
        state_dir: environment.state_dir(state_dir.as_deref())?,
        nameserver: environment.nameserver(host, port)?,
        join: None,
    };
    if verbose {
        print("Locating name server...\n")?;
    }
    let client = NameClient(Session::open(&config).await?);
    if verbose {
        print(&format!("Name server found: {}\n", client.0.nameserver.endpoint))?;
    }
    let done = client.execute(command).await;
    client.0.connections.close(CloseCode::Done, "done").await;
    done?;
    if verbose {
        print("Done.\n")?;
    }
    Ok(())
}
