//! Watches of names over the network, by the service and by `nsc watch`.
#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use common::{DEADLINE, Member, Program, TestServer};
use nameserver::config::StorageChoice;
use shared::{
    id::Incarnation,
    rpc::nameserver::{Changes, Condition, LeaseRequest, Position, Register},
};

fn request(name: &str) -> Register {
    Register {
        name: name.to_owned(),
        uri: "quic://host.com:4444".to_owned(),
        tags: None,
        lease: LeaseRequest::For(Duration::from_secs(1)),
        condition: Condition::Always,
        incarnation: Incarnation(1),
    }
}

async fn changes(member: &Member, since: Option<Position>, wait: Duration) -> Changes {
    member.changes(since, "a.", wait).await
}

#[tokio::test]
async fn watcher_waits_for_matching_changes_and_receives_all() {
    let server = TestServer::start(StorageChoice::Memory).await;
    let (watcher, writer) = (server.peer("watcher").await, server.peer("writer").await);
    let Changes::Resync { position } = changes(&watcher, None, Duration::ZERO).await else {
        panic!("a new watcher receives no resync")
    };
    let unchanged = changes(&watcher, Some(position), Duration::from_millis(20)).await;
    assert_eq!(unchanged, Changes::Delta { position, changes: vec![] });

    let waiting = async {
        let (mut since, mut seen) = (position, Vec::new());
        // `b.1` does not match; `a.1` is registered and then expires, which is a change, too.
        while seen.len() < 2 {
            match changes(&watcher, Some(since), Duration::from_secs(2)).await {
                Changes::Delta { position, changes } => {
                    since = position;
                    seen.extend(changes.into_iter().map(|change| (change.name.to_string(), change.record.is_some())));
                }
                resync @ Changes::Resync { .. } => panic!("{resync:?}"),
            }
        }
        (since, seen)
    };
    let writing = async {
        writer.register(request("b.1")).await.unwrap();
        writer.register(request("a.1")).await.unwrap();
    };
    let ((since, seen), ()) = tokio::time::timeout(DEADLINE, async { tokio::join!(waiting, writing) }).await.unwrap();
    assert_eq!(seen, [("a.1".to_owned(), true), ("a.1".to_owned(), false)]);

    // A position of another run of the nameserver is unknown.
    let foreign = Position { run: since.run + 1, ..since };
    assert!(matches!(changes(&watcher, Some(foreign), DEADLINE).await, Changes::Resync { .. }));
}

#[test]
fn nsc_watch_prints_names_and_then_changes() {
    let folder = tempfile::tempdir().unwrap();
    let _program = Program::start(folder.path(), 0);
    let nsc = |arguments: &[&str]| {
        let mut nsc = Command::new(env!("CARGO_BIN_EXE_nsc"));
        nsc.args(["--state-dir", folder.path().to_str().unwrap()]).args(arguments).env_remove("BRASA_NAMESERVER");
        nsc.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        nsc
    };
    assert!(nsc(&["register", "a.1", "quic://h:1"]).status().unwrap().success());
    let mut watching = nsc(&["watch", "a."]).spawn().unwrap();
    let out = BufReader::new(watching.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let line = || lines.recv_timeout(DEADLINE).unwrap();
    assert_eq!(line(), "--------START LIST - prefix 'a.'");
    assert_eq!(line(), "a.1 --> quic://h:1");
    assert_eq!(line(), "--------END LIST - prefix 'a.'");
    assert!(nsc(&["register", "b.1", "quic://h:1"]).status().unwrap().success());
    assert!(nsc(&["register", "a.2", "quic://h:2", "t"]).status().unwrap().success());
    assert_eq!(line(), "+ a.2 --> quic://h:2 {'t'}");
    assert!(nsc(&["remove", "a.1"]).status().unwrap().success());
    assert_eq!(line(), "- a.1");
    watching.kill().unwrap();
    watching.wait().unwrap();
}
