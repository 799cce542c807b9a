//! The control socket: a running peer executes the commands of `peer peer1 COMMAND…`.
//!
//! It is a Unix socket in the peer's state folder. Only the user of the peer can use it: the permissions of folder and
//! socket exclude others, and both sides check the user id of the other. Frames are length-delimited JSON of at most
//! `crate::cli::params::MAX_CONTROL_FRAME_BYTES`:
//!
//! ```text
//! client: Request
//! server: Accepted, (Out | Err | Progress)*, Done
//! ```
//!
//! The server stops a command when its client disconnects. A client can repeat a command elsewhere as long as the
//! server has not accepted it.

use std::{
    fs, io,
    os::{
        fd::IntoRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    command::{CommandContext, Outcome, PeerEffect},
    commands::{execute, parse},
    output::{Style, render},
    params::{
        CONTROL_OUTPUT_BYTES, CONTROL_SILENCE, END_WAIT, MAX_CONTROL_CLIENTS, MAX_CONTROL_FRAME_BYTES,
        PROGRESS_INTERVAL,
    },
};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shared::{
    error::{Failure, FailureCode},
    limits::STREAM_HEADER_DEADLINE,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{
    codec::{Framed, LengthDelimitedCodec},
    sync::CancellationToken,
};

use crate::api::{PeerApi, Progress, ProgressSink};

/// Longest path that every supported system allows for a Unix socket, bytes. `sun_path` has 104 bytes on BSD and
/// macOS and 108 on Linux, its NUL included.
const MAX_SOCKET_PATH_BYTES: usize = 100;
const SOCKET_NAME: &str = "control.sock";

/// Command for a running peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Verb and arguments.
    pub(crate) words: Vec<String>,
    /// Requests output in JSON.
    pub(crate) json: bool,
    /// Base of relative paths; absolute.
    pub(crate) working_dir: PathBuf,
    /// Requests [`Reply::Progress`].
    pub(crate) progress: bool,
}

/// Message of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The command starts.
    Accepted,
    /// Text for standard output.
    Out(String),
    /// Text for standard error.
    Err(String),
    /// Progress of a download.
    Progress(Progress),
    /// The command has ended; nothing follows.
    Done {
        /// Exit status of the one-shot command.
        status: u8,
    },
}

type Frames = Framed<UnixStream, LengthDelimitedCodec>;

fn frames(stream: UnixStream) -> Frames {
    LengthDelimitedCodec::builder().max_frame_length(MAX_CONTROL_FRAME_BYTES).new_framed(stream)
}

async fn send(frames: &mut Frames, message: &impl Serialize) -> io::Result<()> {
    frames.send(Bytes::from(serde_json::to_vec(message)?)).await
}

/// Receives the next message; `None` when the other side has closed the socket.
async fn receive<T: DeserializeOwned>(frames: &mut Frames) -> io::Result<Option<T>> {
    match frames.next().await {
        Some(frame) => Ok(Some(serde_json::from_slice(&frame?)?)),
        None => Ok(None),
    }
}

fn is_same_user(stream: &UnixStream) -> io::Result<bool> {
    Ok(stream.peer_cred()?.uid() == geteuid().as_raw())
}

/// Server end of the control socket. Dropping it removes the socket.
#[derive(Debug)]
pub(crate) struct ControlServer {
    listener: UnixListener,
    /// The socket, and the link to it if its regular path is too long.
    files: Vec<PathBuf>,
}

impl ControlServer {
    /// Binds the socket in the peer's state folder, which is created when missing. Replaces the socket of a dead peer:
    /// the caller holds the peer's lock.
    ///
    /// # Errors
    /// `io` when the folder or the socket cannot be created.
    pub(crate) fn bind(peer_state_dir: &Path) -> Result<Self, Failure> {
        Self::bind_at(peer_state_dir).map_err(|error| {
            let what = format!("cannot create the control socket in {}", peer_state_dir.display());
            Failure::new(FailureCode::Io, what, error, "choose a writable --state-dir")
        })
    }

    fn bind_at(peer_state_dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(peer_state_dir)?;
        let regular = peer_state_dir.join(SOCKET_NAME);
        if regular.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
            match bind_protected(&regular) {
                Ok(listener) => return Ok(Self { listener, files: vec![regular] }),
                Err(error) if is_unwritable(&error) => {
                    tracing::warn!(%error, socket = %regular.display(), "cannot create the control socket; using another");
                }
                Err(error) => return Err(error),
            }
        }
        let short = short_path(&regular)?;
        let listener = bind_protected(&short)?;
        let mut files = vec![short.clone()];
        let link = peer_state_dir.join("control.new");
        let linked = remove_if_exists(&link).and_then(|()| {
            std::os::unix::fs::symlink(&short, &link)?;
            fs::rename(&link, &regular)
        });
        match linked {
            Ok(()) => files.push(regular),
            // Clients with the same environment find the socket without the link.
            Err(error) => tracing::debug!(%error, "cannot link to the control socket"),
        }
        Ok(Self { listener, files })
    }
}

/// Binds a socket that only this user can use.
fn bind_protected(socket: &Path) -> io::Result<UnixListener> {
    // The socket is bound under a temporary name and renamed when its permissions are set: no client connects to an
    // unprotected socket, and the socket of a dead peer is replaced atomically.
    let temporary = socket.with_extension("new");
    remove_if_exists(&temporary)?;
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    fs::rename(&temporary, socket)?;
    Ok(listener)
}

/// True if the file system of the state cannot take a new file.
fn is_unwritable(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    // EIO has no kind of its own.
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

impl ControlServer {
    /// Executes the commands of clients until one of them ends the peer, and returns that effect. After `stop` it
    /// accepts no more commands, completes the running ones, and returns [`PeerEffect::Exit`].
    pub(crate) async fn serve(self, peer: Arc<dyn PeerApi>, stop: &CancellationToken) -> PeerEffect {
        let permits = Arc::new(Semaphore::new(MAX_CONTROL_CLIENTS));
        let (end, mut ends) = mpsc::channel(1);
        let mut clients = JoinSet::new();
        loop {
            let accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
                (permit, self.listener.accept().await)
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(effect) = ends.recv() => return effect,
                Some(_) = clients.join_next() => {}
                (permit, accepted) = accepted => match accepted {
                    Ok((stream, _)) => {
                        let (peer, end) = (Arc::clone(&peer), end.clone());
                        clients.spawn(async move {
                            match serve_client(stream, peer).await {
                                Ok(PeerEffect::KeepRunning) => {}
                                // The channel is full when the peer already ends.
                                Ok(effect) => drop(end.try_send(effect)),
                                Err(error) => tracing::debug!(%error, "control client disconnected"),
                            }
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        // A lack of file descriptors, for example, is temporary.
                        tracing::warn!(%error, "cannot accept a control client");
                        tokio::time::sleep(PROGRESS_INTERVAL).await;
                    }
                },
            }
        }
        // Removes the socket, and closes the connections that were not accepted: their clients retry elsewhere.
        drop(self);
        loop {
            tokio::select! {
                Some(effect) = ends.recv() => return effect,
                ended = clients.join_next() => if ended.is_none() { return PeerEffect::Exit; },
            }
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        for file in &self.files {
            if let Err(error) = fs::remove_file(file) {
                tracing::debug!(%error, "cannot remove the control socket");
            }
        }
    }
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Folder of the short paths of this user.
fn short_folder() -> PathBuf {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    base.unwrap_or_else(std::env::temp_dir).join(format!("brasa-{}", geteuid().as_raw()))
}

/// Name in [`short_folder`] of the socket with the `regular` path.
fn short_name(regular: &Path) -> String {
    let hash = blake3::hash(regular.as_os_str().as_encoded_bytes()).to_hex();
    format!("{}.sock", &hash[..16])
}

/// Returns a short path for a socket whose `regular` path is too long or cannot be written, in a folder that only this
/// user can access. Clients read it from the link at `regular` where there is one, so that they do not depend on this
/// process's environment.
fn short_path(regular: &Path) -> io::Result<PathBuf> {
    let folder = short_folder();
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // In a shared temporary folder another user may have created it.
    let metadata = fs::symlink_metadata(&folder)?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
        let why = format!("{} is not a private folder of this user", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(folder.join(short_name(regular)))
}

/// Serves one client. Returns the effect of its command on the peer.
async fn serve_client(stream: UnixStream, peer: Arc<dyn PeerApi>) -> io::Result<PeerEffect> {
    if !is_same_user(&stream)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut frames = frames(stream);
    let request = timeout(STREAM_HEADER_DEADLINE, receive::<Request>(&mut frames)).await??;
    let Some(request) = request else {
        return Ok(PeerEffect::KeepRunning);
    };
    send(&mut frames, &Reply::Accepted).await?;
    let style = Style::Human.json_if(request.json);
    let Some(outcome) = execute_request(request, &mut frames, &*peer).await? else {
        return Ok(PeerEffect::KeepRunning);
    };
    let rendered = render(&outcome, style);
    for part in parts(&rendered.out) {
        send(&mut frames, &Reply::Out(part.to_owned())).await?;
    }
    for part in parts(&rendered.err) {
        send(&mut frames, &Reply::Err(part.to_owned())).await?;
    }
    send(&mut frames, &Reply::Done { status: outcome.exit_status() }).await?;
    if outcome.effect != PeerEffect::KeepRunning {
        // The connection stays open until the process has ended, which tells the client so.
        let _open_until_the_end = frames.into_inner().into_std()?.into_raw_fd();
    }
    Ok(outcome.effect)
}

/// Executes a request and sends its progress. Returns `None` if the client disconnects first.
async fn execute_request(request: Request, frames: &mut Frames, peer: &dyn PeerApi) -> io::Result<Option<Outcome>> {
    let command = match parse(request.words) {
        Ok(command) => command,
        Err(failure) => return Ok(Some(failure.into())),
    };
    let (progress, mut latest) =
        if request.progress { ProgressSink::channel() } else { (ProgressSink::none(), ProgressSink::channel().1) };
    let context = CommandContext { peer, working_dir: &request.working_dir, progress };
    let mut work = std::pin::pin!(execute(command, context));
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            outcome = &mut work => return Ok(Some(outcome)),
            // A client sends nothing after its request: anything received here means that it has disconnected.
            _ = frames.next() => return Ok(None),
            _ = ticks.tick(), if request.progress => {
                if latest.has_changed().unwrap_or(false) {
                    let progress = latest.borrow_and_update().clone();
                    if let Some(progress) = progress {
                        send(frames, &Reply::Progress(progress)).await?;
                    }
                }
            }
        }
    }
}

/// Splits a text into parts of at most [`CONTROL_OUTPUT_BYTES`], between characters.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let limit = rest.len().min(CONTROL_OUTPUT_BYTES);
        let end = (0..=limit).rev().find(|at| rest.is_char_boundary(*at)).expect("0 is a boundary");
        let (part, after) = rest.split_at(end);
        rest = after;
        Some(part)
    })
}

/// Client end of the control socket.
#[derive(Debug)]
pub(crate) struct ControlClient(Frames);

/// Outcome of a command from the client's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientOutcome {
    /// The command ended with this exit status.
    Done(u8),
    /// The peer disconnected before it accepted the command. The client can try again, or start a peer.
    NotAccepted,
    /// The peer did not accept the command within [`CONTROL_SILENCE`]: it is frozen or executes too many others.
    Unresponsive,
    /// The peer disconnected during the command.
    Disconnected,
    /// The command is done, but the process that it ends has not ended within [`END_WAIT`].
    NotEnded,
}

impl ControlClient {
    /// Connects to the peer with this state folder; `None` when none runs.
    ///
    /// # Errors
    /// `not_authorised` when the socket belongs to another user, `io` when it exists but cannot be reached.
    pub(crate) async fn connect(peer_state_dir: &Path) -> Result<Option<Self>, Failure> {
        let regular = peer_state_dir.join(SOCKET_NAME);
        let short = short_folder().join(short_name(&regular));
        let socket = fs::read_link(&regular).unwrap_or(regular);
        match Self::connect_to(&socket).await? {
            Some(client) => Ok(Some(client)),
            None => Self::connect_to(&short).await,
        }
    }

    async fn connect_to(socket: &Path) -> Result<Option<Self>, Failure> {
        if socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            // A running peer would have replaced so long a path by a link.
            return Ok(None);
        }
        let unreachable = |error: io::Error| {
            let why = format!("{}: {error}", socket.display());
            let hint = "run the command as the user of that peer";
            Failure::new(FailureCode::Io, "cannot reach the running peer", why, hint)
        };
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(unreachable(error)),
        };
        if !is_same_user(&stream).map_err(unreachable)? {
            return Err(Failure::new(
                FailureCode::NotAuthorised,
                "cannot use the running peer",
                "it belongs to another user",
                "use another id or another --state-dir",
            ));
        }
        Ok(Some(Self(frames(stream))))
    }

    /// Sends a command and passes each reply except [`Reply::Done`] to `on_reply`. Dropping the future stops the
    /// command.
    ///
    /// # Errors
    /// Errors of `on_reply`.
    pub(crate) async fn run<E>(
        mut self,
        request: &Request,
        on_reply: impl FnMut(Reply) -> Result<(), E>,
    ) -> Result<ClientOutcome, E> {
        self.exchange(request, on_reply).await
    }

    /// Like [`Self::run`] for a command that ends the peer: also waits until the peer's process has ended.
    ///
    /// # Errors
    /// Errors of `on_reply`.
    pub(crate) async fn run_until_ended<E>(
        mut self,
        request: &Request,
        on_reply: impl FnMut(Reply) -> Result<(), E>,
    ) -> Result<ClientOutcome, E> {
        let outcome = self.exchange(request, on_reply).await?;
        if !matches!(outcome, ClientOutcome::Done(_)) {
            return Ok(outcome);
        }
        let closed = async { while matches!(self.0.next().await, Some(Ok(_))) {} };
        Ok(if timeout(END_WAIT, closed).await.is_ok() { outcome } else { ClientOutcome::NotEnded })
    }

    async fn exchange<E>(
        &mut self,
        request: &Request,
        mut on_reply: impl FnMut(Reply) -> Result<(), E>,
    ) -> Result<ClientOutcome, E> {
        // The server has not read a request that cannot be sent.
        if send(&mut self.0, request).await.is_err() {
            return Ok(ClientOutcome::NotAccepted);
        }
        let mut accepted = false;
        loop {
            // A command has no deadline, but its acceptance has one.
            let deadline = if accepted { Duration::MAX } else { CONTROL_SILENCE };
            let Ok(reply) = timeout(deadline, receive::<Reply>(&mut self.0)).await else {
                return Ok(ClientOutcome::Unresponsive);
            };
            match reply {
                Ok(Some(Reply::Done { status })) => return Ok(ClientOutcome::Done(status)),
                Ok(Some(reply)) => {
                    accepted = true;
                    on_reply(reply)?;
                }
                Ok(None) | Err(_) if accepted => return Ok(ClientOutcome::Disconnected),
                Ok(None) | Err(_) => return Ok(ClientOutcome::NotAccepted),
            }
        }
    }
}

#[cfg(test)]
mod tests;
