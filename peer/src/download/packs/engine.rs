//! I/O of the pack scheduler: opens one stream for each pack that the scheduler requests.
//!
//! ```text
//!             Action::Request                  stream from the provider ─ each content verified ─ staged ─> commits
//!   [ packs ] ──────────────> a task for the pack ──────────────────────────────────────────────────────>
//!       ^     Cancel ───> stop │
//!       └── TaskReport <───────┘
//! ```

use crate::download::params;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use protocol::packs::{Action, Event, ItemId, PackFailure, PackId, Packs, ProviderId, Wanted};
use shared::{
    contact::Contact,
    content::ContentHash,
    id::PeerId,
    limits,
    net::{
        Connections, Target,
        bulk::{BulkRefusal, read_header, write_header},
        pack::{ItemRefusal, PackAccepted, PackRequest},
    },
    time::{Clock, Timestamp},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::batch::{Batch, Content, Ready};
use crate::{
    diagnostics::meter::{Phase, SourceMeter},
    download::{
        engine::until,
        error::{FileError, PackRequestError},
        request::wait_for_turn,
    },
    store::error::is_no_space,
    transfer::{
        PackError, PackEvent, fetch_pack,
        metered::Metered,
        throttle::{Throttle, ThrottledSource},
    },
};

/// Reports of packs that wait for the core: those of two packs.
const MAX_QUEUED_REPORTS: usize = 2 * limits::MAX_PACK_CONTENTS;
/// Interval of activity reports to the core while bytes arrive.
const ACTIVITY_INTERVAL: Duration = Duration::from_millis(50);

/// One download of many small contents.
pub(crate) struct PackEngine {
    /// Connections for bytes.
    pub(crate) bulk: Connections,
    /// Rate limit of the bytes that this peer receives.
    pub(crate) throttle: Throttle,
    /// Bytes that this peer has fetched since it started.
    pub(crate) all_bytes: Arc<AtomicU64>,
    pub(crate) batch: Arc<Batch>,
    pub(crate) contents: Arc<Vec<Content>>,
    /// Staged files to commit.
    pub(crate) ready: mpsc::Sender<Ready>,
}

/// A provider, numbered by its place.
struct Provider {
    contact: Contact,
    /// Its last failure.
    problem: Option<String>,
}

/// Report of a pack's task to the engine.
enum TaskReport {
    Event(Event),
    /// The provider refuses an item.
    Refused(PackId, ItemId, ItemRefusal),
    /// A pack failed because of its provider; the text is the problem.
    Failed(PackId, PackFailure, String),
    /// This peer cannot write. Another provider does not help.
    Fatal(FileError),
}

/// State of a running engine besides the core.
struct State {
    providers: Vec<Provider>,
    refusals: HashMap<(ItemId, ProviderId), ItemRefusal>,
    running: BTreeMap<PackId, AbortHandle>,
    /// Dropped with the engine: a download that is cancelled ends its streams.
    tasks: JoinSet<()>,
}

impl PackEngine {
    /// Fetches all contents. The outcome of each file goes into the batch, directly or through `ready`.
    ///
    /// # Errors
    /// If this peer cannot write any more.
    pub(crate) async fn fetch(self) -> Result<(), FileError> {
        let clock = Clock::start();
        let (providers, wanted) = introduce(&self.contents, &self.batch.me);
        let count = u32::try_from(providers.len()).unwrap_or(u32::MAX);
        let mut state = State { providers, refusals: HashMap::new(), running: BTreeMap::new(), tasks: JoinSet::new() };
        let mut packs = Packs::new(wanted, count, fastrand::u64(..));
        let (report, mut reports) = mpsc::channel(MAX_QUEUED_REPORTS);
        let mut actions = Vec::new();
        packs.handle(clock.now(), Event::Tick, &mut actions);
        loop {
            for action in actions.drain(..) {
                if self.carry_out(action, &mut state, &report) {
                    return Ok(());
                }
            }
            let senders = state.running.keys().map(|pack| pack.provider).collect::<BTreeSet<_>>().len();
            self.batch.context.set_sources(senders);
            let deadline = packs.next_deadline(clock.now()).map(|at| clock.instant(at));
            let event = tokio::select! {
                Some(report) = reports.recv() => state.on_report(report)?,
                () = until(deadline) => Event::Tick,
                Some(_) = state.tasks.join_next(), if !state.tasks.is_empty() => continue,
            };
            packs.handle(clock.now(), event, &mut actions);
        }
    }

    /// Executes an action of the core. Returns true when the download has ended.
    fn carry_out(&self, action: Action, state: &mut State, report: &mpsc::Sender<TaskReport>) -> bool {
        match action {
            Action::Request(pack, items) => {
                if let Some(provider) = state.providers.get(pack.provider.0 as usize) {
                    let task = state.tasks.spawn(self.request(pack, items, provider, report.clone()));
                    state.running.insert(pack, task);
                }
            }
            Action::Cancel(pack) => {
                if let Some(task) = state.running.remove(&pack) {
                    task.abort();
                }
            }
            Action::Drop(provider, why) => {
                if let Some(provider) = state.providers.get(provider.0 as usize) {
                    tracing::warn!(provider = %provider.contact.peer, ?why,
                        problem = provider.problem.as_deref().unwrap_or_default(), "dropped a provider");
                }
            }
            Action::Failed(item, reasons) => self.fail(item, &reasons, state),
            Action::Finished => return true,
        }
        false
    }

    /// Returns the task of one pack.
    fn request(
        &self,
        pack: PackId,
        items: Vec<ItemId>,
        provider: &Provider,
        report: mpsc::Sender<TaskReport>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let contents: Vec<_> = items.iter().map(|item| self.content(*item)).map(|c| (c.hash, c.size)).collect();
        let contact = provider.contact.clone();
        let meter = self.batch.context.profile.source(&contact);
        let take = self.taker(pack, items, contact.peer.clone(), meter.clone(), report.clone());
        let stream = PackStream { bulk: self.bulk.clone(), throttle: self.throttle.clone(), contact, meter };
        async move {
            let report_of_end = match stream.fetch(contents, pack.provider, &report, take).await {
                Ok(()) => TaskReport::Event(Event::Done(pack)),
                Err(PackRequestError::Pack(PackError::Rejected(error))) => TaskReport::Fatal(error),
                Err(PackRequestError::Pack(PackError::Panicked(why))) => TaskReport::Fatal(FileError::Panicked(why)),
                Err(error) => TaskReport::Failed(pack, failure_of(&error), error.to_string()),
            };
            // Fails only if the engine has ended.
            let _ = report.send(report_of_end).await;
        }
    }

    fn content(&self, item: ItemId) -> &Content {
        &self.contents[item.0 as usize]
    }

    /// Returns the callback for each content of a pack, which stages it and reports it. Runs on a blocking thread.
    fn taker(
        &self,
        pack: PackId,
        items: Vec<ItemId>,
        from: PeerId,
        meter: Arc<SourceMeter>,
        report: mpsc::Sender<TaskReport>,
    ) -> impl FnMut(usize, PackEvent<'_>) -> Result<(), FileError> + Send + 'static {
        let (batch, contents, ready) = (self.batch.clone(), self.contents.clone(), self.ready.clone());
        let all_bytes = self.all_bytes.clone();
        move |number, event| {
            let Some(item) = items.get(number).copied() else { return Ok(()) };
            let content = &contents[item.0 as usize];
            let outcome = match event {
                PackEvent::Refused(refusal) => TaskReport::Refused(pack, item, refusal),
                PackEvent::Content(bytes) => {
                    all_bytes.fetch_add(content.size, Ordering::Relaxed);
                    if !content.take() {
                        return Ok(());
                    }
                    // The thread that verifies the contents also writes them.
                    let disk = meter.decoder();
                    disk.waiting_for_disk(|| disk.writing(|| stage(&batch, content, bytes, &from, &ready)))?;
                    meter.arrived(content.size);
                    TaskReport::Event(Event::Delivered(pack, item))
                }
            };
            // Fails only if the engine has ended, which aborts the stream.
            let _ = report.blocking_send(outcome);
            Ok(())
        }
    }

    /// Fails the files of a content that no provider delivers, with the problems of all providers.
    fn fail(&self, item: ItemId, reasons: &[(ProviderId, PackFailure)], state: &State) {
        let all_corrupt = !reasons.is_empty() && reasons.iter().all(|(_, why)| *why == PackFailure::SentCorruptData);
        let problem = |(number, why): &(ProviderId, PackFailure)| {
            let provider = state.providers.get(number.0 as usize)?;
            let problem = match (why, state.refusals.get(&(item, *number))) {
                (PackFailure::Refused, Some(refusal)) => refusal.to_string(),
                (PackFailure::Silent, _) => "it did not answer in time".to_owned(),
                _ => provider.problem.clone().unwrap_or_else(|| "it failed".to_owned()),
            };
            Some(format!("{}: {problem}", provider.contact.peer))
        };
        let problems: Vec<String> = reasons.iter().filter_map(problem).collect();
        for target in &self.content(item).targets {
            let name = self.batch.files[target.file].name.clone();
            self.batch.fail(target.file, FileError::NoProvider { name, problems: problems.clone(), all_corrupt });
        }
    }
}

impl State {
    /// Processes a report and returns its event for the core.
    ///
    /// # Errors
    /// If this peer cannot write any more.
    fn on_report(&mut self, report: TaskReport) -> Result<Event, FileError> {
        let event = match report {
            TaskReport::Event(event) => event,
            TaskReport::Refused(pack, item, refusal) => {
                self.refusals.insert((item, pack.provider), refusal);
                Event::Refused(pack, item)
            }
            TaskReport::Failed(pack, why, problem) => {
                if let Some(provider) = self.providers.get_mut(pack.provider.0 as usize) {
                    provider.problem = Some(problem);
                }
                Event::Failed(pack, why)
            }
            TaskReport::Fatal(error) => return Err(error),
        };
        if let Event::Done(pack) | Event::Failed(pack, _) = event {
            self.running.remove(&pack);
        }
        Ok(event)
    }
}

/// Stages a content for every file that has it.
///
/// # Errors
/// If the disk is full, so that the other files do not fit either.
fn stage(
    batch: &Batch,
    content: &Content,
    bytes: &[u8],
    from: &PeerId,
    ready: &mpsc::Sender<Ready>,
) -> Result<(), FileError> {
    for (copy, target) in content.targets.iter().enumerate() {
        let file = target.file;
        match batch.staging.stage(&target.destination, &batch.files[file], bytes) {
            Ok(staged) => {
                batch.add_bytes(file);
                // The provider sent the first copy; this peer made the others.
                let source = if copy == 0 { from } else { &batch.me };
                let sources = vec![(source.clone(), content.size)];
                if ready.blocking_send(Ready { file, staged, sources }).is_err() {
                    // The download was cancelled.
                    return Ok(());
                }
            }
            // The other files do not fit either.
            Err(error) if is_no_space(&error.error) => return Err(FileError::store(error)),
            Err(error) => batch.fail(file, FileError::store(error)),
        }
    }
    Ok(())
}

/// Parameters of the stream of one pack.
struct PackStream {
    bulk: Connections,
    throttle: Throttle,
    contact: Contact,
    meter: Arc<SourceMeter>,
}

impl PackStream {
    /// Requests one pack and passes its contents to `take`. Meanwhile reports activity of the provider.
    async fn fetch(
        &self,
        contents: Vec<(ContentHash, u64)>,
        provider: ProviderId,
        reports: &mpsc::Sender<TaskReport>,
        take: impl FnMut(usize, PackEvent<'_>) -> Result<(), FileError> + Send + 'static,
    ) -> Result<(), PackRequestError> {
        let target = Target::from(&self.contact);
        let request = PackRequest::new(contents.clone())?;
        let mut stage = self.meter.request();
        let (mut send, mut recv) = self.bulk.pack(&target).await?;
        write_header(&mut send, &request).await?;
        // A stream that the provider has closed shows in its answer.
        let _ = send.finish();
        let PackAccepted = read_header::<Result<PackAccepted, BulkRefusal>>(&mut recv).await??;
        if let Ok(connection) = self.bulk.connection(&target).await {
            self.meter.set_rtt(connection.rtt());
        }
        stage.enter(Phase::Queued);
        // A full queue means that the core has other reports to process.
        let report_activity = || drop(reports.try_send(TaskReport::Event(Event::Activity(provider))));
        wait_for_turn(&mut recv, report_activity, || false).await?;
        stage.enter(Phase::Streaming);
        let clock = Clock::start();
        let mut next_report = Timestamp::ZERO;
        let on_activity = || {
            let now = clock.now();
            if now >= next_report {
                next_report = now + ACTIVITY_INTERVAL;
                report_activity();
            }
        };
        let mut source = Metered { source: ThrottledSource::new(recv, self.throttle.clone()), meter: &self.meter };
        Ok(fetch_pack(&mut source, contents, on_activity, take).await?)
    }
}

/// Numbers the providers in a random order, so that many receivers spread over them, and lists for each content its
/// size and providers. Excludes this peer, whose contents were already copied.
fn introduce(contents: &[Content], me: &PeerId) -> (Vec<Provider>, Vec<Wanted>) {
    let mut contacts: BTreeMap<&PeerId, &Contact> = BTreeMap::new();
    for provider in contents.iter().flat_map(|content| &content.providers).filter(|provider| provider.peer != *me) {
        contacts.entry(&provider.peer).or_insert(provider);
    }
    let mut contacts: Vec<&Contact> = contacts.into_values().collect();
    fastrand::shuffle(&mut contacts);
    let numbers: HashMap<&PeerId, ProviderId> =
        (0..).map(ProviderId).zip(&contacts).map(|(id, c)| (&c.peer, id)).collect();
    let wanted = contents.iter().map(|content| {
        let known = content.providers.iter().filter_map(|contact| numbers.get(&contact.peer).copied());
        let mut known: Vec<ProviderId> = known.collect();
        known.sort_unstable();
        // The lowest numbers, so that contents with the same providers are requested from the same ones.
        Wanted { size: content.size, providers: known.into_iter().take(params::MAX_OWNERS_PER_PACKED).collect() }
    });
    let wanted = wanted.collect();
    let providers = contacts.into_iter().map(|contact| Provider { contact: contact.clone(), problem: None }).collect();
    (providers, wanted)
}

/// Classifies a failure for the core.
fn failure_of(error: &PackRequestError) -> PackFailure {
    match error {
        PackRequestError::Refused(BulkRefusal::Busy) => PackFailure::Busy,
        PackRequestError::Pack(PackError::Verification(_)) => PackFailure::SentCorruptData,
        PackRequestError::Net(_)
        | PackRequestError::Header(_)
        | PackRequestError::Refused(_)
        | PackRequestError::Request(_)
        | PackRequestError::Pack(_) => PackFailure::Broken,
    }
}
