//! Downloads into a share or to a path outside of it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::store::{
    confined_dir::HIDDEN,
    download::{
        destination::{Destination, Occupancy},
        files::PARTIAL_DIR,
        partial::Partial,
        unfinished::{self, Discarded, Unfinished},
    },
    error::{
        BeginError, DestinationError, DiscardError, FileError, FinalizeError, OccupancyError, PartialError,
        Unavailable, run_blocking,
    },
    import::batch::StagedBatch,
    inner::{ArrivalGuard, Arrivals, HashOutcome, ShareInner},
    params::{PARTIAL_POLL, PARTIAL_WAIT},
    source::Source,
};
use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    file_name::FileName,
    group_ranges::GroupRanges,
    time::Clock,
};
use tokio::time::sleep;
use tracing::warn;

use super::Share;

impl Share {
    /// Resolves the destination of a download of `name`: in the share, or the file or directory `to`. Blocks for a few
    /// system calls.
    ///
    /// # Errors
    /// If the directory does not exist, or the path is hidden in the share.
    pub fn destination(&self, name: &FileName, to: Option<&Path>) -> Result<Destination, DestinationError> {
        Destination::resolve(&self.inner.root, name, to)
    }

    /// Compares what exists at the destination with the content to be downloaded. [`Occupancy::Identical`] means that
    /// the download is complete.
    ///
    /// # Errors
    /// [`OccupancyError::Exists`] if something else exists and `force` is not set.
    pub async fn occupancy(
        &self,
        destination: &Destination,
        hash: ContentHash,
        size: u64,
        force: bool,
    ) -> Result<Occupancy, OccupancyError> {
        let name = destination.name().cloned();
        let folder = Arc::clone(&self.inner);
        // A path in a folder that was moved away says nothing about the share.
        run_blocking(move || folder.root.reopen())
            .await?
            .map_err(|error| FileError::new("look at", destination.path(), error))?;
        let (inner, destination) = (Arc::clone(&self.inner), destination.clone());
        let compare = move || destination.occupancy(hash, size, force, &inner.stopping);
        let occupancy = run_blocking(compare).await??;
        if let (Occupancy::Identical, Some(name)) = (occupancy, name) {
            // A file that has just appeared may not be in the index yet.
            let inner = Arc::clone(&self.inner);
            let inspect = move || match inner.inspect(&name) {
                HashOutcome::Done(entry) => Ok(Arrivals { files: vec![entry], guard: None }),
                HashOutcome::Changed | HashOutcome::Gone | HashOutcome::Unreadable(_) | HashOutcome::NoRoom(_) => {
                    Ok(Arrivals::default())
                }
            };
            self.run_and_adopt::<OccupancyError>(inspect).await?;
        }
        Ok(occupancy)
    }

    /// Starts to receive `file` for `destination`: creates the partial file with space for all of it, or resumes an
    /// earlier download, whose groups are in [`Partial::verified`].
    ///
    /// # Errors
    /// If the same content is being received, the disk has too little space, or the directory is not writable.
    pub async fn begin(&self, destination: &Destination, file: &FileMeta) -> Result<Partial, BeginError> {
        let clock = Clock::start();
        loop {
            let (inner, goal, file) = (Arc::clone(&self.inner), destination.goal(), file.clone());
            let open = move || {
                let location = unfinished::location(&inner.root, file.hash, goal)?;
                let partial = Partial::open(location, &file, &inner.stopping)?;
                inner.begin_receiving(&partial);
                Ok(partial)
            };
            match run_blocking(open).await? {
                Ok(partial) => return Ok(partial),
                // The threads of a download that has just been stopped hold the lock a little longer.
                Err(PartialError::Busy) if clock.now().since_origin() < PARTIAL_WAIT => sleep(PARTIAL_POLL).await,
                Err(error) => return Err(BeginError::Partial { path: destination.path().to_path_buf(), error }),
            }
        }
    }

    /// Returns the partial file of a content that is being received.
    ///
    /// The handle prevents the same download from being started again. To send the content, use
    /// [`open_partial_for_serving`](Self::open_partial_for_serving).
    pub fn receiving(&self, hash: &ContentHash) -> Option<Partial> {
        self.inner.receiving(hash)
    }

    /// Opens a content that is being received for [`crate::transfer::serve()`], with the groups verified so far.
    pub fn open_partial_for_serving(&self, hash: &ContentHash) -> Option<(Source, GroupRanges)> {
        let opened = self.receiving(hash)?.open_for_serving();
        opened.inspect_err(|error| warn!(%error, "cannot serve a partial file")).ok()
    }

    /// Returns the downloads that can be resumed, in order of their names, without the running ones.
    ///
    /// # Errors
    /// If the share is unavailable.
    pub async fn unfinished(&self) -> Result<Vec<Unfinished>, Unavailable> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || unfinished::list(&inner.root, |hash, goal| inner.is_receiving(hash, goal))).await
    }

    /// Discards the unfinished downloads of the file `name`, or of one version of it, and frees their disk space.
    ///
    /// # Errors
    /// If there is none, or one of them is running.
    pub async fn discard(&self, name: &str, version: Option<&HashPrefix>) -> Result<Vec<Discarded>, DiscardError> {
        let (inner, name, version) = (Arc::clone(&self.inner), name.to_owned(), version.cloned());
        run_blocking(move || unfinished::discard(&inner.root, &name, version.as_ref())).await?
    }

    /// Moves a complete partial file to its destination, durably and atomically, and adds it to the index if it is in
    /// the share. Hashes nothing again. Applies time and executable bit of `meta`; without `force`, replaces nothing.
    ///
    /// # Errors
    /// If groups are missing, the destination exists, or the directory is not writable.
    pub async fn finish(
        &self,
        partial: Partial,
        destination: &Destination,
        meta: &FileMeta,
        force: bool,
    ) -> Result<PathBuf, FinalizeError> {
        let (inner, target, meta) = (Arc::clone(&self.inner), destination.clone(), meta.clone());
        self.run_and_adopt(move || finish(&inner, partial, &target, &meta, force)).await?;
        Ok(destination.path().to_path_buf())
    }

    /// Starts a download of many small files. Without `force`, replaces nothing. Files for destinations outside of
    /// the share are staged in `outside` if that is on the same disk.
    pub(crate) fn staged_batch(&self, outside: Option<&Path>, force: bool) -> StagedBatch {
        StagedBatch::new(Arc::clone(&self.inner), outside, force)
    }
}

fn finish(
    inner: &Arc<ShareInner>,
    partial: Partial,
    destination: &Destination,
    meta: &FileMeta,
    force: bool,
) -> Result<Arrivals, FinalizeError> {
    let failed = |error: io::Error| FinalizeError::new(destination.path(), error);
    let guard = destination.name().map(|name| ArrivalGuard::new(inner, vec![name.clone()]));
    let (dir, base) = destination.open_dir(&inner.root).map_err(failed)?;
    let displaced = |error: io::Error| match error.kind() {
        // The partial file is in the hidden directory of a folder that is not the share any more.
        io::ErrorKind::NotFound => FinalizeError::Displaced(destination.path().to_path_buf()),
        _ => failed(error),
    };
    let hash = partial.hash();
    // The last handle deletes the outboard, so one must exist until the outboard is moved away.
    let handle = partial.clone();
    let stat = partial.finalize(&dir, &base, meta.mtime_micros, meta.executable, force).map_err(displaced)?;
    destination.check_is(&stat)?;
    let Some(name) = destination.name() else { return Ok(Arrivals::default()) };
    if handle.outboard().is_some() {
        let outboard = inner.root.path().join(HIDDEN).join(PARTIAL_DIR).join(handle.outboard_name());
        if let Err(error) = inner.outboards.adopt(&outboard, hash) {
            // The file itself is complete and is hashed again before it is served.
            warn!(%error, file = %name, "cannot store an outboard");
        }
    }
    let entry = inner.own(name.clone(), stat, hash);
    inner.remember(std::slice::from_ref(&entry));
    Ok(Arrivals { files: vec![entry], guard })
}
