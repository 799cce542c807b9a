//! A nameserver and peers, driven by one-shot commands.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    process::{Deadline, Process},
    programs::{Nameserver, command, program},
    testbed::Testbed,
};

/// Returns whether the `peer` program has a flag.
pub fn has_flag(flag: &str) -> bool {
    let help = Command::new(program("peer")).arg("--help").output().expect("peer runs");
    String::from_utf8_lossy(&help.stdout).contains(flag)
}

/// Running nameserver and peers. Fields are dropped in order: processes exit before their namespaces are removed.
pub struct Cluster {
    folder: PathBuf,
    peers: BTreeMap<String, Process>,
    nameserver: Nameserver,
    testbed: Option<Testbed>,
}

impl Cluster {
    /// Starts a nameserver. Its state, and the state and shares of the peers, are in `folder`.
    pub fn start(folder: &Path, testbed: Option<Testbed>) -> Self {
        let nameserver = Nameserver::start(folder, testbed.as_ref());
        Self { folder: folder.to_owned(), peers: BTreeMap::new(), nameserver, testbed }
    }

    pub fn testbed(&self) -> Option<&Testbed> {
        self.testbed.as_ref()
    }

    /// Returns the directory that a peer shares, creating it when it does not exist.
    pub fn share(&self, id: &str) -> PathBuf {
        let share = self.folder.join(id);
        fs::create_dir_all(&share).expect("the share is writable");
        share
    }

    /// Starts a peer, on the host of its name if there is a testbed, and waits until it has joined.
    pub fn start_peer(&mut self, id: &str, flags: &[&str]) {
        let peer = self.nameserver.start_peer(self.testbed.as_ref(), id, flags, &self.share(id));
        self.peers.insert(id.to_owned(), peer);
    }

    /// Kills a peer.
    pub fn stop_peer(&mut self, id: &str) {
        self.peers.remove(id).expect("the peer was started");
    }

    pub fn peer(&self, id: &str) -> &Process {
        &self.peers[id]
    }

    /// Returns the one-shot command `peer ID WORDS... --json`, which the running peer carries out.
    pub fn command(&self, id: &str, words: &[&str]) -> Command {
        // The command talks to the peer's control socket and needs no network.
        let mut command = command(None, id, &program("peer"), &self.folder);
        command.arg(id).args(words).arg("--json").env("BRASA_NAMESERVER", &self.nameserver.address);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command that must succeed. Returns its document.
    pub fn run(&self, id: &str, words: &[&str]) -> Value {
        self.try_run(id, words).unwrap_or_else(|error| panic!("peer {id} {words:?}: {error}"))
    }

    fn try_run(&self, id: &str, words: &[&str]) -> Result<Value, String> {
        let output = self.command(id, words).output().expect("peer runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// Waits until the tracker, queried by the peer `via`, knows exactly these owners of a file.
    pub fn wait_for_owners(&self, via: &str, file: &str, owners: &[&str]) {
        let deadline = Deadline::new();
        loop {
            // The command fails during an election.
            if let Ok(listing) = self.try_run(via, &["listAll"]) {
                let files = listing["files"].as_array().expect("a listing has files");
                let known = files.iter().find(|known| known["name"] == file);
                if known.map_or(owners.is_empty(), |known| known["owners"] == serde_json::json!(owners)) {
                    return;
                }
            }
            deadline.pause(&format!("{owners:?} as the owners of {file}"));
        }
    }
}
