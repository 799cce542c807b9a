//! The real `nsc` against the real `nameserver`: what it prints and how it exits.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use common::Program;

/// Runs `nsc`; what it printed, what it complained, and its exit status.
fn nsc(state_dir: &Path, arguments: &[&str], input: &str) -> (String, String, i32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nsc"))
        .args(["--state-dir", state_dir.to_str().unwrap()])
        .args(arguments)
        .env_remove("BRASA_NAMESERVER")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Fails only when it does not read, which is its right.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code().unwrap())
}

struct Bench {
    folder: tempfile::TempDir,
    program: Program,
}

impl Bench {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Program::start(folder.path(), 0);
        Self { folder, program }
    }

    fn nsc(&self, arguments: &[&str]) -> (String, String, i32) {
        nsc(self.folder.path(), arguments, "")
    }

    #[track_caller]
    fn prints(&self, arguments: &[&str], expected: &str) {
        let (out, complaint, status) = self.nsc(arguments);
        assert_eq!((out.as_str(), status), (expected, 0), "{arguments:?}: {complaint}");
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], status: i32, complaint: &str) {
        let (out, said, exited) = self.nsc(arguments);
        assert_eq!((exited, out.as_str()), (status, ""), "{arguments:?}: {said}");
        assert!(said.contains(complaint), "{arguments:?}: {said}");
    }
}

#[test]
fn nsc_prints_what_pyro5s_prints() {
    let bench = Bench::start();
    let own = format!("nameserver --> quic://{}\n    metadata: {{'brasa.nameserver'}}\n", bench.program.address);
    bench.prints(&["ping"], "Name server ping ok.\n");
    bench.prints(&["list"], &format!("--------START LIST \n{own}--------END LIST \n"));
    bench.prints(
        &["listmatching", "name.$"],
        "--------START LIST - regex 'name.$'\n--------END LIST - regex 'name.$'\n",
    );
    bench.prints(&["register", "name1", "quic://hostname:9999"], "Registered name1\n");
    bench.prints(&["register", "name2", "quic://[::1]:9999", "b", "a"], "Registered name2\n");
    bench.prints(&["lookup", "name1"], "quic://hostname:9999\n");
    bench.prints(&["lookup", "name2"], "quic://[::1]:9999\nmetadata: {'a', 'b'}\n");
    bench.prints(
        &["list", "name1"],
        "--------START LIST - prefix 'name1'\nname1 --> quic://hostname:9999\n--------END LIST - prefix 'name1'\n",
    );
    bench.prints(&["setmeta", "name1", "t"], "Metadata updated\n");
    let found = "--------START LIST  - searched by metadata\n\
                 name1 --> quic://hostname:9999\n    metadata: {'t'}\n\
                 --------END LIST  - searched by metadata\n";
    bench.prints(&["yplookup_all", "t"], found);
    bench.prints(&["yplookup_any", "t", "u"], found);
    bench.prints(&["setmeta", "name1"], "Metadata cleared\n");
    bench.prints(&["remove", "name3"], "Nothing removed\n");
    bench.prints(&["remove", "nameserver"], "Nothing removed\n");
    bench.prints(&["remove", "name1"], "Removed name1\n");
    let verbose = format!(
        "Locating name server...\nName server found: quic://{}\nName server ping ok.\nDone.\n",
        bench.program.address
    );
    bench.prints(&["-v", "ping"], &verbose);
}

#[test]
fn removematching_asks_first() {
    let bench = Bench::start();
    let question = "Potentially removing lots of items from the Name server. Are you sure (y/n)?";
    for name in ["x1", "x2", "y"] {
        bench.prints(&["register", name, "quic://h:1"], &format!("Registered {name}\n"));
    }
    let answered = |answer: &str| nsc(bench.folder.path(), &["removematching", "x."], answer);
    assert_eq!(answered("n\n"), (question.to_owned(), String::new(), 0));
    let (_, complaint, status) = answered("");
    assert!(status == 1 && complaint.starts_with("error: nothing was removed ("), "{complaint}");
    assert_eq!(answered("y\n"), (format!("{question}2 items removed.\n"), String::new(), 0));
    assert!(bench.nsc(&["list"]).0.contains("y --> quic://h:1\n"));
}

#[test]
fn a_reader_that_is_gone_ends_it_in_peace() {
    let bench = Bench::start();
    let unread = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_nsc"));
        command.args(["--state-dir", bench.folder.path().to_str().unwrap()]).args(arguments);
        command.env_remove("BRASA_NAMESERVER").stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let ended = command.spawn().unwrap().wait_with_output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    assert_eq!(unread(&["list"]), (Some(0), String::new()));
    bench.prints(&["register", "x1", "quic://h:1"], "Registered x1\n");
    let (status, complaint) = unread(&["removematching", "x."]);
    assert!(status == Some(1) && complaint.contains("cannot be written"), "nobody was asked: {status:?} {complaint}");
    assert!(bench.nsc(&["list"]).0.contains("x1"));
}

#[test]
fn failures_are_said_on_standard_error_and_by_the_exit_status() {
    let bench = Bench::start();
    bench.prints(&["register", "x", "quic://h:1"], "Registered x\n");
    bench.fails(&["lookup", "WeirdName"], 1, "error: WeirdName was not found (unknown name \"WeirdName\"; ");
    bench.fails(&["register", "x", "quic://h:2"], 1, "x is registered already");
    bench.fails(&["register", "y", "no-uri"], 2, "is not an endpoint");
    bench.fails(&["listmatching", "((broken"], 2, "not a regular expression: unclosed group");
    bench.fails(&["register", "peer.a", "quic://h:1"], 4, "not authorised");
    for wrong in [&["--invalidarg"][..], &["foo"], &["lookup"], &["lookup", "a", "b"], &["yplookup_all"], &[]] {
        bench.fails(wrong, 2, "error: wrong command line (");
    }
    let (help, _, status) = bench.nsc(&["-h"]);
    assert!(status == 0 && help.contains("Usage"));
}

#[test]
fn an_unreachable_nameserver_is_exit_status_3_and_no_identity_4() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let (_, complaint, status) = nsc(folder.path(), &["-p", &port, "ping"], "");
    assert!(status == 3 && complaint.starts_with("error: the nameserver cannot be reached ("), "{complaint}");

    let bench = Bench::start();
    let port = bench.program.port().to_string();
    let (_, complaint, status) = nsc(folder.path(), &["-n", "127.0.0.1", "-p", &port, "ping"], "");
    assert!(status == 4 && complaint.contains("as the user who runs the nameserver"), "{complaint}");
}

#[test]
fn a_token_is_one_line_that_can_be_read_back() {
    let bench = Bench::start();
    let (line, _, status) = bench.nsc(&["token", "--ttl", "5m", "--uses", "3", "--for", "peer2"]);
    assert_eq!(status, 0);
    let token: certs::JoinToken = line.strip_suffix('\n').unwrap().parse().unwrap();
    assert_eq!(token.addresses, [bench.program.address.as_str()]);
    bench.fails(&["token", "--ttl", "0"], 2, "a token needs a time");
    bench.fails(&["token", "--ttl", "60d"], 1, "limit reached");
    bench.fails(&["token", "--for", "Not A Peer"], 2, "is not a peer id");
}
