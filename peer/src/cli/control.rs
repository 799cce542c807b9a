//! The control socket, by which a running peer carries out `peer peer1 COMMAND…`.
//!
//! A Unix socket in the peer's state folder, for the same user only: the folder and the socket deny others, and
//! both sides check the other's user id. Frames are length-delimited JSON, at most
//! `limits::MAX_CONTROL_FRAME_BYTES`:
//!
//! ```text
//! client: Request
//! server: Accepted, (Out | Err | Progress)*, Done
//! ```
//!
//! A client that goes away stops its command. A command may be repeated elsewhere as long as it was not accepted.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shared::{
    error::{Failure, FailureCode},
    limits::{
        CONTROL_OUTPUT_BYTES, CONTROL_SILENCE, MAX_CONTROL_CLIENTS, MAX_CONTROL_FRAME_BYTES, PROGRESS_INTERVAL,
        STREAM_HEADER_DEADLINE,
    },
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

use super::{
    Call, Command, Next, Outcome, execute,
    output::{Style, render},
};
use crate::api::{PeerApi, Progress, ProgressSink};

/// Longest path that every system lets a Unix socket have, bytes (`sun_path` is 104 on BSD and macOS, 108 on
/// Linux, its NUL included), with room to spare.
const MAX_SOCKET_PATH_BYTES: usize = 100;
const SOCKET_NAME: &str = "control.sock";

/// A command for a running peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Verb and arguments.
    pub words: Vec<String>,
    /// Answer in JSON.
    pub json: bool,
    /// What relative paths are relative to; absolute.
    pub working_dir: PathBuf,
    /// Whether somebody sees progress.
    pub progress: bool,
}

/// What the peer answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The command begins.
    Accepted,
    /// For standard output.
    Out(String),
    /// For standard error.
    Err(String),
    /// How far it is.
    Progress(Progress),
    /// The command is over; nothing follows.
    Done {
        /// The exit status of the one-shot command.
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

/// The next message; `None` when the other side is gone.
async fn receive<T: DeserializeOwned>(frames: &mut Frames) -> io::Result<Option<T>> {
    match frames.next().await {
        Some(frame) => Ok(Some(serde_json::from_slice(&frame?)?)),
        None => Ok(None),
    }
}

fn is_own(stream: &UnixStream) -> io::Result<bool> {
    Ok(stream.peer_cred()?.uid() == rustix::process::geteuid().as_raw())
}

/// The serving end. Its socket vanishes when it is dropped.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    /// The socket, and a link to it where its own path was too long.
    files: Vec<PathBuf>,
}

impl ControlServer {
    /// Listens in a peer's state folder, made when missing. What a dead peer left there is replaced: the caller
    /// holds the peer's lock.
    ///
    /// # Errors
    /// `io` when the folder or the socket cannot be made.
    pub fn bind(peer_state_dir: &Path) -> Result<Self, Failure> {
        Self::bind_at(peer_state_dir).map_err(|error| {
            Failure::new(
                FailureCode::Io,
                format!("no control socket in {}", peer_state_dir.display()),
                error,
                "say a --state-dir that can be written to",
            )
        })
    }

    fn bind_at(peer_state_dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(peer_state_dir)?;
        let proper = peer_state_dir.join(SOCKET_NAME);
        let mut files = vec![proper.clone()];
        let socket = if proper.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
            proper
        } else {
            let short = short_path(&proper)?;
            let link = peer_state_dir.join("control.new");
            remove_if_there(&link)?;
            std::os::unix::fs::symlink(&short, &link)?;
            fs::rename(&link, &proper)?;
            files.push(short.clone());
            short
        };
        // Bound under another name, closed to others, then renamed: nobody meets it half-made, and a dead
        // peer's socket is replaced in one step.
        let unready = socket.with_extension("new");
        remove_if_there(&unready)?;
        let listener = UnixListener::bind(&unready)?;
        fs::set_permissions(&unready, fs::Permissions::from_mode(0o600))?;
        fs::rename(&unready, &socket)?;
        Ok(Self { listener, files })
    }

    /// Carries out what clients ask, until one orders the peer to end ([`Next::Exit`] or [`Next::Kill`]), or until
    /// `stop`; then it takes no more commands, finishes those that run, and returns [`Next::Exit`].
    pub async fn serve(self, backend: Arc<dyn PeerApi>, stop: &CancellationToken) -> Next {
        let room = Arc::new(Semaphore::new(MAX_CONTROL_CLIENTS));
        let (order, mut orders) = mpsc::channel(1);
        let mut clients = JoinSet::new();
        loop {
            let accepted = async {
                let place = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
                (place, self.listener.accept().await)
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(next) = orders.recv() => return next,
                Some(_) = clients.join_next() => {}
                (place, accepted) = accepted => match accepted {
                    Ok((stream, _)) => {
                        let (backend, order) = (Arc::clone(&backend), order.clone());
                        clients.spawn(async move {
                            match converse(stream, backend).await {
                                Ok(Next::Continue) => {}
                                // A second order finds the channel full: the peer ends already.
                                Ok(end) => drop(order.try_send(end)),
                                Err(error) => tracing::debug!(%error, "a control client went away"),
                            }
                            drop(place);
                        });
                    }
                    Err(error) => {
                        // Out of descriptors, for example: some will be free again.
                        tracing::warn!(%error, "a control client is not accepted");
                        tokio::time::sleep(PROGRESS_INTERVAL).await;
                    }
                },
            }
        }
        // Nobody new finds the socket, and whoever just did is told to try elsewhere by its closing.
        drop(self);
        loop {
            tokio::select! {
                Some(next) = orders.recv() => return next,
                gone = clients.join_next() => if gone.is_none() { return Next::Exit; },
            }
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        for file in &self.files {
            if let Err(error) = fs::remove_file(file) {
                tracing::debug!(%error, "the control socket was removed already");
            }
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A short path for a socket that belongs at `proper`, in a folder of this user's own. The link at `proper` says
/// where it is, so a client need not have the same surroundings.
fn short_path(proper: &Path) -> io::Result<PathBuf> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let folder = base.unwrap_or_else(std::env::temp_dir).join(format!("brasa-{}", rustix::process::geteuid().as_raw()));
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Anybody may have made it in a temporary folder: it must be a folder, ours, and closed to others.
    let found = fs::symlink_metadata(&folder)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        let why = format!("{} is not a folder of this user alone", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let hash = blake3::hash(proper.as_os_str().as_encoded_bytes()).to_hex();
    Ok(folder.join(format!("{}.sock", &hash[..16])))
}

/// Serves one client; what its command means for the peer.
async fn converse(stream: UnixStream, backend: Arc<dyn PeerApi>) -> io::Result<Next> {
    if !is_own(&stream)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut frames = frames(stream);
    let request = timeout(STREAM_HEADER_DEADLINE, receive::<Request>(&mut frames)).await??;
    let Some(request) = request else {
        return Ok(Next::Continue);
    };
    send(&mut frames, &Reply::Accepted).await?;
    let style = Style::Human.json_if(request.json);
    let Some(outcome) = carry_out(request, &mut frames, &*backend).await? else {
        return Ok(Next::Continue);
    };
    let rendered = render(&outcome, style);
    for part in parts(&rendered.out) {
        send(&mut frames, &Reply::Out(part.to_owned())).await?;
    }
    for part in parts(&rendered.err) {
        send(&mut frames, &Reply::Err(part.to_owned())).await?;
    }
    send(&mut frames, &Reply::Done { status: outcome.exit_status() }).await?;
    Ok(outcome.next)
}

/// `None` when the client went away first.
async fn carry_out(request: Request, frames: &mut Frames, backend: &dyn PeerApi) -> io::Result<Option<Outcome>> {
    let command = match Command::parse(request.words) {
        Ok(command) => command,
        Err(failure) => return Ok(Some(failure.into())),
    };
    let (progress, mut latest) =
        if request.progress { ProgressSink::channel() } else { (ProgressSink::none(), ProgressSink::channel().1) };
    let call = Call { backend, working_dir: &request.working_dir, progress };
    let mut work = std::pin::pin!(execute(command, call));
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            outcome = &mut work => return Ok(Some(outcome)),
            // A client says nothing after its request, so whatever comes is its end.
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

/// Cuts a text into frames' worth, between characters.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let most = rest.len().min(CONTROL_OUTPUT_BYTES);
        let end = (0..=most).rev().find(|at| rest.is_char_boundary(*at)).expect("0 is a boundary");
        let (part, after) = rest.split_at(end);
        rest = after;
        Some(part)
    })
}

/// The asking end.
#[derive(Debug)]
pub struct ControlClient(Frames);

/// How a command ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// With this exit status.
    Done(u8),
    /// The peer went away before it began: it can be asked again, or another started.
    NotAccepted,
    /// The peer is there but said nothing for [`CONTROL_SILENCE`]: it is frozen, or busy with too many others.
    Silent,
    /// The peer went away in the middle.
    Lost,
}

impl ControlClient {
    /// Connects to the peer whose state folder this is; `None` when none runs.
    ///
    /// # Errors
    /// `not_authorised` when the socket is somebody else's; `io` when it cannot be reached though it is there.
    pub async fn connect(peer_state_dir: &Path) -> Result<Option<Self>, Failure> {
        let proper = peer_state_dir.join(SOCKET_NAME);
        let socket = fs::read_link(&proper).unwrap_or(proper);
        if socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            // With so long a path a peer would have left a link.
            return Ok(None);
        }
        let unreachable = |error: io::Error| {
            Failure::new(
                FailureCode::Io,
                "the running peer cannot be asked",
                format!("{}: {error}", socket.display()),
                "run the command as the user whose peer it is",
            )
        };
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(unreachable(error)),
        };
        if !is_own(&stream).map_err(unreachable)? {
            return Err(Failure::new(
                FailureCode::NotAuthorised,
                "the running peer cannot be asked",
                "it belongs to another user",
                "use another id or another --state-dir",
            ));
        }
        Ok(Some(Self(frames(stream))))
    }

    /// Has a command carried out; `show` gets the replies as they come, [`Reply::Done`] excepted. Dropping the
    /// future stops the command.
    ///
    /// # Errors
    /// What `show` returns.
    pub async fn run<E>(
        mut self,
        request: &Request,
        mut show: impl FnMut(Reply) -> Result<(), E>,
    ) -> Result<Answered, E> {
        // A request that cannot be sent was not read, and one that cannot be written as JSON never will be.
        if send(&mut self.0, request).await.is_err() {
            return Ok(Answered::NotAccepted);
        }
        let mut accepted = false;
        loop {
            // A command may take as long as it likes, but that it begins is said at once.
            let silence = if accepted { Duration::MAX } else { CONTROL_SILENCE };
            let Ok(reply) = timeout(silence, receive::<Reply>(&mut self.0)).await else { return Ok(Answered::Silent) };
            match reply {
                Ok(Some(Reply::Done { status })) => return Ok(Answered::Done(status)),
                Ok(Some(reply)) => {
                    accepted = true;
                    show(reply)?;
                }
                Ok(None) | Err(_) if accepted => return Ok(Answered::Lost),
                Ok(None) | Err(_) => return Ok(Answered::NotAccepted),
            }
        }
    }
}

#[cfg(test)]
mod tests;
