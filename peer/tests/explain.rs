//! The explanation of a download's rate, with a cap on either side.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{fs, process::Stdio};

use rustix::process::Signal;
use serde_json::Value;

mod common;
use common::{Network, noise, process::Program};

const MIB: usize = 1 << 20;

/// First finding of the only explanation in the document of a download.
fn first_finding(document: &Value) -> &Value {
    let explained = document["explain"].as_array().unwrap();
    assert_eq!(explained.len(), 1, "{document}");
    let finding = &explained[0]["findings"][0];
    assert_eq!(finding["limits"], true, "{document}");
    finding
}

#[test]
fn owner_cap_is_named_with_its_figure() {
    let network = Network::start();
    let content = noise(4 * MIB, 1);
    network.put("owner", "a.bin", &content);
    network.put("owner", "b.bin", &noise(2 * MIB, 2));
    let _owner = network.headless_with("owner", &["--limit-up", "2MiB"]);
    let _receiver = network.headless("receiver");
    network.wait_for_files("receiver", 2);

    let document = network.json("receiver", &["download", "a.bin", "--explain"]);
    assert!(fs::read(network.shared("receiver", "a.bin")).unwrap() == content);
    let found = first_finding(&document);
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
    // The source's rate leaves out the waits that the whole download has. A cap allows a burst after a pause.
    let overall = 4.0 / document["files"][0]["seconds"].as_f64().unwrap();
    assert!((0.75 * overall.min(2.0)..2.8).contains(&rate), "{overall:.2} MiB/s over all: {document}");

    let text = network.run("receiver", &["download", "b.bin", "--explain"]).out;
    let verdict = text.lines().find(|line| line.starts_with("b.bin: ")).unwrap_or_else(|| panic!("{text}"));
    assert!(verdict.starts_with("b.bin: limited by: the upload limit of owner ("), "{text}");
    assert!(text.contains("  from owner: 2.0 MiB at "), "{text}");
    // Without the flag there is no explanation.
    assert!(network.json("receiver", &["download", "b.bin"]).get("explain").is_none());
}

#[test]
fn owner_cap_is_named_for_packs_of_small_files() {
    let network = Network::start();
    for number in 0..200 {
        network.put("owner", &format!("tree/f{number}"), &noise(MIB / 25, number));
    }
    let _owner = network.headless_with("owner", &["--limit-up", "1MiB"]);
    let _receiver = network.headless("receiver");
    network.wait_for_files("receiver", 200);
    let download = network.begin("receiver", &["download", "tree/", "--explain", "--json"]);
    // Both sides show the download while it runs.
    network.json_until("receiver", &["status"], |status| {
        let finding = &status["running"][0]["findings"][0];
        finding["cause"] == "owner_limit" && finding["peers"][0] == "owner"
    });
    network.json_until("owner", &["status"], |status| status["uploads"].as_u64().unwrap() > 0);
    let finished = download.wait();
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let document: Value = serde_json::from_str(&finished.out).unwrap();
    let found = first_finding(&document);
    assert_eq!((&found["cause"], &found["figure"]), (&"owner_limit".into(), &"1.0 MiB/s".into()), "{document}");
}

#[test]
fn receiver_cap_is_named_and_status_shows_the_running_download() {
    let network = Network::start();
    network.put("owner", "a.bin", &noise(16 * MIB, 3));
    let _owner = network.headless("owner");
    let _receiver = network.headless_with("receiver", &["--limit-down", "2MiB"]);
    network.wait_for_files("receiver", 1);

    let download = network.begin("receiver", &["download", "a.bin", "--explain", "--json"]);
    let status = network.json_until("receiver", &["status"], |status| {
        let running = &status["running"][0];
        // The cap holds at any moment, not only on the average: QUIC buffers what arrives, and an uncapped reader would
        // take the whole buffer at once.
        let rate = running["bytes_per_second"].as_f64().unwrap_or(0.0) / MIB as f64;
        let done = running["bytes_done"].as_u64().unwrap_or(0) as usize;
        (2 * MIB..15 * MIB).contains(&done) && (1.0..3.5).contains(&rate)
    });
    let running = &status["running"][0];
    assert_eq!((&running["name"], &running["bytes_total"]), (&"a.bin".into(), &(16 * MIB).into()), "{status}");
    assert_eq!((&running["sources"], &status["limit_down"]), (&1.into(), &(2 * MIB).into()), "{status}");
    assert_eq!(running["findings"][0]["cause"], "own_limit", "{status}");
    assert!((0.1..15.0).contains(&running["seconds_left"].as_f64().unwrap()), "{status}");

    let finished = download.wait();
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let document: Value = serde_json::from_str(&finished.out).unwrap();
    let found = first_finding(&document);
    assert_eq!((&found["cause"], &found["figure"]), (&"own_limit".into(), &"2.0 MiB/s".into()), "{document}");
    assert_eq!(network.json("receiver", &["status"])["running"], serde_json::json!([]));
}

#[test]
fn queue_at_the_owner_is_named() {
    let network = Network::start();
    // The first download holds the slot long enough for the second to spend most of its time in the queue.
    network.put("owner", "a.bin", &noise(8 * MIB, 4));
    network.put("owner", "b.bin", &noise(MIB / 2, 5));
    let _owner = network.headless_with("owner", &["--limit-up", "1MiB", "--max-uploads", "1"]);
    let _first = network.headless("first");
    let _second = network.headless("second");
    network.wait_for_files("second", 2);
    let earlier = network.begin("first", &["download", "a.bin"]);
    network.json_until("owner", &["status"], |status| status["uploads"] == 1);
    let document = network.json("second", &["download", "b.bin", "--explain"]);
    let found = first_finding(&document);
    let causes: Vec<_> = document["explain"][0]["findings"].as_array().unwrap().iter().map(|of| &of["cause"]).collect();
    assert_eq!((&found["cause"], &found["peers"][0]), (&"owner_slots".into(), &"owner".into()), "{causes:?}");
    assert_eq!(earlier.wait().status, Some(0));
}

#[test]
fn stopping_one_of_several_downloads_leaves_the_others_running() {
    let network = Network::start();
    let contents = [noise(5 * MIB, 6), noise(5 * MIB, 7)];
    network.put("owner", "a.bin", &contents[0]);
    network.put("owner", "b.bin", &contents[1]);
    network.put("owner", "stopped.bin", &noise(64 * MIB, 8));
    let _owner = network.headless("owner");
    let _receiver = network.headless_with("receiver", &["--limit-down", "2MiB"]);
    network.wait_for_files("receiver", 3);
    let begin = |name: &str| network.begin("receiver", &["download", name]);
    let stopped = begin("stopped.bin");
    let running = |count: usize| {
        network.json_until("receiver", &["status"], |status| status["running"].as_array().unwrap().len() == count)
    };
    running(1);
    let others = ["a.bin", "b.bin"].map(begin);
    let status = running(3);
    assert_eq!(status["running"][0]["name"], "stopped.bin", "{status}");
    stopped.signal(Signal::INT);
    stopped.wait();
    network.json_until("receiver", &["status"], |status| !status["running"].to_string().contains("stopped.bin"));
    for other in others {
        let finished = other.wait();
        assert_eq!(finished.status, Some(0), "{finished:?}");
    }
    for (name, content) in ["a.bin", "b.bin"].iter().zip(&contents) {
        assert!(fs::read(network.shared("receiver", name)).unwrap() == *content, "{name}");
    }
}

/// `script` of util-linux makes the terminal.
#[test]
fn ctrl_c_at_the_prompt_stops_the_download_and_returns_to_the_prompt() {
    if std::process::Command::new("script").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no `script` here");
        return;
    }
    let network = Network::start();
    network.put("owner", "big.bin", &noise(64 * MIB, 9));
    let _owner = network.headless_with("owner", &["--limit-up", "1MiB"]);
    let peer = network.command("user", &[]);
    let words = std::iter::once(peer.get_program()).chain(peer.get_args()).map(|word| word.to_str().unwrap());
    // `exec` replaces the shell. A shell that stays is interrupted as well, and some end with status 130 then.
    let line = format!("exec {}", words.collect::<Vec<_>>().join(" "));
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qefc", &line, "/dev/null"]).env("BRASA_NAMESERVER", &network.address).env("TERM", "xterm");
    common::prepare(&mut terminal, network.folder());
    let mut user = Program::spawn(terminal.stdin(Stdio::piped()));
    // The output of the line editor comes between other lines; the prompt itself ends no line.
    user.wait_for_line("`help` lists the commands");
    network.wait_for_files("user", 1);
    user.write_line("download big.bin");
    network.json_until("user", &["status"], |status| status["running"][0]["bytes_done"].as_u64().unwrap_or(0) > 0);
    user.write_line("\u{3}");
    user.wait_for_line("error: interrupted");
    let status = network.json("user", &["status"]);
    assert_eq!(status["running"], serde_json::json!([]), "{status}");
    // The prompt takes the next command.
    user.write_line("tracker");
    user.wait_for_line("is tracker, epoch");
    user.write_line("exit");
    assert_eq!(user.wait().status, Some(0));
}
