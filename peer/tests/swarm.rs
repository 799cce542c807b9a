//! Several receivers of one file at the same time, and caps on what goes out and comes in: with real programs.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{fs, process::Stdio, thread};

use rustix::process::Signal;
use shared::{content::ContentHash, limits::GROUP_BYTES, time::Clock};

mod common;
use common::{
    Deadline, Network,
    process::{WAIT, finish},
};

const MIB: usize = 1 << 20;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Which groups of a content lie in the share of a peer that receives it as `big.bin`, or has received it.
fn held(network: &Network, peer: &str, content: &[u8]) -> Vec<bool> {
    let partial = format!(".brasa/partial/{}", ContentHash(*blake3::hash(content).as_bytes()).to_hex());
    let here = fs::read(network.shared(peer, "big.bin")).or_else(|_| fs::read(network.shared(peer, &partial)));
    let here = here.unwrap_or_default();
    let group = usize::try_from(GROUP_BYTES).unwrap();
    let groups = content.chunks(group).enumerate();
    groups.map(|(at, expected)| here.get(at * group..).is_some_and(|here| here.starts_with(expected))).collect()
}

/// Waits until at least so many hundredths of a content lie with these peers together.
fn wait_for_part(network: &Network, peers: &[&str], content: &[u8], percent: usize) {
    let deadline = Deadline::after(WAIT);
    loop {
        let held: Vec<Vec<bool>> = peers.iter().map(|peer| held(network, peer, content)).collect();
        let together = (0..held[0].len()).filter(|&group| held.iter().any(|held| held[group])).count();
        if together * 100 >= percent * held[0].len() {
            return;
        }
        deadline.pause("the groups");
    }
}

fn is_whole(network: &Network, peer: &str, content: &[u8]) -> bool {
    held(network, peer, content).into_iter().all(|held| held)
}

fn sent(network: &Network, peer: &str) -> u64 {
    network.json(peer, &["status"])["bytes_up"].as_u64().unwrap()
}

#[test]
fn receivers_pass_on_what_they_have_while_they_receive() {
    let network = Network::start();
    let content = noise(16 * MIB, 1);
    network.put("owner", "big.bin", &content);
    let _owner = network.headless_with("owner", &["--limit-up", "4MiB"]);
    let receivers = ["r1", "r2", "r3", "r4"];
    let _running: Vec<_> = receivers.iter().map(|peer| network.headless(peer)).collect();
    network.json_until("r4", &["listAll"], |all| all["files"].as_array().unwrap().len() == 1);
    let clock = Clock::start();
    thread::scope(|scope| {
        for peer in receivers {
            let network = &network;
            scope.spawn(move || network.json(peer, &["download", "big.bin"]));
        }
    });
    let seconds = clock.now().since_origin().as_secs_f64();
    for peer in receivers {
        assert!(fs::read(network.shared(peer, "big.bin")).unwrap() == content, "{peer}");
    }
    // Alone the owner would have to send it four times, in 16 s.
    let from_owner = sent(&network, "owner") as f64 / content.len() as f64;
    assert!(from_owner < 2.0, "the owner sent the file {from_owner:.2} times");
    assert!(seconds < 10.0, "{seconds:.1} s");
}

#[test]
fn what_the_owner_had_sent_before_it_died_is_enough_when_the_receivers_have_it_together() {
    let network = Network::start();
    let content = noise(10 * MIB, 2);
    network.put("owner", "big.bin", &content);
    let owner = network.headless_with("owner", &["--limit-up", "4MiB"]);
    let receivers = ["r1", "r2"];
    let _running: Vec<_> = receivers.iter().map(|peer| network.headless_with(peer, &["--limit-up", "2MiB"])).collect();
    network.json_until("r2", &["listAll"], |all| all["files"].as_array().unwrap().len() == 1);
    let downloads = receivers.map(|peer| {
        let mut command = network.command(peer, &["download", "big.bin", "--json"]);
        thread::spawn(move || finish(command.stdin(Stdio::null()), ""))
    });
    // Both have got different parts by the time that the owner has sent all of it about once.
    network.json_until("owner", &["status"], |status| status["bytes_up"].as_u64().unwrap() as usize > content.len());
    drop(owner);
    let ended = downloads.map(|download| download.join().unwrap());
    let held = |peer| network.json(peer, &["status"])["bytes_down"].as_u64().unwrap();
    for (peer, ended) in receivers.iter().zip(&ended) {
        if ended.status == Some(0) {
            assert!(fs::read(network.shared(peer, "big.bin")).unwrap() == content, "{peer}");
        } else {
            // Only if the two together really lack something may they give up.
            assert!(held(peer) < content.len() as u64, "{ended:?}");
            assert!(ended.err.contains("no_owner"), "{ended:?}");
        }
    }
    assert_eq!(ended[0].status, ended[1].status, "together they have it all or both lack the same");
}

#[test]
fn a_newcomer_that_finds_only_receivers_gets_the_file_of_them() {
    let network = Network::start();
    let content = noise(4 * MIB, 5);
    network.put("owner", "big.bin", &content);
    let receivers = ["r1", "r2"];
    let _running: Vec<_> =
        receivers.iter().map(|peer| network.headless_with(peer, &["--limit-up", "256KiB"])).collect();
    let _newcomer = network.headless("newcomer");
    let owner = network.headless_with("owner", &["--limit-up", "2MiB"]);
    network.json_until("r2", &["listAll"], |all| all["files"].as_array().unwrap().len() == 1);
    let downloads = receivers.map(|peer| {
        let mut command = network.command(peer, &["download", "big.bin", "--json"]);
        thread::spawn(move || finish(command.stdin(Stdio::null()), ""))
    });
    wait_for_part(&network, &receivers, &content, 100);
    // Killed: for a while the tracker still names it.
    drop(owner);
    let mut command = network.command("newcomer", &["download", "big.bin", "--json"]);
    let newcomer = thread::spawn(move || finish(command.stdin(Stdio::null()), ""));
    wait_for_part(&network, &["newcomer"], &content, 10);
    assert!(receivers.iter().all(|peer| !is_whole(&network, peer, &content)), "it has come of those that receive it");
    let ended = newcomer.join().unwrap();
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for (peer, download) in receivers.into_iter().zip(downloads) {
        let ended = download.join().unwrap();
        assert_eq!(ended.status, Some(0), "{peer}: {ended:?}");
    }
    for peer in ["newcomer", "r1", "r2"] {
        assert!(fs::read(network.shared(peer, "big.bin")).unwrap() == content, "{peer}");
    }
}

#[test]
fn a_newcomer_and_receivers_that_lack_the_same_say_so_and_go_on_when_the_owner_is_back() {
    let network = Network::start();
    let content = noise(8 * MIB, 6);
    network.put("owner", "big.bin", &content);
    let _receiver = network.headless("r1");
    let _newcomer = network.headless("newcomer");
    let owner = network.headless_with("owner", &["--limit-up", "2MiB"]);
    network.json_until("r1", &["listAll"], |all| all["files"].as_array().unwrap().len() == 1);
    let mut command = network.command("r1", &["download", "big.bin", "--json"]);
    let download = thread::spawn(move || finish(command.stdin(Stdio::null()), ""));
    wait_for_part(&network, &["r1"], &content, 25);
    owner.signal(Signal::TERM);
    owner.wait();
    // It left in good order: the tracker names nobody any more, and nobody knows of the file but who receives it.
    network.json_until("newcomer", &["listAll"], |all| all["files"].as_array().unwrap().is_empty());
    let ended = network.run("newcomer", &["download", "big.bin", "--json"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.contains("no_owner") && ended.err.contains("none of 1 who were receiving it too"), "{ended:?}");
    assert_eq!(held(&network, "newcomer", &content), held(&network, "r1", &content), "it has all that there was");
    assert_eq!(download.join().unwrap().status, Some(1));
    assert!(network.run("newcomer", &["download", "nowhere.bin", "--json"]).err.contains("no_such_file"));

    let _owner = network.headless("owner");
    network.json_until("newcomer", &["listAll"], |all| all["files"].as_array().unwrap().len() == 1);
    network.json("newcomer", &["download", "big.bin"]);
    assert!(fs::read(network.shared("newcomer", "big.bin")).unwrap() == content);
}

#[test]
fn caps_hold_and_more_requests_than_slots_are_all_served() {
    let network = Network::start();
    let content = noise(6 * MIB, 3);
    network.put("owner", "a.bin", &content);
    let _owner = network.headless_with("owner", &["--limit-up", "3MB", "--max-uploads", "1"]);
    let _slow = network.headless_with("slow", &["--limit-down", "2MB"]);
    network.json_until("slow", &["listAll"], |all| all["files"].as_array().unwrap().len() == 1);
    let clock = Clock::start();
    network.json("slow", &["download", "a.bin"]);
    let seconds = clock.now().since_origin().as_secs_f64();
    assert!((2.8..4.5).contains(&seconds), "6 MiB at 2 MB/s took {seconds:.2} s");

    // Six that may ask nobody but the owner, which serves one at a time.
    let peers: Vec<_> = (0..6).map(|n| format!("p{n}")).collect();
    let _running: Vec<_> = peers.iter().map(|peer| network.headless(peer)).collect();
    network.put("owner", "b.bin", &noise(2 * MIB, 4));
    network.json_until("p5", &["listAll"], |all| all["files"].as_array().unwrap().len() == 2);
    let clock = Clock::start();
    thread::scope(|scope| {
        for peer in &peers {
            let network = &network;
            scope.spawn(move || network.json(peer, &["download", "b.bin", "--from", "owner"]));
        }
    });
    let seconds = clock.now().since_origin().as_secs_f64();
    assert!((3.9..8.0).contains(&seconds), "6 times 2 MiB at 3 MB/s took {seconds:.2} s");
}

#[test]
fn nonsense_for_a_rate_is_refused_with_a_hint() {
    let network = Network::start();
    for (flag, value) in [("--limit-up", "fast"), ("--limit-down", "1KB"), ("--limit-up", "-5"), ("--max-uploads", "0")]
    {
        let ended = network.run("p", &[flag, value, "list"]);
        assert_eq!(ended.status, Some(2), "{flag} {value}: {ended:?}");
    }
}
