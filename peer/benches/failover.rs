//! How long five peers are without a complete index when their tracker is killed, frozen, or leaves. Real processes,
//! release build, loopback: `cargo bench -p peer --bench failover [-- ROUNDS]`.
//!
//! Timed from the signal until another tracker, under a higher epoch, answers `list_all` with every file of the peers
//! that are left. A frozen tracker is thawed afterwards and must have stepped down by itself.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use shared::{
    id::{PeerId, Role},
    limits::CALL_DEADLINE,
    net::{
        Target,
        session::{Session, SessionConfig},
    },
    rpc::{
        nameserver::{NameServiceClient, Seat},
        peer::PeerServiceClient,
        tracker::{ListAll, TrackerServiceClient},
    },
    time::Clock,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

const PEERS: usize = 5;
const ROUNDS: usize = 10;
const LOOK_EVERY: Duration = Duration::from_millis(2);
const STEP: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
enum How {
    Killed,
    Frozen,
    Left,
}

struct Cluster {
    folder: PathBuf,
    port: u16,
    session: Session,
    _nameserver: Child,
    peers: BTreeMap<String, Child>,
}

#[tokio::main]
async fn main() {
    // Cargo hands its own flags on; the first number is ours.
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(ROUNDS);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut cluster = Cluster::start(folder.path()).await;
    println!("| tracker | rounds | median | min | max |");
    println!("|---|---|---|---|---|");
    for how in [How::Killed, How::Frozen, How::Left] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(cluster.round(how).await);
        }
        times.sort();
        let ms = |time: &Duration| time.as_millis();
        println!(
            "| {how:?} | {rounds} | {} ms | {} ms | {} ms |",
            ms(&times[times.len() / 2]),
            ms(&times[0]),
            ms(&times[times.len() - 1])
        );
    }
}

impl Cluster {
    async fn start(folder: &Path) -> Self {
        let nameserver = Path::new(env!("CARGO_BIN_EXE_peer")).with_file_name("nameserver");
        assert!(nameserver.exists(), "build it first: cargo build --release -p nameserver");
        let mut nameserver = Command::new(nameserver)
            .args(["-p", "0", "--state-dir"])
            .arg(folder.join("state"))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the nameserver starts");
        let line = first_line(&mut nameserver).await;
        let port = line.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let config = SessionConfig { role: Role::Admin, state_dir: folder.join("state"), nameserver: None, join: None };
        let session = Session::open(&config).await.expect("an admin's session");
        let mut cluster =
            Self { folder: folder.to_owned(), port, session, _nameserver: nameserver, peers: BTreeMap::new() };
        for peer in 1..=PEERS {
            cluster.start_peer(&format!("peer{peer}")).await;
        }
        cluster.wait_until_complete(0, PEERS).await;
        cluster
    }

    async fn start_peer(&mut self, id: &str) {
        let share = self.folder.join(id);
        fs::create_dir_all(&share).expect("a share");
        fs::write(share.join(format!("{id}.txt")), id).expect("a file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_peer"))
            .args([id, "--headless", "-p", &self.port.to_string(), "--state-dir"])
            .arg(self.folder.join("state"))
            .arg("--dir")
            .arg(share)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a peer starts");
        first_line(&mut child).await;
        self.peers.insert(id.to_owned(), child);
    }

    async fn round(&mut self, how: How) -> Duration {
        let before = self.wait_until_complete(0, PEERS).await;
        // Somewhere within the intervals of heartbeats and renewals.
        sleep(Duration::from_millis(fastrand::u64(300..700))).await;
        let id = before.peer.to_string();
        let mut tracker = self.peers.remove(&id).expect("the tracker is one of the peers");
        let pid = tracker.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it runs");
        let clock = Clock::start();
        let signal = match how {
            How::Killed => Signal::KILL,
            How::Frozen => Signal::STOP,
            How::Left => Signal::TERM,
        };
        kill_process(pid, signal).expect("a signal");
        self.wait_until_complete(before.epoch.0, PEERS - 1).await;
        let took = clock.now().since_origin();
        if let How::Frozen = how {
            kill_process(pid, Signal::CONT).expect("a signal");
            self.wait_until_stepped_down(&before).await;
            self.peers.insert(id, tracker);
        } else {
            timeout(STEP, tracker.wait()).await.expect("it ends in time").expect("it ends");
            self.start_peer(&id).await;
        }
        took
    }

    /// Waits for a tracker above `epoch` that knows `files` files.
    async fn wait_until_complete(&self, epoch: u64, files: usize) -> Seat {
        let wait = async {
            loop {
                if let Some(seat) = self.seat().await.filter(|seat| seat.epoch.0 > epoch)
                    && self.files(&seat).await == Some(files)
                {
                    return seat;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(STEP, wait).await.expect("a tracker with a complete index in time")
    }

    async fn wait_until_stepped_down(&self, former: &Seat) {
        let wait = async {
            loop {
                let ask = |peer: PeerServiceClient, cx| async move { peer.info(cx).await };
                let info = self.session.connections.call(&target(former), CALL_DEADLINE, ask).await;
                if info.is_ok_and(|info| info.seat.seat.is_some_and(|seat| seat.epoch > former.epoch)) {
                    return;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(STEP, wait).await.expect("the thawed tracker steps down");
    }

    async fn seat(&self) -> Option<Seat> {
        let ask = |names: NameServiceClient, cx| async move { names.seat(cx).await };
        self.session.connections.call(&self.session.nameserver, CALL_DEADLINE, ask).await.ok()?.seat
    }

    async fn files(&self, seat: &Seat) -> Option<usize> {
        let query = ListAll { epoch: seat.epoch, prefix: String::new(), after: None };
        let ask = |tracker: TrackerServiceClient, cx| async move { tracker.list_all(cx, query).await };
        let wait = Duration::from_millis(100);
        let page = self.session.connections.call(&target(seat), wait, ask).await.ok()?.ok()?;
        Some(page.files.len())
    }
}

fn target(seat: &Seat) -> Target {
    let peer: PeerId = seat.peer.clone();
    Target { role: Role::Peer(peer), endpoint: seat.endpoint.clone() }
}

async fn first_line(child: &mut Child) -> String {
    let output = child.stdout.take().expect("piped output");
    let mut lines = BufReader::new(output).lines();
    let line = timeout(STEP, lines.next_line()).await.expect("a line in time").expect("readable");
    line.expect("a line before the end")
}
