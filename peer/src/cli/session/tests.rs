//! Commands one after another.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use super::*;
use crate::cli::fake::Fake;

/// What a test types: lines, and for each whether Ctrl-C follows once its download has begun.
struct Script {
    lines: VecDeque<Input>,
    fake: Arc<Fake>,
}

impl Source for Script {
    async fn next(&mut self) -> Input {
        match self.lines.pop_front() {
            Some(input) => input,
            None => Input::End,
        }
    }

    async fn interrupted(&mut self) {
        while self.fake.begun.load(Ordering::SeqCst) == self.fake.dropped.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }

    fn shown(&mut self, _report: &Report) {}
}

async fn run(lines: &[&str], json: bool) -> (Next, Vec<Rendered>, Arc<Fake>) {
    let fake = Arc::new(Fake::sharing(&["a.txt"]));
    let lines = lines.iter().map(|line| Input::Line((*line).to_owned())).collect();
    let source = Script { lines, fake: Arc::clone(&fake) };
    let backend: Arc<dyn PeerApi> = Arc::clone(&fake) as _;
    let session = Session { backend, working_dir: "/casa".into(), json };
    let mut shown = Vec::new();
    let mut show = |rendered: &Rendered| {
        shown.push(rendered.clone());
        Ok(())
    };
    let stop = CancellationToken::new();
    let driven = session.drive(source, &stop, &mut show);
    let next = tokio::time::timeout(Duration::from_secs(20), driven).await.expect("the session ends");
    (next, shown, fake)
}

#[tokio::test]
async fn a_wrong_line_does_not_end_the_peer() {
    let (next, shown, _) = run(&["frob", "", "  ", "'open", "add", "list", "exit", "list"], false).await;
    assert_eq!(next, Next::Exit);
    let errors = shown.iter().filter(|rendered| rendered.err.starts_with("error: ")).count();
    assert_eq!((errors, shown.len()), (3, 5), "{shown:?}");
    assert_eq!(shown[3].out, "a.txt  3 B\n");
    assert_eq!(shown[4].out, "peer1 leaves\n");
}

#[tokio::test]
async fn with_json_each_line_gives_one_document_in_order() {
    let (_, shown, _) = run(&["tracker", "frob", "", "'open", "list", "remove nope a.txt", "kill"], true).await;
    let codes: Vec<String> = shown
        .iter()
        .map(|rendered| {
            assert_eq!((rendered.out.lines().count(), rendered.err.as_str()), (1, ""));
            let document: serde_json::Value = serde_json::from_str(&rendered.out).unwrap();
            document["error"]["code"].as_str().unwrap_or("-").to_owned()
        })
        .collect();
    assert_eq!(codes, ["-", "unknown_command", "usage", "usage", "-", "no_such_file", "-"]);
}

#[tokio::test]
async fn a_single_line_may_ask_for_json() {
    let (_, shown, _) = run(&["tracker --json", "tracker"], false).await;
    assert!(shown[0].out.starts_with('{') && shown[1].out.starts_with("peer1 is tracker"));
}

#[tokio::test]
async fn ctrl_c_stops_the_command_and_the_session_goes_on() {
    let (next, shown, fake) = run(&["download slow", "list"], false).await;
    assert_eq!(fake.dropped.load(Ordering::SeqCst), 1);
    assert!(shown[0].err.starts_with("error: stopped ("), "{shown:?}");
    assert_eq!((next, shown[1].out.as_str()), (Next::Exit, "a.txt  3 B\n"));
}

#[tokio::test]
async fn stopping_the_peer_stops_the_command_that_runs() {
    let fake = Arc::new(Fake::sharing(&[]));
    let (_typing, lines) = io::pipe().map(|(reader, writer)| (writer, reader)).unwrap();
    let session = Session { backend: Arc::clone(&fake) as _, working_dir: "/casa".into(), json: false };
    let stop = CancellationToken::new();
    stop.cancel();
    let lines = Lines::of(io::BufReader::new(lines)).unwrap();
    let mut show = |_: &Rendered| Ok(());
    let driven = session.drive(lines, &stop, &mut show);
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), driven).await.unwrap(), Next::Exit);
}

#[tokio::test]
async fn a_reader_that_is_gone_ends_the_session() {
    let fake = Arc::new(Fake::sharing(&[]));
    let session = Session { backend: Arc::clone(&fake) as _, working_dir: "/casa".into(), json: false };
    let lines = VecDeque::from(["list", "list"].map(|line| Input::Line(line.to_owned())));
    let mut shown = 0;
    let mut show = |_: &Rendered| {
        shown += 1;
        Err(io::ErrorKind::BrokenPipe.into())
    };
    let next = session.drive(Script { lines, fake }, &CancellationToken::new(), &mut show).await;
    assert_eq!((next, shown), (Next::Exit, 1));
}
