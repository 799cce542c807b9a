//! Where a download goes.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use shared::{
    content::ContentHash,
    error::{Failure, FailureCode},
    file_name::FileName,
};

use super::resume::format::Goal;
use crate::{
    bao::tree_hash::hash_file,
    store::{confined_dir::ConfinedDir, error::io_failure},
};

/// Where a download goes: into the share, or anywhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    path: PathBuf,
    pub(crate) place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the share, under this name.
    Share(FileName),
    /// In this directory, which exists, outside of the share.
    Outside { dir: PathBuf, base: OsString },
}

/// What is at a destination already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupancy {
    /// Nothing.
    Vacant,
    /// A file with just this content: there is nothing to do.
    Identical,
    /// Something else, which may be replaced.
    Replaceable,
}

impl Destination {
    /// The destination of the file `name`: in the share, or where `to` says. A `to` that is a directory, or ends with `/`, takes the
    /// file under its last part; any other is the file's path.
    ///
    /// # Errors
    /// When the directory that it would lie in is not there, or it would lie hidden in the share.
    pub(crate) fn resolve(root: &ConfinedDir, name: &FileName, to: Option<&Path>) -> Result<Self, Failure> {
        let Some(to) = to else {
            return Ok(Self { path: name.below(root.path()), place: Place::Share(name.clone()) });
        };
        let names_directory = to.as_os_str().as_encoded_bytes().ends_with(b"/") || to.is_dir();
        let (dir, base) = if names_directory {
            (to, OsStr::new(name.base_name()))
        } else {
            let base = to.file_name().ok_or_else(|| {
                Failure::new(
                    FailureCode::Usage,
                    "cannot download to that path",
                    "it names no file",
                    "give a file or a folder",
                )
            })?;
            (to.parent().unwrap_or(Path::new("")), base)
        };
        Self::in_folder(root, dir, base)
    }

    /// The destination of the directory `name`: in the share, or at the path `to`, even if one is there already.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub(crate) fn of_directory(root: &ConfinedDir, name: &FileName, to: Option<&Path>) -> Result<Self, Failure> {
        match to {
            None => Self::resolve(root, name, None),
            Some(to) => {
                let base = to.file_name().unwrap_or(OsStr::new(name.base_name()));
                Self::in_folder(root, to.parent().unwrap_or(Path::new("")), base)
            }
        }
    }

    /// `base` in the folder `dir`, which may lie in the share.
    fn in_folder(root: &ConfinedDir, dir: &Path, base: &OsStr) -> Result<Self, Failure> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let dir = dir.canonicalize().map_err(|error| io_failure("download to", dir, &error))?;
        let path = dir.join(base);
        match path.strip_prefix(root.path()) {
            Ok(inside) => {
                let name = FileName::from_relative_path(inside).map_err(|error| {
                    Failure::new(FailureCode::InvalidName, "cannot download to that path", error, "choose another name")
                })?;
                Ok(Self { path, place: Place::Share(name) })
            }
            Err(_) => Ok(Self { path, place: Place::Outside { dir, base: base.to_owned() } }),
        }
    }

    /// The file's path when it is there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's name in the share, when it goes there.
    pub fn name(&self) -> Option<&FileName> {
        match &self.place {
            Place::Share(name) => Some(name),
            Place::Outside { .. } => None,
        }
    }

    /// The same, as a resume file has it.
    pub(crate) fn goal(&self) -> Goal {
        match &self.place {
            Place::Share(name) => Goal::Share(name.clone()),
            Place::Outside { .. } => Goal::Outside(self.path.as_os_str().as_bytes().to_vec()),
        }
    }

    /// Opens the directory in which the file will lie (in the share it is made where it is missing); with the last part.
    pub(crate) fn open_dir(&self, root: &ConfinedDir) -> io::Result<(OwnedFd, OsString)> {
        match &self.place {
            Place::Share(name) => Ok((root.create_parent(name)?, name.base_name().into())),
            Place::Outside { dir, base } => Ok((File::open(dir)?.into(), base.clone())),
        }
    }

    /// The last part of its path.
    pub(crate) fn base(&self) -> OsString {
        match &self.place {
            Place::Share(name) => name.base_name().into(),
            Place::Outside { base, .. } => base.clone(),
        }
    }

    /// What a user is told when a complete file cannot be put there.
    pub(crate) fn cannot_complete(&self, error: &io::Error) -> Failure {
        let mut failure = io_failure("complete", &self.path, error);
        if error.kind() == io::ErrorKind::CrossesDevices {
            "another disk is mounted in the share at that place; download elsewhere with --to"
                .clone_into(&mut failure.hint);
        }
        failure
    }

    /// What is there now, compared with the content that is to come.
    ///
    /// # Errors
    /// [`FailureCode::Exists`] for a directory, or for another content without `force`.
    pub(crate) fn occupancy(
        &self,
        hash: ContentHash,
        size: u64,
        force: bool,
        stop: &AtomicBool,
    ) -> Result<Occupancy, Failure> {
        let failed = |error: io::Error| io_failure("look at", &self.path, &error);
        let exists = |why: &str, hint: &str| {
            let what = format!("cannot download to {}", self.path.display().to_string().escape_debug());
            Err(Failure::new(FailureCode::Exists, what, why, hint))
        };
        let metadata = match self.path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupancy::Vacant),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return exists(
                    "a file stands where a directory is needed",
                    "remove it or choose another place with --to",
                );
            }
            metadata => metadata.map_err(failed)?,
        };
        if metadata.is_dir() {
            return exists("a directory of that name is there", "choose another place with --to");
        }
        // Replacing a device or a pipe would break whoever uses it, and nobody means that. A link is replaced itself.
        if !metadata.is_file() && !metadata.is_symlink() {
            return exists("what is there is not a file (a device, pipe or socket)", "choose another place with --to");
        }
        // Only a plain file is looked into: opening anything else could wait or lead elsewhere.
        if metadata.is_file() && metadata.len() == size {
            let file = File::open(&self.path).map_err(failed)?;
            if hash_file(&file, size, None, stop).map_err(failed)? == hash {
                return Ok(Occupancy::Identical);
            }
        }
        if force {
            Ok(Occupancy::Replaceable)
        } else {
            exists("another file of that name is there", "say --force to replace it, or --to PATH for another place")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve(root: &ConfinedDir, to: &Path) -> Result<Destination, Failure> {
        Destination::resolve(root, &"docs/a.txt".parse().unwrap(), Some(to))
    }

    #[test]
    fn a_path_is_a_folder_a_file_or_a_place_in_the_share() {
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
        assert_eq!(resolve(&root, &share.join(".brasa")).unwrap_err().code, FailureCode::InvalidName);
        assert_eq!(resolve(&root, &base.join("missing/")).unwrap_err().code, FailureCode::NoSuchFile);
        assert_eq!(resolve(&root, &base.join("missing/x")).unwrap_err().code, FailureCode::NoSuchFile);
    }

    #[test]
    fn what_is_there_decides() {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir_all(share.join("docs")).unwrap();
        let root = ConfinedDir::open(&share).unwrap();
        let destination = Destination::resolve(&root, &"docs/a.txt".parse().unwrap(), None).unwrap();
        let hash = ContentHash(*blake3::hash(b"hello").as_bytes());
        let standing =
            |force| destination.occupancy(hash, 5, force, &AtomicBool::new(false)).map_err(|failure| failure.code);

        assert_eq!(standing(false), Ok(Occupancy::Vacant));
        fs::write(share.join("docs/a.txt"), "hello").unwrap();
        assert_eq!(standing(false), Ok(Occupancy::Identical));
        fs::write(share.join("docs/a.txt"), "hallo").unwrap();
        assert_eq!(standing(false), Err(FailureCode::Exists));
        assert_eq!(standing(true), Ok(Occupancy::Replaceable));
        fs::remove_file(share.join("docs/a.txt")).unwrap();
        fs::create_dir(share.join("docs/a.txt")).unwrap();
        assert_eq!(standing(true), Err(FailureCode::Exists));
    }
}
