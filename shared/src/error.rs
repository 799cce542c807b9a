//! Failures as users and scripts see them.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};

/// What kind of failure; scripts read it as `code` in `--json` and as the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// Wrong words on the command line.
    Usage,
    /// No such command.
    UnknownCommand,
    /// The nameserver does not answer.
    NameserverUnreachable,
    /// The other side does not let this identity do that, or there is no identity yet.
    NotAuthorised,
    /// The two sides speak different protocol versions.
    VersionMismatch,
    /// Nobody is tracker at the moment.
    NoTracker,
    /// No such file, locally or in the network.
    NoSuchFile,
    /// The file is known but none of its owners could deliver it.
    NoOwner,
    /// Bytes came that are not the file's.
    VerificationFailed,
    /// Not enough room on the disk.
    NoSpace,
    /// Something of that name is there already.
    Exists,
    /// A name that is not allowed.
    InvalidName,
    /// A bound of the system is reached.
    LimitReached,
    /// Another process is this peer.
    AlreadyRunning,
    /// An answer did not come in time.
    Timeout,
    /// Stopped by the user.
    Interrupted,
    /// A file or folder could not be read or written.
    Io,
    /// A nameserver name that is not registered.
    UnknownName,
    /// A defect in the program.
    Internal,
}

impl FailureCode {
    /// As it stands in `--json`.
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
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
            Self::Io => "io",
            Self::UnknownName => "unknown_name",
            Self::Internal => "internal",
        }
    }

    /// Exit status of a one-shot command that fails so: 1 failed, 2 usage, 3 nameserver unreachable,
    /// 4 not authorised.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Usage | Self::UnknownCommand => 2,
            Self::NameserverUnreachable => 3,
            Self::NotAuthorised => 4,
            _ => 1,
        }
    }
}

/// A failure, told so that the reader knows what to do: `WHAT (WHY; WHAT TO DO)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind.
    pub code: FailureCode,
    /// What did not work.
    pub what: String,
    /// Why.
    pub why: String,
    /// What the user can do.
    pub hint: String,
}

impl Failure {
    /// A failure with all that a reader needs.
    pub fn new(code: FailureCode, what: impl Into<String>, why: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self { code, what: what.into(), why: why.to_string(), hint: hint.into() }
    }
}

impl Failure {
    /// A file or folder of a program's state that cannot be used.
    pub fn unusable(path: &Path, why: impl fmt::Display) -> Self {
        Self::new(
            FailureCode::Io,
            format!("cannot use {}", path.display()),
            why,
            "check its rights, or choose another folder with --state-dir or BRASA_STATE_DIR",
        )
    }

    /// Wrong words on the command line of `program`, from what its parser says in several lines: the first tells what is
    /// wrong, one that begins with `tip:` what is near. Without one the hint is `otherwise`.
    pub fn from_parser(program: &str, text: &str, otherwise: &str) -> Self {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        // What does not begin so is help, shown because nothing was asked for.
        let first = lines.next().and_then(|line| line.strip_prefix("error: "));
        let mut why = first.unwrap_or("a command is missing").to_owned();
        // "the following required arguments were not provided:" goes on in the next line.
        if why.ends_with(':') {
            why = format!("{why} {}", lines.next().unwrap_or_default());
        }
        let hint = lines.find_map(|line| line.strip_prefix("tip: ")).unwrap_or(otherwise);
        let hint = format!("{hint}; `{program} --help` explains all");
        Self::new(FailureCode::Usage, "wrong command line", why, hint)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}; {})", self.what, self.why, self.hint)
    }
}

impl std::error::Error for Failure {}
