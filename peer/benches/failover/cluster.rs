//! A nameserver, peers and an observer, and the faults of the tracker.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use shared::time::Clock;

use crate::{
    fault::Fault,
    process::{Deadline, Process, pause},
    programs::{NAMESERVER_HOST, Nameserver, command},
    testbed::{LinkRates, Testbed},
};

/// Files in one directory of a share.
const FILES_PER_DIRECTORY: usize = 1000;

/// Running nameserver, peers and observer. Fields are dropped in order: processes exit before their namespaces are
/// removed.
pub struct Cluster {
    folder: PathBuf,
    peers: BTreeMap<String, Peer>,
    observer: Process,
    nameserver: Nameserver,
    testbed: Option<Testbed>,
}

struct Peer {
    process: Process,
    /// Number of files that it shares.
    files: usize,
}

/// Tracker that the observer found.
struct Tracker {
    peer: String,
    epoch: u64,
    /// Time since it began to answer.
    since: Duration,
}

impl Cluster {
    /// Starts a nameserver and `peers` peers that share `files` files together. With a testbed each has its own host.
    pub fn start(folder: &Path, mut testbed: Option<Testbed>, peers: u32, files: usize) -> Self {
        let ids: Vec<String> = (1..=peers).map(|number| format!("peer{number}")).collect();
        if let Some(testbed) = &mut testbed {
            testbed.add(NAMESERVER_HOST, LinkRates::default());
            ids.iter().for_each(|id| testbed.add(id, LinkRates::default()));
        }
        let nameserver = Nameserver::start(folder, testbed.as_ref());
        let own = std::env::current_exe().expect("a program has a path");
        let mut observer = command(testbed.as_ref(), NAMESERVER_HOST, &own, folder);
        observer.arg("observe").arg(folder.join("state"));
        let observer = Process::spawn(&mut observer, &folder.join("observer.log"));
        assert_eq!(observer.read_line(), "ready");
        let mut cluster = Self { folder: folder.to_owned(), peers: BTreeMap::new(), observer, nameserver, testbed };
        for (number, id) in ids.iter().enumerate() {
            // The first peers take one more file when the number is not divisible.
            let share = files / ids.len() + usize::from(number < files % ids.len());
            cluster.fill_share(id, share);
            cluster.start_peer(id, share);
        }
        cluster.wait_for_tracker(0, cluster.files());
        cluster
    }

    /// Applies a fault to the tracker. Returns the time until another tracker lists all files of the other peers.
    pub fn round(&mut self, fault: Fault) -> Duration {
        let all = self.files();
        let before = self.wait_for_tracker(0, all);
        // A random phase of the heartbeat and renewal intervals.
        pause(Duration::from_millis(fastrand::u64(300..700)));
        let tracker = self.peers.remove(&before.peer).expect("the tracker is one of the peers");
        let clock = Clock::start();
        match fault {
            Fault::Killed => tracker.process.signal(Signal::KILL),
            Fault::Frozen => tracker.process.signal(Signal::STOP),
            Fault::Left => tracker.process.signal(Signal::TERM),
            Fault::CutOff => self.set_connected(&before.peer, false),
        }
        let after = self.wait_for_tracker(before.epoch, all - tracker.files);
        let took = clock.now().since_origin().saturating_sub(after.since);
        match fault {
            Fault::Killed | Fault::Left => {
                wait_for_exit(tracker.process);
                self.start_peer(&before.peer, tracker.files);
                return took;
            }
            Fault::Frozen => tracker.process.signal(Signal::CONT),
            Fault::CutOff => self.set_connected(&before.peer, true),
        }
        // The former tracker announces its files to the new one only when it follows it.
        self.peers.insert(before.peer, tracker);
        let still = self.wait_for_tracker(before.epoch, all);
        assert_eq!(still.epoch, after.epoch, "the return of the former tracker caused another election");
        took
    }

    fn files(&self) -> usize {
        self.peers.values().map(|peer| peer.files).sum()
    }

    fn set_connected(&self, host: &str, is_connected: bool) {
        self.testbed.as_ref().expect("a cut-off needs a testbed").set_connected(host, is_connected);
    }

    /// Creates empty files: their index entries have the same size as any file's, and hashing them costs nothing.
    fn fill_share(&self, id: &str, files: usize) {
        for number in 0..files {
            let folder = self.folder.join(id).join(format!("{}", number / FILES_PER_DIRECTORY));
            if number % FILES_PER_DIRECTORY == 0 {
                fs::create_dir_all(&folder).expect("the share is writable");
            }
            File::create(folder.join(format!("{id}-{number:06}"))).expect("the share is writable");
        }
    }

    fn start_peer(&mut self, id: &str, files: usize) {
        let process = self.nameserver.start_peer(self.testbed.as_ref(), id, &[], &self.folder.join(id));
        self.peers.insert(id.to_owned(), Peer { process, files });
    }

    /// Waits for a tracker above `epoch` that lists `files` files.
    fn wait_for_tracker(&mut self, epoch: u64, files: usize) -> Tracker {
        self.observer.write_line(&format!("{epoch} {files}"));
        let line = self.observer.read_line();
        let words: Vec<&str> = line.split(' ').collect();
        let [peer, epoch, micros] = words[..] else { panic!("{line:?}") };
        let number = |word: &str| word.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
        Tracker { peer: peer.to_owned(), epoch: number(epoch), since: Duration::from_micros(number(micros)) }
    }
}

fn wait_for_exit(mut process: Process) {
    let deadline = Deadline::new();
    while process.child.try_wait().expect("the process is a child").is_none() {
        deadline.pause("the exit of the former tracker");
    }
}
