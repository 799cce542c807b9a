//! Destination of a download and what exists there.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use shared::{content::ContentHash, file_name::FileName};

use super::resume::format::Goal;
use crate::{
    bao::tree_hash::hash_file,
    store::{
        confined_dir::ConfinedDir,
        error::{DestinationError, FileError, FinalizeError, Obstacle, OccupancyError},
        file_stat::FileStat,
        private::Private,
    },
};

/// Destination of a download, in the share or outside of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    path: PathBuf,
    pub(crate) location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// Name in the share.
    Share(FileName),
    /// Existing directory outside of the share, and the name in it.
    Outside { dir: PathBuf, base: OsString },
}

/// Existing entry at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupancy {
    /// Nothing exists.
    Vacant,
    /// A file with the wanted content exists, so the download is complete.
    Identical,
    /// Something else exists and may be replaced.
    Replaceable,
}

impl Destination {
    /// Resolves the destination of the file `name`: in the share, or at `to`. If `to` is a directory or ends with
    /// `/`, the file goes into it under the last part of its name; otherwise `to` is the path of the file.
    ///
    /// # Errors
    /// If the directory does not exist, or the path is hidden in the share.
    pub(crate) fn resolve(root: &ConfinedDir, name: &FileName, to: Option<&Path>) -> Result<Self, DestinationError> {
        let Some(to) = to else {
            return Ok(Self { path: name.below(root.path()), location: Location::Share(name.clone()) });
        };
        let names_directory = to.as_os_str().as_encoded_bytes().ends_with(b"/") || to.is_dir();
        let (dir, base) = if names_directory {
            (to, OsStr::new(name.base_name()))
        } else {
            let base = to.file_name().ok_or(DestinationError::NoFileName)?;
            (to.parent().unwrap_or(Path::new("")), base)
        };
        Self::in_directory(root, dir, base)
    }

    /// Resolves the destination of the directory `name`: in the share, or at the path `to`, whether or not it exists.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub(crate) fn of_directory(
        root: &ConfinedDir,
        name: &FileName,
        to: Option<&Path>,
    ) -> Result<Self, DestinationError> {
        match to {
            None => Self::resolve(root, name, None),
            Some(to) => {
                let base = to.file_name().unwrap_or(OsStr::new(name.base_name()));
                Self::in_directory(root, to.parent().unwrap_or(Path::new("")), base)
            }
        }
    }

    /// Resolves `base` in the directory `dir`, which may lie in the share.
    fn in_directory(root: &ConfinedDir, dir: &Path, base: &OsStr) -> Result<Self, DestinationError> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let dir = dir.canonicalize().map_err(|error| FileError::new("download to", dir, error))?;
        let path = dir.join(base);
        if root.is_private(&dir) {
            return Err(FileError::new("download to", &dir, io::Error::from(Private::Directory)).into());
        }
        match root.inside(&path) {
            Some(inside) => {
                let name = FileName::from_relative_path(inside).map_err(DestinationError::InvalidName)?;
                Ok(Self { path: name.below(root.path()), location: Location::Share(name) })
            }
            None => Ok(Self { path, location: Location::Outside { dir, base: base.to_owned() } }),
        }
    }

    /// Returns the path of the complete file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name of the file in the share if the destination is there.
    pub fn name(&self) -> Option<&FileName> {
        match &self.location {
            Location::Share(name) => Some(name),
            Location::Outside { .. } => None,
        }
    }

    /// Returns the destination in the form of the resume file.
    pub(crate) fn goal(&self) -> Goal {
        match &self.location {
            Location::Share(name) => Goal::Share(name.clone()),
            Location::Outside { .. } => Goal::Outside(self.path.as_os_str().as_bytes().to_vec()),
        }
    }

    /// Opens the directory of the file and returns it with the file's name in it. Creates missing directories in the
    /// share.
    pub(crate) fn open_dir(&self, root: &ConfinedDir) -> io::Result<(OwnedFd, OsString)> {
        match &self.location {
            Location::Share(name) => Ok((root.create_parent(name)?, name.base_name().into())),
            Location::Outside { dir, base } => Ok((File::open(dir)?.into(), base.clone())),
        }
    }

    /// Checks that the path leads to the file `written` that was just moved there.
    ///
    /// # Errors
    /// [`FinalizeError::Displaced`] if a directory of the path was moved or replaced in the meantime.
    pub(crate) fn check_is(&self, written: &FileStat) -> Result<(), FinalizeError> {
        match self.path.symlink_metadata() {
            Ok(metadata) if FileStat::of(&metadata).id() == written.id() => Ok(()),
            _ => Err(FinalizeError::Displaced(self.path.clone())),
        }
    }

    /// Returns the last part of the path.
    pub(crate) fn base(&self) -> OsString {
        match &self.location {
            Location::Share(name) => name.base_name().into(),
            Location::Outside { base, .. } => base.clone(),
        }
    }

    /// Compares the existing entry with the wanted content. Hashes a file of the same size unless `stop` is set.
    ///
    /// # Errors
    /// [`OccupancyError::Exists`] for an entry that must not be replaced; a file with another content may be replaced
    /// with `force` only.
    pub(crate) fn occupancy(
        &self,
        hash: ContentHash,
        size: u64,
        force: bool,
        stop: &AtomicBool,
    ) -> Result<Occupancy, OccupancyError> {
        let failed = |error: io::Error| FileError::new("look at", &self.path, error);
        let exists = |obstacle| Err(OccupancyError::Exists { path: self.path.clone(), obstacle });
        let metadata = match self.path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupancy::Vacant),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return exists(Obstacle::ParentIsFile),
            metadata => metadata.map_err(failed)?,
        };
        if metadata.is_dir() {
            return exists(Obstacle::Directory);
        }
        // A symbolic link itself can be replaced.
        if !metadata.is_file() && !metadata.is_symlink() {
            return exists(Obstacle::SpecialFile);
        }
        // Only regular files are opened: opening anything else could block or follow a link.
        if metadata.is_file() && metadata.len() == size {
            let file = File::open(&self.path).map_err(failed)?;
            if hash_file(&file, size, None, stop).map_err(failed)? == hash {
                return Ok(Occupancy::Identical);
            }
        }
        if force { Ok(Occupancy::Replaceable) } else { exists(Obstacle::OtherContent) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve(root: &ConfinedDir, to: &Path) -> Result<Destination, DestinationError> {
        Destination::resolve(root, &"docs/a.txt".parse().unwrap(), Some(to))
    }

    #[test]
    fn resolve_accepts_a_directory_a_file_and_a_path_in_the_share() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let share = base.join("share");
        fs::create_dir_all(share.join("sub")).unwrap();
        let root = ConfinedDir::open(&share).unwrap();
        let name: FileName = "docs/a.txt".parse().unwrap();

        assert_eq!(Destination::resolve(&root, &name, None).unwrap().name(), Some(&name));
        assert_eq!(resolve(&root, &base).unwrap().path(), base.join("a.txt"));
        let renamed = resolve(&root, &base.join("b.txt")).unwrap();
        assert_eq!((renamed.path(), renamed.name()), (&*base.join("b.txt"), None));
        let inside = resolve(&root, &share.join("sub")).unwrap();
        assert_eq!(inside.name().map(FileName::as_str), Some("sub/a.txt"));
        assert!(matches!(resolve(&root, &share.join(".brasa")), Err(DestinationError::InvalidName(_))));
        for missing in ["missing/", "missing/x"] {
            match resolve(&root, &base.join(missing)) {
                Err(DestinationError::Io(error)) => assert_eq!(error.error.kind(), io::ErrorKind::NotFound),
                other => panic!("{missing}: {other:?}"),
            }
        }
    }

    #[test]
    fn occupancy_depends_on_the_existing_entry() {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir_all(share.join("docs")).unwrap();
        let root = ConfinedDir::open(&share).unwrap();
        let destination = Destination::resolve(&root, &"docs/a.txt".parse().unwrap(), None).unwrap();
        let hash = ContentHash(*blake3::hash(b"hello").as_bytes());
        let occupancy = |force| destination.occupancy(hash, 5, force, &AtomicBool::new(false));
        let obstacle = |force| match occupancy(force) {
            Err(OccupancyError::Exists { obstacle, .. }) => obstacle,
            other => panic!("{other:?}"),
        };

        assert_eq!(occupancy(false).unwrap(), Occupancy::Vacant);
        fs::write(share.join("docs/a.txt"), "hello").unwrap();
        assert_eq!(occupancy(false).unwrap(), Occupancy::Identical);
        fs::write(share.join("docs/a.txt"), "hallo").unwrap();
        assert_eq!(obstacle(false), Obstacle::OtherContent);
        assert_eq!(occupancy(true).unwrap(), Occupancy::Replaceable);
        fs::remove_file(share.join("docs/a.txt")).unwrap();
        fs::create_dir(share.join("docs/a.txt")).unwrap();
        assert_eq!(obstacle(true), Obstacle::Directory);
    }
}
