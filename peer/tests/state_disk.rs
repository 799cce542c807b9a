//! A state disk without room, or mounted read-only: real peers on a small tmpfs, in a mount namespace of this test. Needs
//! root and `unshare`, and is skipped with a message where they are missing.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]
#![expect(clippy::print_stderr, reason = "a skipped test says why")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;

mod common;
use common::{Network, PEER, prepare, process::Program};

/// Size of the state disk, bytes.
const DISK_BYTES: usize = 4 << 20;

/// Runs this test again in a mount namespace of its own. True if this process is that run; false if the other one has
/// passed, or the machine cannot make a namespace.
fn in_own_namespace(test: &str) -> bool {
    if std::env::var_os("BRASA_TEST_NAMESPACE").is_some() {
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command
    };
    let possible = unshare().arg("true").output().is_ok_and(|output| output.status.success());
    if !possible || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {test} needs root and mount namespaces");
        return false;
    }
    let mut again = unshare();
    again.arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env("BRASA_TEST_NAMESPACE", "1");
    let output = again.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    false
}

/// A peer whose state lies on a tmpfs.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts a small disk as the state directory of `peer`.
    fn mount(network: &Network, peer: &str) -> Self {
        let folder = network.folder().join("state/peers").join(peer);
        fs::create_dir_all(&folder).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES},mode=0700"), "tmpfs"])
            .arg(&folder)
            .status()
            .unwrap();
        assert!(mounted.success());
        Self { folder }
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.folder.join("filler")).unwrap();
        for block in [vec![0; 4096], vec![0; 1]] {
            while file.write_all(&block).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.folder.join("filler")).unwrap();
    }

    fn remount(&self, options: &str) {
        let mounted =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.folder).status().unwrap();
        assert!(mounted.success(), "{options}");
    }
}

fn warnings(status: &Value) -> String {
    status["warnings"].to_string()
}

/// Kills the tracker, if `peers` has it, and returns the others.
fn kill(peers: Vec<(String, Program)>, tracker: &str) -> Vec<(String, Program)> {
    peers.into_iter().filter(|(peer, _)| peer != tracker).collect()
}

#[test]
fn peers_with_full_state_disks_survive_the_tracker_and_elect_when_there_is_room() {
    let test = "peers_with_full_state_disks_survive_the_tracker_and_elect_when_there_is_room";
    if !in_own_namespace(test) {
        return;
    }
    let network = Network::start();
    let names = ["peer1", "peer2", "peer3"];
    let disks: Vec<Disk> = names.iter().map(|peer| Disk::mount(&network, peer)).collect();
    network.put("peer1", "a.txt", b"abc");
    let peers: Vec<_> = names.iter().map(|peer| ((*peer).to_owned(), network.headless(peer))).collect();
    network.wait_for_files("peer2", 1);
    let tracker = network.tracker("peer1");
    let killed = tracker["peer"].as_str().unwrap().to_owned();
    disks.iter().for_each(Disk::fill);

    let mut peers = kill(peers, &killed);
    for (peer, _) in &peers {
        // Each tries to vote, for itself or for the other one, and cannot store it.
        network.json_until(peer, &["status"], |status| warnings(status).contains("gives no vote"));
    }
    // They serve: one of them, which does not own the file, may fetch it unless the owner was killed.
    let (owner, other) = ("peer1", peers.iter().map(|(peer, _)| peer.as_str()).find(|peer| *peer != "peer1").unwrap());
    if killed != owner {
        network.json(other, &["download", "a.txt"]);
        assert_eq!(fs::read(network.shared(other, "a.txt")).unwrap(), b"abc");
    }

    disks.iter().for_each(Disk::free);
    let epoch = tracker["epoch"].as_u64();
    for (peer, _) in &peers {
        network.json_until(peer, &["tracker"], |now| now["peer"] != killed.as_str() && now["epoch"].as_u64() > epoch);
        network.json_until(peer, &["status"], |status| !warnings(status).contains("gives no vote"));
    }
    for (peer, program) in &mut peers {
        let ended = program.error_lines_so_far().into_iter().find(|line| line.starts_with("error:"));
        assert_eq!(ended, None, "{peer} runs");
    }
}

#[test]
fn peer_on_a_read_only_state_disk_starts_or_says_why_not() {
    if !in_own_namespace("peer_on_a_read_only_state_disk_starts_or_says_why_not") {
        return;
    }
    let network = Network::start();
    let disk = Disk::mount(&network, "peer1");
    // The first start enrols, which needs a disk that can be written.
    let first = network.headless("peer1");
    first.signal(Signal::TERM);
    assert_eq!(first.wait().status, Some(0));
    disk.remount("ro");
    let mut again = Program::spawn(network.command("peer1", &["--headless"]).stdin(Stdio::null()));
    if let Some(line) = again.first_line() {
        assert!(line.starts_with("[peer1] ready at "), "{line}");
        // The control socket is elsewhere, and the state of the election is not stored.
        let status = network.json_until("peer1", &["status"], |status| warnings(status).contains("ead-only"));
        assert_eq!(status["peer"], "peer1");
        assert_eq!(network.run("peer1", &["exit"]).status, Some(0));
    } else {
        let finished = again.wait();
        assert_eq!(finished.status, Some(1), "{finished:?}");
        assert!(finished.err.contains("error: ") && finished.err.contains("ead-only"), "{finished:?}");
    }
    // What a query needs it reads.
    assert_eq!(network.run("peer1", &["peers"]).status, Some(0));
}

#[test]
fn peer_whose_state_disk_is_full_at_the_start_runs_and_says_so() {
    if !in_own_namespace("peer_whose_state_disk_is_full_at_the_start_runs_and_says_so") {
        return;
    }
    let network = Network::start();
    let disk = Disk::mount(&network, "peer1");
    network.put("peer1", "a.txt", b"abc");
    let _other = network.headless("peer2");
    let first = network.headless("peer1");
    network.wait_for_files("peer2", 1);
    first.signal(Signal::TERM);
    assert_eq!(first.wait().status, Some(0));
    disk.fill();
    let _again = network.headless("peer1");
    network.json_until("peer1", &["status"], |status| warnings(status).contains("cannot write"));
    network.wait_for_files("peer2", 1);
    network.json("peer2", &["download", "a.txt"]);
}

#[test]
fn damaged_files_of_the_state_are_named_with_a_remedy() {
    let network = Network::start();
    let state = network.folder().join("state/peers/peer1");
    drop(network.headless("peer1"));
    let start = || {
        let mut command = Command::new(PEER);
        command.args(["peer1", "--headless"]).env("BRASA_NAMESERVER", &network.address).stdin(Stdio::null());
        prepare(&mut command, network.folder());
        Program::spawn(&mut command)
    };
    let damaged = |file: &str, content: &[u8], parts: &[&str]| {
        let path = state.join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, content).unwrap();
        let finished = start().wait();
        assert_eq!(finished.status, Some(1), "{finished:?}");
        for part in parts {
            assert!(finished.err.contains(part), "{file}: {part}: {finished:?}");
        }
        assert!(!finished.err.contains("permissions"), "{finished:?}");
        fs::write(&path, whole).unwrap();
    };
    damaged("identity.pem", b"-----BEGIN", &["the identity of peer peer1 is damaged", "nsc token --for peer1"]);
    damaged("election", b"\x02abc", &["votes", "is damaged", "remove the file"]);

    // The number of the run and the known peers are replaced.
    fs::write(state.join("incarnation"), "\u{fffd}").unwrap();
    fs::write(state.join("peers"), b"\xff\xff no peers\n").unwrap();
    let mut peer = start();
    assert!(peer.next_line().starts_with("[peer1] ready at "));
}
