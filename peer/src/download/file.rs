//! Download of one file, from the check of its destination until it is durable there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
};

use protocol::provider_health::PROVIDER_SILENCE;
use shared::{
    content::{ContentHash, FileMeta},
    id::PeerId,
    net::Connections,
    time::Clock,
};

use super::{
    context::DownloadContext,
    engine::{Engine, Transfer},
    error::FileError,
    job::Job,
};
use crate::{
    api::Downloaded,
    discovery::Discovery,
    store::{Destination, Partial, Share, download::destination::Occupancy, error::FinalizeError},
    swarm::Swarms,
    transfer::{Written, fetch, serve, throttle::Throttle},
};

/// One lock for each content that is being fetched. A download of the same content under another name waits for the
/// first, then copies it from the share.
#[derive(Default)]
pub(crate) struct ContentLocks(Mutex<HashMap<ContentHash, Weak<tokio::sync::Mutex<()>>>>);

impl ContentLocks {
    /// Returns the lock of a content, the same for all callers while one of them holds it.
    fn of(&self, hash: ContentHash) -> Arc<tokio::sync::Mutex<()>> {
        let mut contents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contents.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = contents.get(&hash).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        contents.insert(hash, Arc::downgrade(&lock));
        lock
    }
}

/// Fetches files that do not travel in packs.
pub(crate) struct FileFetcher<'a> {
    pub(crate) me: &'a PeerId,
    pub(crate) share: &'a Share,
    /// Connections for bytes.
    pub(crate) bulk: &'a Connections,
    pub(crate) swarms: &'a Swarms,
    pub(crate) discovery: &'a Discovery,
    /// Rate limit of the bytes that this peer receives.
    pub(crate) throttle: &'a Throttle,
    /// Bytes that this peer has fetched since it started.
    pub(crate) all_bytes: &'a Arc<AtomicU64>,
    pub(crate) locks: &'a ContentLocks,
}

impl FileFetcher<'_> {
    /// Fetches a file unless it is at its destination.
    pub(crate) async fn fetch(&self, job: Job, context: &Arc<DownloadContext>) -> Result<Downloaded, FileError> {
        let clock = Clock::start();
        let destination = self.share.destination(&job.file.name, job.to.as_deref()).map_err(FileError::store)?;
        let file = job.file.clone();
        let sources = if self.is_present(&destination, &file, context).await? {
            context.add_bytes(&file, file.size);
            Vec::new()
        } else {
            self.fetch_to(&destination, job, context).await?
        };
        let path = destination.path().to_owned();
        context.add_file(&file);
        Ok(Downloaded { path, seconds: clock.now().since_origin().as_secs_f64(), sources, file })
    }

    /// Returns true if the file is at its destination.
    ///
    /// # Errors
    /// If another file is there and may not be replaced.
    async fn is_present(
        &self,
        destination: &Destination,
        file: &FileMeta,
        context: &DownloadContext,
    ) -> Result<bool, FileError> {
        let standing = self.share.occupancy(destination, file.hash, file.size, context.force).await;
        Ok(standing.map_err(FileError::store)? == Occupancy::Identical)
    }

    /// Fetches a file that was not at its destination a moment ago. Returns the bytes that each source delivered, none
    /// if another download, of this process or another one, has completed the file in the meantime.
    async fn fetch_to(
        &self,
        destination: &Destination,
        job: Job,
        context: &Arc<DownloadContext>,
    ) -> Result<Vec<(PeerId, u64)>, FileError> {
        let Job { file, providers, may_ask_receivers, .. } = job;
        let lock = self.locks.of(file.hash);
        let _guard = lock.lock().await;
        let partial = self.share.begin(destination, &file).await.map_err(FileError::store)?;
        // From here on, the lock of the partial file excludes other downloads. Its previous holder may have completed
        // the file.
        if self.is_present(destination, &file, context).await? {
            partial.abandon();
            context.add_bytes(&file, file.size);
            return Ok(Vec::new());
        }
        // Bytes of an earlier attempt count from the start.
        context.add_bytes(&file, partial.verified().bytes(file.size));
        let mut membership = None;
        let sources = if partial.missing().is_empty() {
            Vec::new()
        } else if let Some(copied) = copy_from_share(self.share, self.me, &file, &partial, context).await {
            copied
        } else {
            let swarm = (may_ask_receivers && file.size >= crate::discovery::params::MIN_SWARM_BYTES).then(|| {
                let (joined, events) = self.swarms.join(file.clone(), &partial.verified());
                (membership.insert(Arc::new(joined)).clone(), events)
            });
            let transfer = self.transfer(&file, &partial, context);
            Engine::new(transfer, swarm).fetch(providers).await?
        };
        self.finish(destination, &file, partial, context).await?;
        if let (Some(membership), Some(_)) = (membership, destination.name()) {
            membership.shared();
        }
        Ok(sources)
    }

    fn transfer(&self, file: &FileMeta, partial: &Partial, context: &Arc<DownloadContext>) -> Transfer {
        Transfer {
            bulk: self.bulk.clone(),
            throttle: self.throttle.clone(),
            discovery: self.discovery.clone(),
            all_bytes: self.all_bytes.clone(),
            file: file.clone(),
            partial: partial.clone(),
            context: context.clone(),
        }
    }

    /// Makes a complete partial file durable at its destination. Also succeeds if another program has written the same
    /// file there.
    async fn finish(
        &self,
        destination: &Destination,
        file: &FileMeta,
        partial: Partial,
        context: &DownloadContext,
    ) -> Result<(), FileError> {
        let finish = self.share.finish(partial.clone(), destination, file, context.force);
        match context.profile.count_sync(finish).await {
            Ok(_) => Ok(()),
            Err(FinalizeError::Exists(_)) if matches!(self.is_present(destination, file, context).await, Ok(true)) => {
                partial.abandon();
                Ok(())
            }
            Err(error) => Err(FileError::store(error)),
        }
    }
}

/// Copies the missing groups of a content that the share has under another name, and verifies them. Returns this peer
/// as the source of the copied bytes; `None` if the share does not have the content (any more).
async fn copy_from_share(
    share: &Share,
    me: &PeerId,
    file: &FileMeta,
    partial: &Partial,
    context: &Arc<DownloadContext>,
) -> Option<Vec<(PeerId, u64)>> {
    let source = share.open_for_serving(&file.hash).ok().filter(|source| source.size == file.size)?;
    let (mut writer, reader) = tokio::io::duplex(crate::transfer::params::BULK_BATCH_BYTES);
    let missing = partial.missing();
    let progress = {
        let (context, file) = (context.clone(), file.clone());
        move |written: Written| context.add_bytes(&file, written.new_bytes)
    };
    let ranges = missing.clone();
    let send = async {
        let sent = serve(source, ranges, &mut writer, |_| {}).await;
        drop(writer);
        sent
    };
    let (sent, fetched) = tokio::join!(send, fetch(reader, missing, partial, PROVIDER_SILENCE, progress));
    match (sent, fetched) {
        (Ok(_), Ok(bytes)) => Some(vec![(me.clone(), bytes)]),
        (sent, fetched) => {
            tracing::debug!(?sent, ?fetched, file = %file.name, "cannot copy the content from the share");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::{group_ranges::GroupRanges, limits};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{api::ProgressSink, download::profile::DownloadProfile, store::ShareOptions};

    #[tokio::test]
    async fn local_copy_after_resume_counts_only_the_bytes_copied_now() {
        const SIZE: u64 = 8 * limits::GROUP_BYTES;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("share");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("original"), vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
        let (changes, _kept) = mpsc::channel(100);
        let options = ShareOptions { racy_window: std::time::Duration::ZERO, ..ShareOptions::default() };
        let share = Share::open(&folder, &dir.path().join("state"), options, changes).await.unwrap();
        share.settled().await.unwrap();
        let original = share.list().remove(0);
        let file = FileMeta { name: "copy".parse().unwrap(), ..original };
        let destination = share.destination(&file.name, None).unwrap();
        let partial = share.begin(&destination, &file).await.unwrap();

        let first = GroupRanges::requested(&[(0, 3)], SIZE).unwrap();
        let mut encoded = Vec::new();
        serve(share.open_for_serving(&file.hash).unwrap(), first.clone(), &mut encoded, |_| {}).await.unwrap();
        fetch(encoded.as_slice(), first, &partial, PROVIDER_SILENCE, |_| {}).await.unwrap();

        let profile = DownloadProfile::new(Arc::default(), Vec::new(), false);
        let context =
            Arc::new(DownloadContext::new("copy".to_owned(), false, profile, (SIZE, 1), ProgressSink::none()));
        let me: PeerId = "me".parse().unwrap();
        let sources = copy_from_share(&share, &me, &file, &partial, &context).await.unwrap();
        assert_eq!(sources, [(me, 5 * limits::GROUP_BYTES)]);
        assert!(partial.missing().is_empty());
    }
}
