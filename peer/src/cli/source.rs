//! Interface of a source of command lines.

use shared::error::Failure;

use super::report::Report;

/// One input of a session.
pub(crate) enum Input {
    /// A line.
    Line(String),
    /// An unusable line, for example one that is too long.
    Invalid(Failure),
    /// A line that the user discarded with Ctrl-C.
    Cancelled,
    /// End of the input.
    End,
}

/// Source of command lines.
pub(crate) trait CommandSource {
    /// Waits for the next line. When the future is dropped, no line is lost that the session still needs.
    async fn next(&mut self) -> Input;
    /// Waits until the user interrupts the running command.
    async fn interrupted(&mut self);
    /// Receives each report after it was printed, for example to update the completions.
    fn on_report(&mut self, report: &Report);
}
