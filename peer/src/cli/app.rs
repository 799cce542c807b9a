//! The program: an interactive session, a service, or one command.

use std::{io, io::IsTerminal as _, path::PathBuf, sync::Arc};

use super::{
    command::{Command, CommandContext, Outcome, PeerEffect},
    commands::{execute, help, parse},
    console::Console,
    control::{ClientOutcome, ControlClient, ControlServer, Reply, Request},
    output::{Rendered, Style, print, render, render_failure, sanitize, unfinished_line},
    params::{LOG_INTERVAL, ONE_SHOT_POLL, ONE_SHOT_WAIT, RETRY_LONGEST, RETRY_SHORTEST},
    progress::{self, DownloadBar},
    report::{EndCause, Report},
    session::Session,
    signals::stop_on_signals,
};
use shared::{
    error::{Failure, FailureCode},
    retry::{Backoff, LogLimit},
    time::Clock,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{PeerApi, ProgressSink},
    config::{Mode, PeerConfig, Purpose},
    runtime::lock::is_held,
};

/// One run of the program as a peer.
pub struct App<S> {
    /// Configuration of the peer.
    pub config: PeerConfig,
    /// Source of commands.
    pub mode: Mode,
    /// Prints one JSON document per command.
    pub json: bool,
    /// Base of relative paths; absolute.
    pub working_dir: PathBuf,
    /// Destination of log lines.
    pub console: Console,
    /// Function that starts a peer.
    pub start: S,
}

impl<S> App<S>
where
    S: AsyncFn(PeerConfig) -> Result<Arc<dyn PeerApi>, Failure>,
{
    /// Runs the program and returns its exit status. The command `kill` exits the process immediately instead.
    pub async fn run(self) -> u8 {
        let result = match &self.mode {
            Mode::OneShot(words) => self.one_shot(words.clone()).await,
            Mode::Interactive => self.stay(true).await,
            Mode::Headless => self.stay(false).await,
        };
        result.unwrap_or_else(|failure| fail(&failure, self.json))
    }

    /// Runs a peer until a command or a signal ends it.
    async fn stay(&self, interactive: bool) -> Result<u8, Failure> {
        let prompt = interactive && io::stdin().is_terminal();
        let stop = stop_on_signals(prompt)?;
        let purpose = if prompt || !interactive { Purpose::Service } else { Purpose::Script };
        let config = PeerConfig { purpose, ..self.config.clone() };
        let peer = tokio::select! {
            () = stop.cancelled() => return Ok(0),
            started = self.start_when_possible(config, interactive) => started?,
        };
        let effect = self.serve(&peer, interactive, prompt, &stop).await;
        if let Ok(PeerEffect::Kill) = effect {
            std::process::exit(0);
        }
        peer.shutdown().await;
        effect.map(|_| 0)
    }

    /// Starts the peer. A headless one that is not a member yet waits for the nameserver.
    async fn start_when_possible(&self, config: PeerConfig, interactive: bool) -> Result<Arc<dyn PeerApi>, Failure> {
        let clock = Clock::start();
        let (mut backoff, mut log) = (Backoff::new(RETRY_SHORTEST, RETRY_LONGEST), LogLimit::new(LOG_INTERVAL));
        loop {
            match (self.start)(config.clone()).await {
                Err(failure) if !interactive && failure.code == FailureCode::NameserverUnreachable => {
                    if let Some(suppressed) = log.permit(clock.now()) {
                        tracing::warn!(%failure, suppressed, "waiting for the nameserver in order to join");
                    }
                    tokio::time::sleep(backoff.pause()).await;
                }
                started => return started,
            }
        }
    }

    /// Serves the control socket. If it cannot be created, the peer runs without it meanwhile.
    async fn serve_control(&self, first: Result<ControlServer, Failure>, peer: Arc<dyn PeerApi>) -> PeerEffect {
        let clock = Clock::start();
        let (mut backoff, mut log) = (Backoff::new(RETRY_SHORTEST, RETRY_LONGEST), LogLimit::new(LOG_INTERVAL));
        let mut bound = first;
        let server = loop {
            match bound {
                Ok(server) => break server,
                Err(failure) => {
                    if let Some(suppressed) = log.permit(clock.now()) {
                        tracing::warn!(%failure, suppressed, "no commands of other processes are accepted; retrying");
                    }
                }
            }
            tokio::time::sleep(backoff.pause()).await;
            bound = ControlServer::bind(&self.config.peer_state_dir());
        };
        // The end of the session also stops the commands of control clients.
        server.serve(peer, &CancellationToken::new()).await
    }

    async fn serve(
        &self,
        peer: &Arc<dyn PeerApi>,
        interactive: bool,
        prompt: bool,
        stop: &CancellationToken,
    ) -> Result<PeerEffect, Failure> {
        // Before the line that says that the peer is ready.
        let control = ControlServer::bind(&self.config.peer_state_dir());
        let session = Session { peer: Arc::clone(peer), working_dir: self.working_dir.clone(), json: self.json };
        let commands = async {
            if prompt {
                self.greet(&**peer).await;
                let history = self.config.peer_state_dir().join("history");
                session.run_prompt(history, &self.console, stop).await
            } else if interactive {
                session.run_stdin(stop).await
            } else {
                tokio::select! {
                    () = stop.cancelled() => return Ok(PeerEffect::Exit),
                    () = peer.joined() => {}
                }
                announce(&**peer, self.json).await?;
                stop.cancelled().await;
                Ok(PeerEffect::Exit)
            }
        };
        tokio::select! {
            effect = commands => effect,
            effect = self.serve_control(control, Arc::clone(peer)) => Ok(effect),
            failure = peer.failed() => Err(failure),
        }
    }

    /// Prints a summary above the first prompt, on standard error because it is not the result of a command.
    async fn greet(&self, peer: &dyn PeerApi) {
        if let Ok(status) = peer.status().await {
            let share = sanitize(&status.share_dir.to_string_lossy());
            let mut text = format!("{} at {}, sharing {share}\n", status.id, status.endpoint.host_port());
            for warning in &status.warnings {
                text += &format!("warning: {}\n", sanitize(warning));
            }
            if !self.json {
                text += &unfinished_line(&status.unfinished);
            }
            text += "`help` lists the commands\n";
            // Without a reader of standard error the summary is not needed.
            let _ = print(&Rendered { out: String::new(), err: text });
        }
    }

    async fn one_shot(&self, words: Vec<String>) -> Result<u8, Failure> {
        let command = parse(words.clone())?;
        if let Command::Help { verb } = command {
            return Ok(self.show(&Ok(help(verb)).into()));
        }
        let stop = stop_on_signals(false)?;
        let request =
            Request { words, json: self.json, working_dir: self.working_dir.clone(), progress: progress::is_visible() };
        let dispatch = tokio::select! {
            () = stop.cancelled() => return Ok(self.show(&Outcome::interrupted())),
            dispatch = self.dispatch(&request, &command) => dispatch?,
        };
        match dispatch {
            Dispatch::Done(status) => Ok(status),
            Dispatch::Observed(peer) => {
                let context =
                    CommandContext { peer: &*peer, working_dir: &self.working_dir, progress: ProgressSink::none() };
                let outcome = tokio::select! {
                    () = stop.cancelled() => Outcome::interrupted(),
                    outcome = execute(command, context) => outcome,
                };
                let status = self.show(&outcome);
                peer.shutdown().await;
                Ok(status)
            }
            Dispatch::Started(peer) => {
                let result = self.execute_alone(command, &peer, &stop).await;
                peer.shutdown().await;
                result
            }
        }
    }

    /// Sends the command to the running peer, or starts a peer if none runs. Retries while another process starts or
    /// ends the same peer.
    async fn dispatch(&self, request: &Request, command: &Command) -> Result<Dispatch, Failure> {
        let clock = Clock::start();
        let deadline = clock.now() + ONE_SHOT_WAIT;
        loop {
            if let Some(client) = ControlClient::connect(&self.config.peer_state_dir()).await? {
                match self.send(client, request, command.ends_peer()).await? {
                    Some(status) => return Ok(Dispatch::Done(status)),
                    None if clock.now() < deadline => {
                        tokio::time::sleep(ONE_SHOT_POLL).await;
                        continue;
                    }
                    None => return Err(no_answer("it does not accept the command")),
                }
            }
            if is_held(&self.config.peer_state_dir()) && clock.now() < deadline {
                // It starts or ends at the moment.
                tokio::time::sleep(ONE_SHOT_POLL).await;
                continue;
            }
            if command.ends_peer() {
                let report = Report::Ended { peer: self.config.id.clone(), cause: EndCause::NotRunning };
                return Ok(Dispatch::Done(self.show(&Ok(report).into())));
            }
            let purpose = if command.is_query() { Purpose::Query } else { Purpose::Command };
            match (self.start)(PeerConfig { purpose, ..self.config.clone() }).await {
                Ok(peer) if purpose == Purpose::Query => return Ok(Dispatch::Observed(peer)),
                Ok(peer) => return Ok(Dispatch::Started(peer)),
                Err(failure) if failure.code == FailureCode::AlreadyRunning && clock.now() < deadline => {
                    tokio::time::sleep(ONE_SHOT_POLL).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Sends the command to the running peer and prints its output. Returns the exit status, or `None` if the peer did
    /// not accept the command.
    async fn send(&self, client: ControlClient, request: &Request, ends_peer: bool) -> Result<Option<u8>, Failure> {
        let mut bar = DownloadBar::new();
        let on_reply = |reply| {
            let rendered = match reply {
                Reply::Out(out) => Rendered { out, err: String::new() },
                Reply::Err(err) => Rendered { out: String::new(), err },
                Reply::Progress(progress) => {
                    bar.update(&progress);
                    return Ok(());
                }
                Reply::Accepted | Reply::Done { .. } => return Ok(()),
            };
            bar = DownloadBar::new();
            print(&rendered)
        };
        let outcome = if ends_peer {
            client.run_until_ended(request, on_reply).await
        } else {
            client.run(request, on_reply).await
        };
        match outcome {
            Ok(ClientOutcome::NotEnded) => Err(Failure::new(
                FailureCode::Timeout,
                format!("{} has not ended yet", self.config.id),
                "it does not end in time",
                "wait, or end its process",
            )),
            Ok(ClientOutcome::Done(status)) => Ok(Some(status)),
            Ok(ClientOutcome::NotAccepted) => Ok(None),
            Ok(ClientOutcome::Unresponsive) => Err(Failure::new(
                FailureCode::Timeout,
                "the running peer does not answer",
                "it is frozen or executes too many commands",
                "resume or stop it, then try again",
            )),
            Ok(ClientOutcome::Disconnected) => Err(no_answer("it ended during the command")),
            // The reader of a closed pipe has ended: not an error.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(0)),
            Err(error) => Err(unwritable(error)),
        }
    }

    /// Executes a command in a peer that was started for it. Meanwhile other processes can send it commands; they
    /// complete before the peer ends.
    async fn execute_alone(
        &self,
        command: Command,
        peer: &Arc<dyn PeerApi>,
        stop: &CancellationToken,
    ) -> Result<u8, Failure> {
        let control = ControlServer::bind(&self.config.peer_state_dir())?;
        let done = CancellationToken::new();
        let mut clients = std::pin::pin!(control.serve(Arc::clone(peer), &done));
        let work = progress::with_bar(async |progress| {
            let context = CommandContext { peer: &**peer, working_dir: &self.working_dir, progress };
            execute(command, context).await
        });
        let (outcome, effect) = tokio::select! {
            biased;
            () = stop.cancelled() => (Outcome::interrupted(), Some(PeerEffect::Exit)),
            effect = &mut clients => (Outcome::interrupted(), Some(effect)),
            failure = peer.failed() => (failure.into(), Some(PeerEffect::Exit)),
            outcome = work => (outcome, None),
        };
        let status = self.show(&outcome);
        done.cancel();
        let effect = match effect {
            Some(effect) => effect,
            None => tokio::select! {
                () = stop.cancelled() => PeerEffect::Exit,
                effect = clients => effect,
            },
        };
        if effect == PeerEffect::Kill {
            std::process::exit(status.into());
        }
        Ok(status)
    }

    /// Prints the outcome of a one-shot command and returns its exit status.
    fn show(&self, outcome: &Outcome) -> u8 {
        let rendered = render(outcome, Style::Human.json_if(self.json));
        match print(&rendered) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&unwritable(error), self.json),
            _ => outcome.exit_status(),
        }
    }
}

/// Result of sending a one-shot command to a running peer.
enum Dispatch {
    /// The command ended with this exit status.
    Done(u8),
    /// No peer was running, and the command only asks: this one asks and does not take part.
    Observed(Arc<dyn PeerApi>),
    /// No peer was running; this one was started for the command.
    Started(Arc<dyn PeerApi>),
}

/// Prints a failure on standard error and returns its exit status.
pub fn fail(failure: &Failure, json: bool) -> u8 {
    // Without a reader of standard error the exit status remains.
    let _ = print(&Rendered { out: String::new(), err: render_failure(failure, json) });
    failure.code.exit_status()
}

async fn announce(peer: &dyn PeerApi, json: bool) -> Result<(), Failure> {
    let status = peer.status().await?;
    let out = format!("[{}] ready at {}\n", status.id, status.endpoint.host_port());
    let err = if json { String::new() } else { unfinished_line(&status.unfinished) };
    if let Err(error) = print(&Rendered { out, err }) {
        // A service does not depend on a reader of this line.
        tracing::debug!(%error, "cannot print the ready line");
    }
    Ok(())
}

fn no_answer(why: &str) -> Failure {
    Failure::new(FailureCode::Io, "the running peer did not answer", why, "check `status`, then try again")
}

fn unwritable(error: io::Error) -> Failure {
    Failure::new(FailureCode::Io, "cannot write standard output", error, "free space at its destination")
}
