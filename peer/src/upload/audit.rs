//! Audit of a shared content after a receiver reports that the data does not match the hash tree.
//!
//! Any member can report that, true or not, any number of times. The cost of an audit is bounded by the cost of the
//! upload: it reads only what was sent on the stream, at most [`params::MAX_AUDIT_BYTES`], holds no upload slot, and
//! ends with the peer.

use crate::upload::params;
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

/// Audits of one peer. Dropping it stops them without a result.
pub(crate) struct ContentAudit {
    share: Share,
    running: Arc<Mutex<HashSet<ContentHash>>>,
    stop: Arc<AtomicBool>,
}

/// Audit in progress, at most one for each content. Ends on drop.
pub(crate) struct RunningAudit {
    hash: ContentHash,
    running: Arc<Mutex<HashSet<ContentHash>>>,
}

impl ContentAudit {
    pub(crate) fn new(share: Share) -> Self {
        Self { share, running: Arc::default(), stop: Arc::default() }
    }

    /// Hashes, on a separate thread, the part of `ranges` that `sent` bytes of their encoding cover. If it does not
    /// match the hash tree, the share hashes the file again.
    ///
    /// Does nothing while the content is audited or [`params::MAX_AUDITS`] other audits run: the next receiver of wrong
    /// data reports it again.
    pub(crate) fn start(&self, hash: ContentHash, ranges: &GroupRanges, sent: u64) {
        let Some(audit) = self.begin(hash) else { return };
        let sent = sent_ranges(ranges, sent);
        let (share, stop) = (self.share.clone(), self.stop.clone());
        // Detached: the audit can outlive the connection.
        let _thread = task::spawn_blocking(move || {
            let audit = audit;
            let Ok(source) = share.open_for_serving(&audit.hash) else { return };
            if is_right(&source, &sent, &stop) == Some(false) {
                tracing::warn!(hash = ?audit.hash, "a shared file has changed; hashing it again");
                share.invalidate(&audit.hash);
            }
        });
    }

    pub(crate) fn begin(&self, hash: ContentHash) -> Option<RunningAudit> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = running.len() < params::MAX_AUDITS && running.insert(hash);
        begins.then(|| RunningAudit { hash, running: self.running.clone() })
    }

    /// Stops the running audits without a result.
    pub(crate) fn stop(&self) {
        // A runtime that shuts down waits for its blocking threads.
        self.stop.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for ContentAudit {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Drop for RunningAudit {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.hash);
    }
}

/// Returns the first groups of `ranges` that `sent` bytes can contain, and one batch more: a part of it may have been
/// sent before the stream failed.
fn sent_ranges(ranges: &GroupRanges, sent: u64) -> GroupRanges {
    let bytes = sent.saturating_add(crate::transfer::params::BULK_BATCH_BYTES as u64).min(params::MAX_AUDIT_BYTES);
    ranges.first(bytes.div_ceil(limits::GROUP_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audited_ranges_cover_what_was_sent_within_the_limit() {
        let size = 100 << 30;
        let all = GroupRanges::all(size);
        let audited = |sent| sent_ranges(&all, sent).bytes(size);
        assert_eq!(audited(0), crate::transfer::params::BULK_BATCH_BYTES as u64);
        assert_eq!(audited(1 << 20), (1 << 20) + crate::transfer::params::BULK_BATCH_BYTES as u64);
        for sent in [params::MAX_AUDIT_BYTES, size, u64::MAX] {
            assert_eq!(audited(sent), params::MAX_AUDIT_BYTES, "of {sent}");
        }
        let some = GroupRanges::requested(&[(3, 5), (900, 1000)], size).unwrap();
        let first = GroupRanges::requested(&[(3, 5), (900, 915)], size).unwrap();
        assert_eq!(sent_ranges(&some, limits::GROUP_BYTES), first);
        assert_eq!(sent_ranges(&some, u64::MAX), some);
    }
}
