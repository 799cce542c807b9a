//! Downloads of many small files: staged, made durable and moved to their destinations in groups.
//!
//! ```text
//! inspect ─ stage (write, time, mode) ┐
//!           stage …                   ├─ commit: sync ─ rename each ─ sync the directories ─ (Share::adopt)
//!           stage …                   ┘
//! ```
//!
//! All calls block. Destinations, existing files and final renames follow the same rules as for a single download
//! ([`Destination`], `Occupancy`, `Partial::finalize`).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::AtFlags;
use shared::{content::FileMeta, limits::GROUP_BYTES};
use tracing::warn;

use super::{
    directories::OpenDirectories,
    staging::{SYNC_ALL_FROM, StagingDir},
};
use crate::{
    bao::tree_hash::hash_file,
    store::{
        download::destination::{Destination, Location, Occupancy},
        error::{FileError, FinalizeError, InspectError, SpaceError},
        file_ops::set_attributes,
        file_stat::FileStat,
        index::IndexEntry,
        inner::{ArrivalGuard, Arrivals, HashOutcome, ShareInner},
    },
};

/// Download of many small files. Clones are handles of the same batch. Staged files that are not committed are
/// deleted with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct StagedBatch(Arc<BatchInner>);

#[derive(Debug)]
struct BatchInner {
    share: Arc<ShareInner>,
    /// Preferred parent of the staging directory outside of the share.
    outside: Option<PathBuf>,
    force: bool,
    next_number: AtomicU64,
    staging: Mutex<StagingDirs>,
}

#[derive(Debug, Default)]
struct StagingDirs {
    share: Option<Arc<StagingDir>>,
    /// One for each device, because files cannot be renamed from one to another.
    outside: BTreeMap<u64, Arc<StagingDir>>,
}

/// Result of [`StagedBatch::inspect`].
#[derive(Debug)]
pub(crate) enum Inspected {
    /// The file exists with the wanted content. Includes its index entry if it is in the share.
    Identical(Destination, Option<IndexEntry>),
    /// The file must be fetched.
    Wanted(Destination),
}

/// Complete file in a staging directory, not durable yet.
#[derive(Debug)]
pub(crate) struct Staged {
    destination: Destination,
    meta: FileMeta,
    staging: Arc<StagingDir>,
    number: u64,
}

impl Staged {
    /// Returns the size of the file, bytes.
    pub(crate) fn size(&self) -> u64 {
        self.meta.size
    }
}

/// Result of [`StagedBatch::commit`].
#[derive(Debug)]
pub(crate) struct Committed {
    /// Path of each file, in the order of the group.
    pub(crate) files: Vec<Result<PathBuf, FinalizeError>>,
    /// Argument for [`crate::store::Share::adopt`].
    pub(crate) arrived: Arrivals,
}

impl StagedBatch {
    pub(crate) fn new(share: Arc<ShareInner>, outside: Option<&Path>, force: bool) -> Self {
        let outside = outside.map(Path::to_path_buf);
        let inner = BatchInner { share, outside, force, next_number: AtomicU64::new(0), staging: Mutex::default() };
        Self(Arc::new(inner))
    }

    /// Resolves the destination of a file and compares it with what exists there.
    ///
    /// # Errors
    /// If the destination is invalid, occupied or not writable.
    pub(crate) fn inspect(&self, meta: &FileMeta, to: Option<&Path>) -> Result<Inspected, InspectError> {
        let share = &self.0.share;
        let destination = Destination::resolve(&share.root, &meta.name, to)?;
        match destination.occupancy(meta.hash, meta.size, self.0.force, &share.stopping)? {
            Occupancy::Identical => {
                // A file that has just appeared may not be in the index yet.
                let entry = destination.name().and_then(|name| match share.inspect(name) {
                    HashOutcome::Done(entry) => Some(entry),
                    HashOutcome::Changed | HashOutcome::Gone | HashOutcome::Unreadable(_) | HashOutcome::NoRoom(_) => {
                        None
                    }
                });
                Ok(Inspected::Identical(destination, entry))
            }
            Occupancy::Vacant | Occupancy::Replaceable => {
                // Detects a read-only destination before the first byte is requested.
                self.staging_for(&destination)
                    .map_err(|error| FileError::new("write to", destination.path(), error))?;
                Ok(Inspected::Wanted(destination))
            }
        }
    }

    /// Returns the argument for [`crate::store::Share::adopt`] from the entries of [`Inspected::Identical`].
    pub(crate) fn found(entries: Vec<IndexEntry>) -> Arrivals {
        Arrivals { files: entries, guard: None }
    }

    /// Checks that `bytes` in `files` files fit on the disk, if all of them go to one disk.
    ///
    /// # Errors
    /// If they do not fit, or the free space cannot be determined.
    pub(crate) fn check_space(&self, files: u64, bytes: u64) -> Result<(), SpaceError> {
        let staging = self.staging();
        let mut all = staging.share.iter().chain(staging.outside.values());
        // With several disks, the number of bytes for each is not known.
        let (Some(only), None) = (all.next(), all.next()) else { return Ok(()) };
        let stat = rustix::fs::fstatvfs(only.dir())
            .map_err(|error| FileError::new("look at the disk of", self.0.share.root.path(), error))?;
        // Each file wastes half a block on average.
        let needed = bytes.saturating_add(files.saturating_mul(stat.f_frsize / 2));
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed <= available { Ok(()) } else { Err(SpaceError::NoSpace { files, needed, available }) }
    }

    /// Writes a verified content to a staging directory, with time and mode of `meta`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn stage(
        &self,
        destination: &Destination,
        meta: &FileMeta,
        content: &[u8],
    ) -> Result<Staged, FileError> {
        let write = || -> io::Result<Staged> {
            let staging = self.staging_for(destination)?;
            let number = self.0.next_number.fetch_add(1, Ordering::Relaxed);
            let staged = Staged { destination: destination.clone(), meta: meta.clone(), staging, number };
            let mut file = staged.staging.create(number)?;
            let written =
                file.write_all(content).and_then(|()| set_attributes(&file, meta.mtime_micros, meta.executable));
            if let Err(error) = written {
                staged.staging.discard(number);
                return Err(error);
            }
            if destination.name().is_some() && meta.size > GROUP_BYTES {
                self.create_outboard(&file, meta);
            }
            Ok(staged)
        };
        write().map_err(|error| FileError::new("write", destination.path(), error))
    }

    /// Creates the outboard, with which this peer serves the file by groups.
    fn create_outboard(&self, file: &File, meta: &FileMeta) {
        let share = &self.0.share;
        let create = || -> io::Result<()> {
            if share.outboards.has(meta.hash, meta.size) {
                return Ok(());
            }
            let outboard = share.outboards.create()?;
            hash_file(file, meta.size, Some(outboard.as_file()), &share.stopping)?;
            share.outboards.persist(outboard, meta.hash)
        };
        if let Err(error) = create() {
            // The file itself is complete and is hashed again before it is served.
            warn!(%error, file = %meta.name, "cannot store an outboard");
        }
    }

    /// Makes a group of files durable and moves each to its destination. A file that fails does not affect the others.
    ///
    /// # Errors
    /// If the group cannot be made durable; then no file is at its destination.
    pub(crate) fn commit(&self, group: Vec<Staged>) -> Result<Committed, FileError> {
        let share = &self.0.share;
        let failed = |error: io::Error| FileError::new("write to", share.root.path(), error);
        sync_files(&group).map_err(failed)?;
        let names = group.iter().filter_map(|staged| staged.destination.name().cloned()).collect();
        let guard = Some(ArrivalGuard::new(share, names));
        // By path, so that each directory is opened once.
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by(|one, other| group[*one].destination.path().cmp(group[*other].destination.path()));
        let mut files: Vec<Option<Result<PathBuf, FinalizeError>>> = group.iter().map(|_| None).collect();
        let mut entries = Vec::with_capacity(group.len());
        let mut directories = OpenDirectories::default();
        for at in order {
            let staged = &group[at];
            let moved = directories
                .open(&staged.destination, &share.root)
                .and_then(|dir| self.move_to_destination(staged, dir))
                .or_else(|error| self.accept_identical(staged, error, &mut entries).map(|()| None))
                .and_then(|stat| {
                    let Some(stat) = stat else { return Ok(()) };
                    staged.destination.check_is(&stat)?;
                    if let Some(name) = staged.destination.name() {
                        entries.push(share.own(name.clone(), stat, staged.meta.hash));
                    }
                    Ok(())
                });
            if moved.is_err() {
                staged.staging.discard(staged.number);
            }
            files[at] = Some(moved.map(|()| staged.destination.path().to_path_buf()));
        }
        directories.sync().map_err(failed)?;
        share.remember(&entries);
        let files = files.into_iter().map(|file| file.expect("`order` has every index of the group")).collect();
        Ok(Committed { files, arrived: Arrivals { files: entries, guard } })
    }

    fn move_to_destination(&self, staged: &Staged, dir: &OwnedFd) -> io::Result<Option<FileStat>> {
        let base = staged.destination.base();
        staged.staging.move_to(staged.number, dir, &base, self.0.force)?;
        Ok(Some(FileStat::from_stat(&rustix::fs::statat(dir, &base, AtFlags::SYMLINK_NOFOLLOW)?)))
    }

    /// Accepts a file that appeared at the destination since the inspection if it has the wanted content. Otherwise
    /// returns `error`.
    fn accept_identical(
        &self,
        staged: &Staged,
        error: io::Error,
        entries: &mut Vec<IndexEntry>,
    ) -> Result<(), FinalizeError> {
        if error.kind() == io::ErrorKind::AlreadyExists
            && let Ok(Inspected::Identical(_, entry)) = self.inspect(&staged.meta, Some(staged.destination.path()))
        {
            entries.extend(entry);
            staged.staging.discard(staged.number);
            return Ok(());
        }
        Err(FinalizeError::new(staged.destination.path(), error))
    }

    fn staging(&self) -> MutexGuard<'_, StagingDirs> {
        self.0.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the staging directory from which files can be renamed to this destination.
    fn staging_for(&self, destination: &Destination) -> io::Result<Arc<StagingDir>> {
        let mut staging = self.staging();
        let Location::Outside { dir, .. } = &destination.location else {
            if let Some(existing) = &staging.share {
                return Ok(Arc::clone(existing));
            }
            let created = Arc::new(StagingDir::in_share(&self.0.share.root, "download")?);
            staging.share = Some(Arc::clone(&created));
            return Ok(created);
        };
        let device = device_of(dir)?;
        if let Some(existing) = staging.outside.get(&device) {
            return Ok(Arc::clone(existing));
        }
        let preferred = self.0.outside.as_deref().filter(|dir| device_of(dir).is_ok_and(|other| other == device));
        let created = Arc::new(StagingDir::outside(preferred.unwrap_or(dir))?);
        staging.outside.insert(device, Arc::clone(&created));
        Ok(created)
    }
}

fn device_of(path: &Path) -> io::Result<u64> {
    Ok(FileStat::of(&path.metadata()?).device)
}

/// Syncs the contents of all files.
fn sync_files(group: &[Staged]) -> io::Result<()> {
    if group.len() < SYNC_ALL_FROM {
        return group.iter().try_for_each(|staged| staged.staging.open(staged.number)?.sync_all());
    }
    let mut synced: Vec<&Arc<StagingDir>> = Vec::new();
    for staged in group {
        if !synced.iter().any(|staging| Arc::ptr_eq(staging, &staged.staging)) {
            rustix::fs::syncfs(staged.staging.dir())?;
            synced.push(&staged.staging);
        }
    }
    Ok(())
}
