//! What is measured, a file a question.

mod failures;
mod one_owner;
mod owners;
mod small_files;
mod swarm;

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::{files, report::Report};

/// How it is measured.
pub struct Plan {
    /// Runs of each contestant.
    pub runs: u32,
    /// Small files: whether it works.
    pub quick: bool,
    /// Where files lie; absolute.
    pub dir: PathBuf,
    /// Memory to touch before each contestant, bytes.
    pub touch: u64,
}

impl Plan {
    /// A folder for one section, removed when dropped.
    pub fn folder(&self) -> TempDir {
        let folder = tempfile::Builder::new().prefix("brasa-bench-").tempdir_in(&self.dir);
        let folder = folder.expect("a temporary folder can be made");
        // Programs are started in it and find their control sockets below it.
        fs::create_dir(folder.path().join("state")).expect("an empty folder");
        folder
    }

    /// Right before a contestant: none pays for what another left, nor for memory that nobody has touched for long.
    pub fn settle(&self, folder: &Path) {
        files::settle(folder);
        files::touch_memory(self.touch);
    }

    /// One of two sizes.
    pub fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// One large file from one owner, against TLS over TCP and a bare QUIC stream
    OneOwner,
    /// Ten thousand small files, against a local copy and rsync over ssh
    SmallFiles,
    /// One, two and four owners of one rate
    Owners,
    /// One owner and eight receivers on slow links
    Swarm,
    /// An owner that fails in the middle
    Failures,
}

impl Section {
    pub fn name(self) -> &'static str {
        match self {
            Self::OneOwner => one_owner::NAME,
            Self::SmallFiles => small_files::NAME,
            Self::Owners => owners::NAME,
            Self::Swarm => swarm::NAME,
            Self::Failures => failures::NAME,
        }
    }

    pub fn run(self, plan: &Plan, report: &mut Report) {
        match self {
            Self::OneOwner => one_owner::run(plan, report),
            Self::SmallFiles => small_files::run(plan, report),
            Self::Owners => owners::run(plan, report),
            Self::Swarm => swarm::run(plan, report),
            Self::Failures => failures::run(plan, report),
        }
    }
}

/// Bytes of a file.
fn size_of(path: &Path) -> u64 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len()
}
