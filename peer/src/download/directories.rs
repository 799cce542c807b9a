//! Directories of a download: creates empty ones and sets the times and modes that an owner reports.

use crate::download::params;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, stream::FuturesUnordered};
use shared::{
    contact::Contact,
    content::FileMeta,
    file_name::FileName,
    id::PeerId,
    limits,
    net::{Connections, Target},
    rpc::peer::{DirectoryMeta, PeerServiceClient},
    time::Clock,
};
use tokio::{runtime::Handle, task, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    context::DownloadContext,
    error::{DownloadError, FileError},
    job::{Job, NumberedJobs},
    select::common_prefix,
};
use crate::{
    api::Downloaded,
    store::{DirMetadata, Share},
};

/// Directories of a download: the requested one and those in it. Empty for a download of files.
#[derive(Debug, Default)]
pub(crate) struct DirectorySet {
    entries: Vec<Entry>,
    /// Key of the directory journal that lists the new directories until the download ends.
    journal_key: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: FileName,
    /// Path outside of the share.
    to: Option<PathBuf>,
    /// True if this download creates the directory.
    is_new: bool,
}

impl DirectorySet {
    /// Collects the directories of a download of `files` that was requested as `pattern`, to the folder `to` or into
    /// the share. Must be called before any of them is created. A directory is new if it does not exist, or if an
    /// earlier run of the same download created it and was killed.
    ///
    /// # Errors
    /// If the share is closed or a thread panics.
    pub(crate) async fn of<'a>(
        pattern: &str,
        files: impl Iterator<Item = &'a FileMeta>,
        to: Option<&Path>,
        share: &Share,
    ) -> Result<Self, DownloadError> {
        let all = directories_of(pattern, files);
        if all.is_empty() {
            return Ok(Self::default());
        }
        let base = to.unwrap_or(share.path()).to_path_buf();
        let key = format!("{}\0{}", pattern.trim_end_matches('/'), base.display());
        let find_missing = {
            let all = all.clone();
            move || all.into_iter().filter(|name| name.below(&base).symlink_metadata().is_err()).collect()
        };
        let missing = blocking(find_missing).await?;
        let new = share.begin_dir_journal(key.clone(), all.clone(), missing).await.map_err(DownloadError::store)?;
        let entry = |name: FileName| Entry { is_new: new.contains(&name), to: to.map(|to| name.below(to)), name };
        Ok(Self { entries: all.into_iter().map(entry).collect(), journal_key: (!new.is_empty()).then_some(key) })
    }

    /// Returns the providers to ask about the directories: those that have most of the files. Excludes this peer, whose
    /// directories may be the ones to be set.
    pub(crate) fn providers<'a>(&self, jobs: impl Iterator<Item = &'a Job>, me: &PeerId) -> Vec<Contact> {
        if self.entries.is_empty() {
            return Vec::new();
        }
        let mut files: BTreeMap<&PeerId, (usize, &Contact)> = BTreeMap::new();
        for provider in jobs.flat_map(|job| &job.providers).filter(|provider| provider.peer != *me) {
            files.entry(&provider.peer).or_insert((0, provider)).0 += 1;
        }
        let mut providers: Vec<_> = files.into_values().collect();
        providers.sort_by_key(|(files, _)| Reverse(*files));
        providers.into_iter().take(params::DIRECTORY_OWNERS_ASKED).map(|(_, provider)| provider.clone()).collect()
    }
}

/// Returns the directory `pattern` and those of `files` in it; none unless all files lie in it. A glob for everything
/// in a directory (`docs/**`, or `**`) stands for that directory. Pure.
fn directories_of<'a>(pattern: &str, files: impl Iterator<Item = &'a FileMeta>) -> BTreeSet<FileName> {
    let files: Vec<_> = files.collect();
    let named = pattern.trim_end_matches('/');
    if files.iter().any(|file| file.name.as_str() == named && !file.is_directory()) {
        return BTreeSet::new();
    }
    let all_in = if named == "**" { Some("") } else { named.strip_suffix("/**") };
    let all_in = all_in.filter(|folder| common_prefix(folder).len() == folder.len());
    // As for files, a literal name precedes a glob.
    let mut found = [Some(named), all_in].into_iter().flatten().map(|folder| below(folder, &files));
    found.find(|found| !found.is_empty()).unwrap_or_default()
}

/// Returns the directory `folder` (the share if that is empty) and those of `files` in it; none unless all files lie in
/// it.
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
        let of_file = file.name.directories().chain(itself).filter(|directory| is_in(directory));
        // The directories of a valid name are valid names.
        found.extend(of_file.filter_map(|directory| directory.parse().ok()));
    }
    found
}

/// Metadata of the directories of a running download, as far as it is known. However the download ends, the directories
/// that it created get their modes if these are known. If some are not, the journal entry stays, so that the
/// directories count as new when the download is repeated.
pub(crate) struct MetadataCollector {
    share: Share,
    entries: Vec<Entry>,
    journal_key: Option<String>,
    known: Mutex<BTreeMap<FileName, DirectoryMeta>>,
}

impl MetadataCollector {
    pub(crate) fn new(share: Share, directories: DirectorySet) -> Self {
        let DirectorySet { entries, journal_key } = directories;
        Self { share, entries, journal_key, known: Mutex::default() }
    }

    /// Sets the times and modes of all directories. Must be called after the last file has arrived in them.
    ///
    /// # Errors
    /// If the share is closed.
    pub(crate) async fn apply(mut self) -> Result<(), DownloadError> {
        let described = self.take();
        self.share.apply_dir_metadata(described).await.map_err(DownloadError::store)?;
        match self.journal_key.take() {
            Some(key) => self.share.end_dir_journal(key).await.map_err(DownloadError::store),
            None => Ok(()),
        }
    }

    /// Sets the modes of new directories. Must be called if a file did not arrive.
    pub(crate) async fn apply_modes(mut self) {
        let key = self.take_key_if_complete();
        let described = self.take();
        apply_modes(self.share.clone(), described, key).await;
    }

    /// Takes the key of the journal entry if the metadata of all directories in it is known.
    fn take_key_if_complete(&mut self) -> Option<String> {
        let known = self.known();
        let is_complete = self.entries.iter().all(|entry| !entry.is_new || known.contains_key(&entry.name));
        drop(known);
        self.journal_key.take().filter(|_| is_complete)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<FileName, DirectoryMeta>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_complete(&self) -> bool {
        self.unknown_of(&self.entries).is_empty()
    }

    /// Returns those of `entries` whose metadata is not known yet.
    fn unknown_of(&self, entries: &[Entry]) -> Vec<FileName> {
        let known = self.known();
        entries.iter().map(|entry| &entry.name).filter(|name| !known.contains_key(*name)).cloned().collect()
    }

    fn add(&self, names: Vec<FileName>, answers: Vec<Option<DirectoryMeta>>) {
        let mut known = self.known();
        for (name, answer) in names.into_iter().zip(answers) {
            if let Some(answer) = answer {
                known.entry(name).or_insert(answer);
            }
        }
    }

    fn take(&mut self) -> Vec<DirMetadata> {
        let known = std::mem::take(&mut *self.known());
        let entries = std::mem::take(&mut self.entries).into_iter();
        let described = |Entry { name, to, is_new }: Entry| {
            let meta = *known.get(&name)?;
            Some(DirMetadata { name, to, is_new, meta })
        };
        entries.filter_map(described).collect()
    }
}

/// A collector is dropped with metadata only if its download was cancelled.
impl Drop for MetadataCollector {
    fn drop(&mut self) {
        let key = self.take_key_if_complete();
        let described = self.take();
        if let (false, Ok(runtime)) = (described.is_empty(), Handle::try_current()) {
            runtime.spawn(apply_modes(self.share.clone(), described, key));
        }
    }
}

/// Sets the modes of directories and removes their journal entry.
async fn apply_modes(share: Share, described: Vec<DirMetadata>, key: Option<String>) {
    let applied = async {
        share.restrict_dir_modes(described).await?;
        match key {
            Some(key) => share.end_dir_journal(key).await,
            None => Ok(()),
        }
    };
    if let Err(error) = applied.await {
        tracing::warn!(%error, "cannot set the modes of directories");
    }
}

/// Creates folders outside of the share.
pub(crate) async fn create_folders(folders: BTreeSet<PathBuf>) -> Result<(), DownloadError> {
    let create = move || {
        folders.into_iter().try_for_each(|folder| {
            std::fs::create_dir_all(&folder).map_err(|error| DownloadError::CreateFolder { folder, error })
        })
    };
    blocking(create).await?
}

/// Creates empty directories. They need no provider.
pub(crate) async fn create_directories(
    share: &Share,
    jobs: NumberedJobs,
    context: &DownloadContext,
) -> Result<Vec<(usize, Result<Downloaded, FileError>)>, DownloadError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let clock = Clock::start();
    let wanted = jobs.iter().map(|(_, job)| (job.file.clone(), job.to.clone())).collect();
    let created = share.create_directories(wanted).await.map_err(DownloadError::store)?;
    let done = jobs.into_iter().zip(created).map(|((place, Job { file, .. }), created)| {
        let created = created.map_err(FileError::store).map(|path| {
            context.add_file(&file);
            Downloaded { path, seconds: clock.now().since_origin().as_secs_f64(), sources: Vec::new(), file }
        });
        (place, created)
    });
    Ok(done.collect())
}

/// Asks the providers for the metadata of the directories, all at the same time, until everything is known or
/// [`params::DIRECTORIES_GRACE`] has passed since `arrived`. A directory about which no provider answers keeps its time
/// and mode: the request is for the files.
pub(crate) async fn collect_metadata(
    collector: &MetadataCollector,
    connections: &Connections,
    providers: Vec<Contact>,
    arrived: &CancellationToken,
) {
    let mut queries: FuturesUnordered<_> =
        providers.iter().map(|provider| query_provider(collector, connections, provider)).collect();
    let answered = async { while queries.next().await.is_some() && !collector.is_complete() {} };
    let arrived = async {
        arrived.cancelled().await;
        sleep(params::DIRECTORIES_GRACE).await;
    };
    tokio::select! {
        () = answered => return,
        () = arrived => {}
        () = sleep(params::DIRECTORIES_DEADLINE) => {}
    }
    tracing::info!("no provider sent the metadata of all directories in time");
}

/// Asks one provider for the metadata that is still unknown.
async fn query_provider(collector: &MetadataCollector, connections: &Connections, provider: &Contact) {
    for page in collector.entries.chunks(limits::FILES_PER_PAGE) {
        let missing = collector.unknown_of(page);
        if missing.is_empty() {
            continue;
        }
        let names = missing.iter().map(FileName::to_string).collect();
        let query = |peer: PeerServiceClient, cx| async move { peer.directories(cx, names).await };
        match connections.call(&Target::from(provider), limits::CALL_DEADLINE, query).await {
            Ok(answers) => collector.add(missing, answers),
            Err(error) => {
                tracing::info!(%error, peer = %provider.peer, "cannot get the metadata of directories");
                return;
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, DownloadError> {
    task::spawn_blocking(work).await.map_err(|error| DownloadError::Panicked(error.to_string()))
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
        directories_of(pattern, files.iter()).iter().map(FileName::to_string).collect()
    }

    #[test]
    fn directories_of_a_pattern_are_those_in_the_directory_that_it_names() {
        let all = ["docs/a", "docs/deep/er/b", "docs/empty/"];
        for pattern in ["docs", "docs/"] {
            assert_eq!(names(pattern, &all), ["docs", "docs/deep", "docs/deep/er", "docs/empty"]);
        }
        assert_eq!(names("docs/deep", &["docs/deep/er/b"]), ["docs/deep", "docs/deep/er"], "none above it");
        assert_eq!(names("docs/empty", &["docs/empty/"]), ["docs/empty"]);
        assert!(names("docs/a", &["docs/a"]).is_empty() && names("docs/*", &all).is_empty());
        assert_eq!(names("docs/**", &all), ["docs", "docs/deep", "docs/deep/er", "docs/empty"], "everything in it");
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
