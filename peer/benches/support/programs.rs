//! Brasa's programs as processes: a nameserver, and peers that join it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{process::Process, testbed::Testbed};

/// Host of the nameserver in a [`Testbed`].
pub const NAMESERVER_HOST: &str = "ns";

/// Returns the path of a program: in `BRASA_BENCH_BIN_DIR`, by default beside the `peer` that cargo built for this
/// benchmark.
pub fn program(name: &str) -> PathBuf {
    match env::var_os("BRASA_BENCH_BIN_DIR") {
        Some(folder) => PathBuf::from(folder).join(name),
        None => Path::new(env!("CARGO_BIN_EXE_peer")).with_file_name(name),
    }
}

/// Returns a command that runs a program on a host of the testbed, or on this machine without one. The program's
/// working directory is `folder` and its state is in `folder/state`, apart from the user's own network.
pub fn command(testbed: Option<&Testbed>, host: &str, program: &Path, folder: &Path) -> Command {
    let mut command = testbed.map_or_else(|| Command::new(program), |testbed| testbed.command(host, program));
    command.current_dir(folder).env("BRASA_STATE_DIR", folder.join("state")).env_remove("BRASA_JOIN");
    command
}

/// Running nameserver.
pub struct Nameserver {
    folder: PathBuf,
    /// `HOST:PORT`.
    pub address: String,
    /// Token with which peers on other hosts join. Peers on the nameserver's host need none.
    token: Option<String>,
    _process: Process,
}

impl Nameserver {
    /// Starts a nameserver with its state in `folder/state`, on [`NAMESERVER_HOST`] if there is a testbed.
    pub fn start(folder: &Path, testbed: Option<&Testbed>) -> Self {
        let path = program("nameserver");
        assert!(path.exists(), "build {} first: cargo build --release -p nameserver", path.display());
        let host = testbed.map_or_else(|| "127.0.0.1".to_owned(), |testbed| testbed.address(NAMESERVER_HOST));
        let mut nameserver = command(testbed, NAMESERVER_HOST, &path, folder);
        let process = Process::spawn(nameserver.args(["-n", &host, "-p", "0"]), &folder.join("nameserver.log"));
        let line = process.read_line();
        let address = line.strip_prefix("NS running on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        let token = testbed.map(|testbed| create_token(testbed, folder, &address));
        Self { folder: folder.to_owned(), address, token, _process: process }
    }

    /// Starts a peer, on the host of its name if there is a testbed, and waits until it has joined.
    pub fn start_peer(&self, testbed: Option<&Testbed>, id: &str, flags: &[&str], share: &Path) -> Process {
        let mut peer = command(testbed, id, &program("peer"), &self.folder);
        peer.arg(id).args(flags).args(["--headless", "--dir"]).arg(share).env("BRASA_NAMESERVER", &self.address);
        if let Some(token) = &self.token {
            peer.env("BRASA_JOIN", token);
        }
        let process = Process::spawn(&mut peer, &self.folder.join(format!("{id}.log")));
        let line = process.read_line();
        assert!(line.starts_with(&format!("[{id}] ready at ")), "{line:?}");
        process
    }
}

fn create_token(testbed: &Testbed, folder: &Path, address: &str) -> String {
    let (host, port) = address.rsplit_once(':').expect("an address has a port");
    let mut nsc = command(Some(testbed), NAMESERVER_HOST, &program("nsc"), folder);
    let output = nsc.args(["-n", host, "-p", port, "token", "--uses", "1000"]).output().expect("nsc runs");
    assert!(output.status.success(), "nsc token: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
