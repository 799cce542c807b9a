//! Sections of the benchmark, one file each.

mod failures;
mod one_owner;
mod owners;
mod small_files;
mod swarm;

use clap::ValueEnum;

use crate::{report::Report, settings::Settings};

/// Section of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// One large file from one owner, against TLS over TCP and a plain QUIC stream
    OneOwner,
    /// Ten thousand small files, against a local copy and rsync over ssh
    SmallFiles,
    /// One, two and four owners with equal rate limits
    Owners,
    /// One owner and eight receivers on slow links
    Swarm,
    /// An owner that fails during a download
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

    /// Measures, and adds the figures to the report.
    pub fn run(self, settings: &Settings, report: &mut Report) {
        match self {
            Self::OneOwner => one_owner::run(settings, report),
            Self::SmallFiles => small_files::run(settings, report),
            Self::Owners => owners::run(settings, report),
            Self::Swarm => swarm::run(settings, report),
            Self::Failures => failures::run(settings, report),
        }
    }
}
