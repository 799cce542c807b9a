//! Single batches with simulated time and a storage that fails on demand, then the actor's thread.

use std::sync::{Arc, Mutex};

use shared::{
    id::Incarnation,
    limits::SEAT_LEASE,
    name::Name,
    rpc::nameserver::{Registered, SeatView},
};

use super::*;
use crate::{
    registry::{
        Snapshot,
        tests::{NOW, peer, request},
    },
    storage::memory::MemoryStorage,
};

/// A storage in memory that counts its commits and fails on demand.
#[derive(Clone, Default)]
struct Faulty(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    storage: MemoryStorage,
    fault: Option<Fault>,
    commits: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Commits and loads fail without any effect.
    Dead,
    /// Commits take effect but are reported as failed; loads succeed.
    Ambiguous,
}

impl Faulty {
    fn set(&self, fault: Option<Fault>) {
        self.0.lock().unwrap().fault = fault;
    }

    fn commits(&self) -> usize {
        self.0.lock().unwrap().commits
    }

    fn stored(&self) -> Snapshot {
        self.0.lock().unwrap().storage.load().unwrap()
    }
}

fn disk_full() -> StorageError {
    StorageError::Io { path: "registry.redb".into(), error: std::io::ErrorKind::StorageFull.into() }
}

impl Storage for Faulty {
    fn load(&mut self) -> Result<Snapshot, StorageError> {
        let mut state = self.0.lock().unwrap();
        if state.fault == Some(Fault::Dead) { Err(disk_full()) } else { state.storage.load() }
    }

    fn commit(&mut self, mutations: &[Mutation], expected: Revision) -> Result<(), StorageError> {
        let mut state = self.0.lock().unwrap();
        state.commits += 1;
        match state.fault {
            None => state.storage.commit(mutations, expected),
            Some(Fault::Dead) => Err(disk_full()),
            Some(Fault::Ambiguous) => {
                state.storage.commit(mutations, expected)?;
                Err(disk_full())
            }
        }
    }
}

fn actor() -> (RegistryActor, Faulty) {
    let storage = Faulty::default();
    let registry = Registry::restore(Snapshot::default(), NOW);
    let published = watch::Sender::new(registry.revision());
    (RegistryActor { registry, storage: Box::new(storage.clone()), published, outage: None }, storage)
}

/// The commands of one batch.
#[derive(Default)]
struct Batch(Vec<Box<dyn Command>>);

impl Batch {
    fn register(&mut self, id: &str, name: &str) -> oneshot::Receiver<Result<Registered, NameError>> {
        let (reply, answer) = oneshot::channel();
        let request = request(name);
        let call = move |registry: &mut Registry, now, caller: &Role| registry.register(now, caller, request);
        let caller = peer(id);
        let permit = Arc::new(WriteQuota::default()).acquire(&caller).unwrap();
        self.0.push(Box::new(Write { caller, _permit: permit, call: Some(call), answer: None, reply }));
        answer
    }

    fn read<T: Send + 'static>(
        &mut self,
        call: impl FnMut(&mut Registry, Timestamp) -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (reply, answer) = oneshot::channel();
        self.0.push(Box::new(Read { call, answer: None, reply }));
        answer
    }

    fn count(&mut self) -> oneshot::Receiver<u64> {
        self.read(|registry, now| registry.count(now))
    }
}

#[test]
fn batch_of_writes_commits_once_and_batch_of_reads_never() {
    let (mut actor, storage) = actor();
    let mut batch = Batch::default();
    let writes: Vec<_> = (0..100).map(|number| batch.register("a", &format!("n{number}"))).collect();
    let mut count = batch.count();
    actor.process_batch(&mut batch.0, NOW);
    assert_eq!(storage.commits(), 1);
    assert!(writes.into_iter().all(|mut write| write.try_recv().unwrap().is_ok()));
    assert_eq!(count.try_recv(), Ok(100));
    assert_eq!(storage.stored(), actor.registry.snapshot());

    let mut batch = Batch::default();
    let mut renewed = batch.read(|registry, now| registry.renew(now, &peer("a"), "n1", Incarnation(1)));
    actor.process_batch(&mut batch.0, NOW);
    assert!(renewed.try_recv().unwrap().is_ok());
    assert_eq!(storage.commits(), 1);
}

#[test]
fn write_that_cannot_be_stored_is_unavailable_and_invisible() {
    let (mut actor, storage) = actor();
    let mut batch = Batch::default();
    let mut first = batch.register("a", "peer.a");
    actor.process_batch(&mut batch.0, NOW);
    assert!(first.try_recv().unwrap().is_ok());

    storage.set(Some(Fault::Dead));
    let mut batch = Batch::default();
    let mut lost = batch.register("b", "peer.b");
    let mut count = batch.count();
    actor.process_batch(&mut batch.0, NOW);
    assert!(matches!(lost.try_recv().unwrap(), Err(NameError::Unavailable(_))));
    assert_eq!(count.try_recv(), Ok(1), "a read of the same batch sees the undone write");

    // Reads and renewals continue; writes are rejected without a commit.
    let later = NOW + RELOAD_PAUSE / 2;
    let mut batch = Batch::default();
    let mut refused = batch.register("b", "peer.b");
    let mut renewed = batch.read(|registry, now| registry.renew(now, &peer("a"), "peer.a", Incarnation(1)));
    actor.process_batch(&mut batch.0, later);
    assert!(matches!(refused.try_recv().unwrap(), Err(NameError::Unavailable(_))));
    assert!(renewed.try_recv().unwrap().is_ok());
    assert_eq!(storage.commits(), 2);

    storage.set(None);
    let mut batch = Batch::default();
    let mut again = batch.register("b", "peer.b");
    actor.process_batch(&mut batch.0, NOW + RELOAD_PAUSE);
    assert!(again.try_recv().unwrap().is_ok());
    assert_eq!(storage.stored(), actor.registry.snapshot());
}

#[test]
fn commit_reported_as_failed_is_found_by_the_next_load() {
    let (mut actor, storage) = actor();
    storage.set(Some(Fault::Ambiguous));
    let mut batch = Batch::default();
    let mut unsure = batch.register("a", "peer.a");
    actor.process_batch(&mut batch.0, NOW);
    assert!(matches!(unsure.try_recv().unwrap(), Err(NameError::Unavailable(_))));
    assert_eq!(actor.registry.count(NOW), 0);

    storage.set(None);
    let mut batch = Batch::default();
    let mut count = batch.count();
    actor.process_batch(&mut batch.0, NOW + RELOAD_PAUSE);
    assert_eq!(count.try_recv(), Ok(1));
    assert_eq!(storage.stored(), actor.registry.snapshot());
}

#[test]
fn expiry_during_an_outage_waits_for_the_retry() {
    let (mut actor, storage) = actor();
    let mut batch = Batch::default();
    drop(batch.register("a", "peer.a"));
    actor.process_batch(&mut batch.0, NOW);
    let due = actor.wake_at().unwrap();
    storage.set(Some(Fault::Dead));
    actor.process_batch(&mut Vec::new(), due);
    assert_eq!(actor.wake_at(), Some(due + RELOAD_PAUSE));
    assert_eq!(actor.registry.count(due), 0, "an expired name is still visible");
    storage.set(None);
    actor.process_batch(&mut Vec::new(), due + RELOAD_PAUSE);
    // Loading the storage restarts the lease.
    assert_eq!(actor.registry.count(due + RELOAD_PAUSE), 1);
}

/// Deadline of every wait. It fails the test; a wait ends as soon as its event happens.
const DEADLINE: Duration = Duration::from_secs(20);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn thread_expires_names_unasked_and_ends_with_its_last_handle() {
    let storage = Faulty::default();
    let (handle, thread) = start(Box::new(storage.clone()), Clock::start()).unwrap();
    let work = async {
        handle.write(peer("a"), |r, now, caller| r.register(now, caller, request("peer.a"))).await.unwrap();
        let claim = shared::rpc::nameserver::Claim {
            epoch: shared::epoch::Epoch(1),
            expected_epoch: shared::epoch::Epoch(0),
            endpoint: "quic://h:1".parse().unwrap(),
            votes: Vec::new(),
            force: false,
        };
        handle.write(peer("a"), move |r, now, caller| r.claim(now, caller, claim)).await.unwrap();
        // Without a renewal the actor removes the seat from the storage, too.
        let gone = async {
            while storage.stored().seat.is_some() {
                let seat: SeatView = handle.read(|r, now| r.seat(now)).await.unwrap();
                let pause = if seat.seat.is_some() { SEAT_LEASE / 10 } else { Duration::from_millis(1) };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::time::timeout(DEADLINE, gone).await.unwrap();
        assert!(!storage.stored().names.contains_key(&Name::tracker(shared::epoch::Epoch(1))));
    };
    runtime().block_on(work);
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn concurrent_writes_share_commits() {
    let storage = Faulty::default();
    let (handle, thread) = start(Box::new(storage.clone()), Clock::start()).unwrap();
    runtime().block_on(async {
        let writes = (0..1000).map(|number| {
            let request = request(&format!("n{number}"));
            handle.write(peer(&format!("p{}", number % 10)), move |r, now, caller| r.register(now, caller, request))
        });
        let answers = tokio::time::timeout(DEADLINE, futures::future::join_all(writes)).await.unwrap();
        assert!(answers.iter().all(Result::is_ok));
    });
    assert_eq!(storage.stored().names.len(), 1000);
    assert!(storage.commits() < 1000, "{} commits", storage.commits());
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn write_to_a_full_queue_is_unavailable_at_once() {
    // A storage whose commits block until the test drops the sender keeps the actor busy.
    struct Blocking(std::sync::mpsc::Receiver<()>);
    impl Storage for Blocking {
        fn load(&mut self) -> Result<Snapshot, StorageError> {
            Ok(Snapshot::default())
        }
        fn commit(&mut self, _: &[Mutation], _: Revision) -> Result<(), StorageError> {
            // Ends with an error when the sender is dropped.
            let _ = self.0.recv_timeout(DEADLINE);
            Ok(())
        }
    }
    let (unblock, wait) = std::sync::mpsc::channel();
    let (handle, thread) = start(Box::new(Blocking(wait)), Clock::start()).unwrap();
    runtime().block_on(async {
        let writes = (0..MAX_QUEUED_EVENTS + 2 * COMMANDS_PER_COMMIT + 10).map(|number| {
            let request = request(&format!("n{number}"));
            handle.write(peer(&format!("p{}", number % 10)), move |r, now, caller| r.register(now, caller, request))
        });
        let mut answers: futures::stream::FuturesUnordered<_> = writes.collect();
        let first = tokio::time::timeout(DEADLINE, futures::StreamExt::next(&mut answers)).await.unwrap();
        assert!(
            matches!(&first, Some(Err(NameError::Unavailable(why))) if why.contains("calls are waiting")),
            "{first:?}"
        );
        drop(unblock);
    });
    drop(handle);
    thread.join().unwrap();
}
