//! Splitting of a command line into words, with the quoting rules of a shell.

use super::params::MAX_COMMAND_LINE_BYTES;
use shared::error::{Failure, FailureCode};

/// Splits a line at blanks. Between single quotes every character is literal. Between double quotes a backslash escapes
/// `"`, `\`, `$` and `` ` ``; outside of quotes it escapes any character.
///
/// # Errors
/// `usage` for an open quote or a backslash at the end, `limit_reached` for a line over [`MAX_COMMAND_LINE_BYTES`].
pub(crate) fn split(line: &str) -> Result<Vec<String>, Failure> {
    let invalid = |why: &str, hint: &str| Failure::new(FailureCode::Usage, "cannot parse the line", why, hint);
    if line.len() > MAX_COMMAND_LINE_BYTES {
        return Err(line_too_long());
    }
    let scan = Scan::new(line);
    match scan.open {
        Some('\\') => Err(invalid("it ends with a backslash", "write \\\\ for a backslash")),
        Some(quote) => Err(invalid(&format!("a quote {quote} is open"), "close it, or put a backslash before it")),
        None => Ok(scan.words.into_iter().map(|word| word.text).collect()),
    }
}

/// Creates the failure of a line over [`MAX_COMMAND_LINE_BYTES`].
pub(crate) fn line_too_long() -> Failure {
    Failure::new(
        FailureCode::LimitReached,
        "cannot parse the line",
        format!("it is longer than {MAX_COMMAND_LINE_BYTES} bytes"),
        "write several lines",
    )
}

/// A line up to the cursor.
pub(crate) struct PartialLine {
    /// Complete words before the current one.
    pub(crate) before: Vec<String>,
    /// Current word without its quotes; empty after a blank.
    pub(crate) current: String,
    /// Byte position of the current word, quotes included.
    pub(crate) start: usize,
}

/// Parses a line up to the cursor.
pub(crate) fn parse_partial(line: &str) -> PartialLine {
    let mut scan = Scan::new(line);
    let current = if scan.in_word { scan.words.pop() } else { None };
    let current = current.unwrap_or(Word { start: line.len(), text: String::new() });
    let before = scan.words.into_iter().map(|word| word.text).collect();
    PartialLine { before, current: current.text, start: current.start }
}

/// Escapes a word so that [`split`] returns it unchanged.
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
    /// True if the line ends within or directly after a word.
    in_word: bool,
    /// Quote or backslash that is open at the end of the line.
    open: Option<char>,
}

impl Scan {
    fn new(line: &str) -> Self {
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
            let text = &mut words.last_mut().expect("the current word was pushed above").text;
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
    fn lines_are_split_as_by_a_shell() {
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
    fn incomplete_and_too_long_lines_are_rejected() {
        for bad in ["'a", "\"a", "a\\", &"x".repeat(MAX_COMMAND_LINE_BYTES + 1)] {
            assert_eq!(split(bad).unwrap_err().to_string().lines().count(), 1);
        }
    }

    #[test]
    fn partial_line_has_the_current_word_and_its_position() {
        let at = |line| {
            let PartialLine { before, current, start } = parse_partial(line);
            (before.len(), current, start)
        };
        assert_eq!(at("add fo"), (1, "fo".to_owned(), 4));
        assert_eq!(at("add "), (1, String::new(), 4));
        assert_eq!(at("add 'a b"), (1, "a b".to_owned(), 4));
        assert_eq!(at("add x a\\ b"), (2, "a b".to_owned(), 6));
    }

    proptest! {
        #[test]
        fn escaped_words_survive_splitting(words in prop::collection::vec("\\PC{1,12}", 0..6)) {
            let line = words.iter().map(|word| escape(word)).collect::<Vec<_>>().join(" ");
            prop_assert_eq!(split(&line).unwrap(), words);
        }

        #[test]
        fn arbitrary_lines_do_not_panic(line in any::<String>()) {
            let _ = split(&line);
            let partial = parse_partial(&line);
            prop_assert!(line.is_char_boundary(partial.start));
        }
    }
}
