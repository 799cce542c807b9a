//! Directories: creation, times and modes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};
use shared::{content::FileMeta, file_name::FileName, rpc::peer::DirectoryMeta};
use tracing::{debug, warn};

use super::staging::SYNC_ALL_FROM;
use crate::store::{
    confined_dir::ConfinedDir,
    download::destination::Destination,
    error::{CreateDirectoryError, FileError, FinalizeError},
    file_ops::set_attributes,
    file_stat::FileStat,
    inner::{ArrivalGuard, Arrivals, HashOutcome, ShareInner},
};

/// Permission bits that are announced to other peers.
const ANNOUNCED_MODE: u32 = 0o777;
/// Mode bits that an announcement never removes: the permissions of the directory's owner, without which its files
/// could not be written, shared or removed, and the bits that are not announced.
const KEPT_MODE: u32 = 0o7700;

/// Directory of a download with the metadata to be applied to it.
#[derive(Debug, Clone)]
pub(crate) struct DirMetadata {
    /// Name in the share or, for another destination, in the download.
    pub(crate) name: FileName,
    /// Path outside of the share.
    pub(crate) to: Option<PathBuf>,
    /// True if the download created the directory. Only then the mode is applied.
    pub(crate) is_new: bool,
    /// Metadata that an owner announces.
    pub(crate) meta: DirectoryMeta,
}

/// Path of each created directory, and the entries for the index.
type Created = (Vec<Result<PathBuf, CreateDirectoryError>>, Arrivals);

/// Creates empty directories. See [`crate::store::Share::create_directories`].
pub(crate) fn create(inner: &Arc<ShareInner>, wanted: &[(FileMeta, Option<PathBuf>)]) -> Result<Created, FileError> {
    let wanted: Vec<Result<(Destination, &FileMeta), CreateDirectoryError>> = wanted
        .iter()
        .map(|(meta, to)| Ok((Destination::of_directory(&inner.root, &meta.name, to.as_deref())?, meta)))
        .collect();
    let names = wanted.iter().flatten().filter_map(|(destination, _)| destination.name().cloned()).collect();
    let guard = Some(ArrivalGuard::new(inner, names));
    let mut parents = OpenDirectories::default();
    let mut files = Vec::new();
    let mut paths = Vec::with_capacity(wanted.len());
    for destination in wanted {
        let created = destination.and_then(|(destination, meta)| {
            create_one(&inner.root, &mut parents, &destination, meta)?;
            Ok(destination)
        });
        if let Ok(Some(name)) = created.as_ref().map(Destination::name)
            && let HashOutcome::Done(entry) = inner.inspect(name)
        {
            files.push(entry);
        }
        paths.push(created.map(|destination| destination.path().to_path_buf()));
    }
    parents.sync().map_err(|error| FileError::new("write to", inner.root.path(), error))?;
    Ok((paths, Arrivals { files, guard }))
}

fn create_one(
    root: &ConfinedDir,
    parents: &mut OpenDirectories,
    destination: &Destination,
    meta: &FileMeta,
) -> Result<(), CreateDirectoryError> {
    let base = destination.base();
    let set_time = |created: File| set_attributes(&created, meta.mtime_micros, false);
    let created = parents.open(destination, root).and_then(|dir| create_with_time(dir, Path::new(&base), set_time));
    created.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            CreateDirectoryError::Exists(destination.path().to_path_buf())
        }
        _ => FinalizeError::new(destination.path(), error).into(),
    })?;
    let is_there = destination.path().is_dir();
    if is_there { Ok(()) } else { Err(FinalizeError::Displaced(destination.path().to_path_buf()).into()) }
}

/// Creates the directory `base` in `dir` and calls `set_time` on a new one. Failure to set the time is logged only.
///
/// # Errors
/// As [`create_in`].
fn create_with_time(dir: impl AsFd, base: &Path, set_time: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    if create_in(&dir, base)?
        && let Err(error) = open_in(&dir, base).and_then(set_time)
    {
        warn!(%error, directory = %base.display(), "cannot set the time of a directory");
    }
    Ok(())
}

/// Creates the directory `base` in `dir`. Returns false if it exists.
///
/// # Errors
/// `AlreadyExists` if `base` is something other than a directory.
pub(crate) fn create_in(dir: impl AsFd, base: &Path) -> io::Result<bool> {
    match rustix::fs::mkdirat(&dir, base, Mode::from_raw_mode(0o777)) {
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                Ok(false)
            } else {
                Err(Errno::EXIST.into())
            }
        }
        created => Ok(created.map(|()| true)?),
    }
}

fn open_in(dir: impl AsFd, base: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&dir, base, flags, Mode::empty())?.into())
}

/// Returns the metadata of a directory of the share, or `None` if it contains nothing shared.
pub(crate) fn shared_meta(inner: &ShareInner, name: &FileName) -> Option<DirectoryMeta> {
    let is_shared = {
        let index = inner.index();
        index.has_below(name) || index.file(name).is_some_and(|entry| entry.meta.is_directory())
    };
    if !is_shared {
        return None;
    }
    read_meta(&inner.root, &name.below(Path::new("")))
        .inspect_err(|error| debug!(%error, directory = %name, "cannot read the metadata of a directory"))
        .ok()
}

fn read_meta(root: &ConfinedDir, relative: &Path) -> io::Result<DirectoryMeta> {
    let metadata = File::from(root.open_dir(relative)?).metadata()?;
    let mode = u16::try_from(metadata.mode() & ANNOUNCED_MODE).unwrap_or_default();
    Ok(DirectoryMeta { mtime_micros: FileStat::of(&metadata).mtime_micros(), mode })
}

/// Sets time and, on new directories, mode. Logs and skips a directory that is gone or belongs to another user.
pub(crate) fn apply_all(root: &ConfinedDir, wanted: &[DirMetadata]) {
    for_each(wanted, |DirMetadata { name, to, is_new, meta }| {
        apply(&open_directory(root, name, to.as_deref())?, meta, *is_new)
    });
}

/// Sets the modes of the new directories among `wanted` that exist.
pub(crate) fn restrict_all(root: &ConfinedDir, wanted: &[DirMetadata]) {
    for_each(wanted, |DirMetadata { name, to, is_new, meta }| {
        let path = to.clone().unwrap_or_else(|| name.below(root.path()));
        // Opening a missing directory would create the directories above it.
        if !is_new || path.symlink_metadata().is_err() {
            return Ok(());
        }
        let dir = open_directory(root, name, to.as_deref())?;
        restrict(&dir, dir.metadata()?.mode(), meta)
    });
}

fn for_each(wanted: &[DirMetadata], act: impl Fn(&DirMetadata) -> io::Result<()>) {
    for directory in wanted {
        if let Err(error) = act(directory) {
            warn!(%error, directory = %directory.name, "cannot set the time or mode of a directory");
        }
    }
}

/// Opens the directory `name` of the share, or that at `to`. Creates the directories above it in the share.
fn open_directory(root: &ConfinedDir, name: &FileName, to: Option<&Path>) -> io::Result<File> {
    let destination = Destination::of_directory(root, name, to).map_err(io::Error::other)?;
    let (parent, base) = destination.open_dir(root)?;
    open_in(&parent, Path::new(&base))
}

/// Sets the time and, with `is_new`, the mode.
fn apply(dir: &File, meta: &DirectoryMeta, is_new: bool) -> io::Result<()> {
    let current = dir.metadata()?;
    if is_new {
        restrict(dir, current.mode(), meta)?;
    }
    // Setting the same time would trigger a file-system notification.
    if FileStat::of(&current).mtime_micros() == meta.mtime_micros {
        return Ok(());
    }
    set_attributes(dir, meta.mtime_micros, false)
}

/// Removes the permissions from the `current` mode that `meta` does not grant. Never adds permissions that the umask
/// removed.
fn restrict(dir: &File, current: u32, meta: &DirectoryMeta) -> io::Result<()> {
    let mode = current & (u32::from(meta.mode) | KEPT_MODE) & 0o7777;
    if mode == current & 0o7777 { Ok(()) } else { dir.set_permissions(Permissions::from_mode(mode)) }
}

/// Directories of a tree that is being copied into the share, to set their metadata when all files are in them.
#[derive(Debug)]
pub(crate) struct TreeMetadata(Vec<TreeDirectory>);

#[derive(Debug)]
struct TreeDirectory {
    name: FileName,
    /// Path below the source.
    below: PathBuf,
    is_new: bool,
}

impl TreeMetadata {
    /// Collects the directories of `names` and the `empty` directories, in the copy `base` of a tree. Must be called
    /// before any of them is created.
    pub(crate) fn of<'a>(
        inner: &ShareInner,
        base: &FileName,
        names: impl Iterator<Item = &'a FileName>,
        empty: &'a [FileName],
    ) -> Self {
        let above = names.chain(empty).flat_map(FileName::directories);
        let all: BTreeSet<&str> = above.chain(empty.iter().map(FileName::as_str)).collect();
        let directories = all.into_iter().filter_map(|directory| {
            let name: FileName = directory.parse().ok()?;
            let below = Path::new(directory).strip_prefix(base.as_str()).ok()?.to_path_buf();
            let is_new = name.below(inner.root.path()).symlink_metadata().is_err();
            Some(TreeDirectory { name, below, is_new })
        });
        Self(directories.collect())
    }

    /// Copies times and modes from the source tree `from`. Must be called after the last change in the directories.
    /// Failure is logged only, since a directory may belong to another user.
    pub(crate) fn apply(&self, inner: &ShareInner, from: &ConfinedDir) {
        for TreeDirectory { name, below, is_new } in &self.0 {
            let applied = open_directory(&inner.root, name, None)
                .and_then(|directory| apply(&directory, &read_meta(from, below)?, *is_new));
            if let Err(error) = applied {
                warn!(%error, directory = %name, "cannot set the time of a directory");
            }
        }
    }
}

/// Directories that files are moved into. Keeps the last one open, and syncs all of them at the end.
#[derive(Debug, Default)]
pub(crate) struct OpenDirectories {
    current: Option<(PathBuf, OwnedFd)>,
    /// Directories to be synced, up to [`SYNC_ALL_FROM`].
    touched: Vec<OwnedFd>,
    /// With more directories, one directory of each file system, which is synced as a whole.
    disks: BTreeMap<u64, OwnedFd>,
}

impl OpenDirectories {
    /// Returns the directory of a destination. Creates missing directories in the share.
    pub(crate) fn open(&mut self, destination: &Destination, root: &ConfinedDir) -> io::Result<&OwnedFd> {
        let parent = destination.path().parent().unwrap_or(Path::new("/"));
        if self.current.as_ref().is_none_or(|(path, _)| path != parent) {
            let (dir, _) = destination.open_dir(root)?;
            self.touch(dir.try_clone()?)?;
            self.current = Some((parent.to_path_buf(), dir));
        }
        self.current.as_ref().map(|(_, dir)| dir).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn touch(&mut self, dir: OwnedFd) -> io::Result<()> {
        if self.touched.len() < SYNC_ALL_FROM && self.disks.is_empty() {
            self.touched.push(dir);
            return Ok(());
        }
        for dir in self.touched.drain(..).chain([dir]) {
            let device = FileStat::from_stat(&rustix::fs::fstat(&dir)?).device;
            self.disks.entry(device).or_insert(dir);
        }
        Ok(())
    }

    /// Makes the entries of all directories durable.
    pub(crate) fn sync(self) -> io::Result<()> {
        for dir in &self.touched {
            rustix::fs::fsync(dir)?;
        }
        for disk in self.disks.values() {
            rustix::fs::syncfs(disk.as_fd())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs, time::Duration};

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn create_with_time_ignores_an_error_of_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let above = File::open(dir.path()).unwrap();
        let calls = Cell::new(0);
        let create = |base: &str| {
            create_with_time(&above, Path::new(base), |_| {
                calls.set(calls.get() + 1);
                Err(io::ErrorKind::PermissionDenied.into())
            })
        };
        create("d").unwrap();
        assert!(dir.path().join("d").is_dir() && calls.get() == 1);
        create("d").unwrap();
        assert_eq!(calls.get(), 1, "an existing directory keeps its time");
        fs::write(dir.path().join("f"), "mine").unwrap();
        assert_eq!(create("f").unwrap_err().kind(), io::ErrorKind::AlreadyExists, "a file exists");
    }

    #[test]
    fn apply_removes_rights_and_never_adds_any() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        fs::create_dir(&path).unwrap();
        let applied = |before: u32, announced: u16, is_new: bool| {
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            let meta = DirectoryMeta { mtime_micros: -1_000_000, mode: announced };
            apply(&File::open(&path).unwrap(), &meta, is_new).unwrap();
            let before_1970 = std::time::SystemTime::UNIX_EPOCH - Duration::from_secs(1);
            assert_eq!(path.metadata().unwrap().modified().unwrap(), before_1970);
            mode(&path)
        };
        assert_eq!(applied(0o755, 0o777, true), 0o755, "the umask is respected");
        assert_eq!(applied(0o755, 0o750, true), 0o750);
        assert_eq!(applied(0o2775, 0o000, true), 0o2700, "the user keeps all rights");
        assert_eq!(applied(0o755, 0o700, false), 0o755, "an existing directory keeps its mode");
    }
}
