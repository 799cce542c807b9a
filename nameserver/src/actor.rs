//! The thread that owns the registry and its storage.
//!
//! Commands arrive over a bounded queue. The actor takes up to [`COMMANDS_PER_COMMIT`] of them, applies them in order,
//! makes all their changes durable with *one* commit, and then answers. All writes of a batch share one fsync; a batch
//! of reads and renewals needs none.
//!
//! When a commit fails, the actor undoes its changes and answers its writes with "unavailable". It rejects further
//! writes until the storage loads again, which shows whether the failed commit took effect. Reads and renewals continue
//! meanwhile.

use std::{fmt, sync::Arc, thread, time::Duration};

use crate::{
    params::COMMANDS_PER_COMMIT,
    quota::{WritePermit, WriteQuota},
    registry::{Mutation, Registry},
    storage::{Storage, StorageError},
};
use shared::{
    id::Role,
    limits::MAX_QUEUED_EVENTS,
    rpc::{
        enrol::EnrolError,
        nameserver::{ClaimError, NameError, Revision},
    },
    time::{Clock, Timestamp},
};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// Pause between a failure of the storage and the attempt to load it again.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);

/// An answer that can express that the nameserver is unable to write.
pub(crate) trait Fallible {
    /// Makes the answer that asks the caller to try again; `why` is its reason.
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

/// A call to the registry, with the channel for its answer.
trait Command: Send {
    /// Applies the call to the registry and keeps its answer. A call without a writer may be applied again.
    fn apply(&mut self, registry: &mut Registry, now: Timestamp);
    /// Sends the kept answer; with `failure`, a write sends "unavailable" instead.
    fn answer(self: Box<Self>, failure: Option<&str>);
    /// Identity that writes, for the audit log; `None` for a call that changes nothing durable.
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
            // Fails only when the caller no longer waits.
            let _ = self.reply.send(answer);
        }
    }

    fn writer(&self) -> Option<&Role> {
        None
    }
}

struct Write<F, T> {
    caller: Role,
    /// Released when the call is answered, whether or not its caller still waits.
    _permit: WritePermit,
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
            // Fails only when the caller no longer waits.
            let _ = self.reply.send(answer);
        }
    }

    fn writer(&self) -> Option<&Role> {
        Some(&self.caller)
    }
}

/// Handle to the actor; cheap to clone. The actor ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct RegistryHandle {
    commands: mpsc::Sender<Box<dyn Command>>,
    quota: Arc<WriteQuota>,
    revisions: watch::Receiver<Revision>,
}

impl fmt::Debug for RegistryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryHandle").finish_non_exhaustive()
    }
}

impl RegistryHandle {
    /// Makes a call that changes nothing durable: a read, or the renewal of a lease. Waits while the queue is full;
    /// `None` when the actor has ended. The actor repeats the call if it may have seen writes that were undone.
    pub(crate) async fn read<T, F>(&self, call: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnMut(&mut Registry, Timestamp) -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Box::new(Read { call, answer: None, reply })).await.ok()?;
        answer.await.ok()
    }

    /// Watches the revision of the last durable change.
    pub(crate) fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.clone()
    }

    /// Changes the registry for `caller` and returns the answer once the change is durable. Returns "unavailable" at
    /// once when the queue is full, when `caller` has used up its quota of queued writes, or when the actor has ended.
    pub(crate) async fn write<T, F>(&self, caller: Role, call: F) -> T
    where
        T: Fallible + Send + 'static,
        F: FnOnce(&mut Registry, Timestamp, &Role) -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let Some(permit) = self.quota.acquire(&caller) else {
            return T::unavailable("too many writes of this identity are waiting".into());
        };
        match self.commands.try_send(Box::new(Write { caller, _permit: permit, call: Some(call), answer: None, reply }))
        {
            Ok(()) => answer.await.unwrap_or_else(|_| T::unavailable("it is shutting down".into())),
            Err(mpsc::error::TrySendError::Full(_)) => T::unavailable("too many calls are waiting".into()),
            Err(mpsc::error::TrySendError::Closed(_)) => T::unavailable("it is shutting down".into()),
        }
    }
}

/// Loads the storage and starts the actor's thread. The thread ends after the last handle is dropped; joining it
/// guarantees that every acknowledged write is stored and that the storage is closed.
///
/// # Errors
/// When the storage cannot be loaded or the thread cannot be started.
pub(crate) fn start(
    mut storage: Box<dyn Storage>,
    clock: Clock,
) -> Result<(RegistryHandle, thread::JoinHandle<()>), StorageError> {
    let registry = Registry::restore(storage.load()?, clock.now());
    let (published, revisions) = watch::channel(registry.revision());
    let mut actor = RegistryActor { registry, storage, published, outage: None };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| StorageError::Io { path: "the registry's runtime".into(), error })?;
    let (commands, mut queue) = mpsc::channel(MAX_QUEUED_EVENTS);
    let thread = thread::Builder::new()
        .name("registry".to_owned())
        .spawn(move || runtime.block_on(actor.run(&mut queue, clock)))
        .map_err(|error| StorageError::Io { path: "the registry's thread".into(), error })?;
    Ok((RegistryHandle { commands, quota: Arc::default(), revisions }, thread))
}

struct RegistryActor {
    registry: Registry,
    storage: Box<dyn Storage>,
    /// Revision of the last durable change, for watchers.
    published: watch::Sender<Revision>,
    /// Set after a failed commit until the storage is loaded again. Writes are rejected meanwhile.
    outage: Option<StorageOutage>,
}

struct StorageOutage {
    why: String,
    /// Time of the next attempt to load the storage.
    retry_at: Timestamp,
}

impl RegistryActor {
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
            self.process_batch(&mut batch, clock.now());
        }
    }

    fn wake_at(&self) -> Option<Timestamp> {
        let due = self.registry.next_deadline()?;
        // No expiry can be committed during an outage, so waking for it before the retry would busy-loop.
        Some(self.outage.as_ref().map_or(due, |outage| outage.retry_at.max(due)))
    }

    /// Applies a batch, commits once and answers. Leaves `batch` empty.
    fn process_batch(&mut self, batch: &mut Vec<Box<dyn Command>>, now: Timestamp) {
        let mut failure = self.recover(now).err();
        if failure.is_none() {
            self.registry.expire(now);
        }
        // For the audit log: each writer with the number of pending changes after its command.
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
            // Reads of this batch may have seen the undone writes.
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
        let Err(error) = self.storage.commit(self.registry.pending(), expected) else { return Ok(()) };
        self.registry.roll_back();
        error!(%error, "cannot commit; the writes of the batch are undone");
        let retry_at = match error {
            StorageError::Conflict { .. } => now,
            _ => now + RELOAD_PAUSE,
        };
        let why = error.to_string();
        self.outage = Some(StorageOutage { why: why.clone(), retry_at });
        Err(why)
    }

    /// Ends an outage by loading the state that the storage holds.
    fn recover(&mut self, now: Timestamp) -> Result<(), String> {
        let Some(outage) = &mut self.outage else { return Ok(()) };
        if now < outage.retry_at {
            return Err(outage.why.clone());
        }
        match self.storage.load() {
            Ok(snapshot) => {
                warn!(revision = snapshot.revision.0, "storage recovered");
                self.registry = Registry::restore(snapshot, now);
                self.outage = None;
                Ok(())
            }
            Err(error) => {
                outage.why = error.to_string();
                outage.retry_at = now + RELOAD_PAUSE;
                Err(outage.why.clone())
            }
        }
    }
}

/// Logs each durable change with its revision and caller. The text of a change contains no secrets.
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
