//! One file, from the look at where it goes until it is there.

use std::sync::{Arc, atomic::Ordering};

use shared::{
    contact::Contact,
    content::FileMeta,
    error::{Failure, FailureCode},
    id::PeerId,
    limits,
    time::Clock,
};

use super::{Job, Run, engine::Engine};
use crate::{
    api::Downloaded,
    runtime::peer::Peer,
    store::{Destination, Partial, download::destination::Standing},
    transfer::{Brought, fetch, serve},
};

impl Peer {
    /// Whether just this file is at its destination already.
    ///
    /// # Errors
    /// When something else is, and may not be replaced.
    async fn is_there(&self, destination: &Destination, file: &FileMeta, run: &Run) -> Result<bool, Failure> {
        Ok(self.share.standing(destination, file.hash, file.size, run.force).await? == Standing::Identical)
    }

    /// Fetches a file that was not there a moment ago, and tells from whom it came. Another download of it, this peer's or another
    /// program's, may put it there first: then that is it.
    async fn fetch_content(
        &self,
        destination: &Destination,
        file: &FileMeta,
        owners: Vec<Contact>,
        sociable: bool,
        run: &Arc<Run>,
    ) -> Result<Vec<(PeerId, u64)>, Failure> {
        let content = self.downloads.lock_of(file.hash);
        let _alone = content.lock().await;
        let partial = self.share.begin(destination, file).await?;
        // Nobody else can be at it from here on, nor has it for long: who had was just done, or gave up.
        if self.is_there(destination, file, run).await? {
            partial.give_up();
            run.bytes_done.fetch_add(file.size, Ordering::Relaxed);
            return Ok(Vec::new());
        }
        // What is there of an earlier try counts from the start.
        run.bytes_done.fetch_add(partial.verified().bytes(file.size), Ordering::Relaxed);
        run.tell(file);
        let mut membership = None;
        let sources = match self.copy_from_share(file, &partial, run).await {
            Some(sources) => sources,
            None if partial.missing().is_empty() => Vec::new(),
            None => {
                let swarm = (sociable && file.size >= limits::MIN_SWARM_BYTES).then(|| {
                    let (joined, events) = self.swarms.join(file.clone(), &partial.verified());
                    (membership.insert(Arc::new(joined)).clone(), events)
                });
                let engine = Engine {
                    bulk: self.bulk.clone(),
                    pace: self.downloads.pace.clone(),
                    lookup: self.lookup.clone(),
                    all_bytes: self.downloads.bytes.clone(),
                    file: file.clone(),
                    partial: partial.clone(),
                    run: run.clone(),
                    swarm,
                };
                engine.fetch(owners).await?
            }
        };
        let finished = run.meter.syncing(self.share.finish(partial.clone(), destination, file, run.force)).await;
        match finished {
            // Copied there by somebody in the meantime.
            Err(failure)
                if failure.code == FailureCode::Exists
                    && matches!(self.is_there(destination, file, run).await, Ok(true)) =>
            {
                partial.give_up();
            }
            finished => drop(finished?),
        }
        if let (Some(membership), Some(_)) = (membership, destination.name()) {
            membership.shared();
        }
        Ok(sources)
    }

    /// Fetches a file, if it is not there.
    pub(crate) async fn fetch_one(&self, job: Job, run: Arc<Run>) -> Result<Downloaded, Failure> {
        let clock = Clock::start();
        let Job { file, owners, to, sociable } = job;
        let destination = self.share.destination(&file.name, to.as_deref())?;
        let sources = if self.is_there(&destination, &file, &run).await? {
            run.bytes_done.fetch_add(file.size, Ordering::Relaxed);
            Vec::new()
        } else {
            self.fetch_content(&destination, &file, owners, sociable, &run).await?
        };
        let path = destination.path().to_owned();
        run.files_done.fetch_add(1, Ordering::Relaxed);
        run.tell(&file);
        Ok(Downloaded { path, seconds: clock.now().since_origin().as_secs_f64(), sources, file })
    }

    /// Takes a content that this peer has under another name from its own disk, verified like any other; `None` when it
    /// does not have it, or not any more.
    async fn copy_from_share(&self, file: &FileMeta, partial: &Partial, run: &Arc<Run>) -> Option<Vec<(PeerId, u64)>> {
        let source = self.share.open_for_serving(&file.hash).ok().filter(|source| source.size == file.size)?;
        let (mut writer, reader) = tokio::io::duplex(limits::BULK_BATCH_BYTES);
        let missing = partial.missing();
        let progress = {
            let (run, file) = (run.clone(), file.clone());
            move |brought: Brought| {
                run.bytes_done.fetch_add(brought.new_bytes, Ordering::Relaxed);
                run.tell(&file);
            }
        };
        let ranges = missing.clone();
        let sent = async {
            let sent = serve(source, ranges, &mut writer, |_| {}).await;
            drop(writer);
            sent
        };
        let (sent, fetched) =
            tokio::join!(sent, fetch(reader, missing, partial, protocol::provider_health::PROVIDER_SILENCE, progress));
        match (sent, fetched) {
            (Ok(_), Ok(_)) => Some(vec![(self.id.clone(), file.size)]),
            (sent, fetched) => {
                tracing::debug!(?sent, ?fetched, file = %file.name, "the own copy cannot be used");
                None
            }
        }
    }
}
