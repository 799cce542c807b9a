//! Parsed commands, their verbs, and their outcomes.

use std::{fmt, path::Path};

use shared::{
    content::HashPrefix,
    error::{Failure, FailureCode},
    id::PeerId,
};

use super::report::Report;
use crate::api::{PeerApi, ProgressSink};

/// A command with its parsed arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// `list`
    List,
    /// `listAll`
    ListAll,
    /// `add PATH…`
    Add {
        /// Paths as typed.
        paths: Vec<String>,
    },
    /// `remove NAME…`
    Remove {
        /// Names in the share.
        names: Vec<String>,
    },
    /// `download NAME[@HASH]…`
    Download(Download),
    /// `tracker`
    Tracker,
    /// `peers`
    Peers,
    /// `eleger`
    Elect,
    /// `status`
    Status,
    /// `help [COMMAND]`
    Help {
        /// Verb to explain; `None` lists all verbs.
        verb: Option<&'static str>,
    },
    /// `kill`
    Kill,
    /// `exit`
    Exit,
}

impl Command {
    /// Returns true if the command ends a peer. No peer is started for such a command.
    pub(crate) fn ends_peer(&self) -> bool {
        matches!(self, Self::Exit | Self::Kill)
    }

    /// Returns true if the command changes nothing, or needs a peer that runs already. No peer is started for such a
    /// command.
    pub(crate) fn is_query(&self) -> bool {
        match self {
            Self::List | Self::ListAll | Self::Tracker | Self::Peers | Self::Status | Self::Elect => true,
            Self::Add { .. } | Self::Remove { .. } | Self::Download(_) | Self::Help { .. } => false,
            Self::Kill | Self::Exit => false,
        }
    }
}

/// Arguments of `download`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Download {
    /// Names, directories or globs, each with the requested version.
    pub(crate) files: Vec<(String, Option<HashPrefix>)>,
    /// Only source to fetch from; `None` allows all owners.
    pub(crate) from: Option<PeerId>,
    /// Destination as typed; `None` is the share.
    pub(crate) to: Option<String>,
    /// Overwrites files that have other content.
    pub(crate) force: bool,
    /// Adds an explanation of the rate to the report.
    pub(crate) explain: bool,
    /// Discards unfinished downloads and fetches nothing.
    pub(crate) discard: bool,
}

/// Name, description and parser of a command.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    /// Synopsis; starts with the name.
    pub(crate) usage: &'static str,
    /// One-line description.
    pub(crate) summary: &'static str,
    /// Further explanation, which only `help VERB` shows; may be empty.
    pub(crate) details: &'static str,
    /// Parser of the words after the verb.
    pub(crate) parse: fn(Vec<String>) -> Result<Command, Failure>,
}

impl Verb {
    /// Returns the name and the aliases.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    /// Creates the failure for arguments that the verb does not accept.
    pub(crate) fn usage_error(&self, why: impl fmt::Display) -> Failure {
        let what = format!("wrong arguments for {}", self.name);
        Failure::new(FailureCode::Usage, what, why, format!("usage: {}", self.usage))
    }
}

/// Environment in which a command is executed.
pub(crate) struct CommandContext<'a> {
    /// Peer that executes the command.
    pub(crate) peer: &'a dyn PeerApi,
    /// Base of relative paths; absolute.
    pub(crate) working_dir: &'a Path,
    /// Receiver of the progress of downloads.
    pub(crate) progress: ProgressSink,
}

/// Outcome of a command. A command on several files can succeed for some and fail for others.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    /// Part that succeeded.
    pub(crate) report: Option<Report>,
    /// Part that failed.
    pub(crate) failure: Option<Failure>,
    /// Effect on the peer.
    pub(crate) effect: PeerEffect,
}

/// Effect of a command on the peer that executes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerEffect {
    /// The peer keeps running.
    KeepRunning,
    /// The peer leaves the network and ends.
    Exit,
    /// The process ends at once, without leaving the network.
    Kill,
}

impl From<Result<Report, Failure>> for Outcome {
    fn from(result: Result<Report, Failure>) -> Self {
        match result {
            Ok(report) => Self { report: Some(report), failure: None, effect: PeerEffect::KeepRunning },
            Err(failure) => failure.into(),
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self { report: None, failure: Some(failure), effect: PeerEffect::KeepRunning }
    }
}

impl Outcome {
    /// Creates the outcome of a command that the user interrupted.
    pub(crate) fn interrupted() -> Self {
        let hint = "run the command again; a download resumes where it stopped";
        Failure::new(FailureCode::Interrupted, "interrupted", "the user stopped the command", hint).into()
    }

    /// Combines the results of a command on several files. Several failures become one, with the code of the first.
    pub(crate) fn from_parts(report: Option<Report>, mut failures: Vec<Failure>) -> Self {
        let failure = match failures.len() {
            0 | 1 => failures.pop(),
            count => {
                let first = failures.swap_remove(0);
                Some(Failure { what: format!("{count} failed, the first: {}", first.what), ..first })
            }
        };
        Self { report, failure, effect: PeerEffect::KeepRunning }
    }

    /// Returns the exit status that a one-shot command with this outcome has.
    pub(crate) fn exit_status(&self) -> u8 {
        self.failure.as_ref().map_or(0, |failure| failure.code.exit_status())
    }
}
