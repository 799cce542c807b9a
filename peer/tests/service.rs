//! The peer as a service: it waits for the nameserver, joins the peers that it knew, and ends when it says so; queries
//! of a peer that does not run take no part in the network.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{fs, process::Stdio, time::Duration};

use certs::{Authority, trust};
use rustix::process::Signal;
use shared::{id::Role, net::endpoint, rpc::ALPN, time::Clock};

mod common;
use common::{Network, PEER, files, free_port, prepare, process::Program, wait_for};

/// Epoch that a running peer follows.
fn epoch(network: &Network, peer: &str) -> u64 {
    network.tracker(peer)["epoch"].as_u64().unwrap()
}

#[test]
fn headless_peer_waits_for_a_nameserver_that_starts_later() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let mut command = std::process::Command::new(PEER);
    command.args(["peer1", "-p", &port, "--headless"]).stdin(Stdio::null());
    prepare(&mut command, folder.path());
    let mut peer = Program::spawn(&mut command);
    let line = peer.wait_for_error_line("waiting for the nameserver");
    assert!(line.contains("cannot be reached"), "{line}");

    let mut nameserver = std::process::Command::new(common::program("nameserver"));
    nameserver.args(["-n", "127.0.0.1", "-p", &port]).stdin(Stdio::null());
    prepare(&mut nameserver, folder.path());
    let mut nameserver = Program::spawn(&mut nameserver);
    nameserver.wait_for_line("NS running on");
    assert!(peer.next_line().starts_with("[peer1] ready at "));
    peer.signal(Signal::TERM);
    assert_eq!(peer.wait().status, Some(0));
}

#[test]
fn waiting_peer_ends_on_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::HUP] {
        let mut command = std::process::Command::new(PEER);
        command.args(["peer1", "-p", &free_port().to_string(), "--headless"]).stdin(Stdio::null());
        prepare(&mut command, folder.path());
        let mut peer = Program::spawn(&mut command);
        peer.wait_for_error_line("waiting for the nameserver");
        peer.signal(signal);
        assert_eq!(peer.wait().status, Some(0), "{signal:?}");
    }
}

#[test]
fn restarted_peer_joins_the_peers_it_knew_without_the_nameserver_and_registers_later() {
    let mut network = Network::start();
    network.put("peer1", "a.txt", b"abc");
    let _others: Vec<Program> = ["peer1", "peer2", "peer3"].iter().map(|peer| network.headless(peer)).collect();
    let last = network.headless("peer4");
    network.json_until("peer4", &["peers"], |peers| peers["peers"].as_array().unwrap().len() == 4);
    network.wait_for_files("peer4", 1);
    let known = network.folder().join("state/peers/peer4/peers");
    wait_for("the file of known peers", || {
        let text = fs::read_to_string(&known).unwrap_or_default();
        if text.lines().count() == 3 { Ok(()) } else { Err(text) }
    });
    last.signal(Signal::TERM);
    assert_eq!(last.wait().status, Some(0));
    network.kill_nameserver();

    // One-shot commands try the known peers.
    let done = network.json("peer4", &["download", "a.txt", "--to", "copy.txt"]);
    assert_eq!(files(&done).len(), 1);
    assert_eq!(fs::read(network.folder().join("copy.txt")).unwrap(), b"abc");
    network.json_until("peer4", &["tracker"], |tracker| tracker["peer"].is_string());
    network.json_until("peer4", &["listAll"], |listing| files(listing).len() == 1);

    let mut again = network.headless("peer4");
    network.tracker("peer4");
    network.json("peer4", &["download", "a.txt"]);
    assert_eq!(fs::read(network.shared("peer4", "a.txt")).unwrap(), b"abc");
    network.restart_nameserver();
    network.json_until("peer1", &["peers"], |peers| peers["peers"].as_array().unwrap().len() == 4);
    assert!(again.error_lines_so_far().iter().all(|line| !line.starts_with("error:")));
}

#[test]
fn listing_without_a_tracker_is_marked_as_incomplete() {
    let mut network = Network::start();
    network.put("peer1", "a.txt", b"abc");
    network.put("peer2", "b.txt", b"b");
    let one = network.headless("peer1");
    let two = network.headless("peer2");
    network.wait_for_files("peer1", 2);
    network.json_until("peer1", &["peers"], |peers| peers["peers"].as_array().unwrap().len() == 2);
    let tracker = network.tracker("peer1")["peer"].as_str().unwrap().to_owned();
    network.kill_nameserver();
    // Of two peers one is no majority.
    let (survivor, mine, tracking, following) =
        if tracker == "peer1" { ("peer2", "b.txt", one, two) } else { ("peer1", "a.txt", two, one) };
    drop(tracking);
    let listing = network.json_until(survivor, &["listAll"], |listing| listing["incomplete"] == true);
    assert!(listing["tracker"].is_null(), "{listing}");
    assert_eq!(files(&listing)[0]["name"], mine);
    let text = network.run(survivor, &["listAll"]).out;
    assert!(text.contains("incomplete: there is no tracker"), "{text}");
    drop(following);
}

#[test]
fn queries_of_a_peer_that_does_not_run_change_nothing() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"abc");
    network.put("absent", "mine.txt", b"mine");
    let _one = network.headless("peer1");
    network.wait_for_files("peer1", 1);
    let before = epoch(&network, "peer1");
    for _ in 0..3 {
        assert_eq!(network.tracker("absent")["peer"], "peer1");
        assert_eq!(files(&network.json("absent", &["listAll"])).len(), 1);
        let peers = network.json("absent", &["peers"]);
        assert_eq!(peers["peers"].as_array().unwrap().len(), 1, "{peers}");
        let own = network.json("absent", &["list"]);
        assert_eq!((files(&own)[0]["name"].as_str(), own["peer"].as_str()), (Some("mine.txt"), Some("absent")));
        assert_eq!(files(&own)[0]["hash"], blake3::hash(b"mine").to_hex().to_string());
        let status = network.run("absent", &["status"]);
        assert_eq!((status.status, status.out.as_str()), (Some(5), ""), "{status:?}");
        assert!(status.err.starts_with("error: absent is not running ("), "{status:?}");
    }
    assert_eq!(epoch(&network, "peer1"), before, "no query stood for election");
    let json = network.run("absent", &["status", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!(document["error"]["code"], "not_running");
}

#[test]
fn query_in_a_network_without_peers_elects_nobody() {
    let network = Network::start();
    for words in [&["tracker"][..], &["listAll"]] {
        let finished = network.run("absent", words);
        assert_eq!(finished.status, Some(1), "{finished:?}");
        assert!(finished.err.contains("no peer runs in this network"), "{finished:?}");
    }
    assert_eq!(network.json("absent", &["peers"])["peers"], serde_json::json!([]));
    // The next peer takes the first epoch.
    let _one = network.headless("peer1");
    assert_eq!(epoch(&network, "peer1"), 1);
}

#[test]
fn command_of_a_peer_that_does_not_run_leaves_the_seat_alone() {
    let network = Network::start();
    let added = network.json("absent", &["add", "novo.txt"]);
    assert_eq!(files(&added).len(), 1);
    let _one = network.headless("peer1");
    assert_eq!(epoch(&network, "peer1"), 1, "`add` took no seat");
    network.json("absent", &["remove", "novo.txt"]);
    assert_eq!(epoch(&network, "peer1"), 1);
}

#[test]
fn exit_returns_when_the_peer_can_be_started_again() {
    let network = Network::start();
    let mut running = network.headless("peer1");
    for round in 0..10 {
        let word = if round % 3 == 2 { "kill" } else { "exit" };
        assert_eq!(network.run("peer1", &[word]).status, Some(0), "{round}");
        // The same as `peer peer1 exit && peer peer1 --headless`.
        let mut next = network.begin("peer1", &["--headless"]);
        let line = next.next_line();
        assert!(line.starts_with("[peer1] ready at "), "{round}: {line}");
        running = next;
    }
    drop(running);
}

/// Time for which handshakes are counted.
const WINDOW: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_peer_pauses_between_handshakes() {
    let mut network = Network::start();
    let mut peer = network.headless("peer1");
    network.tracker("peer1");
    // A nameserver of another network takes the place of the first one: each rejects the other, as after an expiry.
    network.kill_nameserver();
    let authority = Authority::ephemeral().unwrap();
    let identity = authority.identity(&Role::Nameserver, Duration::from_secs(3600)).unwrap();
    let server = trust::member_server(&identity, &[ALPN]).unwrap();
    let client = trust::member_client(&identity, &[ALPN]).unwrap();
    let foreign = endpoint::bind(network.address.parse().unwrap(), Some(server), client).unwrap().endpoint;

    let (clock, mut handshakes) = (Clock::start(), 0);
    while let Some(left) = WINDOW.checked_sub(clock.now().since_origin()) {
        let Ok(incoming) = tokio::time::timeout(left, foreign.accept()).await else { break };
        handshakes += 1;
        incoming.unwrap().await.unwrap_err();
    }
    assert!((1..=8).contains(&handshakes), "{handshakes} handshakes in {WINDOW:?}");
    // It says so, and goes on.
    let status = network.json_until("peer1", &["status"], |status| status["warnings"].to_string().contains("--join"));
    assert!(status["warnings"].to_string().contains("not registered"), "{status}");
    let lines = peer.error_lines_so_far();
    assert!(lines.iter().filter(|line| line.contains("cannot renew")).count() <= 1, "{lines:?}");
    assert!(lines.iter().all(|line| !line.starts_with("error:")), "{lines:?}");
}
