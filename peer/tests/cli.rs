//! The command line of the real programs, against its contract in `docs/cli.md`.

mod common;

use std::{
    fs,
    process::{Command, Stdio},
};

use common::{
    Network, PEER, files, free_port, prepare,
    process::{Program, run_to_end},
    wait_for, without_election_reports,
};
use rustix::process::Signal;
use serde_json::{Value, json};

fn document(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn names(document: &Value) -> Vec<&str> {
    files(document).iter().map(|file| file["name"].as_str().expect("a name is a text")).collect()
}

/// The example of the program that this one replaces: `add` at one terminal, `listAll` and `download` at another.
#[test]
fn example_of_the_original_program_works_word_for_word() {
    let network = Network::start();
    let mut one = network.interactive("peer1", &[]);
    one.write_line("add arquivo_teste.txt");
    // One line for the file that was made, one for its entry in the share.
    assert!(one.next_line().contains("arquivo_teste.txt"));
    assert!(one.next_line().starts_with("shares arquivo_teste.txt"));
    let two = network.run_with_input("peer2", &[], "listAll\ndownload arquivo_teste.txt\nlist\n");
    assert_eq!((two.status, without_election_reports(&two.err).as_str()), (Some(0), ""));
    assert!(two.out.contains("peer1"), "{two:?}");
    let original = fs::read(network.shared("peer1", "arquivo_teste.txt")).unwrap();
    assert!(!original.is_empty());
    assert_eq!(fs::read(network.shared("peer2", "arquivo_teste.txt")).unwrap(), original);
    one.close_input();
    assert_eq!(one.wait().status, Some(0));
}

#[test]
fn commands_on_standard_input_work_and_wrong_ones_do_not_end_the_peer() {
    let network = Network::start();
    network.put("peer1", "docs/a.txt", b"abc");
    let input = "list\nlistAll\nlistall\nfrobnicate\nadd\nadd novo.txt\nremove novo.txt\nremove novo.txt\n\
                 tracker\npeers\neleger\nelect\nstatus\nhelp\nhelp download\ndownload 'open\nlist\nexit\nlist\n";
    let finished = network.run_with_input("peer1", &[], input);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    for part in ["docs/a.txt", "novo.txt", "peer1 is tracker", "quic://127.0.0.1:", "download NAME[@HASH]", "tracker"] {
        assert!(finished.out.contains(part), "{part}: {finished:?}");
    }
    // One line for each mistake: unknown command, missing argument, second removal, open quote.
    let errors = without_election_reports(&finished.err);
    let errors: Vec<&str> = errors.lines().collect();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors.iter().all(|line| line.starts_with("error: ") && line.ends_with(')')), "{errors:?}");
    assert!(errors[0].contains("unknown command") && errors[1].contains("usage: add PATH"), "{errors:?}");
    assert_eq!(finished.out.matches("docs/a.txt").count(), 4, "no command runs after `exit`: {finished:?}");
}

#[test]
fn json_mode_answers_each_line_of_input_with_one_document_in_order() {
    let network = Network::start();
    network.put("peer1", "b.txt", b"b");
    let mut peer = network.interactive("peer1", &["--json"]);
    // Writes the next line after it has read the answer to the one before.
    let mut ask = |line: &str| {
        peer.write_line(line);
        document(&peer.next_line())
    };
    assert_eq!(ask("frob")["error"]["code"], "unknown_command");
    assert_eq!(names(&ask("add a.txt")), ["a.txt"]);
    assert_eq!(names(&ask("list")), ["a.txt", "b.txt"]);
    assert_eq!(ask("remove nope")["error"]["code"], "no_such_file");
    assert_eq!(ask("")["error"]["code"], "usage");
    assert_eq!(ask("tracker")["peer"], "peer1");
    assert_eq!(ask("download nope.txt")["error"]["code"], "no_such_file");
    assert_eq!(ask("status")["peer"], "peer1");
    peer.close_input();
    let finished = peer.wait();
    let errors = without_election_reports(&finished.err);
    assert_eq!((finished.status, finished.out.as_str(), errors.as_str()), (Some(0), "", ""));
}

#[test]
fn json_documents_have_the_fields_of_the_contract() {
    let network = Network::start();
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    fs::write(network.folder().join("a.txt"), b"abc").unwrap();
    let hash = blake3::hash(b"abc").to_hex().to_string();
    let file = json!({"name": "a.txt", "size": 3, "hash": hash});

    assert_eq!(network.json("peer1", &["add", "a.txt"])["files"], json!([file]));
    assert_eq!(network.json("peer1", &["list"]), json!({"peer": "peer1", "files": [file]}));

    let mut owned = file.clone();
    owned["owners"] = json!(["peer1"]);
    network.wait_for_files("peer2", 1);
    // Another tracker may be elected at any time: the documents must be of one epoch.
    let tracker = wait_for("two documents of one epoch", || {
        let tracker = network.tracker("peer2");
        let all = network.wait_for_files("peer2", 1);
        if all["epoch"] != tracker["epoch"] {
            return Err(format!("{tracker} {all}"));
        }
        assert_eq!(all, json!({"epoch": tracker["epoch"], "tracker": tracker["peer"], "files": [owned]}));
        Ok(tracker)
    });
    assert!(["peer1", "peer2"].iter().any(|peer| tracker["peer"] == *peer), "{tracker}");
    assert!(tracker["epoch"].as_u64().unwrap() >= 1);
    assert!(tracker["address"].as_str().unwrap().starts_with("quic://127.0.0.1:"));

    let done = network.json("peer2", &["download", "a.txt", "--to", "copy.txt"]);
    let done = &done["files"][0];
    assert_eq!((&done["name"], &done["size"], &done["hash"]), (&file["name"], &file["size"], &file["hash"]));
    assert_eq!(done["sources"], json!([{"peer": "peer1", "bytes": 3}]));
    assert!(done["seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(fs::read(done["path"].as_str().unwrap()).unwrap(), b"abc");

    let peers = network.json("peer2", &["peers"]);
    let ids: Vec<_> = peers["peers"].as_array().unwrap().iter().map(|peer| peer["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["peer1", "peer2"]);

    let elected = network.json_until_success("peer2", &["eleger"]);
    assert!(elected["epoch"].as_u64() > tracker["epoch"].as_u64(), "{elected}");
    assert_eq!(network.json("peer1", &["remove", "a.txt"])["files"], json!([file]));
}

#[test]
fn one_shot_command_without_running_peer_starts_one_that_leaves() {
    let network = Network::start();
    let added = network.run("peer1", &["add", "novo.txt"]);
    assert_eq!((added.status, without_election_reports(&added.err).as_str()), (Some(0), ""));
    assert!(network.shared("peer1", "novo.txt").exists());
    // It has unregistered, and the query registers nobody.
    let peers = network.json("peer2", &["peers"]);
    assert_eq!(peers["peers"].as_array().unwrap().len(), 0, "{peers}");
    let not_running = network.run("peer1", &["exit"]);
    assert_eq!((not_running.status, not_running.out.as_str()), (Some(0), "peer1 is not running here\n"));
}

#[test]
fn one_shot_command_runs_in_the_running_peer_with_the_callers_folder() {
    let network = Network::start();
    let running = network.headless("peer1");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("mine.txt"), "mine").unwrap();
    let added =
        run_to_end(network.command("peer1", &["add", "mine.txt"]).current_dir(&elsewhere).stdin(Stdio::null()), "");
    assert_eq!(added.status, Some(0), "{added:?}");
    assert_eq!(fs::read(network.shared("peer1", "mine.txt")).unwrap(), b"mine");
    assert!(!elsewhere.path().join("compartilhados").exists(), "no second peer was started");

    let failed = network.run("peer1", &["remove", "nope"]);
    assert_eq!(failed.status, Some(1));
    assert!(failed.err.starts_with("error: "), "{failed:?}");
    let failed = network.run("peer1", &["remove", "nope", "--json"]);
    assert_eq!((failed.out.as_str(), &document(&failed.err)["error"]["code"]), ("", &json!("no_such_file")));

    assert_eq!(network.run("peer1", &["exit"]).status, Some(0));
    assert_eq!(running.wait().status, Some(0));
}

#[test]
fn killed_peer_can_be_started_again() {
    let network = Network::start();
    let _witness = network.headless("peer2");
    let running = network.headless("peer1");
    assert_eq!(network.run("peer1", &["kill"]).status, Some(0));
    assert_eq!(running.wait().status, Some(0));
    // The next command replaces the dead control socket.
    assert_eq!(network.run("peer1", &["list"]).status, Some(0));
}

#[test]
fn headless_peer_ends_cleanly_on_a_signal() {
    let network = Network::start();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let peer = network.headless("peer1");
        peer.signal(signal);
        let finished = peer.wait();
        let errors = without_election_reports(&finished.err);
        assert_eq!((finished.status, finished.out.as_str(), errors.as_str()), (Some(0), "", ""), "{signal:?}");
    }
}

#[test]
fn exit_statuses_follow_the_contract() {
    let network = Network::start();
    let status = |words: &[&str]| {
        let finished = network.run("peer1", words);
        let errors = without_election_reports(&finished.err);
        assert!(finished.status == Some(0) || errors.starts_with("error: "), "{words:?}: {finished:?}");
        assert!(errors.lines().count() <= 1, "{words:?}: {finished:?}");
        finished.status
    };
    assert_eq!(status(&["list"]), Some(0));
    assert_eq!(status(&["download", "nope.txt"]), Some(1));
    assert_eq!(status(&["frobnicate"]), Some(2));
    assert_eq!(status(&["download"]), Some(2));
    assert_eq!(status(&["--frobnicate", "list"]), Some(2));
    assert_eq!(status(&["-p", "nonsense", "list"]), Some(2));

    // A port at which nothing listens.
    assert_eq!(status(&["-p", &free_port().to_string(), "tracker"]), Some(3));
    assert_eq!(status(&["-p", &free_port().to_string(), "download", "nope.txt"]), Some(3));
    // The share of a peer that does not run needs no network.
    assert_eq!(status(&["-p", &free_port().to_string(), "list"]), Some(0));
    assert_eq!(status(&["status"]), Some(5));
    assert_eq!(status(&["eleger"]), Some(5));

    // A state folder without an identity of this network, and no token.
    let stranger = tempfile::tempdir().unwrap();
    let mut command = network.command("peer9", &["tracker"]);
    command.env("BRASA_STATE_DIR", stranger.path()).stdin(Stdio::null());
    let refused = run_to_end(&mut command, "");
    assert_eq!(refused.status, Some(4), "{refused:?}");
}

#[test]
fn usage_errors_need_no_network_and_follow_the_json_flag() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(PEER);
        command.args(words).stdin(Stdio::null());
        prepare(&mut command, folder.path());
        run_to_end(&mut command, "")
    };
    let unknown = run(&["peer1", "lsit"]);
    assert_eq!((unknown.status, unknown.out.as_str()), (Some(2), ""));
    assert!(unknown.err.contains("did you mean list"), "{unknown:?}");
    let unknown = run(&["peer1", "lsit", "--json"]);
    assert_eq!(document(&unknown.err)["error"]["code"], "unknown_command");
    let unknown = run(&["Peer!", "list", "--json"]);
    assert_eq!((unknown.status, &document(&unknown.err)["error"]["code"]), (Some(2), &json!("usage")));
    assert_eq!(run(&[]).status, Some(2));
    for (word, part) in [("--help", "Examples:"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let shown = run(&[word]);
        assert_eq!((shown.status, shown.err.as_str()), (Some(0), ""));
        assert!(shown.out.contains(part), "{shown:?}");
    }
    let help = run(&["peer1", "help"]);
    assert_eq!((help.status, help.err.as_str()), (Some(0), ""));
    assert!(help.out.contains("listAll") && help.out.contains("download"));
    assert!(fs::read_dir(&folder).unwrap().next().is_none(), "help writes no file");
}

#[test]
fn closed_standard_output_is_not_an_error() {
    let network = Network::start();
    let _running = network.headless("peer1");
    for words in [&["list"][..], &["help"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = network.command("peer1", words).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn();
        let output = child.unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{words:?}");
    }
}

#[test]
fn second_peer_of_the_same_id_fails_with_one_line() {
    let network = Network::start();
    let _first = network.headless("peer1");
    let second = Program::spawn(network.command("peer1", &["--headless"]).stdin(Stdio::null())).wait();
    assert_eq!(second.status, Some(1), "{second:?}");
    assert!(second.err.starts_with("error: ") && second.err.lines().count() == 1, "{second:?}");
}

#[test]
fn concurrent_commands_for_one_peer_all_succeed() {
    let network = Network::start();
    let files: Vec<String> = (0..4).map(|number| format!("{number}.txt")).collect();
    let finished: Vec<_> = std::thread::scope(|scope| {
        let network = &network;
        let run = |file: &String| {
            let file = file.clone();
            scope.spawn(move || network.run("peer1", &["add", &file]))
        };
        let running: Vec<_> = files.iter().map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for finished in &finished {
        let errors = without_election_reports(&finished.err);
        assert_eq!((finished.status, errors.as_str()), (Some(0), ""), "{finished:?}");
    }
    assert_eq!(names(&network.json("peer1", &["list"])), files);
}

#[test]
fn peer_with_nameserver_serves_other_commands() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let peer = |words: &[&str]| {
        let mut command = Command::new(PEER);
        command.arg("peer1").args(["-p", &port]).args(words).stdin(Stdio::null());
        prepare(&mut command, folder.path());
        command
    };
    let mut running = Program::spawn(&mut peer(&["--with-nameserver", "--headless"]));
    assert!(running.next_line().starts_with("[peer1] ready at "));
    assert_eq!(run_to_end(&mut peer(&["tracker"]), "").status, Some(0));
    running.signal(Signal::TERM);
    assert_eq!(running.wait().status, Some(0));
}
