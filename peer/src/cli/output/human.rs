//! Output for people.

use shared::{content::FileMeta, file_name::is_unprintable, rpc::tracker::IndexedFile};
use std::fmt::Write as _;

use super::{CommandHelp, Ending, FileChange, Report, explain};
use crate::api::{Discarded, Downloaded, GlobalListing, Status, Unfinished};

/// Names are aligned up to this many columns; one longer name does not push all others' sizes out of sight.
const WIDEST_ALIGNED: usize = 60;

/// A text that cannot steer a terminal or begin a new line: control characters and those that reorder text
/// become U+FFFD, line breaks and tabs blanks.
pub fn harmless(text: &str) -> String {
    let clean = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        _ if is_unprintable(c) => char::REPLACEMENT_CHARACTER,
        _ => c,
    };
    text.chars().map(clean).collect()
}

/// A number of bytes for people: `3 B`, `1.2 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be rounded to 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A report as lines, ended.
pub(crate) fn report(report: &Report) -> String {
    match report {
        Report::List { peer, files } if files.is_empty() => {
            format!("{peer} shares no files yet; `add PATH` shares one\n")
        }
        Report::List { files, .. } => {
            let mut files: Vec<&FileMeta> = files.iter().collect();
            files.sort_by(|a, b| a.name.cmp(&b.name));
            table(files.into_iter().map(|file| vec![shown(file), bytes(file.size)]).collect(), Some(1))
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
        Report::Peers(peers) => {
            let mut peers: Vec<_> = peers.iter().collect();
            peers.sort();
            table(peers.into_iter().map(|(id, address)| vec![id.to_string(), address.to_string()]).collect(), None)
        }
        Report::Elected { epoch, peer } => format!("{peer} is tracker, epoch {epoch}\n"),
        Report::Status(status) => self::status(status),
        Report::Help(commands) => help(commands),
        Report::Ended { peer, how: Ending::NotRunning } => format!("{peer} is not running here\n"),
        Report::Ended { peer, how: Ending::Exit } => format!("{peer} leaves\n"),
        Report::Ended { peer, how: Ending::Kill } => format!("{peer} is killed\n"),
    }
}

/// A file's name; a directory's with a `/` behind it.
fn shown(file: &FileMeta) -> String {
    if file.is_directory() { format!("{}/", file.name) } else { file.name.to_string() }
}

fn list_all(listing: &GlobalListing) -> String {
    let mut files: Vec<&IndexedFile> = listing.files.iter().collect();
    files.sort_by(|a, b| (&a.file.name, &a.file.hash).cmp(&(&b.file.name, &b.file.hash)));
    let same = |a: Option<&&IndexedFile>, b: &IndexedFile| a.is_some_and(|a| a.file.name == b.file.name);
    let row = |(at, entry): (usize, &&IndexedFile)| {
        let versions = same(at.checked_sub(1).and_then(|at| files.get(at)), entry) || same(files.get(at + 1), entry);
        let name = shown(&entry.file);
        let shown = if versions { format!("{name}@{}", entry.file.hash.short()) } else { name };
        let mut owners: Vec<&str> = entry.owners.iter().map(shared::id::PeerId::as_str).collect();
        owners.sort_unstable();
        vec![shown, bytes(entry.file.size), owners.join(", ")]
    };
    let mut text = table(files.iter().enumerate().map(row).collect(), Some(1));
    let directories = match files.iter().filter(|entry| entry.file.is_directory()).count() {
        0 => String::new(),
        1 => ", 1 empty directory".to_owned(),
        several => format!(", {several} empty directories"),
    };
    let count = files.iter().filter(|entry| !entry.file.is_directory()).count();
    let noun = if count == 1 { "file" } else { "files" };
    line(&mut text, format_args!("{count} {noun}{directories}; tracker {}, epoch {}", listing.tracker, listing.epoch));
    text
}

fn file_change(change: &FileChange, verb: &str) -> String {
    let mut text = String::new();
    for note in &change.notes {
        line(&mut text, format_args!("{}", harmless(note)));
    }
    let mut files: Vec<&FileMeta> = change.files.iter().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    for file in files {
        line(&mut text, format_args!("{verb} {} ({})", shown(file), bytes(file.size)));
    }
    text
}

fn downloaded(files: &[Downloaded]) -> String {
    let mut text = String::new();
    let mut files: Vec<&Downloaded> = files.iter().collect();
    files.sort_by(|a, b| a.file.name.cmp(&b.file.name));
    for Downloaded { file, path, seconds, sources } in files {
        let path = harmless(&path.to_string_lossy());
        let (name, size) = (&file.name, bytes(file.size));
        if file.is_directory() {
            line(&mut text, format_args!("{name}/ (an empty directory): {path}"));
            continue;
        }
        if sources.is_empty() {
            line(&mut text, format_args!("{name} ({size}) is there already: {path}"));
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
        // Below a millisecond a rate says more about the clock than about the network.
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
        let path = harmless(&destination.to_string_lossy());
        line(&mut text, format_args!("gave up {} ({} are free again): {path}", file.name, bytes(*freed_bytes)));
    }
    text
}

/// What part of an unfinished download is there, rounded down: only what is complete has 100%.
fn percent(unfinished: &Unfinished) -> u64 {
    let part = u128::from(unfinished.have_bytes) * 100 / u128::from(unfinished.file.size.max(1));
    u64::try_from(part).unwrap_or(100)
}

/// The unfinished downloads in one line, ended; nothing when there are none.
pub fn unfinished_line(unfinished: &[Unfinished]) -> String {
    const NAMED: usize = 3;
    if unfinished.is_empty() {
        return String::new();
    }
    let named = unfinished.iter().take(NAMED).map(|one| format!("{} ({}%)", one.file.name, percent(one)));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match unfinished.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("unfinished downloads: {named}{more}; `status` tells how to continue them\n")
}

/// A word as the command line reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./@+,:".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

fn status(status: &Status) -> String {
    let tracker = match &status.tracker {
        Some(tracker) => format!("{tracker}, epoch {}", status.epoch),
        None => format!("nobody; last epoch {}", status.epoch),
    };
    let rows = [
        ("peer", status.id.to_string()),
        ("address", status.endpoint.to_string()),
        ("nameserver", status.nameserver.to_string()),
        ("role", status.role.as_str().to_owned()),
        ("tracker", tracker),
        (
            "share",
            format!(
                "{} ({} files, {})",
                harmless(&status.share_dir.to_string_lossy()),
                status.files,
                bytes(status.bytes)
            ),
        ),
        (
            "sending",
            format!(
                "{} uploads, {} waiting, {} at a time{}; {} so far",
                status.uploads,
                status.uploads_waiting,
                status.upload_slots,
                cap(status.limit_up),
                bytes(status.bytes_up)
            ),
        ),
        (
            "fetching",
            format!("{} downloads{}; {} so far", status.downloads, cap(status.limit_down), bytes(status.bytes_down)),
        ),
    ];
    let mut text = table(rows.map(|(what, value)| vec![what.to_owned(), value]).into(), None);
    for download in &status.running {
        line(&mut text, format_args!("{}", explain::running(download)));
    }
    for one in &status.unfinished {
        let Unfinished { file, destination, .. } = one;
        let name = quoted(file.name.as_str());
        let to = if *destination == file.name.below(&status.share_dir) {
            String::new()
        } else {
            format!(" --to {}", quoted(&harmless(&destination.to_string_lossy())))
        };
        let (percent, size) = (percent(one), bytes(file.size));
        let shown = &file.name;
        line(&mut text, format_args!("unfinished: {shown}, {percent}% of {size}; `download {name}{to}` continues it"));
    }
    for warning in &status.warnings {
        line(&mut text, format_args!("warning: {}", harmless(warning)));
    }
    text
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
        // The options of a verb are in its own help.
        let short = command.usage.split(" [--").next().unwrap_or(command.usage);
        vec![format!("{short}{also}"), command.summary.to_owned()]
    });
    let mut text = table(rows.collect(), None);
    text.push_str("`help COMMAND` explains one; --json after a command gives JSON\n");
    text
}

/// Columns two blanks apart, one of them aligned at its right edge, the last not filled.
fn table(rows: Vec<Vec<String>>, right: Option<usize>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.filter(|width| *width <= WIDEST_ALIGNED).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let fill = widths[column];
            let last = column + 1 == row.len();
            // Writing to a String cannot fail.
            let _ = match (right == Some(column), last) {
                (true, _) => write!(text, "{cell:>fill$}"),
                (false, true) => write!(text, "{cell}"),
                (false, false) => write!(text, "{cell:<fill$}"),
            };
            text.push_str(if last { "\n" } else { "  " });
        }
    }
    text
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{content}");
}
