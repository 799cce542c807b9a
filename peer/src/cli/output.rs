//! What a command shows: to people, and as JSON.
//!
//! The JSON is a contract (`docs/cli.md`): fields may be added, nothing else. File names and peer ids cannot harm
//! a terminal by their types; all other text that may come from afar goes through [`harmless`].

mod explain;
mod human;
mod json;

use shared::{content::FileMeta, epoch::Epoch, error::Failure, id::PeerId, rpc::nameserver::Seat};

pub(in crate::cli) use explain::whole_time;
pub use human::{bytes, harmless, unfinished_line};

use super::Outcome;
use crate::api::{Discarded, Downloaded, Explained, GlobalListing, Status};
pub use crate::cli::commands::exit::Ending;

/// What a command did or found.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// This peer's files.
    List {
        /// This peer.
        peer: PeerId,
        /// Its files.
        files: Vec<FileMeta>,
    },
    /// The network's files.
    ListAll(GlobalListing),
    /// Files that are shared now.
    Added(FileChange),
    /// Files that are shared no more.
    Removed(FileChange),
    /// Files that were fetched.
    Downloaded {
        /// The files.
        files: Vec<Downloaded>,
        /// What limited them, one a name that was given, if that was asked for.
        explained: Vec<Explained>,
    },
    /// Unfinished downloads that were given up.
    Discarded(Vec<Discarded>),
    /// Who is tracker.
    Tracker(Seat),
    /// Who is there.
    Peers(Vec<(PeerId, shared::name::Endpoint)>),
    /// Who won an election.
    Elected {
        /// The winner's epoch.
        epoch: Epoch,
        /// The winner.
        peer: PeerId,
    },
    /// How this peer is.
    Status(Box<Status>),
    /// The commands.
    Help(Vec<CommandHelp>),
    /// A peer ends.
    Ended {
        /// Who.
        peer: PeerId,
        /// How.
        how: Ending,
    },
}

/// A change of what a peer shares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileChange {
    /// The files.
    pub files: Vec<FileMeta>,
    /// What the user should know besides.
    pub notes: Vec<String>,
}

/// What `help` says of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandHelp {
    /// Its verb.
    pub name: &'static str,
    /// Other words for it.
    pub aliases: &'static [&'static str],
    /// How it is written.
    pub usage: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// What else there is to say; may be empty.
    pub details: &'static str,
}

/// For whom output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For people: results on standard output, errors on standard error.
    Human,
    /// A JSON document on standard output; an error is one on standard error.
    Json,
    /// A JSON document a line on standard output, errors included, so that who writes a line reads a line.
    JsonLines,
}

impl Style {
    /// The same with JSON.
    pub(crate) fn json_if(self, json: bool) -> Self {
        match self {
            Self::Human if json => Self::Json,
            style => style,
        }
    }
}

/// What goes where; each is empty or ends with a line break.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
}

/// Renders what came of a command.
pub fn render(outcome: &Outcome, style: Style) -> Rendered {
    let Outcome { report, failure, next: _ } = outcome;
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

/// `error: WHAT (WHY; WHAT TO DO)`, one line, ended.
pub fn error_line(failure: &Failure) -> String {
    format!("error: {}\n", harmless(&failure.to_string()))
}

/// A failure for standard error, when there is no outcome to render.
pub fn render_failure(failure: &Failure, json: bool) -> String {
    if json { json::failure(failure, None) + "\n" } else { error_line(failure) }
}

#[cfg(test)]
mod tests;
