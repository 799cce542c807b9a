//! The nameserver is killed, then the tracker: real programs elect a provisional tracker, and the nameserver registers
//! it when it is back. Every wait has a deadline; the times are printed.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{collections::BTreeSet, fs, process::Command};

use rustix::process::Signal;
use serde_json::Value;
use shared::{
    epoch::Epoch,
    id::{PeerId, Role},
    limits::{CALL_DEADLINE, PROVISIONAL_EPOCHS},
    net::{Target, session::Session},
    rpc::peer::{PeerServiceClient, VoteRequest},
    time::Clock,
};

mod common;
use common::{Network, fake_peer, files, prepare, process::Program, wait_for};

fn names(listing: &Value) -> BTreeSet<String> {
    files(listing).iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until all of `peers` name the same tracker with an epoch above `epoch`, and returns the document of `tracker`.
fn agreed_tracker(network: &Network, peers: &[(String, Program)], epoch: u64) -> Value {
    wait_for("agreement on a tracker", || {
        let answers: Vec<_> = peers.iter().map(|(peer, _)| network.run(peer, &["tracker", "--json"])).collect();
        let trackers: Vec<Value> = answers.iter().filter_map(|answer| serde_json::from_str(&answer.out).ok()).collect();
        let is_agreed =
            |tracker: &Value| tracker["epoch"].as_u64() > Some(epoch) && trackers.iter().all(|other| other == tracker);
        match trackers.first() {
            Some(tracker) if trackers.len() == peers.len() && is_agreed(tracker) => Ok(tracker.clone()),
            _ => Err(format!("{answers:?}")),
        }
    })
}

/// Waits until every one of `peers` counts all of them as electors. After the nameserver's death a peer learns of no
/// further one.
async fn wait_for_electors(network: &Network, session: &Session, peers: &[(String, Program)]) {
    let everybody: BTreeSet<PeerId> = peers.iter().map(|(peer, _)| peer.parse().unwrap()).collect();
    let epoch = Epoch(network.tracker("peer1")["epoch"].as_u64().unwrap());
    // A PreVote for an epoch that is taken changes nothing and is refused, with the electors that the voter knows.
    let request = VoteRequest { epoch, expected_epoch: epoch, force: false, pre_vote: true, provisional: false };
    let registered = network.json("peer1", &["peers"]);
    for peer in registered["peers"].as_array().unwrap() {
        let role = Role::Peer(peer["id"].as_str().unwrap().parse().unwrap());
        let voter = Target { role, endpoint: peer["address"].as_str().unwrap().parse().unwrap() };
        let deadline = Clock::start();
        loop {
            let request = request.clone();
            let ask = |peer: PeerServiceClient, cx| async move { peer.request_vote(cx, request).await };
            let reply = session.connections.call(&voter, CALL_DEADLINE, ask).await.unwrap();
            if reply.electors.iter().cloned().collect::<BTreeSet<_>>() == everybody {
                break;
            }
            assert!(deadline.now().since_origin() < common::process::WAIT, "{peer} knows {:?} only", reply.electors);
            tokio::time::sleep(common::POLL_INTERVAL).await;
        }
    }
}

/// Runs `nsc`; whether it succeeded, and its standard output.
fn nsc(network: &Network, words: &[&str]) -> (bool, String) {
    let mut nsc = Command::new(common::program("nsc"));
    nsc.args(["-n", "127.0.0.1", "-p", network.port()]).args(words);
    prepare(&mut nsc, network.folder());
    let output = nsc.output().expect("nsc runs");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracker_killed_without_nameserver_is_replaced_and_its_successor_registers_later() {
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
        // Each peer can reach all others without the nameserver afterwards.
        network.json_until(peer, &["listAll"], |listing| names(listing).len() == 5);
        network.json_until(peer, &["peers"], |known| known["peers"].as_array().is_some_and(|all| all.len() == 5));
    }
    let session = fake_peer::peer_session(&network, "observer").await;
    wait_for_electors(&network, &session, &peers).await;
    drop(session);

    let before = network.tracker("peer1");
    network.kill_nameserver();
    let at = peers.iter().position(|(peer, _)| before["peer"] == **peer).expect("the tracker is one of the peers");
    let (gone, tracker) = peers.remove(at);
    tracker.signal(Signal::KILL);
    let clock = Clock::start();
    let provisional = agreed_tracker(&network, &peers, before["epoch"].as_u64().unwrap());
    eprintln!("all peers know the provisional tracker after {:?}", clock.now().since_origin());
    let epoch = provisional["epoch"].as_u64().unwrap();
    assert_eq!(epoch % PROVISIONAL_EPOCHS, 0, "{provisional}");

    let listing = network.json_until(&peers[0].0, &["listAll"], |listing| names(listing).len() == 4);
    eprintln!("its index is complete after {:?}", clock.now().since_origin());
    assert!(!names(&listing).contains(&format!("{gone}.txt")), "{listing}");
    let file = format!("{}.txt", peers[1].0);
    network.json(&peers[0].0, &["download", &file]);
    assert_eq!(fs::read_to_string(network.shared(&peers[0].0, &file)).unwrap(), peers[1].0);

    network.restart_nameserver();
    let clock = Clock::start();
    let name = format!("tracker.{epoch}");
    wait_for(&format!("{name} in the nameserver"), || {
        let (is_known, output) = nsc(&network, &["lookup", &name]);
        if is_known { Ok(()) } else { Err(output) }
    });
    eprintln!("registered {:?} after the nameserver was back", clock.now().since_origin());
    assert_eq!(agreed_tracker(&network, &peers, epoch - 1), provisional, "the tracker and its epoch stay");
    let (_, list) = nsc(&network, &["list", "tracker."]);
    assert_eq!(list.lines().filter(|line| line.starts_with("tracker.")).count(), 1, "{list}");
}
