//! Mapping of the store's errors to API failures: code, text and hint. The errors of downloads and of discovery are
//! mapped in their own modules.

use std::{fmt, io, path::Path};

use shared::error::{Failure, FailureCode};

use crate::store::{
    Private,
    error::{
        AddError, BeginError, CreateDirectoriesError, CreateDirectoryError, DestinationError, DiscardError, FileError,
        FinalizeError, FolderMissing, InspectError, Obstacle, OccupancyError, OpenShareError, PartialError,
        RemoveError, SpaceError, Unavailable, is_no_space,
    },
};

const FREE_SPACE: &str = "free some space and try again";
const FOLDER_MISSING: &str = "put the folder of the share back, or start the peer with another --dir";

fn escaped(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

fn with_hint(error: FileError, hint: &str) -> Failure {
    Failure { hint: hint.to_owned(), ..error.into() }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let FileError { action, path, error } = error;
        let (code, hint) = match error.kind() {
            _ if FolderMissing::is_reason_of(&error) => (FailureCode::Io, FOLDER_MISSING),
            _ if Private::is_reason_of(&error) => (FailureCode::Io, "choose another file or folder"),
            io::ErrorKind::StorageFull => (FailureCode::NoSpace, FREE_SPACE),
            io::ErrorKind::QuotaExceeded => {
                (FailureCode::NoSpace, "your quota is used up; free some space and try again")
            }
            io::ErrorKind::NotFound => (FailureCode::NoSuchFile, "look at the spelling of the name"),
            io::ErrorKind::PermissionDenied => (FailureCode::Io, "look at the permissions of the file and its folder"),
            io::ErrorKind::ReadOnlyFilesystem => {
                (FailureCode::Io, "the disk is mounted read-only; choose another folder")
            }
            io::ErrorKind::AlreadyExists => (FailureCode::Exists, "choose another name, or say --force"),
            _ => (FailureCode::Io, "look at the disk and the folder's permissions"),
        };
        Self::new(code, format!("cannot {action} {}", escaped(&path)), error, hint)
    }
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        match error {
            Unavailable::Closed => Self::new(
                FailureCode::Interrupted,
                "the share is closed",
                "the peer is shutting down",
                "start it again",
            ),
            Unavailable::Panicked(error) => {
                Self::new(FailureCode::Internal, "the store stopped working", error, "try again, and report it")
            }
        }
    }
}

impl From<OpenShareError> for Failure {
    fn from(error: OpenShareError) -> Self {
        match error {
            OpenShareError::CreateDirectory(error) => with_hint(error, "choose a folder with --dir"),
            OpenShareError::Io(error) => error.into(),
            OpenShareError::Nested { ref share, .. } => Self::new(
                FailureCode::Usage,
                format!("cannot share {}", escaped(share)),
                format!("{error}: its keys would be shared"),
                "choose another folder with --dir, or another state directory with --state-dir",
            ),
            OpenShareError::Unavailable(error) => error.into(),
        }
    }
}

impl From<AddError> for Failure {
    fn from(error: AddError) -> Self {
        let failure = |code, what: &dyn fmt::Display, why: &dyn fmt::Display, hint: &str| {
            Self::new(code, format!("cannot add {what}"), why, hint)
        };
        match error {
            AddError::NotAFile(path) => failure(
                FailureCode::Io,
                &escaped(&path),
                &"it is neither a file nor a directory",
                "give a file or a folder",
            ),
            AddError::InvalidName { path, error } => {
                failure(FailureCode::InvalidName, &escaped(&path), &error, "rename it and try again")
            }
            AddError::Unshareable { path, reason } => failure(
                FailureCode::InvalidName,
                &escaped(&path),
                &reason,
                "remove or rename it, or add the other files one by one",
            ),
            AddError::Empty(name) => failure(
                FailureCode::NoSuchFile,
                &name,
                &"there are no files in it",
                "give a folder with files; hidden ones do not count",
            ),
            AddError::Exists { name, is_directory } => {
                let kind = if is_directory { "directory" } else { "file" };
                let why = format!("a {kind} of that name is in the share");
                failure(FailureCode::Exists, &name, &why, "remove that or rename what you add")
            }
            AddError::Io(error) => error.into(),
            AddError::Unavailable(error) => error.into(),
        }
    }
}

impl From<RemoveError> for Failure {
    fn from(error: RemoveError) -> Self {
        let (name, why, hint) = match error {
            RemoveError::NotFound(name) => (name, "it is not in the share", "`list` shows what is"),
            RemoveError::IsDirectory(name) => (name, "it is a directory", "name the files in it; `list` shows them"),
            RemoveError::Io(error) => return error.into(),
            RemoveError::Unavailable(error) => return error.into(),
        };
        Self::new(FailureCode::NoSuchFile, format!("cannot remove {name}"), why, hint)
    }
}

impl From<DestinationError> for Failure {
    fn from(error: DestinationError) -> Self {
        let what = "cannot download to that path";
        match error {
            DestinationError::NoFileName => {
                Self::new(FailureCode::Usage, what, "it names no file", "give a file or a folder")
            }
            DestinationError::InvalidName(error) => {
                Self::new(FailureCode::InvalidName, what, error, "choose another name")
            }
            DestinationError::Io(error) => error.into(),
        }
    }
}

impl From<OccupancyError> for Failure {
    fn from(error: OccupancyError) -> Self {
        let (path, obstacle) = match error {
            OccupancyError::Exists { path, obstacle } => (path, obstacle),
            OccupancyError::Io(error) => return error.into(),
            OccupancyError::Unavailable(error) => return error.into(),
        };
        let (why, hint) = match obstacle {
            Obstacle::ParentIsFile => {
                ("a file stands where a directory is needed", "remove it or choose another place with --to")
            }
            Obstacle::Directory => ("a directory of that name is there", "choose another place with --to"),
            Obstacle::SpecialFile => {
                ("what is there is not a file (a device, pipe or socket)", "choose another place with --to")
            }
            Obstacle::OtherContent => {
                ("another file of that name is there", "say --force to replace it, or --to PATH for another place")
            }
        };
        Self::new(FailureCode::Exists, format!("cannot download to {}", escaped(&path)), why, hint)
    }
}

impl From<BeginError> for Failure {
    fn from(error: BeginError) -> Self {
        let (path, error) = match error {
            BeginError::Partial { path, error } => (path, error),
            BeginError::Unavailable(error) => return error.into(),
        };
        let (code, hint) = match &error {
            PartialError::Busy => (FailureCode::LimitReached, "wait until that is done"),
            PartialError::NoSpace { .. } => (FailureCode::NoSpace, FREE_SPACE),
            PartialError::Disk(error) if FolderMissing::is_reason_of(error) => (FailureCode::Io, FOLDER_MISSING),
            PartialError::Disk(error) if is_no_space(error) => (FailureCode::NoSpace, FREE_SPACE),
            PartialError::Disk(_) => (FailureCode::Io, "look at the folder's permissions"),
        };
        Self::new(code, format!("cannot download {}", path.display()), error, hint)
    }
}

impl From<FinalizeError> for Failure {
    fn from(error: FinalizeError) -> Self {
        match error {
            FinalizeError::Exists(error) | FinalizeError::Io(error) => error.into(),
            FinalizeError::CrossesDevices(error) => {
                with_hint(error, "another disk is mounted in the share at that place; download elsewhere with --to")
            }
            FinalizeError::Displaced(ref path) => Self::new(
                FailureCode::Io,
                format!("cannot complete {}", escaped(path)),
                "its folder was moved, replaced or deleted during the download",
                "download it again",
            ),
            FinalizeError::Unavailable(error) => error.into(),
        }
    }
}

impl From<DiscardError> for Failure {
    fn from(error: DiscardError) -> Self {
        match error {
            DiscardError::NotFound(_) => {
                Self::new(FailureCode::NoSuchFile, error.to_string(), "nothing of it is kept", "`status` shows what is")
            }
            DiscardError::Running(name) => Self::new(
                FailureCode::LimitReached,
                format!("cannot discard {name}"),
                PartialError::Busy,
                "stop that download first",
            ),
            DiscardError::Io(error) => error.into(),
            DiscardError::Unavailable(error) => error.into(),
        }
    }
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Destination(error) => error.into(),
            InspectError::Occupancy(error) => error.into(),
            InspectError::Io(error) => error.into(),
        }
    }
}

impl From<SpaceError> for Failure {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::NoSpace { files, .. } => {
                Self::new(FailureCode::NoSpace, format!("cannot download {files} files"), error, FREE_SPACE)
            }
            SpaceError::Io(error) => error.into(),
        }
    }
}

impl From<CreateDirectoryError> for Failure {
    fn from(error: CreateDirectoryError) -> Self {
        match error {
            CreateDirectoryError::Destination(error) => error.into(),
            CreateDirectoryError::Exists(path) => Self::new(
                FailureCode::Exists,
                format!("cannot make the directory {}", escaped(&path)),
                "something else of that name is there",
                "remove it or choose another place with --to",
            ),
            CreateDirectoryError::Finalize(error) => error.into(),
        }
    }
}

impl From<CreateDirectoriesError> for Failure {
    fn from(error: CreateDirectoriesError) -> Self {
        match error {
            CreateDirectoriesError::Io(error) => error.into(),
            CreateDirectoriesError::Unavailable(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::error::run_blocking;

    #[tokio::test]
    async fn panic_in_a_worker_is_internal() {
        let panicked = async || run_blocking(|| panic!("in a worker")).await.map(|(): ()| ()).unwrap_err();
        assert!(matches!(panicked().await, Unavailable::Panicked(_)));
        let failures: [Failure; 3] = [
            AddError::from(panicked().await).into(),
            OccupancyError::from(panicked().await).into(),
            FinalizeError::from(panicked().await).into(),
        ];
        for failure in failures {
            assert_eq!(failure.code, FailureCode::Internal, "{failure}");
        }
    }
}
