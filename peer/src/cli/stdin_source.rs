//! Command lines from standard input that is not a terminal.

use std::io::{self, BufRead};

use super::{
    params::MAX_COMMAND_LINE_BYTES,
    report::Report,
    shell_words,
    source::{CommandSource, Input},
};
use shared::error::{Failure, FailureCode};
use tokio::sync::mpsc;

/// Lines of a reader. A thread of its own reads them, because a blocking read cannot be cancelled.
pub(crate) struct StdinSource(mpsc::Receiver<Input>);

impl StdinSource {
    /// Starts the reading thread.
    ///
    /// # Errors
    /// The error of starting the thread.
    pub(crate) fn open(mut reader: impl BufRead + Send + 'static) -> io::Result<Self> {
        // One line ahead is enough to keep reader and session busy.
        let (sender, lines) = mpsc::channel(1);
        std::thread::Builder::new().name("standard input".to_owned()).spawn(move || {
            loop {
                let input = read_input(&mut reader);
                let ended = matches!(input, Input::End);
                if sender.blocking_send(input).is_err() || ended {
                    return;
                }
            }
        })?;
        Ok(Self(lines))
    }
}

impl CommandSource for StdinSource {
    async fn next(&mut self) -> Input {
        self.0.recv().await.unwrap_or(Input::End)
    }

    /// Never completes: a signal ends the whole script, not one command.
    async fn interrupted(&mut self) {
        std::future::pending::<()>().await;
    }

    fn on_report(&mut self, _report: &Report) {}
}

fn read_input(reader: &mut impl BufRead) -> Input {
    let mut line = Vec::new();
    match read_line(reader, &mut line) {
        Ok(LineLength::End) => Input::End,
        Ok(LineLength::TooLong) => Input::Invalid(shell_words::line_too_long()),
        Ok(LineLength::Fits) => match String::from_utf8(line) {
            Ok(line) => Input::Line(line),
            Err(_) => Input::Invalid(Failure::new(
                FailureCode::Usage,
                "cannot parse the line",
                "it is not UTF-8",
                "write it in UTF-8",
            )),
        },
        Err(error) => {
            tracing::warn!(%error, "cannot read standard input");
            Input::End
        }
    }
}

enum LineLength {
    Fits,
    TooLong,
    End,
}

/// Reads a line without its line break. A line over [`MAX_COMMAND_LINE_BYTES`] is skipped up to its end, so that the
/// next call starts at the next line.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<LineLength> {
    let mut length = LineLength::End;
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok(length);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        if matches!(length, LineLength::End) {
            length = LineLength::Fits;
        }
        if line.len() + part.len() > MAX_COMMAND_LINE_BYTES {
            length = LineLength::TooLong;
            line.clear();
        }
        if matches!(length, LineLength::Fits) {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(text: Vec<u8>) -> Vec<String> {
        let mut source = StdinSource::open(io::Cursor::new(text)).unwrap();
        let mut seen = Vec::new();
        loop {
            let next = tokio::time::timeout(std::time::Duration::from_secs(20), source.next()).await;
            seen.push(match next.expect("the reader yields the next input") {
                Input::Line(line) => line,
                Input::Invalid(failure) => failure.code.as_str().to_owned(),
                Input::Cancelled => unreachable!("there is no prompt"),
                Input::End => return seen,
            });
        }
    }

    #[tokio::test]
    async fn every_line_is_read_even_a_last_one_without_a_line_break() {
        assert_eq!(read_all(b"list\n\nadd x\r\nexit".to_vec()).await, ["list", "", "add x\r", "exit"]);
        assert!(read_all(Vec::new()).await.is_empty());
    }

    #[tokio::test]
    async fn invalid_line_does_not_affect_the_next_lines() {
        let mut text = vec![b'x'; 3 * MAX_COMMAND_LINE_BYTES];
        text.extend_from_slice(b"\nlist\n\xff\xfe\nexit\n");
        assert_eq!(read_all(text).await, ["limit_reached", "list", "usage", "exit"]);
    }
}
