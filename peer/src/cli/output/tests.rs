//! Output of all commands on a fake peer, compared verbatim.

use shared::{
    content::{ContentHash, DIRECTORY_HASH},
    epoch::Epoch,
    error::FailureCode,
    rpc::tracker::IndexedFile,
};

use super::*;
use crate::{
    api::{Downloaded, GlobalListing, ProgressSink},
    cli::{
        command::{CommandContext, PeerEffect},
        commands::{execute, parse},
        fake_peer::{FakePeer, file, peer},
        report::{FileChange, Report},
    },
};

async fn outcome(line: &str) -> Outcome {
    let fake = FakePeer::sharing(&["b.txt", "a.txt"]);
    let words = line.split(' ').map(str::to_owned).collect();
    let working_dir = std::path::Path::new("/casa");
    let context = CommandContext { peer: &fake, working_dir, progress: ProgressSink::none() };
    execute(parse(words).unwrap(), context).await
}

async fn json(line: &str) -> String {
    let rendered = render(&outcome(line).await, Style::Json);
    assert_eq!(rendered.err, "");
    rendered.out
}

async fn human(line: &str) -> String {
    render(&outcome(line).await, Style::Human).out
}

/// The contract is the section `--json` of `docs/cli.md`.
#[tokio::test]
async fn json_output_matches_the_contract() {
    let hash = "ab".repeat(32);
    let a = format!(r#""name":"a.txt","size":3,"hash":"{hash}""#);
    let b = format!(r#""name":"b.txt","size":3,"hash":"{hash}""#);
    let cases = [
        ("list", format!(r#"{{"peer":"peer1","files":[{{{a}}},{{{b}}}]}}"#)),
        (
            "listAll",
            format!(
                r#"{{"epoch":4,"tracker":"peer1","files":[{{{a},"owners":["peer1","peer3"]}},{{{b},"owners":["peer1","peer3"]}}]}}"#
            ),
        ),
        (
            "download b.txt a.txt",
            format!(
                r#"{{"files":[{{{a},"path":"/share/a.txt","seconds":0.01,"sources":[{s}]}},{{{b},"path":"/share/b.txt","seconds":0.01,"sources":[{s}]}}]}}"#,
                s = r#"{"peer":"peer2","bytes":1},{"peer":"peer3","bytes":2}"#
            ),
        ),
        (
            "download --explain a.txt",
            format!(
                r#"{{"files":[{{{a},"path":"/share/a.txt","seconds":0.01,"sources":[{s}]}}],"explain":[{e}]}}"#,
                s = r#"{"peer":"peer2","bytes":1},{"peer":"peer3","bytes":2}"#,
                e = concat!(
                    r#"{"name":"a.txt","bytes":3,"seconds":0.5,"#,
                    r#""verdict":"limited by: the upload limit of peer3 (94 % of the time; 1.0 MiB/s)","#,
                    r#""findings":[{"cause":"owner_limit","peers":["peer3"],"share":0.935,"limits":true,"#,
                    r#""figure":"1.0 MiB/s","advice":"a higher --limit-up there, or more owners of the file"}],"#,
                    r#""sources":[{"peer":"peer3","bytes":2,"bytes_per_second":4,"rtt_seconds":0.0015}]}"#,
                )
            ),
        ),
        ("tracker", r#"{"epoch":4,"peer":"peer1","address":"quic://127.0.0.1:40001"}"#.to_owned()),
        (
            "peers",
            r#"{"peers":[{"id":"peer1","address":"quic://127.0.0.1:40001"},{"id":"peer2","address":"quic://127.0.0.1:40001"}]}"#
                .to_owned(),
        ),
        ("eleger", r#"{"epoch":5,"peer":"peer2"}"#.to_owned()),
        ("add a.txt", format!(r#"{{"files":[{{{a}}}],"notes":["created the file"]}}"#)),
        ("remove b.txt a.txt", format!(r#"{{"files":[{{{a}}},{{{b}}}]}}"#)),
    ];
    for (line, expected) in cases {
        assert_eq!(json(line).await, expected + "\n", "{line}");
    }
}

#[tokio::test]
async fn commands_outside_of_the_contract_print_one_document() {
    for line in ["status", "help", "help list", "exit", "kill"] {
        let text = json(line).await;
        assert_eq!(text.lines().count(), 1, "{line}");
        assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap().is_object(), "{line}");
    }
    let status = json("status").await;
    assert!(status.contains(r#""peer":"peer1","address":"quic://127.0.0.1:40001""#));
    assert!(
        status.contains(r#""uploads":2,"uploads_waiting":1,"upload_slots":8,"limit_up":null,"limit_down":1048576"#)
    );
    let running = r#""running":[{"name":"big.bin","bytes_done":1048576,"bytes_total":4194304,"bytes_per_second":524288,"seconds_left":6.0,"sources":1,"verdict":"limited by: "#;
    assert!(status.contains(running), "{status}");
}

#[tokio::test]
async fn human_output_is_in_aligned_columns() {
    assert_eq!(human("list").await, "a.txt  3 B\nb.txt  3 B\n");
    let all = human("listAll").await;
    assert_eq!(all, "a.txt  3 B  peer1, peer3\nb.txt  3 B  peer1, peer3\n2 files; tracker peer1, epoch 4\n");
    assert_eq!(human("tracker").await, "peer1 is tracker, epoch 4, at quic://127.0.0.1:40001\n");
    assert_eq!(
        human("download a.txt").await,
        "a.txt (3 B, 0.01 s, 300 B/s) from peer2 (1 B) and peer3 (2 B): /share/a.txt\n"
    );
    assert_eq!(
        human("download a.txt --explain").await.lines().skip(1).collect::<Vec<_>>(),
        [
            "a.txt: limited by: the upload limit of peer3 (94 % of the time; 1.0 MiB/s)",
            "  advice: a higher --limit-up there, or more owners of the file",
            "  total: 3 B in 0.50 s, 6 B/s",
            "  from peer3: 2 B at 4 B/s, round trip 1.5 ms",
        ]
    );
    assert_eq!(human("add c.txt").await, "created the file\nshares c.txt (3 B)\n");
    let status = human("status").await;
    let uploads = "2 uploads, 1 waiting, 8 at a time; 0 B so far";
    assert!(status.contains(uploads) && status.contains("1 downloads, at most 1.0 MiB/s; 3 B so far"), "{status}");
    let running = "big.bin: 1.0 MiB of 4.0 MiB, 512.0 KiB/s, 6 s left, from 1 peer; limited by: the upload limit of";
    assert!(status.contains(running), "{status}");
    assert!(status.contains("warning: small\u{fffd}[2J buffers"), "{status}");
    assert!(human("help").await.lines().any(|line| line.starts_with("listAll (listall)  ")));
    assert!(human("help download").await.contains("--force"));

    let long = "x".repeat(200);
    let files = vec![file(&long, 5 << 20, 1), file("a", 1023, 1)];
    let list = Outcome::from(Ok(Report::List { peer: peer("peer1"), files }));
    assert_eq!(render(&list, Style::Human).out, format!("a   1023 B\n{long}  5.0 MiB\n"));
}

#[test]
fn versions_of_one_name_are_shown_with_their_hashes() {
    let entry = |name: &str, fill| IndexedFile { file: file(name, 3, fill), owners: vec![peer("peer1")] };
    let files = vec![entry("a", 0xcd), entry("b", 1), entry("a", 0xab)];
    let listing = GlobalListing { epoch: Epoch(1), tracker: Some(peer("peer1")), files };
    let text = render(&Ok(Report::ListAll(listing)).into(), Style::Human).out;
    let names: Vec<_> = text.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["a@ababababab", "a@cdcdcdcdcd", "b", "3"]);
    assert_eq!(ContentHash([0xab; 32]).short(), "ababababab");
}

#[test]
fn empty_directory_is_shown_with_a_slash_and_a_kind() {
    let mut directory = file("docs", 0, 0);
    directory.hash = DIRECTORY_HASH;
    let files = vec![file("a", 3, 1), directory.clone()];
    let list = Ok(Report::List { peer: peer("peer1"), files }).into();
    assert_eq!(render(&list, Style::Human).out, "a      3 B\ndocs/  0 B\n");
    let document: serde_json::Value = serde_json::from_str(&render(&list, Style::Json).out).unwrap();
    assert_eq!(
        (&document["files"][0]["kind"], &document["files"][1]["kind"]),
        (&serde_json::Value::Null, &"directory".into())
    );
    let entry = IndexedFile { file: directory.clone(), owners: vec![peer("peer1")] };
    let listing = GlobalListing { epoch: Epoch(1), tracker: Some(peer("peer1")), files: vec![entry] };
    let text = render(&Ok(Report::ListAll(listing)).into(), Style::Human).out;
    assert_eq!(text, "docs/  0 B  peer1\n0 files, 1 empty directory; tracker peer1, epoch 1\n");
    let done = Downloaded { path: "/share/docs".into(), seconds: 0.0, sources: Vec::new(), file: directory };
    assert_eq!(
        render(&Ok(Report::Downloaded { files: vec![done], explained: Vec::new() }).into(), Style::Human).out,
        "docs/ (an empty directory): /share/docs\n"
    );
}

#[test]
fn failure_goes_to_standard_error_or_with_json_lines_to_standard_output() {
    let failure = Failure::new(FailureCode::NoOwner, "a.txt\u{1b}[2J was not fetched", "no\nowner", "try later");
    let failed = Outcome::from(failure);
    let text = "a.txt\u{fffd}[2J was not fetched (no owner; try later)";
    let document = format!("{{\"error\":{{\"code\":\"no_owner\",\"message\":\"{text}\"}}}}\n");
    let on_out = |out: &str| Rendered { out: out.to_owned(), err: String::new() };
    let on_err = |err: String| Rendered { out: String::new(), err };
    assert_eq!(render(&failed, Style::Human), on_err(format!("error: {text}\n")));
    assert_eq!(render(&failed, Style::Json), on_err(document.clone()));
    assert_eq!(render(&failed, Style::JsonLines), on_out(&document));

    let change = FileChange { files: vec![file("a", 1, 1)], notes: Vec::new() };
    let partly = Outcome { report: Some(Report::Removed(change)), ..failed };
    let line = render(&partly, Style::JsonLines).out;
    assert_eq!(line.lines().count(), 1);
    let document: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&document["error"]["code"], &document["done"]["files"][0]["name"]), (&"no_owner".into(), &"a".into()));
    assert_eq!(partly.effect, PeerEffect::KeepRunning);
}
