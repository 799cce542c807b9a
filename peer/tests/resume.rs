//! Downloads of real programs that are killed, and go on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use peer::store::download::resume::format;
use rustix::process::Signal;
use shared::limits::MAX_UNSYNCED_BYTES;

mod common;
use common::{Deadline, Network, process::Program};

const SIZE: usize = 240 << 20;
/// For when the receiver is killed; printed when the test fails.
const SEED: u64 = 20;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    content
}

/// Bytes that the resume files of a share claim.
fn claimed(share: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(share.join(".brasa/partial")) else { return 0 };
    let haves = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".have"));
    let read = haves.filter_map(|have| format::parse(&fs::read(have.path()).ok()?).ok());
    read.map(|have| have.claims(&have.header.boot).0.bytes(have.header.file.size)).sum()
}

fn share(network: &Network, peer: &str) -> PathBuf {
    network.shared(peer, "")
}

/// Begins a download and waits until so many bytes of it are noted.
fn downloading(network: &Network, words: &[&str], bytes: u64) -> Program {
    downloading_within(Duration::from_secs(60), network, words, bytes)
}

fn downloading_within(wait: Duration, network: &Network, words: &[&str], bytes: u64) -> Program {
    let program = Program::spawn(network.command("peer2", words).stdin(Stdio::null()));
    let deadline = Deadline::after(wait);
    while claimed(&share(network, "peer2")) < bytes {
        assert!(!network.shared("peer2", "big.bin").exists(), "it was complete before it could be stopped");
        deadline.pause(&format!("{bytes} bytes of the download"));
    }
    program
}

#[test]
fn a_download_that_is_killed_again_and_again_is_not_begun_again() {
    let network = Network::start();
    let content = noise(SIZE, 1);
    network.put("peer1", "big.bin", &content);
    let _owner = network.headless("peer1");
    network.json_until("peer1", &["list"], |list| list["files"].as_array().is_some_and(|files| files.len() == 1));

    let mut random = fastrand::Rng::with_seed(SEED);
    let (mut lives, mut next) = (0, 0);
    loop {
        next = claimed(&share(&network, "peer2")).max(next) + random.u64(4 << 20..40 << 20);
        if next > 200 << 20 {
            break;
        }
        let receiver = downloading(&network, &["download", "big.bin"], next);
        receiver.signal(Signal::KILL);
        assert_eq!(receiver.wait().status, None);
        let kept = claimed(&share(&network, "peer2"));
        assert!(kept >= next, "seed {SEED}: {kept} of {next} bytes are left");
        lives += 1;
    }
    assert!(lives >= 4, "seed {SEED}: only {lives} kills");
    let done = network.json("peer2", &["download", "big.bin"]);
    assert!(fs::read(network.shared("peer2", "big.bin")).unwrap() == content, "seed {SEED}: {done}");
    let left: Vec<_> = fs::read_dir(share(&network, "peer2").join(".brasa/partial")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let sent = network.json("peer1", &["status"])["bytes_up"].as_u64().unwrap();
    let bound = SIZE as u64 + lives * MAX_UNSYNCED_BYTES + SIZE as u64 / 50;
    println!("{lives} kills; {:.3} times the file was sent", sent as f64 / SIZE as f64);
    assert!(sent < bound, "seed {SEED}: {sent} bytes sent for {SIZE} and {lives} kills");
}

#[test]
fn a_download_that_is_stopped_is_shown_continued_and_given_up() {
    let network = Network::start();
    let content = noise(SIZE, 2);
    network.put("peer1", "big.bin", &content);
    let _owner = network.headless("peer1");
    network.json_until("peer1", &["list"], |list| list["files"].as_array().is_some_and(|files| files.len() == 1));
    // As the programs see it.
    let to = network.folder().canonicalize().unwrap().join("copy.bin");

    for words in [&["download", "big.bin"][..], &["download", "big.bin", "--to", "copy.bin"]] {
        let kept = claimed(&share(&network, "peer2"));
        let receiver = downloading(&network, words, kept + (8 << 20));
        receiver.signal(Signal::INT);
        let ended = receiver.wait();
        assert_eq!(ended.status, Some(1), "{ended:?}");
        assert!(!to.exists() && !network.shared("peer2", "big.bin").exists());
    }
    let shown = network.json("peer2", &["status"]);
    let unfinished = shown["unfinished"].as_array().unwrap();
    assert_eq!(unfinished.len(), 2, "{shown}");
    assert!(unfinished.iter().all(|one| one["name"] == "big.bin" && one["bytes"].as_u64().unwrap() >= 8 << 20));
    let text = network.run("peer2", &["status"]).out;
    assert!(text.contains("% of 240.0 MiB; `download big.bin` continues it\n"), "{text}");
    let with_to = format!("`download big.bin --to {}` continues it\n", to.display());
    assert!(text.contains(&with_to), "{with_to} in {text}");

    let mut peer = network.headless("peer2");
    let line = peer.error_line();
    assert!(line.starts_with("unfinished downloads: big.bin ("), "{line}");
    let done = network.json("peer2", &["download", "big.bin", "--to", "copy.bin"]);
    assert!(fs::read(&to).unwrap() == content);
    let fetched: u64 = done["files"][0]["sources"][0]["bytes"].as_u64().unwrap();
    assert!(fetched <= SIZE as u64 - (8 << 20), "{done}");

    let discarded = network.json("peer2", &["download", "--discard", "big.bin"]);
    assert!(discarded["files"][0]["freed"].as_u64().unwrap() >= 8 << 20, "{discarded}");
    assert_eq!(network.json("peer2", &["status"])["unfinished"], serde_json::json!([]));
    let again = network.run("peer2", &["download", "--discard", "big.bin"]);
    assert_eq!(again.status, Some(1), "{again:?}");
    assert!(again.err.starts_with("error: no unfinished download of \"big.bin\""), "{again:?}");
}

/// Half of the time after which a connection is idle for too long.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_receiver_that_was_killed_does_not_wait_for_its_former_self() {
    let network = Network::start();
    let content = noise(SIZE, 3);
    network.put("peer1", "big.bin", &content);
    let _owner = network.headless_with("peer1", &["--limit-up", "40MiB"]);
    network.json_until("peer1", &["list"], |list| list["files"].as_array().is_some_and(|files| files.len() == 1));

    let mut receiver = downloading(&network, &["download", "big.bin"], 8 << 20);
    for _ in 0..3 {
        receiver.signal(Signal::KILL);
        assert_eq!(receiver.wait().status, None);
        let kept = claimed(&share(&network, "peer2"));
        receiver = downloading_within(SOON, &network, &["download", "big.bin"], kept + (8 << 20));
    }
    assert_eq!(receiver.wait().status, Some(0));
    assert!(fs::read(network.shared("peer2", "big.bin")).unwrap() == content);
}

#[test]
fn a_frozen_receiver_does_not_keep_its_place_from_others() {
    let network = Network::start();
    let (big, small) = (noise(SIZE, 4), noise(16 << 20, 5));
    network.put("peer1", "big.bin", &big);
    network.put("peer1", "small.bin", &small);
    let _owner = network.headless_with("peer1", &["--limit-up", "40MiB", "--max-uploads", "1"]);
    network.json_until("peer1", &["list"], |list| list["files"].as_array().is_some_and(|files| files.len() == 2));

    let frozen = downloading(&network, &["download", "big.bin"], 8 << 20);
    frozen.signal(Signal::STOP);
    let other = Program::spawn(network.command("peer3", &["download", "small.bin"]).stdin(Stdio::null()));
    let deadline = Deadline::after(SOON);
    while !network.shared("peer3", "small.bin").exists() {
        deadline.pause("the other receiver's file");
    }
    assert_eq!(other.wait().status, Some(0));
    assert!(fs::read(network.shared("peer3", "small.bin")).unwrap() == small);
    // It connects anew and goes on.
    frozen.signal(Signal::CONT);
    let ended = frozen.wait();
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(fs::read(network.shared("peer2", "big.bin")).unwrap() == big);
}
