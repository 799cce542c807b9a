//! Errors of the file system as users see them.

use std::{io, path::Path};

use shared::error::{Failure, FailureCode};

/// Whether there is no room left, on the disk or in the user's quota.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error of the file system: `what` was to be done with `path`.
pub(crate) fn io_failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot {what} {}", path.display().to_string().escape_debug());
    let (code, hint) = match error.kind() {
        io::ErrorKind::StorageFull => (FailureCode::NoSpace, "free some space and try again"),
        io::ErrorKind::QuotaExceeded => (FailureCode::NoSpace, "your quota is used up; free some space and try again"),
        io::ErrorKind::NotFound => (FailureCode::NoSuchFile, "look at the spelling of the name"),
        io::ErrorKind::PermissionDenied => (FailureCode::Io, "look at the permissions of the file and its folder"),
        io::ErrorKind::ReadOnlyFilesystem => (FailureCode::Io, "the disk is mounted read-only; choose another folder"),
        io::ErrorKind::AlreadyExists => (FailureCode::Exists, "choose another name, or say --force"),
        _ => (FailureCode::Io, "look at the disk and the folder's permissions"),
    };
    Failure::new(code, what, error, hint)
}

/// A blocking thread of the store did not come to its end.
pub(crate) fn thread_failure(error: &tokio::task::JoinError) -> Failure {
    Failure::new(FailureCode::Internal, "the store stopped working", error, "try again, and report it")
}
