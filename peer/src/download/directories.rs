//! The directories of a download: those with nothing in them are made, and all get the times and modes that they have with an owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, stream::FuturesUnordered};
use shared::{
    content::FileMeta,
    error::{Failure, FailureCode},
    file_name::FileName,
    id::PeerId,
    limits,
    rpc::peer::{DirectoryMeta, PeerServiceClient},
    time::Clock,
};
use tokio::{runtime::Handle, task, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Job, Numbered, Run};
use crate::{
    cli::backend::Downloaded,
    core::Contact,
    lookup::stopping,
    net::calls::target,
    node::Stopped,
    peer::Peer,
    store::{Described, Share},
};

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
    /// The directories of a download of `files` that was asked for as `pattern`, to the folder `to` or the share at `share`. To be
    /// called before any of them is made.
    ///
    /// # Errors
    /// When this peer stops.
    pub(super) async fn download<'a>(
        pattern: &str,
        files: impl Iterator<Item = &'a FileMeta>,
        to: Option<&Path>,
        share: &Path,
    ) -> Result<Self, Failure> {
        let names = named(pattern, files);
        let (is_outside, base) = (to.is_some(), to.unwrap_or(share).to_path_buf());
        let place = move |name: FileName| {
            let path = name.below(&base);
            Place { is_new: path.symlink_metadata().is_err(), to: is_outside.then_some(path), name }
        };
        let look = move || names.into_iter().map(place).collect();
        task::spawn_blocking(look).await.map(Self).map_err(|_| stopping(Stopped))
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

/// The directories of a download that runs, and what is known of them so far. However it ends, those that it made get their modes: when it
/// is repeated, nothing tells them from those that were there before.
pub(super) struct Describing {
    share: Share,
    places: Vec<Place>,
    known: Mutex<BTreeMap<FileName, DirectoryMeta>>,
}

impl Describing {
    /// Nothing is known yet.
    pub(super) fn new(share: Share, directories: DirectoriesOf) -> Self {
        Self { share, places: directories.0, known: Mutex::default() }
    }

    /// After the last file that came into one of them: they get times and modes.
    ///
    /// # Errors
    /// When this peer stops.
    pub(super) async fn all_came(mut self) -> Result<(), Failure> {
        let described = self.take();
        self.share.describe_directories(described).await
    }

    /// Not all came: those that are new get their modes, as far as they are known.
    pub(super) async fn not_all_came(mut self) {
        let described = self.take();
        narrow(self.share.clone(), described).await;
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<FileName, DirectoryMeta>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of `places` of which nothing is known yet.
    fn unknown_of(&self, places: &[Place]) -> Vec<FileName> {
        let known = self.known();
        places.iter().map(|place| &place.name).filter(|name| !known.contains_key(*name)).cloned().collect()
    }

    fn learn(&self, names: Vec<FileName>, answers: Vec<Option<DirectoryMeta>>) {
        let mut known = self.known();
        for (name, answer) in names.into_iter().zip(answers) {
            if let Some(answer) = answer {
                known.entry(name).or_insert(answer);
            }
        }
    }

    fn take(&mut self) -> Vec<Described> {
        let known = std::mem::take(&mut *self.known());
        let places = std::mem::take(&mut self.places).into_iter();
        let described = |Place { name, to, is_new }: Place| {
            let meta = *known.get(&name)?;
            Some(Described { name, to, is_new, meta })
        };
        places.filter_map(described).collect()
    }
}

/// The download was interrupted: nobody waits for it any more.
impl Drop for Describing {
    fn drop(&mut self) {
        let described = self.take();
        if let (false, Ok(runtime)) = (described.is_empty(), Handle::try_current()) {
            runtime.spawn(narrow(self.share.clone(), described));
        }
    }
}

async fn narrow(share: Share, described: Vec<Described>) {
    if let Err(failure) = share.narrow_directories(described).await {
        tracing::warn!(%failure, "directories do not get their modes");
    }
}

/// Makes folders that the user named, or that are to be below them.
pub(super) async fn make_folders(folders: BTreeSet<PathBuf>) -> Result<(), Failure> {
    let make = move || {
        folders.iter().try_for_each(|folder| {
            std::fs::create_dir_all(folder).map_err(|error| {
                let what = format!("cannot make {}", folder.display());
                Failure::new(FailureCode::Io, what, error, "choose another folder with --to")
            })
        })
    };
    task::spawn_blocking(make).await.map_err(|_| stopping(Stopped))?
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

    /// Asks the owners what the directories are, all at the same time, until the first has said all or `arrived` was a moment ago. Where
    /// none says anything, a directory keeps what it has: the files are what was asked for.
    pub(super) async fn look_at_directories(
        &self,
        describing: &Describing,
        owners: Vec<Contact>,
        arrived: &CancellationToken,
    ) {
        let mut asked: FuturesUnordered<_> =
            owners.iter().map(|owner| self.ask_for_directories(owner, describing)).collect();
        let answered =
            async { while asked.next().await.is_some() && !describing.unknown_of(&describing.places).is_empty() {} };
        let arrived = async {
            arrived.cancelled().await;
            sleep(limits::DIRECTORIES_GRACE).await;
        };
        tokio::select! {
            () = answered => return,
            () = arrived => {}
            () = sleep(limits::DIRECTORIES_DEADLINE) => {}
        }
        tracing::info!("the owners did not say in time what their directories are");
    }

    /// Asks one owner for what is not known by then.
    async fn ask_for_directories(&self, owner: &Contact, describing: &Describing) {
        for page in describing.places.chunks(limits::FILES_PER_PAGE) {
            let missing = describing.unknown_of(page);
            if missing.is_empty() {
                continue;
            }
            let names = missing.iter().map(FileName::to_string).collect();
            let ask = |peer: PeerServiceClient, cx| async move { peer.directories(cx, names).await };
            match self.connections.call(&target(owner), limits::CALL_DEADLINE, ask).await {
                Ok(answers) => describing.learn(missing, answers),
                Err(error) => {
                    tracing::info!(%error, owner = %owner.peer, "an owner says nothing of its directories");
                    return;
                }
            }
        }
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
