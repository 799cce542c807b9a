//! Handle of the share that the rest of the peer uses.
//!
//! | module | contents |
//! |---|---|
//! | this one | opening, listing, serving, rescans |
//! | `change` | additions, removals, directories |
//! | `receive` | downloads into the share |

mod change;
mod receive;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{
    download::unfinished,
    error::{OpenError, OpenShareError, Unavailable, run_blocking},
    file_stat::FileStat,
    import::{dir_journal, staging},
    index::{Changes, IndexEntry},
    indexer::{Command, Indexer},
    inner::{Arrivals, ShareInner, ShareOptions},
    source::Source,
};

/// Capacity of the queue of the indexer, commands.
const MAX_QUEUED_COMMANDS: usize = 256;

/// Directory that a peer shares. Clones are handles of the same share, which closes with the last one.
///
/// Calls that change the share return when the changes are in `events`. The task that receives from `events` must not
/// await these calls, which would be a deadlock.
#[derive(Debug, Clone)]
pub struct Share {
    inner: Arc<ShareInner>,
    commands: mpsc::Sender<Command>,
}

/// Counters of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ShareStats {
    /// Number of files.
    pub files: u64,
    /// Total size of the files, bytes.
    pub bytes: u64,
    /// Bytes that this process hashed.
    pub hashed_bytes: u64,
    /// Number of entries that cannot be shared. Hidden files do not count.
    pub skipped: u64,
}

impl Share {
    /// Opens the directory `dir` as a share. Creates it if it is missing. Hashes and outboards are stored in
    /// `state_dir`.
    ///
    /// Returns after the first scan: files that are unchanged since an earlier run are in the index then, others are
    /// being hashed ([`settled`](Self::settled) waits for them). All changes go to `events`, beginning with the
    /// result of the first scan. A slow receiver gets several changes at a time and loses none.
    ///
    /// # Errors
    /// If the directory cannot be created or read, the state directory cannot be used, or one lies in the other.
    pub async fn open(
        dir: &Path,
        state_dir: &Path,
        options: ShareOptions,
        events: mpsc::Sender<Changes>,
    ) -> Result<Self, OpenShareError> {
        let (dir, state_dir) = (dir.to_path_buf(), state_dir.to_path_buf());
        let open = move || -> Result<_, OpenShareError> {
            let inner = ShareInner::open(&dir, &state_dir, options)?;
            staging::sweep(&inner.root);
            Ok(Arc::new(inner))
        };
        let inner = run_blocking(open).await??;
        let (commands, queue) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let (scanned, first_scan) = oneshot::channel();
        tokio::spawn(Indexer::new(Arc::clone(&inner), events, scanned).run(queue));
        let state_inside = first_scan.await.map_err(|_| Unavailable::Closed)?;
        if let Some(state_dir) = state_inside {
            let share = inner.root.path().to_path_buf();
            return Err(OpenShareError::Nested { share, state_dir, state_inside: true });
        }
        let swept = Arc::clone(&inner);
        let sweep = move || {
            unfinished::sweep(&swept.root, |hash| swept.index().with_content(hash).next().is_some());
            dir_journal::sweep(&swept.root);
        };
        run_blocking(sweep).await?;
        Ok(Self { inner, commands })
    }

    /// Returns the absolute path of the directory.
    pub fn path(&self) -> &Path {
        self.inner.root.path()
    }

    /// Returns all files in order of their names.
    pub fn list(&self) -> Vec<FileMeta> {
        self.inner.index().files().map(|entry| entry.meta.clone()).collect()
    }

    /// Returns at most `limit` files after `after`, in order of their names.
    pub fn page(&self, after: Option<&FileName>, limit: usize) -> Vec<FileMeta> {
        self.inner.index().files_after(after).take(limit).map(|entry| entry.meta.clone()).collect()
    }

    /// Returns the file `name`.
    pub fn get(&self, name: &FileName) -> Option<FileMeta> {
        self.inner.index().file(name).map(|entry| entry.meta.clone())
    }

    /// Returns true if a file of the share has this content.
    pub fn has_content(&self, hash: &ContentHash) -> bool {
        self.inner.index().with_content(hash).next().is_some()
    }

    /// Returns the counters.
    pub fn stats(&self) -> ShareStats {
        let index = self.inner.index();
        let (mut files, mut bytes) = (0, 0);
        for entry in index.files().filter(|entry| !entry.meta.is_directory()) {
            files += 1;
            bytes += entry.meta.size;
        }
        ShareStats {
            files,
            bytes,
            hashed_bytes: self.inner.hashed_bytes.load(Ordering::Relaxed),
            skipped: self.inner.skipped.load(Ordering::Relaxed),
        }
    }

    /// Opens a content for [`crate::transfer::serve()`]. Blocks for a few system calls.
    ///
    /// # Errors
    /// If no file has the content or it cannot be read. A file that may have changed triggers a scan; the source is then
    /// in doubt, and each group is checked before it is sent.
    pub fn open_for_serving(&self, hash: &ContentHash) -> Result<Source, OpenError> {
        self.open_with(hash, |file, entry, in_doubt| {
            let size = entry.meta.size;
            match self.inner.outboards.open_for(*hash, size) {
                Ok(outboard) => {
                    let stat = (!in_doubt).then_some(entry.stat);
                    Ok(Source { hash: *hash, size, file, outboard, stat, in_doubt })
                }
                Err(error) => {
                    warn!(%error, ?hash, "cannot read an outboard; the content is hashed again");
                    let _queue_full = self.commands.try_send(Command::RestoreOutboard(*hash));
                    Err(OpenError::Hashing)
                }
            }
        })
    }

    /// Opens a content that the caller reads and checks as a whole. Returns it with its size, bytes; the file may be
    /// longer. Blocks for a few system calls.
    ///
    /// # Errors
    /// As [`open_for_serving`](Self::open_for_serving).
    pub fn open_content(&self, hash: &ContentHash) -> Result<(File, u64), OpenError> {
        self.open_with(hash, |file, entry, _| Ok((file, entry.meta.size)))
    }

    /// Opens a file of the content and passes it to `use_it` with its entry, and whether it is in doubt. Prefers one that
    /// is not.
    fn open_with<T>(
        &self,
        hash: &ContentHash,
        use_it: impl Fn(File, &IndexEntry, bool) -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        let candidates: Vec<IndexEntry> = self.inner.index().with_content(hash).cloned().collect();
        let (mut failed, mut doubtful) = (OpenError::NotHere, None);
        for entry in &candidates {
            let opened = self.inner.root.open_file(&entry.meta.name.below(Path::new("")));
            match opened.and_then(|file| Ok((FileStat::of(&file.metadata()?), file))) {
                Ok((stat, file)) if stat == entry.stat => match use_it(file, entry, false) {
                    Ok(used) => return Ok(used),
                    Err(error) => failed = error,
                },
                Ok((stat, file)) => {
                    self.request_rescan();
                    if doubtful.is_none() && entry.may_be_in(&stat) {
                        doubtful = Some((file, entry));
                    }
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => failed = OpenError::Unreadable(error),
                Err(_) => self.request_rescan(),
            }
        }
        match doubtful {
            Some((file, entry)) => use_it(file, entry, true),
            None => Err(failed),
        }
    }

    /// Removes a content that does not match its hash from the index, and hashes its files again.
    pub fn invalidate(&self, hash: &ContentHash) {
        // If the queue is full, the next reader of the content detects the mismatch again.
        let _queue_full = self.commands.try_send(Command::Invalidate(*hash));
    }

    fn request_rescan(&self) {
        let _queue_full = self.commands.try_send(Command::Rescan(None));
    }

    /// Scans the share. Returns when all files found are hashed and the changes are in `events`.
    ///
    /// # Errors
    /// If the share is closed.
    pub async fn rescan_now(&self) -> Result<(), Unavailable> {
        self.call(|reply| Command::Rescan(Some(reply))).await
    }

    /// Waits until no file is being hashed.
    ///
    /// # Errors
    /// If the share is closed.
    pub async fn settled(&self) -> Result<(), Unavailable> {
        self.call(Command::Settled).await
    }

    /// Adds files that are already in the share to the index.
    ///
    /// # Errors
    /// If the share is closed.
    pub(crate) async fn adopt(&self, arrivals: Arrivals) -> Result<(), Unavailable> {
        if arrivals.files.is_empty() { Ok(()) } else { self.call(|reply| Command::Adopt(arrivals, reply)).await }
    }

    /// Runs `work` on a blocking thread and adds the resulting files to the index. Returns their metadata.
    async fn run_and_adopt<E: From<Unavailable> + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<Arrivals, E> + Send + 'static,
    ) -> Result<Vec<FileMeta>, E> {
        let arrivals = run_blocking(work).await??;
        let metas: Vec<_> = arrivals.files.iter().map(|entry| entry.meta.clone()).collect();
        self.adopt(arrivals).await?;
        Ok(metas)
    }

    async fn call(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) -> Result<(), Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Unavailable::Closed)?;
        answer.await.map_err(|_| Unavailable::Closed)
    }
}
