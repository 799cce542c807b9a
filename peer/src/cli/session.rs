//! Commands one after another, from a prompt or from standard input.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use shared::error::{Failure, FailureCode};
use tokio_util::sync::CancellationToken;

use super::{
    Call, Command, Next, Outcome,
    console::Console,
    execute,
    output::{Rendered, Report, Style, render},
    progress,
    prompt::Prompt,
    shell_words,
    stdin_source::Lines,
    take_json_flag,
};
use crate::api::{PeerApi, ProgressSink};

/// What a source of commands gives.
pub(crate) enum Input {
    /// A line.
    Line(String),
    /// A line that cannot be one.
    Wrong(Failure),
    /// The user threw the line away.
    Cancelled,
    /// There is no more.
    End,
}

/// Where commands come from.
pub(crate) trait Source {
    /// The next line. Dropping the future loses nothing that the user still expects.
    async fn next(&mut self) -> Input;
    /// Ends when the user wants the command that runs now to stop.
    async fn interrupted(&mut self);
    /// A report was shown: a source may learn from it what to offer for completion.
    fn shown(&mut self, report: &Report);
}

/// The commands of one user of a running peer.
pub struct Session {
    /// Who carries them out.
    pub backend: Arc<dyn PeerApi>,
    /// What relative paths are relative to; absolute.
    pub working_dir: PathBuf,
    /// One JSON document a command.
    pub json: bool,
}

impl Session {
    /// Takes commands from standard input, a line each, until its end, `exit`, `kill` or `stop`.
    ///
    /// # Errors
    /// `internal` when no thread can be started.
    pub async fn from_standard_input(&self, stop: &CancellationToken) -> Result<Next, Failure> {
        let lines = Lines::of(io::BufReader::new(io::stdin())).map_err(no_thread)?;
        Ok(self.drive(lines, stop, &mut print).await)
    }

    /// Takes commands from a prompt until Ctrl-D, `exit`, `kill` or `stop`. What is typed is remembered in the
    /// file `history`; what is logged meanwhile to `console` spares the prompt.
    ///
    /// # Errors
    /// `io` when the terminal cannot be used.
    pub async fn from_prompt(
        &self,
        history: PathBuf,
        console: &Console,
        stop: &CancellationToken,
    ) -> Result<Next, Failure> {
        let prompt = Prompt::open(Arc::clone(&self.backend), history, console)?;
        Ok(self.drive(prompt, stop, &mut print).await)
    }

    async fn drive(
        &self,
        mut source: impl Source,
        stop: &CancellationToken,
        show: &mut (dyn FnMut(&Rendered) -> io::Result<()> + Send),
    ) -> Next {
        loop {
            let input = tokio::select! {
                () = stop.cancelled() => return Next::Exit,
                input = source.next() => input,
            };
            let (outcome, style) = match input {
                Input::End => return Next::Exit,
                Input::Cancelled => continue,
                Input::Wrong(failure) => (failure.into(), self.style(false)),
                // With JSON each line gives a document, so that who writes and reads in turns never waits.
                Input::Line(line) if line.trim().is_empty() && !self.json => continue,
                Input::Line(line) => {
                    let (command, json) = read(&line);
                    let outcome = tokio::select! {
                        // What the user wants comes before what is done at the same moment.
                        biased;
                        () = stop.cancelled() => return Next::Exit,
                        () = source.interrupted() => Outcome::interrupted(),
                        outcome = self.carry_out(command) => outcome,
                    };
                    (outcome, self.style(json))
                }
            };
            if let Err(error) = show(&render(&outcome, style)) {
                // Nobody reads any more; a closed pipe is the ordinary way to say so.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    tracing::error!(%error, "standard output cannot be written");
                }
                return Next::Exit;
            }
            if let Some(report) = &outcome.report {
                source.shown(report);
            }
            if outcome.next != Next::Continue {
                return outcome.next;
            }
        }
    }

    fn style(&self, json: bool) -> Style {
        if self.json { Style::JsonLines } else { Style::Human.json_if(json) }
    }

    async fn carry_out(&self, command: Result<Command, Failure>) -> Outcome {
        let command = match command {
            Ok(command) => command,
            Err(failure) => return failure.into(),
        };
        progress::drawn(async |progress: ProgressSink| {
            let call = Call { backend: &*self.backend, working_dir: &self.working_dir, progress };
            execute(command, call).await
        })
        .await
    }
}

/// A line as a command, and whether it asks for JSON.
fn read(line: &str) -> (Result<Command, Failure>, bool) {
    match shell_words::split(line) {
        Ok(words) => {
            let (words, json) = take_json_flag(words);
            (Command::parse(words), json)
        }
        Err(failure) => (Err(failure), false),
    }
}

/// Writes output at once. Nobody is left to be told when standard error is closed.
///
/// # Errors
/// When standard output cannot be written; `BrokenPipe` when its reader is gone.
pub fn print(rendered: &Rendered) -> io::Result<()> {
    if !rendered.err.is_empty() {
        let _ = io::stderr().write_all(rendered.err.as_bytes());
    }
    let mut out = io::stdout().lock();
    out.write_all(rendered.out.as_bytes())?;
    out.flush()
}

fn no_thread(error: io::Error) -> Failure {
    Failure::new(FailureCode::Internal, "no commands can be read", error, "close other programs and try again")
}

#[cfg(test)]
mod tests;
