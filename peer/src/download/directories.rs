//! The directories of a download: those with nothing in them are made, and all get the times and modes that they have with an owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use shared::{
    content::FileMeta,
    error::Failure,
    file_name::FileName,
    id::PeerId,
    limits,
    rpc::peer::{DirectoryMeta, PeerServiceClient},
    time::Clock,
};
use tokio::time::timeout;

use super::{Job, Numbered, Run};
use crate::{cli::backend::Downloaded, core::Contact, net::calls::target, peer::Peer, store::Described};

/// The directories that a download is of: the one that was named and those in it. None of a download of files.
#[derive(Debug, Default)]
pub(super) struct DirectoriesOf(Vec<Place>);

/// One of them.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: FileName,
    /// Where it goes, if not into the share.
    to: Option<PathBuf>,
    /// It is not there yet.
    is_new: bool,
}

impl DirectoriesOf {
    /// The directories of a download of `files` that was asked for as `pattern`, to the folder `to` or the share at `share`.
    pub(super) fn download<'a>(
        pattern: &str,
        files: impl Iterator<Item = &'a FileMeta>,
        to: Option<&Path>,
        share: &Path,
    ) -> Self {
        let place = |name: FileName| {
            let path = name.below(to.unwrap_or(share));
            Place { to: to.map(|_| path.clone()), is_new: path.symlink_metadata().is_err(), name }
        };
        Self(named(pattern, files).into_iter().map(place).collect())
    }

    /// Who is asked about them: those that have most of the files, but not this peer, whose directories they may be.
    pub(super) fn owners<'a>(&self, jobs: impl Iterator<Item = &'a Job>, me: &PeerId) -> Vec<Contact> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut files: BTreeMap<&PeerId, (usize, &Contact)> = BTreeMap::new();
        for owner in jobs.flat_map(|job| &job.owners).filter(|owner| owner.peer != *me) {
            files.entry(&owner.peer).or_insert((0, owner)).0 += 1;
        }
        let mut owners: Vec<_> = files.into_values().collect();
        owners.sort_by_key(|(files, _)| std::cmp::Reverse(*files));
        owners.into_iter().take(limits::DIRECTORY_OWNERS_ASKED).map(|(_, owner)| owner.clone()).collect()
    }
}

/// The directory `pattern` and those of `files` in it; none unless all of them lie in it. Pure.
fn named<'a>(pattern: &str, files: impl Iterator<Item = &'a FileMeta>) -> BTreeSet<FileName> {
    let folder = pattern.trim_end_matches('/');
    let is_in = |name: &str| name.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let mut found = BTreeSet::new();
    for file in files {
        let name = file.name.as_str();
        if !is_in(name) || name == folder && !file.is_directory() {
            return BTreeSet::new();
        }
        let itself = file.is_directory().then_some(name);
        // Parts of a name are a name.
        let of_file = file.name.directories().chain(itself).filter(|directory| is_in(directory));
        found.extend(of_file.filter_map(|directory| directory.parse().ok()));
    }
    found
}

impl Peer {
    /// Makes directories with nothing in them: they need no owner.
    pub(super) async fn make_directories(
        &self,
        jobs: Numbered,
        run: &Run,
    ) -> Result<Vec<(usize, Result<Downloaded, Failure>)>, Failure> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let clock = Clock::start();
        let wanted = jobs.iter().map(|(_, job)| (job.file.clone(), job.to.clone())).collect();
        let made = self.share.make_directories(wanted).await?;
        let done = jobs.into_iter().zip(made).map(|((place, Job { file, .. }), made)| {
            let made = made.map(|path| {
                run.files_done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                run.tell(&file);
                Downloaded { path, seconds: clock.now().since_origin().as_secs_f64(), sources: Vec::new(), file }
            });
            (place, made)
        });
        Ok(done.collect())
    }

    /// What the owners say of the directories, each asked for what those before it did not know. Where none says anything, a directory
    /// keeps what it has: the files are what was asked for.
    pub(super) async fn look_at_directories(&self, directories: DirectoriesOf, owners: Vec<Contact>) -> Vec<Described> {
        let mut known: BTreeMap<FileName, DirectoryMeta> = BTreeMap::new();
        let asked = async {
            for owner in owners {
                let missing = directories.0.iter().map(|place| &place.name).filter(|name| !known.contains_key(*name));
                let missing: Vec<FileName> = missing.cloned().collect();
                for page in missing.chunks(limits::FILES_PER_PAGE) {
                    let names = page.iter().map(FileName::to_string).collect();
                    let ask = |peer: PeerServiceClient, cx| async move { peer.directories(cx, names).await };
                    match self.connections.call(&target(&owner), limits::CALL_DEADLINE, ask).await {
                        Ok(answers) => {
                            let answers = page.iter().cloned().zip(answers);
                            known.extend(answers.filter_map(|(name, answer)| Some((name, answer?))));
                        }
                        Err(error) => {
                            tracing::info!(%error, owner = %owner.peer, "an owner says nothing of its directories");
                            break;
                        }
                    }
                }
            }
        };
        if timeout(limits::DIRECTORIES_DEADLINE, asked).await.is_err() {
            tracing::info!("the owners did not say in time what their directories are");
        }
        let described = directories.0.into_iter().filter_map(|Place { name, to, is_new }| {
            let meta = *known.get(&name)?;
            Some(Described { name, to, is_new, meta })
        });
        described.collect()
    }
}

#[cfg(test)]
mod tests {
    use shared::content::{ContentHash, DIRECTORY_HASH};

    use super::*;

    fn names(pattern: &str, files: &[&str]) -> Vec<String> {
        let files: Vec<FileMeta> = files
            .iter()
            .map(|name| FileMeta {
                name: name.trim_end_matches('/').parse().unwrap(),
                size: 0,
                hash: if name.ends_with('/') { DIRECTORY_HASH } else { ContentHash([1; 32]) },
                mtime_micros: 0,
                executable: false,
            })
            .collect();
        named(pattern, files.iter()).iter().map(FileName::to_string).collect()
    }

    #[test]
    fn only_a_directory_that_was_named_is_described() {
        let all = ["docs/a", "docs/deep/er/b", "docs/empty/"];
        for pattern in ["docs", "docs/"] {
            assert_eq!(names(pattern, &all), ["docs", "docs/deep", "docs/deep/er", "docs/empty"]);
        }
        assert_eq!(names("docs/deep", &["docs/deep/er/b"]), ["docs/deep", "docs/deep/er"], "not what is above it");
        assert_eq!(names("docs/empty", &["docs/empty/"]), ["docs/empty"]);
        assert!(names("docs/a", &["docs/a"]).is_empty() && names("docs/*", &all).is_empty());
        assert!(names("doc", &["docs/a"]).is_empty());
    }
}
