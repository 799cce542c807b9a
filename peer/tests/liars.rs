//! Owners that are not what they say: one that sends other bytes, one that accepts and stalls, one that lies about the
//! size. Each is a member with a proper certificate; the download must be right all the same, or fail and keep nothing.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{collections::BTreeMap, fs, num::NonZeroU64, path::Path, sync::atomic::Ordering};

use peer::{
    net::pace::Pace,
    store::{Share, ShareOptions},
};
use rustix::process::Signal;
use shared::{
    content::{ContentHash, FileMeta},
    limits::{MAX_SWARM_FAN_OUTS, SWARM_PATIENCE},
    rpc::tracker::WireFile,
    time::Clock,
};
use tokio::sync::mpsc;

mod common;
use common::{
    Network,
    flapper::Flapper,
    impostor::{self, Running},
    liar::{Liar, Lie},
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
        assert_eq!(log.lines().filter(|line| dropped(line) && line.contains("Lied")).count(), 1, "{liar}: {log}");
    }
    assert!(!log.contains("owner=honest"), "{log}");
}
