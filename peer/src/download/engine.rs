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
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use shared::{
    content::FileMeta,
    error::{Failure, FailureCode},
    id::PeerId,
    limits,
    net::Connections,
    time::{Clock, Timestamp},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    OwnerError, Run,
    request::{Stream, why},
    undelivered,
};
use crate::{
    core::{
        Contact,
        swarm::{Action, Dropped, Event, Has, OwnerId, PickerKind, RequestId, Swarm, SwarmConfig},
    },
    lookup::{Lookup, contacts},
    net::{
        pace::Pace,
        swarms::{MemberEvent, Membership},
    },
    store::Partial,
    transfer::FetchError,
};

/// Reports of requests that wait for the core. Small: a request that is ahead of the core waits, and with it its owner.
const MAX_QUEUED_REPORTS: usize = 64;

/// How often an owner that failed is asked again because the tracker still names it.
const MAX_CHANCES: u32 = 2;

/// One download of one version.
pub(super) struct Engine {
    /// Connections for bytes.
    pub(super) bulk: Connections,
    /// The cap on what comes in.
    pub(super) pace: Pace,
    /// Where owners are looked for when all that were known are gone.
    pub(super) lookup: Lookup,
    /// Bytes that this peer fetched since it started.
    pub(super) all_bytes: Arc<AtomicU64>,
    /// The version.
    pub(super) file: FileMeta,
    /// Where it goes.
    pub(super) partial: Partial,
    /// What it is part of.
    pub(super) run: Arc<Run>,
    /// Its place among those who receive it, and what they tell; `None` when only given owners may be asked, or it
    /// is not worth it.
    pub(super) swarm: Option<(Arc<Membership>, mpsc::Receiver<MemberEvent>)>,
}

/// An owner, numbered by its place.
struct Owner {
    contact: Contact,
    /// Bytes proven of it.
    bytes: Arc<AtomicU64>,
    /// What it did wrong last.
    problem: Option<String>,
    lied: bool,
    /// It receives the content itself, and is known only from what it tells.
    is_member: bool,
    /// A member that has not left.
    is_here: bool,
    /// One that does not have everything yet.
    is_receiving: bool,
    /// How often it was asked again although it had failed, because the tracker says that it is there.
    chances: u32,
}

/// A request under way.
struct Running {
    stop: CancellationToken,
    /// The first group that is not wanted of it any more.
    end: Arc<AtomicU64>,
}

pub(super) enum Told {
    Event(Event),
    /// Why an owner did not deliver, in words; an event follows.
    Problem(OwnerId, String),
    /// No owner helps.
    Fatal(FetchError),
}

/// The owners of a download: those that the tracker named, and those that turned up since.
#[derive(Default)]
struct Owners {
    list: Vec<Owner>,
    by_peer: BTreeMap<PeerId, OwnerId>,
}

impl Owners {
    /// The number of a peer, and whether it is new.
    fn number(&mut self, contact: &Contact, is_member: bool) -> Option<(OwnerId, bool)> {
        if let Some(&number) = self.by_peer.get(&contact.peer) {
            return Some((number, false));
        }
        if self.list.len() >= limits::MAX_SWARM_OWNERS {
            return None;
        }
        let number = OwnerId(u32::try_from(self.list.len()).ok()?);
        let contact = contact.clone();
        self.by_peer.insert(contact.peer.clone(), number);
        self.list.push(Owner {
            contact,
            bytes: Arc::default(),
            problem: None,
            lied: false,
            is_member,
            is_here: is_member,
            is_receiving: false,
            chances: 0,
        });
        Some((number, true))
    }

    /// The tracker names it although nobody was left to ask: it is new, has come back, or deserves another chance.
    fn found(&mut self, contact: &Contact) -> Option<Event> {
        let (owner, is_new) = self.number(contact, false)?;
        let known = self.get_mut(owner)?;
        if !is_new {
            if known.lied || known.chances >= MAX_CHANCES {
                return None;
            }
            known.chances += 1;
            known.contact = contact.clone();
        }
        known.is_member = false;
        Some(Event::OwnerAdded { owner, has: Has::All, rtt: None })
    }

    /// Whether somebody is there who receives the content too.
    fn has_members(&self) -> bool {
        self.list.iter().any(|owner| owner.is_here && !owner.lied)
    }

    fn has_lied(&self, peer: &PeerId) -> bool {
        self.by_peer.get(peer).and_then(|owner| self.list.get(owner.0 as usize)).is_some_and(|owner| owner.lied)
    }

    /// Where `me` stands among those who receive the content, by their names.
    fn place_of(&self, me: &PeerId) -> (u32, u32) {
        let others = self.list.iter().filter(|owner| owner.is_here && owner.is_receiving && !owner.lied);
        let (mut place, mut receivers) = (0, 1);
        for other in others {
            place += u32::from(other.contact.peer < *me);
            receivers += 1;
        }
        (place, receivers)
    }

    fn get_mut(&mut self, owner: OwnerId) -> Option<&mut Owner> {
        self.list.get_mut(owner.0 as usize)
    }
}

/// Who else was found.
struct Others {
    /// Those that the tracker names, if it was asked.
    owners: Option<Vec<Contact>>,
    /// Those that receive the content, as they say.
    receivers: Vec<Contact>,
}

/// What to do when nobody who is left has what is missing.
///
/// | state | leaves it for |
/// |---|---|
/// | not stuck | asking: the core says that it is stuck |
/// | asking (the tracker for other owners; if this one is alone, the known peers whether they receive the content) | not stuck: an owner was named; waiting: none was, and others receive the content; given up: nobody does |
/// | waiting | not stuck: a group was proven; given up: too long |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stuck {
    No,
    Asking,
    WaitingSince(Timestamp),
}

impl Engine {
    /// Fetches what is missing, from all `owners` at once and from whoever else turns up; who sent how much.
    ///
    /// # Errors
    /// `NoOwner` or `VerificationFailed` when nobody who is left can deliver what is missing, with what each did wrong;
    /// what the disk says.
    pub(super) async fn fetch(mut self, contacts: Vec<Contact>) -> Result<Vec<(PeerId, u64)>, Failure> {
        let clock = Clock::start();
        let mut owners = Owners::default();
        let config = SwarmConfig {
            size: self.file.size,
            have: self.partial.verified(),
            picker: PickerKind::RarestFirst,
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
                    membership.talk_to(contact);
                }
            }
        }
        swarm.handle(clock.now(), Event::Resume, &mut actions);

        // Dropped with this future: a download that is cancelled ends its streams.
        let mut tasks = JoinSet::new();
        let mut running: HashMap<RequestId, Running> = HashMap::new();
        let mut stuck = Stuck::No;
        let (found, mut newly_found) = mpsc::channel(1);
        let mut placed = owners.place_of(&self.lookup.me);
        // An owner that the tracker still names and that has gone introduces nobody.
        let mut unheard = membership.is_some().then(|| clock.now() + limits::OWNER_SILENCE);
        loop {
            for action in actions.drain(..) {
                match action {
                    Action::Request { request, groups } => {
                        let Some(owner) = owners.list.get(request.owner.0 as usize) else { continue };
                        stuck = Stuck::No;
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
                            owner.lied = why == Dropped::Lied;
                            tracing::warn!(owner = %owner.contact.peer, file = %self.file.name, ?why,
                                problem = owner.problem.as_deref().unwrap_or_default(), "an owner is asked for no more");
                        }
                    }
                    Action::Stuck { .. } => {
                        stuck = Stuck::Asking;
                        let is_alone = membership.is_some() && !owners.has_members();
                        tasks.spawn(self.look_for_others(true, is_alone, found.clone()));
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
            let senders = running.keys().map(|request| request.owner).collect::<std::collections::BTreeSet<_>>();
            self.run.sources.store(senders.len() as u64, Ordering::Relaxed);
            let patience = match stuck {
                Stuck::WaitingSince(since) => Some(since + limits::SWARM_PATIENCE),
                Stuck::No | Stuck::Asking => None,
            };
            let deadline =
                swarm.next_deadline().into_iter().chain(patience).chain(unheard).min().map(|at| clock.instant(at));
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
                Some(event) = next_of(&mut members) => member_event(&mut owners, event).into_iter().collect(),
                Some(Others { owners: named, receivers }) = newly_found.recv() => {
                    let receivers: Vec<_> = receivers.into_iter().filter(|one| !owners.has_lied(&one.peer)).collect();
                    let is_alone = receivers.is_empty() && !owners.has_members();
                    if let Some(membership) = &membership {
                        // What they have, they say themselves.
                        receivers.into_iter().for_each(|receiver| membership.talk_to(receiver));
                    }
                    let events: Vec<_> =
                        named.iter().flatten().filter_map(|contact| owners.found(contact)).collect();
                    if stuck == Stuck::Asking && named.is_some() && events.is_empty() {
                        if is_alone {
                            return Err(self.failure(&owners.list));
                        }
                        stuck = Stuck::WaitingSince(clock.now());
                    }
                    events
                }
                () = crate::node::sleep_until(deadline) => {
                    if patience.is_some_and(|at| at <= clock.now()) {
                        return Err(self.failure(&owners.list));
                    }
                    if unheard.take_if(|at| *at <= clock.now()).is_some() && !owners.has_members() {
                        tasks.spawn(self.look_for_others(false, true, found.clone()));
                    }
                    vec![Event::Tick]
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            for event in events {
                match &event {
                    Event::RequestDone { request } | Event::RequestFailed { request, .. } => {
                        running.remove(request);
                    }
                    Event::Verified { groups, .. } => {
                        unheard = None;
                        if let Some(membership) = &membership {
                            membership.proven(groups.clone());
                        }
                    }
                    _ => {}
                }
                swarm.handle(clock.now(), event, &mut actions);
            }
            let now_placed = owners.place_of(&self.lookup.me);
            if std::mem::replace(&mut placed, now_placed) != now_placed {
                let (place, receivers) = now_placed;
                swarm.handle(clock.now(), Event::Placed { place, receivers }, &mut actions);
            }
        }
    }

    /// Asks the tracker who has the version now, if `owners` says so; when it names nobody, or is not asked, and `receivers` says so,
    /// the known peers who of them receives it.
    fn look_for_others(
        &self,
        owners: bool,
        receivers: bool,
        found: mpsc::Sender<Others>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (lookup, file) = (self.lookup.clone(), self.file.clone());
        async move {
            let owners = if owners { Some(owners_of(&lookup, &file).await) } else { None };
            let receivers = if receivers && owners.iter().flatten().next().is_none() {
                let received = lookup.receivers(file.name.as_str()).await.into_iter();
                received.filter(|(_, received)| received.hash == file.hash).map(|(contact, _)| contact).collect()
            } else {
                Vec::new()
            };
            // The engine is gone when nobody listens.
            let _ = found.send(Others { owners, receivers }).await;
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

/// What another member's news are to the core.
fn member_event(owners: &mut Owners, event: MemberEvent) -> Option<Event> {
    let (owner, has, is_new) = match event {
        MemberEvent::Has(contact, gained) => {
            let (owner, is_new) = owners.number(&contact, true)?;
            (owner, Has::Groups(gained), is_new)
        }
        MemberEvent::HasAll(contact) => (owners.number(&contact, true)?.0, Has::All, true),
        MemberEvent::Left(peer) => {
            let owner = *owners.by_peer.get(&peer)?;
            let known = owners.get_mut(owner)?;
            known.is_here = false;
            return known.is_member.then_some(Event::OwnerLost { owner });
        }
    };
    // What is known of an owner from the tracker needs no news.
    let known = owners.get_mut(owner).filter(|owner| owner.is_member)?;
    let is_back = !std::mem::replace(&mut known.is_here, true);
    known.is_receiving = matches!(has, Has::Groups(_));
    match has {
        Has::Groups(gained) if !is_new && !is_back => Some(Event::OwnerHas { owner, gained }),
        has => Some(Event::OwnerAdded { owner, has, rtt: None }),
    }
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
