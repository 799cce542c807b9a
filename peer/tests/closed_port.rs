//! A killed tracker is noticed by its closed port: the kernel of its machine refuses datagrams to it, long before its
//! silence would raise suspicion.

use rustix::process::Signal;
use serde_json::Value;

mod common;
use common::{Network, process::Program};

/// Rounds in which the survivors may notice the silence first: a process that gets no processor for as long as the
/// silence takes has no chance to probe the port.
const ROUNDS: usize = 5;

#[test]
fn killed_tracker_is_suspected_for_its_closed_port() {
    let network = Network::start();
    let ids = ["peer1", "peer2", "peer3"];
    let mut peers: Vec<(&str, Program)> = ids.map(|id| (id, network.headless(id))).into();
    let mut reasons = Vec::new();
    for _ in 0..ROUNDS {
        for (peer, _) in &peers {
            network.json_until(peer, &["peers"], |known| known["peers"].as_array().is_some_and(|all| all.len() == 3));
        }
        let before = network.tracker("peer1");
        let at = peers.iter().position(|(peer, _)| before["peer"] == **peer).expect("the tracker is one of the peers");
        let (id, tracker) = peers.remove(at);
        for (_, survivor) in &mut peers {
            survivor.error_lines_so_far();
        }
        tracker.signal(Signal::KILL);
        let is_later = |after: &Value| after["epoch"].as_u64() > before["epoch"].as_u64();
        for (peer, _) in &peers {
            network.json_until(peer, &["tracker"], is_later);
        }
        // One survivor's suspicion starts the election; the other may follow the new tracker without one of its own.
        let logs = peers.iter_mut().flat_map(|(_, survivor)| survivor.error_lines_so_far());
        let suspicions: Vec<_> = logs.filter(|line| line.contains("TrackerSuspected")).collect();
        if !suspicions.is_empty() && suspicions.iter().all(|line| line.contains("why: Unreachable")) {
            return;
        }
        reasons.push(suspicions);
        peers.push((id, network.headless(id)));
    }
    panic!("in {ROUNDS} rounds the closed port was never the only reason for suspicion: {reasons:#?}");
}
