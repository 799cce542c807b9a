//! Downloads that were begun and not finished: which there are, and giving them up.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use shared::{
    content::{ContentHash, FileMeta, HashPrefix},
    error::{Failure, FailureCode},
    limits::MAX_UNFINISHED,
};
use tracing::{info, warn};

use super::{
    partial::{OUTBOARD, PartialError, PartialLocation, lock, outboard_name},
    resume::{
        format::{Goal, Recovered, parse},
        journal::NEW,
        recover::{RESUME_SUFFIX, ResumeFile, boot_id, is_resume_file, resume_name},
    },
};
use crate::store::{
    confined_dir::{ConfinedDir, HIDDEN},
    error::io_failure,
    inner::ShareInner,
    share::PARTIAL,
};

/// A download that was begun and can be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The file, as its owners described it.
    pub file: FileMeta,
    /// Bytes of it that are there.
    pub have_bytes: u64,
    /// Where it goes when it is complete; absolute.
    pub destination: PathBuf,
}

/// A download that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discarded {
    /// The file.
    pub file: FileMeta,
    /// Where it was to go.
    pub destination: PathBuf,
    /// Room on the disk that is free now, bytes.
    pub freed_bytes: u64,
}

/// A resume file and what it is about.
struct Entry {
    recovered: Recovered,
    have: OsString,
    /// Directory and name of the partial file.
    dir: PathBuf,
    name: OsString,
}

/// Where the partial file of `file` lies on its way to `goal`, the directory of resume files made where it is missing.
pub(crate) fn place(root: &ConfinedDir, hash: ContentHash, goal: Goal) -> io::Result<PartialLocation> {
    let (dir, name) = data_place(root, hash, &goal);
    match &goal {
        Goal::Share(_) => {
            let dir = root.hidden_dir(PARTIAL)?;
            Ok(PartialLocation { resume_dir: dir.try_clone()?, dir, resume_name: resume_name(&name), name, goal })
        }
        Goal::Outside(path) => {
            let data_dir: OwnedFd = File::open(&dir)?.into();
            // In the share, so that it is found again; which of several places it is for is in its name.
            let key = blake3::hash(path).to_hex();
            let (resume_dir, stem) = match root.hidden_dir(PARTIAL) {
                Ok(resume_dir) => (resume_dir, OsString::from(format!("{hash}-{}", &key[..16]))),
                Err(error) => {
                    warn!(%error, "an unfinished download to elsewhere is not listed: the share cannot be written");
                    (data_dir.try_clone()?, name.clone())
                }
            };
            Ok(PartialLocation { dir: data_dir, resume_dir, resume_name: resume_name(&stem), name, goal })
        }
    }
}

/// Directory and name of a partial file.
fn data_place(root: &ConfinedDir, hash: ContentHash, goal: &Goal) -> (PathBuf, OsString) {
    match goal {
        Goal::Share(_) => (partials(root), hash.to_hex().into()),
        Goal::Outside(_) => {
            let path = goal.path(root.path());
            let dir = path.parent().unwrap_or(Path::new("/")).to_path_buf();
            (dir, format!(".{hash}.brasa-partial").into())
        }
    }
}

fn partials(root: &ConfinedDir) -> PathBuf {
    root.path().join(HIDDEN).join(PARTIAL)
}

/// Names in the directory of partial files. There are none when it is not there.
fn names(root: &ConfinedDir) -> Vec<OsString> {
    fs::read_dir(partials(root))
        .map_or_else(|_| Vec::new(), |dir| dir.flatten().map(|entry| entry.file_name()).collect())
}

fn read(root: &ConfinedDir, have: OsString) -> Option<Entry> {
    let dir = File::open(partials(root)).ok()?;
    let recovered = parse(&ResumeFile::read(dir, &have).ok()??.content).ok()?;
    let (dir, name) = data_place(root, recovered.header.file.hash, &recovered.header.goal);
    Some(Entry { recovered, have, dir, name })
}

/// All that can be continued, by name; those that run are left out.
pub(crate) fn list(inner: &ShareInner) -> Vec<Unfinished> {
    let entries = entries(&inner.root).filter(|entry| !inner.is_receiving(&entry.recovered));
    let mut found: Vec<Unfinished> = entries.map(|entry| entry.describe(&inner.root)).collect();
    found.sort_by(|a, b| {
        (&a.file.name, &a.file.hash, &a.destination).cmp(&(&b.file.name, &b.file.hash, &b.destination))
    });
    found
}

fn entries(root: &ConfinedDir) -> impl Iterator<Item = Entry> {
    let haves = names(root).into_iter().filter(|name| is_resume_file(name));
    haves.filter_map(|have| read(root, have)).filter(Entry::is_there).take(MAX_UNFINISHED)
}

impl Entry {
    /// Whether the partial file that it speaks of is there.
    fn is_there(&self) -> bool {
        // One that was restored from a copy is another file, which is hashed when it is gone on with.
        self.dir.join(&self.name).symlink_metadata().is_ok_and(|metadata| metadata.is_file())
    }

    fn describe(&self, root: &ConfinedDir) -> Unfinished {
        let header = &self.recovered.header;
        let (have, _) = self.recovered.claims(&boot_id());
        Unfinished {
            file: header.file.clone(),
            have_bytes: have.bytes(header.file.size),
            destination: header.goal.path(root.path()),
        }
    }

    /// Deletes all that there is of it; how many bytes of the disk that frees.
    ///
    /// # Errors
    /// `WouldBlock` when it is being received.
    fn discard(&self, root: &ConfinedDir) -> io::Result<u64> {
        let dir: OwnedFd = File::open(&self.dir)?.into();
        let _lock = lock(&dir, &self.name)?.ok_or(io::ErrorKind::WouldBlock)?;
        let have = partials(root).join(&self.have);
        let mut freed_bytes = 0;
        // The file that claims comes first: a crash in between must leave nothing that looks like more than it is.
        for path in [&have, &self.dir.join(&self.name), &self.dir.join(outboard_name(&self.name))] {
            let room = path.symlink_metadata().map_or(0, |metadata| metadata.blocks() * 512);
            match fs::remove_file(path) {
                Ok(()) => freed_bytes += room,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(freed_bytes)
    }
}

/// Gives up the unfinished downloads of the file `name`, or of one version of it.
///
/// # Errors
/// `NoSuchFile` when there is none, `LimitReached` when one runs, or what the disk says.
pub(crate) fn discard(inner: &ShareInner, name: &str, version: Option<&HashPrefix>) -> Result<Vec<Discarded>, Failure> {
    let root = &inner.root;
    let wanted = |entry: &Entry| {
        let file = &entry.recovered.header.file;
        match version {
            // A file whose own name ends so counts as well.
            Some(version) => {
                (file.name.as_str() == name && version.matches(&file.hash))
                    || file.name.as_str() == format!("{name}@{version}")
            }
            None => file.name.as_str() == name,
        }
    };
    let mut discarded = Vec::new();
    for entry in entries(root).filter(wanted) {
        let Unfinished { file, destination, .. } = entry.describe(root);
        let freed_bytes = entry.discard(root).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Failure::new(
                FailureCode::LimitReached,
                format!("cannot discard {name}"),
                PartialError::Busy,
                "stop that download first",
            ),
            _ => io_failure("discard", Path::new(name), &error),
        })?;
        discarded.push(Discarded { file, destination, freed_bytes });
    }
    if discarded.is_empty() {
        let version = version.map_or_else(String::new, |version| format!("@{version}"));
        let what = format!("no unfinished download of {:?}", format!("{name}{version}"));
        return Err(Failure::new(FailureCode::NoSuchFile, what, "nothing of it is kept", "`status` shows what is"));
    }
    Ok(discarded)
}

/// At the start: removes what nobody can go on with, and what is in the share by now.
pub(crate) fn sweep(inner: &ShareInner) {
    let dir = partials(&inner.root);
    let mut names = names(&inner.root);
    // Pairs last: they go when what they belong to has gone.
    names.sort_by_key(|name| name.to_string_lossy().ends_with(OUTBOARD));
    for name in &names {
        let text = name.to_string_lossy();
        let is_obsolete = if text.contains(&format!("{RESUME_SUFFIX}{NEW}")) {
            true
        } else if is_resume_file(name) {
            sweep_have(inner, name)
        } else if let Some(data) = text.strip_suffix(OUTBOARD) {
            !dir.join(data).exists()
        } else {
            // Too small to be gone on with, or its resume file is lost.
            !dir.join(resume_name(name)).exists() && is_free(&dir, name)
        };
        if is_obsolete && let Err(error) = fs::remove_file(dir.join(name)) {
            warn!(%error, name = %text, "a left-over download cannot be deleted");
        }
    }
}

/// Whether the resume file `have` is of no use any more. What is in the share by now is removed with it.
fn sweep_have(inner: &ShareInner, have: &OsStr) -> bool {
    let dir = partials(&inner.root);
    let Some(entry) = read(&inner.root, have.to_owned()) else {
        let text = have.to_string_lossy();
        let data = dir.join(text.strip_suffix(RESUME_SUFFIX).unwrap_or(&text));
        if data.exists() {
            warn!(path = %data.display(), "it is not known any more what download this is of; the next of the same content \
                goes on with it");
        }
        return !data.exists();
    };
    let header = &entry.recovered.header;
    if !entry.is_there() {
        // A disk that is not mounted may come back, with the file.
        return entry.dir.is_dir();
    }
    let arrived =
        matches!(header.goal, Goal::Share(_)) && inner.index().with_content(&header.file.hash).next().is_some();
    if arrived {
        match entry.discard(&inner.root) {
            Ok(_) => info!(name = %header.file.name, "an unfinished download is in the share by now"),
            Err(error) => warn!(%error, name = %header.file.name, "a left-over download cannot be deleted"),
        }
    }
    false
}

fn is_free(dir: &Path, name: &OsStr) -> bool {
    File::open(dir).is_ok_and(|dir| lock(&dir.into(), name).is_ok_and(|lock| lock.is_some()))
}
