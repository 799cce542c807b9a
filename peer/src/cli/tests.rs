//! Words to commands, and commands carried out.

use std::path::{Path, PathBuf};

use shared::error::FailureCode;

use super::{
    fake::{Fake, peer},
    output::{Style, render},
    *,
};
use crate::api::DownloadRequest;

fn parse(line: &str) -> Result<Command, Failure> {
    Command::parse(shell_words::split(line).unwrap())
}

async fn run(fake: &Fake, line: &str) -> Outcome {
    let call = Call { backend: fake, working_dir: Path::new("/casa"), progress: ProgressSink::none() };
    execute(parse(line).unwrap(), call).await
}

#[test]
fn every_word_of_the_contract_is_a_command() {
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
        ("help", Command::Help(help::Help { verb: None })),
        ("help elect", Command::Help(help::Help { verb: Some("eleger") })),
        ("download --help", Command::Help(help::Help { verb: Some("download") })),
        ("add 'a b' c", Command::Add(add::Add { paths: vec!["a b".to_owned(), "c".to_owned()] })),
        ("remove -- --force", Command::Remove(remove::Remove { names: vec!["--force".to_owned()] })),
    ];
    for (line, command) in commands {
        assert_eq!(parse(line).unwrap(), command, "{line}");
    }
}

#[test]
fn download_takes_versions_and_options_in_any_place() {
    let parsed = |line: &str| match parse(line).unwrap() {
        Command::Download(download) => download,
        other => panic!("{other:?}"),
    };
    let download = parsed("download a.txt@ABcd photo@2x.png --to=/tmp/x --force x@beef@0123 --from peer2 @abcd");
    let files: Vec<_> = download.files.iter().map(|(name, hash)| (name.as_str(), hash.is_some())).collect();
    assert_eq!(files, [("a.txt", true), ("photo@2x.png", false), ("x@beef", true), ("@abcd", false)]);
    assert_eq!((download.from, download.to.as_deref()), (Some(peer("peer2")), Some("/tmp/x")));
    assert!(download.force);
}

#[test]
fn a_wrong_line_gets_one_line_that_helps() {
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
        ("download x --to a --to b", FailureCode::Usage, "said twice"),
        ("help lst", FailureCode::UnknownCommand, "list"),
        ("help a b", FailureCode::Usage, "too much"),
        ("exit now", FailureCode::Usage, "usage: exit"),
    ];
    for (line, code, part) in cases {
        let failure = parse(line).unwrap_err();
        assert_eq!(failure.code, code, "{line}");
        let text = failure.to_string();
        assert!(text.contains(part) && text.lines().count() == 1, "{line}: {text}");
        assert_eq!(failure.code.exit_status(), 2);
    }
    let failure = Command::parse(vec!["\u{1b}[2J".repeat(1000)]).unwrap_err();
    assert!(failure.to_string().len() < 500 && !failure.to_string().contains('\u{1b}'), "{failure}");
}

#[test]
fn verbs_are_named_once() {
    let mut names: Vec<&str> = VERBS.iter().flat_map(|verb| [&[verb.name], verb.aliases].concat()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for verb in VERBS {
        assert!(verb.usage.starts_with(verb.name), "{}", verb.usage);
    }
}

#[test]
fn json_may_be_asked_for_anywhere_before_two_dashes() {
    let take = |words: &[&str]| take_json_flag(words.iter().map(|word| (*word).to_owned()).collect());
    assert_eq!(take(&["list", "--json"]), (vec!["list".to_owned()], true));
    assert!(!take(&["add", "--", "--json"]).1);
    assert!(!take(&["list"]).1);
}

#[tokio::test]
async fn what_is_typed_relative_is_relative_to_the_users_folder() {
    let fake = Fake::sharing(&["a.txt"]);
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
    let asked = fake.downloads.lock().unwrap()[0].clone();
    assert_eq!(asked, expected);
    // Comparing paths ignores it, but it says that a folder is meant.
    assert!(asked.to.unwrap().to_str().unwrap().ends_with('/'));
}

#[tokio::test]
async fn of_several_files_those_that_can_be_are_done() {
    let fake = Fake::sharing(&["a.txt", "b.txt"]);
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
async fn exit_and_kill_end_a_peer_in_their_own_way() {
    let fake = Fake::sharing(&[]);
    assert_eq!(run(&fake, "exit").await.next, Next::Exit);
    assert_eq!(run(&fake, "kill").await.next, Next::Kill);
    assert_eq!(run(&fake, "list").await.next, Next::Continue);
}
