//! Asks all the time who is tracker and what it lists, in a process of its own: where the cluster's machines have a
//! network of their own, it must be on one of them.
//!
//! Reads lines `EPOCH FILES`, and answers each, when a tracker above that epoch lists so many files, with
//! `PEER EPOCH MICROSECONDS`: how long ago that tracker began to answer.

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

const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long a page may take: a tracker that has died meanwhile never sends it.
const PAGE_WAIT: Duration = Duration::from_millis(200);

/// The observer's process, until its standard input ends.
pub fn run(state_dir: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = SessionConfig { role: Role::Admin, state_dir: state_dir.to_owned(), nameserver: None, join: None };
        let session = Session::open(&config).await.expect("an admin's session");
        println!("ready");
        let (tell, mut questions) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if tell.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        // Until the next question: connections want to be served all the time.
        while let Some(line) = questions.recv().await {
            let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [epoch, files] = numbers[..] else { panic!("{line:?}") };
            let (seat, since) = wait(&session, epoch, files).await;
            println!("{} {} {}", seat.peer, seat.epoch.0, since.as_micros());
        }
    });
}

async fn wait(session: &Session, epoch: u64, files: u64) -> (Seat, Duration) {
    loop {
        if let Some(seat) = seat(session).await.filter(|seat| seat.epoch.0 > epoch)
            && let Some((listed, since)) = list(&session.connections, &seat).await
            && listed == files
        {
            return (seat, since);
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn seat(session: &Session) -> Option<Seat> {
    let ask = |names: NameServiceClient, cx| async move { names.seat(cx).await };
    session.connections.call(&session.nameserver, CALL_DEADLINE, ask).await.ok()?.seat
}

/// How many files the tracker lists, and how long ago its first page came.
async fn list(connections: &Connections, seat: &Seat) -> Option<(u64, Duration)> {
    let target = Target { role: Role::Peer(seat.peer.clone()), endpoint: seat.endpoint.clone() };
    let (mut listed, mut after, mut began) = (0, None, None);
    loop {
        let query = ListAll { epoch: seat.epoch, prefix: String::new(), after };
        let ask = |tracker: TrackerServiceClient, cx| async move { tracker.list_all(cx, query).await };
        let page = connections.call(&target, PAGE_WAIT, ask).await.ok()?.ok()?;
        let clock = began.get_or_insert_with(Clock::start);
        listed += page.files.len() as u64;
        after = page.next;
        if after.is_none() {
            return Some((listed, clock.now().since_origin()));
        }
    }
}
