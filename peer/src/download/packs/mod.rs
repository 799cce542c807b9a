//! Download of many small files: they travel in packs and become durable in groups.
//!
//! ```text
//!             ┌ present at the destination ─────────────────────────────────── done
//! jobs ─ prepare ─ present in the share under another name ─ copied ─┐
//!             └ one content, many names ─ pack engine ─ staged ──────┴─ commits, in groups ─ done
//! ```

mod batch;
mod commit;
mod engine;

use crate::download::params;
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    thread,
};

use futures::{StreamExt, stream};
use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    id::PeerId,
    net::Connections,
};
use tokio::sync::mpsc;

use super::{context::DownloadContext, error::FileError, job::Job};
use crate::{
    api::Downloaded,
    core_handle::Stopped,
    store::{Destination, IndexEntry, Inspected, Share, Staged, StagedBatch},
    transfer::{read_checked, throttle::Throttle},
};
use batch::{Batch, Content, FileIndex, Ready, Target, blocking};
use engine::PackEngine;

/// Fetches small files.
pub(crate) struct PackFetcher<'a> {
    pub(crate) me: &'a PeerId,
    pub(crate) share: &'a Share,
    /// Connections for bytes.
    pub(crate) bulk: &'a Connections,
    /// Rate limit of the bytes that this peer receives.
    pub(crate) throttle: &'a Throttle,
    /// Bytes that this peer has fetched since it started.
    pub(crate) all_bytes: &'a Arc<AtomicU64>,
}

/// A file to fetch, its destination and its providers.
type Wanted = (FileIndex, Destination, Vec<Contact>);

impl PackFetcher<'_> {
    /// Fetches files of at most `MAX_PACKED_FILE_BYTES` each. Returns the outcome of each, in their order.
    ///
    /// A file that fails does not affect the others; a full disk ends the whole download. `outside` is the folder
    /// outside of the share that takes the files, if there is one.
    pub(crate) async fn fetch(
        &self,
        jobs: Vec<Job>,
        outside: Option<&Path>,
        context: Arc<DownloadContext>,
    ) -> Vec<Result<Downloaded, FileError>> {
        let staging = self.share.staged_batch(outside, context.force);
        let files = jobs.iter().map(|job| job.file.clone()).collect();
        let batch = Arc::new(Batch::new(self.me.clone(), context, files, staging));
        let (ready, queue) = mpsc::channel(2 * params::COMMIT_FILES);
        let fetched = self.fetch_contents(jobs, &batch, ready);
        let (fetched, ()) = tokio::join!(fetched, commit::commit(self.share, &batch, queue));
        batch.take_outcomes(&fetched.err().unwrap_or(FileError::Stopping(Stopped)))
    }

    async fn fetch_contents(
        &self,
        jobs: Vec<Job>,
        batch: &Arc<Batch>,
        ready: mpsc::Sender<Ready>,
    ) -> Result<(), FileError> {
        let contents = self.prepare(jobs, batch, &ready).await?;
        let files = contents.iter().map(|content| content.targets.len() as u64).sum();
        let bytes = contents.iter().map(|content| content.size * content.targets.len() as u64).sum();
        let staging = batch.staging.clone();
        blocking(move || staging.check_space(files, bytes)).await?.map_err(FileError::store)?;
        let engine = PackEngine {
            bulk: self.bulk.clone(),
            throttle: self.throttle.clone(),
            all_bytes: self.all_bytes.clone(),
            batch: batch.clone(),
            contents: Arc::new(contents),
            ready,
        };
        engine.fetch().await
    }

    /// Completes the files that are present, copies those that are in the share under another name, and returns the
    /// contents of the others.
    async fn prepare(
        &self,
        jobs: Vec<Job>,
        batch: &Arc<Batch>,
        ready: &mpsc::Sender<Ready>,
    ) -> Result<Vec<Content>, FileError> {
        let mut chunks = Vec::new();
        let mut rest = jobs.into_iter().enumerate();
        loop {
            let chunk: Vec<(FileIndex, Job)> = rest.by_ref().take(params::INSPECTED_AT_A_TIME).collect();
            if chunk.is_empty() {
                break;
            }
            chunks.push(chunk);
        }
        let prepared = stream::iter(chunks).map(|chunk| {
            let (share, batch, ready) = (self.share.clone(), batch.clone(), ready.clone());
            blocking(move || prepare_chunk(chunk, &share, &batch, &ready))
        });
        let mut prepared = prepared.buffered(thread::available_parallelism().map_or(1, usize::from));
        let mut contents = Contents::default();
        let mut found = Vec::new();
        while let Some(chunk) = prepared.next().await {
            let (wanted, known) = chunk?;
            found.extend(known);
            wanted.into_iter().for_each(|wanted| contents.add(&batch.files, wanted));
        }
        self.share.adopt(StagedBatch::found(found)).await.map_err(FileError::store)?;
        Ok(contents.list)
    }
}

/// Contents to fetch, each once however many files have it.
#[derive(Default)]
struct Contents {
    list: Vec<Content>,
    by_hash: HashMap<(ContentHash, u64), usize>,
}

impl Contents {
    fn add(&mut self, files: &[FileMeta], (file, destination, providers): Wanted) {
        let FileMeta { hash, size, .. } = files[file];
        let list = &mut self.list;
        let at = *self.by_hash.entry((hash, size)).or_insert_with(|| {
            list.push(Content::new(hash, size));
            list.len() - 1
        });
        let content = &mut list[at];
        content.targets.push(Target { file, destination });
        for provider in providers {
            if !content.providers.iter().any(|known| known.peer == provider.peer) {
                content.providers.push(provider);
            }
        }
    }
}

/// Blocking part of [`PackFetcher::prepare`] for some files. Returns those to fetch, and entries that the index lacks.
fn prepare_chunk(
    jobs: Vec<(FileIndex, Job)>,
    share: &Share,
    batch: &Batch,
    ready: &mpsc::Sender<Ready>,
) -> (Vec<Wanted>, Vec<IndexEntry>) {
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    for (index, Job { file, providers, to, .. }) in jobs {
        match batch.staging.inspect(&file, to.as_deref()) {
            Err(error) => batch.fail(index, FileError::store(error)),
            Ok(Inspected::Identical(destination, known)) => {
                found.extend(known);
                batch.add_bytes(index);
                batch.complete(index, destination.path(), Vec::new());
            }
            Ok(Inspected::Wanted(destination)) => match copy_from_share(share, batch, &destination, &file) {
                Some(Ok(staged)) => {
                    batch.add_bytes(index);
                    let sources = vec![(batch.me.clone(), file.size)];
                    if ready.blocking_send(Ready { file: index, staged, sources }).is_err() {
                        // The download was cancelled.
                        return (wanted, found);
                    }
                }
                Some(Err(error)) => batch.fail(index, error),
                None => wanted.push((index, destination, providers)),
            },
        }
    }
    (wanted, found)
}

/// Stages a content that the share has under another name; `None` if the share does not have it (any more).
fn copy_from_share(
    share: &Share,
    batch: &Batch,
    destination: &Destination,
    file: &FileMeta,
) -> Option<Result<Staged, FileError>> {
    if !share.has_content(&file.hash) {
        return None;
    }
    let (source, size) = share.open_content(&file.hash).ok()?;
    if size != file.size {
        return None;
    }
    let mut content = vec![0; usize::try_from(size).ok()?];
    match read_checked(&source, &file.hash, &mut content) {
        Ok(()) => Some(batch.staging.stage(destination, file, &content).map_err(FileError::store)),
        Err(error) => {
            tracing::debug!(%error, file = %file.name, "cannot copy the content from the share");
            None
        }
    }
}
