//! The nameserver is killed, then the tracker: real programs elect a provisional tracker, and the nameserver knows it when
//! it is back. Every wait has a deadline; the times are printed.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use shared::{limits::PROVISIONAL_EPOCHS, time::Clock};

mod common;
use common::{Deadline, Network, prepare, process::Program};

/// What is promised is 2 s; the programs of this test share their processors with those of others.
const BOUND: Duration = Duration::from_secs(10);

fn names(listing: &Value) -> BTreeSet<String> {
    let files = listing["files"].as_array().expect("a listing has files");
    files.iter().map(|file| file["name"].as_str().expect("a name").to_owned()).collect()
}

/// What all of `peers` say of the tracker, as soon as they agree on one with an epoch above `epoch`.
fn agreed_tracker(network: &Network, peers: &[(String, Program)], epoch: u64) -> Value {
    let deadline = Deadline::after(BOUND);
    loop {
        let trackers: Vec<Value> = peers
            .iter()
            .filter_map(|(peer, _)| {
                let ended = network.run(peer, &["tracker", "--json"]);
                (ended.status == Some(0)).then(|| serde_json::from_str(&ended.out).expect("a document"))
            })
            .collect();
        let agreed =
            |tracker: &Value| tracker["epoch"].as_u64() > Some(epoch) && trackers.iter().all(|other| other == tracker);
        if trackers.len() == peers.len() && agreed(&trackers[0]) {
            return trackers[0].clone();
        }
        deadline.pause(&format!("one tracker for all, not {trackers:?},"));
    }
}

fn nsc(network: &Network, words: &[&str]) -> (bool, String) {
    let mut nsc = Command::new(common::program("nsc"));
    nsc.args(["-n", "127.0.0.1", "-p", network.port()]).args(words);
    prepare(&mut nsc, network.folder());
    let output = nsc.output().expect("nsc runs");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_tracker_that_dies_without_a_nameserver_is_replaced_and_the_replacement_registers() {
    let mut network = Network::start();
    let mut peers: Vec<(String, Program)> = (1..=5)
        .map(|number| {
            let id = format!("peer{number}");
            network.put(&id, &format!("{id}.txt"), id.as_bytes());
            let program = network.headless(&id);
            (id, program)
        })
        .collect();
    for (peer, _) in &peers {
        // Each has heard of all others: they are whom it counts when the nameserver is away.
        network.json_until(peer, &["listAll"], |listing| names(listing).len() == 5);
        network.json_until(peer, &["peers"], |known| known["peers"].as_array().is_some_and(|all| all.len() == 5));
    }
    // ... and its core has, which asks by itself every two seconds.
    let heard = Deadline::after(BOUND);
    let clock = Clock::start();
    while clock.now().since_origin() < Duration::from_millis(2500) {
        heard.pause("the cores' own lists of peers");
    }

    let before = network.json("peer1", &["tracker"]);
    network.kill_nameserver();
    let at = peers.iter().position(|(peer, _)| before["peer"] == peer.as_str()).expect("the tracker is one of them");
    let (gone, tracker) = peers.remove(at);
    tracker.signal(Signal::KILL);
    let clock = Clock::start();
    let provisional = agreed_tracker(&network, &peers, before["epoch"].as_u64().expect("a number"));
    eprintln!("provisional tracker known to all after {:?}", clock.now().since_origin());
    let epoch = provisional["epoch"].as_u64().expect("a number");
    assert_eq!(epoch % PROVISIONAL_EPOCHS, 0, "{provisional}");

    let listing = network.json_until(&peers[0].0, &["listAll"], |listing| names(listing).len() == 4);
    eprintln!("its index is complete after {:?}", clock.now().since_origin());
    assert!(!names(&listing).contains(&format!("{gone}.txt")), "{listing}");
    let file = format!("{}.txt", peers[1].0);
    network.json(&peers[0].0, &["download", &file]);
    assert_eq!(fs::read_to_string(network.shared(&peers[0].0, &file)).expect("it is there"), peers[1].0);

    network.restart_nameserver();
    let clock = Clock::start();
    let (deadline, name) = (Deadline::after(BOUND), format!("tracker.{epoch}"));
    while !nsc(&network, &["lookup", &name]).0 {
        deadline.pause(&format!("{name} in the nameserver"));
    }
    eprintln!("registered {:?} after the nameserver was back", clock.now().since_origin());
    assert_eq!(agreed_tracker(&network, &peers, epoch - 1), provisional, "the same tracker, with the same epoch");
    let (_, list) = nsc(&network, &["list", "tracker."]);
    assert_eq!(list.lines().filter(|line| line.starts_with("tracker.")).count(), 1, "{list}");
}
