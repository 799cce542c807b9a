//! The processes: a nameserver and peers, each with a machine, a state folder and a share of its own; and what is known of
//! them.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shared::time::Clock;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::sleep,
};

use crate::{
    impair::{Host, Impairment, Impairments, NAMESERVER},
    lab::{Lab, NAMESERVER_PORT},
    ledger::Ledger,
    patience::within,
    plan::{Peer, host_of, peer_name},
    relay::{Traffic, address},
    report::Tally,
};

/// How long a process may take to start or to end, and a helper to do its work; many times what it takes on a busy machine.
pub const STEP: Duration = Duration::from_secs(30);
/// How long after it was refused a peer tries to start again.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// How often a peer may be refused when nothing is wrong any more. To be told that there is no nameserver takes it 3 s.
const CALM_TRIES: u32 = 10;
/// Lines of a log that are shown when its process ended by itself.
const SHOWN_LINES: usize = 12;
/// Exit status of a program that finds no nameserver.
const NO_NAMESERVER: i32 = 3;

/// Where all of it is, and what is known of it.
pub struct World {
    folder: PathBuf,
    programs: PathBuf,
    clock: Clock,
    events: Mutex<File>,
    // Before the lab: programs end before their machines go.
    nameserver: Mutex<Slot>,
    peers: Vec<Mutex<Slot>>,
    lab: Option<Lab>,
    /// `HOST:PORT` of the nameserver, once it has served.
    address: Mutex<String>,
    token: Mutex<Option<String>>,
    impairments: tokio::sync::Mutex<Impairments>,
    /// Nothing is wrong, so nothing that fails is excused.
    calm: AtomicBool,
    tracker: Mutex<Option<Peer>>,
    ledger: Mutex<Ledger>,
    tally: Mutex<Tally>,
}

/// The place of a process.
#[derive(Default)]
struct Slot {
    child: Option<Child>,
    is_ready: bool,
    /// A fault has it until it runs again.
    is_held: bool,
    /// How often it was killed.
    kills: u64,
}

/// What a one-shot command said.
#[derive(Debug)]
pub enum Answer {
    /// Its document.
    Done(Value),
    /// Its error's code and message.
    Failed(String, String),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a task that panicked left there is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A world without processes yet; `lab` is the machines they will be on, else all are on this one.
    ///
    /// # Errors
    /// When its folder cannot be written.
    pub fn new(folder: &Path, programs: &Path, peers: usize, lab: Option<Lab>) -> Result<Self, String> {
        let events = File::create(folder.join("events.log")).map_err(|error| format!("no log of events: {error}"))?;
        Ok(Self {
            folder: folder.to_owned(),
            programs: programs.to_owned(),
            clock: Clock::start(),
            events: Mutex::new(events),
            nameserver: Mutex::default(),
            peers: (0..peers).map(|_| Mutex::default()).collect(),
            lab,
            address: Mutex::default(),
            token: Mutex::default(),
            impairments: tokio::sync::Mutex::default(),
            calm: AtomicBool::new(true),
            tracker: Mutex::default(),
            ledger: Mutex::default(),
            tally: Mutex::default(),
        })
    }

    pub fn peers(&self) -> std::ops::Range<Peer> {
        0..self.peers.len()
    }

    pub fn has_network(&self) -> bool {
        self.lab.is_some()
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Notes what happens, with the time.
    pub fn note(&self, what: &str) {
        let at = self.clock.now().since_origin().as_secs_f64();
        // A log that cannot be written is no reason to end the run.
        let _ = writeln!(lock(&self.events), "{at:9.3} {what}");
    }

    /// Notes what must not be.
    pub fn violation(&self, what: &str) {
        self.note(&format!("VIOLATION {what}"));
        let at = self.clock.now().since_origin().as_secs_f64();
        self.tally().violations.push(format!("{at:.1} s: {what}"));
    }

    /// From now on nothing that fails is excused, or everything is.
    pub fn set_calm(&self, is_calm: bool) {
        self.calm.store(is_calm, Ordering::Relaxed);
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// The folder that a peer shares.
    pub fn share(&self, peer: Peer) -> PathBuf {
        self.home(peer).join("share")
    }

    /// The folder of a peer's user.
    pub fn home(&self, peer: Peer) -> PathBuf {
        self.folder.join(peer_name(peer))
    }

    /// The log of a peer.
    pub fn log_file(&self, peer: Peer) -> PathBuf {
        self.folder.join(format!("{}.log", peer_name(peer)))
    }

    fn program(&self, host: Host, name: &str) -> Command {
        let path = self.programs.join(name);
        let mut command = match &self.lab {
            Some(lab) => lab.command(host, &path),
            None => Command::new(path),
        };
        for variable in ["BRASA_NAMESERVER", "BRASA_STATE_DIR", "BRASA_JOIN"] {
            command.env_remove(variable);
        }
        command.env("BRASA_LOG", "warn,tarpc=off,peer::runtime::core_task=info");
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Starts the nameserver, the first time or again, at the same address.
    ///
    /// # Errors
    /// When it does not serve within [`STEP`].
    pub async fn start_nameserver(&self) -> Result<(), String> {
        let known = lock(&self.address).clone();
        let (host, port) = match (&self.lab, known.rsplit_once(':')) {
            (_, Some((host, port))) => (host.to_owned(), port.to_owned()),
            (Some(_), None) => (address(NAMESERVER).to_string(), NAMESERVER_PORT.to_string()),
            (None, None) => ("127.0.0.1".to_owned(), "0".to_owned()),
        };
        let log = self.folder.join("nameserver.log");
        let mut command = self.program(NAMESERVER, "nameserver");
        command.args(["-n", &host, "-p", &port, "--state-dir"]).arg(self.folder.join("nameserver"));
        let mut lines = spawn(&mut command, &log, &self.nameserver)?;
        let line = within(STEP, lines.next_line()).await.ok_or("the nameserver does not start")?;
        let line = line.ok().flatten().unwrap_or_default();
        let Some(address) = line.strip_prefix("NS running on ") else {
            return Err(format!("the nameserver said {line:?}: {}", tail(&log)));
        };
        address.clone_into(&mut lock(&self.address));
        let mut slot = lock(&self.nameserver);
        (slot.is_ready, slot.is_held) = (true, false);
        self.note("nameserver serves");
        Ok(())
    }

    /// Gets the token that peers join with: none of them has the nameserver's state.
    ///
    /// # Errors
    /// When the nameserver gives none.
    pub async fn make_token(&self) -> Result<(), String> {
        let address = lock(&self.address).clone();
        let Some((host, port)) = address.rsplit_once(':') else {
            return Err("no nameserver has served yet".to_owned());
        };
        let mut nsc = self.program(NAMESERVER, "nsc");
        nsc.env("BRASA_STATE_DIR", self.folder.join("nameserver")).stderr(Stdio::piped());
        nsc.args(["-n", host, "-p", port, "token", "--uses", "1000"]);
        let output = within(STEP, nsc.output()).await.ok_or("nsc token does not end")?;
        let output = output.map_err(|error| format!("nsc: {error}"))?;
        if !output.status.success() {
            return Err(format!("nsc token: {}", String::from_utf8_lossy(&output.stderr)));
        }
        *lock(&self.token) = Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Ok(())
    }

    fn peer_command(&self, peer: Peer) -> Command {
        let mut command = self.program(host_of(peer), "peer");
        command.arg(peer_name(peer)).env("BRASA_NAMESERVER", &*lock(&self.address));
        command.arg("--state-dir").arg(self.home(peer).join("state")).arg("--dir").arg(self.share(peer));
        command
    }

    /// Starts a peer and waits until it has joined, trying again as long as a reason passes by itself: the nameserver is away,
    /// or a command is still this peer.
    ///
    /// # Errors
    /// When it ends for another reason, or is refused more than [`CALM_TRIES`] times after all became calm.
    pub async fn start_peer(&self, peer: Peer) -> Result<(), String> {
        let (id, log) = (peer_name(peer), self.log_file(peer));
        let mut calm_tries = 0;
        loop {
            let was_calm = self.is_calm();
            calm_tries += u32::from(was_calm);
            let is_late = calm_tries > CALM_TRIES;
            let mut command = self.peer_command(peer);
            command.arg("--headless");
            if let Some(token) = &*lock(&self.token) {
                command.env("BRASA_JOIN", token);
            }
            let mut lines = spawn(&mut command, &log, &self.peers[peer])?;
            let line = within(STEP, lines.next_line()).await;
            let line = line.ok_or_else(|| format!("{id} neither starts nor ends: {}", tail(&log)))?;
            if line.ok().flatten().is_some_and(|line| line.starts_with(&format!("[{id}] ready at "))) {
                let mut slot = lock(&self.peers[peer]);
                (slot.is_ready, slot.is_held) = (true, false);
                self.note(&format!("{id} runs"));
                return Ok(());
            }
            let status = self.end(&self.peers[peer]).await?;
            let why = last_error(&log);
            let excuse = match status.and_then(|status| status.code()) {
                Some(NO_NAMESERVER) if !was_calm || !is_late => "nameserver unreachable",
                Some(1) if why.contains("is running already") && !is_late => "a command is this peer",
                Some(1) if why.contains("in time") && !was_calm => "an answer did not come in time",
                // The nameserver was killed and started again while the peer was talking to it.
                Some(1) if why.contains("reset by peer") && !was_calm => "the connection was reset",
                _ => return Err(format!("{id} did not start ({status:?}): {}", tail(&log))),
            };
            self.tally().count("peer started again later", excuse);
            sleep(AGAIN_AFTER).await;
        }
    }

    /// Waits for the end of a process that closed its output.
    async fn end(&self, slot: &Mutex<Slot>) -> Result<Option<ExitStatus>, String> {
        let child = lock(slot).child.take();
        let Some(mut child) = child else { return Ok(None) };
        let ended = within(STEP, child.wait()).await.ok_or("a process does not end")?;
        ended.map(Some).map_err(|error| error.to_string())
    }

    /// Takes a running peer for a fault; `false` when there is none that no other fault has.
    pub fn hold(&self, peer: Peer) -> bool {
        let mut slot = lock(&self.peers[peer]);
        let is_free = slot.is_ready && !slot.is_held && slot.child.is_some();
        slot.is_held |= is_free;
        is_free
    }

    /// Gives it back.
    pub fn release(&self, peer: Peer) {
        lock(&self.peers[peer]).is_held = false;
    }

    /// Kills a peer that is held.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill_peer(&self, peer: Peer) -> Result<(), String> {
        self.kill(&self.peers[peer]).await
    }

    /// Kills the nameserver.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill_nameserver(&self) -> Result<(), String> {
        self.kill(&self.nameserver).await
    }

    async fn kill(&self, slot: &Mutex<Slot>) -> Result<(), String> {
        let child = {
            let mut slot = lock(slot);
            slot.is_ready = false;
            slot.kills += 1;
            slot.child.take()
        };
        let Some(mut child) = child else { return Ok(()) };
        let ended = within(STEP, child.kill()).await.ok_or("a killed process does not end")?;
        ended.map_err(|error| error.to_string())
    }

    /// Sends a peer a signal.
    pub fn signal(&self, peer: Peer, signal: Signal) {
        let slot = lock(&self.peers[peer]);
        let pid = slot.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            self.note(&format!("{} takes no signal: {error}", peer_name(peer)));
        }
    }

    /// Peers that run, are ready, and are not in the hands of a fault.
    pub fn running(&self) -> Vec<Peer> {
        let runs = |peer: &Peer| {
            let slot = lock(&self.peers[*peer]);
            slot.child.is_some() && slot.is_ready && !slot.is_held
        };
        self.peers().filter(runs).collect()
    }

    /// Whether a peer's process is there and has joined.
    pub fn is_up(&self, peer: Peer) -> bool {
        let slot = lock(&self.peers[peer]);
        slot.child.is_some() && slot.is_ready
    }

    /// How often a peer was killed until now.
    pub fn kills(&self, peer: Peer) -> u64 {
        lock(&self.peers[peer]).kills
    }

    /// Finds processes that ended although nobody asked them to.
    pub fn find_dead(&self) {
        let named = self.peers().map(|peer| (peer_name(peer), &self.peers[peer], self.log_file(peer)));
        let nameserver = ("nameserver".to_owned(), &self.nameserver, self.folder.join("nameserver.log"));
        for (name, slot, log) in named.chain([nameserver]) {
            let mut slot = lock(slot);
            // One that is not ready yet is watched by who starts it.
            if !slot.is_ready {
                continue;
            }
            if let Some(Ok(Some(status))) = slot.child.as_mut().map(Child::try_wait) {
                slot.child = None;
                slot.is_ready = false;
                self.violation(&format!("{name} ended by itself ({status}): {}", tail(&log)));
            }
        }
    }

    /// Who was tracker when somebody was asked last.
    pub fn tracker(&self) -> Option<Peer> {
        *lock(&self.tracker)
    }

    pub fn set_tracker(&self, peer: Option<Peer>) {
        *lock(&self.tracker) = peer;
    }

    /// Adds what is wrong with the network, or takes it away.
    ///
    /// # Errors
    /// When there is no network of its own, or it does not answer.
    pub async fn impair(&self, fault: usize, impairment: Option<Impairment>) -> Result<(), String> {
        let lab = self.lab.as_ref().ok_or("there are no machines")?;
        let mut impairments = self.impairments.lock().await;
        match impairment {
            Some(impairment) => impairments.0.insert(fault, impairment),
            None => impairments.0.remove(&fault),
        };
        lab.apply(&impairments).await.map(drop)
    }

    /// Takes all away that is wrong with the network; what went through it until now.
    ///
    /// # Errors
    /// When the network does not answer.
    pub async fn mend_network(&self) -> Result<Option<Traffic>, String> {
        let Some(lab) = &self.lab else { return Ok(None) };
        let mut impairments = self.impairments.lock().await;
        impairments.0.clear();
        lab.apply(&impairments).await.map(Some)
    }

    /// Carries out `peer PEER WORDS… --json` by the running peer. It takes as long as it takes: a frozen peer answers when it is
    /// thawed.
    pub async fn command(&self, peer: Peer, words: &[&str]) -> Answer {
        let mut command = self.peer_command(peer);
        command.args(words).arg("--json").stderr(Stdio::piped());
        let output = match command.output().await {
            Ok(output) => output,
            Err(error) => return Answer::Failed("no process".to_owned(), error.to_string()),
        };
        if output.status.success() {
            return match serde_json::from_slice(&output.stdout) {
                Ok(document) => Answer::Done(document),
                Err(error) => Answer::Failed("no document".to_owned(), error.to_string()),
            };
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let error = said.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
        match error.as_ref().map(|error| (&error["error"]["code"], &error["error"]["message"])) {
            Some((Value::String(code), Value::String(message))) => Answer::Failed(code.clone(), message.clone()),
            _ => {
                let what = format!("{words:?} by {} ended with {} and said {said:?}", peer_name(peer), output.status);
                Answer::Failed("no error".to_owned(), what)
            }
        }
    }
}

/// Starts a process and puts it into its slot. What counts is its first line; it says no other.
fn spawn(command: &mut Command, log: &Path, slot: &Mutex<Slot>) -> Result<Lines<BufReader<ChildStdout>>, String> {
    let log = File::options().create(true).append(true).open(log).map_err(|error| format!("no log: {error}"))?;
    let mut child = command.stderr(log).spawn().map_err(|error| format!("a process does not start: {error}"))?;
    let output = child.stdout.take().ok_or("a process has no output")?;
    let mut slot = lock(slot);
    slot.child = Some(child);
    slot.is_ready = false;
    Ok(BufReader::new(output).lines())
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n    ")
}

fn last_error(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().find(|line| line.starts_with("error:")).unwrap_or_default().to_owned()
}

/// The world, as the tasks of a run have it.
pub type Shared = Arc<World>;
