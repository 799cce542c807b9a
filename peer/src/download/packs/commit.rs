//! Makes files durable in groups: while one group is being committed, the next one gathers.

use shared::{error::Failure, limits};
use tokio::{sync::mpsc, time::timeout};

use super::{Batch, Ready, blocking};
use crate::store::Share;

/// Commits what comes in `queue`, until nobody sends any more.
pub(crate) async fn commit(share: &Share, batch: &Batch, mut queue: mpsc::Receiver<Ready>) {
    while let Some(first) = queue.recv().await {
        let group = gather(first, &mut queue).await;
        let (mut whose, mut staged) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        for Ready { place, staged: file, sources } in group {
            whose.push((place, sources));
            staged.push(file);
        }
        let many = batch.many.clone();
        let committed = match batch
            .run
            .meter
            .syncing(blocking(move || many.commit(staged)))
            .await
            .and_then(|committed| committed.map_err(Failure::from))
        {
            Ok(committed) => committed,
            Err(failure) => {
                for (place, _) in whose {
                    batch.fail(place, failure.clone());
                }
                continue;
            }
        };
        if let Err(failure) = share.adopt(committed.arrived).await {
            tracing::debug!(%failure, "files came to a share that is closed");
        }
        for ((place, sources), file) in whose.into_iter().zip(committed.files) {
            match file {
                Ok(path) => batch.complete(place, &path, sources),
                Err(error) => batch.fail(place, error.into()),
            }
        }
    }
}

/// The first file and those that come within a while, or until they are many.
async fn gather(first: Ready, queue: &mut mpsc::Receiver<Ready>) -> Vec<Ready> {
    let mut bytes = first.staged.size();
    let mut group = vec![first];
    let more = async {
        while group.len() < limits::COMMIT_FILES && bytes < limits::COMMIT_BYTES {
            let room = limits::COMMIT_FILES - group.len();
            let before = group.len();
            if queue.recv_many(&mut group, room).await == 0 {
                return;
            }
            bytes += group[before..].iter().map(|ready| ready.staged.size()).sum::<u64>();
        }
    };
    // What came until then is in the group.
    let _waited_enough = timeout(limits::COMMIT_WAIT, more).await;
    group
}
