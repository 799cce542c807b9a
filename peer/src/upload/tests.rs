//! How uploads end, as the other end of a connection sees it and as the share does.
//!
//! Owner and asker have a runtime each. The asker's has one thread, the test's: between two calls of [`Asker::run`] nothing
//! is read, answered or acknowledged there.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::unix::fs::FileExt,
    thread,
    time::SystemTime,
};

use certs::{Authority, trust};
use futures::future::BoxFuture;
use shared::{
    id::Role,
    name::Endpoint,
    net::{
        Connections, StreamKind, Target, endpoint,
        pack::{PackAccepted, PackRequest},
        serve::{Handler, Remote, serve},
    },
    rpc::ALPN,
    time::Clock,
};
use tokio::{
    io::AsyncReadExt,
    runtime::{Builder, Runtime},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{diagnostics::system::Machine, store::ShareOptions};

/// Deadline of every wait: far longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(3600);

/// Waits until `what` holds, without running anything of the asker.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::start();
    while !holds() {
        assert!(clock.now().since_origin() < PATIENCE, "never: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(len as u64).fill(&mut bytes);
    bytes
}

/// Handler of an owner's connections.
struct Serving {
    uploads: Arc<Uploads>,
    /// Connections on which a stream has been opened, in that order.
    connections: Arc<Mutex<Vec<quinn::Connection>>>,
}

impl Handler for Serving {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.connections.lock().unwrap().push(remote.connection.clone());
            let peer = remote.member().and_then(Role::peer).unwrap();
            match kind {
                StreamKind::Bulk => self.uploads.serve(peer, &remote.connection, send, recv).await,
                StreamKind::Pack => self.uploads.serve_pack(peer, &remote.connection, send, recv).await,
                _ => {}
            }
        })
    }
}

/// A peer with some files, each of them noise, that others may ask for; one at a time.
struct Owner {
    uploads: Arc<Uploads>,
    connections: Arc<Mutex<Vec<quinn::Connection>>>,
    hashes: Vec<ContentHash>,
    authority: Authority,
    target: Target,
    runtime: Runtime,
    folder: tempfile::TempDir,
}

impl Owner {
    /// Files of these sizes; `silence` is how long an asker may take nothing.
    fn with(sizes: &[usize], silence: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        fs::create_dir(&share).unwrap();
        for (number, size) in sizes.iter().enumerate() {
            let path = share.join(number.to_string());
            fs::write(&path, noise(*size)).unwrap();
            // A large file that was written to just now is waited for.
            File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        let hashes = sizes.iter().map(|&size| ContentHash(*blake3::hash(&noise(size)).as_bytes())).collect();
        let authority = Authority::ephemeral().unwrap();
        let role = Role::Peer("owner".parse().unwrap());
        let identity = authority.identity(&role, LIFE).unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = folder.path().join("state");
        let connections = Arc::<Mutex<Vec<_>>>::default();
        let (uploads, endpoint) = runtime.block_on(async {
            let (events, mut changes) = mpsc::channel(64);
            let share = Share::open(&share, &state, ShareOptions::default(), events).await.unwrap();
            tokio::spawn(async move { while changes.recv().await.is_some() {} });
            share.settled().await.unwrap();
            let reports = UploadStats::new(Arc::new(Machine::default()), 1);
            let mut uploads = Uploads::new(
                share,
                UploadLimits { active: 1, ..UploadLimits::default() },
                Throttle::default(),
                reports,
            );
            Arc::get_mut(&mut uploads).unwrap().silence = silence;
            let server = trust::member_server(&identity, &[ALPN]).unwrap();
            let client = trust::member_client(&identity, &[ALPN]).unwrap();
            let endpoint = endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), Some(server), client).unwrap().endpoint;
            let handler = Serving { uploads: uploads.clone(), connections: connections.clone() };
            tokio::spawn(serve(endpoint.clone(), Arc::new(handler), CancellationToken::new()));
            (uploads, endpoint)
        });
        let target = Target { role, endpoint: Endpoint::from(endpoint.local_addr().unwrap()) };
        Self { uploads, connections, hashes, authority, target, runtime, folder }
    }

    /// Waits until the share has done all that it was told to, and says how many bytes it has hashed so far.
    fn hashed_bytes(&self) -> u64 {
        let settled = async { timeout(PATIENCE, self.uploads.share.settled()).await.expect("the share comes to rest") };
        self.runtime.block_on(settled).unwrap();
        self.uploads.share.stats().hashed_bytes
    }

    /// Damages a pair that proves groups of a content: the `number`th, or the last. (A file cannot be changed without being noticed
    /// at once; what is hashed is compared with the pairs.)
    fn damage(&self, hash: ContentHash, number: Option<u64>) {
        let hex = hash.to_hex();
        let path = self.folder.path().join("state/outboards").join(&hex[..2]).join(&hex[2..]);
        let outboard = File::options().read(true).write(true).open(path).unwrap();
        let pairs = outboard.metadata().unwrap().len() / 64;
        let at = number.unwrap_or(pairs - 1) * 64;
        let mut byte = [0];
        outboard.read_exact_at(&mut byte, at).unwrap();
        outboard.write_all_at(&[!byte[0]], at).unwrap();
    }

    /// Takes the only upload slot. Requests wait until it is dropped.
    fn hold_slot(&self) -> Slot<'_> {
        let Asked::Now(id) = self.uploads.slots().slots.ask(&"holder".parse().unwrap()) else {
            panic!("the slot is taken already")
        };
        Slot { uploads: &self.uploads, id }
    }

    /// The connection on which the last stream was opened.
    fn last_connection(&self) -> quinn::Connection {
        self.connections.lock().unwrap().last().unwrap().clone()
    }

    /// A member `id`.
    fn asker(&self, id: &str) -> Asker {
        self.asker_on(&Arc::new(Builder::new_current_thread().enable_all().build().unwrap()), id)
    }

    /// A member `id` that runs when others on this runtime do.
    fn asker_on(&self, runtime: &Arc<Runtime>, id: &str) -> Asker {
        let identity = self.authority.identity(&Role::Peer(id.parse().unwrap()), LIFE).unwrap();
        let client = trust::member_client(&identity, &[ALPN]).unwrap();
        let connections = runtime.block_on(async {
            Connections::new(endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), None, client).unwrap().endpoint)
        });
        Asker { connections, target: self.target.clone(), runtime: runtime.clone() }
    }
}

struct Asker {
    connections: Connections,
    target: Target,
    runtime: Arc<Runtime>,
}

impl Asker {
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { timeout(PATIENCE, work).await.expect("it ends in time") })
    }

    /// Asks for all of a content, and reads until it begins.
    fn ask(&self, hash: ContentHash) -> quinn::RecvStream {
        let mut recv = self.request(hash);
        self.run(async { while recv.read_u8().await.unwrap() != BULK_BEGINS {} });
        recv
    }

    /// Asks for all of a content, and reads until the owner has accepted the request.
    fn request(&self, hash: ContentHash) -> quinn::RecvStream {
        self.run(async {
            let (mut send, mut recv) = self.connections.bulk(&self.target).await.unwrap();
            write_header(&mut send, &BulkRequest { hash, groups: Vec::new() }).await.unwrap();
            send.finish().unwrap();
            read_header::<Result<BulkAccepted, BulkRefusal>>(&mut recv).await.unwrap().unwrap();
            recv
        })
    }

    /// Asks for these contents of these sizes in one pack, and reads until the owner has accepted the request.
    fn request_pack(&self, contents: Vec<(ContentHash, u64)>) -> quinn::RecvStream {
        self.run(async {
            let (mut send, mut recv) = self.connections.pack(&self.target).await.unwrap();
            write_header(&mut send, &PackRequest::new(contents).unwrap()).await.unwrap();
            send.finish().unwrap();
            read_header::<Result<PackAccepted, BulkRefusal>>(&mut recv).await.unwrap().unwrap();
            recv
        })
    }

    /// Stops a stream whose data the owner has written completely, and waits until the owner has reset it. From the
    /// arrival of the stop to the reset the asker acknowledges nothing, so the owner sends at most a congestion window
    /// more, however late its task runs.
    fn give_up(&self, mut recv: quinn::RecvStream, owner: &quinn::Connection) {
        let connection = self.run(self.connections.connection(&self.target)).unwrap();
        self.run(async {
            recv.stop(BulkAbort::Enough.to_varint()).unwrap();
            while owner.stats().frame_rx.stop_sending == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        });
        let clock = Clock::start();
        while owner.stats().frame_tx.reset_stream == 0 {
            assert!(clock.now().since_origin() < PATIENCE / 6, "no reset: {:?}", owner.stats());
            thread::park_timeout(Duration::from_millis(5));
        }
        self.run(async {
            while connection.stats().frame_rx.reset_stream == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        });
    }
}

#[test]
fn a_receiver_that_does_not_read_says_nothing_of_the_file() {
    let size = limits::STREAM_WINDOW_BYTES as usize + (8 << 20);
    // Longer than this thread ever pauses between the begin of the second upload and its first read.
    let owner = Owner::with(&[size], Duration::from_secs(2));
    let asker = owner.asker("asker");
    let mut recv = asker.ask(owner.hashes[0]);
    let code = asker.run(recv.received_reset()).unwrap().expect("the stream is reset");
    assert_eq!(BulkAbort::from_varint(code), Some(BulkAbort::Stopped));
    eventually("the upload is over", || owner.uploads.active() == 0);
    assert_eq!(owner.hashed_bytes(), size as u64, "nobody doubts the file");
    let mut again = asker.ask(owner.hashes[0]);
    let first = asker.run(async { again.read_chunk(1, true).await.unwrap().unwrap().bytes });
    assert_eq!(first.len(), 1, "it is served as before");
}

#[test]
fn only_a_file_that_changed_is_said_to_have_changed() {
    let broken = || io::Error::from(io::ErrorKind::TimedOut);
    assert_eq!(ServeError::Changed { offset: 0 }.abort(), BulkAbort::Changed);
    for error in [ServeError::Disk(broken()), ServeError::Stream(broken()), ServeError::Stalled(Duration::ZERO)] {
        assert_eq!(error.abort(), BulkAbort::Stopped, "{error}");
    }
}

/// Asks for a content of 40 MiB, damages a pair of it when it begins to come, and says that something was wrong. How many bytes
/// the owner has hashed by then, in files.
fn hashed_after_a_complaint(damaged: Option<u64>) -> u64 {
    let size = 40 << 20;
    let owner = Owner::with(&[size], PATIENCE);
    let asker = owner.asker("asker");
    let mut recv = asker.ask(owner.hashes[0]);
    asker.run(recv.read_chunk(1, true)).unwrap().expect("it comes");
    owner.damage(owner.hashes[0], damaged);
    asker.run(async {
        recv.stop(BulkAbort::Wrong.to_varint()).unwrap();
        // So that it is said before this end falls silent.
        while owner.uploads.active() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    });
    eventually("the look is over", || owner.uploads.looks.count() == 0);
    owner.hashed_bytes() / size as u64
}

#[test]
fn who_complains_makes_an_owner_hash_what_was_sent_and_no_more() {
    // The last groups cannot have been sent to who does not read.
    assert_eq!(hashed_after_a_complaint(None), 1, "what was sent is right");
    assert_eq!(hashed_after_a_complaint(Some(6)), 2, "what was sent is wrong: the file is hashed again");
}

#[test]
fn a_content_is_looked_at_once_at_a_time_and_not_when_the_peer_ends() {
    let sizes: Vec<_> = (0..=limits::MAX_LOOKS).map(|number| (40 << 10) + number).collect();
    let owner = Owner::with(&sizes, PATIENCE);
    let before = owner.hashed_bytes();
    let hashes = &owner.hashes;
    hashes.iter().for_each(|&hash| owner.damage(hash, None));
    let _inside = owner.runtime.enter();
    let look_at = |looks: &ContentAudit, number: usize| looks.look_at(hashes[number], &GroupRanges::all(40 << 10), 1);

    let looks = ContentAudit::new(owner.uploads.share.clone());
    let first = looks.begin(hashes[0]).unwrap();
    look_at(&looks, 0);
    assert_eq!(looks.count(), 1, "it is being looked at");
    let others: Vec<_> = hashes[1..limits::MAX_LOOKS].iter().map(|&hash| looks.begin(hash).unwrap()).collect();
    look_at(&looks, limits::MAX_LOOKS);
    assert_eq!(looks.count(), limits::MAX_LOOKS, "enough are");
    drop((first, others));
    assert_eq!((looks.count(), owner.hashed_bytes()), (0, before));

    looks.end();
    look_at(&looks, 0);
    eventually("the look is over", || looks.count() == 0);
    assert_eq!(owner.hashed_bytes(), before, "it found nothing out");

    let looks = ContentAudit::new(owner.uploads.share.clone());
    look_at(&looks, 0);
    eventually("the look is over", || looks.count() == 0);
    assert_eq!(owner.hashed_bytes(), before + sizes[0] as u64);
}

/// An upload slot that is free only once the asker does not run any more keeps the asker from acknowledging data: the
/// owner writes all of it into the stream, whose window is larger, and can send no more than a congestion window.
#[test]
fn written_data_is_not_sent_to_an_asker_that_stops_the_stream() {
    const PACKED: usize = 200 << 10;
    const FILE: usize = 8 << 20;
    let sizes: Vec<_> = (0..40).map(|number| PACKED + number).chain([FILE]).collect();
    let owner = Owner::with(&sizes, PATIENCE);
    let contents: Vec<_> = owner.hashes.iter().zip(&sizes).map(|(&hash, &size)| (hash, size as u64)).collect();
    let (file, packed) = contents.split_last().unwrap();
    let in_pack: u64 = packed.iter().map(|(_, size)| size).sum();
    let gives_up = |asker: &Asker, recv, held, written: u64| {
        let before = owner.uploads.bytes();
        drop(held);
        eventually("the owner writes all of it", || {
            owner.uploads.bytes() - before >= written && owner.uploads.active() == 0
        });
        let connection = owner.last_connection();
        asker.give_up(recv, &connection);
        let sent = connection.stats().udp_tx.bytes;
        assert!(sent < written / 2, "the owner sent {sent} of {written} bytes");
    };

    let (asker, held) = (owner.asker("packs"), owner.hold_slot());
    let pack = asker.request_pack(packed.to_vec());
    gives_up(&asker, pack, held, in_pack);

    let (asker, held) = (owner.asker("files"), owner.hold_slot());
    let stream = asker.request(file.0);
    gives_up(&asker, stream, held, file.1);
}

#[test]
fn a_receiver_that_takes_nothing_keeps_nobody_waiting_and_loses_nothing() {
    let size = limits::STREAM_WINDOW_BYTES as usize + (8 << 20);
    let owner = Owner::with(&[size, 1 << 20], PATIENCE);
    let slow = owner.asker("slow");
    let mut recv = slow.ask(owner.hashes[0]);
    let other = owner.asker_on(&slow.runtime, "other");
    // Nobody begins before it is its turn.
    let mut served = other.ask(owner.hashes[1]);
    let (first, second) = slow.run(async {
        let second = served.read_to_end(2 << 20).await.unwrap().len();
        (recv.read_to_end(2 * size).await.unwrap().len(), second)
    });
    assert!(first > size && second > 1 << 20, "both have all of it: {first}, {second} bytes");
}
