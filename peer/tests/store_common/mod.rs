//! A share in a temporary folder, with what it tells.
#![expect(clippy::unwrap_used, reason = "it belongs to the tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use peer::store::{Changes, Share, ShareOptions};
use shared::{content::FileMeta, file_name::FileName};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// How long a test waits for what has to happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Fixture {
    pub(crate) share: Share,
    pub(crate) events: mpsc::Receiver<Changes>,
    /// What the events add up to.
    pub(crate) told: BTreeMap<FileName, FileMeta>,
    folder: PathBuf,
    dir: TempDir,
}

/// Trusts every hash at once and looks only when it is told to (or noticed).
pub(crate) fn options() -> ShareOptions {
    ShareOptions { racy_window: Duration::ZERO, rescan: Duration::from_secs(3600), debounce: Duration::from_millis(20) }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A share of a folder that `fill` fills.
    pub(crate) async fn with(fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("share");
        fs::create_dir(&folder).unwrap();
        fill(&folder);
        Self::open(dir, folder).await
    }

    pub(crate) async fn open(dir: TempDir, folder: PathBuf) -> Self {
        let (sender, events) = mpsc::channel(1000);
        let share = Share::open(&folder, &dir.path().join("state"), options(), sender).await.unwrap();
        Self { share, events, told: BTreeMap::new(), folder, dir }
    }

    /// The same folder in a new run.
    pub(crate) async fn restarted(self) -> Self {
        let Self { share, mut events, folder, dir, .. } = self;
        drop(share);
        // The old run is over when nothing can be told any more.
        let over = async { while events.recv().await.is_some() {} };
        tokio::time::timeout(DEADLINE, over).await.unwrap();
        Self::open(dir, folder).await
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Outside of the share.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until what was told is `wanted`.
    pub(crate) async fn wait_told(&mut self, what: &str, wanted: impl Fn(&BTreeMap<FileName, FileMeta>) -> bool) {
        let heard = async {
            while !wanted(&self.told) {
                let changes = self.events.recv().await.unwrap();
                for name in changes.removals {
                    self.told.remove(&name);
                }
                self.told.extend(changes.upserts.into_iter().map(|meta| (meta.name.clone(), meta)));
            }
        };
        let heard = tokio::time::timeout(DEADLINE, heard).await;
        assert!(heard.is_ok(), "not told within the deadline: {what}; told: {:?}", self.told.keys());
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.share.list().into_iter().map(|meta| meta.name.to_string()).collect()
    }
}

pub(crate) fn name(text: &str) -> FileName {
    text.parse().unwrap()
}

pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// A small file system of its own, or nothing (and a word about it) where that takes rights that the tests lack.
pub(crate) struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    pub(crate) fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            Some(Self { dir })
        } else {
            // Written past the test runner's capture, so that it is seen.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"\nSKIPPED: a tmpfs cannot be mounted here\n");
            None
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}
