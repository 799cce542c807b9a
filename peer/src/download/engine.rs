//! The shell around the swarm core: one bulk stream for each request that the core wants, each proven group reported
//! back.
//!
//! ```text
//!             Action::Request                        bulk stream to the owner ─ verified ─ written to the partial
//!   [ swarm ] ───────────────> a task for the request ───────────────────────────────────────────────────────>
//!       ^     Truncate, Cancel ───> stop │
//!       └── Verified, Done, Failed <─────┘
//! ```

use std::{
    collections::HashMap,
    io,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use shared::{
    content::FileMeta,
    error::Failure,
    id::PeerId,
    limits,
    net::{
        Connections,
        bulk::{BulkAbort, BulkAccepted, BulkRefusal, BulkRequest, read_header, write_header},
    },
    time::{Clock, Timestamp},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{OwnerError, Run, undelivered, was_reset_as_changed};
use crate::{
    core::{
        Contact,
        swarm::{Action, Dropped, Event, Failure as Why, Has, OwnerId, PickerKind, RequestId, Swarm, SwarmConfig},
    },
    net::calls::target,
    store::Partial,
    transfer::{FetchError, GroupRanges, fetch},
};

/// Reports of requests that wait for the core. Small: a request that is ahead of the core waits, and with it its owner.
const MAX_QUEUED_REPORTS: usize = 64;

/// One download of one version.
pub(super) struct Engine {
    /// Connections for bytes.
    pub(super) bulk: Connections,
    /// Bytes that this peer fetched since it started.
    pub(super) all_bytes: Arc<AtomicU64>,
    /// The version.
    pub(super) file: FileMeta,
    /// Where it goes.
    pub(super) partial: Partial,
    /// What it is part of.
    pub(super) run: Arc<Run>,
}

/// An owner, numbered by its place.
struct Owner {
    contact: Contact,
    /// Bytes proven of it.
    bytes: Arc<AtomicU64>,
    /// What it did wrong last.
    problem: Option<String>,
    lied: bool,
}

/// A request under way.
struct Running {
    stop: CancellationToken,
    /// The first group that is not wanted of it any more.
    end: Arc<AtomicU64>,
}

enum Told {
    Event(Event),
    /// Why an owner did not deliver, in words; an event follows.
    Problem(OwnerId, String),
    /// No owner helps.
    Fatal(FetchError),
}

impl Engine {
    /// Fetches what is missing, from all `owners` at once; who sent how much.
    ///
    /// # Errors
    /// `NoOwner` or `VerificationFailed` when nobody who is left can deliver what is missing, with what each did wrong;
    /// what the disk says.
    pub(super) async fn fetch(self, owners: Vec<Contact>) -> Result<Vec<(PeerId, u64)>, Failure> {
        let clock = Clock::start();
        let mut owners: Vec<Owner> = owners
            .into_iter()
            .map(|contact| Owner { contact, bytes: Arc::default(), problem: None, lied: false })
            .collect();
        let config = SwarmConfig {
            size: self.file.size,
            have: self.partial.verified(),
            picker: PickerKind::RarestFirst,
            seed: fastrand::u64(..),
        };
        let mut swarm = Swarm::new(config, clock.now());
        let (tell, mut told) = mpsc::channel(MAX_QUEUED_REPORTS);
        let mut actions = Vec::new();
        // All owners are introduced before the first is asked, so that the work is divided among all from the start.
        swarm.handle(clock.now(), Event::Pause, &mut actions);
        for owner in (0..).take(owners.len()).map(OwnerId) {
            swarm.handle(clock.now(), Event::OwnerAdded { owner, has: Has::All, rtt: None }, &mut actions);
        }
        if owners.is_empty() {
            return Err(self.failure(&owners));
        }
        swarm.handle(clock.now(), Event::Resume, &mut actions);

        // Dropped with this future: a download that is cancelled ends its streams.
        let mut tasks = JoinSet::new();
        let mut running: HashMap<RequestId, Running> = HashMap::new();
        loop {
            for action in actions.drain(..) {
                match action {
                    Action::Request { request, groups } => {
                        let Some(owner) = owners.get(request.owner.0 as usize) else { continue };
                        let started =
                            Running { stop: CancellationToken::new(), end: Arc::new(AtomicU64::new(groups.end)) };
                        tasks.spawn(self.request(request, groups, owner, &started, tell.clone()));
                        running.insert(request, started);
                    }
                    Action::Truncate { request, at_group } => {
                        if let Some(running) = running.get(&request) {
                            running.end.fetch_min(at_group, Ordering::Relaxed);
                        }
                    }
                    Action::Cancel { request } => {
                        if let Some(running) = running.remove(&request) {
                            running.stop.cancel();
                        }
                    }
                    Action::Drop { owner, why } => {
                        if let Some(owner) = owners.get_mut(owner.0 as usize) {
                            owner.lied = why == Dropped::Lied;
                            tracing::warn!(owner = %owner.contact.peer, file = %self.file.name, ?why,
                                problem = owner.problem.as_deref().unwrap_or_default(), "an owner is asked for no more");
                        }
                    }
                    Action::Stuck { .. } => return Err(self.failure(&owners)),
                    Action::Finished => {
                        let sources = owners.into_iter().map(|owner| {
                            let bytes = owner.bytes.load(Ordering::Relaxed);
                            (owner.contact.peer, bytes)
                        });
                        return Ok(sources.filter(|(_, bytes)| *bytes > 0 || self.file.size == 0).collect());
                    }
                }
            }
            self.run.sources.store(running.len() as u64, Ordering::Relaxed);
            let deadline = swarm.next_deadline().map(|at| clock.instant(at));
            let event = tokio::select! {
                Some(told) = told.recv() => match told {
                    Told::Event(event) => event,
                    Told::Problem(owner, problem) => {
                        if let Some(owner) = owners.get_mut(owner.0 as usize) {
                            owner.problem = Some(problem);
                        }
                        continue;
                    }
                    Told::Fatal(error) => return Err(error.to_failure(self.file.name.as_str())),
                },
                () = crate::node::sleep_until(deadline) => Event::Tick,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            if let Event::RequestDone { request } | Event::RequestFailed { request, .. } = &event {
                running.remove(request);
            }
            swarm.handle(clock.now(), event, &mut actions);
        }
    }

    /// The task of one request, which tells what comes of it.
    fn request(
        &self,
        request: RequestId,
        groups: Range<u64>,
        owner: &Owner,
        running: &Running,
        tell: mpsc::Sender<Told>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let stream = Stream {
            bulk: self.bulk.clone(),
            owner: owner.contact.clone(),
            file: self.file.clone(),
            partial: self.partial.clone(),
        };
        let progress = self.progress(request, groups.clone(), owner, running, tell.clone());
        let stop = running.stop.clone();
        async move {
            let outcome = tokio::select! {
                outcome = stream.fetch(request, groups, &tell, progress) => outcome,
                () = stop.cancelled() => return,
            };
            // The engine is gone when nobody listens; then nothing is to be told.
            let told = match outcome {
                Ok(()) => Told::Event(Event::RequestDone { request }),
                Err(OwnerError::Fetch(error)) if !error.is_owners_fault() => Told::Fatal(error),
                Err(error) => {
                    let _ = tell.send(Told::Problem(request.owner, error.to_string())).await;
                    Told::Event(Event::RequestFailed { request, why: why(&error) })
                }
            };
            let _ = tell.send(told).await;
        }
    }

    /// Turns bytes that were written into groups that are proven. Runs on the thread that writes.
    fn progress(
        &self,
        request: RequestId,
        groups: Range<u64>,
        owner: &Owner,
        running: &Running,
        tell: mpsc::Sender<Told>,
    ) -> impl FnMut(u64) + Send + 'static {
        let (run, file, all, from_owner) =
            (self.run.clone(), self.file.clone(), self.all_bytes.clone(), owner.bytes.clone());
        let (stop, end) = (running.stop.clone(), running.end.clone());
        let start = groups.start * limits::GROUP_BYTES;
        let (mut bytes_proven, mut next) = (0, groups.start);
        move |bytes| {
            bytes_proven += bytes;
            all.fetch_add(bytes, Ordering::Relaxed);
            from_owner.fetch_add(bytes, Ordering::Relaxed);
            run.bytes_done.fetch_add(bytes, Ordering::Relaxed);
            run.tell(&file);
            let reached = start + bytes_proven;
            let proven = if reached >= file.size { groups.end } else { reached / limits::GROUP_BYTES };
            if proven > next {
                let groups = next..proven;
                next = proven;
                // The engine is gone when nobody listens.
                let _ = tell.blocking_send(Told::Event(Event::Verified { request, groups }));
            }
            if next >= end.load(Ordering::Relaxed) && next < groups.end {
                stop.cancel();
            }
        }
    }

    fn failure(&self, owners: &[Owner]) -> Failure {
        let reasons: Vec<_> = owners
            .iter()
            .filter_map(|owner| Some(format!("{}: {}", owner.contact.peer, owner.problem.as_ref()?)))
            .collect();
        undelivered(&self.file.name, &reasons, owners.iter().all(|owner| owner.lied))
    }
}

/// One bulk stream.
struct Stream {
    bulk: Connections,
    owner: Contact,
    file: FileMeta,
    partial: Partial,
}

impl Stream {
    async fn fetch(
        &self,
        request: RequestId,
        groups: Range<u64>,
        tell: &mpsc::Sender<Told>,
        progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<(), OwnerError> {
        let target = target(&self.owner);
        let (mut send, mut recv) = self.bulk.bulk(&target).await?;
        let ranges = GroupRanges::requested(&[(groups.start, groups.end)], self.file.size)
            .map_err(|_| OwnerError::Refused(BulkRefusal::BadRanges))?;
        let header = BulkRequest { hash: self.file.hash, groups: ranges.to_request() };
        let ask = async {
            write_header(&mut send, &header).await?;
            // The request is all that is said; a stream that the owner closed already shows in its answer.
            let _ = send.finish();
            read_header::<Result<BulkAccepted, BulkRefusal>>(&mut recv).await
        };
        let BulkAccepted { size } = timeout(limits::OWNER_SILENCE, ask).await.map_err(|_| OwnerError::Silent)???;
        if size != self.file.size {
            return Err(OwnerError::OtherSize { claimed: size, announced: self.file.size });
        }
        let rtt = self.bulk.connection(&target).await.ok().map(|connection| connection.rtt());
        // The engine is gone when nobody listens.
        let _ = tell.send(Told::Event(Event::Heard { owner: request.owner, rtt })).await;
        let heard = Heard {
            stream: &mut recv,
            owner: request.owner,
            tell: tell.clone(),
            clock: Clock::start(),
            next: Timestamp::ZERO,
        };
        match fetch(heard, ranges, &self.partial, limits::OWNER_SILENCE, progress).await {
            Ok(_) => Ok(()),
            Err(error) => {
                // Fails only when the stream has ended anyway.
                let _ = recv.stop(BulkAbort::Enough.to_varint());
                Err(if was_reset_as_changed(&error) { OwnerError::Changed } else { error.into() })
            }
        }
    }
}

/// Tells the core, between the groups that are proven, that bytes arrive: on a slow path a write to the disk has many
/// groups and takes a while to fill.
struct Heard<'a> {
    stream: &'a mut quinn::RecvStream,
    owner: OwnerId,
    tell: mpsc::Sender<Told>,
    clock: Clock,
    /// When the core is told next.
    next: Timestamp,
}

/// How often the core is told that bytes arrive: within the margin after which an owner counts as quiet.
const TELL_EVERY: Duration = Duration::from_millis(20);

impl AsyncRead for Heard<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut *this.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            let now = this.clock.now();
            if now >= this.next {
                this.next = now + TELL_EVERY;
                // A full queue means that the core has enough to hear of.
                let _ = this.tell.try_send(Told::Event(Event::Heard { owner: this.owner, rtt: None }));
            }
        }
        read
    }
}

fn why(error: &OwnerError) -> Why {
    match error {
        OwnerError::Refused(BulkRefusal::NotHere) => Why::NotHere,
        OwnerError::Refused(BulkRefusal::Busy) => Why::Busy { retry_after: None },
        OwnerError::Refused(BulkRefusal::BadRanges | BulkRefusal::Unreadable) | OwnerError::OtherSize { .. } => {
            Why::Refused
        }
        OwnerError::Changed => Why::Changed,
        OwnerError::Silent | OwnerError::Fetch(FetchError::Silent(_)) => Why::Silent,
        OwnerError::Fetch(FetchError::Verification { .. }) => Why::Lied,
        OwnerError::Net(_) | OwnerError::Header(_) | OwnerError::Fetch(_) => Why::Broken,
    }
}
