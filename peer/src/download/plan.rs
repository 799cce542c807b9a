//! Plans a download: finds the versions that a request means, their destinations and their providers.

use crate::download::params;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use shared::{
    content::{ContentHash, HashPrefix},
    file_name::FileName,
    id::PeerId,
    name::Endpoint,
    rpc::tracker::IndexedFile,
};
use tokio::task;

use super::{
    directories::DirectorySet,
    error::DownloadError,
    job::{Job, shuffled},
    select::{SelectError, Selection, common_prefix, listed_prefix, select},
};
use crate::{
    api::DownloadRequest,
    discovery::{Discovery, TrackerQueryError, contacts},
    store::Share,
};

/// Steps of a download.
pub(crate) struct Plan {
    /// Files to fetch, in the order of the request.
    pub(crate) jobs: Vec<Job>,
    pub(crate) directories: DirectorySet,
    /// Folders outside of the share that must exist before the first file arrives.
    pub(crate) folders: BTreeSet<PathBuf>,
}

/// Versions with their owners, and the endpoints of the owners if they are known.
type Found = (Vec<IndexedFile>, BTreeMap<PeerId, Endpoint>);

/// Plans downloads.
pub(crate) struct Planner<'a> {
    pub(crate) me: &'a PeerId,
    pub(crate) share: &'a Share,
    pub(crate) discovery: &'a Discovery,
}

impl Planner<'_> {
    /// Plans the download of `request`.
    pub(crate) async fn plan(&self, request: &DownloadRequest) -> Result<Plan, DownloadError> {
        let request = &self.resolve_at_sign(request).await;
        let DownloadRequest { pattern, from, to, .. } = request;
        let (found, known) = self.find(request).await?;
        if found.is_empty() && common_prefix(pattern).len() == pattern.len() {
            // A pattern that cannot be a name fails for that reason.
            pattern.trim_end_matches('/').parse::<FileName>()?;
        }
        let chosen = self.select(request, found).await?;
        let is_one_file =
            matches!(chosen.as_slice(), [only] if only.file.name.as_str() == pattern && !only.file.is_directory());
        if let (false, Some(to)) = (is_one_file, to)
            && to.exists()
            && !to.is_dir()
        {
            return Err(DownloadError::NotAFolder(to.clone()));
        }
        let endpoints = if known.is_empty() { self.discovery.endpoints().await } else { known };
        // Before any of the directories is created.
        let files = chosen.iter().map(|found| &found.file);
        let directories = DirectorySet::of(pattern, files, to.as_deref(), self.share).await?;
        let mut folders = BTreeSet::new();
        let jobs = chosen
            .into_iter()
            .map(|IndexedFile { file, owners }| {
                let to = match (is_one_file, to) {
                    (true, to) => to.clone(),
                    (false, Some(to)) => {
                        let path = file.name.below(to);
                        folders.insert(path.parent().unwrap_or(to).to_path_buf());
                        Some(path)
                    }
                    (false, None) => None,
                };
                let providers = shuffled(owners, from.as_ref(), &endpoints, self.me);
                Job { file, providers, to, may_ask_receivers: from.is_none() }
            })
            .collect();
        Ok(Plan { jobs, directories, folders })
    }

    /// Selects the versions to fetch. If no owner has a match, those that other peers receive are considered: their
    /// owners may have left in the meantime.
    async fn select(
        &self,
        request: &DownloadRequest,
        found: Vec<IndexedFile>,
    ) -> Result<Vec<IndexedFile>, DownloadError> {
        let DownloadRequest { pattern, version, from, .. } = request;
        let unfinished = self.share.unfinished().await.map_err(DownloadError::store)?;
        let unfinished: Vec<ContentHash> = unfinished.into_iter().map(|unfinished| unfinished.file.hash).collect();
        let selection = Selection { pattern, version: version.as_ref(), from: from.as_ref(), unfinished: &unfinished };
        match select(selection, found) {
            Err(error @ SelectError::NoMatch { .. }) if from.is_none() => {
                let received = self.discovery.received(listed_prefix(pattern)).await;
                let mut chosen = select(selection, received).map_err(|_| error)?;
                // Receivers have only parts. The engine finds them, and they announce their groups.
                chosen.iter_mut().for_each(|found| found.owners.clear());
                Ok(chosen)
            }
            chosen => Ok(chosen?),
        }
    }

    /// Returns the request with its version as a part of the name if a file is called `name@version`.
    async fn resolve_at_sign(&self, request: &DownloadRequest) -> DownloadRequest {
        let mut literal = request.clone();
        if let Some(version) = literal.version.take() {
            literal.pattern = format!("{}@{version}", literal.pattern);
            if matches!(self.find_name(&literal.pattern, None).await, Ok(Some(_))) {
                return literal;
            }
        }
        request.clone()
    }

    /// Finds the versions that may match a request.
    async fn find(&self, request: &DownloadRequest) -> Result<Found, DownloadError> {
        let (found, endpoints) = match self.find_name(&request.pattern, request.version.as_ref()).await? {
            // A directory that is empty at one owner may have entries at another.
            Some((found, known)) if !found.iter().any(|found| found.file.is_directory()) => (found, known),
            _ => (self.find_prefix(listed_prefix(&request.pattern)).await, BTreeMap::new()),
        };
        Ok((self.without_outdated(found).await?, endpoints))
    }

    /// Removes versions that the index lists only because this peer has not announced their removal yet: their only
    /// owner is this peer, and the share does not have them any more. The share is the authority on its own files.
    async fn without_outdated(&self, mut found: Vec<IndexedFile>) -> Result<Vec<IndexedFile>, DownloadError> {
        let me = self.me.clone();
        let is_own = move |found: &IndexedFile| {
            matches!(found.owners.as_slice(), [owner] if *owner == me) && !found.file.is_directory()
        };
        if !found.iter().any(&is_own) {
            return Ok(found);
        }
        let share = self.share.clone();
        let check = move || {
            found.retain(|found| !is_own(found) || share.open_content(&found.file.hash).is_ok());
            found
        };
        task::spawn_blocking(check).await.map_err(|error| DownloadError::Panicked(error.to_string()))
    }

    /// Returns the versions of a name, with one query of the tracker; `None` if there are none, no tracker answers or
    /// `pattern` is not a name.
    async fn find_name(&self, pattern: &str, version: Option<&HashPrefix>) -> Result<Option<Found>, DownloadError> {
        let Ok(name) = pattern.parse() else { return Ok(None) };
        let wait = params::TRACKER_WAIT_BEFORE_FAN_OUT;
        let versions = match self.discovery.who_has(&name, version, wait).await {
            Ok(versions) => versions,
            Err(TrackerQueryError::NoTracker { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if versions.is_empty() {
            return Ok(None);
        }
        let mut endpoints = BTreeMap::new();
        let files = versions.into_iter().map(|version| {
            let owners = contacts(version.owners);
            let ids = owners.iter().map(|owner| owner.peer.clone()).collect();
            endpoints.extend(owners.into_iter().map(|owner| (owner.peer, owner.endpoint)));
            IndexedFile { file: version.file, owners: ids }
        });
        Ok(Some((files.collect(), endpoints)))
    }

    /// Returns the versions of all names with a prefix, from the tracker; from the known peers if no tracker answers.
    async fn find_prefix(&self, prefix: &str) -> Vec<IndexedFile> {
        match self.discovery.list_all(prefix, params::TRACKER_WAIT_BEFORE_FAN_OUT).await {
            Ok(listing) => listing.files,
            Err(error) => {
                tracing::info!(%error, "no tracker lists the files; asking the known peers");
                self.discovery.ask_around(prefix).await
            }
        }
    }
}
