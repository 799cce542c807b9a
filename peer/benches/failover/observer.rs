//! Observer: a process that polls for the tracker and its listing. It runs on the nameserver's host, because in a
//! testbed this machine has no route to the cluster.
//!
//! Each line on standard input is `EPOCH FILES`. The observer waits for a tracker above that epoch that lists that many
//! files, and answers `PEER EPOCH MICROSECONDS`, with the time since that tracker began to answer.

use std::{io::BufRead as _, path::Path, time::Duration};

use shared::{
    id::Role,
    limits::CALL_DEADLINE,
    net::{
        Connections, Target,
        session::{Session, SessionConfig},
    },
    rpc::{
        nameserver::{NameServiceClient, Seat},
        tracker::{ListAll, TrackerServiceClient},
    },
    time::Clock,
};
use tokio::time::sleep;

/// Interval between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Deadline of a page. Short, because a tracker that was killed never sends it.
const PAGE_DEADLINE: Duration = Duration::from_millis(200);

/// Runs the observer until its standard input closes.
pub fn run(state_dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = SessionConfig { role: Role::Admin, state_dir: state_dir.to_owned(), nameserver: None, join: None };
        let session = Session::open(&config).await.expect("an admin session");
        println!("ready");
        let (sender, mut requests) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        // Waits on a channel, so that the runtime serves the open connections between two requests.
        while let Some(line) = requests.recv().await {
            let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [epoch, files] = numbers[..] else { panic!("{line:?}") };
            let (seat, since) = wait_for_tracker(&session, epoch, files).await;
            println!("{} {} {}", seat.peer, seat.epoch.0, since.as_micros());
        }
    });
}

async fn wait_for_tracker(session: &Session, epoch: u64, files: u64) -> (Seat, Duration) {
    loop {
        if let Some(seat) = seat(session).await.filter(|seat| seat.epoch.0 > epoch)
            && let Some((listed, since)) = list(&session.connections, &seat).await
            && listed == files
        {
            return (seat, since);
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn seat(session: &Session) -> Option<Seat> {
    let call = |names: NameServiceClient, cx| async move { names.seat(cx).await };
    session.connections.call(&session.nameserver, CALL_DEADLINE, call).await.ok()?.seat
}

/// Returns the number of files that the tracker lists, and the time since its first page arrived.
async fn list(connections: &Connections, seat: &Seat) -> Option<(u64, Duration)> {
    let target = Target { role: Role::Peer(seat.peer.clone()), endpoint: seat.endpoint.clone() };
    let (mut listed, mut after, mut began) = (0, None, None);
    loop {
        let query = ListAll { epoch: seat.epoch, prefix: String::new(), after };
        let call = |tracker: TrackerServiceClient, cx| async move { tracker.list_all(cx, query).await };
        let page = connections.call(&target, PAGE_DEADLINE, call).await.ok()?.ok()?;
        let clock = began.get_or_insert_with(Clock::start);
        listed += page.files.len() as u64;
        after = page.next;
        if after.is_none() {
            return Some((listed, clock.now().since_origin()));
        }
    }
}
