//! Execution of the command lines of one source.

use std::{
    io::{self, BufReader},
    path::PathBuf,
    sync::Arc,
};

use shared::error::{Failure, FailureCode};
use tokio_util::sync::CancellationToken;

use super::{
    command::{Command, CommandContext, Outcome, PeerEffect},
    commands::{execute, parse},
    console::Console,
    output::{Rendered, Style, print, render},
    progress,
    prompt::Prompt,
    shell_words,
    source::{CommandSource, Input},
    stdin_source::StdinSource,
};
use crate::{api::PeerApi, config::take_json_flag};

/// Commands of one user of a running peer.
pub(crate) struct Session {
    /// Peer that executes the commands.
    pub(crate) peer: Arc<dyn PeerApi>,
    /// Base of relative paths; absolute.
    pub(crate) working_dir: PathBuf,
    /// Answers each line with one JSON document.
    pub(crate) json: bool,
}

impl Session {
    /// Executes the lines of standard input until its end, `exit`, `kill` or `stop`.
    ///
    /// # Errors
    /// `internal` when no thread can be started.
    pub(crate) async fn run_stdin(&self, stop: &CancellationToken) -> Result<PeerEffect, Failure> {
        let source = StdinSource::open(BufReader::new(io::stdin())).map_err(no_thread)?;
        Ok(self.run(source, stop, &mut print).await)
    }

    /// Executes the lines of a prompt until Ctrl-D, `exit`, `kill` or `stop`. The file `history` keeps the lines;
    /// `console` prints log lines above the prompt.
    ///
    /// # Errors
    /// `io` when the terminal cannot be used.
    pub(crate) async fn run_prompt(
        &self,
        history: PathBuf,
        console: &Console,
        stop: &CancellationToken,
    ) -> Result<PeerEffect, Failure> {
        let prompt = Prompt::open(Arc::clone(&self.peer), history, console)?;
        Ok(self.run(prompt, stop, &mut print).await)
    }

    async fn run(
        &self,
        mut source: impl CommandSource,
        stop: &CancellationToken,
        print: &mut (dyn FnMut(&Rendered) -> io::Result<()> + Send),
    ) -> PeerEffect {
        loop {
            let input = tokio::select! {
                () = stop.cancelled() => return PeerEffect::Exit,
                input = source.next() => input,
            };
            let (outcome, style) = match input {
                Input::End => return PeerEffect::Exit,
                Input::Cancelled => continue,
                Input::Invalid(failure) => (failure.into(), self.style(false)),
                // With JSON an empty line gets a document too: a program that waits for one document per line never
                // blocks.
                Input::Line(line) if line.trim().is_empty() && !self.json => continue,
                Input::Line(line) => {
                    let (command, json) = parse_line(&line);
                    let outcome = tokio::select! {
                        // An interruption wins over a command that completes at the same moment.
                        biased;
                        () = stop.cancelled() => return PeerEffect::Exit,
                        () = source.interrupted() => Outcome::interrupted(),
                        outcome = self.execute(command) => outcome,
                    };
                    (outcome, self.style(json))
                }
            };
            if let Err(error) = print(&render(&outcome, style)) {
                // The reader of a closed pipe has ended: not an error.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    tracing::error!(%error, "cannot write standard output");
                }
                return PeerEffect::Exit;
            }
            if let Some(report) = &outcome.report {
                source.on_report(report);
            }
            if outcome.effect != PeerEffect::KeepRunning {
                return outcome.effect;
            }
        }
    }

    fn style(&self, json: bool) -> Style {
        if self.json { Style::JsonLines } else { Style::Human.json_if(json) }
    }

    async fn execute(&self, command: Result<Command, Failure>) -> Outcome {
        let command = match command {
            Ok(command) => command,
            Err(failure) => return failure.into(),
        };
        progress::with_bar(async |progress| {
            let context = CommandContext { peer: &*self.peer, working_dir: &self.working_dir, progress };
            execute(command, context).await
        })
        .await
    }
}

/// Parses a line. The flag is true if the line requests JSON.
fn parse_line(line: &str) -> (Result<Command, Failure>, bool) {
    match shell_words::split(line) {
        Ok(words) => {
            let (words, json) = take_json_flag(words);
            (parse(words), json)
        }
        Err(failure) => (Err(failure), false),
    }
}

fn no_thread(error: io::Error) -> Failure {
    let what = "cannot read commands from standard input";
    Failure::new(FailureCode::Internal, what, error, "close other programs and try again")
}

#[cfg(test)]
mod tests;
