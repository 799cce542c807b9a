//! Owners that are not what they say: one that sends other bytes, one that accepts and stalls, one that lies about the
//! size, one that lies about its directories. Each is a member with a proper certificate; the download must be right all the same, or fail
//! and keep nothing.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

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
    store::{Share, ShareOptions},
    transfer::throttle::Pace,
};
use rustix::process::Signal;
use shared::{
    content::{ContentHash, DIRECTORY_HASH, FileMeta},
    id::Role,
    limits::{CALL_DEADLINE, FILES_PER_PAGE, GROUP_BYTES, MAX_SWARM_FAN_OUTS, SWARM_PATIENCE},
    net::Target,
    rpc::{
        peer::{DirectoryMeta, PeerServiceClient},
        tracker::WireFile,
    },
    time::Clock,
};
use tokio::sync::mpsc;

mod common;
use common::{
    Network,
    describer::{Describer, Description},
    flapper::Flapper,
    impostor::{self, Running},
    leaver::Leaver,
    liar::{Liar, Lie},
    process::Program,
};

const NAME: &str = "a.bin";

async fn start(network: &Network, id: &str, lie: Lie, content: &[u8], hash: ContentHash) -> Running {
    let size = content.len() as u64;
    let file = WireFile { name: NAME.to_owned(), size, hash, mtime_micros: 0, executable: false };
    let contents = BTreeMap::from([(hash, content.to_vec())]);
    impostor::start(network, id, Liar { lie, contents }, vec![file]).await
}

fn content() -> (Vec<u8>, ContentHash) {
    let mut content = vec![0; 6 << 20];
    fastrand::Rng::with_seed(11).fill(&mut content);
    let hash = ContentHash(*blake3::hash(&content).as_bytes());
    (content, hash)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_are_right_although_three_of_four_owners_are_not() {
    let network = Network::start();
    let (content, hash) = content();
    network.put("peer1", NAME, &content);
    let _honest = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let _liars = [
        start(&network, "bytes", Lie::Bytes, &content, hash).await,
        start(&network, "stall", Lie::Stall, &content, hash).await,
        start(&network, "size", Lie::Size, &content, hash).await,
    ];
    network.json_until("peer2", &["listAll"], |listing| {
        listing["files"][0]["owners"].as_array().is_some_and(|owners| owners.len() == 4)
    });
    let done = network.json("peer2", &["download", NAME]);
    assert!(fs::read(network.shared("peer2", NAME)).unwrap() == content);
    let sources = done["files"][0]["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 1, "nothing of the liars counts: {done}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_alone_is_named_and_nothing_is_kept() {
    let network = Network::start();
    let (content, hash) = content();
    let _tracker = network.headless("peer1");
    let _liar = start(&network, "bytes", Lie::Bytes, &content, hash).await;
    network.json_until("peer1", &["listAll"], |listing| listing["files"][0]["name"] == NAME);
    let ended = network.run("peer1", &["download", NAME, "--json"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["error"]["code"], "verification_failed", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("bytes: wrong bytes at offset 0"), "{error}");
    assert!(!network.shared("peer1", NAME).exists());
    assert_eq!(network.json("peer1", &["list"])["files"].as_array().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_comes_and_goes_keeps_nobody_busy_for_ever() {
    let network = Network::start();
    let _receiver = network.headless("peer1");
    let hash = ContentHash([7; 32]);
    let file = FileMeta { name: NAME.parse().unwrap(), size: 2 << 20, hash, mtime_micros: 0, executable: false };
    let flapper = Flapper::of(file);
    let _flapper = impostor::start(&network, "flapper", flapper.clone(), Vec::new()).await;
    let clock = Clock::start();
    let ended = network.run("peer1", &["download", NAME, "--json"]);
    let seconds = clock.now().since_origin().as_secs_f64();
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("no_owner") && ended.err.contains("none of 1 who were receiving it too"), "{ended:?}");
    // Before it begins the tracker and the known peers are asked for the name.
    assert!(seconds < SWARM_PATIENCE.as_secs_f64() + 5.0, "{seconds:.1} s");
    let (asked, talks) = (flapper.asked.load(Ordering::Relaxed), flapper.talks.load(Ordering::Relaxed));
    assert!(
        talks > 0 && asked <= 1 + MAX_SWARM_FAN_OUTS && talks <= 10,
        "asked {asked} times, talked to {talks} times"
    );
}

/// How long the download of a newcomer goes on after the only other receiver, which had half of the file, has left. With `is_frozen` the
/// tracker is stopped from then on, so that the newcomer is still waiting for its answer when the receiver leaves.
async fn goes_on_without_the_last_receiver(is_frozen: bool) -> Duration {
    let network = Network::start();
    let tracker = Arc::new(Mutex::new(network.headless("tracker")));
    let _newcomer = network.headless("newcomer");
    let (content, hash) = content();
    let size = content.len() as u64;
    let clock = Clock::start();
    let left = Arc::new(OnceLock::new());
    let frozen: Arc<Mutex<Program>> = tracker.clone();
    let leaver = Leaver {
        file: FileMeta { name: NAME.parse().unwrap(), size, hash, mtime_micros: 0, executable: false },
        share: share_with(&network.folder().join("leaver"), &content).await,
        groups: size / GROUP_BYTES / 2,
        stays: if is_frozen { Duration::ZERO } else { Duration::from_secs(1) },
        before_last: Box::new(move || {
            if is_frozen {
                frozen.lock().unwrap().signal(Signal::STOP);
            }
        }),
        clock,
        left: left.clone(),
        sent_groups: AtomicU64::new(0),
    };
    let _leaver = impostor::start(&network, "leaver", leaver, Vec::new()).await;
    let ended = network.run("newcomer", &["download", NAME, "--json"]);
    let ended_at = clock.now();
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("no_owner") && ended.err.contains("none of 1 who were receiving it too"), "{ended:?}");
    let left_at = *left.get().expect("it had brought what it has, and left");
    tracker.lock().unwrap().signal(Signal::CONT);
    ended_at.since(left_at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_receiver_that_left_while_the_tracker_was_asked() {
    let went_on = goes_on_without_the_last_receiver(true).await;
    // The tracker's answer, then that of the known peers.
    assert!(went_on < SWARM_PATIENCE / 2, "{went_on:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_receiver_that_left_while_it_was_waited_for() {
    let went_on = goes_on_without_the_last_receiver(false).await;
    assert!(went_on < SWARM_PATIENCE / 2, "{went_on:?}");
}

/// Forty files in three directories and an empty one, as an impostor announces them.
fn tree() -> (BTreeMap<ContentHash, Vec<u8>>, Vec<WireFile>) {
    let mut contents = BTreeMap::new();
    let mut files: Vec<_> = (0..40_u32)
        .map(|number| {
            let content = format!("content {number}").repeat(100).into_bytes();
            let (hash, size) = (ContentHash(*blake3::hash(&content).as_bytes()), content.len() as u64);
            contents.insert(hash, content);
            let name = format!("tree/{}/{number}", number % 3);
            WireFile { name, size, hash, mtime_micros: 0, executable: false }
        })
        .collect();
    let name = "tree/void".to_owned();
    files.push(WireFile { name, size: 0, hash: DIRECTORY_HASH, mtime_micros: i64::MIN, executable: false });
    (contents, files)
}

/// Permission bits, the special ones too, and modification time (nanoseconds) of what lies beside and above a download.
fn surroundings(paths: &[&Path]) -> Vec<(u32, i64)> {
    paths
        .iter()
        .map(|path| path.symlink_metadata().unwrap())
        .map(|of| (of.mode(), of.mtime() * 1_000_000_000 + of.mtime_nsec()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_owner_says_of_its_directories_the_files_come_and_nothing_else_is_touched() {
    let network = Network::start();
    let _receiver = network.headless("receiver");
    let (contents, files) = tree();
    // In packs it is honest.
    let owner = Describer {
        files: Arc::new(Liar { lie: Lie::Stall, contents: contents.clone() }),
        says: Arc::new(Mutex::new(Description::Silence)),
        asked: Arc::default(),
    };
    let _owner = impostor::start(&network, "owner", owner.clone(), files.clone()).await;
    network.json_until("receiver", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == files.len());

    let metas = |modes: &[u16], times: &[i64]| -> Vec<_> {
        let of = |&mode| times.iter().map(move |&mtime_micros| Some(DirectoryMeta { mtime_micros, mode }));
        modes.iter().flat_map(of).collect()
    };
    let absurd = metas(&[0, 0o7777, 0o777, u16::MAX, 0o6000], &[i64::MIN, -1, i64::MAX, i64::MAX / 1_000_000]);
    let hostile = [
        Description::These(absurd.clone(), 0),
        Description::These(absurd.clone(), 50_000),
        Description::These(absurd, -2),
        Description::These(Vec::new(), 0),
        Description::Silence,
        Description::Raw(vec![0xff; 4096]),
        Description::Raw([&[0, 0, 16, 0][..], &[0x80; 4096]].concat()),
        Description::Raw(Vec::new()),
    ];
    let beside = network.folder().join("beside");
    fs::create_dir(&beside).unwrap();
    let new_mode = beside.metadata().unwrap().permissions().mode() & 0o7777;
    fs::set_permissions(&beside, Permissions::from_mode(0o755)).unwrap();
    // A peer's first download of directories makes this folder, which changes the time of the share.
    let hidden = network.shared("receiver", ".brasa");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(hidden).unwrap();
    for (number, says) in hostile.into_iter().enumerate() {
        *owner.says.lock().unwrap() = says;
        let asked = owner.asked.load(Ordering::Relaxed);
        let outside = network.folder().join(format!("outside{number}"));
        fs::create_dir_all(outside.join("tree/0")).unwrap();
        fs::set_permissions(outside.join("tree/0"), Permissions::from_mode(0o751)).unwrap();
        let around = [&beside, network.folder(), &network.shared("receiver", "")];
        let before = surroundings(&around);
        let clock = Clock::start();
        network.json("receiver", &["download", "tree/", "--to", outside.to_str().unwrap()]);
        let took = clock.now().since_origin();
        assert!(
            took < CALL_DEADLINE,
            "{number}: {took:?}, as long as an answer is waited for that something depends on"
        );
        assert!(owner.asked.load(Ordering::Relaxed) > asked, "{number}: it was asked");
        for file in files.iter().filter(|file| file.hash != DIRECTORY_HASH) {
            assert!(fs::read(outside.join(&file.name)).unwrap() == contents[&file.hash], "{number}: {}", file.name);
        }
        assert_eq!(surroundings(&around), before, "{number}");
        let mode = |path: &str| outside.join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode("tree/0")), (new_mode, 0o751), "{number}: what was there keeps its mode");
        for new in ["tree/1", "tree/2", "tree/void"] {
            let mode = mode(new);
            assert!(mode & 0o700 == 0o700 && mode & !new_mode == 0, "{number}: {new} has {mode:o}");
        }
    }
    // Into the share too, where such times are looked at and told to others.
    *owner.says.lock().unwrap() = Description::These(metas(&[0o7777], &[i64::MIN, i64::MAX]), 0);
    network.json("receiver", &["download", "tree/"]);
    let mine = network.json("receiver", &["list"]);
    assert_eq!(mine["files"].as_array().unwrap().len(), files.len());
    network.json_until("receiver", &["listAll"], |listing| {
        listing["files"].as_array().unwrap().iter().all(|file| file["owners"].as_array().unwrap().len() == 2)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_directories_learns_of_nothing_that_is_not_shared() {
    let network = Network::start();
    network.put("owner", "tree/deep/a", b"a");
    fs::create_dir_all(network.shared("owner", "tree/hides/.git")).unwrap();
    fs::create_dir_all(network.shared("owner", ".hidden/b")).unwrap();
    std::os::unix::fs::symlink("/", network.shared("owner", "tree/root")).unwrap();
    let _owner = network.headless("owner");
    network.json_until("owner", &["list"], |listing| listing["files"].as_array().unwrap().len() == 1);
    let session = impostor::session(&network, "asker").await;
    let seat = impostor::tracker(&session).await;
    let owner = Target { role: Role::Peer(seat.peer), endpoint: seat.endpoint };
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
    let told: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| answer.is_some()).map(|(at, _)| at).collect();
    assert_eq!((told, answers.len()), (vec![0, 1], shared.len() + others.len()));
    let many = ask(vec!["tree".to_owned(); 50_000]).await;
    assert_eq!((many.len(), many.iter().all(Option::is_some)), (FILES_PER_PAGE, true), "a page at a time");
}

/// A share outside of the network that has the content.
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
async fn two_liars_among_four_owners_are_named_and_cost_little_time() {
    const RATE: u64 = 1 << 20;
    let network = Network::start();
    let (content, hash) = content();
    let honest = ["honest1", "honest2"];
    honest.iter().for_each(|owner| network.put(owner, NAME, &content));
    let _honest = honest.map(|owner| network.headless_with(owner, &["--limit-up", "1MiB"]));
    let receiver = network.headless("receiver");
    let owners = |count: usize| {
        network.json_until("receiver", &["listAll"], |listing| {
            listing["files"][0]["owners"].as_array().is_some_and(|owners| owners.len() == count)
        });
    };
    // To places outside of the share, so that each time all of it is to be fetched. The owners' caps, not the machine, say how
    // long that takes.
    let timed = |place: &str| {
        let to = network.folder().join(place);
        let clock = Clock::start();
        let done = network.json("receiver", &["download", NAME, "--to", to.to_str().unwrap()]);
        let seconds = clock.now().since_origin().as_secs_f64();
        assert!(fs::read(&to).unwrap() == content, "{done}");
        seconds
    };
    owners(2);
    let alone = timed("from-two");
    assert!((2.0..6.0).contains(&alone), "6 MiB at 2 MiB/s took {alone:.2} s");

    let share = share_with(&network.folder().join("liars"), &content).await;
    let lie = || Lie::BitInEachPiece(share.clone(), Pace::new(NonZeroU64::new(RATE)));
    let _liars =
        [start(&network, "liar1", lie(), &content, hash).await, start(&network, "liar2", lie(), &content, hash).await];
    owners(4);
    let with_liars = timed("from-four");
    assert!(with_liars < 1.5 * alone, "{with_liars:.2} s with two liars, {alone:.2} s without");
    eprintln!("6 MiB of 2 honest owners at 1 MiB/s each: {alone:.2} s; with 2 liars more: {with_liars:.2} s");
    receiver.signal(Signal::TERM);
    let log = receiver.wait().err;
    for liar in ["liar1", "liar2"] {
        let dropped = |line: &str| line.contains("asked for no more") && line.contains(&format!("owner={liar} "));
        assert_eq!(
            log.lines().filter(|line| dropped(line) && line.contains("SentCorruptData")).count(),
            1,
            "{liar}: {log}"
        );
    }
    assert!(!log.contains("owner=honest"), "{log}");
}
