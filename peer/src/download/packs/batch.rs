//! State that preparation, engine and commits of one packed download share.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    id::PeerId,
    time::Clock,
};
use tokio::task;

use crate::{
    api::Downloaded,
    download::{context::DownloadContext, error::FileError},
    store::{Destination, Staged, StagedBatch},
};

/// Index of a file in [`Batch::files`].
pub(crate) type FileIndex = usize;

/// A content to fetch, and the files that have it.
pub(crate) struct Content {
    pub(crate) hash: ContentHash,
    /// Size, bytes.
    pub(crate) size: u64,
    pub(crate) targets: Vec<Target>,
    pub(crate) providers: Vec<Contact>,
    taken: AtomicBool,
}

/// File to be written with a content.
pub(crate) struct Target {
    pub(crate) file: FileIndex,
    pub(crate) destination: Destination,
}

/// File in the staging directory, and the sources of its bytes.
pub(crate) struct Ready {
    pub(crate) file: FileIndex,
    pub(crate) staged: Staged,
    pub(crate) sources: Vec<(PeerId, u64)>,
}

impl Content {
    pub(crate) fn new(hash: ContentHash, size: u64) -> Self {
        Self { hash, size, targets: Vec::new(), providers: Vec::new(), taken: AtomicBool::new(false) }
    }

    /// Returns true for the first delivery of the content. A content that is requested from two providers may arrive
    /// twice.
    pub(crate) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::Relaxed)
    }
}

/// The files of one packed download and the outcome of each.
pub(crate) struct Batch {
    pub(crate) me: PeerId,
    pub(crate) context: Arc<DownloadContext>,
    pub(crate) files: Vec<FileMeta>,
    pub(crate) staging: StagedBatch,
    clock: Clock,
    outcomes: Mutex<Vec<Option<Result<Downloaded, FileError>>>>,
}

impl Batch {
    pub(crate) fn new(me: PeerId, context: Arc<DownloadContext>, files: Vec<FileMeta>, staging: StagedBatch) -> Self {
        let outcomes = Mutex::new(files.iter().map(|_| None).collect());
        Self { me, context, files, staging, clock: Clock::start(), outcomes }
    }

    /// Records that a file failed.
    pub(crate) fn fail(&self, file: FileIndex, error: FileError) {
        self.end(file, Err(error));
    }

    /// Records that a file is durable at its destination.
    pub(crate) fn complete(&self, file: FileIndex, path: &Path, sources: Vec<(PeerId, u64)>) {
        let meta = self.files[file].clone();
        self.context.add_file(&meta);
        let seconds = self.clock.now().since_origin().as_secs_f64();
        self.end(file, Ok(Downloaded { path: path.to_path_buf(), seconds, sources, file: meta }));
    }

    /// Counts the bytes of a file as verified.
    pub(crate) fn add_bytes(&self, file: FileIndex) {
        let meta = &self.files[file];
        self.context.add_bytes(meta, meta.size);
    }

    /// Returns the outcomes of all files in their order. Files without an outcome get `rest`.
    pub(crate) fn take_outcomes(&self, rest: &FileError) -> Vec<Result<Downloaded, FileError>> {
        let outcomes = std::mem::take(&mut *self.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(rest.clone()))).collect()
    }

    /// Sets the outcome of a file unless it has one.
    fn end(&self, file: FileIndex, outcome: Result<Downloaded, FileError>) {
        if let Some(end) = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(file) {
            end.get_or_insert(outcome);
        }
    }
}

/// Runs `work` on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FileError> {
    task::spawn_blocking(work).await.map_err(|error| FileError::Panicked(error.to_string()))
}
