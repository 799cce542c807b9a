//! The shell around the core of packs: one stream for each pack that the core wants.
//!
//! ```text
//!             Action::Ask                      stream to the owner ─ each content verified ─ staged ─> commits
//!   [ packs ] ──────────────> a task for the pack ──────────────────────────────────────────────────────>
//!       ^     Cancel ───> stop │
//!       └── Delivered, Refused, Done, Failed <─┘
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::{
    contact::Contact,
    error::{Failure, FailureCode},
    id::PeerId,
    limits,
    net::{
        Connections, Target,
        bulk::{BulkRefusal, HeaderError, read_header, write_header},
        pack::{InvalidPack, ItemRefusal, PackAccepted, PackRequest},
    },
    time::{Clock, Timestamp},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::{Batch, Content, Ready};
use crate::{
    diagnostics::meter::{Phase, SourceMeter},
    download::{request::wait_for_turn, undelivered},
    transfer::{
        PackError, PackEvent, fetch_pack,
        metered::Metered,
        throttle::{Throttle, ThrottledSource},
    },
};
use protocol::packs::{Action, Event, ItemId, OwnerId, PackId, Packs, Wanted, Why};

/// Reports of packs that wait for the core: two packs' worth.
const MAX_QUEUED_REPORTS: usize = 2 * limits::MAX_PACK_CONTENTS;
/// How often the core is told that bytes arrive.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// One download of many small contents.
pub(crate) struct Packer {
    /// Connections for bytes.
    pub(crate) bulk: Connections,
    /// The cap on what comes in.
    pub(crate) pace: Throttle,
    /// Bytes that this peer fetched since it started.
    pub(crate) all_bytes: Arc<AtomicU64>,
    pub(crate) batch: Arc<Batch>,
    pub(crate) contents: Arc<Vec<Content>>,
    /// Where complete files go.
    pub(crate) ready: mpsc::Sender<Ready>,
}

/// An owner, numbered by its place.
struct Owner {
    contact: Contact,
    /// What it did wrong last.
    problem: Option<String>,
}

enum Told {
    Event(Event),
    /// The owner refused an item, and how; as an event too.
    Refused(PackId, ItemId, ItemRefusal),
    /// A pack failed, why in words, and as the event that it is.
    Failed(PackId, Why, String),
    /// No owner helps.
    Fatal(Failure),
}

/// Why a pack did not come.
#[derive(Debug, thiserror::Error)]
enum OwnerError {
    #[error(transparent)]
    Net(#[from] shared::net::NetError),
    #[error("its answer is unreadable: {0}")]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Refused(#[from] BulkRefusal),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error("it cannot be asked: {0}")]
    Request(#[from] InvalidPack),
}

impl Packer {
    /// Fetches all contents. What becomes of each file goes into the batch, directly or through `ready`.
    ///
    /// # Errors
    /// What the disk says, when that ends everything.
    pub(crate) async fn fetch(self) -> Result<(), Failure> {
        let clock = Clock::start();
        let (mut owners, wanted) = introduce(&self.contents, &self.batch.me);
        let count = u32::try_from(owners.len()).unwrap_or(u32::MAX);
        let mut packs = Packs::new(wanted, count, fastrand::u64(..));
        let mut refusals: HashMap<(ItemId, OwnerId), ItemRefusal> = HashMap::new();
        let (tell, mut told) = mpsc::channel(MAX_QUEUED_REPORTS);
        // Dropped with this future: a download that is cancelled ends its streams.
        let mut tasks = JoinSet::new();
        let mut running: BTreeMap<PackId, AbortHandle> = BTreeMap::new();
        let mut actions = Vec::new();
        packs.handle(clock.now(), Event::Tick, &mut actions);
        loop {
            for action in actions.drain(..) {
                match action {
                    Action::Ask(pack, items) => {
                        let Some(owner) = owners.get(pack.owner.0 as usize) else { continue };
                        running.insert(pack, tasks.spawn(self.ask(pack, items, owner, tell.clone())));
                    }
                    Action::Cancel(pack) => {
                        if let Some(task) = running.remove(&pack) {
                            task.abort();
                        }
                    }
                    Action::Drop(owner, why) => {
                        let Some(owner) = owners.get(owner.0 as usize) else { continue };
                        tracing::warn!(owner = %owner.contact.peer, ?why,
                            problem = owner.problem.as_deref().unwrap_or_default(), "an owner is asked for no more");
                    }
                    Action::Failed(item, reasons) => self.failed(item, &reasons, &owners, &refusals),
                    Action::Finished => return Ok(()),
                }
            }
            let senders = running.keys().map(|pack| pack.owner).collect::<std::collections::BTreeSet<_>>().len();
            self.batch.run.sources.store(senders as u64, Ordering::Relaxed);
            let deadline = packs.next_deadline(clock.now()).map(|at| clock.instant(at));
            let event = tokio::select! {
                Some(told) = told.recv() => match told {
                    Told::Event(event) => event,
                    Told::Refused(pack, item, refusal) => {
                        refusals.insert((item, pack.owner), refusal);
                        Event::Refused(pack, item)
                    }
                    Told::Failed(pack, why, problem) => {
                        if let Some(owner) = owners.get_mut(pack.owner.0 as usize) {
                            owner.problem = Some(problem);
                        }
                        Event::Failed(pack, why)
                    }
                    Told::Fatal(failure) => return Err(failure),
                },
                () = crate::runtime::core_task::sleep_until(deadline) => Event::Tick,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            if let Event::Done(pack) | Event::Failed(pack, _) = event {
                running.remove(&pack);
            }
            packs.handle(clock.now(), event, &mut actions);
        }
    }

    /// The task of one pack, which tells what comes of it.
    fn ask(
        &self,
        pack: PackId,
        items: Vec<ItemId>,
        owner: &Owner,
        tell: mpsc::Sender<Told>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let contents: Vec<_> = items.iter().map(|item| self.content(*item)).map(|c| (c.hash, c.size)).collect();
        let contact = owner.contact.clone();
        let meter = self.batch.run.meter.source(&contact);
        let take = self.taker(pack, items, contact.peer.clone(), meter.clone(), tell.clone());
        let way = Way { bulk: self.bulk.clone(), pace: self.pace.clone(), contact, meter };
        async move {
            let fetched = receive(&way, contents, pack.owner, &tell, take).await;
            let told = match fetched {
                Ok(()) => Told::Event(Event::Done(pack)),
                Err(OwnerError::Pack(PackError::Taking(failure))) => Told::Fatal(failure),
                Err(error) => Told::Failed(pack, why(&error), error.to_string()),
            };
            // The core is gone when nobody listens; then nothing is to be told.
            let _ = tell.send(told).await;
        }
    }

    fn content(&self, item: ItemId) -> &Content {
        &self.contents[item.0 as usize]
    }

    /// What is done, on a blocking thread, with each content that comes.
    fn taker(
        &self,
        pack: PackId,
        items: Vec<ItemId>,
        from: PeerId,
        meter: Arc<SourceMeter>,
        tell: mpsc::Sender<Told>,
    ) -> impl FnMut(usize, PackEvent<'_>) -> Result<(), Failure> + Send + 'static {
        let (batch, contents, ready) = (self.batch.clone(), self.contents.clone(), self.ready.clone());
        let all_bytes = self.all_bytes.clone();
        move |number, event| {
            let Some(item) = items.get(number).copied() else { return Ok(()) };
            let content = &contents[item.0 as usize];
            let told = match event {
                PackEvent::Refused(refusal) => Told::Refused(pack, item, refusal),
                PackEvent::Content(bytes) => {
                    all_bytes.fetch_add(content.size, Ordering::Relaxed);
                    // Asked of two owners, it may come twice.
                    if content.taken.swap(true, Ordering::Relaxed) {
                        return Ok(());
                    }
                    // What checks the contents writes them too.
                    let disk = meter.decoder();
                    disk.waiting_for_disk(|| disk.writing(|| stage(&batch, content, bytes, &from, &ready)))?;
                    meter.arrived(content.size);
                    Told::Event(Event::Delivered(pack, item))
                }
            };
            // The core is gone when nobody listens; the stream ends with its task.
            let _ = tell.blocking_send(told);
            Ok(())
        }
    }

    /// Nobody has this content: its files fail, with what each of its owners did.
    fn failed(
        &self,
        item: ItemId,
        reasons: &[(OwnerId, Why)],
        owners: &[Owner],
        refusals: &HashMap<(ItemId, OwnerId), ItemRefusal>,
    ) {
        let lied = !reasons.is_empty() && reasons.iter().all(|(_, why)| *why == Why::Lied);
        let reasons: Vec<String> = reasons
            .iter()
            .filter_map(|(number, why)| {
                let owner = owners.get(number.0 as usize)?;
                let problem = match (why, refusals.get(&(item, *number))) {
                    (Why::Refused, Some(refusal)) => refusal.to_string(),
                    (Why::Silent, _) => "it did not answer in time".to_owned(),
                    _ => owner.problem.clone().unwrap_or_else(|| "it failed".to_owned()),
                };
                Some(format!("{}: {problem}", owner.contact.peer))
            })
            .collect();
        for target in &self.content(item).targets {
            self.batch.fail(target.place, undelivered(&self.batch.files[target.place].name, &reasons, lied));
        }
    }
}

/// Writes a content for every file that it is for.
fn stage(
    batch: &Batch,
    content: &Content,
    bytes: &[u8],
    from: &PeerId,
    ready: &mpsc::Sender<Ready>,
) -> Result<(), Failure> {
    for (copy, target) in content.targets.iter().enumerate() {
        let place = target.place;
        match batch.many.stage(&target.destination, &batch.files[place], bytes) {
            Ok(staged) => {
                batch.came(place);
                // The first came from its owner, the others from here.
                let source = if copy == 0 { from } else { &batch.me };
                let sources = vec![(source.clone(), content.size)];
                if ready.blocking_send(Ready { place, staged, sources }).is_err() {
                    // The download was given up, and this stream is about to be.
                    return Ok(());
                }
            }
            // The others would have no room either.
            Err(failure) if failure.code == FailureCode::NoSpace => return Err(failure),
            Err(failure) => batch.fail(place, failure),
        }
    }
    Ok(())
}

/// How a pack comes.
struct Way {
    bulk: Connections,
    pace: Throttle,
    contact: Contact,
    meter: Arc<SourceMeter>,
}

/// Asks one owner for one pack.
async fn receive(
    Way { bulk, pace, contact, meter }: &Way,
    contents: Vec<(shared::content::ContentHash, u64)>,
    owner: OwnerId,
    tell: &mpsc::Sender<Told>,
    take: impl FnMut(usize, PackEvent<'_>) -> Result<(), Failure> + Send + 'static,
) -> Result<(), OwnerError> {
    let request = PackRequest::new(contents.clone())?;
    let mut stage = meter.request();
    let (mut send, mut recv) = bulk.pack(&Target::from(contact)).await?;
    write_header(&mut send, &request).await?;
    // The request is all that is said; a stream that the owner closed already shows in its answer.
    let _ = send.finish();
    let PackAccepted = read_header::<Result<PackAccepted, BulkRefusal>>(&mut recv).await??;
    if let Ok(connection) = bulk.connection(&Target::from(contact)).await {
        meter.set_rtt(connection.rtt());
    }
    stage.enter(Phase::Queued);
    let waits = || drop(tell.try_send(Told::Event(Event::Heard(owner))));
    wait_for_turn(&mut recv, waits, || false).await?;
    stage.enter(Phase::Streaming);
    let clock = Clock::start();
    let mut next = Timestamp::ZERO;
    let heard = || {
        let now = clock.now();
        if now >= next {
            next = now + TELL_EVERY;
            // A full queue means that the core has enough to hear of.
            let _ = tell.try_send(Told::Event(Event::Heard(owner)));
        }
    };
    let mut source = Metered { source: ThrottledSource::new(recv, pace.clone()), meter };
    fetch_pack(&mut source, contents, heard, take).await.map_err(OwnerError::Pack)
}

/// Numbers the owners, in an order of chance, so that many askers spread over them; and what is wanted of whom. This peer is not
/// asked: what it has was copied.
fn introduce(contents: &[Content], me: &PeerId) -> (Vec<Owner>, Vec<Wanted>) {
    let mut contacts: BTreeMap<&PeerId, &Contact> = BTreeMap::new();
    for owner in contents.iter().flat_map(|content| &content.owners).filter(|owner| owner.peer != *me) {
        contacts.entry(&owner.peer).or_insert(owner);
    }
    let mut contacts: Vec<&Contact> = contacts.into_values().collect();
    fastrand::shuffle(&mut contacts);
    let numbers: HashMap<&PeerId, OwnerId> = (0..).map(OwnerId).zip(&contacts).map(|(id, c)| (&c.peer, id)).collect();
    let wanted = contents.iter().map(|content| {
        let mut owners: Vec<OwnerId> = content.owners.iter().filter_map(|c| numbers.get(&c.peer).copied()).collect();
        owners.sort_unstable();
        // The same ones for all contents that the same owners have.
        Wanted { size: content.size, owners: owners.into_iter().take(limits::MAX_OWNERS_PER_PACKED).collect() }
    });
    let wanted = wanted.collect();
    let owners = contacts.into_iter().map(|contact| Owner { contact: contact.clone(), problem: None }).collect();
    (owners, wanted)
}

fn why(error: &OwnerError) -> Why {
    match error {
        OwnerError::Refused(BulkRefusal::Busy) => Why::Busy,
        OwnerError::Pack(PackError::Verification(_)) => Why::Lied,
        OwnerError::Net(_)
        | OwnerError::Header(_)
        | OwnerError::Refused(_)
        | OwnerError::Request(_)
        | OwnerError::Pack(_) => Why::Broken,
    }
}
