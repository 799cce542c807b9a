//! The shell around the swarm core: one bulk stream for each request that the core wants, each proven group reported
//! back.
//!
//! ```text
//!             Action::Request                        bulk stream to the owner ─ verified ─ written to the partial
//!   [ swarm ] ───────────────> a task for the request ───────────────────────────────────────────────────────>
//!     ^   ^   Truncate, Cancel ───> stop │
//!     │   └── Verified, Done, Failed <───┘
//!     └────── OwnerAdded, OwnerHas <─── the other members (net::swarms), the tracker when nobody is left
//! ```

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use shared::{
    contact::Contact,
    content::FileMeta,
    error::{Failure, FailureCode},
    id::PeerId,
    limits,
    net::Connections,
    time::Clock,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    OwnerError, Run,
    providers::{Owner, Owners},
    request::{Stream, why},
    stall_policy::{Next, Patience},
    undelivered,
};
use crate::{
    discovery::{Lookup, contacts},
    store::Partial,
    swarm::{MemberEvent, SwarmHandle},
    transfer::{Brought, FetchError, throttle::Throttle},
};
use protocol::swarm::{Action, Event, Has, OwnerId, PickerKind, RequestId, Swarm, SwarmConfig};

/// Reports of requests that wait for the core. Small: a request that is ahead of the core waits, and with it its owner.
const MAX_QUEUED_REPORTS: usize = 64;

/// One download of one version.
pub(crate) struct Engine {
    /// Connections for bytes.
    pub(crate) bulk: Connections,
    /// The cap on what comes in.
    pub(crate) pace: Throttle,
    /// Where owners are looked for when all that were known are gone.
    pub(crate) lookup: Lookup,
    /// Bytes that this peer fetched since it started.
    pub(crate) all_bytes: Arc<AtomicU64>,
    /// The version.
    pub(crate) file: FileMeta,
    /// Where it goes.
    pub(crate) partial: Partial,
    /// What it is part of.
    pub(crate) run: Arc<Run>,
    /// Its place among those who receive it, and what they tell; `None` when only given owners may be asked, or it
    /// is not worth it.
    pub(crate) swarm: Option<(Arc<SwarmHandle>, mpsc::Receiver<MemberEvent>)>,
}

/// A request under way.
struct Running {
    stop: CancellationToken,
    /// The first group that is not wanted of it any more.
    end: Arc<AtomicU64>,
}

pub(crate) enum Told {
    Event(Event),
    /// Why an owner did not deliver, in words; an event follows.
    Problem(OwnerId, String),
    /// No owner helps.
    Fatal(FetchError),
}

/// Who else was found.
enum Others {
    /// Who has the content, as the tracker says.
    Owners(Vec<Contact>),
    /// Who receives it, as they say.
    Receivers(Vec<Contact>),
}

impl Engine {
    /// Fetches what is missing, from all `owners` at once and from whoever else turns up; who sent how much.
    ///
    /// # Errors
    /// `NoOwner` or `VerificationFailed` when nobody who is left can deliver what is missing, with what each did wrong;
    /// what the disk says.
    pub(crate) async fn fetch(mut self, contacts: Vec<Contact>) -> Result<Vec<(PeerId, u64)>, Failure> {
        let clock = Clock::start();
        let mut owners = Owners::default();
        let config = SwarmConfig {
            size: self.file.size,
            have: self.partial.verified(),
            picker: PickerKind::RarestFirst,
            is_sociable: self.swarm.is_some(),
            seed: fastrand::u64(..),
        };
        let mut swarm = Swarm::new(config, clock.now());
        let (tell, mut told) = mpsc::channel(MAX_QUEUED_REPORTS);
        let mut actions = Vec::new();
        let (membership, mut members) =
            self.swarm.take().map_or((None, None), |(membership, members)| (Some(membership), Some(members)));
        // All owners are introduced before the first is asked, so that the work is divided among all from the start.
        swarm.handle(clock.now(), Event::Pause, &mut actions);
        for contact in contacts {
            if let Some((owner, true)) = owners.number(&contact, false) {
                swarm.handle(clock.now(), Event::OwnerAdded { owner, has: Has::All, rtt: None }, &mut actions);
                if let Some(membership) = &membership {
                    membership.connect_to(contact);
                }
            }
        }
        swarm.handle(clock.now(), Event::Resume, &mut actions);

        // Dropped with this future: a download that is cancelled ends its streams.
        let mut tasks = JoinSet::new();
        let mut running: HashMap<RequestId, Running> = HashMap::new();
        let (found, mut newly_found) = mpsc::channel(1);
        let mut patience = Patience::new(clock.now(), membership.is_some());
        let mut placed = owners.place_of(&self.lookup.me);
        // Members came, left or were dropped.
        let mut members_changed = false;
        loop {
            for action in actions.drain(..) {
                match action {
                    Action::Request { request, groups } => {
                        let Some(owner) = owners.list.get(request.owner.0 as usize) else { continue };
                        patience.asked();
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
                        if let Some(owner) = owners.get_mut(owner) {
                            owner.dropped(why);
                            members_changed = true;
                            tracing::warn!(owner = %owner.contact.peer, file = %self.file.name, ?why,
                                problem = owner.problem.as_deref().unwrap_or_default(), "an owner is asked for no more");
                        }
                    }
                    Action::Stuck => {
                        patience.stuck(clock.now());
                        tasks.spawn(self.look_for_owners(found.clone()));
                    }
                    Action::Finished => {
                        let sources = owners.list.into_iter().map(|owner| {
                            let bytes = owner.bytes.load(Ordering::Relaxed);
                            (owner.contact.peer, bytes)
                        });
                        return Ok(sources.filter(|(_, bytes)| *bytes > 0 || self.file.size == 0).collect());
                    }
                }
            }
            if std::mem::take(&mut members_changed) {
                let now_placed = owners.place_of(&self.lookup.me);
                if std::mem::replace(&mut placed, now_placed) != now_placed {
                    let (place, receivers) = now_placed;
                    swarm.handle(clock.now(), Event::Placed { place, receivers }, &mut actions);
                }
                self.act_on(patience.members_changed(owners.has_members()), &owners, &found, &mut tasks)?;
                if !actions.is_empty() {
                    continue;
                }
            }
            let senders = running.keys().map(|request| request.owner).collect::<std::collections::BTreeSet<_>>();
            self.run.sources.store(senders.len() as u64, Ordering::Relaxed);
            let deadline = swarm.next_deadline().into_iter().chain(patience.deadline()).min();
            let deadline = deadline.map(|at| clock.instant(at));
            let mut next = Next::GoOn;
            let events = tokio::select! {
                Some(told) = told.recv() => match told {
                    Told::Event(event) => vec![event],
                    Told::Problem(owner, problem) => {
                        if let Some(owner) = owners.get_mut(owner) {
                            owner.problem = Some(problem);
                        }
                        continue;
                    }
                    Told::Fatal(error) => return Err(error.to_failure(self.file.name.as_str())),
                },
                Some(event) = next_of(&mut members) => {
                    members_changed = true;
                    owners.member_event(event).into_iter().collect()
                }
                Some(others) = newly_found.recv() => match others {
                    Others::Owners(named) => {
                        let events: Vec<_> = named.iter().filter_map(|contact| owners.found(contact)).collect();
                        next = patience.named(!events.is_empty(), owners.has_members());
                        events
                    }
                    Others::Receivers(mut receivers) => {
                        receivers.retain(|one| owners.may_help(&one.peer));
                        next = patience.received(!receivers.is_empty(), owners.has_members());
                        if let Some(membership) = &membership {
                            // What they have, they say themselves.
                            receivers.into_iter().for_each(|receiver| membership.connect_to(receiver));
                        }
                        Vec::new()
                    }
                },
                () = crate::runtime::core_task::sleep_until(deadline) => {
                    next = patience.due(clock.now(), owners.has_members());
                    vec![Event::Tick]
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            self.act_on(next, &owners, &found, &mut tasks)?;
            for event in events {
                match &event {
                    Event::RequestDone { request } | Event::RequestFailed { request, .. } => {
                        running.remove(request);
                    }
                    Event::Verified { groups, .. } => {
                        patience.proven(clock.now());
                        if let Some(membership) = &membership {
                            membership.proven(groups.clone());
                        }
                    }
                    _ => {}
                }
                swarm.handle(clock.now(), event, &mut actions);
            }
        }
    }

    /// Does what patience wants.
    ///
    /// # Errors
    /// When it is over: what each owner did wrong.
    fn act_on(
        &self,
        next: Next,
        owners: &Owners,
        found: &mpsc::Sender<Others>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), Failure> {
        match next {
            Next::GoOn => Ok(()),
            Next::AskPeers => {
                tasks.spawn(self.look_for_receivers(found.clone()));
                Ok(())
            }
            Next::GiveUp => Err(self.failure(&owners.list)),
        }
    }

    /// Asks the tracker who has the version now.
    fn look_for_owners(&self, found: mpsc::Sender<Others>) -> impl Future<Output = ()> + Send + 'static {
        let (lookup, file) = (self.lookup.clone(), self.file.clone());
        async move {
            let owners = owners_of(&lookup, &file).await;
            // The engine is gone when nobody listens.
            let _ = found.send(Others::Owners(owners)).await;
        }
    }

    /// Asks the known peers who of them receives the version. They are asked by name: one that receives the same content under a name that
    /// does not begin like this one is missed.
    fn look_for_receivers(&self, found: mpsc::Sender<Others>) -> impl Future<Output = ()> + Send + 'static {
        let (lookup, file) = (self.lookup.clone(), self.file.clone());
        async move {
            let received = lookup.receivers(file.name.as_str()).await.into_iter();
            let of_this = received.filter(|(_, received)| received.hash == file.hash);
            // As above.
            let _ = found.send(Others::Receivers(of_this.map(|(contact, _)| contact).collect())).await;
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
            pace: self.pace.clone(),
            owner: owner.contact.clone(),
            file: self.file.clone(),
            partial: self.partial.clone(),
            meter: self.run.meter.source(&owner.contact),
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
    ) -> impl FnMut(Brought) + Send + 'static {
        let (run, file, all, from_owner) =
            (self.run.clone(), self.file.clone(), self.all_bytes.clone(), owner.bytes.clone());
        let (stop, end) = (running.stop.clone(), running.end.clone());
        let start = groups.start * limits::GROUP_BYTES;
        let (mut bytes_proven, mut next) = (0, groups.start);
        move |Brought { bytes, new_bytes }| {
            bytes_proven += bytes;
            all.fetch_add(new_bytes, Ordering::Relaxed);
            from_owner.fetch_add(new_bytes, Ordering::Relaxed);
            run.bytes_done.fetch_add(new_bytes, Ordering::Relaxed);
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
        let receivers = owners.iter().filter(|owner| owner.is_member && !owner.lied).count();
        if receivers > 0 {
            let others = if reasons.is_empty() { "no owner is there".to_owned() } else { reasons.join(", ") };
            let why = format!("{others}, and none of {receivers} who were receiving it too has what is missing");
            let hint = "what came is kept; try again when an owner is back";
            return Failure::new(FailureCode::NoOwner, format!("cannot download {}", self.file.name), why, hint);
        }
        undelivered(&self.file.name, &reasons, owners.iter().all(|owner| owner.lied))
    }
}

/// The owners that the tracker names; nobody when there is no tracker.
async fn owners_of(lookup: &Lookup, file: &FileMeta) -> Vec<Contact> {
    let version = file.hash.to_hex().parse().ok();
    let answer = lookup.who_has(&file.name, version.as_ref(), limits::TRACKER_WAIT_BEFORE_FAN_OUT).await;
    let versions = answer.unwrap_or_else(|failure| {
        tracing::info!(%failure, "other owners cannot be looked for");
        Vec::new()
    });
    let owners = versions.into_iter().filter(|version| version.file.hash == file.hash);
    let mut owners: Vec<_> = owners.flat_map(|version| contacts(version.owners)).collect();
    owners.retain(|owner| owner.peer != lookup.me);
    owners
}

/// Pends for ever where there are no others.
async fn next_of(members: &mut Option<mpsc::Receiver<MemberEvent>>) -> Option<MemberEvent> {
    match members {
        Some(members) => match members.recv().await {
            Some(event) => Some(event),
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
