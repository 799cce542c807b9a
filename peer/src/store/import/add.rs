//! Copies into the share.
//!
//! Everything is copied and hashed under a hidden directory first, then synced, then renamed: a file is either in
//! the share, whole, or not at all, and a name that cannot be shared or a full disk is found before anything is in.

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
    error::{Failure, FailureCode},
    file_name::FileName,
    limits::GROUP_BYTES,
};
use tempfile::NamedTempFile;

use super::{
    directories::{Copied, make_in},
    staging::{SYNC_ALL_FROM, Stage},
};
use crate::{
    bao::tree_hash::hash_file,
    store::{
        confined_dir::{HIDDEN, Root},
        download::partial::describe,
        error::io_failure,
        file_stat::Stamp,
        index::Known,
        scan::scan,
        state::{Arrived, Arriving, Hashed, Shared},
    },
};

/// Copies the file or directory tree `source` into the share. See [`crate::store::Share::add_copy`].
pub(crate) fn copy(shared: &Arc<Shared>, source: &Path) -> Result<Arrived, Failure> {
    let failed = |error: io::Error| io_failure("add", source, &error);
    let found = source.canonicalize().map_err(failed)?;
    if let Ok(inside) = found.strip_prefix(shared.root.path()) {
        return Ok(Arrived { files: know(shared, &found, inside)?, arriving: None });
    }
    // The name is the one that the user gave, even if that is a link; `.` and `..` have none of their own.
    let base = source.file_name().or(found.file_name()).unwrap_or_default();
    let base = FileName::from_relative_path(Path::new(base)).map_err(|error| cannot_share(source, &error))?;
    let metadata = found.metadata().map_err(failed)?;
    let mut directories = Vec::new();
    let (from, files) = if metadata.is_dir() {
        let from = Root::open(&found).map_err(failed)?;
        let files;
        (files, directories) = files_below(shared, &from, &base)?;
        (from, files)
    } else if metadata.is_file() {
        let from = Root::open(found.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        (from, vec![(PathBuf::from(found.file_name().unwrap_or_default()), base.clone())])
    } else {
        let hint = "give a file or a folder";
        let what = format!("cannot add {}", source.display().to_string().escape_debug());
        return Err(Failure::new(FailureCode::Io, what, "it is neither a file nor a directory", hint));
    };
    let copied = Copied::of(shared, &base, files.iter().map(|(_, name)| name), &directories);
    let staged = stage(shared, &from, &files)?;
    put_in_place(shared, staged, directories, || copied.describe(shared, &from))
}

/// Makes the small text file that the original makes for a name that is nowhere.
pub(crate) fn note(shared: &Arc<Shared>, name: &FileName) -> Result<Arrived, Failure> {
    let failed = |error: io::Error| io_failure("add", Path::new(name.as_str()), &error);
    let stage = Stage::in_share(&shared.root, "add").map_err(failed)?;
    let mut file = stage.create(0).map_err(failed)?;
    let text = format!("Arquivo {name}\n");
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    let hash = ContentHash(*blake3::hash(text.as_bytes()).as_bytes());
    let arriving = Some(Arriving::new(shared, vec![name.clone()]));
    let parent = shared.root.create_parent(name).map_err(failed)?;
    stage.place(0, &parent, name.base_name().as_ref(), false).map_err(failed)?;
    rustix::fs::fsync(&parent).map_err(|error| failed(error.into()))?;
    let stamp = file.metadata().map(|metadata| Stamp::of(&metadata)).map_err(failed)?;
    let known = shared.own(name.clone(), stamp, hash);
    shared.remember(std::slice::from_ref(&known));
    Ok(Arrived { files: vec![known], arriving })
}

fn cannot_share(path: &Path, error: &shared::file_name::InvalidFileName) -> Failure {
    let what = format!("cannot add {}", path.display().to_string().escape_debug());
    Failure::new(FailureCode::InvalidName, what, error, "rename it and try again")
}

/// The source lies in the share: its files only have to be known.
fn know(shared: &Shared, found: &Path, inside: &Path) -> Result<Vec<Known>, Failure> {
    let names: Vec<FileName> = if found.is_dir() {
        let below = |name: &FileName| Path::new(name.as_str()).starts_with(inside);
        let scan = scan(&shared.root, None).map_err(|error| io_failure("add", found, &error))?;
        scan.files.into_keys().filter(below).collect()
    } else {
        vec![FileName::from_relative_path(inside).map_err(|error| cannot_share(found, &error))?]
    };
    let look = |name: &FileName| match shared.look_at(name) {
        Hashed::Done(known) => Ok(known),
        Hashed::Gone => Err(io_failure("add", found, &io::ErrorKind::NotFound.into())),
        Hashed::Unreadable(error) => Err(io_failure("add", found, &error)),
        Hashed::Changed => Err(io_failure("add", found, &changed())),
    };
    names.iter().map(look).collect()
}

/// The files of a tree, with the names they get.
type Files = Vec<(PathBuf, FileName)>;

/// The files of a tree, and the names of the directories with nothing in them. Hidden files are left out; a name that cannot be shared
/// fails it all.
fn files_below(shared: &Shared, from: &Root, base: &FileName) -> Result<(Files, Vec<FileName>), Failure> {
    let share = rustix::fs::fstat(shared.root.dir()).map_err(|error| io_failure("add", from.path(), &error.into()))?;
    let found =
        scan(from, Some(Stamp::from_stat(&share).id())).map_err(|error| io_failure("add", from.path(), &error))?;
    if let Some(skipped) = found.skipped.first() {
        let what = format!("cannot add {}", from.path().join(&skipped.path).display().to_string().escape_debug());
        let hint = "remove or rename it, or add the other files one by one";
        return Err(Failure::new(FailureCode::InvalidName, what, &skipped.reason, hint));
    }
    let named = |name: FileName| {
        let full: Result<FileName, _> = format!("{base}/{name}").parse();
        full.map(|full| (name.below(Path::new("")), full))
            .map_err(|error| cannot_share(&from.path().join(name.as_str()), &error))
    };
    if found.nothing {
        return Ok((Vec::new(), vec![base.clone()]));
    }
    let (directories, files): (Vec<_>, Vec<_>) = found.files.into_iter().partition(|(_, stamp)| stamp.directory);
    let files = files.into_iter().map(|(name, _)| named(name)).collect::<Result<Vec<_>, _>>()?;
    let directories =
        directories.into_iter().map(|(name, _)| Ok::<_, Failure>(named(name)?.1)).collect::<Result<Vec<_>, _>>()?;
    if files.is_empty() && directories.is_empty() {
        let what = format!("cannot add {base}");
        let hint = "give a folder with files; hidden ones do not count";
        return Err(Failure::new(FailureCode::NoSuchFile, what, "there are no files in it", hint));
    }
    Ok((files, directories))
}

/// A complete copy.
#[derive(Debug)]
struct Staged {
    number: usize,
    name: FileName,
    file_bytes: u64,
    hash: ContentHash,
    outboard: Option<NamedTempFile>,
}

/// Copies and hashes all files, by several threads, and makes them durable.
fn stage(shared: &Shared, from: &Root, files: &[(PathBuf, FileName)]) -> Result<(Stage, Vec<Staged>), Failure> {
    let hidden = shared.root.path().join(HIDDEN);
    let stage = Stage::in_share(&shared.root, "add").map_err(|error| io_failure("write to", &hidden, &error))?;
    let sync_each = files.len() < SYNC_ALL_FROM;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(files.len()));
    let work = || -> Result<(), Failure> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((path, name)) = files.get(number) else { return Ok(()) };
            let staged = stage_one(shared, &stage, from, path, name, number, sync_each).map_err(|error| {
                next.store(files.len(), Ordering::Relaxed);
                io_failure("add", &from.path().join(path), &error)
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
        rustix::fs::syncfs(stage.dir()).map_err(|error| io_failure("write to", &hidden, &error.into()))?;
    }
    let mut staged = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    staged.sort_by(|one, other| one.name.cmp(&other.name));
    Ok((stage, staged))
}

fn stage_one(
    shared: &Shared,
    stage: &Stage,
    from: &Root,
    path: &Path,
    name: &FileName,
    number: usize,
    sync: bool,
) -> io::Result<Staged> {
    let source = from.open_file(path)?;
    let before = Stamp::of(&source.metadata()?);
    let copy = stage.create(number as u64)?;
    // Shares the blocks where the file system can; else the kernel copies.
    if rustix::fs::ioctl_ficlone(&copy, &source).is_err() {
        io::copy(&mut &source, &mut &copy)?;
    }
    let file_bytes = copy.metadata()?.len();
    if Stamp::of(&source.metadata()?) != before || file_bytes != before.size {
        return Err(changed());
    }
    let outboard = if file_bytes > GROUP_BYTES { Some(shared.outboards.create()?) } else { None };
    let outboard_file = outboard.as_ref().map(|outboard| outboard.as_file());
    let hash = hash_file(&copy, file_bytes, outboard_file, &shared.stopping)?;
    shared.hashed_bytes.fetch_add(file_bytes, Ordering::Relaxed);
    describe(&copy, before.mtime_micros(), before.executable)?;
    if sync {
        copy.sync_all()?;
    }
    Ok(Staged { number, name: name.clone(), file_bytes, hash, outboard })
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "it is being written to")
}

/// Renames the copies to where they belong, and makes the directories with nothing in them; `describe` gives all directories their times
/// and modes.
fn put_in_place(
    shared: &Arc<Shared>,
    (stage, staged): (Stage, Vec<Staged>),
    directories: Vec<FileName>,
    describe: impl FnOnce(),
) -> Result<Arrived, Failure> {
    // A directory in the way is found before the first file is in.
    for Staged { name, .. } in &staged {
        let path = name.below(shared.root.path());
        if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            let what = format!("cannot add {name}");
            let hint = "remove that or rename what you add";
            return Err(Failure::new(FailureCode::Exists, what, "a directory of that name is in the share", hint));
        }
    }
    for name in &directories {
        if name.below(shared.root.path()).symlink_metadata().is_ok_and(|metadata| !metadata.is_dir()) {
            let what = format!("cannot add {name}");
            let hint = "remove that or rename what you add";
            return Err(Failure::new(FailureCode::Exists, what, "a file of that name is in the share", hint));
        }
    }
    let names = staged.iter().map(|Staged { name, .. }| name).chain(&directories).cloned().collect();
    let arriving = Some(Arriving::new(shared, names));
    let mut added = Vec::with_capacity(staged.len());
    let mut parents = HashSet::new();
    for Staged { number, name, file_bytes, hash, outboard } in staged {
        let failed = |error: io::Error| io_failure("add", Path::new(name.as_str()), &error);
        let parent = shared.root.create_parent(&name).map_err(failed)?;
        if let Some(outboard) = outboard {
            shared.outboards.keep(outboard, hash).map_err(failed)?;
        }
        stage.place(number as u64, &parent, name.base_name().as_ref(), true).map_err(failed)?;
        let stat = rustix::fs::statat(&parent, name.base_name(), AtFlags::SYMLINK_NOFOLLOW);
        let stamp = Stamp::from_stat(&stat.map_err(|error| failed(error.into()))?);
        parents.insert(Path::new(name.as_str()).parent().map(Path::to_path_buf).unwrap_or_default());
        if stamp.size == file_bytes {
            added.push(shared.own(name, stamp, hash));
        } else {
            return Err(failed(changed()));
        }
    }
    for name in &directories {
        let failed = |error: io::Error| io_failure("add", Path::new(name.as_str()), &error);
        let parent = shared.root.create_parent(name).map_err(failed)?;
        make_in(&parent, Path::new(name.base_name())).map_err(failed)?;
        parents.insert(Path::new(name.as_str()).parent().map(Path::to_path_buf).unwrap_or_default());
    }
    // After the last that comes into one of them, and before their times are looked at.
    describe();
    for name in &directories {
        if let Hashed::Done(known) = shared.look_at(name) {
            added.push(known);
        }
    }
    for parent in parents {
        let dir = shared.root.open_dir(&parent);
        dir.and_then(|dir| Ok(rustix::fs::fsync(&dir)?)).map_err(|error| io_failure("add to", &parent, &error))?;
    }
    shared.remember(&added);
    Ok(Arrived { files: added, arriving })
}
