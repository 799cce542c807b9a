//! Directories: those with nothing in them come in without that anybody has to send anything, and all get time and mode.

use std::{
    collections::BTreeSet,
    fs::{File, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags},
    io::Errno,
};
use shared::{
    content::FileMeta,
    error::{Failure, FailureCode},
    file_name::FileName,
    rpc::peer::DirectoryMeta,
};
use tokio::task;
use tracing::{debug, warn};

use super::batch::Directories;
use crate::store::{
    confined_dir::ConfinedDir,
    download::{destination::Destination, partial},
    error::{io_failure, thread_failure},
    file_stat::FileStat,
    inner::{ArrivalGuard, Arrivals, HashOutcome, ShareInner},
    share::Share,
};

/// The permission bits that are told to others.
const TOLD_MODE: u32 = 0o777;
/// What nobody's announcement takes from a directory: its user's own rights (without them what is in it could not be written,
/// shared or removed), and the bits that are not told.
const KEPT_MODE: u32 = 0o7700;

/// A directory that files were put into, and what it is to be.
#[derive(Debug, Clone)]
pub(crate) struct DirMetadata {
    /// Its name.
    pub(crate) name: FileName,
    /// Where it lies, if not in the share under its name.
    pub(crate) to: Option<PathBuf>,
    /// It was not there before: then it gets the mode too.
    pub(crate) is_new: bool,
    /// As its owner describes it.
    pub(crate) meta: DirectoryMeta,
}

impl Share {
    /// Makes directories with nothing in them, each in the share or, when it says where, there; durably. One that is there already
    /// stays as it is, whatever is in it. Returns where each lies or why not.
    ///
    /// # Errors
    /// When no thread can be started or the disk fails to make them durable.
    pub(crate) async fn create_directories(
        &self,
        wanted: Vec<(FileMeta, Option<PathBuf>)>,
    ) -> Result<Vec<Result<PathBuf, Failure>>, Failure> {
        let inner = Arc::clone(&self.inner);
        let made = task::spawn_blocking(move || make(&inner, &wanted));
        let (places, arrived) = made.await.map_err(|error| thread_failure(&error))??;
        self.adopt(arrived).await?;
        Ok(places)
    }

    /// What can be told of directories of the share, in the order of `names`; nothing of one in which nothing is shared.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) async fn directories(
        &self,
        names: Vec<Option<FileName>>,
    ) -> Result<Vec<Option<DirectoryMeta>>, Failure> {
        let inner = Arc::clone(&self.inner);
        let look = move || names.iter().map(|name| look(&inner, name.as_ref()?)).collect();
        task::spawn_blocking(look).await.map_err(|error| thread_failure(&error))
    }

    /// Gives directories their times and modes, once all that comes into them is there. One that has gone, or is not this user's, is
    /// no hindrance.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) async fn apply_dir_metadata(&self, wanted: Vec<DirMetadata>) -> Result<(), Failure> {
        self.each_directory(wanted, describe_one).await
    }

    /// Gives those of them that are new and there their modes only: for a download that ends before all is there. When it is repeated
    /// they are not new any more.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) async fn restrict_dir_modes(&self, mut wanted: Vec<DirMetadata>) -> Result<(), Failure> {
        wanted.retain(|directory| directory.is_new);
        self.each_directory(wanted, narrow_one).await
    }

    async fn each_directory(
        &self,
        wanted: Vec<DirMetadata>,
        act: fn(&ShareInner, &DirMetadata) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let inner = Arc::clone(&self.inner);
        let act_on_all = move || {
            for directory in &wanted {
                if let Err(error) = act(&inner, directory) {
                    warn!(%error, name = %directory.name, "a directory does not get its time or mode");
                }
            }
        };
        task::spawn_blocking(act_on_all).await.map_err(|error| thread_failure(&error))
    }
}

/// Where each directory lies or why not, and what the index is to know of them.
type Made = (Vec<Result<PathBuf, Failure>>, Arrivals);

fn make(inner: &Arc<ShareInner>, wanted: &[(FileMeta, Option<PathBuf>)]) -> Result<Made, Failure> {
    let wanted: Vec<Result<(Destination, &FileMeta), Failure>> = wanted
        .iter()
        .map(|(meta, to)| Ok((Destination::of_directory(&inner.root, &meta.name, to.as_deref())?, meta)))
        .collect();
    let names = wanted.iter().flatten().filter_map(|(destination, _)| destination.name().cloned()).collect();
    let arriving = Some(ArrivalGuard::new(inner, names));
    let mut parents = Directories::default();
    let mut files = Vec::new();
    let mut places = Vec::with_capacity(wanted.len());
    for destination in wanted {
        let made = destination.and_then(|(destination, meta)| {
            make_one(inner, &mut parents, &destination, meta)?;
            Ok(destination)
        });
        if let Ok(Some(name)) = made.as_ref().map(Destination::name)
            && let HashOutcome::Done(known) = inner.inspect(name)
        {
            files.push(known);
        }
        places.push(made.map(|destination| destination.path().to_path_buf()));
    }
    parents.sync().map_err(|error| io_failure("write to", inner.root.path(), &error))?;
    Ok((places, Arrivals { files, arriving }))
}

fn make_one(
    inner: &ShareInner,
    parents: &mut Directories,
    destination: &Destination,
    meta: &FileMeta,
) -> Result<(), Failure> {
    let in_the_way =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory);
    let base = destination.base();
    let set_time = |made: File| partial::set_attributes(&made, meta.mtime_micros, false);
    let made = parents.open(destination, inner).and_then(|dir| make_at_time(dir, Path::new(&base), set_time));
    made.map_err(|error| {
        if in_the_way(&error) {
            let what = format!("cannot make the directory {}", destination.path().display().to_string().escape_debug());
            let hint = "remove it or choose another place with --to";
            return Failure::new(FailureCode::Exists, what, "something else of that name is there", hint);
        }
        destination.cannot_complete(&error)
    })
}

/// Makes the directory `base` in `dir`, and has `set_time` set its time if it was not there.
///
/// # Errors
/// As [`make_in`]. That it does not get its time is none: it is there, which is what was asked for.
fn make_at_time(dir: impl AsFd, base: &Path, set_time: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    if make_in(&dir, base)?
        && let Err(error) = open_in(&dir, base).and_then(set_time)
    {
        warn!(%error, name = %base.display(), "a directory does not get its time");
    }
    Ok(())
}

/// Makes the directory `base` in `dir`; whether it was not there.
///
/// # Errors
/// `AlreadyExists` when something else is there.
pub(crate) fn make_in(dir: impl AsFd, base: &Path) -> io::Result<bool> {
    match rustix::fs::mkdirat(&dir, base, Mode::from_raw_mode(0o777)) {
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                Ok(false)
            } else {
                Err(Errno::EXIST.into())
            }
        }
        made => Ok(made.map(|()| true)?),
    }
}

fn open_in(dir: impl AsFd, base: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&dir, base, flags, Mode::empty())?.into())
}

fn look(inner: &ShareInner, name: &FileName) -> Option<DirectoryMeta> {
    let is_shared = {
        let index = inner.index();
        index.has_below(name) || index.file(name).is_some_and(|known| known.meta.is_directory())
    };
    if !is_shared {
        return None;
    }
    read(&inner.root, &name.below(Path::new("")))
        .inspect_err(|error| debug!(%error, %name, "a directory cannot be looked at"))
        .ok()
}

fn read(root: &ConfinedDir, relative: &Path) -> io::Result<DirectoryMeta> {
    let metadata = File::from(root.open_dir(relative)?).metadata()?;
    let mode = u16::try_from(metadata.mode() & TOLD_MODE).unwrap_or_default();
    Ok(DirectoryMeta { mtime_micros: FileStat::of(&metadata).mtime_micros(), mode })
}

fn describe_one(inner: &ShareInner, directory: &DirMetadata) -> io::Result<()> {
    let DirMetadata { name, to, is_new, meta } = directory;
    describe(&open_directory(inner, name, to.as_deref())?, meta, *is_new)
}

fn narrow_one(inner: &ShareInner, directory: &DirMetadata) -> io::Result<()> {
    let DirMetadata { name, to, meta, .. } = directory;
    let path = to.clone().unwrap_or_else(|| name.below(inner.root.path()));
    if path.symlink_metadata().is_err() {
        // Nothing has come into it yet; opening it would make those above it.
        return Ok(());
    }
    let dir = open_directory(inner, name, to.as_deref())?;
    narrow(&dir, dir.metadata()?.mode(), meta)
}

/// Opens the directory `name` of the share, or that at `to`. Those above it in the share are made.
fn open_directory(inner: &ShareInner, name: &FileName, to: Option<&Path>) -> io::Result<File> {
    let destination =
        Destination::of_directory(&inner.root, name, to).map_err(|failure| io::Error::other(failure.to_string()))?;
    let (parent, base) = destination.open_dir(&inner.root)?;
    open_in(&parent, Path::new(&base))
}

/// Sets the time; with `is_new` the mode too.
fn describe(dir: &File, meta: &DirectoryMeta, is_new: bool) -> io::Result<()> {
    let now = dir.metadata()?;
    if is_new {
        narrow(dir, now.mode(), meta)?;
    }
    // Set to what it is, it would look changed to who watches it.
    if FileStat::of(&now).mtime_micros() == meta.mtime_micros {
        return Ok(());
    }
    partial::set_attributes(dir, meta.mtime_micros, false)
}

/// Sets the mode, which is `now`, as far as it takes rights of others away: what the umask leaves is never widened.
fn narrow(dir: &File, now: u32, meta: &DirectoryMeta) -> io::Result<()> {
    let mode = now & (u32::from(meta.mode) | KEPT_MODE) & 0o7777;
    if mode == now & 0o7777 { Ok(()) } else { dir.set_permissions(Permissions::from_mode(mode)) }
}

/// The directories of a tree that is copied into the share, to describe the copies when all is in them.
#[derive(Debug)]
pub(crate) struct Copied(Vec<(FileName, PathBuf, bool)>);

impl Copied {
    /// The directories that `names` lie in, and `empty`, which are some themselves; all of them copies of what lies in `from`, which
    /// itself is called `base`. Called before any of it is there.
    pub(crate) fn of<'a>(
        inner: &ShareInner,
        base: &FileName,
        names: impl Iterator<Item = &'a FileName>,
        empty: &'a [FileName],
    ) -> Self {
        let above = names.chain(empty).flat_map(FileName::directories);
        let all: BTreeSet<&str> = above.chain(empty.iter().map(FileName::as_str)).collect();
        let copied = all.into_iter().filter_map(|directory| {
            let name: FileName = directory.parse().ok()?;
            let below = Path::new(directory).strip_prefix(base.as_str()).ok()?.to_path_buf();
            let is_new = name.below(inner.root.path()).symlink_metadata().is_err();
            Some((name, below, is_new))
        });
        Self(copied.collect())
    }

    /// Gives them the times and modes of what they are copies of; called when all is in place. One that is not this user's is no
    /// hindrance.
    pub(crate) fn describe(&self, inner: &ShareInner, from: &ConfinedDir) {
        for (name, below, is_new) in &self.0 {
            let described =
                || -> io::Result<()> { describe(&open_directory(inner, name, None)?, &read(from, below)?, *is_new) };
            if let Err(error) = described() {
                warn!(%error, %name, "a directory does not get its time");
            }
        }
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
    fn an_empty_directory_whose_time_cannot_be_set_has_come_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let above = File::open(dir.path()).unwrap();
        let tried = Cell::new(0);
        let make = |base: &str| {
            make_at_time(&above, Path::new(base), |_| {
                tried.set(tried.get() + 1);
                Err(io::ErrorKind::PermissionDenied.into())
            })
        };
        make("d").unwrap();
        assert!(dir.path().join("d").is_dir() && tried.get() == 1);
        make("d").unwrap();
        assert_eq!(tried.get(), 1, "one that is there already keeps its time");
        fs::write(dir.path().join("f"), "mine").unwrap();
        assert_eq!(make("f").unwrap_err().kind(), io::ErrorKind::AlreadyExists, "no directory is there");
    }

    #[test]
    fn a_mode_takes_rights_from_others_and_never_gives_any() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        fs::create_dir(&path).unwrap();
        let described = |before: u32, announced: u16, is_new: bool| {
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            let meta = DirectoryMeta { mtime_micros: -1_000_000, mode: announced };
            describe(&File::open(&path).unwrap(), &meta, is_new).unwrap();
            let before_1970 = std::time::SystemTime::UNIX_EPOCH - Duration::from_secs(1);
            assert_eq!(path.metadata().unwrap().modified().unwrap(), before_1970);
            mode(&path)
        };
        assert_eq!(described(0o755, 0o777, true), 0o755, "what the umask took stays away");
        assert_eq!(described(0o755, 0o750, true), 0o750);
        assert_eq!(described(0o2775, 0o000, true), 0o2700, "the user can go on working in it");
        assert_eq!(described(0o755, 0o700, false), 0o755, "it was there before");
    }
}
