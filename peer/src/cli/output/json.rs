//! Output for scripts, as `docs/cli.md` specifies it.

use protocol::election::SeatRole;
use serde::Serialize;
use shared::{content::FileMeta, error::Failure, id::PeerId};

use super::{explain, text::sanitize};
use crate::{
    api::{self, Discarded, Downloaded, Explained, GlobalListing, RunningDownload, Status, Unfinished},
    cli::report::{EndCause, FileChange, Report},
    diagnostics::bottleneck,
};

#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    size: u64,
    hash: String,
    /// Present for directories only.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
}

#[derive(Serialize)]
struct OwnedFile<'a> {
    #[serde(flatten)]
    file: File<'a>,
    owners: Vec<&'a str>,
}

#[derive(Serialize)]
struct Source<'a> {
    peer: &'a str,
    bytes: u64,
}

#[derive(Serialize)]
struct DownloadedFile<'a> {
    #[serde(flatten)]
    file: File<'a>,
    path: String,
    seconds: f64,
    sources: Vec<Source<'a>>,
}

#[derive(Serialize)]
struct Finding<'a> {
    cause: &'static str,
    peers: Vec<&'a str>,
    share: f64,
    limits: bool,
    figure: String,
    advice: &'static str,
}

#[derive(Serialize)]
struct ExplainedSource<'a> {
    peer: &'a str,
    bytes: u64,
    bytes_per_second: u64,
    rtt_seconds: Option<f64>,
}

#[derive(Serialize)]
struct Explanation<'a> {
    name: &'a str,
    bytes: u64,
    seconds: f64,
    verdict: String,
    findings: Vec<Finding<'a>>,
    sources: Vec<ExplainedSource<'a>>,
}

#[derive(Serialize)]
struct Running<'a> {
    name: &'a str,
    bytes_done: u64,
    bytes_total: u64,
    bytes_per_second: u64,
    seconds_left: Option<f64>,
    sources: u32,
    verdict: String,
    findings: Vec<Finding<'a>>,
}

#[derive(Serialize)]
struct DiscardedFile<'a> {
    #[serde(flatten)]
    file: File<'a>,
    path: String,
    freed: u64,
}

#[derive(Serialize)]
struct UnfinishedFile<'a> {
    #[serde(flatten)]
    file: File<'a>,
    bytes: u64,
    path: String,
}

#[derive(Serialize)]
struct Peer<'a> {
    id: &'a str,
    address: String,
}

#[derive(Serialize)]
struct Verb {
    name: &'static str,
    aliases: &'static [&'static str],
    usage: &'static str,
    summary: &'static str,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'a str,
    message: String,
}

#[expect(clippy::large_enum_variant, reason = "one value exists at a time, and only until it is written")]
#[derive(Serialize)]
#[serde(untagged)]
enum Document<'a> {
    List {
        peer: &'a str,
        files: Vec<File<'a>>,
    },
    ListAll {
        epoch: u64,
        tracker: Option<&'a str>,
        files: Vec<OwnedFile<'a>>,
        /// Present without a tracker only.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        incomplete: bool,
    },
    Downloaded {
        files: Vec<DownloadedFile<'a>>,
        /// One per NAME argument, in that order.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        explain: Vec<Explanation<'a>>,
    },
    Discarded {
        files: Vec<DiscardedFile<'a>>,
    },
    Tracker {
        epoch: u64,
        peer: &'a str,
        address: String,
    },
    Peers {
        peers: Vec<Peer<'a>>,
    },
    Elected {
        epoch: u64,
        peer: &'a str,
    },
    Files {
        files: Vec<File<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    Status {
        peer: &'a str,
        address: String,
        nameserver: String,
        role: SeatRole,
        epoch: u64,
        tracker: Option<&'a str>,
        share: String,
        files: u64,
        bytes: u64,
        uploads: u64,
        uploads_waiting: u64,
        upload_slots: u64,
        limit_up: Option<u64>,
        limit_down: Option<u64>,
        downloads: u64,
        running: Vec<Running<'a>>,
        bytes_up: u64,
        bytes_down: u64,
        unfinished: Vec<UnfinishedFile<'a>>,
        warnings: Vec<String>,
    },
    Help {
        commands: Vec<Verb>,
    },
    Ended {
        peer: &'a str,
        ended: &'static str,
    },
    Error {
        error: ErrorBody<'a>,
        /// Part of the command that succeeded.
        #[serde(skip_serializing_if = "Option::is_none")]
        done: Option<Box<Document<'a>>>,
    },
}

/// Formats a report as one line without its end.
pub(crate) fn report(report: &Report) -> String {
    write(&document(report))
}

/// Formats a failure as one line without its end, with the part of the command that is `done`.
pub(crate) fn failure(failure: &Failure, done: Option<&Report>) -> String {
    let error = ErrorBody { code: failure.code.as_str(), message: sanitize(&failure.to_string()) };
    write(&Document::Error { error, done: done.map(|report| Box::new(document(report))) })
}

fn write(document: &Document<'_>) -> String {
    serde_json::to_string(document).expect("strings, numbers and lists can always be serialised")
}

fn document(report: &Report) -> Document<'_> {
    match report {
        Report::List { peer, files } => Document::List { peer: peer.as_str(), files: sorted(files) },
        Report::ListAll(GlobalListing { epoch, tracker, files }) => {
            let mut entries: Vec<_> = files.iter().collect();
            entries.sort_by(|a, b| (&a.file.name, &a.file.hash).cmp(&(&b.file.name, &b.file.hash)));
            let files = entries.into_iter().map(|entry| {
                let mut owners: Vec<&str> = entry.owners.iter().map(PeerId::as_str).collect();
                owners.sort_unstable();
                OwnedFile { file: file(&entry.file), owners }
            });
            Document::ListAll {
                epoch: epoch.0,
                tracker: tracker.as_ref().map(PeerId::as_str),
                files: files.collect(),
                incomplete: tracker.is_none(),
            }
        }
        Report::Added(FileChange { files, notes }) | Report::Removed(FileChange { files, notes }) => {
            Document::Files { files: sorted(files), notes: notes.iter().map(|note| sanitize(note)).collect() }
        }
        Report::Downloaded { files, explained } => {
            let mut files: Vec<&Downloaded> = files.iter().collect();
            files.sort_by(|a, b| a.file.name.cmp(&b.file.name));
            let explain = explained.iter().map(explanation).collect();
            Document::Downloaded { files: files.into_iter().map(downloaded).collect(), explain }
        }
        Report::Discarded(files) => {
            let mut files: Vec<&Discarded> = files.iter().collect();
            files.sort_by(|a, b| (&a.file.name, &a.destination).cmp(&(&b.file.name, &b.destination)));
            Document::Discarded { files: files.into_iter().map(discarded).collect() }
        }
        Report::Tracker(seat) => {
            Document::Tracker { epoch: seat.epoch.0, peer: seat.peer.as_str(), address: seat.endpoint.to_string() }
        }
        Report::Peers(peers) => {
            let mut peers: Vec<_> = peers.iter().collect();
            peers.sort();
            let peers = peers.into_iter().map(|(id, address)| Peer { id: id.as_str(), address: address.to_string() });
            Document::Peers { peers: peers.collect() }
        }
        Report::Elected { epoch, peer } => Document::Elected { epoch: epoch.0, peer: peer.as_str() },
        Report::Status(status) => self::status(status),
        Report::Help(commands) => {
            let verbs = commands.iter().map(|command| Verb {
                name: command.name,
                aliases: command.aliases,
                usage: command.usage,
                summary: command.summary,
            });
            Document::Help { commands: verbs.collect() }
        }
        Report::Ended { peer, cause } => {
            let ended = match cause {
                EndCause::Exit => "exit",
                EndCause::Kill => "kill",
                EndCause::NotRunning => "not_running",
            };
            Document::Ended { peer: peer.as_str(), ended }
        }
    }
}

fn sorted(files: &[FileMeta]) -> Vec<File<'_>> {
    let mut files: Vec<&FileMeta> = files.iter().collect();
    files.sort_by(|a, b| (&a.name, &a.hash).cmp(&(&b.name, &b.hash)));
    files.into_iter().map(file).collect()
}

fn file(meta: &FileMeta) -> File<'_> {
    let kind = meta.is_directory().then_some("directory");
    File { name: meta.name.as_str(), size: meta.size, hash: meta.hash.to_hex(), kind }
}

fn downloaded(downloaded: &Downloaded) -> DownloadedFile<'_> {
    let mut sources: Vec<Source<'_>> =
        downloaded.sources.iter().map(|(peer, bytes)| Source { peer: peer.as_str(), bytes: *bytes }).collect();
    sources.sort_by_key(|source| source.peer);
    DownloadedFile {
        file: file(&downloaded.file),
        path: downloaded.path.to_string_lossy().into_owned(),
        seconds: micros(downloaded.seconds),
        sources,
    }
}

/// Rounds to microseconds, the resolution of the measurement.
fn micros(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

fn explanation(explained: &Explained) -> Explanation<'_> {
    Explanation {
        name: &explained.name,
        bytes: explained.bytes,
        seconds: micros(explained.seconds),
        verdict: explain::verdict(&explained.findings),
        findings: explained.findings.iter().map(finding).collect(),
        sources: explained.sources.iter().map(explained_source).collect(),
    }
}

fn explained_source(source: &api::ExplainedSource) -> ExplainedSource<'_> {
    ExplainedSource {
        peer: source.peer.as_str(),
        bytes: source.bytes,
        bytes_per_second: source.bytes_per_second,
        rtt_seconds: source.rtt.map(|rtt| micros(rtt.as_secs_f64())),
    }
}

fn finding(finding: &bottleneck::Finding) -> Finding<'_> {
    let description = explain::describe(finding);
    Finding {
        cause: finding.cause.as_str(),
        peers: finding.peers.iter().map(PeerId::as_str).collect(),
        share: (finding.share * 1e3).round() / 1e3,
        limits: finding.stands_out(),
        figure: description.figure,
        advice: description.advice,
    }
}

fn running(download: &RunningDownload) -> Running<'_> {
    Running {
        name: &download.name,
        bytes_done: download.bytes_done,
        bytes_total: download.bytes_total,
        bytes_per_second: download.bytes_per_second,
        seconds_left: explain::seconds_left(download).map(micros),
        sources: download.sources,
        verdict: explain::verdict(&download.findings),
        findings: download.findings.iter().map(finding).collect(),
    }
}

fn unfinished(unfinished: &Unfinished) -> UnfinishedFile<'_> {
    UnfinishedFile {
        file: file(&unfinished.file),
        bytes: unfinished.have_bytes,
        path: unfinished.destination.to_string_lossy().into_owned(),
    }
}

fn discarded(discarded: &Discarded) -> DiscardedFile<'_> {
    DiscardedFile {
        file: file(&discarded.file),
        path: discarded.destination.to_string_lossy().into_owned(),
        freed: discarded.freed_bytes,
    }
}

fn status(status: &Status) -> Document<'_> {
    Document::Status {
        peer: status.id.as_str(),
        address: status.endpoint.to_string(),
        nameserver: status.nameserver.to_string(),
        role: status.role,
        epoch: status.epoch.0,
        tracker: status.tracker.as_ref().map(PeerId::as_str),
        share: status.share_dir.to_string_lossy().into_owned(),
        files: status.files,
        bytes: status.bytes,
        uploads: status.uploads,
        uploads_waiting: status.uploads_waiting,
        upload_slots: status.upload_slots,
        limit_up: status.limit_up,
        limit_down: status.limit_down,
        downloads: status.downloads,
        running: status.running.iter().map(running).collect(),
        bytes_up: status.bytes_up,
        bytes_down: status.bytes_down,
        unfinished: status.unfinished.iter().map(unfinished).collect(),
        warnings: status.warnings.iter().map(|warning| sanitize(warning)).collect(),
    }
}
