//! `peer --demo`: a demonstration of the whole system. The nameserver runs in this process, three peers run in
//! processes of their own, so that one of them can be killed.

use std::{
    fmt,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use crate::cli::signals::stop_on_signals;
use nameserver::{config::Config as NameserverConfig, server::Server};
use serde::Deserialize;
use serde_json::Value;
use shared::{
    error::{Failure, FailureCode},
    time::Clock,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

/// Size of the shared file, bytes.
const FILE_BYTES: usize = 64 << 20;
const FILE_NAME: &str = "brasa-demo.bin";
/// Deadline of one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two polls of the tracker after the kill.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Runs the demonstration and prints its steps.
///
/// # Errors
/// `internal` when a step fails, for example when a hash does not match.
pub async fn run() -> Result<(), Failure> {
    let folder = tempfile::tempdir().map_err(|error| failed("cannot create a temporary folder", error))?;
    let stop = stop_on_signals(false)?;
    let mut demo = Demo::new(folder.path().to_owned());
    let outcome = tokio::select! {
        outcome = demo.play() => outcome,
        () = stop.cancelled() => Err(failed("interrupted", "a signal ended it")),
    };
    demo.clean_up().await;
    outcome?;
    demo.print("done", "every hash matches; all processes and files of the demo are removed");
    Ok(())
}

fn failed(what: &str, why: impl fmt::Display) -> Failure {
    Failure::new(FailureCode::Internal, format!("demo: {what}"), why, "run it again with BRASA_LOG=info for a log")
}

struct Demo {
    folder: PathBuf,
    clock: Clock,
    nameserver: Option<Server>,
    peers: Vec<(String, Child)>,
}

#[derive(Deserialize)]
struct Tracker {
    epoch: u64,
    peer: String,
}

impl Demo {
    fn new(folder: PathBuf) -> Self {
        Self { folder, clock: Clock::start(), nameserver: None, peers: Vec::new() }
    }

    async fn play(&mut self) -> Result<(), Failure> {
        self.print("folder", &format!("{} (removed at the end)", self.folder.display()));
        self.start_nameserver().await?;
        for id in ["peer1", "peer2", "peer3"] {
            self.start_peer(id).await?;
        }
        let first: Tracker = self.command("peer3", &["tracker"]).await?;
        self.print("election", &format!("{} is tracker, epoch {}", first.peer, first.epoch));

        let source = self.folder.join(FILE_NAME);
        let hash = write_random_file(&source).await?;
        self.timed("add", "peer1", &["add", &source.to_string_lossy()], |_| {
            format!("peer1 shares {FILE_NAME}, {} MiB, BLAKE3 {}…", FILE_BYTES >> 20, &hash[..10])
        })
        .await?;
        self.download("peer2", &hash).await?;
        self.download("peer3", &hash).await?;

        let last = self.kill_tracker(&first).await?;
        let listing: Value = self.command(&last.peer, &["listAll"]).await?;
        let owners = listing["files"][0]["owners"].as_array().map_or(0, Vec::len);
        self.print("index", &format!("the new tracker {} lists {owners} owners of {FILE_NAME}", last.peer));
        if owners != 2 {
            return Err(failed("the index is incomplete", &listing));
        }
        // An owner does not fetch the file again, so one of the owners removes it first.
        let other = if last.peer == "peer2" { "peer3" } else { "peer2" };
        self.timed("remove", other, &["remove", FILE_NAME], |_| format!("{other} removed its copy")).await?;
        self.download(other, &hash).await
    }

    async fn start_nameserver(&mut self) -> Result<(), Failure> {
        let mut config = NameserverConfig::new(self.folder.join("state"));
        config.port = 0;
        let server = Server::start(config).await?;
        self.print("nameserver", &format!("runs on {}", server.local_addr()));
        self.nameserver = Some(server);
        Ok(())
    }

    async fn start_peer(&mut self, id: &str) -> Result<(), Failure> {
        let started = self.clock.now();
        let mut child = self
            .peer_command(id)?
            .arg("--headless")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("cannot start a peer", error))?;
        let output = child.stdout.take().ok_or_else(|| failed("a peer has no standard output", id))?;
        self.peers.push((id.to_owned(), child));
        let mut lines = BufReader::new(output).lines();
        match timeout(STEP_TIMEOUT, lines.next_line()).await {
            Ok(Ok(Some(line))) => {
                let took = self.clock.now().since(started);
                self.print("peer", &format!("{line}, {} ms after its start", took.as_millis()));
                Ok(())
            }
            _ => Err(failed("a peer did not become ready", id)),
        }
    }

    /// Kills the tracker with SIGKILL and waits for its successor.
    async fn kill_tracker(&mut self, tracker: &Tracker) -> Result<Tracker, Failure> {
        let at = self.peers.iter().position(|(id, _)| *id == tracker.peer);
        let (id, mut child) = match at {
            Some(at) => self.peers.remove(at),
            None => return Err(failed("the tracker is not one of the peers", &tracker.peer)),
        };
        child.kill().await.map_err(|error| failed("cannot kill the tracker", error))?;
        let killed = self.clock.now();
        self.print("kill", &format!("{id} is killed (SIGKILL)"));
        let survivor = self.peers.first().map(|(id, _)| id.clone()).ok_or_else(|| failed("no peer is left", &id))?;
        let wait = async {
            loop {
                match self.command::<Tracker>(&survivor, &["tracker"]).await {
                    Ok(next) if next.epoch > tracker.epoch => return next,
                    _ => sleep(POLL_INTERVAL).await,
                }
            }
        };
        let next = timeout(STEP_TIMEOUT, wait).await.map_err(|_| failed("no failover", "no new tracker in time"))?;
        let took = self.clock.now().since(killed);
        let text = format!("{} is tracker, epoch {}, {} ms after the kill", next.peer, next.epoch, took.as_millis());
        self.print("failover", &text);
        Ok(next)
    }

    /// Downloads the file to the share of `peer` and compares the hash of the written file.
    async fn download(&self, peer: &str, hash: &str) -> Result<(), Failure> {
        let document = self
            .timed("download", peer, &["download", FILE_NAME], |document| {
                let file = &document["files"][0];
                let sources: Vec<_> = file["sources"]
                    .as_array()
                    .map(|sources| sources.iter().filter_map(|source| source["peer"].as_str()).collect())
                    .unwrap_or_default();
                format!("{peer} fetched it from {}", sources.join(", "))
            })
            .await?;
        if document["files"][0]["sources"].as_array().is_none_or(Vec::is_empty) {
            return Err(failed("no peer sent the file", &document));
        }
        let path = document["files"][0]["path"].as_str().ok_or_else(|| failed("no path", &document))?.to_owned();
        let found = hash_file(Path::new(&path)).await?;
        if found == hash {
            self.print("verified", &format!("the file on {peer}'s disk has BLAKE3 {}…", &found[..10]));
            Ok(())
        } else {
            Err(failed("a hash does not match", format!("{peer} has {found}, not {hash}")))
        }
    }

    /// Runs a command and prints the description of its result with the elapsed time.
    async fn timed(
        &self,
        step: &str,
        id: &str,
        words: &[&str],
        describe: impl FnOnce(&Value) -> String,
    ) -> Result<Value, Failure> {
        let started = self.clock.now();
        let document = self.command(id, words).await?;
        let took = self.clock.now().since(started);
        self.print(step, &format!("{} ({} ms)", describe(&document), took.as_millis()));
        Ok(document)
    }

    /// Runs a command in the running peer and parses its JSON.
    async fn command<T: for<'de> Deserialize<'de>>(&self, id: &str, words: &[&str]) -> Result<T, Failure> {
        let output = self.peer_command(id)?.arg("--json").args(words).stdin(Stdio::null()).output();
        let output = timeout(STEP_TIMEOUT, output)
            .await
            .map_err(|_| failed("a command did not end in time", words.join(" ")))?
            .map_err(|error| failed("cannot start a command", error))?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(failed(&format!("{id} {}", words.join(" ")), error.trim()));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed("the output of a command is not JSON", error))
    }

    fn peer_command(&self, id: &str) -> Result<Command, Failure> {
        let program = std::env::current_exe().map_err(|error| failed("cannot find this program", error))?;
        let server = self.nameserver.as_ref().ok_or_else(|| failed("the nameserver is not running", id))?;
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env("BRASA_STATE_DIR", self.folder.join("state"))
            .env("BRASA_NAMESERVER", server.local_addr().to_string())
            .env_remove("BRASA_JOIN")
            .arg(id);
        Ok(command)
    }

    fn print(&self, step: &str, text: &str) {
        let seconds = self.clock.now().since_origin().as_secs_f64();
        // A closed standard output does not stop the demonstration.
        let _ = writeln!(std::io::stdout(), "[{seconds:6.2} s] {step:<10} {text}");
    }

    async fn clean_up(&mut self) {
        for (_, child) in &mut self.peers {
            // The process may have ended already.
            let _ = child.kill().await;
        }
        if let Some(server) = self.nameserver.take() {
            server.shutdown().await;
        }
    }
}

/// Writes the shared file and returns its BLAKE3 hash in hexadecimal.
async fn write_random_file(path: &Path) -> Result<String, Failure> {
    let path = path.to_owned();
    let write = move || {
        let mut bytes = vec![0; FILE_BYTES];
        fastrand::Rng::new().fill(&mut bytes);
        std::fs::write(&path, &bytes)?;
        Ok(blake3::hash(&bytes).to_hex().to_string())
    };
    blocking(write).await
}

/// Hashes a file on disk, independently of the code that downloaded it.
async fn hash_file(path: &Path) -> Result<String, Failure> {
    let path = path.to_owned();
    blocking(move || Ok(blake3::Hasher::new().update_mmap(&path)?.finalize().to_hex().to_string())).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| failed("a task panicked", error))?
        .map_err(|error| failed("cannot read or write a file", error))
}
