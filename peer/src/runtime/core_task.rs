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

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use protocol::election::{Action, Core, DurableState, Event, Reply, Report, Role, SeatRole, Token};
use shared::{
    retry::Backoff,
    time::{Clock, Timestamp},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    durable_file,
    params::{STORE_LONGEST, STORE_SHORTEST},
};
use crate::{
    core_handle::{AnnouncementWaiter, CoreEnd, CoreHandle, Message, Query, View},
    diagnostics::warnings::{Topic, Warnings},
    net::rpc_client::RpcClient,
};

/// Task of the core before it runs.
pub struct CoreTask {
    messages: mpsc::Receiver<Message>,
    view: watch::Sender<View>,
    handle: CoreHandle,
    storage: Storage,
    waiters: Vec<AnnouncementWaiter>,
}

/// File of the durable state, and what is to be done about a failed write.
struct Storage {
    file: PathBuf,
    warnings: Warnings,
    backoff: Backoff,
    /// Time of the next attempt after a failed one.
    retry_at: Option<Timestamp>,
}

/// What the task wakes up for.
enum Wake {
    Deadline,
    StoreAgain,
    Message(Message),
}

impl CoreTask {
    /// Creates a task that keeps the durable state in `durable_file`, and the handle to it.
    pub fn new(durable_file: PathBuf, warnings: Warnings) -> (Self, CoreHandle) {
        let (handle, messages, view) = CoreHandle::new();
        let backoff = Backoff::new(STORE_SHORTEST, STORE_LONGEST);
        let storage = Storage { file: durable_file, warnings, backoff, retry_at: None };
        (Self { messages, view, handle: handle.clone(), storage, waiters: Vec::new() }, handle)
    }

    /// Runs until the core has stopped. `clock` is the one with which `core` was created.
    pub async fn run(mut self, mut core: Core, clock: Clock, calls: Arc<RpcClient>) {
        let mut pending: HashMap<Token, oneshot::Sender<Reply>> = HashMap::new();
        let mut tokens = 0;
        let mut actions = Vec::new();
        let end = loop {
            let deadline = core.next_deadline().map(|at| clock.instant(at));
            let retry = self.storage.retry_at.map(|at| clock.instant(at));
            let wake = tokio::select! {
                // The deadline first: a process that was suspended must notice that before it handles anything else.
                biased;
                () = sleep_until(deadline) => Wake::Deadline,
                () = sleep_until(retry) => Wake::StoreAgain,
                message = self.messages.recv() => match message {
                    Some(message) => Wake::Message(message),
                    None => break CoreEnd::Stopped,
                },
            };
            // An answer may depend on what the actions make durable, so it is sent after them.
            let mut answered = None;
            match wake {
                Wake::Deadline => core.handle(clock.now(), Event::Tick, &mut actions),
                Wake::StoreAgain => actions.push(Action::Persist(core.durable().clone())),
                Wake::Message(Message::Event(event)) => core.handle(clock.now(), event, &mut actions),
                Wake::Message(Message::Request(make, reply)) => {
                    tokens += 1;
                    let token = Token(tokens);
                    pending.insert(token, reply);
                    core.handle(clock.now(), make(token), &mut actions);
                }
                Wake::Message(Message::Query(query)) => {
                    answered = Some(answer(query, &mut core, &clock, &mut actions));
                }
                Wake::Message(Message::Await(waiter)) => self.waiters.push(waiter),
            }
            let mut queue = actions.drain(..).collect();
            if let Some(end) = self.carry_out(&mut core, &clock, &mut queue, &mut pending, &calls).await {
                break end;
            }
            if let Some(send) = answered {
                send();
            }
            self.publish(&core);
            if !self.waiters.is_empty() {
                self.waiters = std::mem::take(&mut self.waiters).into_iter().filter_map(|w| w.check(&core)).collect();
            }
        };
        self.view.send_modify(|view| view.stopped = Some(end));
    }

    /// Carries actions out in their order; returns how the core ended if it has.
    async fn carry_out(
        &mut self,
        core: &mut Core,
        clock: &Clock,
        queue: &mut VecDeque<Action>,
        pending: &mut HashMap<Token, oneshot::Sender<Reply>>,
        calls: &Arc<RpcClient>,
    ) -> Option<CoreEnd> {
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Persist(state) => self.storage.persist(state, core, clock, queue).await,
                Action::Reply { token, reply } => {
                    if let Some(waiting) = pending.remove(&token) {
                        let _ = waiting.send(reply);
                    }
                }
                Action::Report(Report::Superseded) => return Some(CoreEnd::Superseded),
                Action::Report(report) => log(&report),
                Action::Stopped => return Some(CoreEnd::Stopped),
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

impl Storage {
    /// Makes `state` durable. If that fails, tells the core, and keeps of the `queue` what does not depend on it.
    async fn persist(&mut self, state: DurableState, core: &mut Core, clock: &Clock, queue: &mut VecDeque<Action>) {
        let subject = self.file.to_string_lossy();
        let mut further = Vec::new();
        match store(self.file.clone(), state).await {
            Ok(()) => {
                self.retry_at = None;
                if core.storage_fails() {
                    self.backoff.reset();
                    self.warnings.clear(Topic::State, &subject);
                    core.handle(clock.now(), Event::Persisted, &mut further);
                }
            }
            Err(error) => {
                // A vote that is not durable must not be given: after a restart it could be given twice.
                let text = format!(
                    "cannot write {subject}: {error}; until that succeeds, this peer gives no vote and does not become \
                     tracker"
                );
                self.warnings.set(Topic::State, &subject, text);
                self.retry_at = Some(clock.now() + self.backoff.pause());
                *queue = std::mem::take(queue).into_iter().filter_map(Action::without_durability).collect();
                core.on_persist_failed(clock.now(), &mut further);
            }
        }
        queue.extend(further);
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

async fn store(file: PathBuf, state: DurableState) -> std::io::Result<()> {
    tokio::task::spawn_blocking(move || durable_file::store(&file, &state)).await.map_err(std::io::Error::other)?
}
