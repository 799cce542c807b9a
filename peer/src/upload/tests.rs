//! The end of uploads, as the receiver and the share observe it.
//!
//! Owner and receiver have separate runtimes. The receiver's runtime runs on the thread of the test: between two calls
//! of [`Client::run`] the receiver reads and acknowledges nothing.

use crate::upload::params;
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

/// Deadline of every wait, long enough for a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Lifetime of the certificates.
const LIFE: Duration = Duration::from_secs(3600);

/// Waits until `what` holds, without running the receiver's runtime.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::start();
    while !holds() {
        assert!(clock.now().since_origin() < DEADLINE, "timed out: {what}");
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
    /// Connection of each stream, in the order of the streams.
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

/// Peer with one upload slot that shares files of pseudo-random bytes.
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
    /// Starts an owner with files of these sizes and `silence` as the deadline of its writes.
    fn with(sizes: &[usize], silence: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        fs::create_dir(&share).unwrap();
        for (number, size) in sizes.iter().enumerate() {
            let path = share.join(number.to_string());
            fs::write(&path, noise(*size)).unwrap();
            // The share does not hash a large file right after a write.
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
            // No file is hashed a second time because of the time of its first one.
            let options = ShareOptions { racy_window: Duration::ZERO, ..ShareOptions::default() };
            let share = Share::open(&share, &state, options, events).await.unwrap();
            tokio::spawn(async move { while changes.recv().await.is_some() {} });
            share.settled().await.unwrap();
            let stats = UploadStats::new(Arc::new(Machine::default()), 1);
            let mut uploads =
                Uploads::new(share, UploadLimits { active: 1, ..UploadLimits::default() }, Throttle::default(), stats);
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

    /// Waits until the share is idle. Returns the number of bytes that it has hashed since its start.
    fn hashed_bytes(&self) -> u64 {
        let settled = async { timeout(DEADLINE, self.uploads.share.settled()).await.expect("the share is still busy") };
        self.runtime.block_on(settled).unwrap();
        self.uploads.share.stats().hashed_bytes
    }

    /// Changes a byte in a pair of the outboard of a content: pair `number`, or the last. The share would detect a
    /// change of the file itself at once; an audit compares the file with the outboard.
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
        match self.uploads.slots.request(&"holder".parse().unwrap(), usize::MAX) {
            Some((slot, None)) => slot,
            _ => panic!("the slot is taken"),
        }
    }

    /// Returns the connection of the latest stream.
    fn last_connection(&self) -> quinn::Connection {
        self.connections.lock().unwrap().last().unwrap().clone()
    }

    /// Creates a member.
    fn client(&self, id: &str) -> Client {
        self.client_on(&Arc::new(Builder::new_current_thread().enable_all().build().unwrap()), id)
    }

    /// Creates a member that grants no flow-control credit on its streams.
    fn client_without_credit(&self, id: &str) -> Client {
        let client = self.client(id);
        let identity = self.authority.identity(&Role::Peer(id.parse().unwrap()), LIFE).unwrap();
        let mut config = endpoint::client_config(trust::member_client(&identity, &[ALPN]).unwrap()).unwrap();
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(0_u32.into()).keep_alive_interval(Some(Duration::from_millis(500)));
        config.transport_config(Arc::new(transport));
        let connections = client.runtime.block_on(async {
            let tls = trust::member_client(&identity, &[ALPN]).unwrap();
            let mut endpoint = endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), None, tls).unwrap().endpoint;
            endpoint.set_default_client_config(config);
            Connections::new(endpoint)
        });
        Client { connections, ..client }
    }

    /// Creates a member on a shared runtime.
    fn client_on(&self, runtime: &Arc<Runtime>, id: &str) -> Client {
        let identity = self.authority.identity(&Role::Peer(id.parse().unwrap()), LIFE).unwrap();
        let client = trust::member_client(&identity, &[ALPN]).unwrap();
        let connections = runtime.block_on(async {
            Connections::new(endpoint::bind((Ipv4Addr::LOCALHOST, 0).into(), None, client).unwrap().endpoint)
        });
        Client { connections, target: self.target.clone(), runtime: runtime.clone() }
    }
}

struct Client {
    connections: Connections,
    target: Target,
    runtime: Arc<Runtime>,
}

impl Client {
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { timeout(DEADLINE, work).await.expect("timed out") })
    }

    /// Requests a complete content and reads up to the start of the data.
    fn download(&self, hash: ContentHash) -> quinn::RecvStream {
        let mut recv = self.request(hash);
        self.run(async { while recv.read_u8().await.unwrap() != BULK_BEGINS {} });
        recv
    }

    /// Requests a complete content and reads the owner's answer.
    fn request(&self, hash: ContentHash) -> quinn::RecvStream {
        self.run(async {
            let (mut send, mut recv) = self.connections.bulk(&self.target).await.unwrap();
            write_header(&mut send, &BulkRequest { hash, groups: Vec::new() }).await.unwrap();
            send.finish().unwrap();
            read_header::<Result<BulkAccepted, BulkRefusal>>(&mut recv).await.unwrap().unwrap();
            recv
        })
    }

    /// Requests a pack of contents with their sizes and reads the owner's answer.
    fn request_pack(&self, contents: Vec<(ContentHash, u64)>) -> quinn::RecvStream {
        self.run(async {
            let (mut send, mut recv) = self.connections.pack(&self.target).await.unwrap();
            write_header(&mut send, &PackRequest::new(contents).unwrap()).await.unwrap();
            send.finish().unwrap();
            read_header::<Result<PackAccepted, BulkRefusal>>(&mut recv).await.unwrap().unwrap();
            recv
        })
    }

    /// Stops a stream whose data the owner has written completely, and waits until the owner has reset it. Between the
    /// arrival of the stop and the reset the receiver acknowledges nothing, so the owner sends at most a congestion
    /// window more, however late its task runs.
    fn stop(&self, mut recv: quinn::RecvStream, owner: &quinn::Connection) {
        let connection = self.run(self.connections.connection(&self.target)).unwrap();
        self.run(async {
            recv.stop(BulkAbort::Enough.to_varint()).unwrap();
            while owner.stats().frame_rx.stop_sending == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        });
        let clock = Clock::start();
        while owner.stats().frame_tx.reset_stream == 0 {
            assert!(clock.now().since_origin() < DEADLINE / 6, "no reset: {:?}", owner.stats());
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
fn upload_to_a_receiver_that_does_not_read_is_reset_without_suspicion() {
    let size = limits::STREAM_WINDOW_BYTES as usize + (8 << 20);
    // Longer than any pause of this thread between the start of the second upload and its first read.
    let owner = Owner::with(&[size], Duration::from_secs(2));
    let client = owner.client("receiver");
    let mut recv = client.download(owner.hashes[0]);
    let code = client.run(recv.received_reset()).unwrap().expect("the stream was not reset");
    assert_eq!(BulkAbort::from_varint(code), Some(BulkAbort::Stopped));
    eventually("the upload ends", || owner.uploads.active() == 0);
    assert_eq!(owner.hashed_bytes(), size as u64, "the share hashed the file again");
    let mut again = client.download(owner.hashes[0]);
    let first = client.run(async { again.read_chunk(1, true).await.unwrap().unwrap().bytes });
    assert_eq!(first.len(), 1, "the second upload sent nothing");
}

#[test]
fn abort_code_is_changed_only_for_a_changed_file() {
    let broken = || io::Error::from(io::ErrorKind::TimedOut);
    assert_eq!(ServeError::Changed { offset: 0 }.abort(), BulkAbort::Changed);
    for error in [ServeError::Disk(broken()), ServeError::Stream(broken()), ServeError::Stalled(Duration::ZERO)] {
        assert_eq!(error.abort(), BulkAbort::Stopped, "{error}");
    }
}

/// Downloads a part of a 40 MiB content, damages a pair of its outboard, and reports wrong data. Returns how often the
/// owner has hashed the file after that.
fn hashed_after_a_complaint(damaged: Option<u64>) -> u64 {
    let size = 40 << 20;
    let owner = Owner::with(&[size], DEADLINE);
    let client = owner.client("receiver");
    let mut recv = client.download(owner.hashes[0]);
    client.run(recv.read_chunk(1, true)).unwrap().expect("no data");
    owner.damage(owner.hashes[0], damaged);
    client.run(async {
        recv.stop(BulkAbort::Wrong.to_varint()).unwrap();
        // Runs the client until the owner has received the report.
        while owner.uploads.active() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    });
    eventually("the audit ends", || owner.uploads.audit.count() == 0);
    owner.hashed_bytes() / size as u64
}

#[test]
fn complaint_makes_the_owner_audit_only_what_was_sent() {
    // The last groups were not sent, because the receiver does not read.
    assert_eq!(hashed_after_a_complaint(None), 1, "the damage is outside of what was sent");
    assert_eq!(hashed_after_a_complaint(Some(6)), 2, "the damage is in what was sent");
}

#[test]
fn audits_are_bounded_and_stop_with_the_peer() {
    let sizes: Vec<_> = (0..=params::MAX_AUDITS).map(|number| (40 << 10) + number).collect();
    let owner = Owner::with(&sizes, DEADLINE);
    let before = owner.hashed_bytes();
    let hashes = &owner.hashes;
    hashes.iter().for_each(|&hash| owner.damage(hash, None));
    let _inside = owner.runtime.enter();
    let start = |audit: &ContentAudit, number: usize| audit.start(hashes[number], &GroupRanges::all(40 << 10), 1);

    let audit = ContentAudit::new(owner.uploads.share.clone());
    let first = audit.begin(hashes[0]).unwrap();
    start(&audit, 0);
    assert_eq!(audit.count(), 1, "the content is audited already");
    let others: Vec<_> = hashes[1..params::MAX_AUDITS].iter().map(|&hash| audit.begin(hash).unwrap()).collect();
    start(&audit, params::MAX_AUDITS);
    assert_eq!(audit.count(), params::MAX_AUDITS, "the limit is reached");
    drop((first, others));
    assert_eq!((audit.count(), owner.hashed_bytes()), (0, before));

    audit.stop();
    start(&audit, 0);
    eventually("the audit ends", || audit.count() == 0);
    assert_eq!(owner.hashed_bytes(), before, "a stopped audit had a result");

    let audit = ContentAudit::new(owner.uploads.share.clone());
    start(&audit, 0);
    eventually("the audit ends", || audit.count() == 0);
    assert_eq!(owner.hashed_bytes(), before + sizes[0] as u64);
}

/// An upload slot that is free only once the client does not run any more keeps the client from acknowledging data: the
/// owner writes all of it into the stream, whose window is larger, and can send no more than a congestion window.
#[test]
fn written_data_is_not_sent_after_the_receiver_stops_the_stream() {
    const PACKED: usize = 200 << 10;
    const FILE: usize = 8 << 20;
    let sizes: Vec<_> = (0..40).map(|number| PACKED + number).chain([FILE]).collect();
    let owner = Owner::with(&sizes, DEADLINE);
    let contents: Vec<_> = owner.hashes.iter().zip(&sizes).map(|(&hash, &size)| (hash, size as u64)).collect();
    let (file, packed) = contents.split_last().unwrap();
    let in_pack: u64 = packed.iter().map(|(_, size)| size).sum();
    let check = |client: &Client, recv, held, written: u64| {
        let before = owner.uploads.bytes();
        drop(held);
        eventually("the owner has written everything", || {
            owner.uploads.bytes() - before >= written && owner.uploads.active() == 0
        });
        let connection = owner.last_connection();
        client.stop(recv, &connection);
        let sent = connection.stats().udp_tx.bytes;
        assert!(sent < written / 2, "the owner sent {sent} of {written} bytes");
    };

    let (client, held) = (owner.client("packs"), owner.hold_slot());
    let pack = client.request_pack(packed.to_vec());
    check(&client, pack, held, in_pack);

    let (client, held) = (owner.client("files"), owner.hold_slot());
    let stream = client.request(file.0);
    check(&client, stream, held, file.1);
}

#[test]
fn slow_receiver_yields_its_slot_and_completes_its_download() {
    let size = limits::STREAM_WINDOW_BYTES as usize + (8 << 20);
    let owner = Owner::with(&[size, 1 << 20], DEADLINE);
    let slow = owner.client("slow");
    let mut recv = slow.download(owner.hashes[0]);
    let other = owner.client_on(&slow.runtime, "other");
    // Returns only when the slow receiver has lost the slot.
    let mut served = other.download(owner.hashes[1]);
    let (first, second) = slow.run(async {
        let second = served.read_to_end(2 << 20).await.unwrap().len();
        (recv.read_to_end(2 * size).await.unwrap().len(), second)
    });
    assert!(first > size && second > 1 << 20, "incomplete: {first}, {second} bytes");
}

/// The connection stays open, so only the deadline for writing the answer can release the slot.
#[test]
fn upload_to_a_receiver_without_flow_control_credit_releases_its_slot() {
    let owner = Owner::with(&[100 << 10, 2 << 20], Duration::from_secs(1));
    let load = || owner.uploads.slots.load();
    for (number, pack) in [(0, false), (1, true)] {
        let silent = owner.client_without_credit(&format!("silent{number}"));
        let streams = silent.run(async {
            let (mut send, recv) = if pack {
                let (mut send, recv) = silent.connections.pack(&silent.target).await.unwrap();
                let contents = vec![(owner.hashes[0], 100 << 10)];
                write_header(&mut send, &PackRequest::new(contents).unwrap()).await.unwrap();
                (send, recv)
            } else {
                let (mut send, recv) = silent.connections.bulk(&silent.target).await.unwrap();
                let request = BulkRequest { hash: owner.hashes[0], groups: Vec::new() };
                write_header(&mut send, &request).await.unwrap();
                (send, recv)
            };
            send.finish().unwrap();
            while load() != (1, 0) {
                sleep(Duration::from_millis(5)).await;
            }
            while load() != (0, 0) {
                sleep(Duration::from_millis(5)).await;
            }
            (send, recv)
        });
        drop(streams);
    }
    owner.client("other").download(owner.hashes[1]);
}
