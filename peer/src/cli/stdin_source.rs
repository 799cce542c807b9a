//! Commands from standard input that is no terminal: a line each.

use std::io::{self, BufRead};

use shared::{
    error::{Failure, FailureCode},
    limits::MAX_COMMAND_LINE_BYTES,
};
use tokio::sync::mpsc;

use super::{
    output::Report,
    session::{Input, Source},
    shell_words,
};

/// Lines read from standard input, or another reader, by a thread of their own: reading cannot be cancelled.
pub(crate) struct Lines(mpsc::Receiver<Input>);

impl Lines {
    pub(crate) fn of(mut reader: impl BufRead + Send + 'static) -> io::Result<Self> {
        // One line ahead is enough to keep both sides busy.
        let (sender, lines) = mpsc::channel(1);
        std::thread::Builder::new().name("standard input".to_owned()).spawn(move || {
            loop {
                let input = read(&mut reader);
                let ended = matches!(input, Input::End);
                if sender.blocking_send(input).is_err() || ended {
                    return;
                }
            }
        })?;
        Ok(Self(lines))
    }
}

impl Source for Lines {
    async fn next(&mut self) -> Input {
        self.0.recv().await.unwrap_or(Input::End)
    }

    /// A script is ended by a signal, its commands are not cancelled one by one.
    async fn interrupted(&mut self) {
        std::future::pending::<()>().await;
    }

    fn shown(&mut self, _report: &Report) {}
}

fn read(reader: &mut impl BufRead) -> Input {
    let mut line = Vec::new();
    match take_line(reader, &mut line) {
        Ok(Length::End) => Input::End,
        Ok(Length::TooLong) => Input::Wrong(shell_words::line_too_long()),
        Ok(Length::Fits) => match String::from_utf8(line) {
            Ok(line) => Input::Line(line),
            Err(_) => Input::Wrong(Failure::new(
                FailureCode::Usage,
                "the line is not understood",
                "it is not UTF-8",
                "write it in UTF-8",
            )),
        },
        Err(error) => {
            tracing::warn!(%error, "standard input cannot be read any more");
            Input::End
        }
    }
}

enum Length {
    Fits,
    TooLong,
    End,
}

/// Reads a line without its end. Of a line over the limit the rest is read and forgotten, so that the next one
/// starts where it should.
fn take_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Length> {
    let mut length = Length::End;
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
        if matches!(length, Length::End) {
            length = Length::Fits;
        }
        if line.len() + part.len() > MAX_COMMAND_LINE_BYTES {
            length = Length::TooLong;
            line.clear();
        }
        if matches!(length, Length::Fits) {
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

    async fn all(text: Vec<u8>) -> Vec<String> {
        let mut lines = Lines::of(io::Cursor::new(text)).unwrap();
        let mut seen = Vec::new();
        loop {
            let next = tokio::time::timeout(std::time::Duration::from_secs(20), lines.next()).await;
            seen.push(match next.expect("reading goes on") {
                Input::Line(line) => line,
                Input::Wrong(failure) => failure.code.as_str().to_owned(),
                Input::Cancelled => unreachable!("there is no prompt"),
                Input::End => return seen,
            });
        }
    }

    #[tokio::test]
    async fn every_line_is_read_the_last_one_without_an_end_too() {
        assert_eq!(all(b"list\n\nadd x\r\nexit".to_vec()).await, ["list", "", "add x\r", "exit"]);
        assert!(all(Vec::new()).await.is_empty());
    }

    #[tokio::test]
    async fn a_line_that_cannot_be_one_spoils_only_itself() {
        let mut text = vec![b'x'; 3 * MAX_COMMAND_LINE_BYTES];
        text.extend_from_slice(b"\nlist\n\xff\xfe\nexit\n");
        assert_eq!(all(text).await, ["limit_reached", "list", "usage", "exit"]);
    }
}
