//! Makes files durable in groups: while one group is being committed, the next one gathers.

use crate::download::params;
use tokio::{sync::mpsc, time::timeout};

use super::batch::{Batch, Ready, blocking};
use crate::{download::error::FileError, store::Share};

/// Commits the files that arrive in `queue` until all its senders are gone.
pub(crate) async fn commit(share: &Share, batch: &Batch, mut queue: mpsc::Receiver<Ready>) {
    while let Some(first) = queue.recv().await {
        let group = gather(first, &mut queue).await;
        commit_group(share, batch, group).await;
    }
}

async fn commit_group(share: &Share, batch: &Batch, group: Vec<Ready>) {
    let (mut files, mut staged) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
    for ready in group {
        files.push((ready.file, ready.sources));
        staged.push(ready.staged);
    }
    let staging = batch.staging.clone();
    let committed = batch.context.profile.count_sync(blocking(move || staging.commit(staged))).await;
    let committed = match committed.and_then(|committed| committed.map_err(FileError::store)) {
        Ok(committed) => committed,
        Err(error) => {
            for (file, _) in files {
                batch.fail(file, error.clone());
            }
            return;
        }
    };
    if let Err(error) = share.adopt(committed.arrived).await {
        tracing::debug!(%error, "cannot add the files to the index of a closed share");
    }
    for ((file, sources), committed) in files.into_iter().zip(committed.files) {
        match committed {
            Ok(path) => batch.complete(file, &path, sources),
            Err(error) => batch.fail(file, FileError::store(error)),
        }
    }
}

/// Gathers the first file and those that arrive within [`params::COMMIT_WAIT`], up to [`params::COMMIT_FILES`] and
/// [`params::COMMIT_BYTES`].
async fn gather(first: Ready, queue: &mut mpsc::Receiver<Ready>) -> Vec<Ready> {
    let mut bytes = first.staged.size();
    let mut group = vec![first];
    let more = async {
        while group.len() < params::COMMIT_FILES && bytes < params::COMMIT_BYTES {
            let before = group.len();
            if queue.recv_many(&mut group, params::COMMIT_FILES - before).await == 0 {
                return;
            }
            bytes += group[before..].iter().map(|ready| ready.staged.size()).sum::<u64>();
        }
    };
    // After the timeout, the group contains the files that have arrived.
    let _ = timeout(params::COMMIT_WAIT, more).await;
    group
}
