//! Rendering of outcomes, for people and as JSON.
//!
//! The JSON is a contract (`docs/cli.md`): fields can be added, nothing else changes. The types of file names and peer
//! ids exclude characters that steer a terminal. All other text of remote origin passes through `sanitize`.

mod explain;
mod human;
mod json;
mod text;

use std::io::{self, Write as _};

use shared::error::Failure;

use super::command::Outcome;

pub(crate) use human::unfinished_line;
pub(crate) use text::{bytes, duration, sanitize};

/// Format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Text: results on standard output, errors on standard error.
    Human,
    /// One JSON document on standard output; an error is a document on standard error.
    Json,
    /// One JSON document a line on standard output, errors included: each line of input gets one line of output.
    JsonLines,
}

impl Style {
    /// Returns JSON instead of text if `json` is set.
    pub(crate) fn json_if(self, json: bool) -> Self {
        match self {
            Self::Human if json => Self::Json,
            style => style,
        }
    }
}

/// Rendered output. Each text is empty or ends with a line break.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// Text for standard output.
    pub out: String,
    /// Text for standard error.
    pub err: String,
}

/// Renders the outcome of a command.
pub(crate) fn render(outcome: &Outcome, style: Style) -> Rendered {
    let Outcome { report, failure, effect: _ } = outcome;
    let mut rendered = Rendered::default();
    match style {
        Style::Human => {
            if let Some(report) = report {
                rendered.out = human::report(report);
            }
            if let Some(failure) = failure {
                rendered.err = error_line(failure);
            }
        }
        Style::Json => {
            if let Some(report) = report {
                rendered.out = json::report(report) + "\n";
            }
            if let Some(failure) = failure {
                rendered.err = json::failure(failure, None) + "\n";
            }
        }
        Style::JsonLines => {
            let document = match (report, failure) {
                (report, Some(failure)) => json::failure(failure, report.as_ref()),
                (Some(report), None) => json::report(report),
                (None, None) => "{}".to_owned(),
            };
            rendered.out = document + "\n";
        }
    }
    rendered
}

/// Renders a failure for standard error.
pub(crate) fn render_failure(failure: &Failure, json: bool) -> String {
    if json { json::failure(failure, None) + "\n" } else { error_line(failure) }
}

/// Writes to standard error, then to standard output, and flushes. Errors of standard error are ignored because
/// nothing is left to report them on.
///
/// # Errors
/// Errors of standard output; `BrokenPipe` when its reader has closed it.
pub fn print(rendered: &Rendered) -> io::Result<()> {
    if !rendered.err.is_empty() {
        let _ = io::stderr().write_all(rendered.err.as_bytes());
    }
    let mut out = io::stdout().lock();
    out.write_all(rendered.out.as_bytes())?;
    out.flush()
}

/// Renders `error: WHAT (WHY; WHAT TO DO)` as one line.
fn error_line(failure: &Failure) -> String {
    format!("error: {}\n", sanitize(&failure.to_string()))
}

#[cfg(test)]
mod tests;
