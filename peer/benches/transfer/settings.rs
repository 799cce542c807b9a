//! Settings of a run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::files;

/// Settings that all sections share.
pub struct Settings {
    /// Runs of each series.
    pub runs: u32,
    /// Small files, to test the benchmark itself.
    pub quick: bool,
    /// Directory for the files, absolute.
    pub dir: PathBuf,
    /// Memory to touch before each measurement of `one-owner`, bytes.
    pub touch_bytes: u64,
}

impl Settings {
    /// Creates the directory of one section, which is removed when dropped.
    pub fn folder(&self) -> TempDir {
        let folder = tempfile::Builder::new().prefix("brasa-bench-").tempdir_in(&self.dir);
        let folder = folder.expect("the directory for files is writable");
        // The programs keep their state and their control sockets here.
        fs::create_dir(folder.path().join("state")).expect("the directory is empty");
        folder
    }

    /// Prepares the machine for a measurement: writes back dirty pages and touches free memory.
    pub fn settle(&self, folder: &Path) {
        files::settle(folder);
        files::touch_memory(self.touch_bytes);
    }

    /// Selects the value for a full or a quick run.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
