//! Several receivers of one file at the same time, and caps on uploads and downloads, with real programs.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{fs, thread};

use rustix::process::Signal;
use shared::{limits::GROUP_BYTES, time::Clock};

mod common;
use common::{Network, content_hash, noise, process::Program, wait_for};

const MIB: usize = 1 << 20;

/// For each verification group of a content, whether it lies in the share of a peer that receives or has received it as
/// `big.bin`.
fn held(network: &Network, peer: &str, content: &[u8]) -> Vec<bool> {
    let partial = format!(".brasa/partial/{}", content_hash(content).to_hex());
    let here = fs::read(network.shared(peer, "big.bin")).or_else(|_| fs::read(network.shared(peer, &partial)));
    let here = here.unwrap_or_default();
    let group = usize::try_from(GROUP_BYTES).unwrap();
    let groups = content.chunks(group).enumerate();
    groups.map(|(at, expected)| here.get(at * group..).is_some_and(|here| here.starts_with(expected))).collect()
}

/// Waits until these peers together hold at least `percent` hundredths of a content.
fn wait_for_part(network: &Network, peers: &[&str], content: &[u8], percent: usize) {
    wait_for(&format!("{percent} % of the content at {peers:?}"), || {
        let held: Vec<Vec<bool>> = peers.iter().map(|peer| held(network, peer, content)).collect();
        let groups = held[0].len();
        let together = (0..groups).filter(|&group| held.iter().any(|held| held[group])).count();
        if together * 100 >= percent * groups { Ok(()) } else { Err(format!("{together} of {groups} groups")) }
    });
}

fn is_complete(network: &Network, peer: &str, content: &[u8]) -> bool {
    held(network, peer, content).into_iter().all(|held| held)
}

fn begin_download(network: &Network, peer: &str) -> Program {
    network.begin(peer, &["download", "big.bin", "--json"])
}

/// Bytes that a peer has sent.
fn bytes_sent(network: &Network, peer: &str) -> u64 {
    network.json(peer, &["status"])["bytes_up"].as_u64().unwrap()
}

fn seconds_of(work: impl FnOnce()) -> f64 {
    let clock = Clock::start();
    work();
    clock.now().since_origin().as_secs_f64()
}

#[test]
fn receivers_upload_to_each_other_while_they_download() {
    const RATE: usize = 4 * MIB;
    let network = Network::start();
    let content = noise(16 * MIB, 1);
    network.put("owner", "big.bin", &content);
    let _owner = network.headless_with("owner", &["--limit-up", "4MiB"]);
    let receivers = ["r1", "r2", "r3", "r4"];
    let _running: Vec<_> = receivers.iter().map(|peer| network.headless(peer)).collect();
    receivers.iter().for_each(|peer| drop(network.wait_for_files(peer, 1)));
    let seconds = seconds_of(|| {
        thread::scope(|scope| {
            for peer in receivers {
                let network = &network;
                scope.spawn(move || network.json(peer, &["download", "big.bin"]));
            }
        });
    });
    for peer in receivers {
        assert!(fs::read(network.shared(peer, "big.bin")).unwrap() == content, "{peer}");
    }
    let from_owner = bytes_sent(&network, "owner") as f64 / content.len() as f64;
    assert!(from_owner < 2.0, "the owner sent the file {from_owner:.2} times");
    // The owner's cap alone makes four copies last so long.
    let without_swarm = (receivers.len() * content.len()) as f64 / RATE as f64;
    assert!(seconds < without_swarm, "{seconds:.1} s; {without_swarm:.1} s for the owner alone");
}

#[test]
fn receivers_complete_from_each_other_after_the_owner_died() {
    let network = Network::start();
    let content = noise(10 * MIB, 2);
    network.put("owner", "big.bin", &content);
    let owner = network.headless_with("owner", &["--limit-up", "4MiB"]);
    let receivers = ["r1", "r2"];
    // Their own caps keep the receivers from completing before the owner dies.
    let _running = receivers.map(|peer| network.headless_with(peer, &["--limit-up", "512KiB"]));
    receivers.iter().for_each(|peer| drop(network.wait_for_files(peer, 1)));
    let downloads = receivers.map(|peer| begin_download(&network, peer));
    wait_for_part(&network, &receivers, &content, 100);
    drop(owner);
    for peer in receivers {
        assert!(!is_complete(&network, peer, &content), "{peer} completed before the owner died");
    }
    let finished = downloads.map(Program::wait);
    for (peer, finished) in receivers.into_iter().zip(finished) {
        assert_eq!(finished.status, Some(0), "{peer}: {finished:?}");
        assert!(fs::read(network.shared(peer, "big.bin")).unwrap() == content, "{peer}");
    }
}

#[test]
fn newcomer_downloads_from_receivers_when_no_owner_is_left() {
    let network = Network::start();
    let content = noise(4 * MIB, 5);
    network.put("owner", "big.bin", &content);
    let receivers = ["r1", "r2"];
    let _running = receivers.map(|peer| network.headless_with(peer, &["--limit-up", "256KiB"]));
    let _newcomer = network.headless("newcomer");
    let owner = network.headless_with("owner", &["--limit-up", "2MiB"]);
    receivers.iter().chain(&["newcomer"]).for_each(|peer| drop(network.wait_for_files(peer, 1)));
    let downloads = receivers.map(|peer| begin_download(&network, peer));
    wait_for_part(&network, &receivers, &content, 100);
    // After a kill the tracker names the owner for a while.
    drop(owner);
    let newcomer = begin_download(&network, "newcomer");
    wait_for_part(&network, &["newcomer"], &content, 1);
    for peer in receivers {
        assert!(!is_complete(&network, peer, &content), "{peer} was complete before the newcomer had anything");
    }
    let finished = newcomer.wait();
    assert_eq!(finished.status, Some(0), "{finished:?}");
    for (peer, download) in receivers.into_iter().zip(downloads) {
        let finished = download.wait();
        assert_eq!(finished.status, Some(0), "{peer}: {finished:?}");
    }
    for peer in ["newcomer", "r1", "r2"] {
        assert!(fs::read(network.shared(peer, "big.bin")).unwrap() == content, "{peer}");
    }
}

#[test]
fn receivers_that_lack_the_same_part_fail_and_complete_when_the_owner_is_back() {
    let network = Network::start();
    let content = noise(8 * MIB, 6);
    network.put("owner", "big.bin", &content);
    let _receiver = network.headless("r1");
    let _newcomer = network.headless("newcomer");
    let owner = network.headless_with("owner", &["--limit-up", "1MiB"]);
    network.wait_for_files("r1", 1);
    let download = begin_download(&network, "r1");
    wait_for_part(&network, &["r1"], &content, 25);
    owner.signal(Signal::TERM);
    owner.wait();
    // The owner has unregistered: the tracker names nobody, and only r1 knows of the file.
    network.wait_for_files("newcomer", 0);
    let failed = network.run("newcomer", &["download", "big.bin", "--json"]);
    assert_eq!(failed.status, Some(1), "{failed:?}");
    assert!(failed.err.contains("no_owner"), "{failed:?}");
    assert!(failed.err.contains("none of 1 who were receiving it too"), "{failed:?}");
    assert_eq!(held(&network, "newcomer", &content), held(&network, "r1", &content), "the newcomer has what r1 has");
    assert_eq!(download.wait().status, Some(1));
    assert!(network.run("newcomer", &["download", "nowhere.bin", "--json"]).err.contains("no_such_file"));

    let _owner = network.headless("owner");
    network.wait_for_files("newcomer", 1);
    network.json("newcomer", &["download", "big.bin"]);
    assert!(fs::read(network.shared("newcomer", "big.bin")).unwrap() == content);
}

#[test]
fn caps_hold_and_requests_beyond_the_slots_are_served_in_turn() {
    let network = Network::start();
    let content = noise(6 * MIB, 3);
    network.put("owner", "a.bin", &content);
    let _owner = network.headless_with("owner", &["--limit-up", "3MB", "--max-uploads", "1"]);
    let _slow = network.headless_with("slow", &["--limit-down", "2MB"]);
    network.wait_for_files("slow", 1);
    let slow = seconds_of(|| drop(network.json("slow", &["download", "a.bin"])));
    // What the machine takes for the same without the receiver's cap: this command copies from the share.
    let copy = network.folder().join("copy");
    let overhead = seconds_of(|| drop(network.json("slow", &["download", "a.bin", "--to", copy.to_str().unwrap()])));
    let bound = 4.5 + 4.0 * overhead;
    assert!((2.8..bound).contains(&slow), "6 MiB at 2 MB/s took {slow:.2} s; overhead {overhead:.2} s");

    // Six receivers that may ask the owner alone, which serves one at a time.
    let peers: Vec<_> = (0..6).map(|n| format!("p{n}")).collect();
    let _running: Vec<_> = peers.iter().map(|peer| network.headless(peer)).collect();
    network.put("owner", "b.bin", &noise(2 * MIB, 4));
    peers.iter().for_each(|peer| drop(network.wait_for_files(peer, 2)));
    let seconds = seconds_of(|| {
        thread::scope(|scope| {
            for peer in &peers {
                let network = &network;
                scope.spawn(move || network.json(peer, &["download", "b.bin", "--from", "owner"]));
            }
        });
    });
    let bound = 8.0 + 4.0 * overhead * peers.len() as f64;
    assert!((3.9..bound).contains(&seconds), "6 times 2 MiB at 3 MB/s took {seconds:.2} s; overhead {overhead:.2} s");
}

#[test]
fn invalid_rates_are_usage_errors() {
    let network = Network::start();
    for (flag, value) in [("--limit-up", "fast"), ("--limit-down", "1KB"), ("--limit-up", "-5"), ("--max-uploads", "0")]
    {
        let refused = network.run("p", &[flag, value, "list"]);
        assert_eq!(refused.status, Some(2), "{flag} {value}: {refused:?}");
    }
}
