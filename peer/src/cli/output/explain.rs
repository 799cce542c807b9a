//! Text for the explanation of a transfer's rate.

use shared::id::PeerId;

use super::text::{bytes, duration, sanitize};
use crate::{
    api::{Explained, RunningDownload},
    diagnostics::bottleneck::{Cause, Figure, Finding},
};

/// Verdict when no finding has a large enough share of the time.
const NOTHING: &str = "nothing stands out";

/// Text of a finding.
pub(crate) struct Description {
    /// Resource that limits the transfer.
    pub(crate) what: String,
    /// Measurement that shows it.
    pub(crate) figure: String,
    /// Possible remedy.
    pub(crate) advice: &'static str,
}

/// Formats `limited by: WHAT (SHARE; FIGURE); WHAT …`, or that nothing stands out.
pub(crate) fn verdict(findings: &[Finding]) -> String {
    let limits: Vec<String> = findings.iter().filter(|finding| finding.stands_out()).map(brief).collect();
    if limits.is_empty() { NOTHING.to_owned() } else { format!("limited by: {}", limits.join("; ")) }
}

fn brief(finding: &Finding) -> String {
    let Description { what, figure, .. } = describe(finding);
    format!("{what} ({:.0} % of the time; {figure})", finding.share * 100.0)
}

/// Formats an explanation as lines, the verdict first.
pub(crate) fn lines(explained: &Explained) -> String {
    let Explained { name, bytes: count, seconds, sources, findings } = explained;
    let mut text = format!("{}: {}\n", sanitize(name), verdict(findings));
    for finding in findings {
        text += &if finding.stands_out() {
            format!("  advice: {}\n", describe(finding).advice)
        } else {
            format!("  also: {}\n", brief(finding))
        };
    }
    let rate = if *seconds > 0.0 { (*count as f64 / seconds) as u64 } else { 0 };
    text += &format!("  total: {} in {seconds:.2} s, {}/s\n", bytes(*count), bytes(rate));
    for source in sources {
        let rtt = source.rtt.map_or(String::new(), |rtt| format!(", round trip {}", millis(rtt)));
        let rate = bytes(source.bytes_per_second);
        text += &format!("  from {}: {} at {rate}/s{rtt}\n", source.peer, bytes(source.bytes));
    }
    text
}

/// Formats a running download as one line without its end.
pub(crate) fn running(download: &RunningDownload) -> String {
    let RunningDownload { name, bytes_done, bytes_total, bytes_per_second, sources, findings } = download;
    let peers = if *sources == 1 { "peer" } else { "peers" };
    let left = match seconds_left(download) {
        Some(seconds) => format!(", {} left", duration(seconds)),
        None => String::new(),
    };
    format!(
        "{}: {} of {}, {}/s{left}, from {sources} {peers}; {}",
        sanitize(name),
        bytes(*bytes_done),
        bytes(*bytes_total),
        bytes(*bytes_per_second),
        verdict(findings)
    )
}

/// Estimates the remaining time of a download at its present rate, seconds; `None` at a rate of zero.
pub(crate) fn seconds_left(download: &RunningDownload) -> Option<f64> {
    let left = download.bytes_total.saturating_sub(download.bytes_done);
    (download.bytes_per_second > 0).then(|| left as f64 / download.bytes_per_second as f64)
}

/// Describes a finding.
pub(crate) fn describe(finding: &Finding) -> Description {
    let Finding { cause, peers, figure, .. } = finding;
    let owner = owners(peers);
    let (what, advice) = match cause {
        Cause::OwnerLimit => {
            (format!("the upload limit of {owner}"), "a higher --limit-up there, or more owners of the file")
        }
        Cause::OwnerSlots => (
            format!("the queue at {owner}"),
            "wait until its other receivers are served, add owners, or set a higher --max-uploads there",
        ),
        Cause::OwnerDisk => (format!("the disk of {owner}"), "a faster disk there, or more owners of the file"),
        Cause::OwnerCpu => {
            (format!("the processors of {owner}"), "end other programs there, or add owners of the file")
        }
        Cause::Path => (
            format!("the path from {owner}"),
            "check for other traffic and packet loss on it, or fetch from a nearer owner",
        ),
        Cause::RoundTrips => (
            format!("round trips to {owner}"),
            "fetch fewer and larger files, for example as one archive, or fetch from a nearer owner",
        ),
        Cause::ReceiveBuffer => {
            ("this machine's UDP receive buffer".to_owned(), "allow a larger one; `status` explains how")
        }
        Cause::OwnLimit => ("this peer's own download limit".to_owned(), "a higher --limit-down"),
        Cause::OwnDisk => ("this machine's disk".to_owned(), "a faster disk; --to can name one"),
        Cause::OwnCpu => {
            ("this machine's processors".to_owned(), "end other programs, or run fewer downloads at a time")
        }
        Cause::Unsaid => {
            (format!("{owner} or the path from it"), "the owner did not report its waiting times; check `status` there")
        }
    };
    Description { what, figure: figure_text(figure), advice }
}

fn owners(peers: &[PeerId]) -> String {
    match peers {
        [] => "an owner".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

fn figure_text(figure: &Figure) -> String {
    match *figure {
        Figure::Rate(Some(rate)) => format!("{}/s", bytes(rate)),
        Figure::Rate(None) => "unknown rate".to_owned(),
        Figure::Slots { at_a_time, waited } => {
            let slots = at_a_time.map_or(String::new(), |count| format!("{count} uploads at a time, "));
            format!("{slots}{:.1} s waited", waited.as_secs_f64())
        }
        Figure::Time(time) => format!("{:.1} s of it", time.as_secs_f64()),
        Figure::Machine(Some(machine)) => {
            let (idle, own) = (machine.idle_permille / 10, machine.own_permille / 10);
            format!("{idle} % idle, {own} % used by this program")
        }
        Figure::Machine(None) => "verification of received data".to_owned(),
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
            let clamped =
                clamped_buffer.map_or(String::new(), |size| format!(", the system limits it to {}", bytes(size)));
            format!("{count} packets dropped because it was full{clamped}")
        }
    }
}

fn millis(time: std::time::Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
