//! Running requests of a download, and the progress of each.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use protocol::swarm::{ProviderId, RequestId};
use shared::{content::FileMeta, limits};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{context::DownloadContext, request::TaskReport};
use crate::transfer::Written;

/// Shared state by which the engine ends a request.
#[derive(Debug, Clone)]
pub(crate) struct RequestHandle {
    /// Cancelled to end the request.
    pub(crate) stop: CancellationToken,
    /// First group that the request need not fetch any more.
    end: Arc<AtomicU64>,
}

/// All running requests of a download.
#[derive(Debug, Default)]
pub(crate) struct RunningRequests(HashMap<RequestId, RequestHandle>);

impl RunningRequests {
    /// Adds a request for groups before `end`.
    pub(crate) fn add(&mut self, request: RequestId, end: u64) -> RequestHandle {
        let handle = RequestHandle { stop: CancellationToken::new(), end: Arc::new(AtomicU64::new(end)) };
        self.0.insert(request, handle.clone());
        handle
    }

    /// Ends a request before the group `at_group`.
    pub(crate) fn truncate(&self, request: RequestId, at_group: u64) {
        if let Some(handle) = self.0.get(&request) {
            handle.end.fetch_min(at_group, Ordering::Relaxed);
        }
    }

    /// Ends a request now.
    pub(crate) fn cancel(&mut self, request: RequestId) {
        if let Some(handle) = self.0.remove(&request) {
            handle.stop.cancel();
        }
    }

    /// Removes a request that has ended.
    pub(crate) fn remove(&mut self, request: RequestId) {
        self.0.remove(&request);
    }

    /// Returns the number of providers that have a running request.
    pub(crate) fn providers(&self) -> usize {
        self.0.keys().map(|request| request.provider).collect::<BTreeSet<ProviderId>>().len()
    }
}

/// Counts the bytes of one request and reports its verified groups. Used by the thread that writes.
pub(crate) struct RequestProgress {
    pub(crate) request: RequestId,
    pub(crate) groups: Range<u64>,
    pub(crate) handle: RequestHandle,
    pub(crate) context: Arc<DownloadContext>,
    pub(crate) file: FileMeta,
    /// Bytes that this peer has fetched since it started.
    pub(crate) all_bytes: Arc<AtomicU64>,
    /// Bytes that the provider delivered first.
    pub(crate) delivered: Arc<AtomicU64>,
    pub(crate) reports: mpsc::Sender<TaskReport>,
}

impl RequestProgress {
    /// Returns the callback for writes. It stops a truncated request at its new end, and blocks while the report queue
    /// of the engine is full.
    pub(crate) fn into_callback(self) -> impl FnMut(Written) + Send + 'static {
        let Self { request, groups, handle, context, file, all_bytes, delivered, reports } = self;
        let start = groups.start * limits::GROUP_BYTES;
        let (mut bytes_verified, mut next, mut unreported) = (0, groups.start, 0);
        move |Written { bytes, new_bytes }| {
            bytes_verified += bytes;
            unreported += new_bytes;
            all_bytes.fetch_add(new_bytes, Ordering::Relaxed);
            delivered.fetch_add(new_bytes, Ordering::Relaxed);
            context.add_bytes(&file, new_bytes);
            let reached = start + bytes_verified;
            let verified = if reached >= file.size { groups.end } else { reached / limits::GROUP_BYTES };
            if verified > next {
                let groups = next..verified;
                next = verified;
                let new_bytes = std::mem::take(&mut unreported);
                // Fails only if the engine has ended.
                let _ = reports.blocking_send(TaskReport::Verified { request, groups, new_bytes });
            }
            if next >= handle.end.load(Ordering::Relaxed) && next < groups.end {
                handle.stop.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::content::ContentHash;

    use super::*;
    use crate::{
        api::ProgressSink,
        download::{profile::DownloadProfile, request::run_request},
    };

    #[tokio::test]
    async fn truncated_request_is_no_source_once_its_last_group_is_written() {
        let file = FileMeta {
            name: "a".parse().unwrap(),
            size: 100 * limits::GROUP_BYTES,
            hash: ContentHash([1; 32]),
            mtime_micros: 0,
            executable: false,
        };
        let profile = DownloadProfile::new(Arc::default(), Vec::new(), false);
        let context =
            Arc::new(DownloadContext::new("a".to_owned(), false, profile, (file.size, 1), ProgressSink::none()));
        let (reports, mut received) = mpsc::channel(10);
        let request = RequestId { provider: ProviderId(3), serial: 7 };
        let mut running = RunningRequests::default();
        let handle = running.add(request, 10);
        let progress = RequestProgress {
            request,
            groups: 0..10,
            handle: handle.clone(),
            context,
            file,
            all_bytes: Arc::default(),
            delivered: Arc::default(),
            reports: reports.clone(),
        };
        let mut written = progress.into_callback();
        running.truncate(request, 4);
        let bytes = 4 * limits::GROUP_BYTES;
        let write = tokio::task::spawn_blocking(move || written(Written { bytes, new_bytes: bytes }));
        write.await.unwrap();
        assert_eq!(running.providers(), 1);
        // The stream never ends by itself.
        run_request(request, std::future::pending(), handle.stop, reports).await;

        let verified = received.recv().await;
        let Some(TaskReport::Verified { groups, new_bytes, .. }) = verified else { panic!("{verified:?}") };
        assert_eq!((groups, new_bytes), (0..4, bytes));
        let stopped = received.recv().await;
        let Some(TaskReport::Stopped(stopped)) = stopped else { panic!("{stopped:?}") };
        running.remove(stopped);
        assert_eq!(running.providers(), 0);
    }
}
