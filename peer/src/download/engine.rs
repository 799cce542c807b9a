//! I/O of the swarm core: opens one bulk stream for each request of the core and reports the verified groups to it.
//!
//! ```text
//!             Action::Request                        bulk stream from the provider ─ verified ─ written to the partial
//!   [ swarm ] ───────────────> a task for the request ───────────────────────────────────────────────────────────>
//!     ^   ^   Truncate, Cancel ───> stop │
//!     │   └── TaskReport <───────────────┘
//!     └────── events of other receivers (swarm), of the tracker and of known peers when no provider is left
//! ```

use crate::download::params;
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use protocol::swarm::{Action, Event, Has, ProviderId, RequestId, Swarm, SwarmConfig};
use shared::{contact::Contact, content::FileMeta, id::PeerId, net::Connections, time::Clock};
use tokio::{sync::mpsc, task::JoinSet, time::sleep_until};

use super::{
    context::DownloadContext,
    error::FileError,
    providers::{Provider, Providers},
    request::{RequestStream, TaskReport, run_request},
    running::{RequestProgress, RunningRequests},
    stall_policy::{StallAction, StallPolicy},
};
use crate::{
    discovery::{Discovery, contacts},
    store::Partial,
    swarm::{MemberEvent, SwarmHandle},
    transfer::throttle::Throttle,
};

/// Reports of requests that wait for the core. The queue is short: a request that is ahead of the core waits, and flow
/// control then stops its provider.
const MAX_QUEUED_REPORTS: usize = 64;

/// Parameters of a download of one version.
pub(crate) struct Transfer {
    /// Connections for bytes.
    pub(crate) bulk: Connections,
    /// Rate limit of the bytes that this peer receives.
    pub(crate) throttle: Throttle,
    /// Finds other providers when none is left.
    pub(crate) discovery: Discovery,
    /// Bytes that this peer has fetched since it started.
    pub(crate) all_bytes: Arc<AtomicU64>,
    /// Version to fetch.
    pub(crate) file: FileMeta,
    /// Partial file that receives the version.
    pub(crate) partial: Partial,
    pub(crate) context: Arc<DownloadContext>,
}

/// Handle of the file's swarm, and the events of the other members.
pub(crate) type JoinedSwarm = (Arc<SwarmHandle>, mpsc::Receiver<MemberEvent>);

/// Result of a search for further providers.
enum Discovered {
    /// Providers that the tracker names.
    Providers(Vec<Contact>),
    /// Known peers that report that they receive the content.
    Receivers(Vec<Contact>),
}

/// Input of the engine.
enum Input {
    Report(TaskReport),
    Member(MemberEvent),
    Discovered(Discovered),
    Deadline,
    TaskEnded,
}

/// One running download of one version.
pub(crate) struct Engine {
    transfer: Transfer,
    clock: Clock,
    swarm: Swarm,
    actions: Vec<Action>,
    providers: Providers,
    policy: StallPolicy,
    membership: Option<Arc<SwarmHandle>>,
    members: Option<mpsc::Receiver<MemberEvent>>,
    members_changed: bool,
    /// Rank of this peer among the receivers and their number, as last passed to the core.
    rank: (u32, u32),
    running: RunningRequests,
    /// Bytes that each provider delivered first. Counted by the tasks, so that the count is complete when the core
    /// has all groups.
    delivered: BTreeMap<ProviderId, Arc<AtomicU64>>,
    report: mpsc::Sender<TaskReport>,
    reports: mpsc::Receiver<TaskReport>,
    discover: mpsc::Sender<Discovered>,
    discovered: mpsc::Receiver<Discovered>,
    /// Dropped with the engine: a download that is cancelled ends its streams.
    tasks: JoinSet<()>,
}

impl Engine {
    /// Creates the engine of a download that begins now. Without `swarm`, the download has no session with other
    /// receivers.
    pub(crate) fn new(transfer: Transfer, swarm: Option<JoinedSwarm>) -> Self {
        let clock = Clock::start();
        let config = SwarmConfig {
            size: transfer.file.size,
            have: transfer.partial.verified(),
            expects_receivers: swarm.is_some(),
            seed: fastrand::u64(..),
        };
        let (membership, members) = swarm.unzip();
        let (report, reports) = mpsc::channel(MAX_QUEUED_REPORTS);
        let (discover, discovered) = mpsc::channel(1);
        let providers = Providers::default();
        let rank = providers.rank_of(&transfer.discovery.me);
        Self {
            swarm: Swarm::new(config, clock.now()),
            policy: StallPolicy::new(clock.now(), membership.is_some()),
            transfer,
            clock,
            actions: Vec::new(),
            providers,
            membership,
            members,
            members_changed: false,
            rank,
            running: RunningRequests::default(),
            delivered: BTreeMap::new(),
            report,
            reports,
            discover,
            discovered,
            tasks: JoinSet::new(),
        }
    }

    /// Fetches the missing groups from all providers concurrently, including those that are found later. Returns the
    /// number of bytes that each delivered.
    ///
    /// # Errors
    /// If no remaining provider can deliver the missing groups, or this peer cannot write.
    pub(crate) async fn fetch(mut self, contacts: Vec<Contact>) -> Result<Vec<(PeerId, u64)>, FileError> {
        self.introduce(contacts);
        loop {
            if self.carry_out_actions() {
                return Ok(self.sources());
            }
            if std::mem::take(&mut self.members_changed) {
                self.on_members_changed()?;
                if !self.actions.is_empty() {
                    continue;
                }
            }
            self.transfer.context.set_sources(self.running.providers());
            let input = self.next_input().await;
            self.on_input(input)?;
        }
    }

    /// Introduces all providers before the first request, so that the work is divided among all of them.
    fn introduce(&mut self, contacts: Vec<Contact>) {
        let now = self.clock.now();
        for contact in contacts {
            if let Some((provider, true)) = self.providers.number(&contact, false) {
                self.swarm.introduce(now, provider, &Has::All, None, &mut self.actions);
                if let Some(membership) = &self.membership {
                    membership.connect_to(contact);
                }
            }
        }
        self.swarm.handle(now, Event::Tick, &mut self.actions);
    }

    /// Executes the actions of the core. Returns true when every group is verified.
    fn carry_out_actions(&mut self) -> bool {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Request { request, groups } => self.start_request(request, groups),
                Action::Truncate { request, at_group } => self.running.truncate(request, at_group),
                Action::Cancel { request } => self.running.cancel(request),
                Action::Drop { provider, why } => {
                    if let Some(provider) = self.providers.get_mut(provider) {
                        provider.on_dropped(why);
                        self.members_changed = true;
                        tracing::warn!(provider = %provider.contact.peer, file = %self.transfer.file.name, ?why,
                            problem = provider.problem.as_deref().unwrap_or_default(), "dropped a provider");
                    }
                }
                Action::Stuck => {
                    self.policy.on_stuck(self.clock.now());
                    let Transfer { discovery, file, .. } = &self.transfer;
                    self.tasks.spawn(find_providers(discovery.clone(), file.clone(), self.discover.clone()));
                }
                Action::Finished => return true,
            }
        }
        self.actions = actions;
        false
    }

    fn start_request(&mut self, request: RequestId, groups: Range<u64>) {
        let Some(provider) = self.providers.get(request.provider) else { return };
        self.policy.on_request();
        let handle = self.running.add(request, groups.end);
        let stop = handle.stop.clone();
        let progress = RequestProgress {
            request,
            groups: groups.clone(),
            handle,
            context: self.transfer.context.clone(),
            file: self.transfer.file.clone(),
            all_bytes: self.transfer.all_bytes.clone(),
            delivered: self.delivered.entry(request.provider).or_default().clone(),
            reports: self.report.clone(),
        };
        let stream = RequestStream {
            bulk: self.transfer.bulk.clone(),
            throttle: self.transfer.throttle.clone(),
            provider: provider.contact.clone(),
            file: self.transfer.file.clone(),
            partial: self.transfer.partial.clone(),
            meter: self.transfer.context.profile.source(&provider.contact),
        };
        let report = self.report.clone();
        self.tasks.spawn(async move {
            let fetch = stream.fetch(request, groups, &report, progress.into_callback());
            run_request(request, fetch, stop, report.clone()).await;
        });
    }

    fn on_members_changed(&mut self) -> Result<(), FileError> {
        let rank = self.providers.rank_of(&self.transfer.discovery.me);
        if std::mem::replace(&mut self.rank, rank) != rank {
            let (place, receivers) = rank;
            self.swarm.handle(self.clock.now(), Event::Ranked { rank: place, receivers }, &mut self.actions);
        }
        let action = self.policy.on_members_changed(self.providers.has_members());
        self.apply(action)
    }

    async fn next_input(&mut self) -> Input {
        let deadline = self.swarm.next_deadline().into_iter().chain(self.policy.deadline()).min();
        let deadline = deadline.map(|at| self.clock.instant(at));
        tokio::select! {
            // The engine holds a sender of both channels, so neither ends.
            Some(report) = self.reports.recv() => Input::Report(report),
            event = next_member_event(&mut self.members) => Input::Member(event),
            Some(discovered) = self.discovered.recv() => Input::Discovered(discovered),
            () = until(deadline) => Input::Deadline,
            Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => Input::TaskEnded,
        }
    }

    fn on_input(&mut self, input: Input) -> Result<(), FileError> {
        match input {
            Input::Report(report) => self.on_report(report),
            Input::Member(event) => {
                self.members_changed = true;
                if let Some(event) = self.providers.on_member_event(event) {
                    self.handle(event);
                }
                Ok(())
            }
            Input::Discovered(Discovered::Providers(named)) => {
                let events: Vec<_> = named.iter().filter_map(|contact| self.providers.on_named(contact)).collect();
                let action = self.policy.on_providers(!events.is_empty(), self.providers.has_members());
                self.apply(action)?;
                events.into_iter().for_each(|event| self.handle(event));
                Ok(())
            }
            Input::Discovered(Discovered::Receivers(mut receivers)) => {
                receivers.retain(|receiver| self.providers.may_help(&receiver.peer));
                let action = self.policy.on_receivers(!receivers.is_empty(), self.providers.has_members());
                if let Some(membership) = &self.membership {
                    // They announce their groups in their swarm sessions.
                    receivers.into_iter().for_each(|receiver| membership.connect_to(receiver));
                }
                self.apply(action)
            }
            Input::Deadline => {
                let action = self.policy.on_deadline(self.clock.now(), self.providers.has_members());
                self.apply(action)?;
                self.handle(Event::Tick);
                Ok(())
            }
            Input::TaskEnded => Ok(()),
        }
    }

    fn on_report(&mut self, report: TaskReport) -> Result<(), FileError> {
        match report {
            TaskReport::Event(event) => {
                if let Event::RequestDone { request } = &event {
                    self.running.remove(*request);
                }
                self.handle(event);
            }
            TaskReport::Verified { request, groups, new_bytes } => {
                self.policy.on_verified(self.clock.now());
                self.providers.on_delivered(request.provider, new_bytes);
                if let Some(membership) = &self.membership {
                    membership.proven(groups.clone());
                }
                self.handle(Event::Verified { request, groups });
            }
            TaskReport::Failed { request, why, problem, is_hashing } => {
                self.running.remove(request);
                if let Some(provider) = self.providers.get_mut(request.provider) {
                    // Once for each provider: it may take long, and the request is repeated.
                    if is_hashing && provider.problem.as_ref() != Some(&problem) {
                        let (peer, file) = (&provider.contact.peer, &self.transfer.file.name);
                        tracing::warn!(%peer, %file, "{problem}");
                    }
                    provider.problem = Some(problem);
                }
                self.handle(Event::RequestFailed { request, why });
            }
            TaskReport::Stopped(request) => self.running.remove(request),
            TaskReport::Fatal(error) => {
                return Err(FileError::Write { name: self.transfer.file.name.clone(), error: Arc::new(error) });
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        self.swarm.handle(self.clock.now(), event, &mut self.actions);
    }

    /// Applies a decision of the stall policy.
    ///
    /// # Errors
    /// The failures of all providers, if the policy ends the download.
    fn apply(&mut self, action: StallAction) -> Result<(), FileError> {
        match action {
            StallAction::Continue => Ok(()),
            StallAction::AskPeers => {
                let Transfer { discovery, file, .. } = &self.transfer;
                self.tasks.spawn(find_receivers(discovery.clone(), file.clone(), self.discover.clone()));
                Ok(())
            }
            StallAction::GiveUp => Err(self.failure()),
        }
    }

    fn failure(&self) -> FileError {
        let name = self.transfer.file.name.clone();
        let problem = |provider: &Provider| Some(format!("{}: {}", provider.contact.peer, provider.problem.as_ref()?));
        let problems = self.providers.iter().filter_map(problem).collect();
        let is_receiver = |provider: &&Provider| provider.is_member && !provider.sent_corrupt_data;
        let receivers = self.providers.iter().filter(is_receiver).count();
        if receivers > 0 {
            return FileError::ReceiversLackParts { name, problems, receivers };
        }
        let all_corrupt = self.providers.iter().all(|provider| provider.sent_corrupt_data);
        FileError::NoProvider { name, problems, all_corrupt }
    }

    /// Returns the bytes that each provider delivered. All providers count as sources of an empty file.
    fn sources(&self) -> Vec<(PeerId, u64)> {
        let delivered =
            |number: u32| self.delivered.get(&ProviderId(number)).map_or(0, |bytes| bytes.load(Ordering::Relaxed));
        let sources = (0..).zip(self.providers.iter());
        let sources = sources.map(|(number, provider)| (provider.contact.peer.clone(), delivered(number)));
        sources.filter(|(_, bytes)| *bytes > 0 || self.transfer.file.size == 0).collect()
    }
}

/// Asks the tracker for the providers of the version. Reports none while there is no tracker.
async fn find_providers(discovery: Discovery, file: FileMeta, discover: mpsc::Sender<Discovered>) {
    let version = file.hash.to_hex().parse().ok();
    let answer = discovery.who_has(&file.name, version.as_ref(), params::TRACKER_WAIT_BEFORE_FAN_OUT).await;
    let versions = answer.unwrap_or_else(|error| {
        tracing::info!(%error, file = %file.name, "cannot look for other providers");
        Vec::new()
    });
    let found = versions.into_iter().filter(|version| version.file.hash == file.hash);
    let mut providers: Vec<_> = found.flat_map(|version| contacts(version.owners)).collect();
    providers.retain(|provider| provider.peer != discovery.me);
    // Fails only if the engine has ended.
    let _ = discover.send(Discovered::Providers(providers)).await;
}

/// Asks the known peers which of them receive the version. The query has the file's name as a prefix, so a peer that
/// receives the same content under another name is missed.
async fn find_receivers(discovery: Discovery, file: FileMeta, discover: mpsc::Sender<Discovered>) {
    let received = discovery.receivers(file.name.as_str()).await.into_iter();
    let receivers = received.filter(|(_, received)| received.hash == file.hash).map(|(contact, _)| contact).collect();
    // Fails only if the engine has ended.
    let _ = discover.send(Discovered::Receivers(receivers)).await;
}

/// Returns the next event of the swarm. Never completes without a swarm, or after its end.
async fn next_member_event(members: &mut Option<mpsc::Receiver<MemberEvent>>) -> MemberEvent {
    if let Some(members) = members
        && let Some(event) = members.recv().await
    {
        return event;
    }
    std::future::pending().await
}

/// Waits until `deadline`. Never completes without one.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
