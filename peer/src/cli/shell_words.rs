//! A line of commands as words, the way a shell reads it.

use shared::{
    error::{Failure, FailureCode},
    limits::MAX_COMMAND_LINE_BYTES,
};

/// Splits a line at blanks. Single quotes take everything literally, double quotes take everything but
/// `\"` and `\\`, elsewhere a backslash takes the next character literally.
///
/// # Errors
/// `usage` for an open quote, a backslash at the end, or a line over [`MAX_COMMAND_LINE_BYTES`].
pub(crate) fn split(line: &str) -> Result<Vec<String>, Failure> {
    let wrong = |why: &str, hint: &str| Failure::new(FailureCode::Usage, "the line is not understood", why, hint);
    if line.len() > MAX_COMMAND_LINE_BYTES {
        return Err(line_too_long());
    }
    let scan = Scan::of(line);
    match scan.open {
        Some('\\') => Err(wrong("it ends with a backslash", "write \\\\ for a backslash")),
        Some(quote) => Err(wrong(&format!("a quote {quote} is open"), "close it, or put a backslash before it")),
        None => Ok(scan.words.into_iter().map(|word| word.text).collect()),
    }
}

/// The failure of a line over [`MAX_COMMAND_LINE_BYTES`].
pub(crate) fn line_too_long() -> Failure {
    Failure::new(
        FailureCode::LimitReached,
        "the line is not understood",
        format!("it is longer than {MAX_COMMAND_LINE_BYTES} bytes"),
        "write several lines",
    )
}

/// What stands before a cursor: whole words, and the one that is being written.
pub(crate) struct Unfinished {
    /// The words before.
    pub(crate) before: Vec<String>,
    /// The begun word, without its quotes; empty after a blank.
    pub(crate) begun: String,
    /// Where the begun word, quotes included, starts: byte position.
    pub(crate) start: usize,
}

/// Reads a line up to its cursor.
pub(crate) fn unfinished(line: &str) -> Unfinished {
    let mut scan = Scan::of(line);
    let begun = if scan.in_word { scan.words.pop() } else { None };
    let begun = begun.unwrap_or(Word { start: line.len(), text: String::new() });
    Unfinished { before: scan.words.into_iter().map(|word| word.text).collect(), begun: begun.text, start: begun.start }
}

/// Writes a word so that [`split`] reads it back as one.
pub(crate) fn escape(word: &str) -> String {
    let mut escaped = String::with_capacity(word.len());
    for c in word.chars() {
        if c.is_whitespace() || matches!(c, '\\' | '\'' | '"') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

struct Word {
    start: usize,
    text: String,
}

struct Scan {
    words: Vec<Word>,
    /// Whether the line ends within or right after a word, not after a blank.
    in_word: bool,
    /// The quote or backslash that waits for its end.
    open: Option<char>,
}

impl Scan {
    fn of(line: &str) -> Self {
        let mut words: Vec<Word> = Vec::new();
        let mut in_word = false;
        let mut quote: Option<char> = None;
        let mut escaped = false;
        for (at, c) in line.char_indices() {
            if quote.is_none() && !escaped && c.is_whitespace() {
                in_word = false;
                continue;
            }
            if !in_word {
                words.push(Word { start: at, text: String::new() });
                in_word = true;
            }
            let text = &mut words.last_mut().expect("a word was begun above").text;
            match quote {
                _ if escaped => {
                    if quote.is_some() && !matches!(c, '"' | '\\' | '$' | '`') {
                        text.push('\\');
                    }
                    text.push(c);
                    escaped = false;
                }
                None | Some('"') if c == '\\' => escaped = true,
                None if matches!(c, '\'' | '"') => quote = Some(c),
                Some(open) if c == open => quote = None,
                _ => text.push(c),
            }
        }
        let open = if escaped { Some('\\') } else { quote };
        Self { words, in_word, open }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_read_as_a_shell_reads_them() {
        let cases: [(&str, &[&str]); 8] = [
            ("", &[]),
            ("  list \t", &["list"]),
            ("add 'a b' \"c d\" e\\ f", &["add", "a b", "c d", "e f"]),
            ("add '' x", &["add", "", "x"]),
            ("a'b'\"c\"d", &["abcd"]),
            (r#""a\"b\\c\d" 'x\y'"#, &["a\"b\\c\\d", "x\\y"]),
            ("download 'é\u{20ac}.txt'", &["download", "é\u{20ac}.txt"]),
            ("a\\\\b", &["a\\b"]),
        ];
        for (line, expected) in cases {
            assert_eq!(split(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn lines_that_are_not_finished_or_too_long_are_refused() {
        for bad in ["'a", "\"a", "a\\", &"x".repeat(MAX_COMMAND_LINE_BYTES + 1)] {
            assert_eq!(split(bad).unwrap_err().to_string().lines().count(), 1);
        }
    }

    #[test]
    fn the_begun_word_is_known_with_its_place() {
        let at = |line| {
            let Unfinished { before, begun, start } = unfinished(line);
            (before.len(), begun, start)
        };
        assert_eq!(at("add fo"), (1, "fo".to_owned(), 4));
        assert_eq!(at("add "), (1, String::new(), 4));
        assert_eq!(at("add 'a b"), (1, "a b".to_owned(), 4));
        assert_eq!(at("add x a\\ b"), (2, "a b".to_owned(), 6));
    }

    proptest! {
        #[test]
        fn escaped_words_are_read_back(words in prop::collection::vec("\\PC{1,12}", 0..6)) {
            let line = words.iter().map(|word| escape(word)).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(split(&line).unwrap(), words);
        }

        #[test]
        fn no_line_breaks_the_reader(line in any::<String>()) {
            let _ = split(&line);
            let begun = unfinished(&line);
            prop_assert!(line.is_char_boundary(begun.start));
        }
    }
}
