//! A nameserver and peers, and what is done to their tracker.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;
use shared::time::Clock;

use crate::{
    How,
    lab::Lab,
    process::{Running, pause},
};

/// How long anything may take that is waited for: starting with a large share takes longest.
const STEP: Duration = Duration::from_secs(120);
/// How often is looked whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The machine of a [`Lab`] that the nameserver and the observer run on.
const NAMESERVER: &str = "ns";
/// Files in one folder: what a person's file system would hold too.
const FILES_A_FOLDER: usize = 1000;

/// A nameserver, peers and an observer; all end when dropped, before their machines go.
pub struct Cluster {
    folder: PathBuf,
    address: String,
    token: Option<String>,
    /// Each with the number of files that it shares.
    peers: BTreeMap<String, (Running, usize)>,
    observer: Running,
    _nameserver: Running,
    lab: Option<Lab>,
}

/// Who is tracker.
struct Tracker {
    peer: String,
    epoch: u64,
    /// How long ago it began to answer.
    since: Duration,
}

impl Cluster {
    /// Starts a nameserver and `peers` peers that share `files` files; on this machine, or on one each of a lab.
    pub fn start(folder: &Path, lab: Option<Lab>, peers: u32, files: usize) -> Self {
        let ids: Vec<String> = (1..=peers).map(|number| format!("peer{number}")).collect();
        let mut lab = lab;
        if let Some(lab) = &mut lab {
            lab.add(NAMESERVER, crate::lab::Link::default());
            ids.iter().for_each(|id| lab.add(id, crate::lab::Link::default()));
        }
        let program = program("nameserver");
        assert!(program.exists(), "build {} first: cargo build --release -p nameserver", program.display());
        let host = lab.as_ref().map_or_else(|| "127.0.0.1".to_owned(), |lab| lab.address(NAMESERVER));
        let mut command = command(lab.as_ref(), NAMESERVER, &program, folder);
        let nameserver = Running::spawn(command.args(["-n", &host, "-p", "0"]), &folder.join("nameserver.log"));
        let line = nameserver.line_within(STEP);
        let address = line.strip_prefix("NS running on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        let token = lab.as_ref().map(|lab| make_token(lab, folder, &address));
        let own = std::env::current_exe().expect("a program has a file");
        let mut command = self::command(lab.as_ref(), NAMESERVER, &own, folder);
        let observer = Running::spawn(command.arg("observe").arg(folder.join("state")), &folder.join("observer.log"));
        assert_eq!(observer.line_within(STEP), "ready");
        let (folder, _nameserver) = (folder.to_owned(), nameserver);
        let mut cluster = Self { folder, address, token, peers: BTreeMap::new(), observer, _nameserver, lab };
        for (number, id) in ids.iter().enumerate() {
            // The first ones have one more where they do not come out even.
            let share = files / ids.len() + usize::from(number < files % ids.len());
            cluster.fill_share(id, share);
            cluster.start_peer(id, share);
        }
        cluster.wait_for_tracker(0, cluster.files());
        cluster
    }

    /// Does it to the tracker; how long it takes until another one lists all files of the others.
    pub fn round(&mut self, how: How) -> Duration {
        let all = self.files();
        let before = self.wait_for_tracker(0, all);
        // Somewhere within the intervals of heartbeats and renewals.
        pause(Duration::from_millis(fastrand::u64(300..700)));
        let (tracker, share) = self.peers.remove(&before.peer).expect("the tracker is one of the peers");
        let clock = Clock::start();
        match how {
            How::Killed => tracker.signal(Signal::KILL),
            How::Frozen => tracker.signal(Signal::STOP),
            How::Left => tracker.signal(Signal::TERM),
            How::CutOff => self.set_cable(&before.peer, false),
        }
        let after = self.wait_for_tracker(before.epoch, all - share);
        let took = clock.now().since_origin().saturating_sub(after.since);
        match how {
            How::Killed | How::Left => {
                wait_for_end(tracker);
                self.start_peer(&before.peer, share);
                return took;
            }
            How::Frozen => tracker.signal(Signal::CONT),
            How::CutOff => self.set_cable(&before.peer, true),
        }
        // It follows the other one, or it would not announce anything there.
        self.peers.insert(before.peer, (tracker, share));
        let still = self.wait_for_tracker(before.epoch, all);
        assert_eq!(still.epoch, after.epoch, "the former tracker's return cost the seat");
        took
    }

    fn files(&self) -> usize {
        self.peers.values().map(|(_, files)| files).sum()
    }

    fn set_cable(&self, machine: &str, is_in: bool) {
        self.lab.as_ref().expect("cables are pulled in a lab only").set_cable(machine, is_in);
    }

    /// Empty files: what an index holds of a file is as long whatever is in it, and they cost nothing to hash.
    fn fill_share(&self, id: &str, files: usize) {
        for number in 0..files {
            let folder = self.folder.join(id).join(format!("{}", number / FILES_A_FOLDER));
            if number % FILES_A_FOLDER == 0 {
                fs::create_dir_all(&folder).expect("a folder can be made");
            }
            File::create(folder.join(format!("{id}-{number:06}"))).expect("a file can be made");
        }
    }

    fn start_peer(&mut self, id: &str, files: usize) {
        let mut command = command(self.lab.as_ref(), id, &program("peer"), &self.folder);
        command.args([id, "--headless", "--dir"]).arg(self.folder.join(id)).env("BRASA_NAMESERVER", &self.address);
        if let Some(token) = &self.token {
            command.env("BRASA_JOIN", token);
        }
        let running = Running::spawn(&mut command, &self.folder.join(format!("{id}.log")));
        let line = running.line_within(STEP);
        assert!(line.starts_with(&format!("[{id}] ready at ")), "{line:?}");
        self.peers.insert(id.to_owned(), (running, files));
    }

    /// Waits for a tracker above `epoch` that lists `files` files.
    fn wait_for_tracker(&mut self, epoch: u64, files: usize) -> Tracker {
        self.observer.say(&format!("{epoch} {files}"));
        let line = self.observer.line_within(STEP);
        let words: Vec<&str> = line.split(' ').collect();
        let [peer, epoch, micros] = words[..] else { panic!("{line:?}") };
        let number = |word: &str| word.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
        Tracker { peer: peer.to_owned(), epoch: number(epoch), since: Duration::from_micros(number(micros)) }
    }
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_peer")).with_file_name(name)
}

/// A program that knows nothing of this user's own network; on a machine of the lab if there is one.
fn command(lab: Option<&Lab>, machine: &str, program: &Path, folder: &Path) -> Command {
    let mut command = lab.map_or_else(|| Command::new(program), |lab| lab.command(machine, program));
    command.current_dir(folder).env("BRASA_STATE_DIR", folder.join("state")).env_remove("BRASA_JOIN");
    command
}

fn make_token(lab: &Lab, folder: &Path, address: &str) -> String {
    let (host, port) = address.rsplit_once(':').expect("an address has a port");
    let mut nsc = command(Some(lab), NAMESERVER, &program("nsc"), folder);
    let output = nsc.args(["-n", host, "-p", port, "token", "--uses", "1000"]).output().expect("nsc runs");
    assert!(output.status.success(), "nsc token: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Waits until a process has ended by itself.
fn wait_for_end(mut running: Running) {
    let clock = Clock::start();
    while running.child.try_wait().expect("it is ours").is_none() {
        assert!(clock.now().since_origin() < STEP, "it was told to end, and did not");
        pause(LOOK_EVERY);
    }
}
