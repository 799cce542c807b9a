//! The tracker is killed: the others do not wait for its silence, since its machine says that nobody has its port any more.

use std::process::Stdio;

use rustix::process::Signal;

mod common;
use common::{Network, process::Program};

#[test]
fn a_killed_tracker_is_missed_for_its_port_and_not_for_its_silence() {
    let network = Network::start();
    let mut peers: Vec<(String, Program)> = Vec::new();
    for number in 1..=3 {
        let id = format!("peer{number}");
        let mut command = network.command(&id, &["--headless"]);
        let mut program =
            Program::spawn(command.env("BRASA_LOG", "peer::runtime::core_task=info").stdin(Stdio::null()));
        assert!(program.line().starts_with(&format!("[{id}] ready at ")));
        peers.push((id, program));
    }
    for (peer, _) in &peers {
        network.json_until(peer, &["peers"], |known| known["peers"].as_array().is_some_and(|all| all.len() == 3));
    }
    let before = network.json("peer1", &["tracker"]);
    let at = peers.iter().position(|(peer, _)| before["peer"] == peer.as_str()).expect("the tracker is one of them");
    let (_, tracker) = peers.remove(at);
    tracker.signal(Signal::KILL);
    for (peer, program) in &mut peers {
        let why = loop {
            let line = program.error_line();
            if line.contains("TrackerSuspected") {
                break line;
            }
        };
        assert!(why.contains("why: Unreachable"), "{peer}: {why}");
    }
    let (peer, _) = &peers[0];
    network.json_until(peer, &["tracker"], |after| after["epoch"].as_u64() > before["epoch"].as_u64());
}
