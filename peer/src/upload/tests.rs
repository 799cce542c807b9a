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

/// Longer than anything here takes; what hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);
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

/// What a peer serves files with.
struct Serving(Arc<Uploads>);

impl Handler for Serving {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let peer = remote.member().and_then(Role::peer).unwrap();
            match kind {
                StreamKind::Bulk => self.0.serve(peer, &remote.connection, send, recv).await,
                StreamKind::Pack => self.0.serve_pack(peer, &remote.connection, send, recv).await,
                _ => {}
            }
        })
    }
}

/// A peer with some files, each of them noise, that others may ask for; one at a time.
struct Owner {
    uploads: Arc<Uploads>,
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
        let (uploads, endpoint) = runtime.block_on(async {
            let (events, mut changes) = mpsc::channel(64);
            let share = Share::open(&share, &state, ShareOptions::default(), events).await.unwrap();
            tokio::spawn(async move { while changes.recv().await.is_some() {} });
            share.settled().await.unwrap();
            let reports = Reports::new(Arc::new(Machine::default()), 1);
            let mut uploads =
                Uploads::new(share, UploadLimits { active: 1, ..UploadLimits::default() }, Pace::default(), reports);
            Arc::get_mut(&mut uploads).unwrap().silence = silence;
            let server = trust::member_server(&identity, &[ALPN]).unwrap();
            let client = trust::member_client(&identity, &[ALPN]).unwrap();
            let endpoint = endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), Some(server), client).unwrap().endpoint;
            tokio::spawn(serve(endpoint.clone(), Arc::new(Serving(uploads.clone())), CancellationToken::new()));
            (uploads, endpoint)
        });
        let target = Target { role, endpoint: Endpoint::from(endpoint.local_addr().unwrap()) };
        Self { uploads, hashes, authority, target, runtime, folder }
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
        self.run(async {
            let (mut send, mut recv) = self.connections.bulk(&self.target).await.unwrap();
            write_header(&mut send, &BulkRequest { hash, groups: Vec::new() }).await.unwrap();
            send.finish().unwrap();
            read_header::<Result<BulkAccepted, BulkRefusal>>(&mut recv).await.unwrap().unwrap();
            while recv.read_u8().await.unwrap() != BULK_BEGINS {}
            recv
        })
    }

    /// Asks for these contents of these sizes in one pack, and reads until it begins.
    fn ask_for_pack(&self, contents: Vec<(ContentHash, u64)>) -> quinn::RecvStream {
        self.run(async {
            let (mut send, mut recv) = self.connections.pack(&self.target).await.unwrap();
            write_header(&mut send, &PackRequest::new(contents).unwrap()).await.unwrap();
            send.finish().unwrap();
            read_header::<Result<PackAccepted, BulkRefusal>>(&mut recv).await.unwrap().unwrap();
            while recv.read_u8().await.unwrap() != BULK_BEGINS {}
            recv
        })
    }

    /// Gives a stream up whose owner has nothing more to do for it than to send what it has taken in. Tells how often the owner
    /// then reset a stream, and how many bytes have come in all.
    fn give_up(&self, mut recv: quinn::RecvStream) -> (u64, u64) {
        let connection = self.run(self.connections.connection(&self.target)).unwrap();
        self.run(async {
            recv.stop(BulkAbort::Enough.to_varint()).unwrap();
            let clock = Clock::start();
            while connection.stats().frame_rx.reset_stream == 0 && clock.now().since_origin() < PATIENCE / 10 {
                sleep(Duration::from_millis(5)).await;
            }
        });
        let stats = connection.stats();
        (stats.frame_rx.reset_stream, stats.udp_rx.bytes)
    }
}

#[test]
fn a_receiver_that_does_not_read_says_nothing_of_the_file() {
    let size = limits::STREAM_WINDOW_BYTES as usize + (8 << 20);
    let owner = Owner::with(&[size], Duration::from_millis(200));
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
    let look_at = |looks: &Looks, number: usize| looks.look_at(hashes[number], &GroupRanges::all(40 << 10), 1);

    let looks = Looks::new(owner.uploads.share.clone());
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

    let looks = Looks::new(owner.uploads.share.clone());
    look_at(&looks, 0);
    eventually("the look is over", || looks.count() == 0);
    assert_eq!(owner.hashed_bytes(), before + sizes[0] as u64);
}

#[test]
fn what_was_taken_in_is_not_sent_to_an_asker_that_gives_up() {
    // The window takes all of it in; over the wire goes little, as long as nobody acknowledges it.
    let size = 200 << 10;
    let owner = Owner::with(&[size - 1, size, size + 1, 8 << 20], PATIENCE);
    let contents = (0..3).map(|number| (owner.hashes[number], (size + number - 1) as u64)).collect();
    let all =
        |of: usize| eventually("all is taken in", || owner.uploads.bytes() > of as u64 && owner.uploads.active() == 0);

    let asker = owner.asker("packs");
    let pack = asker.ask_for_pack(contents);
    all(3 * size);
    let (resets, came) = asker.give_up(pack);
    assert!(resets == 1 && came < 3 * size as u64, "{resets} resets, {came} bytes came of a pack");

    let asker = owner.asker("files");
    let file = asker.ask(owner.hashes[3]);
    all(3 * size + (8 << 20));
    let (resets, came) = asker.give_up(file);
    assert!(resets == 1 && came < 8 << 20, "{resets} resets, {came} bytes came of a file");
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
