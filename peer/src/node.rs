//! The task that owns the core: it takes messages, makes durable what must be, and carries out what the core wants.
//!
//! ```text
//!   net::service ──┐                              ┌── nameserver (seat, peers)
//!   share ─────────┤ Message            Action    ├── tracker, voters (RPC)
//!   commands ──────┼──────────> [ core ] ────────>┤
//!   net::calls ────┘    ^                         └── replies, reports, View
//!                       └───── outcome of each call ─────┘
//! ```
//!
//! Nothing else touches the core, so its rules hold however the calls interleave.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use shared::{
    epoch::Epoch,
    limits,
    rpc::nameserver::{Seat, SeatView},
    time::{Clock, Timestamp},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::net::rpc_client::Calls;
use protocol::election::{Action, Core, DurableState, Event, Reply, Report, Role, SeatRole, Token};

/// What the node tells everybody who wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What this peer is to the seat.
    pub role: SeatRole,
    /// The seat as this peer sees it.
    pub seat: SeatView,
    /// Set when the node has stopped, and why if it was not asked to.
    pub stopped: Option<Result<(), String>>,
}

impl View {
    /// The seat that this peer holds or follows.
    pub fn tracker(&self) -> Option<&Seat> {
        self.seat.seat.as_ref().filter(|_| self.role != SeatRole::Electing)
    }
}

type MakeEvent = Box<dyn FnOnce(Token) -> Event + Send>;
type Look = Box<dyn FnOnce(&mut Core, Timestamp, &mut Vec<Action>) + Send>;

enum Message {
    /// Something happened.
    Event(Event),
    /// Something is asked; the core answers in its own time.
    Ask(MakeEvent, oneshot::Sender<Reply>),
    /// Something is looked up.
    Look(Look),
}

/// The way to the node. Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
}

/// The node has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this peer is stopping")]
pub struct Stopped;

impl NodeHandle {
    /// Tells the core what happened. Waits while [`limits::MAX_QUEUED_EVENTS`] others wait before it.
    ///
    /// # Errors
    /// When the node has stopped.
    pub async fn tell(&self, event: Event) -> Result<(), Stopped> {
        self.messages.send(Message::Event(event)).await.map_err(|_| Stopped)
    }

    /// Asks the core; `make` builds the event around the token of the reply.
    ///
    /// # Errors
    /// When the node stops before it answers.
    pub async fn ask(&self, make: impl FnOnce(Token) -> Event + Send + 'static) -> Result<Reply, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Ask(Box::new(make), reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Looks something up in the core. A question to the tracker can show that it is none any more, so a look
    /// may bring actions like an event.
    ///
    /// # Errors
    /// When the node has stopped.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Core, Timestamp, &mut Vec<Action>) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let look: Look = Box::new(move |core, now, actions| {
            // Who asked may have gone; then nobody misses the answer.
            let _ = reply.send(look(core, now, actions));
        });
        self.messages.send(Message::Look(look)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// What the node says of itself now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// What the node says of itself, and when that changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }
}

/// The node before it runs.
pub struct Node {
    messages: mpsc::Receiver<Message>,
    view: watch::Sender<View>,
    handle: NodeHandle,
    durable_file: PathBuf,
}

impl Node {
    /// A node that keeps what must survive in `durable_file`, and the way to it.
    pub fn new(durable_file: PathBuf) -> (Self, NodeHandle) {
        let (sender, messages) = mpsc::channel(limits::MAX_QUEUED_EVENTS);
        let start = View { role: SeatRole::Electing, seat: SeatView::default(), stopped: None };
        let (view, watcher) = watch::channel(start);
        let handle = NodeHandle { messages: sender, view: watcher };
        (Self { messages, view, handle: handle.clone(), durable_file }, handle)
    }

    /// Runs until the core says that it is done. `now` comes from `clock`, which `core` was started with too.
    pub async fn run(mut self, mut core: Core, clock: Clock, calls: Arc<Calls>) {
        let mut pending: HashMap<Token, oneshot::Sender<Reply>> = HashMap::new();
        let mut tokens = 0;
        let mut actions = Vec::new();
        let reason = loop {
            let deadline = core.next_deadline();
            let message = tokio::select! {
                // The deadline first: a process that slept must learn that before it takes anything in.
                biased;
                () = sleep_until(deadline.map(|at| clock.instant(at))) => Message::Event(Event::Tick),
                message = self.messages.recv() => match message {
                    Some(message) => message,
                    None => break Ok(()),
                },
            };
            match message {
                Message::Event(event) => core.handle(clock.now(), event, &mut actions),
                Message::Ask(make, reply) => {
                    tokens += 1;
                    let token = Token(tokens);
                    pending.insert(token, reply);
                    core.handle(clock.now(), make(token), &mut actions);
                }
                Message::Look(look) => look(&mut core, clock.now(), &mut actions),
            }
            if let Some(reason) = self.carry_out(&mut actions, &mut pending, &calls).await {
                break reason;
            }
            self.publish(&core);
        };
        self.view.send_modify(|view| view.stopped = Some(reason));
    }

    /// Carries actions out in their order; returns when and why the node is to stop.
    async fn carry_out(
        &self,
        actions: &mut Vec<Action>,
        pending: &mut HashMap<Token, oneshot::Sender<Reply>>,
        calls: &Arc<Calls>,
    ) -> Option<Result<(), String>> {
        for action in actions.drain(..) {
            match action {
                Action::Persist(state) => {
                    if let Err(error) = persist(self.durable_file.clone(), state).await {
                        // A vote that is not durable must not be given: better no peer than two trackers.
                        tracing::error!(%error, file = %self.durable_file.display(), "cannot write; stopping");
                        return Some(Err(format!("cannot write {}: {error}", self.durable_file.display())));
                    }
                }
                Action::Reply { token, reply } => {
                    if let Some(waiting) = pending.remove(&token) {
                        // Who asked may have gone.
                        let _ = waiting.send(reply);
                    }
                }
                Action::Report(Report::Superseded) => {
                    return Some(Err("another process with this peer's identity has taken its place".to_owned()));
                }
                Action::Report(report) => tell(&report),
                Action::Stopped => return Some(Ok(())),
                call => calls.make(call, &self.handle),
            }
        }
        None
    }

    fn publish(&self, core: &Core) {
        let role = match (core.role(), core.tracker()) {
            (Role::Tracker, _) => SeatRole::Tracker,
            (_, Some(_)) => SeatRole::Follower,
            (_, None) => SeatRole::Electing,
        };
        let seat = core.seat_view();
        self.view.send_if_modified(|view| {
            let changed = view.role != role || view.seat != seat;
            if changed {
                view.role = role;
                view.seat = seat;
            }
            changed
        });
    }
}

/// Waits until `deadline`; for ever without one.
pub(crate) async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn tell(report: &Report) {
    match report {
        Report::TrackerSuspected { .. } | Report::SteppedDown { .. } | Report::ShareFull { .. } => {
            tracing::warn!(?report);
        }
        Report::Stalled { .. } => tracing::debug!(?report),
        _ => tracing::info!(?report),
    }
}

/// Format of the durable file.
const DURABLE_VERSION: u8 = 1;

async fn persist(file: PathBuf, state: DurableState) -> std::io::Result<()> {
    let write = move || {
        let mut bytes = vec![DURABLE_VERSION];
        let body = postcard::to_stdvec(&state).map_err(std::io::Error::other)?;
        bytes.extend_from_slice(&body);
        certs::write_private(&file, &bytes)
    };
    tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
}

/// Reads what an earlier run made durable; a new state where there is none.
///
/// # Errors
/// When the file is there but cannot be read or understood: without it this peer might vote twice.
pub fn read_durable(file: &std::path::Path) -> std::io::Result<DurableState> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DurableState::default()),
        Err(error) => return Err(error),
    };
    match bytes.split_first() {
        Some((&DURABLE_VERSION, body)) => postcard::from_bytes(body).map_err(std::io::Error::other),
        Some((version, _)) => Err(std::io::Error::other(format!("its format {version} is of another version"))),
        None => Err(std::io::Error::other("it is empty")),
    }
}

/// The epoch of the seat that a view knows of, for calls that must name one.
pub fn epoch_of(view: &View) -> Epoch {
    view.seat.seat.as_ref().map_or(view.seat.epoch_high, |seat| seat.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::election::Vote;

    #[tokio::test]
    async fn what_was_made_durable_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("election");
        assert_eq!(read_durable(&file).unwrap(), DurableState::default());
        let vote = Vote { epoch: Epoch(7), candidate: "peer1".parse().unwrap() };
        let state = DurableState { voted: Some(vote), epoch_high: Epoch(6) };
        persist(file.clone(), state.clone()).await.unwrap();
        assert_eq!(read_durable(&file).unwrap(), state);
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_a_new_state() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("election");
        for damaged in [&b""[..], b"\x02abc", b"\x01\xff\xff\xff"] {
            std::fs::write(&file, damaged).unwrap();
            assert!(read_durable(&file).is_err(), "{damaged:?}");
        }
    }
}
