//! Task that owns the election core: it receives messages, persists the durable state, and executes the actions.
//!
//! ```text
//!   net::rpc_server ─┐                              ┌── nameserver (seat, peers)
//!   store ───────────┤ Message            Action    ├── tracker, voters (RPC)
//!   api_impl ────────┼──────────> [ core ] ────────>┤
//!   net::rpc_client ─┘    ^                         └── replies, reports, View
//!                         └───── outcome of each call ─────┘
//! ```
//!
//! No other task accesses the core, so its rules hold however the calls interleave.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use protocol::election::{Action, Core, DurableState, Event, Reply, Report, Role, SeatRole, Token};
use shared::time::Clock;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    core_handle::{AnnouncementWaiter, CoreHandle, Message, Query, View},
    net::rpc_client::RpcClient,
};

/// Task of the core before it runs.
pub struct CoreTask {
    messages: mpsc::Receiver<Message>,
    view: watch::Sender<View>,
    handle: CoreHandle,
    durable_file: PathBuf,
    waiters: Vec<AnnouncementWaiter>,
}

impl CoreTask {
    /// Creates a task that keeps the durable state in `durable_file`, and the handle to it.
    pub fn new(durable_file: PathBuf) -> (Self, CoreHandle) {
        let (handle, messages, view) = CoreHandle::new();
        (Self { messages, view, handle: handle.clone(), durable_file, waiters: Vec::new() }, handle)
    }

    /// Runs until the core has stopped. `clock` is the one with which `core` was created.
    pub async fn run(mut self, mut core: Core, clock: Clock, calls: Arc<RpcClient>) {
        let mut pending: HashMap<Token, oneshot::Sender<Reply>> = HashMap::new();
        let mut tokens = 0;
        let mut actions = Vec::new();
        let reason = loop {
            let deadline = core.next_deadline();
            let message = tokio::select! {
                // The deadline first: a process that was suspended must notice that before it handles anything else.
                biased;
                () = sleep_until(deadline.map(|at| clock.instant(at))) => Message::Event(Event::Tick),
                message = self.messages.recv() => match message {
                    Some(message) => message,
                    None => break Ok(()),
                },
            };
            // An answer may depend on what the actions make durable, so it is sent after them.
            let mut answered = None;
            match message {
                Message::Event(event) => core.handle(clock.now(), event, &mut actions),
                Message::Request(make, reply) => {
                    tokens += 1;
                    let token = Token(tokens);
                    pending.insert(token, reply);
                    core.handle(clock.now(), make(token), &mut actions);
                }
                Message::Query(query) => answered = Some(answer(query, &mut core, &clock, &mut actions)),
                Message::Await(waiter) => self.waiters.push(waiter),
            }
            if let Some(reason) = self.carry_out(&mut actions, &mut pending, &calls).await {
                break reason;
            }
            if let Some(send) = answered {
                send();
            }
            self.publish(&core);
            if !self.waiters.is_empty() {
                self.waiters = std::mem::take(&mut self.waiters).into_iter().filter_map(|w| w.check(&core)).collect();
            }
        };
        self.view.send_modify(|view| view.stopped = Some(reason));
    }

    /// Carries actions out in their order; returns the reason if the core has to stop.
    async fn carry_out(
        &self,
        actions: &mut Vec<Action>,
        pending: &mut HashMap<Token, oneshot::Sender<Reply>>,
        calls: &Arc<RpcClient>,
    ) -> Option<Result<(), String>> {
        for action in actions.drain(..) {
            match action {
                Action::Persist(state) => {
                    if let Err(error) = persist(self.durable_file.clone(), state).await {
                        // A vote that is not durable must not be given: after a restart it could be given twice.
                        tracing::error!(%error, file = %self.durable_file.display(), "cannot write; stopping");
                        return Some(Err(format!("cannot write {}: {error}", self.durable_file.display())));
                    }
                }
                Action::Reply { token, reply } => {
                    if let Some(waiting) = pending.remove(&token) {
                        let _ = waiting.send(reply);
                    }
                }
                Action::Report(Report::Superseded) => {
                    return Some(Err("another process with this peer's identity has taken its place".to_owned()));
                }
                Action::Report(report) => log(&report),
                Action::Stopped => return Some(Ok(())),
                call => calls.start(call, &self.handle),
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

/// Sends an answer that the core has given.
type SendAnswer = Box<dyn FnOnce() + Send>;

/// Answers a query. A query can cause actions, like an event: one to the tracker can show that it no longer is the
/// tracker.
fn answer(query: Query, core: &mut Core, clock: &Clock, actions: &mut Vec<Action>) -> SendAnswer {
    let now = clock.now();
    match query {
        Query::Heartbeat { from, beat, reply } => deferred(reply, core.on_heartbeat(now, &from, &beat, actions)),
        Query::Announce { from, announcement, reply } => {
            deferred(reply, core.on_announcement(now, &from, announcement, actions))
        }
        Query::Leave { from, epoch, incarnation, reply } => {
            deferred(reply, core.on_leave(now, &from, epoch, incarnation, actions))
        }
        Query::Notice { from, notice, reply } => deferred(reply, core.on_notice(now, &from, notice, actions)),
        Query::WhoHas { asker, query, reply } => deferred(reply, core.who_has(now, &asker, &query, actions)),
        Query::ListAll { query, reply } => deferred(reply, core.list_all(now, &query, actions)),
        Query::Members { reply } => deferred(reply, core.members().clone()),
    }
}

fn deferred<T: Send + 'static>(reply: oneshot::Sender<T>, answer: T) -> SendAnswer {
    // Fails only if the caller no longer waits.
    Box::new(move || drop(reply.send(answer)))
}

/// Waits until `deadline`; for ever without one.
pub(crate) async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn log(report: &Report) {
    match report {
        Report::TrackerSuspected { .. } | Report::SteppedDown { .. } | Report::ShareFull { .. } => {
            tracing::warn!(?report);
        }
        Report::Stalled { .. } => tracing::debug!(?report),
        _ => tracing::info!(?report),
    }
}

/// Version of the format of the durable file.
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

/// Reads the durable state of an earlier run, or returns the initial state if the file does not exist.
///
/// # Errors
/// Fails if the file exists and cannot be read or decoded: without its state this peer could vote twice.
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

#[cfg(test)]
mod tests {
    use shared::epoch::Epoch;

    use super::*;
    use protocol::election::Vote;

    #[tokio::test]
    async fn durable_state_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("election");
        assert_eq!(read_durable(&file).unwrap(), DurableState::default());
        let vote = Vote { epoch: Epoch(7), candidate: "peer1".parse().unwrap() };
        let state = DurableState { voted: Some(vote), epoch_high: Epoch(6) };
        persist(file.clone(), state.clone()).await.unwrap();
        assert_eq!(read_durable(&file).unwrap(), state);
    }

    #[test]
    fn damaged_durable_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("election");
        for damaged in [&b""[..], b"\x02abc", b"\x01\xff\xff\xff"] {
            std::fs::write(&file, damaged).unwrap();
            assert!(read_durable(&file).is_err(), "{damaged:?}");
        }
    }
}
