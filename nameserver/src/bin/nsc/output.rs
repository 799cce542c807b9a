//! Standard output and confirmation.

use std::{
    fmt,
    io::{self, BufRead, ErrorKind, Write},
};

use shared::error::{Failure, FailureCode};

/// Asks the user to confirm a removal, with the question of Pyro5's `nsc`.
///
/// # Errors
/// `interrupted` when standard input ends without an answer, `io` when the question cannot be written.
pub(crate) async fn confirm() -> Result<bool, Failure> {
    let question = "Potentially removing lots of items from the Name server. Are you sure (y/n)?";
    // Unlike in `print`, a closed pipe is an error: without a reader there is no confirmation.
    write_out(question).map_err(unwritable)?;
    // Reads on a blocking thread, so that the runtime keeps the connection alive.
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|bytes| (bytes > 0).then_some(line))
    });
    let unanswered = |why: &dyn fmt::Display| {
        Failure::new(FailureCode::Io, "nothing was removed", why, "answer y or n on standard input")
    };
    let answer = answer.await.map_err(|error| unanswered(&error))?.map_err(|error| unanswered(&error))?;
    let answer = answer.ok_or_else(|| unanswered(&"standard input ended"))?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Writes an answer to standard output. Ends the process with status 0 when the pipe is closed, as in
/// `nsc list | head -1`.
///
/// # Errors
/// `io` when standard output cannot be written for another reason.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match write_out(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(unwritable),
    }
}

fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn unwritable(error: io::Error) -> Failure {
    Failure::new(FailureCode::Io, "the answer cannot be written", error, "check standard output")
}
