//! Errors of the store: one enum for each operation. `api/failures.rs` maps them to API failures.

use std::{
    io,
    path::{Path, PathBuf},
};

use shared::file_name::{FileName, InvalidFileName};
use tokio::task::{self, JoinError};

/// Returns true if the disk is full or the quota of the user is used up.
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// File-system operation that failed. The kind of `error` determines whether a retry may help.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {error}", .path.display())]
pub struct FileError {
    /// Operation as a verb phrase that the path completes, such as "write to".
    pub action: &'static str,
    /// File or directory of the operation.
    pub path: PathBuf,
    /// Answer of the operating system.
    #[source]
    pub error: io::Error,
}

impl FileError {
    /// Creates the error of `action` on `path`.
    pub(crate) fn new(action: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self { action, path: path.to_path_buf(), error: error.into() }
    }
}

/// Reason why the share executes no operation at all.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The peer is shutting down. Start it again.
    #[error("the share is closed")]
    Closed,
    /// A worker thread panicked. Report it.
    #[error("a worker thread of the store failed: {0}")]
    Panicked(#[from] JoinError),
}

/// Runs `work` on a blocking thread.
///
/// # Errors
/// [`Unavailable::Panicked`] if `work` panics.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unavailable> {
    Ok(task::spawn_blocking(work).await?)
}

/// Reason of an I/O error: the folder of the share does not exist at present.
#[derive(Debug, thiserror::Error)]
#[error("the folder {} is not there", .0.display())]
pub struct FolderMissing(pub PathBuf);

impl FolderMissing {
    /// Returns true if `error` has this reason.
    pub fn is_reason_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|reason| reason.is::<Self>())
    }
}

impl From<FolderMissing> for io::Error {
    fn from(reason: FolderMissing) -> Self {
        Self::new(io::ErrorKind::NotFound, reason)
    }
}

/// Error of [`Share::open`](super::Share::open).
#[derive(Debug, thiserror::Error)]
pub enum OpenShareError {
    /// The directory does not exist and cannot be created. Choose another one.
    #[error(transparent)]
    CreateDirectory(FileError),
    /// The directory or the state directory cannot be used.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The directory and a state directory, which holds keys, lie in one another. Choose another one of them.
    #[error(
        "{} {} {}",
        .share.display(),
        if *state_inside { "contains the state directory" } else { "lies in the state directory" },
        .state_dir.display()
    )]
    Nested {
        /// Directory to be shared.
        share: PathBuf,
        /// State directory.
        state_dir: PathBuf,
        /// True if the state directory lies in the share, false if the share lies in the state directory.
        state_inside: bool,
    },
    /// The share failed while it was being opened.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Error of [`Share::open_for_serving`](super::Share::open_for_serving).
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No file of the share has the content (any more).
    #[error("the content is not in the share (any more)")]
    NotHere,
    /// A file with the content exists and cannot be served until it has been hashed again, which has begun.
    #[error("the file is being hashed")]
    Hashing,
    /// A file with the content exists and cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(#[source] io::Error),
}

/// Error of [`Share::add_copy`](super::Share::add_copy) and [`Share::add_note`](super::Share::add_note).
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The source is a device, pipe or socket. Give a file or a directory.
    #[error("{} is neither a file nor a directory", .0.display())]
    NotAFile(PathBuf),
    /// The name of the source is not valid in a share. Rename the source.
    #[error("cannot add {}: {error}", .path.display())]
    InvalidName {
        /// Source with that name.
        path: PathBuf,
        /// Rule that the name breaks.
        error: InvalidFileName,
    },
    /// The tree contains something that cannot be shared. Remove it or add the other files one by one.
    #[error("cannot add {}: {reason}", .path.display())]
    Unshareable {
        /// First such entry of the tree.
        path: PathBuf,
        /// Reason for the user.
        reason: String,
    },
    /// The directory contains nothing but hidden files.
    #[error("there are no files in {0}")]
    Empty(FileName),
    /// A directory of the share is where a file must go, or the other way round. Rename the source or remove what is
    /// there.
    #[error("{name} exists in the share and {}", if *is_directory { "is a directory" } else { "is a file" })]
    Exists {
        /// Name in the share.
        name: FileName,
        /// True if the existing entry is a directory.
        is_directory: bool,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The share executes no operation.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Error of [`Share::remove`](super::Share::remove).
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The share has no file of that name.
    #[error("{0} is not in the share")]
    NotFound(FileName),
    /// The name is that of a directory with files. Name the files.
    #[error("{0} is a directory")]
    IsDirectory(FileName),
    /// The file cannot be removed.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The share executes no operation.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Error of [`Share::destination`](super::Share::destination): choose another path.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// The path has no last part, such as `..`.
    #[error("the path names no file")]
    NoFileName,
    /// The path lies in the share and is no valid name there.
    #[error("the path is not valid in the share: {0}")]
    InvalidName(#[source] InvalidFileName),
    /// The directory of the path does not exist or cannot be used.
    #[error(transparent)]
    Io(#[from] FileError),
}

/// Entry at a destination that a download does not replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// A file exists where a directory is needed.
    ParentIsFile,
    /// A directory has the name of the file.
    Directory,
    /// A device, pipe or socket: replacing it would break the programs that use it.
    SpecialFile,
    /// A file with another content. Overwriting it requires `force`.
    OtherContent,
}

/// Error of [`Share::occupancy`](super::Share::occupancy).
#[derive(Debug, thiserror::Error)]
pub enum OccupancyError {
    /// The destination is taken. Choose another one, or overwrite [`Obstacle::OtherContent`].
    #[error("{} exists already ({obstacle:?})", .path.display())]
    Exists {
        /// Path of the destination.
        path: PathBuf,
        /// Existing entry.
        obstacle: Obstacle,
    },
    /// The destination cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The share executes no operation.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Reason why a partial file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PartialError {
    /// This process or another one receives the same content. Wait for its end.
    #[error("it is being downloaded already")]
    Busy,
    /// The disk has too little free space.
    #[error("{needed} bytes are needed and {available} are free")]
    NoSpace {
        /// Size of the file, bytes.
        needed: u64,
        /// Free space of the disk, bytes.
        available: u64,
    },
    /// The file cannot be created.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// Error of [`Share::begin`](super::Share::begin).
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The partial file cannot be opened.
    #[error("cannot download {}: {error}", .path.display())]
    Partial {
        /// Path of the destination.
        path: PathBuf,
        /// Reason.
        #[source]
        error: PartialError,
    },
    /// The share executes no operation.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Error of [`Share::finish`](super::Share::finish), and of one file of a batch.
#[derive(Debug, thiserror::Error)]
pub enum FinalizeError {
    /// Something appeared at the destination since it was inspected. Inspect it again: it may be the same file.
    #[error(transparent)]
    Exists(FileError),
    /// Another file system is mounted at the destination in the share. Choose another destination.
    #[error(transparent)]
    CrossesDevices(FileError),
    /// The file is not at its path: the directory was moved, replaced or deleted in the last moment. Download again.
    #[error("the folder of {} was moved or replaced during the download", .0.display())]
    Displaced(PathBuf),
    /// The file is incomplete, or the disk refuses it.
    #[error(transparent)]
    Io(FileError),
    /// The share executes no operation.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl FinalizeError {
    /// Classifies the error of the last step to `path`.
    pub(crate) fn new(path: &Path, error: impl Into<io::Error>) -> Self {
        let error = FileError::new("complete", path, error);
        match error.error.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists(error),
            io::ErrorKind::CrossesDevices => Self::CrossesDevices(error),
            _ => Self::Io(error),
        }
    }
}

/// Error of [`Share::discard`](super::Share::discard).
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// No unfinished download has this name and version.
    #[error("no unfinished download of {0:?}")]
    NotFound(String),
    /// The download is running. Stop it first.
    #[error("the download of {0} is running")]
    Running(String),
    /// A file of the download cannot be deleted.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The share executes no operation.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Error of `StagedBatch::inspect`: this file cannot be downloaded, others can.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The path is not usable.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The path is taken.
    #[error(transparent)]
    Occupancy(#[from] OccupancyError),
    /// No file can be created at the path.
    #[error(transparent)]
    Io(#[from] FileError),
}

/// Error of `StagedBatch::check_space`.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// The files do not fit on the disk. Free some space.
    #[error("{needed} bytes are needed and {available} are free")]
    NoSpace {
        /// Number of files.
        files: u64,
        /// Space that they need, bytes.
        needed: u64,
        /// Free space, bytes.
        available: u64,
    },
    /// The free space cannot be determined.
    #[error(transparent)]
    Io(#[from] FileError),
}

/// Error of one directory in `Share::create_directories`.
#[derive(Debug, thiserror::Error)]
pub enum CreateDirectoryError {
    /// The path is not usable.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// Something other than a directory has this path. Remove it or choose another destination.
    #[error("{} exists and is not a directory", .0.display())]
    Exists(PathBuf),
    /// The directory cannot be created.
    #[error(transparent)]
    Finalize(#[from] FinalizeError),
}

/// Error of `Share::create_directories` as a whole.
#[derive(Debug, thiserror::Error)]
pub enum CreateDirectoriesError {
    /// The disk cannot make the directories durable.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The share executes no operation.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}
