//! Output for people.

use shared::{content::FileMeta, id::PeerId, rpc::tracker::IndexedFile};

use super::{
    explain,
    text::{bytes, line, quoted, sanitize, table},
};
use crate::{
    api::{Discarded, Downloaded, GlobalListing, Status, Unfinished},
    cli::report::{CommandHelp, EndCause, FileChange, Report},
};

/// Formats a report as lines.
pub(crate) fn report(report: &Report) -> String {
    match report {
        Report::List { peer, files } if files.is_empty() => {
            format!("{peer} shares no files yet; `add PATH` shares one\n")
        }
        Report::List { files, .. } => {
            let mut files: Vec<&FileMeta> = files.iter().collect();
            files.sort_by(|a, b| a.name.cmp(&b.name));
            table(files.into_iter().map(|file| vec![display_name(file), bytes(file.size)]).collect(), Some(1))
        }
        Report::ListAll(listing) => list_all(listing),
        Report::Added(change) => file_change(change, "shares"),
        Report::Removed(change) => file_change(change, "removed"),
        Report::Downloaded { files, explained } => {
            let explained: String = explained.iter().map(explain::lines).collect();
            downloaded(files) + &explained
        }
        Report::Discarded(files) => discarded(files),
        Report::Tracker(seat) => {
            format!("{} is tracker, epoch {}, at {}\n", seat.peer, seat.epoch, seat.endpoint)
        }
        Report::Peers(peers) if peers.is_empty() => "no peer runs in this network\n".to_owned(),
        Report::Peers(peers) => {
            let mut peers: Vec<_> = peers.iter().collect();
            peers.sort();
            table(peers.into_iter().map(|(id, address)| vec![id.to_string(), address.to_string()]).collect(), None)
        }
        Report::Elected { epoch, peer } => format!("{peer} is tracker, epoch {epoch}\n"),
        Report::Status(status) => self::status(status),
        Report::Help(commands) => help(commands),
        Report::Ended { peer, cause: EndCause::NotRunning } => format!("{peer} is not running here\n"),
        Report::Ended { peer, cause: EndCause::Exit } => format!("{peer} leaves\n"),
        Report::Ended { peer, cause: EndCause::Kill } => format!("{peer} is killed\n"),
    }
}

/// Summarises the unfinished downloads in one line; empty if there are none.
pub(crate) fn unfinished_line(unfinished: &[Unfinished]) -> String {
    const MAX_NAMED: usize = 3;
    if unfinished.is_empty() {
        return String::new();
    }
    let named = unfinished.iter().take(MAX_NAMED).map(|entry| format!("{} ({}%)", entry.file.name, percent(entry)));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match unfinished.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("unfinished downloads: {named}{more}; `status` shows how to continue them\n")
}

/// Name of a file; of a directory, with a `/` appended.
fn display_name(file: &FileMeta) -> String {
    if file.is_directory() { format!("{}/", file.name) } else { file.name.to_string() }
}

fn list_all(listing: &GlobalListing) -> String {
    let mut files: Vec<&IndexedFile> = listing.files.iter().collect();
    files.sort_by(|a, b| (&a.file.name, &a.file.hash).cmp(&(&b.file.name, &b.file.hash)));
    let row = |(at, entry): (usize, &&IndexedFile)| {
        let same_name = |other: Option<&&IndexedFile>| other.is_some_and(|other| other.file.name == entry.file.name);
        let has_versions = same_name(files.get(at + 1)) || same_name(at.checked_sub(1).and_then(|at| files.get(at)));
        let name = display_name(&entry.file);
        let name = if has_versions { format!("{name}@{}", entry.file.hash.short()) } else { name };
        let mut owners: Vec<&str> = entry.owners.iter().map(PeerId::as_str).collect();
        owners.sort_unstable();
        vec![name, bytes(entry.file.size), owners.join(", ")]
    };
    let mut text = table(files.iter().enumerate().map(row).collect(), Some(1));
    let directories = match files.iter().filter(|entry| entry.file.is_directory()).count() {
        0 => String::new(),
        1 => ", 1 empty directory".to_owned(),
        several => format!(", {several} empty directories"),
    };
    let count = files.iter().filter(|entry| !entry.file.is_directory()).count();
    let noun = if count == 1 { "file" } else { "files" };
    let source = match &listing.tracker {
        Some(tracker) => format!("tracker {tracker}, epoch {}", listing.epoch),
        None => "incomplete: there is no tracker, these are the files of the peers that answer".to_owned(),
    };
    line(&mut text, format_args!("{count} {noun}{directories}; {source}"));
    text
}

fn file_change(change: &FileChange, verb: &str) -> String {
    let mut text = String::new();
    for note in &change.notes {
        line(&mut text, format_args!("{}", sanitize(note)));
    }
    let mut files: Vec<&FileMeta> = change.files.iter().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    for file in files {
        line(&mut text, format_args!("{verb} {} ({})", display_name(file), bytes(file.size)));
    }
    text
}

fn downloaded(files: &[Downloaded]) -> String {
    let mut text = String::new();
    let mut files: Vec<&Downloaded> = files.iter().collect();
    files.sort_by(|a, b| a.file.name.cmp(&b.file.name));
    for Downloaded { file, path, seconds, sources } in files {
        let path = sanitize(&path.to_string_lossy());
        let (name, size) = (&file.name, bytes(file.size));
        if file.is_directory() {
            line(&mut text, format_args!("{name}/ (an empty directory): {path}"));
            continue;
        }
        if sources.is_empty() {
            line(&mut text, format_args!("{name} ({size}) is already present: {path}"));
            continue;
        }
        let mut sources = sources.clone();
        sources.sort();
        let from = match sources.as_slice() {
            [(only, _)] => only.to_string(),
            several => {
                let each = several.iter().map(|(peer, count)| format!("{peer} ({})", bytes(*count)));
                each.collect::<Vec<_>>().join(" and ")
            }
        };
        // Over less than a millisecond the error of the clock dominates the rate.
        let rate = if *seconds >= 0.001 {
            format!(", {}/s", bytes((file.size as f64 / seconds) as u64))
        } else {
            String::new()
        };
        line(&mut text, format_args!("{name} ({size}, {seconds:.2} s{rate}) from {from}: {path}"));
    }
    text
}

fn discarded(files: &[Discarded]) -> String {
    let mut text = String::new();
    for Discarded { file, destination, freed_bytes } in files {
        let path = sanitize(&destination.to_string_lossy());
        line(&mut text, format_args!("discarded {} ({} freed): {path}", file.name, bytes(*freed_bytes)));
    }
    text
}

/// Verified part of an unfinished download in percent, rounded down so that only a complete file has 100.
fn percent(unfinished: &Unfinished) -> u64 {
    let part = u128::from(unfinished.have_bytes) * 100 / u128::from(unfinished.file.size.max(1));
    u64::try_from(part).unwrap_or(100)
}

fn status(status: &Status) -> String {
    let mut text = table(status_rows(status).map(|(what, value)| vec![what.to_owned(), value]).into(), None);
    for download in &status.running {
        line(&mut text, format_args!("{}", explain::running(download)));
    }
    for entry in &status.unfinished {
        let Unfinished { file, destination, .. } = entry;
        let (shown, argument) = (&file.name, quoted(file.name.as_str()));
        let to = if *destination == file.name.below(&status.share_dir) {
            String::new()
        } else {
            format!(" --to {}", quoted(&sanitize(&destination.to_string_lossy())))
        };
        let (percent, size) = (percent(entry), bytes(file.size));
        let command = format_args!("`download {argument}{to}` continues it");
        line(&mut text, format_args!("unfinished: {shown}, {percent}% of {size}; {command}"));
    }
    for warning in &status.warnings {
        line(&mut text, format_args!("warning: {}", sanitize(warning)));
    }
    text
}

fn status_rows(status: &Status) -> [(&'static str, String); 8] {
    let tracker = match &status.tracker {
        Some(tracker) => format!("{tracker}, epoch {}", status.epoch),
        None => format!("none; last epoch {}", status.epoch),
    };
    let share_dir = sanitize(&status.share_dir.to_string_lossy());
    let sending = format!(
        "{} uploads, {} waiting, {} at a time{}; {} so far",
        status.uploads,
        status.uploads_waiting,
        status.upload_slots,
        cap(status.limit_up),
        bytes(status.bytes_up)
    );
    let fetching =
        format!("{} downloads{}; {} so far", status.downloads, cap(status.limit_down), bytes(status.bytes_down));
    [
        ("peer", status.id.to_string()),
        ("address", status.endpoint.to_string()),
        ("nameserver", status.nameserver.to_string()),
        ("role", status.role.as_str().to_owned()),
        ("tracker", tracker),
        ("share", format!("{share_dir} ({} files, {})", status.files, bytes(status.bytes))),
        ("sending", sending),
        ("fetching", fetching),
    ]
}

fn cap(limit: Option<u64>) -> String {
    limit.map_or(String::new(), |rate| format!(", at most {}/s", bytes(rate)))
}

fn help(commands: &[CommandHelp]) -> String {
    if let [CommandHelp { aliases, usage, summary, details, .. }] = commands {
        let mut text = format!("{usage}\n{summary}\n");
        if !aliases.is_empty() {
            line(&mut text, format_args!("also: {}", aliases.join(", ")));
        }
        if !details.is_empty() {
            line(&mut text, format_args!("{details}"));
        }
        return text;
    }
    let rows = commands.iter().map(|command| {
        let also: String = command.aliases.iter().map(|alias| format!(" ({alias})")).collect();
        // The table omits the options of a verb; its own help lists them.
        let short = command.usage.split(" [--").next().unwrap_or(command.usage);
        vec![format!("{short}{also}"), command.summary.to_owned()]
    });
    let mut text = table(rows.collect(), None);
    text.push_str("`help COMMAND` explains one command; --json after a command prints JSON\n");
    text
}
