//! ContentAudit at what this peer sent, when a receiver says that it was wrong.
//!
//! Any member can say so, true or not, as often as it likes. What a look costs is bounded by what it was sent: a look reads
//! nothing that did not go out on the stream, no more than [`limits::MAX_LOOK_BYTES`], holds no upload's place, and ends when the
//! peer does.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use shared::{content::ContentHash, group_ranges::GroupRanges, limits};
use tokio::task;

use crate::{store::Share, transfer::is_right};

/// The looks of one peer. They end, with nothing said, when this is dropped.
pub(crate) struct ContentAudit {
    share: Share,
    running: Arc<Mutex<HashSet<ContentHash>>>,
    stop: Arc<AtomicBool>,
}

/// A content is being looked at, until this is dropped.
pub(crate) struct Looking {
    hash: ContentHash,
    running: Arc<Mutex<HashSet<ContentHash>>>,
}

impl ContentAudit {
    pub(crate) fn new(share: Share) -> Self {
        Self { share, running: Arc::default(), stop: Arc::default() }
    }

    /// Hashes what went out of `ranges` when `sent` bytes of their encoding were handed to the stream, on a thread of its own; if
    /// that is wrong, the share doubts the content. Nothing happens while the content is being looked at, or too many others
    /// are: what is wrong is said again by the next who gets it.
    pub(crate) fn look_at(&self, hash: ContentHash, ranges: &GroupRanges, sent: u64) {
        let Some(looking) = self.begin(hash) else { return };
        let sent = what_went_out(ranges, sent);
        let (share, stop) = (self.share.clone(), self.stop.clone());
        // Not waited for: the connection may be gone before it has ended.
        let _thread = task::spawn_blocking(move || {
            let looking = looking;
            let Ok(source) = share.open_for_serving(&looking.hash) else { return };
            if is_right(&source, &sent, &stop) == Some(false) {
                tracing::warn!(hash = ?looking.hash, "a shared file is not what it was; it is hashed again");
                share.suspect(&looking.hash);
            }
        });
    }

    pub(crate) fn begin(&self, hash: ContentHash) -> Option<Looking> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = running.len() < limits::MAX_LOOKS && running.insert(hash);
        begins.then(|| Looking { hash, running: self.running.clone() })
    }

    /// Ends those that run; they find nothing out.
    pub(crate) fn end(&self) {
        // A runtime that shuts down waits for blocking threads.
        self.stop.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for ContentAudit {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.hash);
    }
}

/// The first groups of `ranges`, as many as there can be in `sent` bytes: a batch more, of which a part may have gone out
/// before the stream broke.
fn what_went_out(ranges: &GroupRanges, sent: u64) -> GroupRanges {
    let bytes = sent.saturating_add(limits::BULK_BATCH_BYTES as u64).min(limits::MAX_LOOK_BYTES);
    ranges.first(bytes.div_ceil(limits::GROUP_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_is_what_went_out_and_bounded() {
        let size = 100 << 30;
        let all = GroupRanges::all(size);
        let looked_at = |sent| what_went_out(&all, sent).bytes(size);
        assert_eq!(looked_at(0), limits::BULK_BATCH_BYTES as u64);
        assert_eq!(looked_at(1 << 20), (1 << 20) + limits::BULK_BATCH_BYTES as u64);
        for sent in [limits::MAX_LOOK_BYTES, size, u64::MAX] {
            assert_eq!(looked_at(sent), limits::MAX_LOOK_BYTES, "of {sent}");
        }
        let some = GroupRanges::requested(&[(3, 5), (900, 1000)], size).unwrap();
        let first = GroupRanges::requested(&[(3, 5), (900, 915)], size).unwrap();
        assert_eq!(what_went_out(&some, limits::GROUP_BYTES), first);
        assert_eq!(what_went_out(&some, u64::MAX), some);
    }
}
