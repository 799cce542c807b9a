//! Errors of downloads, one type for each operation, and their mapping to API failures: code, text and hint.

use std::{io, path::PathBuf, sync::Arc};

use shared::{
    error::{Failure, FailureCode},
    file_name::{FileName, InvalidFileName},
    net::{
        NetError,
        bulk::{BulkRefusal, HeaderError},
        pack::InvalidPack,
    },
};

use super::select::SelectError;
use crate::{
    api::invalid_name,
    core_handle::Stopped,
    discovery::{TrackerQueryError, stopping},
    transfer::{FetchError, PackError},
};

/// Reason why a whole command fails.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The pattern selects no version.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The pattern cannot be a name.
    #[error("{:?} is not a name: {}", .0.name, .0.reason)]
    InvalidName(#[from] InvalidFileName),
    /// The tracker refuses to answer. Without a tracker, a download asks the known peers instead.
    #[error(transparent)]
    Tracker(#[from] TrackerQueryError),
    /// The pattern selects several files, and the path to write them to is a file.
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// A folder outside of the share cannot be created.
    #[error("cannot create {}: {error}", .folder.display())]
    CreateFolder {
        /// Absolute path.
        folder: PathBuf,
        /// Answer of the system.
        error: io::Error,
    },
    /// At least one file did not arrive. All others are complete.
    #[error("{first}; {others} other files failed")]
    Files {
        /// Failure of the first file that did not arrive, in the order of the request.
        first: FileError,
        /// Number of further files that did not arrive.
        others: usize,
    },
    /// The share cannot be read or written.
    #[error(transparent)]
    Store(Failure),
    /// A thread of this peer panicked.
    #[error("a thread of the download panicked: {0}")]
    Panicked(String),
    /// This peer is stopping.
    #[error(transparent)]
    Stopping(#[from] Stopped),
}

/// Reason why one file did not arrive. Its verified groups stay in its partial file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FileError {
    /// No provider could deliver the missing groups.
    #[error("no provider of {name} delivers it: {}", .problems.join(", "))]
    NoProvider {
        /// The file.
        name: FileName,
        /// Failure of each provider, with its id; empty if none was reachable.
        problems: Vec<String>,
        /// True if all providers sent corrupt bytes.
        all_corrupt: bool,
    },
    /// No provider is left, and the other receivers of the file lack the same groups.
    #[error("no provider of {name} is left, and {receivers} other receivers lack the same parts")]
    ReceiversLackParts {
        /// The file.
        name: FileName,
        /// As for [`FileError::NoProvider`].
        problems: Vec<String>,
        /// Number of receivers.
        receivers: usize,
    },
    /// This peer could not write the received bytes. Another provider does not help.
    #[error("cannot write {name}: {error}")]
    Write {
        /// The file.
        name: FileName,
        /// Error of the write.
        error: Arc<FetchError>,
    },
    /// The share refuses the file, or cannot be written.
    #[error(transparent)]
    Store(Failure),
    /// A thread of this peer panicked.
    #[error("a thread of the download panicked: {0}")]
    Panicked(String),
    /// This peer is stopping.
    #[error(transparent)]
    Stopping(#[from] Stopped),
}

/// Reason why a request for groups of a file ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("its answer is unreadable: {0}")]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Refused(#[from] BulkRefusal),
    #[error("it did not answer in time")]
    Silent,
    #[error("it says the file has {claimed} bytes, not {announced}")]
    OtherSize { claimed: u64, announced: u64 },
    #[error("its file changed while it was sent")]
    Changed,
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Reason why a pack ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackRequestError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("its answer is unreadable: {0}")]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Refused(#[from] BulkRefusal),
    #[error(transparent)]
    Pack(#[from] PackError<FileError>),
    #[error("it cannot be asked: {0}")]
    Request(#[from] InvalidPack),
}

impl DownloadError {
    /// Wraps an error of the store.
    pub(crate) fn store(error: impl Into<Failure>) -> Self {
        Self::Store(error.into())
    }

    /// Summarizes `failures`, each with the position of its file in the request. Returns `None` if there are none.
    pub(crate) fn of_files(failures: Vec<(usize, FileError)>) -> Option<Self> {
        let others = failures.len().saturating_sub(1);
        let (_, first) = failures.into_iter().min_by_key(|(place, _)| *place)?;
        Some(Self::Files { first, others })
    }
}

impl FileError {
    /// Wraps an error of the store.
    pub(crate) fn store(error: impl Into<Failure>) -> Self {
        Self::Store(error.into())
    }
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Select(error) => select_failure(&error),
            DownloadError::InvalidName(error) => invalid_name(&error),
            DownloadError::Tracker(error) => error.into(),
            DownloadError::NotAFolder(path) => {
                let why = format!("{} is no folder", path.display());
                Self::new(
                    FailureCode::Usage,
                    "several files cannot be written to one path",
                    why,
                    "give an existing folder to --to",
                )
            }
            DownloadError::CreateFolder { folder, error } => {
                let what = format!("cannot make {}", folder.display());
                Self::new(FailureCode::Io, what, error, "choose another folder with --to")
            }
            DownloadError::Files { first, others } => {
                let mut failure = Self::from(first);
                if others > 0 {
                    let files = if others == 1 { "file" } else { "files" };
                    failure.why = format!("{}; {others} other {files} failed too", failure.why);
                }
                failure
            }
            DownloadError::Store(failure) => failure,
            DownloadError::Panicked(why) => panicked(why),
            DownloadError::Stopping(stopped) => stopping(stopped),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::NoProvider { name, problems, all_corrupt } => no_provider(&name, &problems, all_corrupt),
            FileError::ReceiversLackParts { name, problems, receivers } => {
                let others = if problems.is_empty() { "no owner is there".to_owned() } else { problems.join(", ") };
                let why = format!("{others}, and none of {receivers} who were receiving it too has what is missing");
                let hint = "what came is kept; try again when an owner is back";
                Self::new(FailureCode::NoOwner, format!("cannot download {name}"), why, hint)
            }
            FileError::Write { name, error } => fetch_failure(&name, &error),
            FileError::Store(failure) => failure,
            FileError::Panicked(why) => panicked(why),
            FileError::Stopping(stopped) => stopping(stopped),
        }
    }
}

fn panicked(why: String) -> Failure {
    Failure::new(FailureCode::Internal, "the download stopped working", why, "try again, and report it")
}

fn select_failure(error: &SelectError) -> Failure {
    match error {
        SelectError::NoMatch { pattern, from, version } => {
            let mut why = "nobody shares it".to_owned();
            if let Some(from) = from {
                why = format!("{from} does not share it");
            }
            if let Some(version) = version {
                why = format!("{why} in a version that begins with {version}");
            }
            let what = format!("no file {pattern:?}");
            Failure::new(FailureCode::NoSuchFile, what, why, "listAll shows what there is")
        }
        SelectError::InvalidGlob { pattern, reason } => {
            let what = format!("{pattern:?} is not a pattern");
            Failure::new(FailureCode::Usage, what, reason, "quote it, or correct it")
        }
    }
}

fn no_provider(name: &FileName, problems: &[String], all_corrupt: bool) -> Failure {
    let what = format!("cannot download {name}");
    if problems.is_empty() {
        let (why, hint) = ("none of its owners is there", "try again when one is back");
        return Failure::new(FailureCode::NoOwner, what, why, hint);
    }
    let (code, hint) = if all_corrupt {
        (FailureCode::VerificationFailed, "nothing wrong was kept; fetch it from another owner with --from")
    } else {
        (FailureCode::NoOwner, "try again, or `listAll` for other versions")
    };
    Failure::new(code, what, problems.join(", "), hint)
}

fn fetch_failure(name: &FileName, error: &FetchError) -> Failure {
    let (code, hint) = match error {
        FetchError::Verification { .. } => {
            (FailureCode::VerificationFailed, "nothing wrong was kept; fetch it from another owner")
        }
        FetchError::Truncated { .. } | FetchError::Stream(_) => (FailureCode::NoOwner, "try again"),
        FetchError::Silent(_) => (FailureCode::Timeout, "try again"),
        FetchError::NoSpace(_) => (FailureCode::NoSpace, "free some space and try again"),
        FetchError::Disk(_) => (FailureCode::Io, "look at the disk and the folder's permissions"),
        FetchError::Panicked(_) => (FailureCode::Internal, "try again, and report it"),
    };
    Failure::new(code, format!("cannot download {name}"), error, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(name: &str) -> FileError {
        FileError::NoProvider { name: name.parse().unwrap(), problems: Vec::new(), all_corrupt: false }
    }

    #[test]
    fn failures_of_files_are_reported_as_the_first_with_the_count_of_the_others() {
        let of = |failures| DownloadError::of_files(failures).map(Failure::from);
        assert_eq!(of(Vec::new()), None);
        let two = of(vec![(7, missing("late")), (3, missing("early"))]).unwrap();
        assert_eq!((two.code, two.what.as_str()), (FailureCode::NoOwner, "cannot download early"));
        assert_eq!(two.why, "none of its owners is there; 1 other file failed too");
    }

    #[test]
    fn panic_of_a_worker_is_an_internal_failure_and_not_one_of_the_disk() {
        let error = Arc::new(FetchError::Panicked("task 1 panicked".to_owned()));
        let failure = Failure::from(FileError::Write { name: "a".parse().unwrap(), error });
        assert_eq!(failure.code, FailureCode::Internal);
        assert_eq!(Failure::from(FileError::Panicked("task 1 panicked".to_owned())).code, FailureCode::Internal);
    }
}
