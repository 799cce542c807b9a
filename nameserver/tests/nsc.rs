//! The program `nsc` against the program `nameserver`: output and exit status.
#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

mod common;

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use common::Program;

/// Runs `nsc`; returns its standard output, its standard error and its exit status.
fn nsc(state_dir: &Path, arguments: &[&str], input: &str) -> (String, String, i32) {
    nsc_with(state_dir, &[], arguments, input)
}

/// Like [`nsc`], with environment variables.
fn nsc_with(state_dir: &Path, variables: &[(&str, &str)], arguments: &[&str], input: &str) -> (String, String, i32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nsc"))
        .args(["--state-dir", state_dir.to_str().unwrap()])
        .args(arguments)
        .env_remove("BRASA_NAMESERVER")
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Fails when `nsc` ends without reading, which is not an error.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.code().unwrap())
}

/// A nameserver and the `nsc` of its user.
struct Fixture {
    folder: tempfile::TempDir,
    program: Program,
}

impl Fixture {
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
        let (out, err, status) = self.nsc(arguments);
        assert_eq!((out.as_str(), status), (expected, 0), "{arguments:?}: {err}");
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], expected: i32, message: &str) {
        let (out, err, status) = self.nsc(arguments);
        assert_eq!((status, out.as_str()), (expected, ""), "{arguments:?}: {err}");
        assert!(err.contains(message), "{arguments:?}: {err}");
    }
}

#[test]
fn output_has_the_format_of_pyro5() {
    let fixture = Fixture::start();
    let own = format!("nameserver --> quic://{}\n    metadata: {{'brasa.nameserver'}}\n", fixture.program.address);
    fixture.prints(&["ping"], "Name server ping ok.\n");
    fixture.prints(&["list"], &format!("--------START LIST \n{own}--------END LIST \n"));
    fixture.prints(
        &["listmatching", "name.$"],
        "--------START LIST - regex 'name.$'\n--------END LIST - regex 'name.$'\n",
    );
    fixture.prints(&["register", "name1", "quic://hostname:9999"], "Registered name1\n");
    fixture.prints(&["register", "name2", "quic://[::1]:9999", "b", "a"], "Registered name2\n");
    fixture.prints(&["lookup", "name1"], "quic://hostname:9999\n");
    fixture.prints(&["lookup", "name2"], "quic://[::1]:9999\nmetadata: {'a', 'b'}\n");
    fixture.prints(
        &["list", "name1"],
        "--------START LIST - prefix 'name1'\nname1 --> quic://hostname:9999\n--------END LIST - prefix 'name1'\n",
    );
    fixture.prints(&["setmeta", "name1", "t"], "Metadata updated\n");
    let found = "--------START LIST  - searched by metadata\n\
                 name1 --> quic://hostname:9999\n    metadata: {'t'}\n\
                 --------END LIST  - searched by metadata\n";
    fixture.prints(&["yplookup_all", "t"], found);
    fixture.prints(&["yplookup_any", "t", "u"], found);
    fixture.prints(&["setmeta", "name1"], "Metadata cleared\n");
    fixture.prints(&["remove", "name3"], "Nothing removed\n");
    fixture.prints(&["remove", "nameserver"], "Nothing removed\n");
    fixture.prints(&["remove", "name1"], "Removed name1\n");
    let verbose = format!(
        "Locating name server...\nName server found: quic://{}\nName server ping ok.\nDone.\n",
        fixture.program.address
    );
    fixture.prints(&["-v", "ping"], &verbose);
}

#[test]
fn removematching_requires_a_confirmation() {
    let fixture = Fixture::start();
    let question = "Potentially removing lots of items from the Name server. Are you sure (y/n)?";
    for name in ["x1", "x2", "y"] {
        fixture.prints(&["register", name, "quic://h:1"], &format!("Registered {name}\n"));
    }
    let answered = |answer: &str| nsc(fixture.folder.path(), &["removematching", "x."], answer);
    assert_eq!(answered("n\n"), (question.to_owned(), String::new(), 0));
    let (_, err, status) = answered("");
    assert!(status == 1 && err.starts_with("error: nothing was removed ("), "{err}");
    assert_eq!(answered("y\n"), (format!("{question}2 items removed.\n"), String::new(), 0));
    assert!(fixture.nsc(&["list"]).0.contains("y --> quic://h:1\n"));
}

#[test]
fn closed_standard_output_ends_nsc_without_an_error() {
    let fixture = Fixture::start();
    let with_closed_output = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_nsc"));
        command.args(["--state-dir", fixture.folder.path().to_str().unwrap()]).args(arguments);
        command.env_remove("BRASA_NAMESERVER").stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let ended = command.spawn().unwrap().wait_with_output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    assert_eq!(with_closed_output(&["list"]), (Some(0), String::new()));
    fixture.prints(&["register", "x1", "quic://h:1"], "Registered x1\n");
    let (status, err) = with_closed_output(&["removematching", "x."]);
    assert!(status == Some(1) && err.contains("cannot be written"), "removed without a confirmation: {status:?} {err}");
    assert!(fixture.nsc(&["list"]).0.contains("x1"));
}

#[test]
fn failure_is_reported_on_standard_error_and_by_the_exit_status() {
    let fixture = Fixture::start();
    fixture.prints(&["register", "x", "quic://h:1"], "Registered x\n");
    fixture.fails(&["lookup", "WeirdName"], 1, "error: WeirdName was not found (unknown name \"WeirdName\"; ");
    fixture.fails(&["register", "x", "quic://h:2"], 1, "x is registered already");
    fixture.fails(&["register", "y", "no-uri"], 2, "is not an endpoint");
    fixture.fails(&["listmatching", "((broken"], 2, "not a regular expression: unclosed group");
    fixture.fails(&["register", "peer.a", "quic://h:1"], 4, "not authorised");
    for wrong in [&["--invalidarg"][..], &["foo"], &["lookup"], &["lookup", "a", "b"], &["yplookup_all"], &[]] {
        fixture.fails(wrong, 2, "error: wrong command line (");
    }
    let (help, _, status) = fixture.nsc(&["-h"]);
    assert!(status == 0 && help.contains("Usage"));
}

#[test]
fn unreachable_nameserver_exits_with_3_and_missing_identity_with_4() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let (_, err, status) = nsc(folder.path(), &["-p", &port, "ping"], "");
    assert!(status == 3 && err.starts_with("error: the nameserver cannot be reached ("), "{err}");

    let fixture = Fixture::start();
    let port = fixture.program.port().to_string();
    let (_, err, status) = nsc(folder.path(), &["-n", "127.0.0.1", "-p", &port, "ping"], "");
    assert!(status == 4 && err.contains("as the user who runs it"), "{err}");
}

#[test]
fn token_is_printed_as_one_parseable_line() {
    let fixture = Fixture::start();
    let (line, _, status) = fixture.nsc(&["token", "--ttl", "5m", "--uses", "3", "--for", "peer2"]);
    assert_eq!(status, 0);
    let token: certs::JoinToken = line.strip_suffix('\n').unwrap().parse().unwrap();
    assert_eq!(token.addresses, [fixture.program.address.as_str()]);
    fixture.fails(&["token", "--ttl", "0"], 2, "a token needs a life");
    fixture.fails(&["token", "--ttl", "60d"], 1, "limit reached");
    fixture.fails(&["token", "--for", "Not A Peer"], 2, "is not a peer id");
}

#[test]
fn nameserver_variable_without_a_port_is_completed_by_flag_or_default() {
    let fixture = Fixture::start();
    let port = fixture.program.port().to_string();
    let with_variable = |variable: &str, arguments: &[&str]| {
        nsc_with(fixture.folder.path(), &[("BRASA_NAMESERVER", variable)], arguments, "")
    };
    let ping_ok = ("Name server ping ok.\n".to_owned(), String::new(), 0);
    assert_eq!(with_variable("127.0.0.1", &["-p", &port, "ping"]), ping_ok);
    // Names under `invalid` never resolve (RFC 6761 section 6.4): the variable is valid, but its host is unknown.
    let (_, err, status) = with_variable("lab.invalid", &["ping"]);
    assert!(status == 3 && err.contains("lab.invalid:9090"), "{status}: {err}");
    let (_, err, status) = with_variable("lab:port", &["ping"]);
    assert!(status == 2 && err.contains("BRASA_NAMESERVER"), "{status}: {err}");
}

#[test]
fn host_flag_takes_its_port_from_the_nameserver_variable() {
    let fixture = Fixture::start();
    let elsewhere = format!("lab.invalid:{}", fixture.program.port());
    let answer = nsc_with(fixture.folder.path(), &[("BRASA_NAMESERVER", &elsewhere)], &["-n", "127.0.0.1", "ping"], "");
    assert_eq!(answer, ("Name server ping ok.\n".to_owned(), String::new(), 0));
}
