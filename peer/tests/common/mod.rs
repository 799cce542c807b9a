//! Real programs for tests: a nameserver and peers with a state folder and shares of their own, waited for with
//! deadlines and killed when dropped.

#![expect(dead_code, reason = "each test program compiles this for itself and uses another part of it")]

pub(crate) mod answers;
pub(crate) mod describer;
pub(crate) mod flapper;
pub(crate) mod impostor;
pub(crate) mod leaver;
pub(crate) mod liar;
pub(crate) mod process;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, Once},
    time::Duration,
};

use process::{Ended, Program, WAIT, finish};
use shared::time::{Clock, Timestamp};

/// The `peer` program.
pub(crate) const PEER: &str = env!("CARGO_BIN_EXE_peer");

/// A program of the workspace (`nameserver`, `nsc`): beside `peer`, built if only `peer` was asked for.
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
            assert!(build.status().expect("cargo runs").success(), "the nameserver's programs are built");
        });
    }
    program
}

/// A point in time until which something must have come.
pub(crate) struct Deadline {
    clock: Clock,
    end: Timestamp,
}

impl Deadline {
    /// The point this far from now.
    pub(crate) fn after(wait: Duration) -> Self {
        let clock = Clock::start();
        Self { end: clock.now() + wait, clock }
    }

    /// Waits a moment before the next look; fails the test when the deadline is over.
    pub(crate) fn pause(&self, what: &str) {
        assert!(self.clock.now() < self.end, "{what} did not come in time");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A nameserver in a temporary folder, in which peers find their state and, as their working directory, their
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
        Self::start_with(&[])
    }

    /// The same with further flags for the nameserver.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(program("nameserver"));
        command.args(["-n", "127.0.0.1", "-p", "0"]).args(flags).stdin(Stdio::null());
        prepare(&mut command, folder.path());
        let mut nameserver = Program::spawn(&mut command);
        let line = nameserver.line();
        let address = line.strip_prefix("NS running on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Self { folder, address, nameserver: Mutex::new(Some(nameserver)) }
    }

    /// The nameserver's port, as a flag takes it.
    pub(crate) fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("an address has a port")
    }

    /// Kills the nameserver as the kernel would.
    pub(crate) fn kill_nameserver(&mut self) {
        *self.nameserver.get_mut().expect("no test panicked with it") = None;
    }

    /// Starts it again on the same port, with what it had stored.
    pub(crate) fn restart_nameserver(&mut self) {
        let mut command = Command::new(program("nameserver"));
        command.args(["-n", "127.0.0.1", "-p", self.port()]).stdin(Stdio::null());
        prepare(&mut command, self.folder());
        let mut nameserver = Program::spawn(&mut command);
        assert_eq!(nameserver.line(), format!("NS running on {}", self.address));
        *self.nameserver.get_mut().expect("no test panicked with it") = Some(nameserver);
    }

    /// The working directory of all programs.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where a file of a peer's share lies.
    pub(crate) fn shared(&self, peer: &str, file: &str) -> PathBuf {
        self.folder().join("compartilhados").join(peer).join(file)
    }

    /// Puts a file into a peer's share from outside.
    pub(crate) fn put(&self, peer: &str, file: &str, content: &[u8]) {
        let path = self.shared(peer, file);
        std::fs::create_dir_all(path.parent().expect("a share is a folder")).expect("the share is made");
        std::fs::write(path, content).expect("the file is written");
    }

    /// `peer PEER words…` in this network, not yet run.
    pub(crate) fn command(&self, peer: &str, words: &[&str]) -> Command {
        let mut command = Command::new(PEER);
        command.arg(peer).args(words).env("BRASA_NAMESERVER", &self.address);
        prepare(&mut command, self.folder());
        command
    }

    /// Starts `peer PEER --headless` and waits until it has joined.
    pub(crate) fn headless(&self, peer: &str) -> Program {
        self.headless_with(peer, &[])
    }

    /// The same with further flags.
    pub(crate) fn headless_with(&self, peer: &str, flags: &[&str]) -> Program {
        let mut program = Program::spawn(self.command(peer, &[&["--headless"], flags].concat()).stdin(Stdio::null()));
        let line = program.line();
        assert!(line.starts_with(&format!("[{peer}] ready at ")), "{line:?}");
        program
    }

    /// Starts `peer PEER words…` with a standard input to say lines to.
    pub(crate) fn interactive(&self, peer: &str, words: &[&str]) -> Program {
        Program::spawn(self.command(peer, words).stdin(Stdio::piped()))
    }

    /// Runs `peer PEER words…` to its end, with nothing on standard input.
    pub(crate) fn run(&self, peer: &str, words: &[&str]) -> Ended {
        finish(self.command(peer, words).stdin(Stdio::null()), "")
    }

    /// Runs `peer PEER words…` to its end, with `input` on standard input.
    pub(crate) fn run_with_input(&self, peer: &str, words: &[&str], input: &str) -> Ended {
        finish(self.command(peer, words).stdin(Stdio::piped()), input)
    }

    /// Runs a one-shot command that must succeed and gives its JSON document.
    pub(crate) fn json(&self, peer: &str, words: &[&str]) -> serde_json::Value {
        let ended = self.run(peer, &[words, &["--json"]].concat());
        assert_eq!((ended.status, ended.err.as_str()), (Some(0), ""), "{words:?}: {ended:?}");
        serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {:?}", ended.out))
    }

    /// Tries a one-shot command until it succeeds; for what becomes possible within a bound.
    pub(crate) fn json_until_done(&self, peer: &str, words: &[&str]) -> serde_json::Value {
        let deadline = Deadline::after(WAIT);
        loop {
            let ended = self.run(peer, &[words, &["--json"]].concat());
            if ended.status == Some(0) {
                return serde_json::from_str(&ended.out).expect("a document");
            }
            deadline.pause(&format!("{words:?} to succeed: {}", ended.err));
        }
    }

    /// Asks until the document of a command is as wanted; for what becomes true within a bound, not at once.
    pub(crate) fn json_until(
        &self,
        peer: &str,
        words: &[&str],
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let deadline = Deadline::after(WAIT);
        loop {
            let document = self.json(peer, words);
            if wanted(&document) {
                return document;
            }
            deadline.pause(&format!("another answer of {words:?} than {document}"));
        }
    }
}

/// A program that knows nothing of this user's own network.
pub(crate) fn prepare(command: &mut Command, folder: &Path) {
    command.current_dir(folder).env("BRASA_STATE_DIR", folder.join("state"));
    for variable in ["BRASA_NAMESERVER", "BRASA_JOIN"] {
        if !command.get_envs().any(|(name, _)| name == variable) {
            command.env_remove(variable);
        }
    }
}
