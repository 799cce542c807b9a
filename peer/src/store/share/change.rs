//! Additions to a share, removals, and directories.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use shared::{content::FileMeta, file_name::FileName, rpc::peer::DirectoryMeta};
use tracing::warn;

use super::Share;
use crate::store::{
    error::{
        AddError, CreateDirectoriesError, CreateDirectoryError, FileError, RemoveError, Unavailable, run_blocking,
    },
    import::{
        add, dir_journal,
        directories::{self, DirMetadata},
    },
    indexer::Command,
    inner::{HashOutcome, ShareInner},
};

impl Share {
    /// Copies the file or directory tree `source` into the share under the last part of its path and returns the added
    /// files.
    /// Uses reflinks where the file system supports them, and replaces files of the same names. A source that lies in
    /// the share is only added to the index.
    ///
    /// # Errors
    /// If the source does not exist, a name cannot be shared, the disk is full, or a file cannot be read or written.
    /// Then no file was added, unless the error occurred while the complete copies were moved into the share.
    pub async fn add_copy(&self, source: &Path) -> Result<Vec<FileMeta>, AddError> {
        let (inner, source) = (Arc::clone(&self.inner), source.to_path_buf());
        self.run_and_adopt(move || add::copy(&inner, &source)).await
    }

    /// Creates a small text file `name`. The command `add` uses it for a name that does not exist.
    ///
    /// # Errors
    /// If the name exists in the share or the file cannot be written.
    pub async fn add_note(&self, name: &FileName) -> Result<FileMeta, AddError> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        let mut added = self.run_and_adopt(move || add::note(&inner, &name)).await?;
        added.pop().ok_or_else(|| Unavailable::Closed.into())
    }

    /// Removes a file or an empty directory from the share, and the directories above it that become empty.
    ///
    /// # Errors
    /// If the file does not exist or cannot be removed.
    pub async fn remove(&self, name: &FileName) -> Result<FileMeta, RemoveError> {
        let (inner, wanted) = (Arc::clone(&self.inner), name.clone());
        let meta = run_blocking(move || remove(&inner, &wanted)).await??;
        self.call(|reply| Command::Forget(vec![name.clone()], reply)).await?;
        Ok(meta)
    }

    /// Creates empty directories durably, each in the share or at the given path, and returns their paths. A
    /// directory that exists stays as it is.
    ///
    /// # Errors
    /// If the disk cannot make them durable or the share is closed.
    pub(crate) async fn create_directories(
        &self,
        wanted: Vec<(FileMeta, Option<PathBuf>)>,
    ) -> Result<Vec<Result<PathBuf, CreateDirectoryError>>, CreateDirectoriesError> {
        let inner = Arc::clone(&self.inner);
        let (paths, arrivals) = run_blocking(move || directories::create(&inner, &wanted)).await??;
        self.adopt(arrivals).await?;
        Ok(paths)
    }

    /// Returns the metadata of directories of the share in the order of `names`, `None` for one that contains nothing
    /// shared.
    ///
    /// # Errors
    /// If the share is unavailable.
    pub(crate) async fn directories(
        &self,
        names: Vec<Option<FileName>>,
    ) -> Result<Vec<Option<DirectoryMeta>>, Unavailable> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || names.iter().map(|name| directories::shared_meta(&inner, name.as_ref()?)).collect()).await
    }

    /// Sets times and modes of directories. Must be called after the last file was added to them. Skips directories
    /// that are gone or belong to another user.
    ///
    /// # Errors
    /// If the share is unavailable.
    pub(crate) async fn apply_dir_metadata(&self, wanted: Vec<DirMetadata>) -> Result<(), Unavailable> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || directories::apply_all(&inner.root, &wanted)).await
    }

    /// Sets the modes of the new directories that exist, after a download that ended early. If the download is
    /// repeated, these directories are no longer new.
    ///
    /// # Errors
    /// If the share is unavailable.
    pub(crate) async fn restrict_dir_modes(&self, wanted: Vec<DirMetadata>) -> Result<(), Unavailable> {
        let inner = Arc::clone(&self.inner);
        run_blocking(move || directories::restrict_all(&inner.root, &wanted)).await
    }

    /// Records that the download `key` is about to create the directories `new`. Returns them with those of `all`
    /// that the same download was creating when its process was killed. Failure to record them is logged only.
    ///
    /// # Errors
    /// If the share is unavailable.
    pub(crate) async fn begin_dir_journal(
        &self,
        key: String,
        all: BTreeSet<FileName>,
        new: BTreeSet<FileName>,
    ) -> Result<BTreeSet<FileName>, Unavailable> {
        let inner = Arc::clone(&self.inner);
        let begin = move || {
            dir_journal::begin(&inner.root, &key, &all, new.clone()).unwrap_or_else(|error| {
                warn!(%error, "cannot write the directory journal; a killed download will not restore the modes");
                new
            })
        };
        run_blocking(begin).await
    }

    /// Deletes the directory journal of the download `key`.
    ///
    /// # Errors
    /// If the share is unavailable.
    pub(crate) async fn end_dir_journal(&self, key: String) -> Result<(), Unavailable> {
        let inner = Arc::clone(&self.inner);
        let end = move || {
            if let Err(error) = dir_journal::end(&inner.root, &key) {
                warn!(%error, "cannot delete a directory journal");
            }
        };
        run_blocking(end).await
    }
}

fn remove(inner: &ShareInner, name: &FileName) -> Result<FileMeta, RemoveError> {
    let failed = |error| FileError::new("remove", Path::new(name.as_str()), error);
    let indexed = inner.index().file(name).map(|entry| entry.meta.clone());
    let meta = match indexed {
        Some(meta) => meta,
        // A new file may not be in the index yet.
        None => match inner.inspect(name) {
            HashOutcome::Done(entry) => entry.meta,
            _ if inner.index().has_below(name) => return Err(RemoveError::IsDirectory(name.clone())),
            HashOutcome::Unreadable(error) => return Err(failed(error).into()),
            HashOutcome::NoRoom(error) => return Err(failed(error).into()),
            HashOutcome::Changed | HashOutcome::Gone => return Err(RemoveError::NotFound(name.clone())),
        },
    };
    inner.root.remove(name).map_err(failed)?;
    Ok(meta)
}
