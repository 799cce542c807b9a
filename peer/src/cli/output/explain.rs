//! Why a transfer is slow, in words.

use shared::id::PeerId;

use super::{bytes, harmless};
use crate::{
    api::{Explained, RunningDownload},
    diagnostics::bottleneck::{Cause, Figure, Finding},
};

/// What is said when no finding stands out.
const NOTHING: &str = "nothing stands out";

/// A finding in words.
pub(crate) struct Words {
    /// What it is.
    pub(crate) what: String,
    /// What shows it.
    pub(crate) figure: String,
    /// What can be done.
    pub(crate) advice: &'static str,
}

/// `limited by: WHAT (SHARE; FIGURE); WHAT …`, or that nothing stands out.
pub(crate) fn verdict(findings: &[Finding]) -> String {
    let limits: Vec<String> = findings.iter().filter(|finding| finding.stands_out()).map(brief).collect();
    if limits.is_empty() { NOTHING.to_owned() } else { format!("limited by: {}", limits.join("; ")) }
}

fn brief(finding: &Finding) -> String {
    let Words { what, figure, .. } = words(finding);
    format!("{what} ({:.0} % of the time; {figure})", finding.share * 100.0)
}

/// The lines for people, the verdict first, each ended.
pub(crate) fn lines(explained: &Explained) -> String {
    let Explained { name, bytes: count, seconds, sources, findings } = explained;
    let mut text = format!("{}: {}\n", harmless(name), verdict(findings));
    for finding in findings {
        let tag = if finding.stands_out() { "  to do" } else { "  also" };
        let said = if finding.stands_out() { words(finding).advice.to_owned() } else { brief(finding) };
        text += &format!("{tag}: {said}\n");
    }
    let rate = if *seconds > 0.0 { (*count as f64 / seconds) as u64 } else { 0 };
    text += &format!("  in all: {} in {seconds:.2} s, {}/s\n", bytes(*count), bytes(rate));
    for source in sources {
        let rtt = source.rtt.map_or(String::new(), |rtt| format!(", round trip {}", millis(rtt)));
        let rate = bytes(source.bytes_per_second);
        text += &format!("  from {}: {} at {rate}/s{rtt}\n", source.peer, bytes(source.bytes));
    }
    text
}

/// A download that runs, as one line, not ended.
pub(crate) fn running(download: &RunningDownload) -> String {
    let RunningDownload { name, bytes_done, bytes_total, bytes_per_second, sources, findings } = download;
    let peers = if *sources == 1 { "peer" } else { "peers" };
    let left = match seconds_left(download) {
        Some(seconds) => format!(", {} left", whole_time(seconds)),
        None => String::new(),
    };
    format!(
        "{}: {} of {}, {}/s{left}, from {sources} {peers}; {}",
        harmless(name),
        bytes(*bytes_done),
        bytes(*bytes_total),
        bytes(*bytes_per_second),
        verdict(findings)
    )
}

/// How long a download will take at its present rate; `None` when nothing comes.
pub(crate) fn seconds_left(download: &RunningDownload) -> Option<f64> {
    let left = download.bytes_total.saturating_sub(download.bytes_done);
    (download.bytes_per_second > 0).then(|| left as f64 / download.bytes_per_second as f64)
}

/// Seconds for people: `9 s`, `3:05 min`, `2:30 h`.
pub(in crate::cli) fn whole_time(seconds: f64) -> String {
    let whole = seconds.ceil() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{}:{:02} min", whole / 60, whole % 60),
        _ => format!("{}:{:02} h", whole / 3600, whole % 3600 / 60),
    }
}

fn millis(time: std::time::Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn of(peers: &[PeerId]) -> String {
    match peers {
        [] => "an owner".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// A finding in words.
pub(crate) fn words(finding: &Finding) -> Words {
    let Finding { cause, peers, figure, .. } = finding;
    let owner = of(peers);
    let (what, advice) = match cause {
        Cause::OwnerLimit => {
            (format!("the upload limit of {owner}"), "a higher --limit-up there, or more owners of the file")
        }
        Cause::OwnerSlots => (
            format!("the queue at {owner}"),
            "wait until its other receivers are served, more owners, or a higher --max-uploads there",
        ),
        Cause::OwnerDisk => (format!("the disk of {owner}"), "a faster disk there, or more owners of the file"),
        Cause::OwnerCpu => {
            (format!("the processors of {owner}"), "end other programs there, or more owners of the file")
        }
        Cause::Path => (
            format!("the path from {owner}"),
            "look at what else uses it and what loses packets on it, or fetch from an owner nearer by",
        ),
        Cause::RoundTrips => (
            format!("waiting for answers of {owner}"),
            "fetch fewer and larger files, for example as one archive, or from an owner nearer by",
        ),
        Cause::ReceiveBuffer => {
            ("this machine's UDP receive buffer".to_owned(), "allow a larger one; `status` says how")
        }
        Cause::OwnLimit => ("this peer's own download limit".to_owned(), "a higher --limit-down"),
        Cause::OwnDisk => ("this machine's disk".to_owned(), "a faster disk, or --to one"),
        Cause::OwnCpu => ("this machine's processors".to_owned(), "end other programs, or fewer downloads at a time"),
        Cause::Unsaid => (
            format!("{owner} or the path from it"),
            "nothing more is known: it did not say what it waited for; look at `status` there",
        ),
    };
    Words { what, figure: figure_words(figure), advice }
}

fn figure_words(figure: &Figure) -> String {
    match *figure {
        Figure::Rate(Some(rate)) => format!("{}/s", bytes(rate)),
        Figure::Rate(None) => "of an unknown rate".to_owned(),
        Figure::Slots { at_a_time, waited } => {
            let slots = at_a_time.map_or(String::new(), |count| format!("{count} uploads at a time, "));
            format!("{slots}{:.1} s waited", waited.as_secs_f64())
        }
        Figure::Time(time) => format!("{:.1} s of it", time.as_secs_f64()),
        Figure::Machine(Some(machine)) => {
            format!("{} % idle, {} % this program's", machine.idle_permille / 10, machine.own_permille / 10)
        }
        Figure::Machine(None) => "checking what comes".to_owned(),
        Figure::Path(path) => {
            let mut text = format!("round trip {}", millis(path.rtt));
            if path.sent_packets > 0 {
                let lost = path.lost_packets as f64 * 100.0 / path.sent_packets as f64;
                text += &format!(", {lost:.2} % of the packets lost, window {}", bytes(path.window_bytes));
            }
            if path.datagram_bytes > 0 {
                text += &format!(", datagrams of {} bytes", path.datagram_bytes);
            }
            text
        }
        Figure::Requests { count, rtt } => {
            let rtt = rtt.map_or(String::new(), |rtt| format!(", round trip {}", millis(rtt)));
            format!("{count} requests{rtt}")
        }
        Figure::Drops { count, clamped_buffer } => {
            let clamped = clamped_buffer.map_or(String::new(), |size| format!(", it is clamped to {}", bytes(size)));
            format!("{count} packets dropped for want of it{clamped}")
        }
    }
}
