//! State that all files of one download share: the request, its progress and its profile.

use std::sync::atomic::{AtomicU64, Ordering};

use shared::{content::FileMeta, file_name::FileName};

use super::profile::DownloadProfile;
use crate::api::{Progress, ProgressSink};

/// One running download.
pub(crate) struct DownloadContext {
    /// Pattern as the user typed it.
    pub(crate) pattern: String,
    pub(crate) profile: DownloadProfile,
    /// True if existing files with other content may be replaced.
    pub(crate) force: bool,
    pub(crate) bytes_total: u64,
    files_total: u64,
    bytes_done: AtomicU64,
    files_done: AtomicU64,
    sources: AtomicU64,
    sink: ProgressSink,
}

impl DownloadContext {
    pub(crate) fn new(
        pattern: String,
        force: bool,
        profile: DownloadProfile,
        (bytes_total, files_total): (u64, u64),
        sink: ProgressSink,
    ) -> Self {
        Self {
            pattern,
            profile,
            force,
            bytes_total,
            files_total,
            bytes_done: AtomicU64::new(0),
            files_done: AtomicU64::new(0),
            sources: AtomicU64::new(0),
            sink,
        }
    }

    /// Counts `bytes` further bytes of `file` as verified and written.
    pub(crate) fn add_bytes(&self, file: &FileMeta, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.report_progress(file);
    }

    /// Counts `file` as complete.
    pub(crate) fn add_file(&self, file: &FileMeta) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
        self.report_progress(file);
    }

    /// Sets the number of peers that are sending.
    pub(crate) fn set_sources(&self, sources: usize) {
        self.sources.store(sources as u64, Ordering::Relaxed);
    }

    /// Returns the number of peers that are sending.
    pub(crate) fn sources(&self) -> u32 {
        u32::try_from(self.sources.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }

    /// Returns the number of verified and written bytes of all files.
    pub(crate) fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    fn report_progress(&self, file: &FileMeta) {
        self.profile.mark_if_due();
        self.sink.update(self.progress(file.name.clone()));
    }

    fn progress(&self, file: FileName) -> Progress {
        Progress {
            file,
            bytes_per_second: self.profile.bytes_per_second(),
            bytes_done: self.bytes_done(),
            bytes_total: self.bytes_total,
            sources: self.sources(),
            files_done: self.files_done.load(Ordering::Relaxed),
            files_total: self.files_total,
        }
    }
}
