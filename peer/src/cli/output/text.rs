//! Formatting of values for people.

use std::fmt::Write as _;

use shared::file_name::is_unprintable;

/// Widest cell that sets the width of its column, characters. One longer name does not shift the columns of all rows.
const MAX_ALIGNED_WIDTH: usize = 60;

/// Replaces everything that can steer a terminal or start a new line: control characters and characters that reorder
/// text become U+FFFD, line breaks and tabs become blanks.
pub(crate) fn sanitize(text: &str) -> String {
    let clean = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        _ if is_unprintable(c) => char::REPLACEMENT_CHARACTER,
        _ => c,
    };
    text.chars().map(clean).collect()
}

/// Formats a number of bytes: `3 B`, `1.2 MiB`.
pub(crate) fn bytes(count: u64) -> String {
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

/// Formats a duration in seconds, rounded up: `9 s`, `3:05 min`, `2:30 h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.ceil() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{}:{:02} min", whole / 60, whole % 60),
        _ => format!("{}:{:02} h", whole / 3600, whole % 3600 / 60),
    }
}

/// Quotes a word for the command line if it needs quotes.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./@+,:".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Formats columns two blanks apart. The column `right` is aligned at its right edge; the last column is not padded.
pub(crate) fn table(rows: Vec<Vec<String>>, right: Option<usize>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.filter(|width| *width <= MAX_ALIGNED_WIDTH).max().unwrap_or(0)
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

/// Appends a line.
pub(crate) fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{content}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_rounded_to_one_digit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (1_288_490_189, "1.2 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn sanitized_text_has_no_control_characters() {
        for c in ('\0'..=char::MAX).filter(|c| c.is_control()) {
            assert!(!sanitize(&format!("a{c}b")).chars().any(char::is_control), "{c:?}");
        }
        assert_eq!(sanitize("ação €\u{202e}"), "ação €\u{fffd}");
    }
}
