//! Sessions on scripted sources.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use super::*;
use crate::cli::{fake_peer::FakePeer, report::Report};

/// Source of given inputs. It interrupts each download that never ends, once the download has started.
struct Script {
    inputs: VecDeque<Input>,
    peer: Arc<FakePeer>,
}

impl CommandSource for Script {
    async fn next(&mut self) -> Input {
        match self.inputs.pop_front() {
            Some(input) => input,
            None => Input::End,
        }
    }

    async fn interrupted(&mut self) {
        while self.peer.started.load(Ordering::SeqCst) == self.peer.dropped.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }

    fn on_report(&mut self, _report: &Report) {}
}

async fn run(lines: &[&str], json: bool) -> (PeerEffect, Vec<Rendered>, Arc<FakePeer>) {
    let fake = Arc::new(FakePeer::sharing(&["a.txt"]));
    let inputs = lines.iter().map(|line| Input::Line((*line).to_owned())).collect();
    let source = Script { inputs, peer: Arc::clone(&fake) };
    let peer: Arc<dyn PeerApi> = Arc::clone(&fake) as _;
    let session = Session { peer, working_dir: "/casa".into(), json };
    let mut printed = Vec::new();
    let mut print = |rendered: &Rendered| {
        printed.push(rendered.clone());
        Ok(())
    };
    let stop = CancellationToken::new();
    let running = session.run(source, &stop, &mut print);
    let effect = tokio::time::timeout(Duration::from_secs(20), running).await.expect("the session ends");
    (effect, printed, fake)
}

#[tokio::test]
async fn invalid_line_is_reported_and_the_session_continues() {
    let (effect, printed, _) = run(&["frob", "", "  ", "'open", "add", "list", "exit", "list"], false).await;
    assert_eq!(effect, PeerEffect::Exit);
    let errors = printed.iter().filter(|rendered| rendered.err.starts_with("error: ")).count();
    assert_eq!((errors, printed.len()), (3, 5), "{printed:?}");
    assert_eq!(printed[3].out, "a.txt  3 B\n");
    assert_eq!(printed[4].out, "peer1 leaves\n");
}

#[tokio::test]
async fn json_session_answers_each_line_with_one_document_in_order() {
    let (_, printed, _) = run(&["tracker", "frob", "", "'open", "list", "remove nope a.txt", "kill"], true).await;
    let codes: Vec<String> = printed
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
async fn json_flag_of_a_line_affects_only_that_line() {
    let (_, printed, _) = run(&["tracker --json", "tracker"], false).await;
    assert!(printed[0].out.starts_with('{') && printed[1].out.starts_with("peer1 is tracker"));
}

#[tokio::test]
async fn ctrl_c_stops_the_command_and_the_session_continues() {
    let (effect, printed, fake) = run(&["download slow", "list"], false).await;
    assert_eq!(fake.dropped.load(Ordering::SeqCst), 1);
    assert!(printed[0].err.starts_with("error: interrupted ("), "{printed:?}");
    assert_eq!((effect, printed[1].out.as_str()), (PeerEffect::Exit, "a.txt  3 B\n"));
}

#[tokio::test]
async fn stop_token_ends_a_session_that_waits_for_input() {
    let fake = Arc::new(FakePeer::sharing(&[]));
    let (input, _writer) = io::pipe().unwrap();
    let session = Session { peer: Arc::clone(&fake) as _, working_dir: "/casa".into(), json: false };
    let stop = CancellationToken::new();
    stop.cancel();
    let source = StdinSource::open(BufReader::new(input)).unwrap();
    let mut print = |_: &Rendered| Ok(());
    let running = session.run(source, &stop, &mut print);
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), running).await.unwrap(), PeerEffect::Exit);
}

#[tokio::test]
async fn closed_output_ends_the_session() {
    let fake = Arc::new(FakePeer::sharing(&[]));
    let session = Session { peer: Arc::clone(&fake) as _, working_dir: "/casa".into(), json: false };
    let inputs = VecDeque::from(["list", "list"].map(|line| Input::Line(line.to_owned())));
    let mut printed = 0;
    let mut print = |_: &Rendered| {
        printed += 1;
        Err(io::ErrorKind::BrokenPipe.into())
    };
    let effect = session.run(Script { inputs, peer: fake }, &CancellationToken::new(), &mut print).await;
    assert_eq!((effect, printed), (PeerEffect::Exit, 1));
}
