//! Real programs for tests: a nameserver and peers in a temporary folder. Every wait has a deadline, and a program is
//! killed when its handle is dropped.

#![expect(dead_code, reason = "each test program compiles this module for itself and uses another part of it")]

pub(crate) mod fake_peer;
pub(crate) mod process;

use std::{
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, Once},
    time::Duration,
};

use process::{Finished, Program, WAIT, run_to_end};
use serde_json::Value;
use shared::{content::ContentHash, time::Clock};

/// Path of the `peer` program.
pub(crate) const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// Pause between two polls of a condition.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Ports below every common range of ephemeral ports, so that no socket bound to port 0 takes one of them.
const FIXED_PORTS: std::ops::Range<u16> = 12_000..31_000;

/// Path of another program of the workspace (`nameserver`, `nsc`), which lies beside `peer`. Builds it if cargo built
/// `peer` alone.
pub(crate) fn program(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let beside = Path::new(PEER).parent().expect("programs lie in a folder");
    let program = beside.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !program.exists() {
        BUILT.call_once(|| {
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "-p", "nameserver", "--bins", "--target-dir"]);
            build.arg(beside.parent().expect("the profile's folder lies in the target folder"));
            if beside.ends_with("release") {
                build.arg("--release");
            }
            assert!(build.status().expect("cargo runs").success(), "cargo cannot build the nameserver's programs");
        });
    }
    program
}

/// Polls until `poll` returns a value. `poll` returns the state it found as an error as long as the event has not
/// happened.
///
/// # Panics
/// After [`WAIT`], with the last state.
pub(crate) fn wait_for<T>(event: &str, poll: impl FnMut() -> Result<T, String>) -> T {
    wait_for_within(WAIT, event, poll)
}

/// The same with another deadline, for a bound that the product promises.
pub(crate) fn wait_for_within<T>(wait: Duration, event: &str, mut poll: impl FnMut() -> Result<T, String>) -> T {
    let clock = Clock::start();
    let end = clock.now() + wait;
    loop {
        match poll() {
            Ok(value) => return value,
            Err(state) => assert!(clock.now() < end, "no {event} within {wait:?}; last state: {state}"),
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

/// `len` pseudorandom bytes.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Hash under which peers share `content`.
pub(crate) fn content_hash(content: &[u8]) -> ContentHash {
    ContentHash(*blake3::hash(content).as_bytes())
}

/// A UDP port that is free and that no socket bound to port 0 takes meanwhile. Test programs begin at different ports.
pub(crate) fn free_port() -> u16 {
    let ports = u32::from(FIXED_PORTS.end - FIXED_PORTS.start);
    let first = std::process::id().wrapping_mul(7919) % ports + fastrand::u32(0..64);
    (first..first + ports)
        .map(|number| FIXED_PORTS.start + u16::try_from(number % ports).expect("the range holds 16-bit ports"))
        .find(|port| UdpSocket::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// Standard error without the reports of elections. A peer reports at any time that it suspects the tracker; on a busy
/// machine it does so rightly.
pub(crate) fn without_election_reports(error_output: &str) -> String {
    let is_report = |line: &&str| !["TrackerSuspected", "SteppedDown"].iter().any(|report| line.contains(report));
    error_output.lines().filter(is_report).map(|line| format!("{line}\n")).collect()
}

/// Files of a `list`, `listAll` or `download` document.
pub(crate) fn files(document: &Value) -> &[Value] {
    document["files"].as_array().unwrap_or_else(|| panic!("no files in {document}"))
}

/// A nameserver in a temporary folder. The folder holds the state of its peers and, as their working directory, their
/// shares.
pub(crate) struct Network {
    folder: tempfile::TempDir,
    /// `HOST:PORT` of the nameserver.
    pub(crate) address: String,
    /// Behind a lock so that threads of a test can share the network.
    nameserver: Mutex<Option<Program>>,
}

impl Network {
    /// Starts a nameserver on a free port and waits until it serves.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut nameserver = start_nameserver(folder.path(), "0");
        let line = nameserver.next_line();
        let address = line.strip_prefix("NS running on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { folder, address, nameserver: Mutex::new(Some(nameserver)) }
    }

    /// Port of the nameserver, as a flag takes it.
    pub(crate) fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("an address has a port")
    }

    /// Kills the nameserver with SIGKILL.
    pub(crate) fn kill_nameserver(&mut self) {
        *self.nameserver.get_mut().expect("no test panicked while it held the lock") = None;
    }

    /// Starts the nameserver again on the same port with its stored state.
    pub(crate) fn restart_nameserver(&mut self) {
        let mut nameserver = start_nameserver(self.folder(), self.port());
        assert_eq!(nameserver.next_line(), format!("NS running on {}", self.address));
        *self.nameserver.get_mut().expect("no test panicked while it held the lock") = Some(nameserver);
    }

    /// Working directory of all programs.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Path of a file in a peer's share.
    pub(crate) fn shared(&self, peer: &str, file: &str) -> PathBuf {
        self.folder().join("compartilhados").join(peer).join(file)
    }

    /// Writes a file into a peer's share, past the peer.
    pub(crate) fn put(&self, peer: &str, file: &str, content: &[u8]) {
        let path = self.shared(peer, file);
        std::fs::create_dir_all(path.parent().expect("a share is a folder")).expect("the share can be made");
        std::fs::write(path, content).expect("the file can be written");
    }

    /// The command `peer PEER words…` in this network, not started.
    pub(crate) fn command(&self, peer: &str, words: &[&str]) -> Command {
        let mut command = Command::new(PEER);
        command.arg(peer).args(words).env("BRASA_NAMESERVER", &self.address);
        prepare(&mut command, self.folder());
        command
    }

    /// Starts `peer PEER words…` with nothing on standard input.
    pub(crate) fn begin(&self, peer: &str, words: &[&str]) -> Program {
        Program::spawn(self.command(peer, words).stdin(Stdio::null()))
    }

    /// Starts `peer PEER --headless` and waits until it has joined. It need not know a tracker by then: see
    /// [`tracker`](Self::tracker).
    pub(crate) fn headless(&self, peer: &str) -> Program {
        self.headless_with(peer, &[])
    }

    /// The same with further flags.
    pub(crate) fn headless_with(&self, peer: &str, flags: &[&str]) -> Program {
        let mut program = self.begin(peer, &[&["--headless"], flags].concat());
        let line = program.next_line();
        assert!(line.starts_with(&format!("[{peer}] ready at ")), "{line:?}");
        program
    }

    /// Starts `peer PEER words…` with a standard input to write lines to.
    pub(crate) fn interactive(&self, peer: &str, words: &[&str]) -> Program {
        Program::spawn(self.command(peer, words).stdin(Stdio::piped()))
    }

    /// Runs `peer PEER words…` to its end, with nothing on standard input.
    pub(crate) fn run(&self, peer: &str, words: &[&str]) -> Finished {
        run_to_end(self.command(peer, words).stdin(Stdio::null()), "")
    }

    /// Runs `peer PEER words…` to its end, with `input` on standard input.
    pub(crate) fn run_with_input(&self, peer: &str, words: &[&str], input: &str) -> Finished {
        run_to_end(self.command(peer, words).stdin(Stdio::piped()), input)
    }

    /// Runs a one-shot command that must succeed and returns its JSON document.
    pub(crate) fn json(&self, peer: &str, words: &[&str]) -> Value {
        let finished = self.run(peer, &[words, &["--json"]].concat());
        let errors = without_election_reports(&finished.err);
        assert_eq!((finished.status, errors.as_str()), (Some(0), ""), "{words:?}: {finished:?}");
        serde_json::from_str(&finished.out).unwrap_or_else(|error| panic!("{error}: {:?}", finished.out))
    }

    /// Repeats a one-shot command until it succeeds and returns its JSON document.
    pub(crate) fn json_until_success(&self, peer: &str, words: &[&str]) -> Value {
        wait_for(&format!("success of {words:?}"), || {
            let finished = self.run(peer, &[words, &["--json"]].concat());
            if finished.status != Some(0) {
                return Err(format!("{finished:?}"));
            }
            Ok(serde_json::from_str(&finished.out).expect("a JSON document"))
        })
    }

    /// Repeats a one-shot command until its JSON document is as wanted. A network without a tracker is a state that
    /// passes; any other failure fails the test.
    pub(crate) fn json_until(&self, peer: &str, words: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("wanted answer of {words:?}"), || {
            let finished = self.run(peer, &[words, &["--json"]].concat());
            if finished.status != Some(0) && finished.err.contains("\"no_tracker\"") {
                return Err(finished.err);
            }
            let errors = without_election_reports(&finished.err);
            assert_eq!((finished.status, errors.as_str()), (Some(0), ""), "{words:?}: {finished:?}");
            let document = serde_json::from_str(&finished.out).expect("a JSON document");
            if wanted(&document) { Ok(document) } else { Err(document.to_string()) }
        })
    }

    /// Waits until a peer knows a tracker and returns the document of `tracker`.
    pub(crate) fn tracker(&self, peer: &str) -> Value {
        self.json_until(peer, &["tracker"], |tracker| tracker["peer"].is_string())
    }

    /// Waits until `listAll` of a peer has `count` files, and each of them `owners` owners.
    pub(crate) fn wait_for_owners(&self, peer: &str, count: usize, owners: usize) -> Value {
        self.json_until(peer, &["listAll"], |listing| {
            let files = files(listing);
            files.len() == count && files.iter().all(|file| file["owners"].as_array().map(Vec::len) == Some(owners))
        })
    }

    /// Waits until `listAll` of a peer has `count` files.
    pub(crate) fn wait_for_files(&self, peer: &str, count: usize) -> Value {
        self.json_until(peer, &["listAll"], |listing| files(listing).len() == count)
    }

    /// Waits until `list` of a peer has `count` files.
    pub(crate) fn wait_for_own_files(&self, peer: &str, count: usize) -> Value {
        self.json_until(peer, &["list"], |listing| files(listing).len() == count)
    }
}

fn start_nameserver(folder: &Path, port: &str) -> Program {
    let mut command = Command::new(program("nameserver"));
    command.args(["-n", "127.0.0.1", "-p", port]).stdin(Stdio::null());
    prepare(&mut command, folder);
    Program::spawn(&mut command)
}

/// Makes a command run in `folder`, with its state there and without the settings of the user's own network.
pub(crate) fn prepare(command: &mut Command, folder: &Path) {
    command.current_dir(folder).env("BRASA_STATE_DIR", folder.join("state")).env_remove("BRASA_LOG");
    for variable in ["BRASA_NAMESERVER", "BRASA_JOIN"] {
        if !command.get_envs().any(|(name, _)| name == variable) {
            command.env_remove(variable);
        }
    }
}
