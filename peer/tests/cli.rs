//! The command line of the real programs, against its contract (`docs/cli.md`).

mod common;

use std::{
    fs,
    process::{Command, Stdio},
};

use common::{
    Network, PEER, prepare,
    process::{Program, finish},
};
use rustix::process::Signal;
use serde_json::{Value, json};

fn document(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

fn names(document: &Value) -> Vec<&str> {
    let files = document["files"].as_array().unwrap_or_else(|| panic!("no files in {document}"));
    files.iter().map(|file| file["name"].as_str().expect("a name is a text")).collect()
}

/// The original's example: three terminals, `add` in one, `listAll` and `download` in another.
#[test]
fn the_originals_example_works_word_for_word() {
    let network = Network::start();
    let mut one = network.interactive("peer1", &[]);
    one.say("add arquivo_teste.txt");
    // That the file was made, and that it is shared.
    assert!(one.line().contains("arquivo_teste.txt"));
    assert!(one.line().starts_with("shares arquivo_teste.txt"));
    let two = network.run_with_input("peer2", &[], "listAll\ndownload arquivo_teste.txt\nlist\n");
    assert_eq!((two.status, two.err.as_str()), (Some(0), ""));
    assert!(two.out.contains("peer1"), "{two:?}");
    let original = fs::read(network.shared("peer1", "arquivo_teste.txt")).unwrap();
    assert!(!original.is_empty());
    assert_eq!(fs::read(network.shared("peer2", "arquivo_teste.txt")).unwrap(), original);
    one.close_input();
    assert_eq!(one.wait().status, Some(0));
}

#[test]
fn every_command_works_on_standard_input_and_a_wrong_one_does_not_end_the_peer() {
    let network = Network::start();
    network.put("peer1", "docs/a.txt", b"abc");
    let input = "list\nlistAll\nlistall\nfrobnicate\nadd\nadd novo.txt\nremove novo.txt\nremove novo.txt\n\
                 tracker\npeers\neleger\nelect\nstatus\nhelp\nhelp download\ndownload 'open\nlist\nexit\nlist\n";
    let ended = network.run_with_input("peer1", &[], input);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    for part in ["docs/a.txt", "novo.txt", "peer1 is tracker", "quic://127.0.0.1:", "download NAME[@HASH]", "tracker"] {
        assert!(ended.out.contains(part), "{part}: {ended:?}");
    }
    // One line each: unknown, missing argument, removed twice, open quote.
    let errors: Vec<&str> = ended.err.lines().collect();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors.iter().all(|line| line.starts_with("error: ") && line.ends_with(')')), "{errors:?}");
    assert!(errors[0].contains("unknown command") && errors[1].contains("usage: add PATH"), "{errors:?}");
    assert_eq!(ended.out.matches("docs/a.txt").count(), 4, "nothing is carried out after exit: {ended:?}");
}

#[test]
fn with_json_each_line_of_input_gives_one_document_in_order() {
    let network = Network::start();
    network.put("peer1", "b.txt", b"b");
    let mut peer = network.interactive("peer1", &["--json"]);
    // In turns: the next line is written after the answer was read.
    let mut ask = |line: &str| {
        peer.say(line);
        document(&peer.line())
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
    let ended = peer.wait();
    assert_eq!((ended.status, ended.out.as_str(), ended.err.as_str()), (Some(0), "", ""));
}

#[test]
fn json_documents_have_the_contracts_fields() {
    let network = Network::start();
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    fs::write(network.folder().join("a.txt"), b"abc").unwrap();
    let hash = blake3::hash(b"abc").to_hex().to_string();
    let file = json!({"name": "a.txt", "size": 3, "hash": hash});

    assert_eq!(network.json("peer1", &["add", "a.txt"])["files"], json!([file]));
    assert_eq!(network.json("peer1", &["list"]), json!({"peer": "peer1", "files": [file]}));

    let tracker = network.json("peer2", &["tracker"]);
    assert_eq!(tracker["peer"], "peer1");
    assert!(tracker["epoch"].as_u64().unwrap() >= 1);
    assert!(tracker["address"].as_str().unwrap().starts_with("quic://127.0.0.1:"));

    let all = network.json_until("peer2", &["listAll"], |all| !names(all).is_empty());
    let mut owned = file.clone();
    owned["owners"] = json!(["peer1"]);
    assert_eq!(all, json!({"epoch": tracker["epoch"], "tracker": "peer1", "files": [owned]}));

    let done = network.json("peer2", &["download", "a.txt", "--to", "copy.txt"]);
    let done = &done["files"][0];
    assert_eq!((&done["name"], &done["size"], &done["hash"]), (&file["name"], &file["size"], &file["hash"]));
    assert_eq!(done["sources"], json!([{"peer": "peer1", "bytes": 3}]));
    assert!(done["seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(fs::read(done["path"].as_str().unwrap()).unwrap(), b"abc");

    let peers = network.json("peer2", &["peers"]);
    let ids: Vec<_> = peers["peers"].as_array().unwrap().iter().map(|peer| peer["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["peer1", "peer2"]);

    let elected = network.json("peer2", &["eleger"]);
    assert!(elected["epoch"].as_u64() > tracker["epoch"].as_u64(), "{elected}");
    assert_eq!(network.json("peer1", &["remove", "a.txt"])["files"], json!([file]));
}

#[test]
fn one_command_without_a_running_peer_starts_one_that_leaves() {
    let network = Network::start();
    let added = network.run("peer1", &["add", "novo.txt"]);
    assert_eq!((added.status, added.err.as_str()), (Some(0), ""));
    assert!(network.shared("peer1", "novo.txt").exists());
    // It has left: nobody of that name is there for another peer.
    let peers = network.json("peer2", &["peers"]);
    assert_eq!(peers["peers"].as_array().unwrap().len(), 1, "{peers}");
    let not_running = network.run("peer1", &["exit"]);
    assert_eq!((not_running.status, not_running.out.as_str()), (Some(0), "peer1 is not running here\n"));
}

#[test]
fn one_command_is_carried_out_by_the_running_peer_in_the_callers_folder() {
    let network = Network::start();
    let running = network.headless("peer1");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("mine.txt"), "mine").unwrap();
    let ended = finish(network.command("peer1", &["add", "mine.txt"]).current_dir(&elsewhere).stdin(Stdio::null()), "");
    assert_eq!(ended.status, Some(0), "{ended:?}");
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
fn kill_ends_a_peer_without_a_word_to_the_others() {
    let network = Network::start();
    let _witness = network.headless("peer2");
    let running = network.headless("peer1");
    assert_eq!(network.run("peer1", &["kill"]).status, Some(0));
    assert_eq!(running.wait().status, Some(0));
    // Its socket is dead; the next command takes its place.
    assert_eq!(network.run("peer1", &["list"]).status, Some(0));
}

#[test]
fn a_headless_peer_ends_cleanly_by_a_signal() {
    let network = Network::start();
    for signal in [Signal::TERM, Signal::INT] {
        let peer = network.headless("peer1");
        peer.signal(signal);
        let ended = peer.wait();
        assert_eq!((ended.status, ended.out.as_str(), ended.err.as_str()), (Some(0), "", ""), "{signal:?}");
    }
}

#[test]
fn exit_statuses_tell_what_went_wrong() {
    let network = Network::start();
    let status = |words: &[&str]| {
        let ended = network.run("peer1", words);
        assert!(ended.status == Some(0) || ended.err.starts_with("error: "), "{words:?}: {ended:?}");
        assert!(ended.err.lines().count() <= 1, "{words:?}: {ended:?}");
        ended.status
    };
    assert_eq!(status(&["list"]), Some(0));
    assert_eq!(status(&["download", "nope.txt"]), Some(1));
    assert_eq!(status(&["frobnicate"]), Some(2));
    assert_eq!(status(&["download"]), Some(2));
    assert_eq!(status(&["--frobnicate", "list"]), Some(2));
    assert_eq!(status(&["-p", "nonsense", "list"]), Some(2));

    // A port that was free a moment ago, and on which nobody answers.
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    assert_eq!(status(&["-p", &free, "list"]), Some(3));

    // Another user of the network has no token for it.
    let stranger = tempfile::tempdir().unwrap();
    let mut command = network.command("peer9", &["list"]);
    command.env("BRASA_STATE_DIR", stranger.path()).stdin(Stdio::null());
    let refused = finish(&mut command, "");
    assert_eq!(refused.status, Some(4), "{refused:?}");
}

#[test]
fn a_usage_error_needs_no_network_and_is_json_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(PEER);
        command.args(words).stdin(Stdio::null());
        prepare(&mut command, folder.path());
        finish(&mut command, "")
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
        let ended = run(&[word]);
        assert_eq!((ended.status, ended.err.as_str()), (Some(0), ""));
        assert!(ended.out.contains(part), "{ended:?}");
    }
    let help = run(&["peer1", "help"]);
    assert_eq!((help.status, help.err.as_str()), (Some(0), ""));
    assert!(help.out.contains("listAll") && help.out.contains("download"));
    assert!(fs::read_dir(&folder).unwrap().next().is_none(), "help leaves nothing behind");
}

#[test]
fn a_reader_that_is_gone_is_no_error() {
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
fn a_second_peer_of_the_same_id_is_refused_with_a_reason() {
    let network = Network::start();
    let _first = network.headless("peer1");
    let second = Program::spawn(network.command("peer1", &["--headless"]).stdin(Stdio::null())).wait();
    assert_eq!(second.status, Some(1), "{second:?}");
    assert!(second.err.starts_with("error: ") && second.err.lines().count() == 1, "{second:?}");
}

#[test]
fn commands_for_one_peer_at_the_same_time_are_all_carried_out() {
    let network = Network::start();
    let files: Vec<String> = (0..4).map(|number| format!("{number}.txt")).collect();
    let ended: Vec<_> = std::thread::scope(|scope| {
        let network = &network;
        let run = |file: &String| {
            let file = file.clone();
            scope.spawn(move || network.run("peer1", &["add", &file]))
        };
        let running: Vec<_> = files.iter().map(run).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for ended in &ended {
        assert_eq!((ended.status, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    }
    assert_eq!(names(&network.json("peer1", &["list"])), files);
}

#[test]
fn a_peer_can_be_the_nameserver_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let peer = |words: &[&str]| {
        let mut command = Command::new(PEER);
        command.arg("peer1").args(["-p", &free]).args(words).stdin(Stdio::null());
        prepare(&mut command, folder.path());
        command
    };
    let mut running = Program::spawn(&mut peer(&["--with-nameserver", "--headless"]));
    assert!(running.line().starts_with("[peer1] ready at "));
    assert_eq!(finish(&mut peer(&["tracker"]), "").status, Some(0));
    running.signal(Signal::TERM);
    assert_eq!(running.wait().status, Some(0));
}
