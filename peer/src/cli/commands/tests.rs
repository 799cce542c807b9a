//! Parsing of command lines and execution of commands on a fake peer.

use std::path::{Path, PathBuf};

use super::*;
use crate::{
    api::{DownloadRequest, ProgressSink},
    cli::{
        command::{Download, PeerEffect},
        fake_peer::{FakePeer, peer},
        output::{Style, render},
        shell_words,
    },
};

fn parse_line(line: &str) -> Result<Command, Failure> {
    parse(shell_words::split(line).unwrap())
}

async fn run(fake: &FakePeer, line: &str) -> Outcome {
    let context = CommandContext { peer: fake, working_dir: Path::new("/casa"), progress: ProgressSink::none() };
    execute(parse_line(line).unwrap(), context).await
}

#[test]
fn every_verb_of_the_contract_is_parsed() {
    let commands = [
        ("list", Command::List),
        ("listAll", Command::ListAll),
        ("listall", Command::ListAll),
        ("tracker", Command::Tracker),
        ("peers", Command::Peers),
        ("eleger", Command::Elect),
        ("elect", Command::Elect),
        ("status", Command::Status),
        ("kill", Command::Kill),
        ("exit", Command::Exit),
        ("quit", Command::Exit),
        ("help", Command::Help { verb: None }),
        ("help elect", Command::Help { verb: Some("eleger") }),
        ("download --help", Command::Help { verb: Some("download") }),
        ("add 'a b' c", Command::Add { paths: vec!["a b".to_owned(), "c".to_owned()] }),
        ("remove -- --force", Command::Remove { names: vec!["--force".to_owned()] }),
    ];
    for (line, command) in commands {
        assert_eq!(parse_line(line).unwrap(), command, "{line}");
    }
}

#[test]
fn download_accepts_versions_and_options_in_any_order() {
    let parsed = |line: &str| -> Download {
        match parse_line(line).unwrap() {
            Command::Download(download) => download,
            other => panic!("{other:?}"),
        }
    };
    let download = parsed("download a.txt@ABcd photo@2x.png --to=/tmp/x --force x@beef@0123 --from peer2 @abcd");
    let files: Vec<_> = download.files.iter().map(|(name, hash)| (name.as_str(), hash.is_some())).collect();
    assert_eq!(files, [("a.txt", true), ("photo@2x.png", false), ("x@beef", true), ("@abcd", false)]);
    assert_eq!((download.from, download.to.as_deref()), (Some(peer("peer2")), Some("/tmp/x")));
    assert!(download.force);
}

#[test]
fn invalid_line_fails_with_one_line_and_a_hint() {
    let cases = [
        ("lsit", FailureCode::UnknownCommand, "did you mean list"),
        ("frobnicate", FailureCode::UnknownCommand, "`help` lists"),
        ("list x", FailureCode::Usage, "usage: list"),
        ("add", FailureCode::Usage, "usage: add PATH"),
        ("remove", FailureCode::Usage, "NAME is missing"),
        ("remove ''", FailureCode::Usage, "NAME is empty"),
        ("download", FailureCode::Usage, "usage: download NAME[@HASH]"),
        ("download x --to", FailureCode::Usage, "PATH is missing after --to"),
        ("download x --to ''", FailureCode::Usage, "--to is empty"),
        ("download x --form y", FailureCode::Usage, "\"--form\""),
        ("download x --from UP", FailureCode::Usage, "not a peer id"),
        ("download x --force=1", FailureCode::Usage, "takes no value"),
        ("download x --to a --to b", FailureCode::Usage, "given twice"),
        ("help lst", FailureCode::UnknownCommand, "list"),
        ("help a b", FailureCode::Usage, "unexpected argument \"b\""),
        ("exit now", FailureCode::Usage, "usage: exit"),
    ];
    for (line, code, part) in cases {
        let failure = parse_line(line).unwrap_err();
        assert_eq!(failure.code, code, "{line}");
        let text = failure.to_string();
        assert!(text.contains(part) && text.lines().count() == 1, "{line}: {text}");
        assert_eq!(failure.code.exit_status(), 2);
    }
    let failure = parse(vec!["\u{1b}[2J".repeat(1000)]).unwrap_err();
    assert!(failure.to_string().len() < 500 && !failure.to_string().contains('\u{1b}'), "{failure}");
}

#[test]
fn names_of_verbs_are_unique() {
    let mut names: Vec<&str> = VERBS.into_iter().flat_map(Verb::names).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for verb in VERBS {
        assert!(verb.usage.starts_with(verb.name), "{}", verb.usage);
    }
}

#[tokio::test]
async fn relative_paths_are_resolved_in_the_callers_folder() {
    let fake = FakePeer::sharing(&["a.txt"]);
    run(&fake, "add novo.txt ./x.txt /abs/y.txt CON").await;
    let added = fake.added.lock().unwrap().clone();
    let seen: Vec<_> = added.iter().map(|add| (add.path.clone(), add.bare_name.is_some())).collect();
    let expected = [("/casa/novo.txt", true), ("/casa/./x.txt", false), ("/abs/y.txt", false), ("/casa/CON", false)];
    assert_eq!(seen, expected.map(|(path, bare)| (PathBuf::from(path), bare)));

    run(&fake, "download a.txt@abab --to out/ --from peer3").await;
    let expected = DownloadRequest {
        pattern: "a.txt".to_owned(),
        version: Some("abab".parse().unwrap()),
        from: Some(peer("peer3")),
        to: Some("/casa/out/".into()),
        force: false,
        explain: false,
    };
    let requested = fake.downloads.lock().unwrap()[0].clone();
    assert_eq!(requested, expected);
    // `PathBuf` ignores a final `/` in comparisons. Here it says that the destination is a folder.
    assert!(requested.to.unwrap().to_str().unwrap().ends_with('/'));
}

#[tokio::test]
async fn command_on_several_files_reports_the_successes_and_the_first_failure() {
    let fake = FakePeer::sharing(&["a.txt", "b.txt"]);
    let outcome = run(&fake, "remove a.txt nope b.txt nada").await;
    assert_eq!(outcome.exit_status(), 1);
    let rendered = render(&outcome, Style::Human);
    assert_eq!(rendered.out, "removed a.txt (3 B)\nremoved b.txt (3 B)\n");
    assert!(rendered.err.starts_with("error: 2 failed, the first: no file \"nope\" ("), "{}", rendered.err);

    let outcome = run(&fake, "add missing").await;
    assert_eq!((outcome.report, outcome.failure.unwrap().code), (None, FailureCode::NoSuchFile));
    let outcome = run(&fake, "download x").await;
    assert_eq!(outcome.report, None);
}

#[tokio::test]
async fn exit_and_kill_have_different_effects() {
    let fake = FakePeer::sharing(&[]);
    assert_eq!(run(&fake, "exit").await.effect, PeerEffect::Exit);
    assert_eq!(run(&fake, "kill").await.effect, PeerEffect::Kill);
    assert_eq!(run(&fake, "list").await.effect, PeerEffect::KeepRunning);
}
