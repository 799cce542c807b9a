//! Many small files: looked at, fetched in packs, made durable in groups.
//!
//! ```text
//!          ┌ there already ─────────────────────────────────────────────────── done
//! jobs ─ look ─ in the share under another name ─ copied ─┐
//!          └ one content, many names ─ packer ─ staged ───┴─ commits, in groups ─ done
//! ```

mod commit;
mod engine;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{StreamExt, stream};
use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    error::Failure,
    id::PeerId,
    limits,
    time::Clock,
};
use tokio::sync::mpsc;

use super::{Job, Run};
use crate::{
    api::Downloaded,
    core_handle::Stopped,
    discovery::stopping,
    runtime::peer::Peer,
    store::{Destination, Inspected, Share, Staged, StagedBatch},
    transfer::read_checked,
};
use engine::Packer;

/// One small file, by its place among those of a download.
type Place = usize;

/// A content to be fetched, and the files that it is for.
struct Content {
    hash: ContentHash,
    size: u64,
    targets: Vec<Target>,
    owners: Vec<Contact>,
    /// Whether somebody delivered it: what comes a second time is dropped.
    taken: AtomicBool,
}

struct Target {
    place: Place,
    destination: Destination,
}

/// A file that lies in a stage, and who sent its bytes.
struct Ready {
    place: Place,
    staged: Staged,
    sources: Vec<(PeerId, u64)>,
}

/// What the parts of one such download share.
struct Batch {
    me: PeerId,
    run: Arc<Run>,
    clock: Clock,
    files: Vec<FileMeta>,
    outcomes: Mutex<Vec<Option<Result<Downloaded, Failure>>>>,
    many: StagedBatch,
}

impl Batch {
    fn end(&self, place: Place, outcome: Result<Downloaded, Failure>) {
        if let Some(end) = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(place) {
            end.get_or_insert(outcome);
        }
    }

    fn fail(&self, place: Place, failure: Failure) {
        self.end(place, Err(failure));
    }

    /// A file is in its place, durably.
    fn complete(&self, place: Place, path: &Path, sources: Vec<(PeerId, u64)>) {
        let file = self.files[place].clone();
        self.run.files_done.fetch_add(1, Ordering::Relaxed);
        self.run.tell(&file);
        let seconds = self.clock.now().since_origin().as_secs_f64();
        self.end(place, Ok(Downloaded { path: path.to_path_buf(), seconds, sources, file }));
    }

    /// Bytes of a file are here and verified.
    fn came(&self, place: Place) {
        let file = &self.files[place];
        self.run.bytes_done.fetch_add(file.size, Ordering::Relaxed);
        self.run.tell(file);
    }
}

impl Peer {
    /// Fetches files of at most `limits::MAX_PACKED_FILE_BYTES` each; what became of each, in their order.
    ///
    /// A file that fails does not keep the others from being fetched; a disk that is full does.
    pub(crate) async fn fetch_small(
        &self,
        jobs: Vec<Job>,
        outside: Option<&Path>,
        run: Arc<Run>,
    ) -> Vec<Result<Downloaded, Failure>> {
        let many = self.share.staged_batch(outside, run.force);
        let batch = Arc::new(Batch {
            me: self.id.clone(),
            run,
            clock: Clock::start(),
            files: jobs.iter().map(|job| job.file.clone()).collect(),
            outcomes: Mutex::new(jobs.iter().map(|_| None).collect()),
            many,
        });
        let (ready, queue) = mpsc::channel(2 * limits::COMMIT_FILES);
        let fetched = async {
            let contents = self.look(jobs, &batch, &ready).await?;
            let files = contents.iter().map(|content| content.targets.len() as u64).sum();
            let bytes = contents.iter().map(|content| content.size * content.targets.len() as u64).sum();
            let many = batch.many.clone();
            blocking(move || many.check_space(files, bytes)).await??;
            let packer = Packer {
                bulk: self.bulk.clone(),
                pace: self.downloads.pace.clone(),
                all_bytes: self.downloads.bytes.clone(),
                batch: batch.clone(),
                contents: Arc::new(contents),
                ready,
            };
            packer.fetch().await
        };
        let (fetched, ()) = tokio::join!(fetched, commit::commit(&self.share, &batch, queue));
        let rest = fetched.err().unwrap_or_else(|| stopping(Stopped));
        let outcomes = std::mem::take(&mut *batch.outcomes.lock().unwrap_or_else(PoisonError::into_inner));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(rest.clone()))).collect()
    }

    /// Finds out what is there already, copies what is in the share under other names, and returns what is to be fetched.
    async fn look(
        &self,
        jobs: Vec<Job>,
        batch: &Arc<Batch>,
        ready: &mpsc::Sender<Ready>,
    ) -> Result<Vec<Content>, Failure> {
        let mut chunks = Vec::new();
        let mut rest = jobs.into_iter().enumerate();
        loop {
            let chunk: Vec<(Place, Job)> = rest.by_ref().take(limits::LOOKED_AT_A_TIME).collect();
            if chunk.is_empty() {
                break;
            }
            chunks.push(chunk);
        }
        let looked = stream::iter(chunks).map(|chunk| {
            let (share, batch, ready) = (self.share.clone(), batch.clone(), ready.clone());
            blocking(move || look_at_all(chunk, &share, &batch, &ready))
        });
        let mut looked = looked.buffered(std::thread::available_parallelism().map_or(1, usize::from));
        let mut contents: Vec<Content> = Vec::new();
        let mut by_hash: HashMap<(ContentHash, u64), usize> = HashMap::new();
        let mut found = Vec::new();
        while let Some(chunk) = looked.next().await {
            let (wanted, known) = chunk?;
            found.extend(known);
            for (place, destination, owners) in wanted {
                let FileMeta { hash, size, .. } = batch.files[place];
                let at = *by_hash.entry((hash, size)).or_insert_with(|| {
                    contents.push(Content {
                        hash,
                        size,
                        targets: Vec::new(),
                        owners: Vec::new(),
                        taken: AtomicBool::new(false),
                    });
                    contents.len() - 1
                });
                let content = &mut contents[at];
                content.targets.push(Target { place, destination });
                for owner in owners {
                    if !content.owners.iter().any(|known| known.peer == owner.peer) {
                        content.owners.push(owner);
                    }
                }
            }
        }
        self.share.adopt(StagedBatch::found(found)).await?;
        Ok(contents)
    }
}

type Wanted = (Place, Destination, Vec<Contact>);

/// The blocking part of [`Peer::look`] for some files: those that are to be fetched, and what the index is to know.
fn look_at_all(
    jobs: Vec<(Place, Job)>,
    share: &Share,
    batch: &Batch,
    ready: &mpsc::Sender<Ready>,
) -> (Vec<Wanted>, Vec<crate::store::IndexEntry>) {
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    for (place, Job { file, owners, to, .. }) in jobs {
        match batch.many.inspect(&file, to.as_deref()) {
            Err(error) => batch.fail(place, error.into()),
            Ok(Inspected::Identical(destination, known)) => {
                found.extend(known);
                batch.came(place);
                batch.complete(place, destination.path(), Vec::new());
            }
            Ok(Inspected::Wanted(destination)) => match copy_from_share(share, batch, &destination, &file) {
                Some(Ok(staged)) => {
                    batch.came(place);
                    let sources = vec![(batch.me.clone(), file.size)];
                    if ready.blocking_send(Ready { place, staged, sources }).is_err() {
                        // The download was given up.
                        return (wanted, found);
                    }
                }
                Some(Err(failure)) => batch.fail(place, failure),
                None => wanted.push((place, destination, owners)),
            },
        }
    }
    (wanted, found)
}

/// Takes a content that this peer has under another name from its own disk; `None` when it does not have it, or not any more.
fn copy_from_share(
    share: &Share,
    batch: &Batch,
    destination: &Destination,
    file: &FileMeta,
) -> Option<Result<Staged, Failure>> {
    if !share.has_content(&file.hash) {
        return None;
    }
    let (source, size) = share.open_content(&file.hash).ok()?;
    if size != file.size {
        return None;
    }
    let mut content = vec![0; usize::try_from(size).ok()?];
    match read_checked(&source, &file.hash, &mut content) {
        Ok(()) => Some(batch.many.stage(destination, file, &content).map_err(Failure::from)),
        Err(why) => {
            tracing::debug!(%why, file = %file.name, "the own copy cannot be used");
            None
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    Ok(crate::store::error::run_blocking(work).await?)
}
