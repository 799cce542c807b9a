//! Four machines, as network namespaces with addresses of their own on one bridge: a nameserver, two peers that join
//! with tokens, and a stranger. Needs root, `ip` and `tcpdump`; says so and skips where they are missing.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

mod common;

const MARKER: &str = "brasa-marker-7f3a9c51e0";
const STEP: Duration = Duration::from_secs(30);

/// What this test needs and does not find; `None` when everything is there.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    for (tool, ask) in [("ip", "-V"), ("tcpdump", "--version")] {
        if Command::new(tool).arg(ask).output().is_err() {
            return Some(format!("it needs {tool}"));
        }
    }
    let name = format!("brasa-try-{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    let _ = Command::new("ip").args(["netns", "del", &name]).output();
    match made {
        Ok(output) if output.status.success() => None,
        _ => Some("network namespaces cannot be made here".to_owned()),
    }
}

/// A bridge and machines on it; all of it goes when dropped.
struct Lab {
    tag: String,
    machines: Vec<String>,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { tag: format!("brasa{}", std::process::id()), machines: Vec::new() };
        lab.ip(&["netns", "add", &lab.switch()]);
        lab.ip(&["-n", &lab.switch(), "link", "add", "br0", "type", "bridge"]);
        lab.ip(&["-n", &lab.switch(), "link", "set", "br0", "up"]);
        lab
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.tag)
    }

    fn name(&self, machine: &str) -> String {
        format!("{}-{machine}", self.tag)
    }

    fn ip(&self, words: &[&str]) {
        let output = Command::new("ip").args(words).output().unwrap();
        assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A machine with the address `10.77.0.<host>`.
    fn machine(&mut self, machine: &str, host: u8) {
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

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self.machines.iter().chain([&self.switch()]) {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// A program that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program and waits for its first line on `stream`.
fn start(mut command: Command, errors: bool) -> (Running, String) {
    let (out, err) = if errors { (Stdio::null(), Stdio::piped()) } else { (Stdio::piped(), Stdio::inherit()) };
    let mut child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
    let stream: Box<dyn std::io::Read + Send> =
        if errors { Box::new(child.stderr.take().unwrap()) } else { Box::new(child.stdout.take().unwrap()) };
    let running = Running(child);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(stream).lines();
        let _ = tell.send(lines.next());
        // Reading on keeps the program from dying of a full pipe.
        lines.for_each(drop);
    });
    let line = told.recv_timeout(STEP).expect("a first line within the deadline");
    (running, line.expect("a first line before the end").unwrap())
}

fn succeed(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

struct Site {
    lab: Lab,
    folder: tempfile::TempDir,
}

impl Site {
    /// The program of a peer on its own machine, with its own folders.
    fn peer(&self, id: &str) -> Command {
        let home = self.home(id);
        let mut command = self.lab.command(id, Path::new(env!("CARGO_BIN_EXE_peer")));
        command.arg(id).arg("--state-dir").arg(home.join("state")).arg("--dir").arg(home.join("share"));
        command.current_dir(home);
        command
    }

    fn home(&self, machine: &str) -> PathBuf {
        let home = self.folder.path().join(machine);
        fs::create_dir_all(&home).unwrap();
        home
    }

    fn token(&self) -> String {
        let mut nsc = self.lab.command("ns", &common::program("nsc"));
        nsc.args(["-n", "10.77.0.1"]).env("BRASA_STATE_DIR", self.home("ns").join("state")).arg("token");
        succeed(nsc).trim().to_owned()
    }
}

#[test]
fn a_file_crosses_machines_encrypted_and_a_stranger_can_do_nothing() {
    if let Some(why) = missing() {
        // Written past the test runner's capture, so that it is seen.
        let _ = writeln!(std::io::stderr(), "\nSKIPPED a_file_crosses_machines…: {why}");
        return;
    }
    let mut lab = Lab::new();
    for (host, machine) in (1..).zip(["ns", "peer1", "peer2", "stranger"]) {
        lab.machine(machine, host);
    }
    let site = Site { lab, folder: tempfile::tempdir().unwrap() };

    let capture = site.folder.path().join("wire.pcap");
    let mut tcpdump = site.lab.command_in(&site.lab.switch(), Path::new("tcpdump"));
    tcpdump.args(["-i", "br0", "-s", "0", "-U", "-Z", "root", "-w"]).arg(&capture);
    let (tcpdump, _) = start(tcpdump, true);

    let mut nameserver = site.lab.command("ns", &common::program("nameserver"));
    nameserver.args(["-n", "10.77.0.1", "--state-dir"]).arg(site.home("ns").join("state"));
    let (_nameserver, line) = start(nameserver, false);
    assert_eq!(line, "NS running on 10.77.0.1:9090");

    // Each joins with a token of its own; afterwards its id alone is enough.
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
    let mut download = site.peer("peer2");
    download.args(["download", &name, "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&succeed(download)).unwrap();
    assert_eq!(answer["files"][0]["sources"][0]["peer"], "peer1");
    assert_eq!(fs::read_to_string(site.home("peer2").join("share").join(&name)).unwrap(), content);

    stranger_can_do_nothing(&site);

    // The capture would see a marker that is not encrypted.
    let plain = "plain-marker-55e1";
    let mut shout = site.lab.command("peer1", Path::new("bash"));
    shout.args(["-c", &format!("echo {plain} > /dev/udp/10.77.0.1/7")]);
    succeed(shout);
    let deadline = common::Deadline::after(STEP);
    let wire = loop {
        let wire = fs::read(&capture).unwrap();
        if contains(&wire, plain) {
            break wire;
        }
        deadline.pause("the capture to have the plain marker");
    };
    drop(tcpdump);
    assert!(wire.len() > content.len(), "the capture has the transfer: {} bytes", wire.len());
    assert!(!contains(&wire, MARKER), "the marker was on the wire");
}

fn stranger_can_do_nothing(site: &Site) {
    let refused = |mut command: Command, status: i32| {
        let Output { status: ended, stderr, .. } = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(ended.code(), Some(status), "{said}");
        assert!(said.starts_with("error: "), "{said}");
        said
    };
    let mut alone = site.peer("stranger");
    alone.args(["-n", "10.77.0.1", "listAll"]);
    let said = refused(alone, 4);
    assert!(said.contains("nsc token"), "says what to do: {said}");

    // A token whose secret is wrong: right authority, right address.
    let token: certs::JoinToken = site.token().parse().unwrap();
    let forged = certs::JoinToken::new(token.authority, token.addresses).unwrap();
    let mut with_forged = site.peer("stranger");
    with_forged.args(["--join", &forged.to_string(), "listAll"]);
    refused(with_forged, 4);

    // A token that was used.
    let used = site.token();
    let mut guest = site.peer("stranger");
    guest.args(["--join", &used, "list"]);
    succeed(guest);
    fs::remove_dir_all(site.home("stranger").join("state")).unwrap();
    let mut again = site.peer("stranger");
    again.args(["--join", &used, "list"]);
    refused(again, 4);

    // An admin's tool without an admin's place.
    let mut nsc = site.lab.command("stranger", &common::program("nsc"));
    nsc.args(["-n", "10.77.0.1", "list"]).env("BRASA_STATE_DIR", site.home("stranger").join("other"));
    refused(nsc, 4);
}
