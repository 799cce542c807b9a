//! Downloads of real programs that are killed or stopped, and continue.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use peer::{
    store::{download::resume::format, params::MAX_UNSYNCED_BYTES},
    transfer::params::{BULK_BATCH_BYTES, BULK_BATCHES},
};
use rustix::process::Signal;
use shared::{limits::CONNECTION_WINDOW_BYTES, net::params::IDLE_TIMEOUT, time::Clock};

mod common;
use common::{Network, noise, process::Program, wait_for, wait_for_within};

const SIZE: usize = 240 << 20;
/// Seed of the moments at which the receiver is killed.
const SEED: u64 = 20;

/// Bytes that the resume files of a share claim to be on the disk.
fn claimed(share: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(share.join(".brasa/partial")) else { return 0 };
    let resume_files = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".have"));
    let parsed = resume_files.filter_map(|file| format::parse(&fs::read(file.path()).ok()?).ok());
    parsed.map(|file| file.claims(&file.header.boot).0.bytes(file.header.file.size)).sum()
}

fn share(network: &Network, peer: &str) -> PathBuf {
    network.shared(peer, "")
}

/// Begins a download of peer2 and waits until the resume files claim at least `bytes`.
fn begin_download(network: &Network, words: &[&str], bytes: u64) -> Program {
    let program = network.begin("peer2", words);
    wait_for("progress of the download", || progress(network, bytes));
    program
}

/// True if the resume files of peer2 claim at least `bytes`.
///
/// # Panics
/// When the download is complete.
fn progress(network: &Network, bytes: u64) -> Result<(), String> {
    let claimed = claimed(&share(network, "peer2"));
    if claimed >= bytes {
        return Ok(());
    }
    assert!(!network.shared("peer2", "big.bin").exists(), "the download was complete before it could be stopped");
    Err(format!("{claimed} of {bytes} bytes are claimed"))
}

/// Bytes that peer1 has sent, once it sends nothing more.
fn bytes_sent(network: &Network) -> u64 {
    let idle = network.json_until("peer1", &["status"], |status| status["uploads"] == 0);
    idle["bytes_up"].as_u64().expect("a number")
}

#[test]
fn download_killed_repeatedly_continues_from_its_resume_file() {
    let network = Network::start();
    let content = noise(SIZE, 1);
    network.put("peer1", "big.bin", &content);
    // The cap keeps the download from completing between two polls.
    let _owner = network.headless_with("peer1", &["--limit-up", "48MiB"]);
    network.wait_for_own_files("peer1", 1);

    let mut random = fastrand::Rng::with_seed(SEED);
    let (mut kills, mut next) = (0, 0);
    loop {
        next = claimed(&share(&network, "peer2")).max(next) + random.u64(4 << 20..40 << 20);
        if next > 200 << 20 {
            break;
        }
        let receiver = begin_download(&network, &["download", "big.bin"], next);
        receiver.signal(Signal::KILL);
        assert_eq!(receiver.wait().status, None);
        let kept = claimed(&share(&network, "peer2"));
        assert!(kept >= next, "seed {SEED}: {kept} of {next} bytes are left");
        kills += 1;
    }
    assert!(kills >= 4, "seed {SEED}: only {kills} kills");
    // What the owner has sent after the last kill shows whether the last run begins where the resume file ends.
    let (sent_before, kept) = (bytes_sent(&network), claimed(&share(&network, "peer2")));
    let done = network.json("peer2", &["download", "big.bin"]);
    assert!(fs::read(network.shared("peer2", "big.bin")).expect("the file is there") == content, "seed {SEED}: {done}");
    let left: Vec<_> = fs::read_dir(share(&network, "peer2").join(".brasa/partial")).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
    let sent = bytes_sent(&network);
    let (missing, overhead) = (SIZE as u64 - kept, SIZE as u64 / 50);
    assert!(sent - sent_before < missing + overhead, "seed {SEED}: {} bytes for {missing}", sent - sent_before);
    // A kill costs what was not synced yet, what the receiver held in memory, and what was on the way.
    let in_memory = 3 * BULK_BATCHES as u64 * BULK_BATCH_BYTES as u64 + u64::from(CONNECTION_WINDOW_BYTES);
    let bound = SIZE as u64 + kills * (MAX_UNSYNCED_BYTES + in_memory) + overhead;
    println!("{kills} kills; {:.3} times the file was sent", sent as f64 / SIZE as f64);
    assert!(sent < bound, "seed {SEED}: {sent} bytes sent for {SIZE} and {kills} kills");
}

#[test]
fn stopped_download_is_shown_continued_and_discarded() {
    let network = Network::start();
    let content = noise(SIZE, 2);
    network.put("peer1", "big.bin", &content);
    let _owner = network.headless_with("peer1", &["--limit-up", "64MiB"]);
    network.wait_for_own_files("peer1", 1);
    // The path as the programs see it.
    let to = network.folder().canonicalize().expect("the folder exists").join("copy.bin");

    for words in [&["download", "big.bin"][..], &["download", "big.bin", "--to", "copy.bin"]] {
        let kept = claimed(&share(&network, "peer2"));
        let receiver = begin_download(&network, words, kept + (8 << 20));
        receiver.signal(Signal::INT);
        let stopped = receiver.wait();
        assert_eq!(stopped.status, Some(130), "{stopped:?}");
        assert!(!to.exists() && !network.shared("peer2", "big.bin").exists());
    }
    let mut peer = network.headless("peer2");
    let line = peer.wait_for_error_line("unfinished downloads");
    assert!(line.starts_with("unfinished downloads: big.bin ("), "{line}");
    let shown = network.json("peer2", &["status"]);
    let unfinished = shown["unfinished"].as_array().expect("a list");
    assert_eq!(unfinished.len(), 2, "{shown}");
    assert!(unfinished.iter().all(|one| one["name"] == "big.bin" && one["bytes"].as_u64() >= Some(8 << 20)), "{shown}");
    let text = network.run("peer2", &["status"]).out;
    assert!(text.contains("% of 240.0 MiB; `download big.bin` continues it\n"), "{text}");
    let with_to = format!("`download big.bin --to {}` continues it\n", to.display());
    assert!(text.contains(&with_to), "{with_to} in {text}");

    let done = network.json("peer2", &["download", "big.bin", "--to", "copy.bin"]);
    assert!(fs::read(&to).expect("the file is there") == content);
    let fetched = done["files"][0]["sources"][0]["bytes"].as_u64().expect("a number");
    assert!(fetched <= SIZE as u64 - (8 << 20), "{done}");

    let discarded = network.json("peer2", &["download", "--discard", "big.bin"]);
    assert!(discarded["files"][0]["freed"].as_u64() >= Some(8 << 20), "{discarded}");
    assert_eq!(network.json("peer2", &["status"])["unfinished"], serde_json::json!([]));
    let again = network.run("peer2", &["download", "--discard", "big.bin"]);
    assert_eq!(again.status, Some(1), "{again:?}");
    assert!(again.err.starts_with("error: no unfinished download of \"big.bin\""), "{again:?}");
}

/// Time before the owner can have given up the connection of a receiver that was killed or stopped, which it does after
/// [`IDLE_TIMEOUT`].
const BEFORE_IDLE_TIMEOUT: Duration = Duration::from_secs(IDLE_TIMEOUT.as_secs() - 1);

#[test]
fn killed_receiver_continues_before_its_former_connection_times_out() {
    let network = Network::start();
    let content = noise(SIZE, 3);
    network.put("peer1", "big.bin", &content);
    let _owner = network.headless_with("peer1", &["--limit-up", "40MiB"]);
    network.wait_for_own_files("peer1", 1);

    let mut receiver = begin_download(&network, &["download", "big.bin"], 8 << 20);
    for _ in 0..3 {
        receiver.signal(Signal::KILL);
        let clock = Clock::start();
        assert_eq!(receiver.wait().status, None);
        let kept = claimed(&share(&network, "peer2"));
        receiver = network.begin("peer2", &["download", "big.bin"]);
        let rest = BEFORE_IDLE_TIMEOUT.saturating_sub(clock.now().since_origin());
        wait_for_within(rest, "progress of the restarted download", || progress(&network, kept + (8 << 20)));
    }
    assert_eq!(receiver.wait().status, Some(0));
    assert!(fs::read(network.shared("peer2", "big.bin")).expect("the file is there") == content);
}

#[test]
fn stopped_receiver_gives_its_slot_to_others_and_completes_when_resumed() {
    let network = Network::start();
    let (big, small) = (noise(SIZE, 4), noise(16 << 20, 5));
    network.put("peer1", "big.bin", &big);
    network.put("peer1", "small.bin", &small);
    let _owner = network.headless_with("peer1", &["--limit-up", "40MiB", "--max-uploads", "1"]);
    network.wait_for_own_files("peer1", 2);

    let stopped = begin_download(&network, &["download", "big.bin"], 8 << 20);
    stopped.signal(Signal::STOP);
    let other = network.begin("peer3", &["download", "small.bin"]);
    wait_for_within(BEFORE_IDLE_TIMEOUT, "file of the other receiver", || {
        let exists = network.shared("peer3", "small.bin").exists();
        if exists { Ok(()) } else { Err("it is not there".to_owned()) }
    });
    assert_eq!(other.wait().status, Some(0));
    assert!(fs::read(network.shared("peer3", "small.bin")).expect("the file is there") == small);
    // It opens a new connection and continues.
    stopped.signal(Signal::CONT);
    let finished = stopped.wait();
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(fs::read(network.shared("peer2", "big.bin")).expect("the file is there") == big);
}
