//! What the program does with its words: a prompt, a service, or one command.

use std::{io, io::IsTerminal as _, path::PathBuf, sync::Arc};

use rustix::process::Signal;
use shared::{
    error::{Failure, FailureCode},
    limits::{ONE_SHOT_POLL, ONE_SHOT_WAIT},
    time::Clock,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{
    Call, Command, Next, Outcome,
    console::Console,
    control::{Answered, ControlClient, ControlServer, Reply, Request},
    execute,
    output::{Ending, Rendered, Report, Style, harmless, render, render_failure, unfinished_line},
    progress::{self, Bar},
    session::{Session, print},
};
use crate::{
    api::PeerApi,
    config::{Mode, PeerConfig},
};

/// A run of the program as some peer.
pub struct Program {
    /// The peer.
    pub config: PeerConfig,
    /// What it does.
    pub mode: Mode,
    /// One JSON document a command.
    pub json: bool,
    /// What relative paths are relative to; absolute.
    pub working_dir: PathBuf,
    /// Where log lines go.
    pub console: Console,
}

impl Program {
    /// Does what the user wants, with peers that `start` makes; the exit status. `kill` ends the process here and
    /// now.
    pub async fn run<S>(self, start: S) -> u8
    where
        S: AsyncFn(PeerConfig) -> Result<Arc<dyn PeerApi>, Failure>,
    {
        let result = match &self.mode {
            Mode::OneShot(words) => self.one_shot(words.clone(), start).await,
            Mode::Interactive => self.stay(start, true).await,
            Mode::Headless => self.stay(start, false).await,
        };
        result.unwrap_or_else(|failure| fail(&failure, self.json))
    }

    async fn stay<S>(&self, start: S, interactive: bool) -> Result<u8, Failure>
    where
        S: AsyncFn(PeerConfig) -> Result<Arc<dyn PeerApi>, Failure>,
    {
        let prompt = interactive && io::stdin().is_terminal();
        // At a prompt Ctrl-C stops a command, not the peer; there the terminal's end is what ends it.
        let ending = if prompt { SignalKind::hangup() } else { SignalKind::interrupt() };
        let stop = stop_on([SignalKind::terminate(), ending])?;
        let backend = tokio::select! {
            () = stop.cancelled() => return Ok(0),
            started = start(self.config.clone()) => started?,
        };
        let next = self.serve(&backend, interactive, prompt, &stop).await;
        if let Ok(Next::Kill) = next {
            std::process::exit(0);
        }
        backend.shutdown().await;
        next.map(|_| 0)
    }

    async fn serve(
        &self,
        backend: &Arc<dyn PeerApi>,
        interactive: bool,
        prompt: bool,
        stop: &CancellationToken,
    ) -> Result<Next, Failure> {
        let control = ControlServer::bind(&self.config.peer_state_dir())?;
        let session = Session { backend: Arc::clone(backend), working_dir: self.working_dir.clone(), json: self.json };
        let commands = async {
            if prompt {
                self.greet(&**backend).await;
                let history = self.config.peer_state_dir().join("history");
                session.from_prompt(history, &self.console, stop).await
            } else if interactive {
                session.from_standard_input(stop).await
            } else {
                announce(&**backend, self.json).await?;
                stop.cancelled().await;
                Ok(Next::Exit)
            }
        };
        // Clients' commands are not waited for: whoever ends the peer wants it to end.
        let never = CancellationToken::new();
        tokio::select! {
            next = commands => next,
            next = control.serve(Arc::clone(backend), &never) => Ok(next),
            failure = backend.failed() => Err(failure),
        }
    }

    /// A word of welcome above the first prompt, on standard error like all that is not a result.
    async fn greet(&self, backend: &dyn PeerApi) {
        if let Ok(status) = backend.status().await {
            let share = harmless(&status.share_dir.to_string_lossy());
            let mut text = format!("{} at {}, sharing {share}\n", status.id, status.endpoint.host_port());
            for warning in &status.warnings {
                text += &format!("warning: {}\n", harmless(warning));
            }
            if !self.json {
                text += &unfinished_line(&status.unfinished);
            }
            text += "`help` lists the commands\n";
            // A closed standard error has no reader to miss this.
            let _ = print(&Rendered { out: String::new(), err: text });
        }
    }

    async fn one_shot<S>(&self, words: Vec<String>, start: S) -> Result<u8, Failure>
    where
        S: AsyncFn(PeerConfig) -> Result<Arc<dyn PeerApi>, Failure>,
    {
        let command = Command::parse(words.clone())?;
        if let Command::Help(help) = &command {
            return Ok(self.show(&Ok(help.run()).into()));
        }
        let stop = stop_on([SignalKind::interrupt(), SignalKind::terminate()])?;
        let request =
            Request { words, json: self.json, working_dir: self.working_dir.clone(), progress: progress::is_visible() };
        let ready = tokio::select! {
            () = stop.cancelled() => return Ok(self.show(&Outcome::interrupted())),
            ready = self.ask_or_start(&request, &command, &start) => ready?,
        };
        match ready {
            Ready::Answered(status) => Ok(status),
            Ready::Started(backend) => {
                let result = self.carry_out_alone(command, &backend, &stop).await;
                backend.shutdown().await;
                result
            }
        }
    }

    /// Has the running peer carry the command out; when none runs, starts one. While another process is just
    /// starting or ending the same peer, waits for what comes of it.
    async fn ask_or_start<S>(&self, request: &Request, command: &Command, start: &S) -> Result<Ready, Failure>
    where
        S: AsyncFn(PeerConfig) -> Result<Arc<dyn PeerApi>, Failure>,
    {
        let clock = Clock::start();
        let deadline = clock.now() + ONE_SHOT_WAIT;
        loop {
            if let Some(client) = ControlClient::connect(&self.config.peer_state_dir()).await? {
                match self.ask(client, request).await? {
                    Some(status) => return Ok(Ready::Answered(status)),
                    None if clock.now() < deadline => {
                        tokio::time::sleep(ONE_SHOT_POLL).await;
                        continue;
                    }
                    None => return Err(lost("it does not accept the command")),
                }
            }
            if command.is_end() {
                let report = Report::Ended { peer: self.config.id.clone(), how: Ending::NotRunning };
                return Ok(Ready::Answered(self.show(&Ok(report).into())));
            }
            match start(self.config.clone()).await {
                Ok(backend) => return Ok(Ready::Started(backend)),
                Err(failure) if failure.code == FailureCode::AlreadyRunning && clock.now() < deadline => {
                    tokio::time::sleep(ONE_SHOT_POLL).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The exit status of a command that the running peer carried out; `None` when it did not accept it.
    async fn ask(&self, client: ControlClient, request: &Request) -> Result<Option<u8>, Failure> {
        let mut bar = Bar::new();
        let answered = client
            .run(request, |reply| {
                let rendered = match reply {
                    Reply::Out(out) => Rendered { out, err: String::new() },
                    Reply::Err(err) => Rendered { out: String::new(), err },
                    Reply::Progress(progress) => {
                        bar.show(&progress);
                        return Ok(());
                    }
                    Reply::Accepted | Reply::Done { .. } => return Ok(()),
                };
                bar = Bar::new();
                print(&rendered)
            })
            .await;
        match answered {
            Ok(Answered::Done(status)) => Ok(Some(status)),
            Ok(Answered::NotAccepted) => Ok(None),
            Ok(Answered::Silent) => Err(Failure::new(
                FailureCode::Timeout,
                "the running peer does not answer",
                "it is frozen, or busy with too many commands",
                "let it go on or stop it, then try again",
            )),
            Ok(Answered::Lost) => Err(lost("it ended meanwhile")),
            // Nobody reads the rest.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(0)),
            Err(error) => Err(unwritable(error)),
        }
    }

    /// Carries a command out with a peer that was started for it. Other one-shot commands for the same peer that
    /// come meanwhile are carried out too, before it leaves.
    async fn carry_out_alone(
        &self,
        command: Command,
        backend: &Arc<dyn PeerApi>,
        stop: &CancellationToken,
    ) -> Result<u8, Failure> {
        let control = ControlServer::bind(&self.config.peer_state_dir())?;
        let done = CancellationToken::new();
        let mut others = std::pin::pin!(control.serve(Arc::clone(backend), &done));
        let work = progress::drawn(async |progress| {
            let call = Call { backend: &**backend, working_dir: &self.working_dir, progress };
            execute(command, call).await
        });
        let (outcome, order) = tokio::select! {
            biased;
            () = stop.cancelled() => (Outcome::interrupted(), Some(Next::Exit)),
            order = &mut others => (Outcome::interrupted(), Some(order)),
            failure = backend.failed() => (failure.into(), Some(Next::Exit)),
            outcome = work => (outcome, None),
        };
        let status = self.show(&outcome);
        done.cancel();
        let order = match order {
            Some(order) => order,
            None => tokio::select! {
                () = stop.cancelled() => Next::Exit,
                order = others => order,
            },
        };
        if order == Next::Kill {
            std::process::exit(status.into());
        }
        Ok(status)
    }

    /// Shows what came of a one-shot command; its exit status.
    fn show(&self, outcome: &Outcome) -> u8 {
        let rendered = render(outcome, Style::Human.json_if(self.json));
        match print(&rendered) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&unwritable(error), self.json),
            _ => outcome.exit_status(),
        }
    }
}

/// Who carries out a one-shot command.
enum Ready {
    /// Somebody did, with this exit status.
    Answered(u8),
    /// This peer is to.
    Started(Arc<dyn PeerApi>),
}

/// Shows a failure on standard error; its exit status.
pub fn fail(failure: &Failure, json: bool) -> u8 {
    // A closed standard error has no reader to miss this.
    let _ = print(&Rendered { out: String::new(), err: render_failure(failure, json) });
    failure.code.exit_status()
}

async fn announce(backend: &dyn PeerApi, json: bool) -> Result<(), Failure> {
    let status = backend.status().await?;
    let out = format!("[{}] ready at {}\n", status.id, status.endpoint.host_port());
    let err = if json { String::new() } else { unfinished_line(&status.unfinished) };
    if let Err(error) = print(&Rendered { out, err }) {
        // A service goes on when nobody reads its greeting.
        tracing::debug!(%error, "the ready line was not read");
    }
    Ok(())
}

/// A token that the first of these signals cancels. From now on they no longer end the process by themselves.
fn stop_on(kinds: [SignalKind; 2]) -> Result<CancellationToken, Failure> {
    let no_signals = |error: io::Error| {
        Failure::new(FailureCode::Internal, "signals cannot be noticed", error, "close other programs and try again")
    };
    // A file beyond the largest that the process may write (`ulimit -f`) is an error of that write, told as such.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map_err(no_signals)?);
    let stop = CancellationToken::new();
    for kind in kinds {
        let mut signals = signal(kind).map_err(no_signals)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

fn lost(why: &str) -> Failure {
    Failure::new(FailureCode::Io, "the running peer gave no answer", why, "look at `status`, then try again")
}

fn unwritable(error: io::Error) -> Failure {
    Failure::new(FailureCode::Io, "standard output cannot be written", error, "make room where it goes")
}
