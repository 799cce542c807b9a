//! Why a download is slow: what the programs say of it, with a cap on either side.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{fs, process::Stdio, thread};

use serde_json::Value;

mod common;
use common::{
    Deadline, Network,
    process::{Program, WAIT, finish},
};

const MIB: usize = 1 << 20;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn wait_for_files(network: &Network, peer: &str, count: usize) {
    network.json_until(peer, &["listAll"], |all| all["files"].as_array().unwrap().len() == count);
}

/// The first finding of the only explanation of a download's document.
fn first(document: &Value) -> &Value {
    let explained = document["explain"].as_array().unwrap();
    assert_eq!(explained.len(), 1, "{document}");
    let finding = &explained[0]["findings"][0];
    assert_eq!(finding["limits"], true, "{document}");
    finding
}

#[test]
fn the_owners_cap_is_named_with_its_figure() {
    let network = Network::start();
    let content = noise(4 * MIB, 1);
    network.put("owner", "a.bin", &content);
    network.put("owner", "b.bin", &noise(2 * MIB, 2));
    let _owner = network.headless_with("owner", &["--limit-up", "2MiB"]);
    let _receiver = network.headless("receiver");
    wait_for_files(&network, "receiver", 2);

    let document = network.json("receiver", &["download", "a.bin", "--explain"]);
    assert!(fs::read(network.shared("receiver", "a.bin")).unwrap() == content);
    let found = first(&document);
    assert_eq!((&found["cause"], &found["peers"][0]), (&"owner_limit".into(), &"owner".into()), "{document}");
    assert_eq!(found["figure"], "2.0 MiB/s", "{document}");
    let explained = &document["explain"][0];
    assert_eq!((&explained["name"], &explained["bytes"]), (&"a.bin".into(), &(4 * MIB).into()), "{document}");
    assert!(
        explained["verdict"].as_str().unwrap().starts_with("limited by: the upload limit of owner ("),
        "{document}"
    );
    let source = &explained["sources"][0];
    assert_eq!((&source["peer"], &source["bytes"]), (&"owner".into(), &(4 * MIB).into()), "{document}");
    assert!(source["rtt_seconds"].as_f64().unwrap() > 0.0, "{document}");
    let rate = source["bytes_per_second"].as_f64().unwrap() / MIB as f64;
    assert!((1.5..2.8).contains(&rate), "{document}");

    let text = network.run("receiver", &["download", "b.bin", "--explain"]).out;
    let verdict = text.lines().find(|line| line.starts_with("b.bin: ")).unwrap_or_else(|| panic!("{text}"));
    assert!(verdict.starts_with("b.bin: limited by: the upload limit of owner ("), "{text}");
    assert!(text.contains("  from owner: 2.0 MiB at "), "{text}");
    // Whoever does not ask for it sees nothing of it.
    assert!(network.json("receiver", &["download", "b.bin"]).get("explain").is_none());
}

#[test]
fn the_owners_cap_is_named_for_small_files_too_which_come_in_packs() {
    let network = Network::start();
    for number in 0..100 {
        network.put("owner", &format!("tree/f{number}"), &noise(MIB / 25, number));
    }
    let _owner = network.headless_with("owner", &["--limit-up", "1MiB"]);
    let _receiver = network.headless("receiver");
    wait_for_files(&network, "receiver", 100);
    let mut command = network.command("receiver", &["download", "tree/", "--explain", "--json"]);
    let download = thread::spawn(move || finish(command.stdin(Stdio::null()), ""));
    // Both sides show it while it runs.
    network.json_until("receiver", &["status"], |status| {
        let finding = &status["running"][0]["findings"][0];
        finding["cause"] == "owner_limit" && finding["peers"][0] == "owner"
    });
    let status = network.json("owner", &["status"]);
    assert!(status["uploads"].as_u64().unwrap() > 0, "{status}");
    let ended = download.join().unwrap();
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let document: Value = serde_json::from_str(&ended.out).unwrap();
    let found = first(&document);
    assert_eq!((&found["cause"], &found["figure"]), (&"owner_limit".into(), &"1.0 MiB/s".into()), "{document}");
}

#[test]
fn the_receivers_own_cap_is_named_and_status_shows_the_download_meanwhile() {
    let network = Network::start();
    network.put("owner", "a.bin", &noise(16 * MIB, 3));
    let _owner = network.headless("owner");
    let _receiver = network.headless_with("receiver", &["--limit-down", "2MiB"]);
    wait_for_files(&network, "receiver", 1);

    let mut command = network.command("receiver", &["download", "a.bin", "--explain", "--json"]);
    let download = thread::spawn(move || finish(command.stdin(Stdio::null()), ""));
    let status = network.json_until("receiver", &["status"], |status| {
        let running = &status["running"][0];
        // Not only on average: QUIC keeps all that came in one piece, and a reader that takes it whole takes it at once.
        let rate = running["bytes_per_second"].as_f64().unwrap_or(0.0) / MIB as f64;
        running["bytes_done"].as_u64().is_some_and(|done| done > 2 * MIB as u64) && (1.0..3.5).contains(&rate)
    });
    let running = &status["running"][0];
    assert_eq!((&running["name"], &running["bytes_total"]), (&"a.bin".into(), &(16 * MIB).into()), "{status}");
    assert_eq!((&running["sources"], &status["limit_down"]), (&1.into(), &(2 * MIB).into()), "{status}");
    assert_eq!(running["findings"][0]["cause"], "own_limit", "{status}");
    assert!((0.1..15.0).contains(&running["seconds_left"].as_f64().unwrap()), "{status}");

    let ended = download.join().unwrap();
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let document: Value = serde_json::from_str(&ended.out).unwrap();
    let found = first(&document);
    assert_eq!((&found["cause"], &found["figure"]), (&"own_limit".into(), &"2.0 MiB/s".into()), "{document}");
    assert_eq!(network.json("receiver", &["status"])["running"], serde_json::json!([]));
}

#[test]
fn a_queue_at_the_owner_is_named() {
    let network = Network::start();
    network.put("owner", "a.bin", &noise(3 * MIB, 4));
    network.put("owner", "b.bin", &noise(MIB / 2, 5));
    let _owner = network.headless_with("owner", &["--limit-up", "1MiB", "--max-uploads", "1"]);
    let _first = network.headless("first");
    let _second = network.headless("second");
    wait_for_files(&network, "second", 2);
    let mut command = network.command("first", &["download", "a.bin"]);
    let earlier = thread::spawn(move || finish(command.stdin(Stdio::null()), ""));
    network.json_until("owner", &["status"], |status| status["uploads"] == 1);
    let document = network.json("second", &["download", "b.bin", "--explain"]);
    let found = first(&document);
    let causes: Vec<_> = document["explain"][0]["findings"].as_array().unwrap().iter().map(|of| &of["cause"]).collect();
    assert_eq!((&found["cause"], &found["peers"][0]), (&"owner_slots".into(), &"owner".into()), "{causes:?}");
    assert_eq!(earlier.join().unwrap().status, Some(0));
}

#[test]
fn a_peer_carries_out_several_downloads_at_a_time_and_one_that_is_stopped_leaves_the_others_alone() {
    let network = Network::start();
    let contents = [noise(3 * MIB, 6), noise(3 * MIB, 7)];
    network.put("owner", "a.bin", &contents[0]);
    network.put("owner", "b.bin", &contents[1]);
    network.put("owner", "stopped.bin", &noise(64 * MIB, 8));
    let _owner = network.headless("owner");
    let _receiver = network.headless_with("receiver", &["--limit-down", "2MiB"]);
    wait_for_files(&network, "receiver", 3);
    let begin = |name: &str| {
        let mut command = network.command("receiver", &["download", name]);
        Program::spawn(command.stdin(Stdio::null()))
    };
    let stopped = begin("stopped.bin");
    let running = |count: usize| {
        network.json_until("receiver", &["status"], |status| status["running"].as_array().unwrap().len() == count)
    };
    running(1);
    let others = ["a.bin", "b.bin"].map(begin);
    let status = running(3);
    assert_eq!(status["running"][0]["name"], "stopped.bin", "{status}");
    stopped.signal(rustix::process::Signal::INT);
    stopped.wait();
    network.json_until("receiver", &["status"], |status| !status["running"].to_string().contains("stopped.bin"));
    for other in others {
        let ended = other.wait();
        assert_eq!(ended.status, Some(0), "{ended:?}");
    }
    for (name, content) in ["a.bin", "b.bin"].iter().zip(&contents) {
        assert!(fs::read(network.shared("receiver", name)).unwrap() == *content, "{name}");
    }
}

/// At a terminal, which `script` of util-linux makes: Ctrl-C stops the download, not the peer.
#[test]
fn ctrl_c_at_the_prompt_stops_the_download_and_gives_the_prompt_back() {
    if std::process::Command::new("script").arg("--version").output().is_err() {
        eprintln!("left out: there is no `script` here");
        return;
    }
    let network = Network::start();
    network.put("owner", "big.bin", &noise(16 * MIB, 9));
    let _owner = network.headless_with("owner", &["--limit-up", "1MiB"]);
    let peer = network.command("user", &[]);
    let words = std::iter::once(peer.get_program()).chain(peer.get_args()).map(|word| word.to_str().unwrap());
    // `exec`: a shell that stayed would be interrupted as well, and some end with 130 for it whatever the peer says.
    let line = format!("exec {}", words.collect::<Vec<_>>().join(" "));
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qefc", &line, "/dev/null"]).env("BRASA_NAMESERVER", &network.address).env("TERM", "xterm");
    common::prepare(&mut terminal, network.folder());
    terminal.env("BRASA_NAMESERVER", &network.address);
    let mut user = Program::spawn(terminal.stdin(Stdio::piped()));
    // The words of a line that is edited come between others; the prompt itself ends no line.
    let until = |user: &mut Program, wanted: &str| {
        let deadline = Deadline::after(WAIT);
        while !user.line().contains(wanted) {
            deadline.pause(wanted);
        }
    };
    until(&mut user, "`help` lists the commands");
    wait_for_files(&network, "user", 1);
    user.say("download big.bin");
    network.json_until("user", &["status"], |status| status["running"][0]["bytes_done"].as_u64().unwrap_or(0) > 0);
    user.say("\u{3}");
    until(&mut user, "error: stopped");
    let status = network.json("user", &["status"]);
    assert_eq!(status["running"], serde_json::json!([]), "{status}");
    // The prompt takes the next command.
    user.say("tracker");
    until(&mut user, "is tracker, epoch");
    user.say("exit");
    assert_eq!(user.wait().status, Some(0));
}
