//! Owners and swarm members with a valid certificate that misbehave: they send wrong bytes, stall after they accepted a
//! request, announce a wrong size, leave the swarm, or describe directories wrongly. A download must be right all the
//! same, or fail and keep nothing wrong.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    num::NonZeroU64,
    os::unix::fs::{DirBuilderExt, MetadataExt as _, PermissionsExt as _},
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use peer::{
    download::params::{MAX_SWARM_FAN_OUTS, RECEIVERS_STALL},
    store::{Share, ShareOptions},
    transfer::throttle::Throttle,
};
use rustix::process::Signal;
use shared::{
    content::{ContentHash, DIRECTORY_HASH, FileMeta},
    limits::{CALL_DEADLINE, FILES_PER_PAGE, GROUP_BYTES},
    rpc::{
        peer::{DirectoryMeta, PeerServiceClient},
        tracker::WireFile,
    },
    time::Clock,
};
use tokio::sync::mpsc;

mod common;
use common::{
    Network, content_hash,
    fake_peer::{
        self, Running,
        corrupt::{CorruptOwner, Fault},
        departing::DepartingMember,
        directories::{HostileDirectories, Reply},
        unstable::UnstableMember,
    },
    files, noise,
    process::Program,
};

const NAME: &str = "a.bin";

/// Starts an owner of `content` with a fault.
async fn start_corrupt(network: &Network, id: &str, fault: Fault, content: &[u8]) -> Running {
    let (hash, size) = (content_hash(content), content.len() as u64);
    let file = WireFile { name: NAME.to_owned(), size, hash, mtime_micros: 0, executable: false };
    let contents = BTreeMap::from([(hash, content.to_vec())]);
    fake_peer::start(network, id, CorruptOwner { fault, contents }, vec![file]).await
}

/// Content of the file [`NAME`].
fn content() -> Vec<u8> {
    noise(6 << 20, 11)
}

fn seconds_of<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let clock = Clock::start();
    let value = work();
    (value, clock.now().since_origin().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_is_right_although_three_of_four_owners_are_corrupt() {
    let network = Network::start();
    let content = content();
    network.put("peer1", NAME, &content);
    let _honest = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let _corrupt = [
        start_corrupt(&network, "bytes", Fault::Bytes, &content).await,
        start_corrupt(&network, "stall", Fault::Stall, &content).await,
        start_corrupt(&network, "size", Fault::Size, &content).await,
    ];
    network.wait_for_owners("peer2", 1, 4);
    let done = network.json("peer2", &["download", NAME]);
    assert!(fs::read(network.shared("peer2", NAME)).unwrap() == content);
    let sources = done["files"][0]["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 1, "no byte of a corrupt owner counts: {done}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download_from_corrupt_owner_alone_names_it_and_keeps_nothing() {
    let network = Network::start();
    let _tracker = network.headless("peer1");
    let _corrupt = start_corrupt(&network, "bytes", Fault::Bytes, &content()).await;
    network.json_until("peer1", &["listAll"], |listing| listing["files"][0]["name"] == NAME);
    let failed = network.run("peer1", &["download", NAME, "--json"]);
    assert_eq!(failed.status, Some(1), "{failed:?}");
    let errors = common::without_election_reports(&failed.err);
    let error: serde_json::Value = serde_json::from_str(&errors).unwrap();
    assert_eq!(error["error"]["code"], "verification_failed", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("bytes: wrong bytes at offset 0"), "{error}");
    assert!(!network.shared("peer1", NAME).exists());
    assert_eq!(files(&network.json("peer1", &["list"])).len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_file_that_fails_does_not_keep_the_others_of_its_directory_away() {
    const OTHERS: u8 = 12;
    let network = Network::start();
    for number in 0..OTHERS {
        network.put("peer1", &format!("tree/f{number:02}"), &noise(300 << 10, number.into()));
    }
    let _honest = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let content = noise(300 << 10, 99);
    let (hash, size) = (content_hash(&content), content.len() as u64);
    // The first by name: the request for it ends while those for the others run or have not begun.
    let file = WireFile { name: "tree/a".to_owned(), size, hash, mtime_micros: 0, executable: false };
    let owner = CorruptOwner { fault: Fault::Bytes, contents: BTreeMap::from([(hash, content)]) };
    let _corrupt = fake_peer::start(&network, "bytes", owner, vec![file]).await;
    network.wait_for_files("peer2", usize::from(OTHERS) + 1);
    let failed = network.run("peer2", &["download", "tree/", "--json"]);
    assert_eq!(failed.status, Some(1), "{failed:?}");
    let errors = common::without_election_reports(&failed.err);
    let error: serde_json::Value = serde_json::from_str(&errors).unwrap();
    assert_eq!(error["error"]["code"], "verification_failed", "{error}");
    for number in 0..OTHERS {
        let arrived = fs::read(network.shared("peer2", &format!("tree/f{number:02}"))).ok();
        assert!(arrived == Some(noise(300 << 10, number.into())), "tree/f{number:02} did not arrive");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download_from_unstable_member_ends_after_a_few_tries() {
    let network = Network::start();
    let _receiver = network.headless("peer1");
    network.tracker("peer1");
    // A name that nobody has takes the same questions to the tracker and the known peers: what remains is the swarm.
    let (_, lookup_seconds) = seconds_of(|| network.run("peer1", &["download", "nowhere.bin", "--json"]));
    let hash = ContentHash([7; 32]);
    let file = FileMeta { name: NAME.parse().unwrap(), size: 2 << 20, hash, mtime_micros: 0, executable: false };
    let member = UnstableMember::of(file);
    let _member = fake_peer::start(&network, "unstable", member.clone(), Vec::new()).await;
    let (failed, seconds) = seconds_of(|| network.run("peer1", &["download", NAME, "--json"]));
    assert_eq!(failed.status, Some(1), "{failed:?}");
    assert!(failed.err.contains("no_owner"), "{failed:?}");
    assert!(failed.err.contains("none of 1 who were receiving it too"), "{failed:?}");
    let bound = 2.0 * (RECEIVERS_STALL.as_secs_f64() + lookup_seconds);
    assert!(seconds < bound, "{seconds:.1} s; the lookup alone takes {lookup_seconds:.1} s");
    let calls = member.receiving_calls.load(Ordering::Relaxed);
    let streams = member.swarm_streams.load(Ordering::Relaxed);
    assert!(
        streams > 0 && calls <= 1 + MAX_SWARM_FAN_OUTS && streams <= 10,
        "{calls} calls of `receiving`, {streams} swarm streams"
    );
}

/// Shortest time for which a download that wrongly waits for a member that left goes on after that: it waits for
/// [`RECEIVERS_STALL`] from the moment that nothing more comes, and the member stays for up to a second after that.
const WRONG_WAIT: Duration = Duration::from_secs(RECEIVERS_STALL.as_secs() - 1);

/// Time for which the download of a receiver goes on after the only other member, which had half of the file, left the
/// swarm. With `freeze_tracker` the tracker is stopped before the member leaves, so that the receiver then still waits
/// for the tracker's answer.
async fn time_after_last_member_left(freeze_tracker: bool) -> Duration {
    let network = Network::start();
    let tracker = Arc::new(Mutex::new(network.headless("tracker")));
    network.json_until("tracker", &["tracker"], |seat| seat["peer"] == "tracker");
    let _receiver = network.headless("receiver");
    let content = content();
    let size = content.len() as u64;
    let clock = Clock::start();
    let left = Arc::new(OnceLock::new());
    let to_freeze: Arc<Mutex<Program>> = tracker.clone();
    let hash = content_hash(&content);
    let member = DepartingMember {
        file: FileMeta { name: NAME.parse().unwrap(), size, hash, mtime_micros: 0, executable: false },
        share: share_with(&network.folder().join("member"), &content).await,
        groups: size / GROUP_BYTES / 2,
        stays: if freeze_tracker { Duration::ZERO } else { Duration::from_secs(1) },
        before_last: Box::new(move || {
            if freeze_tracker {
                to_freeze.lock().unwrap().signal(Signal::STOP);
            }
        }),
        clock,
        left: left.clone(),
        sent_groups: AtomicU64::new(0),
    };
    let _member = fake_peer::start(&network, "member", member, Vec::new()).await;
    let failed = network.run("receiver", &["download", NAME, "--json"]);
    let ended_at = clock.now();
    assert_eq!(failed.status, Some(1), "{failed:?}");
    assert!(failed.err.contains("no_owner"), "{failed:?}");
    assert!(failed.err.contains("none of 1 who were receiving it too"), "{failed:?}");
    let left_at = *left.get().expect("the member served its part and left");
    tracker.lock().unwrap().signal(Signal::CONT);
    ended_at.since(left_at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download_ends_early_when_last_member_left_while_tracker_was_asked() {
    let took = time_after_last_member_left(true).await;
    assert!(took < WRONG_WAIT, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn download_ends_early_when_last_member_left_while_it_was_waited_for() {
    let took = time_after_last_member_left(false).await;
    assert!(took < WRONG_WAIT, "{took:?}");
}

/// Contents of forty files by their hashes, and the files, in three directories and beside an empty one, as a fake peer
/// announces them.
fn tree() -> (BTreeMap<ContentHash, Vec<u8>>, Vec<WireFile>) {
    let mut contents = BTreeMap::new();
    let mut files: Vec<_> = (0..40_u32)
        .map(|number| {
            let content = format!("content {number}").repeat(100).into_bytes();
            let (hash, size) = (content_hash(&content), content.len() as u64);
            contents.insert(hash, content);
            let name = format!("tree/{}/{number}", number % 3);
            WireFile { name, size, hash, mtime_micros: 0, executable: false }
        })
        .collect();
    let name = "tree/void".to_owned();
    files.push(WireFile { name, size: 0, hash: DIRECTORY_HASH, mtime_micros: i64::MIN, executable: false });
    (contents, files)
}

/// Mode with the special permission bits, and modification time in nanoseconds since 1970, of paths that a download
/// must not touch.
fn surroundings(paths: &[&Path]) -> Vec<(u32, i64)> {
    paths
        .iter()
        .map(|path| path.symlink_metadata().unwrap())
        .map(|of| (of.mode(), of.mtime() * 1_000_000_000 + of.mtime_nsec()))
        .collect()
}

/// Hostile replies to `directories`.
fn hostile_replies() -> Vec<Reply> {
    let absurd = metadata(&[0, 0o7777, 0o777, u16::MAX, 0o6000], &[i64::MIN, -1, i64::MAX, i64::MAX / 1_000_000]);
    vec![
        Reply::Entries(absurd.clone(), 0),
        Reply::Entries(absurd.clone(), 50_000),
        Reply::Entries(absurd, -2),
        Reply::Entries(Vec::new(), 0),
        Reply::Silence,
        Reply::Raw(vec![0xff; 4096]),
        Reply::Raw([&[0, 0, 16, 0][..], &[0x80; 4096]].concat()),
        Reply::Raw(Vec::new()),
    ]
}

/// Every mode with every time.
fn metadata(modes: &[u16], times: &[i64]) -> Vec<Option<DirectoryMeta>> {
    let of = |&mode| times.iter().map(move |&mtime_micros| Some(DirectoryMeta { mtime_micros, mode }));
    modes.iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_directory_metadata_neither_stops_a_download_nor_touches_other_paths() {
    /// A reply that is waited for delays every try, a busy machine only some.
    const TRIES: usize = 4;
    let network = Network::start();
    let _receiver = network.headless("receiver");
    let (contents, announced) = tree();
    // Serves packs correctly.
    let corrupt = CorruptOwner { fault: Fault::Stall, contents: contents.clone() };
    let owner = HostileDirectories {
        files: Arc::new(corrupt),
        reply: Arc::new(Mutex::new(Reply::Silence)),
        calls: Arc::default(),
    };
    let _owner = fake_peer::start(&network, "owner", owner.clone(), announced.clone()).await;
    network.wait_for_files("receiver", announced.len());

    let beside = network.folder().join("beside");
    fs::create_dir(&beside).unwrap();
    let new_mode = beside.metadata().unwrap().permissions().mode() & 0o7777;
    fs::set_permissions(&beside, Permissions::from_mode(0o755)).unwrap();
    // A peer's first download of directories makes this folder, which changes the time of the share.
    let hidden = network.shared("receiver", ".brasa");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(hidden).unwrap();
    for (number, reply) in hostile_replies().into_iter().enumerate() {
        *owner.reply.lock().unwrap() = reply;
        let mut tries = 0..TRIES;
        loop {
            let attempt = tries.next().unwrap_or_else(|| {
                panic!("{number}: every try took {CALL_DEADLINE:?}, as if the download waited for the reply")
            });
            let calls = owner.calls.load(Ordering::Relaxed);
            let outside = network.folder().join(format!("outside{number}-{attempt}"));
            fs::create_dir_all(outside.join("tree/0")).unwrap();
            fs::set_permissions(outside.join("tree/0"), Permissions::from_mode(0o751)).unwrap();
            let around = [&beside, network.folder(), &network.shared("receiver", "")];
            let before = surroundings(&around);
            let (_, seconds) =
                seconds_of(|| network.json("receiver", &["download", "tree/", "--to", outside.to_str().unwrap()]));
            assert!(owner.calls.load(Ordering::Relaxed) > calls, "{number}: the owner was asked");
            for file in announced.iter().filter(|file| file.hash != DIRECTORY_HASH) {
                assert!(fs::read(outside.join(&file.name)).unwrap() == contents[&file.hash], "{number}: {}", file.name);
            }
            assert_eq!(surroundings(&around), before, "{number}");
            let mode = |path: &str| outside.join(path).metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!((mode(""), mode("tree/0")), (new_mode, 0o751), "{number}: existing folders keep their modes");
            for new in ["tree/1", "tree/2", "tree/void"] {
                let mode = mode(new);
                assert!(mode & 0o700 == 0o700 && mode & !new_mode == 0, "{number}: {new} has {mode:o}");
            }
            if seconds < CALL_DEADLINE.as_secs_f64() {
                break;
            }
        }
    }
    // The share's directories are scanned and announced, with such times too.
    *owner.reply.lock().unwrap() = Reply::Entries(metadata(&[0o7777], &[i64::MIN, i64::MAX]), 0);
    network.json("receiver", &["download", "tree/"]);
    assert_eq!(files(&network.json("receiver", &["list"])).len(), announced.len());
    network.wait_for_owners("receiver", announced.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_call_discloses_shared_directories_only() {
    let network = Network::start();
    network.put("owner", "tree/deep/a", b"a");
    fs::create_dir_all(network.shared("owner", "tree/hides/.git")).unwrap();
    fs::create_dir_all(network.shared("owner", ".hidden/b")).unwrap();
    std::os::unix::fs::symlink("/", network.shared("owner", "tree/root")).unwrap();
    let _owner = network.headless("owner");
    network.wait_for_own_files("owner", 1);
    let session = fake_peer::peer_session(&network, "asker").await;
    // The only peer is the tracker.
    let owner = fake_peer::target_of(&fake_peer::tracker(&session).await);
    let ask = async |names: Vec<String>| {
        let ask = |peer: PeerServiceClient, cx| async move { peer.directories(cx, names).await };
        session.connections.call(&owner, CALL_DEADLINE, ask).await.unwrap()
    };
    let shared = ["tree", "tree/deep"];
    let long = "x".repeat(500_000);
    let others = [
        "",
        ".",
        "..",
        "/",
        "/etc",
        "tree/",
        "tree/.",
        "tree/..",
        "tree/../..",
        "tree/deep/../..",
        "../owner/tree",
        "tree//deep",
        "tree/deep/a",
        "tree/hides",
        "tree/hides/.git",
        "tree/root",
        "tree/root/etc",
        ".brasa",
        ".brasa/partial",
        ".hidden/b",
        "tree\0",
        "*",
        &long,
    ];
    let answers = ask(shared.into_iter().chain(others).map(str::to_owned).collect()).await;
    let known: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| answer.is_some()).map(|(at, _)| at).collect();
    assert_eq!((known, answers.len()), (vec![0, 1], shared.len() + others.len()));
    let many = ask(vec!["tree".to_owned(); 50_000]).await;
    assert_eq!((many.len(), many.iter().all(Option::is_some)), (FILES_PER_PAGE, true), "a reply is bounded by a page");
}

/// A share outside of the network with `content` as [`NAME`].
async fn share_with(folder: &Path, content: &[u8]) -> Share {
    let share = folder.join("share");
    fs::create_dir_all(&share).unwrap();
    fs::write(share.join(NAME), content).unwrap();
    let (events, mut changes) = mpsc::channel(64);
    let share = Share::open(&share, &folder.join("state"), ShareOptions::default(), events).await.unwrap();
    share.settled().await.unwrap();
    tokio::spawn(async move { while changes.recv().await.is_some() {} });
    share
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_corrupt_among_four_owners_are_dropped_and_cost_little_time() {
    const RATE: u64 = 1 << 20;
    let network = Network::start();
    let content = content();
    let honest = ["honest1", "honest2"];
    honest.iter().for_each(|owner| network.put(owner, NAME, &content));
    let _honest = honest.map(|owner| network.headless_with(owner, &["--limit-up", "1MiB"]));
    let receiver = network.headless("receiver");
    // A destination outside of the share makes the receiver fetch everything each time. The owners' caps dominate the
    // time, not the machine.
    let timed = |destination: &str| {
        let to = network.folder().join(destination);
        let (done, seconds) =
            seconds_of(|| network.json("receiver", &["download", NAME, "--to", to.to_str().unwrap()]));
        assert!(fs::read(&to).unwrap() == content, "{done}");
        seconds
    };
    network.wait_for_owners("receiver", 1, 2);
    let alone = timed("from-two");
    assert!(alone > 2.0, "6 MiB at 2 MiB/s took {alone:.2} s");

    let share = share_with(&network.folder().join("corrupt"), &content).await;
    let fault = || Fault::BitInEachPiece(share.clone(), Throttle::new(NonZeroU64::new(RATE)));
    let _corrupt = [
        start_corrupt(&network, "corrupt1", fault(), &content).await,
        start_corrupt(&network, "corrupt2", fault(), &content).await,
    ];
    network.wait_for_owners("receiver", 1, 4);
    let with_corrupt = timed("from-four");
    assert!(with_corrupt < 1.5 * alone, "{with_corrupt:.2} s with two corrupt owners, {alone:.2} s without");
    eprintln!("6 MiB from 2 honest owners at 1 MiB/s: {alone:.2} s; with 2 corrupt owners more: {with_corrupt:.2} s");
    receiver.signal(Signal::TERM);
    let log = receiver.wait().err;
    for owner in ["corrupt1", "corrupt2"] {
        let dropped = |line: &str| line.contains("dropped a provider") && line.contains(&format!("provider={owner} "));
        assert_eq!(
            log.lines().filter(|line| dropped(line) && line.contains("SentCorruptData")).count(),
            1,
            "{owner}: {log}"
        );
    }
    assert!(!log.contains("provider=honest"), "{log}");
}
