//! A share in a temporary folder, with the changes that it reports.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use peer::store::{Changes, Share, ShareOptions};
use shared::{content::FileMeta, file_name::FileName, time::Clock};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Deadline of every wait: far longer than anything takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A share and its folders.
pub(crate) struct Fixture {
    pub(crate) share: Share,
    pub(crate) events: mpsc::Receiver<Changes>,
    /// Files according to the changes received so far.
    pub(crate) reported: BTreeMap<FileName, FileMeta>,
    folder: PathBuf,
    dir: TempDir,
}

/// Options with which a share trusts every hash at once and scans its folder only on a notice of the file system or a
/// call.
pub(crate) fn options() -> ShareOptions {
    ShareOptions {
        racy_window: Duration::ZERO,
        rescan: Duration::from_secs(3600),
        debounce: Duration::from_millis(20),
        ..ShareOptions::default()
    }
}

impl Fixture {
    /// A share of an empty folder.
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A share of a folder with the files that `fill` writes.
    pub(crate) async fn with(fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("share");
        fs::create_dir(&folder).unwrap();
        fill(&folder);
        Self::open(dir, folder).await
    }

    /// A share of `folder`, with its state in `dir`.
    pub(crate) async fn open(dir: TempDir, folder: PathBuf) -> Self {
        Self::open_with(dir, folder, options()).await
    }

    /// The same with other options.
    pub(crate) async fn open_with(dir: TempDir, folder: PathBuf, options: ShareOptions) -> Self {
        let (sender, events) = mpsc::channel(1000);
        let share = Share::open(&folder, &dir.path().join("state"), options, sender).await.unwrap();
        Self { share, events, reported: BTreeMap::new(), folder, dir }
    }

    /// Closes the share and opens it again on the same folders.
    pub(crate) async fn restarted(self) -> Self {
        let Self { share, mut events, folder, dir, .. } = self;
        drop(share);
        // The share is closed once the channel of its changes is.
        let over = async { while events.recv().await.is_some() {} };
        tokio::time::timeout(DEADLINE, over).await.unwrap();
        Self::open(dir, folder).await
    }

    /// Path of a file in the share.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Path of a file outside of the share.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until the share has reported changes that add up to what is `wanted`.
    pub(crate) async fn wait_for_report(&mut self, what: &str, wanted: impl Fn(&BTreeMap<FileName, FileMeta>) -> bool) {
        let reported = async {
            while !wanted(&self.reported) {
                let changes = self.events.recv().await.unwrap();
                for name in changes.removals {
                    self.reported.remove(&name);
                }
                self.reported.extend(changes.upserts.into_iter().map(|meta| (meta.name.clone(), meta)));
            }
        };
        let outcome = tokio::time::timeout(DEADLINE, reported).await;
        assert!(outcome.is_ok(), "no report of {what} within {DEADLINE:?}; reported: {:?}", self.reported);
    }

    /// Names of the files in the share, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.share.list().into_iter().map(|meta| meta.name.to_string()).collect()
    }
}

pub(crate) fn name(text: &str) -> FileName {
    text.parse().unwrap()
}

/// `len` pseudorandom bytes.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Changes a file with `write`, again and again until its modification time shows it: within a tick of the file
/// system's clock (some milliseconds) two changes have the same time.
pub(crate) fn change_visibly(path: &Path, write: impl Fn()) {
    let modified = || path.metadata().unwrap().modified().unwrap();
    let (before, clock) = (modified(), Clock::start());
    while modified() == before {
        assert!(clock.now().since_origin() < DEADLINE, "the modification time of {} stays", path.display());
        write();
    }
}

/// A file system mounted for a test. Mounting needs rights that a test may lack.
pub(crate) struct SmallDisk {
    at: PathBuf,
    dir: Option<TempDir>,
}

impl SmallDisk {
    /// Mounts a tmpfs at a path of its own, or says that it cannot and returns `None`.
    pub(crate) fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Self::mount_at(dir.path(), options)?;
        disk.dir = Some(dir);
        Some(disk)
    }

    /// Mounts a tmpfs over the directory `at`, or says that it cannot and returns `None`.
    pub(crate) fn mount_at(at: &Path, options: &str) -> Option<Self> {
        Self::mounted(Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at), at)
    }

    /// Runs a command that mounts something at `at`, or says that it cannot and returns `None`.
    pub(crate) fn mounted(mount: &mut Command, at: &Path) -> Option<Self> {
        if mount.status().is_ok_and(|status| status.success()) {
            Some(Self { at: at.to_path_buf(), dir: None })
        } else {
            // Written past the capture of the test runner, so that a reader sees it.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"\nSKIPPED: nothing can be mounted here\n");
            None
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
