//! The one thread that owns the registry and its storage.
//!
//! Calls arrive over a bounded queue. The owner takes up to [`COMMANDS_PER_COMMIT`] at a time, applies them in
//! order, makes all their changes durable with *one* commit, and only then answers: a write costs an fsync shared with
//! whatever arrived beside it. Reads and renewals alone cost none.
//!
//! When a commit fails, its changes are undone and its calls answered "unavailable". Until the storage can be
//! loaded again (which tells whether the commit happened after all), writes are refused; reads and renewals go on.

mod places;

use std::{fmt, sync::Arc, thread, time::Duration};

use shared::{
    id::Role,
    limits::{COMMANDS_PER_COMMIT, MAX_QUEUED_EVENTS},
    rpc::{
        enrol::EnrolError,
        nameserver::{ClaimError, NameError, Revision},
    },
    time::{Clock, Timestamp},
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use self::places::{Place, Places};
use crate::{
    registry::{Mutation, Registry},
    storage::{Storage, StorageError},
};

/// How long a storage that failed is left alone before it is loaded again.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);

/// An answer that can say that the nameserver could not write or was not there.
pub(crate) trait Fallible {
    /// The answer that tells the caller to try again.
    fn unavailable(why: String) -> Self;
}

impl<T> Fallible for Result<T, NameError> {
    fn unavailable(why: String) -> Self {
        Err(NameError::Unavailable(why))
    }
}

impl<T> Fallible for Result<T, ClaimError> {
    fn unavailable(why: String) -> Self {
        Err(ClaimError::Unavailable(why))
    }
}

impl<T> Fallible for Result<T, EnrolError> {
    fn unavailable(why: String) -> Self {
        Err(EnrolError::Unavailable(why))
    }
}

/// One call on its way to the registry and back.
trait Command: Send {
    /// Carries the call out and keeps its answer. Calls that change nothing durable may be applied again.
    fn apply(&mut self, registry: &mut Registry, now: Timestamp);
    /// Sends the kept answer; `failure` says that the writes of this batch did not become durable.
    fn answer(self: Box<Self>, failure: Option<&str>);
    /// Who writes, for the audit log; `None` for calls that change nothing durable.
    fn writer(&self) -> Option<&Role>;
}

struct Read<F, T> {
    call: F,
    answer: Option<T>,
    reply: oneshot::Sender<T>,
}

impl<F, T> Command for Read<F, T>
where
    F: FnMut(&mut Registry, Timestamp) -> T + Send,
    T: Send,
{
    fn apply(&mut self, registry: &mut Registry, now: Timestamp) {
        self.answer = Some((self.call)(registry, now));
    }

    fn answer(self: Box<Self>, _failure: Option<&str>) {
        if let Some(answer) = self.answer {
            // The caller may have gone; then nobody wants the answer.
            let _ = self.reply.send(answer);
        }
    }

    fn writer(&self) -> Option<&Role> {
        None
    }
}

struct Write<F, T> {
    caller: Role,
    /// Given up when the call is answered, whether or not its caller still waits.
    _place: Place,
    call: Option<F>,
    answer: Option<T>,
    reply: oneshot::Sender<T>,
}

impl<F, T> Command for Write<F, T>
where
    F: FnOnce(&mut Registry, Timestamp, &Role) -> T + Send,
    T: Fallible + Send,
{
    fn apply(&mut self, registry: &mut Registry, now: Timestamp) {
        self.answer = self.call.take().map(|call| call(registry, now, &self.caller));
    }

    fn answer(self: Box<Self>, failure: Option<&str>) {
        let answer = match failure {
            Some(why) => Some(T::unavailable(why.to_owned())),
            None => self.answer,
        };
        if let Some(answer) = answer {
            let _ = self.reply.send(answer);
        }
    }

    fn writer(&self) -> Option<&Role> {
        Some(&self.caller)
    }
}

/// A way to the owner; cheap to clone. The owner ends when the last one is dropped.
#[derive(Clone)]
pub(crate) struct OwnerHandle {
    commands: mpsc::Sender<Box<dyn Command>>,
    places: Arc<Places>,
    revisions: watch::Receiver<Revision>,
}

impl fmt::Debug for OwnerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerHandle").finish_non_exhaustive()
    }
}

impl OwnerHandle {
    /// Reads from the registry, or renews a lease: what changes nothing durable. Waits for room in the queue; `None`
    /// when the owner has ended. The call is made again if writes that it may have seen could not be stored.
    pub(crate) async fn read<T, F>(&self, call: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnMut(&mut Registry, Timestamp) -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Box::new(Read { call, answer: None, reply })).await.ok()?;
        answer.await.ok()
    }

    /// Tells when there are new durable changes.
    pub(crate) fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.clone()
    }

    /// Changes the registry for `caller`. The answer comes after the change is durable; when the queue is full, when
    /// `caller` has too many writes in it, or when the owner has ended, it is "unavailable" at once.
    pub(crate) async fn write<T, F>(&self, caller: Role, call: F) -> T
    where
        T: Fallible + Send + 'static,
        F: FnOnce(&mut Registry, Timestamp, &Role) -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let Some(place) = self.places.take(&caller) else {
            return T::unavailable("too many writes of this identity are waiting".into());
        };
        match self.commands.try_send(Box::new(Write { caller, _place: place, call: Some(call), answer: None, reply })) {
            Ok(()) => answer.await.unwrap_or_else(|_| T::unavailable("it is shutting down".into())),
            Err(mpsc::error::TrySendError::Full(_)) => T::unavailable("too many calls are waiting".into()),
            Err(mpsc::error::TrySendError::Closed(_)) => T::unavailable("it is shutting down".into()),
        }
    }
}

/// Loads the storage and starts the owner's thread. Join the thread after the last handle is dropped: then everything
/// that was answered is stored and the storage is closed.
///
/// # Errors
/// When the storage cannot be loaded.
pub(crate) fn start(
    mut storage: Box<dyn Storage>,
    clock: Clock,
) -> Result<(OwnerHandle, thread::JoinHandle<()>), StorageError> {
    let registry = Registry::restore(storage.load()?, clock.now());
    let (published, revisions) = watch::channel(registry.revision());
    let mut owner = Owner { registry, storage, published, trouble: None };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| StorageError::Io { path: "the owner's runtime".into(), error })?;
    let (commands, mut queue) = mpsc::channel(MAX_QUEUED_EVENTS);
    let thread = thread::Builder::new()
        .name("registry".to_owned())
        .spawn(move || runtime.block_on(owner.run(&mut queue, clock)))
        .map_err(|error| StorageError::Io { path: "the owner's thread".into(), error })?;
    Ok((OwnerHandle { commands, places: Arc::default(), revisions }, thread))
}

struct Owner {
    registry: Registry,
    storage: Box<dyn Storage>,
    /// Wakes those who watch.
    published: watch::Sender<Revision>,
    /// Set while the storage must be loaded again before anything is written.
    trouble: Option<Trouble>,
}

struct Trouble {
    why: String,
    /// When loading is tried (again).
    retry_at: Timestamp,
}

impl Owner {
    async fn run(&mut self, queue: &mut mpsc::Receiver<Box<dyn Command>>, clock: Clock) {
        let mut batch = Vec::with_capacity(COMMANDS_PER_COMMIT);
        loop {
            let wake_at = self.wake_at().map(|at| tokio::time::Instant::from_std(clock.instant(at)));
            let timer = async {
                match wake_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = queue.recv_many(&mut batch, COMMANDS_PER_COMMIT) => if received == 0 { return },
                () = timer => {}
            }
            self.turn(&mut batch, clock.now());
        }
    }

    fn wake_at(&self) -> Option<Timestamp> {
        let due = self.registry.next_deadline()?;
        // Nothing ends durably while the storage is in trouble: do not spin.
        Some(self.trouble.as_ref().map_or(due, |trouble| trouble.retry_at.max(due)))
    }

    /// One batch: apply, commit once, answer. Empties `batch`.
    fn turn(&mut self, batch: &mut Vec<Box<dyn Command>>, now: Timestamp) {
        let mut failure = self.recover(now).err();
        if failure.is_none() {
            self.registry.expire(now);
        }
        // Up to which of the pending changes each writer's go, for the audit log.
        let mut writers: Vec<(Role, usize)> = vec![(Role::Nameserver, self.registry.pending().len())];
        for command in batch.iter_mut() {
            match command.writer().cloned() {
                Some(_) if failure.is_some() => {}
                None => command.apply(&mut self.registry, now),
                Some(caller) => {
                    command.apply(&mut self.registry, now);
                    writers.push((caller, self.registry.pending().len()));
                }
            }
        }
        if failure.is_none()
            && let Err(why) = self.commit(now)
        {
            failure = Some(why);
            // Reads of this batch may have seen what did not happen.
            let reads = batch.iter_mut().filter(|command| command.writer().is_none());
            reads.for_each(|command| command.apply(&mut self.registry, now));
        } else {
            audit(&writers, self.registry.pending());
            self.registry.settle();
            let revision = self.registry.revision();
            self.published.send_if_modified(|last| std::mem::replace(last, revision) != revision);
        }
        for command in batch.drain(..) {
            command.answer(failure.as_deref());
        }
    }

    /// Makes the pending changes durable, or undoes them.
    fn commit(&mut self, now: Timestamp) -> Result<(), String> {
        let Some(first) = self.registry.pending().first() else { return Ok(()) };
        let expected = Revision(first.revision.0 - 1);
        let Err(failure) = self.storage.commit(self.registry.pending(), expected) else { return Ok(()) };
        self.registry.roll_back();
        error!(%failure, "a commit failed; its writes are undone");
        let retry_at = match failure {
            StorageError::Conflict { .. } => now,
            _ => now + RELOAD_PAUSE,
        };
        let why = failure.to_string();
        self.trouble = Some(Trouble { why: why.clone(), retry_at });
        Err(why)
    }

    /// After a failure, loads what really is stored.
    fn recover(&mut self, now: Timestamp) -> Result<(), String> {
        let Some(trouble) = &mut self.trouble else { return Ok(()) };
        if now < trouble.retry_at {
            return Err(trouble.why.clone());
        }
        match self.storage.load() {
            Ok(snapshot) => {
                warn!(revision = snapshot.revision.0, "the storage works again");
                self.registry = Registry::restore(snapshot, now);
                self.trouble = None;
                Ok(())
            }
            Err(failure) => {
                trouble.why = failure.to_string();
                trouble.retry_at = now + RELOAD_PAUSE;
                Err(trouble.why.clone())
            }
        }
    }
}

/// One line a durable change: who, what, at which revision. The changes' texts hold no secrets.
fn audit(writers: &[(Role, usize)], changes: &[Mutation]) {
    let mut from = 0;
    for (caller, to) in writers {
        for Mutation { revision, change } in &changes[from..*to] {
            info!(target: "audit", revision = revision.0, %caller, %change);
        }
        from = *to;
    }
}

#[cfg(test)]
mod tests;
