//! Failures as reported to users and scripts.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

/// Kind of a failure. Scripts read it as `code` in `--json` and as the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// Invalid command-line arguments.
    Usage,
    /// Unknown command.
    UnknownCommand,
    /// The nameserver does not answer.
    NameserverUnreachable,
    /// The other side rejects this identity, or this node has no identity yet.
    NotAuthorised,
    /// The two sides use different protocol versions.
    VersionMismatch,
    /// The network has no tracker at the moment.
    NoTracker,
    /// The file does not exist, locally or in the network.
    NoSuchFile,
    /// The file is known, but no owner delivered it.
    NoOwner,
    /// The received bytes do not match the file's hash.
    VerificationFailed,
    /// The disk is full.
    NoSpace,
    /// The destination exists already.
    Exists,
    /// The name is not valid.
    InvalidName,
    /// A limit of the system is reached.
    LimitReached,
    /// Another process runs as this peer.
    AlreadyRunning,
    /// The peer that the command is for does not run on this machine.
    NotRunning,
    /// A deadline passed without an answer.
    Timeout,
    /// The user stopped the operation.
    Interrupted,
    /// A file or directory could not be read or written.
    Io,
    /// The name is not registered in the nameserver.
    UnknownName,
    /// A defect in the program.
    Internal,
}

impl FailureCode {
    /// Returns the code as `--json` writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::UnknownCommand => "unknown_command",
            Self::NameserverUnreachable => "nameserver_unreachable",
            Self::NotAuthorised => "not_authorised",
            Self::VersionMismatch => "version_mismatch",
            Self::NoTracker => "no_tracker",
            Self::NoSuchFile => "no_such_file",
            Self::NoOwner => "no_owner",
            Self::VerificationFailed => "verification_failed",
            Self::NoSpace => "no_space",
            Self::Exists => "exists",
            Self::InvalidName => "invalid_name",
            Self::LimitReached => "limit_reached",
            Self::AlreadyRunning => "already_running",
            Self::NotRunning => "not_running",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
            Self::Io => "io",
            Self::UnknownName => "unknown_name",
            Self::Internal => "internal",
        }
    }

    /// Returns the exit status of a one-shot command: 2 for usage errors, 3 if the nameserver is unreachable, 4 if not
    /// authorised, 5 if the peer does not run, 130 if the user interrupted it, 1 for every other failure.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Usage | Self::UnknownCommand => 2,
            Self::NameserverUnreachable => 3,
            Self::NotAuthorised => 4,
            Self::NotRunning => 5,
            // 128 and the number of SIGINT, as shells report it.
            Self::Interrupted => 130,
            _ => 1,
        }
    }
}

/// Failure with its cause and a remedy, displayed as `WHAT (WHY; HINT)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind of the failure.
    pub code: FailureCode,
    /// Operation that failed.
    pub what: String,
    /// Cause.
    pub why: String,
    /// Remedy for the user.
    pub hint: String,
}

impl Failure {
    /// Creates a failure.
    pub fn new(code: FailureCode, what: impl Into<String>, why: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self { code, what: what.into(), why: why.to_string(), hint: hint.into() }
    }

    /// Creates an [`FailureCode::Io`] failure for a file or directory of a program's state.
    pub fn unusable(path: &Path, why: impl fmt::Display) -> Self {
        Self::new(
            FailureCode::Io,
            format!("cannot use {}", path.display()),
            why,
            "check its permissions, or choose another directory with --state-dir or BRASA_STATE_DIR",
        )
    }

    /// Creates a [`FailureCode::Usage`] failure of `program` from the message of its argument parser.
    ///
    /// The first line of `text` gives the cause, a line that begins with `tip:` the hint. Without such a line the hint
    /// is `otherwise`.
    pub fn from_parser(program: &str, text: &str, otherwise: &str) -> Self {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        // Without this prefix the text is the help text, which the parser prints if the command is missing.
        let first = lines.next().and_then(|line| line.strip_prefix("error: "));
        let mut why = first.unwrap_or("a command is missing").to_owned();
        // "the following required arguments were not provided:" continues in the next line.
        if why.ends_with(':') {
            why = format!("{why} {}", lines.next().unwrap_or_default());
        }
        let hint = lines.find_map(|line| line.strip_prefix("tip: ")).unwrap_or(otherwise);
        let hint = format!("{hint}; see `{program} --help`");
        Self::new(FailureCode::Usage, "wrong command line", why, hint)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}; {})", self.what, self.why, self.hint)
    }
}

impl std::error::Error for Failure {}
