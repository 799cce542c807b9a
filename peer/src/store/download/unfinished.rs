//! Unfinished downloads: listing, discarding and sweeping them.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use crate::store::{
    confined_dir::{ConfinedDir, HIDDEN},
    error::{DiscardError, FileError},
    file_ops::TEMPORARY,
    params::MAX_UNFINISHED,
};
use shared::content::{ContentHash, FileMeta, HashPrefix};
use tracing::{info, warn};

use super::{
    files::{
        OUTBOARD_SUFFIX, PARTIAL_DIR, PartialLocation, RESUME_SUFFIX, is_resume_file, lock, outboard_name, resume_name,
    },
    resume::{
        format::{Goal, ResumeContent, parse},
        recover::{ResumeFile, boot_id},
    },
};

/// Download that was interrupted and can be resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// File as its owners announce it.
    pub file: FileMeta,
    /// Bytes that are verified already.
    pub have_bytes: u64,
    /// Absolute path of the complete file.
    pub destination: PathBuf,
}

/// Unfinished download that was discarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discarded {
    /// File as its owners announce it.
    pub file: FileMeta,
    /// Absolute path that the complete file would have had.
    pub destination: PathBuf,
    /// Disk space that is free again, bytes.
    pub freed_bytes: u64,
}

/// Resume file and the partial file that it describes.
struct Entry {
    content: ResumeContent,
    /// Name of the resume file.
    resume_name: OsString,
    /// Directory of the partial file.
    dir: PathBuf,
    /// Name of the partial file.
    name: OsString,
}

/// Returns the location of the partial file of `hash` on its way to `goal`. Creates the directory of resume files.
pub(crate) fn location(root: &ConfinedDir, hash: ContentHash, goal: Goal) -> io::Result<PartialLocation> {
    let (dir, name) = data_location(root, hash, &goal);
    match &goal {
        Goal::Share(_) => {
            let dir = root.hidden_dir(PARTIAL_DIR)?;
            Ok(PartialLocation { resume_dir: dir.try_clone()?, dir, resume_name: resume_name(&name), name, goal })
        }
        Goal::Outside(path) => {
            let data_dir: OwnedFd = File::open(&dir)?.into();
            // The resume file lies in the share, where it is found again. Its name identifies the destination.
            let key = blake3::hash(path).to_hex();
            let (resume_dir, stem) = match root.hidden_dir(PARTIAL_DIR) {
                Ok(resume_dir) => (resume_dir, OsString::from(format!("{hash}-{}", &key[..16]))),
                Err(error) => {
                    warn!(%error, "cannot write to the share; the download is not listed if it is interrupted");
                    (data_dir.try_clone()?, name.clone())
                }
            };
            Ok(PartialLocation { dir: data_dir, resume_dir, resume_name: resume_name(&stem), name, goal })
        }
    }
}

/// Returns all downloads that can be resumed, in order of their names, without those for which `is_running` holds.
pub(crate) fn list(root: &ConfinedDir, is_running: impl Fn(&ContentHash, &Goal) -> bool) -> Vec<Unfinished> {
    let entries = entries(root).filter(|entry| {
        let header = &entry.content.header;
        !is_running(&header.file.hash, &header.goal)
    });
    let mut found: Vec<Unfinished> = entries.map(|entry| entry.describe(root)).collect();
    found.sort_by(|a, b| {
        (&a.file.name, &a.file.hash, &a.destination).cmp(&(&b.file.name, &b.file.hash, &b.destination))
    });
    found
}

/// Discards the unfinished downloads of the file `name`, or of one version of it.
///
/// # Errors
/// If there is none, or one of them is running.
pub(crate) fn discard(
    root: &ConfinedDir,
    name: &str,
    version: Option<&HashPrefix>,
) -> Result<Vec<Discarded>, DiscardError> {
    let wanted = |entry: &Entry| {
        let file = &entry.content.header.file;
        match version {
            // `@` may also be part of the file name.
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
        let freed_bytes = entry
            .discard(root)
            .map_err(|error| FileError::new("discard", Path::new(name), error))?
            .ok_or_else(|| DiscardError::Running(name.to_owned()))?;
        discarded.push(Discarded { file, destination, freed_bytes });
    }
    if discarded.is_empty() {
        let version = version.map_or_else(String::new, |version| format!("@{version}"));
        return Err(DiscardError::NotFound(format!("{name}{version}")));
    }
    Ok(discarded)
}

/// Deletes files that no download can resume from, and unfinished downloads whose content `is_shared` by now. Called
/// at the start of the peer.
pub(crate) fn sweep(root: &ConfinedDir, is_shared: impl Fn(&ContentHash) -> bool) {
    let dir = partial_dir(root);
    let mut names = names(root);
    // Outboards last: each goes after its partial file.
    names.sort_by_key(|name| name.to_string_lossy().ends_with(OUTBOARD_SUFFIX));
    for name in &names {
        let text = name.to_string_lossy();
        let is_obsolete = if text.contains(&format!("{RESUME_SUFFIX}{TEMPORARY}")) {
            true
        } else if is_resume_file(name) {
            sweep_resume_file(root, name, &is_shared)
        } else if let Some(data) = text.strip_suffix(OUTBOARD_SUFFIX) {
            !dir.join(data).exists()
        } else {
            // The file is too small to be resumed, or its resume file is lost.
            !dir.join(resume_name(name)).exists() && is_unlocked(&dir, name)
        };
        if is_obsolete && let Err(error) = fs::remove_file(dir.join(name)) {
            warn!(%error, file = %text, "cannot delete an obsolete download");
        }
    }
}

/// Returns true if the resume file is obsolete. Discards its download if the content is in the share.
fn sweep_resume_file(root: &ConfinedDir, resume_name: &OsStr, is_shared: impl Fn(&ContentHash) -> bool) -> bool {
    let dir = partial_dir(root);
    let Some(entry) = read(root, resume_name.to_owned()) else {
        let text = resume_name.to_string_lossy();
        let data = dir.join(text.strip_suffix(RESUME_SUFFIX).unwrap_or(&text));
        if data.exists() {
            warn!(path = %data.display(), "damaged resume file; the next download of this content resumes it");
        }
        return !data.exists();
    };
    let header = &entry.content.header;
    if !entry.exists() {
        // Without its directory, the file may be on a disk that is not mounted.
        return entry.dir.is_dir();
    }
    if matches!(header.goal, Goal::Share(_)) && is_shared(&header.file.hash) {
        match entry.discard(root) {
            Ok(Some(_)) => info!(file = %header.file.name, "discarded an unfinished download that is in the share"),
            Ok(None) => info!(file = %header.file.name, "another process runs a download that is in the share"),
            Err(error) => warn!(%error, file = %header.file.name, "cannot delete an obsolete download"),
        }
    }
    false
}

/// Returns directory and name of a partial file.
fn data_location(root: &ConfinedDir, hash: ContentHash, goal: &Goal) -> (PathBuf, OsString) {
    match goal {
        Goal::Share(_) => (partial_dir(root), hash.to_hex().into()),
        Goal::Outside(_) => {
            let path = goal.path(root.path());
            let dir = path.parent().unwrap_or(Path::new("/")).to_path_buf();
            (dir, format!(".{hash}.brasa-partial").into())
        }
    }
}

fn partial_dir(root: &ConfinedDir) -> PathBuf {
    root.path().join(HIDDEN).join(PARTIAL_DIR)
}

/// Returns the names in the directory of partial files, none if it does not exist.
fn names(root: &ConfinedDir) -> Vec<OsString> {
    fs::read_dir(partial_dir(root))
        .map_or_else(|_| Vec::new(), |dir| dir.flatten().map(|entry| entry.file_name()).collect())
}

fn read(root: &ConfinedDir, resume_name: OsString) -> Option<Entry> {
    let dir = File::open(partial_dir(root)).ok()?;
    let content = parse(&ResumeFile::read(dir, &resume_name).ok()??.content).ok()?;
    let (dir, name) = data_location(root, content.header.file.hash, &content.header.goal);
    Some(Entry { content, resume_name, dir, name })
}

fn entries(root: &ConfinedDir) -> impl Iterator<Item = Entry> {
    let resume_files = names(root).into_iter().filter(|name| is_resume_file(name));
    resume_files.filter_map(|name| read(root, name)).filter(Entry::exists).take(MAX_UNFINISHED)
}

fn is_unlocked(dir: &Path, name: &OsStr) -> bool {
    File::open(dir).is_ok_and(|dir| lock(&dir.into(), name).is_ok_and(|lock| lock.is_some()))
}

impl Entry {
    /// Returns true if the partial file exists. It need not be the same inode: a copy is hashed when it is resumed.
    fn exists(&self) -> bool {
        self.dir.join(&self.name).symlink_metadata().is_ok_and(|metadata| metadata.is_file())
    }

    fn describe(&self, root: &ConfinedDir) -> Unfinished {
        let header = &self.content.header;
        let (verified, _) = self.content.claims(&boot_id());
        Unfinished {
            file: header.file.clone(),
            have_bytes: verified.bytes(header.file.size),
            destination: header.goal.path(root.path()),
        }
    }

    /// Deletes all files of the download and returns the freed disk space, bytes; `None` if the download is running.
    fn discard(&self, root: &ConfinedDir) -> io::Result<Option<u64>> {
        let dir: OwnedFd = File::open(&self.dir)?.into();
        let Some(_lock) = lock(&dir, &self.name)? else { return Ok(None) };
        let resume_file = partial_dir(root).join(&self.resume_name);
        let mut freed_bytes = 0;
        // The resume file first, because a crash in between must not leave claims about deleted groups.
        for path in [&resume_file, &self.dir.join(&self.name), &self.dir.join(outboard_name(&self.name))] {
            let bytes = path.symlink_metadata().map_or(0, |metadata| metadata.blocks() * 512);
            match fs::remove_file(path) {
                Ok(()) => freed_bytes += bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(freed_bytes))
    }
}
