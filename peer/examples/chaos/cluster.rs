//! Cluster under test: the nameserver, the peers, and the records that the tasks of a run share.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use shared::time::Clock;
use tokio::{process::Command, time::sleep};

use crate::{
    deadline::{PROCESS_DEADLINE, within},
    impairment::{Impairment, Impairments},
    model::Model,
    process::{Slot, last_error, lock, tail},
    relay::Traffic,
    report::Stats,
    testbed::Testbed,
    topology::{Host, NAMESERVER_HOST, NAMESERVER_PORT, PeerIndex, address, host_of, peer_name},
};

/// Delay before a peer that exited during its start is started again.
const RESTART_DELAY: Duration = Duration::from_millis(300);
/// Upper bound of the attempts to start a peer while no fault is active. Each takes 3 s when the nameserver does not
/// answer.
const MAX_HEALED_ATTEMPTS: u32 = 10;
/// Exit status of a peer that cannot reach the nameserver.
const NAMESERVER_UNREACHABLE: i32 = 3;

/// Nameserver and peers, each a process with its own host, state directory and share.
pub struct Cluster {
    folder: PathBuf,
    programs: PathBuf,
    clock: Clock,
    events: Mutex<File>,
    // Declared before the testbed: processes must exit before their namespaces are removed.
    nameserver: Slot,
    peers: Vec<Slot>,
    testbed: Option<Testbed>,
    /// `HOST:PORT` of the nameserver; empty before its first start.
    address: Mutex<String>,
    token: Mutex<Option<String>>,
    impairments: tokio::sync::Mutex<Impairments>,
    /// No fault is active.
    healed: AtomicBool,
    tracker: Mutex<Option<PeerIndex>>,
    model: Mutex<Model>,
    stats: Mutex<Stats>,
}

/// Result of a one-shot command.
#[derive(Debug)]
pub enum CommandResult {
    /// Its JSON document.
    Done(Value),
    /// Code and message of its error.
    Failed(String, String),
}

impl Cluster {
    /// Creates a cluster without processes. Without a testbed all processes share this machine's loopback.
    ///
    /// # Errors
    /// When `folder` is not writable.
    pub fn new(folder: &Path, programs: &Path, peers: usize, testbed: Option<Testbed>) -> Result<Self, String> {
        let events = File::create(folder.join("events.log")).map_err(|error| format!("events.log: {error}"))?;
        Ok(Self {
            folder: folder.to_owned(),
            programs: programs.to_owned(),
            clock: Clock::start(),
            events: Mutex::new(events),
            nameserver: Slot::default(),
            peers: (0..peers).map(|_| Slot::default()).collect(),
            testbed,
            address: Mutex::default(),
            token: Mutex::default(),
            impairments: tokio::sync::Mutex::default(),
            healed: AtomicBool::new(true),
            tracker: Mutex::default(),
            model: Mutex::default(),
            stats: Mutex::default(),
        })
    }

    pub fn peers(&self) -> std::ops::Range<PeerIndex> {
        0..self.peers.len()
    }

    /// Process slot of a peer.
    pub fn peer(&self, peer: PeerIndex) -> &Slot {
        &self.peers[peer]
    }

    pub fn has_testbed(&self) -> bool {
        self.testbed.is_some()
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }

    pub fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Appends a line with the time to `events.log`.
    pub fn note(&self, event: &str) {
        let at = self.clock.now().since_origin().as_secs_f64();
        // `events.log` helps to read a violation. The verdict does not depend on it.
        let _ = writeln!(lock(&self.events), "{at:9.3} {event}");
    }

    /// Records a violation.
    pub fn violation(&self, violation: &str) {
        self.note(&format!("VIOLATION {violation}"));
        let at = self.clock.now().since_origin().as_secs_f64();
        self.stats().violations.push(format!("{at:.1} s: {violation}"));
    }

    /// Sets whether all faults are healed. While they are, no failure is excused.
    pub fn set_healed(&self, healed: bool) {
        self.healed.store(healed, Ordering::Relaxed);
    }

    pub fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Directory that a peer shares.
    pub fn share(&self, peer: PeerIndex) -> PathBuf {
        self.home(peer).join("share")
    }

    /// Directory of a peer's user, with the share and the state directory below it.
    pub fn home(&self, peer: PeerIndex) -> PathBuf {
        self.folder.join(peer_name(peer))
    }

    /// Log file of a peer.
    pub fn log_file(&self, peer: PeerIndex) -> PathBuf {
        self.folder.join(format!("{}.log", peer_name(peer)))
    }

    /// Starts the nameserver. A restart keeps its address.
    ///
    /// # Errors
    /// When it does not listen within [`PROCESS_DEADLINE`].
    pub async fn start_nameserver(&self) -> Result<(), String> {
        let known = lock(&self.address).clone();
        let (host, port) = match (&self.testbed, known.rsplit_once(':')) {
            (_, Some((host, port))) => (host.to_owned(), port.to_owned()),
            (Some(_), None) => (address(NAMESERVER_HOST).to_string(), NAMESERVER_PORT.to_string()),
            (None, None) => ("127.0.0.1".to_owned(), "0".to_owned()),
        };
        let log = self.folder.join("nameserver.log");
        let mut command = self.program(NAMESERVER_HOST, "nameserver");
        command.args(["-n", &host, "-p", &port, "--state-dir"]).arg(self.folder.join("nameserver"));
        let mut lines = self.nameserver.spawn(&mut command, &log)?;
        let line = within(PROCESS_DEADLINE, lines.next_line()).await.ok_or("the nameserver did not start")?;
        let line = line.ok().flatten().unwrap_or_default();
        let Some(address) = line.strip_prefix("NS running on ") else {
            return Err(format!("unexpected output of the nameserver: {line:?}: {}", tail(&log)));
        };
        address.clone_into(&mut lock(&self.address));
        self.nameserver.set_ready();
        self.note("nameserver is ready");
        Ok(())
    }

    /// Creates the token with which peers join, since they have no access to the nameserver's state.
    ///
    /// # Errors
    /// When `nsc token` fails.
    pub async fn create_token(&self) -> Result<(), String> {
        let address = lock(&self.address).clone();
        let Some((host, port)) = address.rsplit_once(':') else {
            return Err("the nameserver was not started".to_owned());
        };
        let mut nsc = self.program(NAMESERVER_HOST, "nsc");
        nsc.env("BRASA_STATE_DIR", self.folder.join("nameserver")).stderr(Stdio::piped());
        nsc.args(["-n", host, "-p", port, "token", "--uses", "1000"]);
        let output = within(PROCESS_DEADLINE, nsc.output()).await.ok_or("nsc token did not exit")?;
        let output = output.map_err(|error| format!("nsc: {error}"))?;
        if !output.status.success() {
            return Err(format!("nsc token: {}", String::from_utf8_lossy(&output.stderr)));
        }
        *lock(&self.token) = Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Ok(())
    }

    /// Starts a peer and waits until it has joined. Retries while the failure is transient: the nameserver is
    /// unreachable, or a one-shot command still holds the peer's lock.
    ///
    /// # Errors
    /// When it fails for another reason, or [`MAX_HEALED_ATTEMPTS`] times while no fault is active.
    pub async fn start_peer(&self, peer: PeerIndex) -> Result<(), String> {
        let (id, log, slot) = (peer_name(peer), self.log_file(peer), self.peer(peer));
        let mut healed_attempts = 0;
        loop {
            let was_healed = self.is_healed();
            healed_attempts += u32::from(was_healed);
            let is_exhausted = healed_attempts > MAX_HEALED_ATTEMPTS;
            let mut command = self.peer_command(peer);
            command.args(["--headless", "--json"]);
            if let Some(token) = &*lock(&self.token) {
                command.env("BRASA_JOIN", token);
            }
            let mut lines = slot.spawn(&mut command, &log)?;
            let line = within(PROCESS_DEADLINE, lines.next_line()).await;
            let line = line.ok_or_else(|| format!("{id} neither starts nor exits: {}", tail(&log)))?;
            if line.ok().flatten().is_some_and(|line| line.starts_with(&format!("[{id}] ready at "))) {
                slot.set_ready();
                self.note(&format!("{id} is ready"));
                return Ok(());
            }
            let status = slot.wait().await?;
            let code = last_error(&std::fs::read_to_string(&log).unwrap_or_default()).map(|(code, _)| code);
            let reason = match (status.and_then(|status| status.code()), code.as_deref()) {
                (Some(NAMESERVER_UNREACHABLE), _) if !was_healed || !is_exhausted => "nameserver unreachable",
                (Some(1), Some("already_running")) if !is_exhausted => "a command holds the peer's lock",
                // The nameserver was frozen, killed or restarted while the peer registered.
                (Some(1), Some("timeout")) if !was_healed => "no answer in time",
                _ => return Err(format!("{id} did not start ({status:?}): {}", tail(&log))),
            };
            self.stats().count("peer start retried", reason);
            sleep(RESTART_DELAY).await;
        }
    }

    /// Kills a reserved peer.
    ///
    /// # Errors
    /// When it does not exit.
    pub async fn kill_peer(&self, peer: PeerIndex) -> Result<(), String> {
        self.peer(peer).kill().await
    }

    /// Kills the nameserver.
    ///
    /// # Errors
    /// When it does not exit.
    pub async fn kill_nameserver(&self) -> Result<(), String> {
        self.nameserver.kill().await
    }

    /// Sends a signal to a peer.
    pub fn signal(&self, peer: PeerIndex, signal: Signal) {
        if let Err(error) = self.peer(peer).signal(signal) {
            self.note(&format!("cannot signal {}: {error}", peer_name(peer)));
        }
    }

    /// Returns the peers that run, are ready, and are not reserved by a fault.
    pub fn available_peers(&self) -> Vec<PeerIndex> {
        self.peers().filter(|peer| self.peer(*peer).is_available()).collect()
    }

    /// Reports processes that exited although nothing stopped them.
    pub fn check_processes(&self) {
        let peers = self.peers().map(|peer| (peer_name(peer), self.peer(peer), self.log_file(peer)));
        let nameserver = ("nameserver".to_owned(), &self.nameserver, self.folder.join("nameserver.log"));
        for (name, slot, log) in peers.chain([nameserver]) {
            if let Some(status) = slot.take_unexpected_exit() {
                self.violation(&format!("{name} exited unexpectedly ({status}): {}", tail(&log)));
            }
        }
    }

    /// Tracker according to the last poll.
    pub fn tracker(&self) -> Option<PeerIndex> {
        *lock(&self.tracker)
    }

    pub fn set_tracker(&self, peer: Option<PeerIndex>) {
        *lock(&self.tracker) = peer;
    }

    /// Adds the impairment of a fault, or removes it.
    ///
    /// # Errors
    /// When there is no testbed, or its relay fails.
    pub async fn impair(&self, fault: usize, impairment: Option<Impairment>) -> Result<(), String> {
        let testbed = self.testbed.as_ref().ok_or("there is no testbed")?;
        let mut impairments = self.impairments.lock().await;
        match impairment {
            Some(impairment) => impairments.0.insert(fault, impairment),
            None => impairments.0.remove(&fault),
        };
        testbed.apply(&impairments).await.map(drop)
    }

    /// Removes all impairments. Returns the traffic so far, or `None` without a testbed.
    ///
    /// # Errors
    /// When the relay fails.
    pub async fn heal_network(&self) -> Result<Option<Traffic>, String> {
        let Some(testbed) = &self.testbed else { return Ok(None) };
        let mut impairments = self.impairments.lock().await;
        impairments.0.clear();
        testbed.apply(&impairments).await.map(Some)
    }

    /// Runs `peer PEER WORDS... --json`, which the running peer carries out. There is no deadline: a frozen peer
    /// answers after it continues.
    pub async fn command(&self, peer: PeerIndex, words: &[&str]) -> CommandResult {
        let mut command = self.peer_command(peer);
        command.args(words).arg("--json").stderr(Stdio::piped());
        let output = match command.output().await {
            Ok(output) => output,
            Err(error) => return CommandResult::Failed("no process".to_owned(), error.to_string()),
        };
        if output.status.success() {
            return match serde_json::from_slice(&output.stdout) {
                Ok(document) => CommandResult::Done(document),
                Err(error) => CommandResult::Failed("no document".to_owned(), error.to_string()),
            };
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let (code, message) = last_error(&stderr).unwrap_or_else(|| {
            let id = peer_name(peer);
            let message = format!("{words:?} by {id} exited with {} and wrote {stderr:?}", output.status);
            ("no error".to_owned(), message)
        });
        CommandResult::Failed(code, message)
    }

    fn peer_command(&self, peer: PeerIndex) -> Command {
        let mut command = self.program(host_of(peer), "peer");
        command.arg(peer_name(peer)).env("BRASA_NAMESERVER", &*lock(&self.address));
        command.arg("--state-dir").arg(self.home(peer).join("state")).arg("--dir").arg(self.share(peer));
        command
    }

    fn program(&self, host: Host, name: &str) -> Command {
        let path = self.programs.join(name);
        let mut command = match &self.testbed {
            Some(testbed) => testbed.command(host, &path),
            None => Command::new(path),
        };
        for variable in ["BRASA_NAMESERVER", "BRASA_STATE_DIR", "BRASA_JOIN"] {
            command.env_remove(variable);
        }
        // The report reads elections from the peers' log at level info.
        command.env("BRASA_LOG", "warn,tarpc=off,peer=info");
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command
    }
}
