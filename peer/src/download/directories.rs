//! The directories of a download: those with nothing in them are made, and all get the times and modes that they have with an owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, stream::FuturesUnordered};
use shared::{
    contact::Contact,
    content::FileMeta,
    error::{Failure, FailureCode},
    file_name::FileName,
    id::PeerId,
    limits,
    net::Target,
    rpc::peer::{DirectoryMeta, PeerServiceClient},
    time::Clock,
};
use tokio::{runtime::Handle, task, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Job, Numbered, Run, select::common_prefix};
use crate::{
    api::Downloaded,
    core_handle::Stopped,
    discovery::stopping,
    runtime::peer::Peer,
    store::{DirMetadata, Share},
};

/// The directories that a download is of: the one that was named and those in it. None of a download of files.
#[derive(Debug, Default)]
pub(crate) struct DirectoriesOf {
    places: Vec<Place>,
    /// What the new ones among them are noted under until it is over.
    note: Option<String>,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: FileName,
    /// Where it goes, if not into the share.
    to: Option<PathBuf>,
    /// This download makes it.
    is_new: bool,
}

impl DirectoriesOf {
    /// The directories of a download of `files` that was asked for as `pattern`, to the folder `to` or the share. To be called before any
    /// of them is made. New are those that are not there yet, and those that the same download was making when it was killed.
    ///
    /// # Errors
    /// When this peer stops.
    pub(crate) async fn download<'a>(
        pattern: &str,
        files: impl Iterator<Item = &'a FileMeta>,
        to: Option<&Path>,
        share: &Share,
    ) -> Result<Self, Failure> {
        let all = named(pattern, files);
        if all.is_empty() {
            return Ok(Self::default());
        }
        let base = to.unwrap_or(share.path()).to_path_buf();
        let note = format!("{}\0{}", pattern.trim_end_matches('/'), base.display());
        let look = {
            let all = all.clone();
            move || all.into_iter().filter(|name| name.below(&base).symlink_metadata().is_err()).collect()
        };
        let missing = task::spawn_blocking(look).await.map_err(|_| stopping(Stopped))?;
        let new = share.begin_dir_journal(note.clone(), all.clone(), missing).await?;
        let place = |name: FileName| Place { is_new: new.contains(&name), to: to.map(|to| name.below(to)), name };
        Ok(Self { places: all.into_iter().map(place).collect(), note: (!new.is_empty()).then_some(note) })
    }

    /// Who is asked about them: those that have most of the files, but not this peer, whose directories they may be.
    pub(crate) fn owners<'a>(&self, jobs: impl Iterator<Item = &'a Job>, me: &PeerId) -> Vec<Contact> {
        if self.places.is_empty() {
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

/// The directory `pattern` and those of `files` in it; none unless all of them lie in it. A glob for all that is in a directory
/// (`docs/**`, or `**`) stands for that directory. Pure.
fn named<'a>(pattern: &str, files: impl Iterator<Item = &'a FileMeta>) -> BTreeSet<FileName> {
    let files: Vec<_> = files.collect();
    let named = pattern.trim_end_matches('/');
    if files.iter().any(|file| file.name.as_str() == named && !file.is_directory()) {
        return BTreeSet::new();
    }
    let all_in = if named == "**" { Some("") } else { named.strip_suffix("/**") };
    let all_in = all_in.filter(|folder| common_prefix(folder).len() == folder.len());
    // As for the files: what stands there letter for letter comes before the glob.
    let mut found = [Some(named), all_in].into_iter().flatten().map(|folder| below(folder, &files));
    found.find(|found| !found.is_empty()).unwrap_or_default()
}

/// The directory `folder`, the share if that is empty, and those of `files` in it; none unless all of them lie in it.
fn below(folder: &str, files: &[&FileMeta]) -> BTreeSet<FileName> {
    let is_in = |name: &str| {
        let rest = name.strip_prefix(folder);
        folder.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut found = BTreeSet::new();
    for file in files {
        let name = file.name.as_str();
        if !is_in(name) {
            return BTreeSet::new();
        }
        let itself = file.is_directory().then_some(name);
        // Parts of a name are a name.
        let of_file = file.name.directories().chain(itself).filter(|directory| is_in(directory));
        found.extend(of_file.filter_map(|directory| directory.parse().ok()));
    }
    found
}

/// The directories of a download that runs, and what is known of them so far. However it ends, those that it made get their modes, as far as
/// they are known; of the others the note stays, so that they are still new when it is repeated.
pub(crate) struct Describing {
    share: Share,
    places: Vec<Place>,
    note: Option<String>,
    known: Mutex<BTreeMap<FileName, DirectoryMeta>>,
}

impl Describing {
    /// Nothing is known yet.
    pub(crate) fn new(share: Share, directories: DirectoriesOf) -> Self {
        let DirectoriesOf { places, note } = directories;
        Self { share, places, note, known: Mutex::default() }
    }

    /// After the last file that came into one of them: they get times and modes.
    ///
    /// # Errors
    /// When this peer stops.
    pub(crate) async fn all_came(mut self) -> Result<(), Failure> {
        let described = self.take();
        self.share.apply_dir_metadata(described).await?;
        match self.note.take() {
            Some(note) => Ok(self.share.end_dir_journal(note).await?),
            None => Ok(()),
        }
    }

    /// Not all came: those that are new get their modes, as far as they are known.
    pub(crate) async fn not_all_came(mut self) {
        let note = self.superfluous_note();
        let described = self.take();
        narrow(self.share.clone(), described, note).await;
    }

    /// The note, if all that it says is known of.
    fn superfluous_note(&mut self) -> Option<String> {
        let known = self.known();
        let is_known = self.places.iter().all(|place| !place.is_new || known.contains_key(&place.name));
        drop(known);
        self.note.take().filter(|_| is_known)
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

    fn take(&mut self) -> Vec<DirMetadata> {
        let known = std::mem::take(&mut *self.known());
        let places = std::mem::take(&mut self.places).into_iter();
        let described = |Place { name, to, is_new }: Place| {
            let meta = *known.get(&name)?;
            Some(DirMetadata { name, to, is_new, meta })
        };
        places.filter_map(described).collect()
    }
}

/// The download was interrupted: nobody waits for it any more.
impl Drop for Describing {
    fn drop(&mut self) {
        let note = self.superfluous_note();
        let described = self.take();
        if let (false, Ok(runtime)) = (described.is_empty(), Handle::try_current()) {
            runtime.spawn(narrow(self.share.clone(), described, note));
        }
    }
}

/// Gives directories their modes; then the note is not needed any more.
async fn narrow(share: Share, described: Vec<DirMetadata>, note: Option<String>) {
    let narrowed = async {
        share.restrict_dir_modes(described).await?;
        match note {
            Some(note) => share.end_dir_journal(note).await,
            None => Ok(()),
        }
    };
    if let Err(failure) = narrowed.await {
        tracing::warn!(%failure, "directories do not get their modes");
    }
}

/// Makes folders that the user named, or that are to be below them.
pub(crate) async fn make_folders(folders: BTreeSet<PathBuf>) -> Result<(), Failure> {
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
    pub(crate) async fn make_directories(
        &self,
        jobs: Numbered,
        run: &Run,
    ) -> Result<Vec<(usize, Result<Downloaded, Failure>)>, Failure> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let clock = Clock::start();
        let wanted = jobs.iter().map(|(_, job)| (job.file.clone(), job.to.clone())).collect();
        let made = self.share.create_directories(wanted).await?;
        let done = jobs.into_iter().zip(made).map(|((place, Job { file, .. }), made)| {
            let made = made.map_err(Failure::from).map(|path| {
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
    pub(crate) async fn look_at_directories(
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
            match self.connections.call(&Target::from(owner), limits::CALL_DEADLINE, ask).await {
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
        assert_eq!(names("docs/**", &all), ["docs", "docs/deep", "docs/deep/er", "docs/empty"], "all that is in it");
        assert_eq!(names("**", &["docs/a", "top", "b/c/d"]), ["b", "b/c", "docs"]);
        assert!(
            names("d*/**", &all).is_empty()
                && names("docs/**/b", &all).is_empty()
                && names("**/er/**", &all).is_empty()
        );
        assert!(names("docs/**", &["docs/**"]).is_empty(), "a file of that name");
        assert_eq!(names("docs/**", &["docs/**/a", "docs/**/b"]), ["docs/**"], "a directory of that name");
        assert!(names("doc", &["docs/a"]).is_empty());
    }
}
