//! Four machines as network namespaces on one bridge: a nameserver, two peers that join with tokens, and a stranger.
//! Needs root, `ip` and `tcpdump`, and is skipped with a message where they are missing.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
};

mod common;
use common::{process::WAIT, wait_for};

/// Text in the name and the content of the file that crosses the bridge.
const MARKER: &str = "brasa-marker-7f3a9c51e0";

/// The first requirement of this test that the machine does not meet.
fn missing_requirement() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    for (tool, ask) in [("ip", "-V"), ("tcpdump", "--version")] {
        if Command::new(tool).arg(ask).output().is_err() {
            return Some(format!("needs {tool}"));
        }
    }
    let name = format!("brasa-try-{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    match made {
        Ok(output) if output.status.success() => None,
        _ => Some("cannot make network namespaces".to_owned()),
    }
}

/// A bridge with machines on it, removed when dropped.
struct Bridge {
    tag: String,
    machines: Vec<String>,
}

impl Bridge {
    fn new() -> Self {
        let bridge = Self { tag: format!("brasa{}", std::process::id()), machines: Vec::new() };
        bridge.ip(&["netns", "add", &bridge.switch()]);
        bridge.ip(&["-n", &bridge.switch(), "link", "add", "br0", "type", "bridge"]);
        bridge.ip(&["-n", &bridge.switch(), "link", "set", "br0", "up"]);
        bridge
    }

    /// Namespace of the bridge.
    fn switch(&self) -> String {
        format!("{}-switch", self.tag)
    }

    /// Namespace of a machine.
    fn name(&self, machine: &str) -> String {
        format!("{}-{machine}", self.tag)
    }

    fn ip(&self, words: &[&str]) {
        let output = Command::new("ip").args(words).output().unwrap();
        assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Adds a machine with the address `10.77.0.<host>`.
    fn add_machine(&mut self, machine: &str, host: u8) {
        let (name, switch) = (self.name(machine), self.switch());
        let port = format!("p{host}");
        self.ip(&["netns", "add", &name]);
        self.machines.push(name.clone());
        self.ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        self.ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        self.ip(&["-n", &name, "addr", "add", &format!("10.77.0.{host}/24"), "dev", "eth0"]);
        self.ip(&["-n", &name, "link", "set", "eth0", "up"]);
        self.ip(&["-n", &name, "link", "set", "lo", "up"]);
    }

    /// A program on a machine.
    fn command(&self, machine: &str, program: &Path) -> Command {
        self.command_in(&self.name(machine), program)
    }

    fn command_in(&self, namespace: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        for variable in ["BRASA_NAMESERVER", "BRASA_STATE_DIR", "BRASA_JOIN"] {
            command.env_remove(variable);
        }
        command
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for namespace in self.machines.iter().chain([&self.switch()]) {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// A program, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program and waits for its first line on standard output, or on standard error with `errors`.
fn start(mut command: Command, errors: bool) -> (Running, String) {
    let (out, err) = if errors { (Stdio::null(), Stdio::piped()) } else { (Stdio::piped(), Stdio::inherit()) };
    let mut child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
    let stream: Box<dyn std::io::Read + Send> =
        if errors { Box::new(child.stderr.take().unwrap()) } else { Box::new(child.stdout.take().unwrap()) };
    let running = Running(child);
    let (sender, first) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stream).lines();
        let _ = sender.send(lines.next());
        // A full pipe would block the program.
        lines.for_each(drop);
    });
    let line = first.recv_timeout(WAIT).expect("a first line within the deadline");
    (running, line.expect("a first line before the end").unwrap())
}

/// Runs a program that must succeed and returns its standard output.
fn succeed(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// The machines and a folder for each of them.
struct Site {
    bridge: Bridge,
    folder: tempfile::TempDir,
}

impl Site {
    /// The `peer` program on the machine of its id, with folders of its own.
    fn peer(&self, id: &str) -> Command {
        let home = self.home(id);
        let mut command = self.bridge.command(id, Path::new(env!("CARGO_BIN_EXE_peer")));
        command.arg(id).arg("--state-dir").arg(home.join("state")).arg("--dir").arg(home.join("share"));
        command.current_dir(home);
        command
    }

    /// Folder of a machine.
    fn home(&self, machine: &str) -> PathBuf {
        let home = self.folder.path().join(machine);
        fs::create_dir_all(&home).unwrap();
        home
    }

    /// A join token from the nameserver.
    fn token(&self) -> String {
        let mut nsc = self.bridge.command("ns", &common::program("nsc"));
        nsc.args(["-n", "10.77.0.1"]).env("BRASA_STATE_DIR", self.home("ns").join("state")).arg("token");
        succeed(nsc).trim().to_owned()
    }
}

#[test]
fn file_crosses_machines_encrypted_and_stranger_is_refused() {
    if let Some(why) = missing_requirement() {
        // Written past the capture of the test runner, so that a reader sees it.
        let _ = writeln!(std::io::stderr(), "\nSKIPPED file_crosses_machines_encrypted_and_stranger_is_refused: {why}");
        return;
    }
    let mut bridge = Bridge::new();
    for (host, machine) in (1..).zip(["ns", "peer1", "peer2", "stranger"]) {
        bridge.add_machine(machine, host);
    }
    let site = Site { bridge, folder: tempfile::tempdir().unwrap() };

    let capture = site.folder.path().join("wire.pcap");
    let mut tcpdump = site.bridge.command_in(&site.bridge.switch(), Path::new("tcpdump"));
    tcpdump.args(["-i", "br0", "-s", "0", "-U", "-Z", "root", "-w"]).arg(&capture);
    let (tcpdump, _) = start(tcpdump, true);

    let mut nameserver = site.bridge.command("ns", &common::program("nameserver"));
    nameserver.args(["-n", "10.77.0.1", "--state-dir"]).arg(site.home("ns").join("state"));
    let (_nameserver, line) = start(nameserver, false);
    assert_eq!(line, "NS running on 10.77.0.1:9090");

    // Each peer joins with a token of its own and needs none afterwards.
    let mut peers = Vec::new();
    for (id, address) in [("peer1", "10.77.0.2"), ("peer2", "10.77.0.3")] {
        let mut join = site.peer(id);
        join.args(["--join", &site.token(), "list"]);
        succeed(join);
        let mut peer = site.peer(id);
        peer.arg("--headless");
        let (peer, line) = start(peer, false);
        assert!(line.starts_with(&format!("[{id}] ready at {address}:")), "{line}");
        peers.push(peer);
    }

    let name = format!("{MARKER}.txt");
    let source = site.home("peer1").join(&name);
    let content = format!("{MARKER}\n").repeat(100_000);
    fs::write(&source, &content).unwrap();
    let mut add = site.peer("peer1");
    add.arg("add").arg(&source);
    succeed(add);
    let list_all = || {
        let mut list_all = site.peer("peer2");
        list_all.args(["listAll", "--json"]);
        list_all.stdin(Stdio::null()).output().unwrap()
    };
    wait_for("the file in the index", || {
        let output = list_all();
        if contains(&output.stdout, &name) { Ok(()) } else { Err(format!("{output:?}")) }
    });
    let mut download = site.peer("peer2");
    download.args(["download", &name, "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&succeed(download)).unwrap();
    assert_eq!(answer["files"][0]["sources"][0]["peer"], "peer1");
    assert_eq!(fs::read_to_string(site.home("peer2").join("share").join(&name)).unwrap(), content);

    stranger_is_refused(&site);

    // The capture contains a marker that is sent in plain text.
    let plain = "plain-marker-55e1";
    let mut send_plain = site.bridge.command("peer1", Path::new("bash"));
    send_plain.args(["-c", &format!("echo {plain} > /dev/udp/10.77.0.1/7")]);
    succeed(send_plain);
    let wire = wait_for("plain marker in the capture", || {
        let wire = fs::read(&capture).unwrap();
        if contains(&wire, plain) { Ok(wire) } else { Err(format!("{} bytes captured", wire.len())) }
    });
    drop(tcpdump);
    assert!(wire.len() > content.len(), "the capture contains the transfer: {} bytes", wire.len());
    assert!(!contains(&wire, MARKER), "the marker crossed the bridge in plain text");
}

/// A machine without a valid token gets nothing from the network.
fn stranger_is_refused(site: &Site) {
    let refused = |mut command: Command, status: i32| {
        let Output { status: ended, stderr, .. } = command.stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(ended.code(), Some(status), "{error}");
        assert!(error.starts_with("error: "), "{error}");
        error
    };
    let mut alone = site.peer("stranger");
    alone.args(["-n", "10.77.0.1", "listAll"]);
    let error = refused(alone, 4);
    assert!(error.contains("nsc token"), "the hint names the remedy: {error}");

    // A token with the right authority and address, and a wrong secret.
    let token: certs::JoinToken = site.token().parse().unwrap();
    let forged = certs::JoinToken::new(token.authority, token.addresses).unwrap();
    let mut with_forged = site.peer("stranger");
    with_forged.args(["--join", &forged.to_string(), "listAll"]);
    refused(with_forged, 4);

    // A token that was used before.
    let used = site.token();
    let mut guest = site.peer("stranger");
    guest.args(["--join", &used, "list"]);
    succeed(guest);
    fs::remove_dir_all(site.home("stranger").join("state")).unwrap();
    let mut again = site.peer("stranger");
    again.args(["--join", &used, "list"]);
    refused(again, 4);

    // The admin's tool without the admin's state folder.
    let mut nsc = site.bridge.command("stranger", &common::program("nsc"));
    nsc.args(["-n", "10.77.0.1", "list"]).env("BRASA_STATE_DIR", site.home("stranger").join("other"));
    refused(nsc, 4);
}
