//! Copies of files and trees into the share.
//!
//! All files are copied and hashed in a staging directory, synced and then renamed. A file is in the share completely
//! or not at all. Invalid names and a full disk are detected before the first rename.

use std::{
    collections::HashSet,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::fs::AtFlags;
use shared::{
    content::ContentHash,
    file_name::{FileName, InvalidFileName},
    limits::GROUP_BYTES,
};
use tempfile::NamedTempFile;

use super::{
    directories::{TreeMetadata, create_in},
    staging::{SYNC_ALL_FROM, StagingDir},
};
use crate::{
    bao::tree_hash::hash_file,
    store::{
        confined_dir::{ConfinedDir, HIDDEN},
        error::{AddError, FileError},
        file_ops::set_attributes,
        file_stat::FileStat,
        index::IndexEntry,
        inner::{ArrivalGuard, Arrivals, HashOutcome, ShareInner},
        scan::scan,
    },
};

/// Copies the file or tree `source` into the share. See [`crate::store::Share::add_copy`].
pub(crate) fn copy(inner: &Arc<ShareInner>, source: &Path) -> Result<Arrivals, AddError> {
    let failed = |error: io::Error| FileError::new("add", source, error);
    let found = source.canonicalize().map_err(failed)?;
    inner.root.reopen().map_err(failed)?;
    if let Some(inside) = inner.root.inside(&found) {
        return Ok(Arrivals { files: entries_in_share(inner, &found, inside)?, guard: None });
    }
    // The file keeps the name that the user gave, even if it is that of a link. `.` and `..` are replaced by the name
    // of the directory.
    let base = source.file_name().or(found.file_name()).unwrap_or_default();
    let base = FileName::from_relative_path(Path::new(base)).map_err(|error| invalid_name(source, error))?;
    let metadata = found.metadata().map_err(failed)?;
    let mut directories = Vec::new();
    let (from, files) = if metadata.is_dir() {
        let from = inner.root.open_other(&found).map_err(failed)?;
        let files;
        (files, directories) = files_below(inner, &from, &base)?;
        (from, files)
    } else if metadata.is_file() {
        let from = inner.root.open_other(found.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        (from, vec![(PathBuf::from(found.file_name().unwrap_or_default()), base.clone())])
    } else {
        return Err(AddError::NotAFile(source.to_path_buf()));
    };
    let metadata = TreeMetadata::of(inner, &base, files.iter().map(|(_, name)| name), &directories);
    let staged = stage(inner, &from, &files)?;
    commit(inner, staged, &directories, || metadata.apply(inner, &from))
}

/// Creates a small text file `name`.
pub(crate) fn note(inner: &Arc<ShareInner>, name: &FileName) -> Result<Arrivals, AddError> {
    let failed = |error: io::Error| FileError::new("add", Path::new(name.as_str()), error);
    let staging = StagingDir::in_share(&inner.root, "add").map_err(failed)?;
    let mut file = staging.create(0).map_err(failed)?;
    let text = format!("Arquivo {name}\n");
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    let hash = ContentHash(*blake3::hash(text.as_bytes()).as_bytes());
    let guard = Some(ArrivalGuard::new(inner, vec![name.clone()]));
    let parent = inner.root.create_parent(name).map_err(failed)?;
    staging.move_to(0, &parent, name.base_name().as_ref(), false).map_err(failed)?;
    rustix::fs::fsync(&parent).map_err(|error| failed(error.into()))?;
    let stat = file.metadata().map(|metadata| FileStat::of(&metadata)).map_err(failed)?;
    let entry = inner.own(name.clone(), stat, hash);
    inner.remember(std::slice::from_ref(&entry));
    Ok(Arrivals { files: vec![entry], guard })
}

fn invalid_name(path: &Path, error: InvalidFileName) -> AddError {
    AddError::InvalidName { path: path.to_path_buf(), error }
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "it is being written to")
}

/// Returns the entries of a source that is in the share already, at `inside`.
fn entries_in_share(inner: &ShareInner, found: &Path, inside: &Path) -> Result<Vec<IndexEntry>, AddError> {
    let failed = |error: io::Error| FileError::new("add", found, error);
    let names: Vec<FileName> = if found.is_dir() {
        let below = |name: &FileName| Path::new(name.as_str()).starts_with(inside);
        let scan = scan(&inner.root, None).map_err(failed)?;
        scan.files.into_keys().filter(below).collect()
    } else {
        vec![FileName::from_relative_path(inside).map_err(|error| invalid_name(found, error))?]
    };
    let inspect = |name: &FileName| match inner.inspect(name) {
        HashOutcome::Done(entry) => Ok(entry),
        HashOutcome::Gone => Err(failed(io::ErrorKind::NotFound.into()).into()),
        HashOutcome::Unreadable(error) | HashOutcome::NoRoom(error) => Err(failed(error).into()),
        HashOutcome::Changed => Err(failed(changed()).into()),
    };
    names.iter().map(inspect).collect()
}

/// Paths of files in a tree, with their names in the share.
type Files = Vec<(PathBuf, FileName)>;

/// Returns the files of the tree `from` and its empty directories. Skips hidden files.
///
/// # Errors
/// If anything in the tree cannot be shared.
fn files_below(inner: &ShareInner, from: &ConfinedDir, base: &FileName) -> Result<(Files, Vec<FileName>), AddError> {
    let failed = |error: io::Error| FileError::new("add", from.path(), error);
    let share = rustix::fs::fstat(inner.root.dir()).map_err(|error| failed(error.into()))?;
    let found = scan(from, Some(FileStat::from_stat(&share).id())).map_err(failed)?;
    if let Some(skipped) = found.skipped.into_iter().next() {
        return Err(AddError::Unshareable { path: from.path().join(&skipped.path), reason: skipped.reason });
    }
    let named = |name: FileName| {
        let full: Result<FileName, _> = format!("{base}/{name}").parse();
        full.map(|full| (name.below(Path::new("")), full))
            .map_err(|error| invalid_name(&from.path().join(name.as_str()), error))
    };
    if found.is_empty {
        return Ok((Vec::new(), vec![base.clone()]));
    }
    let (directories, files): (Vec<_>, Vec<_>) = found.files.into_iter().partition(|(_, stat)| stat.directory);
    let files = files.into_iter().map(|(name, _)| named(name)).collect::<Result<Vec<_>, _>>()?;
    let directories =
        directories.into_iter().map(|(name, _)| Ok(named(name)?.1)).collect::<Result<Vec<_>, AddError>>()?;
    if files.is_empty() && directories.is_empty() {
        return Err(AddError::Empty(base.clone()));
    }
    Ok((files, directories))
}

/// Complete copy in the staging directory.
#[derive(Debug)]
struct StagedCopy {
    number: usize,
    name: FileName,
    file_bytes: u64,
    hash: ContentHash,
    outboard: Option<NamedTempFile>,
}

/// Copies and hashes all files, with several threads, and syncs them.
fn stage(
    inner: &ShareInner,
    from: &ConfinedDir,
    files: &[(PathBuf, FileName)],
) -> Result<(StagingDir, Vec<StagedCopy>), FileError> {
    let hidden = inner.root.path().join(HIDDEN);
    let failed = |error: io::Error| FileError::new("write to", &hidden, error);
    let staging = StagingDir::in_share(&inner.root, "add").map_err(failed)?;
    let sync_each = files.len() < SYNC_ALL_FROM;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let work = || -> Result<(), FileError> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((path, name)) = files.get(number) else { return Ok(()) };
            let staged = stage_one(inner, &staging, from, path, name, number, sync_each).map_err(|error| {
                next.store(files.len(), Ordering::Relaxed);
                FileError::new("add", &from.path().join(path), error)
            })?;
            done.lock().unwrap_or_else(PoisonError::into_inner).push(staged);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(files.len());
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        helpers.into_iter().map(|helper| helper.join().expect("copying does not panic")).fold(own, Result::and)
    })?;
    if !sync_each {
        rustix::fs::syncfs(staging.dir()).map_err(|error| failed(error.into()))?;
    }
    let mut staged = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    staged.sort_by(|one, other| one.name.cmp(&other.name));
    Ok((staging, staged))
}

fn stage_one(
    inner: &ShareInner,
    staging: &StagingDir,
    from: &ConfinedDir,
    path: &Path,
    name: &FileName,
    number: usize,
    sync: bool,
) -> io::Result<StagedCopy> {
    let source = from.open_file(path)?;
    let before = FileStat::of(&source.metadata()?);
    let copy = staging.create(number as u64)?;
    // A reflink shares the blocks. Without support for it, the kernel copies.
    if rustix::fs::ioctl_ficlone(&copy, &source).is_err() {
        io::copy(&mut &source, &mut &copy)?;
    }
    let file_bytes = copy.metadata()?.len();
    if FileStat::of(&source.metadata()?) != before || file_bytes != before.size {
        return Err(changed());
    }
    let outboard = if file_bytes > GROUP_BYTES { Some(inner.outboards.create()?) } else { None };
    let outboard_file = outboard.as_ref().map(|outboard| outboard.as_file());
    let hash = hash_file(&copy, file_bytes, outboard_file, &inner.stopping)?;
    inner.hashed_bytes.fetch_add(file_bytes, Ordering::Relaxed);
    set_attributes(&copy, before.mtime_micros(), before.executable)?;
    if sync {
        copy.sync_all()?;
    }
    Ok(StagedCopy { number, name: name.clone(), file_bytes, hash, outboard })
}

/// Renames the copies to their names in the share and creates the empty `directories`. `apply_metadata` then sets the
/// times and modes of all directories.
fn commit(
    inner: &Arc<ShareInner>,
    (staging, staged): (StagingDir, Vec<StagedCopy>),
    directories: &[FileName],
    apply_metadata: impl FnOnce(),
) -> Result<Arrivals, AddError> {
    check_names(inner, &staged, directories)?;
    let names = staged.iter().map(|copy| &copy.name).chain(directories).cloned().collect();
    let guard = Some(ArrivalGuard::new(inner, names));
    let mut added = Vec::with_capacity(staged.len());
    let mut parents = HashSet::new();
    for copy in staged {
        parents.insert(parent_of(&copy.name));
        added.push(move_into_share(inner, &staging, copy)?);
    }
    for name in directories {
        let failed = |error: io::Error| FileError::new("add", Path::new(name.as_str()), error);
        let parent = inner.root.create_parent(name).map_err(failed)?;
        create_in(&parent, Path::new(name.base_name())).map_err(failed)?;
        parents.insert(parent_of(name));
    }
    // After the last change in a directory, and before the stats of the empty ones are read.
    apply_metadata();
    for name in directories {
        if let HashOutcome::Done(entry) = inner.inspect(name) {
            added.push(entry);
        }
    }
    for parent in parents {
        let dir = inner.root.open_dir(&parent);
        dir.and_then(|dir| Ok(rustix::fs::fsync(&dir)?)).map_err(|error| FileError::new("add to", &parent, error))?;
    }
    inner.remember(&added);
    Ok(Arrivals { files: added, guard })
}

/// Detects existing entries of the wrong kind before the first file is in the share.
fn check_names(inner: &ShareInner, staged: &[StagedCopy], directories: &[FileName]) -> Result<(), AddError> {
    let existing =
        |name: &FileName| name.below(inner.root.path()).symlink_metadata().ok().map(|metadata| metadata.is_dir());
    for StagedCopy { name, .. } in staged {
        if existing(name) == Some(true) {
            return Err(AddError::Exists { name: name.clone(), is_directory: true });
        }
    }
    for name in directories {
        if existing(name) == Some(false) {
            return Err(AddError::Exists { name: name.clone(), is_directory: false });
        }
    }
    Ok(())
}

fn move_into_share(inner: &ShareInner, staging: &StagingDir, copy: StagedCopy) -> Result<IndexEntry, FileError> {
    let StagedCopy { number, name, file_bytes, hash, outboard } = copy;
    let failed = |error: io::Error| FileError::new("add", Path::new(name.as_str()), error);
    let parent = inner.root.create_parent(&name).map_err(failed)?;
    if let Some(outboard) = outboard {
        inner.outboards.persist(outboard, hash).map_err(failed)?;
    }
    staging.move_to(number as u64, &parent, name.base_name().as_ref(), true).map_err(failed)?;
    let stat = rustix::fs::statat(&parent, name.base_name(), AtFlags::SYMLINK_NOFOLLOW);
    let stat = FileStat::from_stat(&stat.map_err(|error| failed(error.into()))?);
    if stat.size == file_bytes { Ok(inner.own(name, stat, hash)) } else { Err(failed(changed())) }
}

fn parent_of(name: &FileName) -> PathBuf {
    Path::new(name.as_str()).parent().map(Path::to_path_buf).unwrap_or_default()
}
