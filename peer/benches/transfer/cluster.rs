//! A nameserver and peers as processes of their own, driven by one-shot commands.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    lab::Lab,
    process::{Deadline, Running},
};

/// The machine of a [`Lab`] that the nameserver runs on.
pub const NAMESERVER: &str = "ns";

/// A program of the workspace: from `BRASA_BENCH_BIN_DIR`, else beside the `peer` that cargo built for this benchmark.
pub fn program(name: &str) -> PathBuf {
    match env::var_os("BRASA_BENCH_BIN_DIR") {
        Some(folder) => PathBuf::from(folder).join(name),
        None => Path::new(env!("CARGO_BIN_EXE_peer")).with_file_name(name),
    }
}

/// Whether the `peer` program has this flag.
pub fn has_flag(flag: &str) -> bool {
    let help = Command::new(program("peer")).arg("--help").output().expect("peer runs");
    String::from_utf8_lossy(&help.stdout).contains(flag)
}

/// A nameserver and peers; all end when dropped.
pub struct Cluster {
    folder: PathBuf,
    address: String,
    /// What lets peers on other machines in; on the nameserver's own they need nothing.
    token: Option<String>,
    // Before the lab: programs end before their machines go.
    peers: BTreeMap<String, Running>,
    _nameserver: Running,
    lab: Option<Lab>,
}

impl Cluster {
    /// Starts a nameserver whose state, and later the peers' state and shares, lie in `folder`; on this machine, or
    /// on the machine [`NAMESERVER`] of a lab.
    pub fn start(folder: &Path, lab: Option<Lab>) -> Self {
        let path = program("nameserver");
        assert!(path.exists(), "build {} first: cargo build --release -p nameserver", path.display());
        let (mut command, host) = match &lab {
            None => (Command::new(&path), "127.0.0.1".to_owned()),
            Some(lab) => (lab.command(NAMESERVER, &path), lab.address(NAMESERVER)),
        };
        command.args(["-n", &host, "-p", "0"]);
        prepare(&mut command, folder);
        let nameserver = Running::spawn(&mut command, &folder.join("nameserver.log"));
        let line = nameserver.line();
        let address = line.strip_prefix("NS running on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        let token = lab.as_ref().map(|lab| make_token(folder, lab, &address));
        Self { folder: folder.to_owned(), address, token, peers: BTreeMap::new(), _nameserver: nameserver, lab }
    }

    pub fn lab(&self) -> Option<&Lab> {
        self.lab.as_ref()
    }

    /// The folder that a peer shares.
    pub fn share(&self, id: &str) -> PathBuf {
        let share = self.folder.join(id);
        fs::create_dir_all(&share).expect("a share can be made");
        share
    }

    /// Starts a peer, on the machine of its name if there is a lab, and waits until it has joined.
    pub fn start_peer(&mut self, id: &str, flags: &[&str]) {
        let mut command = match &self.lab {
            None => Command::new(program("peer")),
            Some(lab) => lab.command(id, &program("peer")),
        };
        command.arg(id).args(flags).args(["--headless", "--dir"]).arg(self.share(id));
        command.env("BRASA_NAMESERVER", &self.address);
        prepare(&mut command, &self.folder);
        if let Some(token) = &self.token {
            command.env("BRASA_JOIN", token);
        }
        let running = Running::spawn(&mut command, &self.folder.join(format!("{id}.log")));
        let line = running.line();
        assert!(line.starts_with(&format!("[{id}] ready at ")), "{line:?}");
        self.peers.insert(id.to_owned(), running);
    }

    /// Kills a peer.
    pub fn stop_peer(&mut self, id: &str) {
        self.peers.remove(id).expect("it was started");
    }

    pub fn peer(&self, id: &str) -> &Running {
        &self.peers[id]
    }

    /// The one-shot command `peer ID WORDS… --json`, to be carried out by the running peer.
    pub fn command(&self, id: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program("peer"));
        command.arg(id).args(words).arg("--json").env("BRASA_NAMESERVER", &self.address);
        prepare(&mut command, &self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Carries out a command that must succeed; its document.
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

    /// Waits until the tracker, asked by the peer `via`, knows exactly these owners of a file.
    pub fn wait_for_owners(&self, via: &str, file: &str, owners: &[&str]) {
        let deadline = Deadline::new();
        loop {
            // No answer comes while a tracker is being elected.
            if let Ok(listing) = self.try_run(via, &["listAll"]) {
                let files = listing["files"].as_array().expect("a list of files");
                let known = files.iter().find(|known| known["name"] == file);
                if known.map_or(owners.is_empty(), |known| known["owners"] == serde_json::json!(owners)) {
                    return;
                }
            }
            deadline.pause(&format!("{owners:?} as the owners of {file}"));
        }
    }
}

fn make_token(folder: &Path, lab: &Lab, address: &str) -> String {
    let (host, port) = address.rsplit_once(':').expect("an address has a port");
    let mut nsc = lab.command(NAMESERVER, &program("nsc"));
    nsc.args(["-n", host, "-p", port, "token", "--uses", "1000"]);
    prepare(&mut nsc, folder);
    let output = nsc.output().expect("nsc runs");
    assert!(output.status.success(), "nsc token: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A program that knows nothing of this user's own network.
fn prepare(command: &mut Command, folder: &Path) {
    command.current_dir(folder).env("BRASA_STATE_DIR", folder.join("state")).env_remove("BRASA_JOIN");
}
