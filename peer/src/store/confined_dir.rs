//! Opening files below a folder, and nowhere else.
//!
//! Every part of a path is opened from the directory before it and without following symbolic links, so nothing
//! that is swapped between a check and its use can lead out of the folder. A link is followed by hand: what it stands for is
//! looked up, must lie below the folder again and outside of hidden directories, and is then opened the same way.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use shared::file_name::FileName;

use super::file_stat::FileStat;

/// The hidden directory in a share in which files lie until they are complete.
pub(crate) const HIDDEN: &str = ".brasa";

/// A folder.
#[derive(Debug)]
pub(crate) struct ConfinedDir {
    dir: OwnedFd,
    path: PathBuf,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
// Without NONBLOCK, opening a named pipe that was swapped in would wait for its writer.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

impl ConfinedDir {
    /// The folder at `path`, which may itself be a link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let dir = rustix::fs::openat(rustix::fs::CWD, &path, DIRECTORY, Mode::empty())?;
        Ok(Self { dir, path })
    }

    /// Its absolute path, free of links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens the regular file at `relative` for reading; never waits for a pipe or a device.
    ///
    /// # Errors
    /// `PermissionDenied` when it leads out of the folder, `InvalidInput` when it is no regular file.
    pub(crate) fn open_file(&self, relative: &Path) -> io::Result<File> {
        let fd = match self.open_regular(relative) {
            Err(error) if is_link_error(&error) => self.open_regular(&self.follow(relative)?)?,
            opened => opened?,
        };
        let file = File::from(fd);
        // Once more on what was opened: the check before it only spares devices from being opened.
        if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
    }

    /// Opens the directory at `relative`.
    pub(crate) fn open_dir(&self, relative: &Path) -> io::Result<OwnedFd> {
        match self.open_directory(relative) {
            Err(error) if is_link_error(&error) => self.open_directory(&self.follow(relative)?),
            opened => opened,
        }
    }

    /// The stamp of the directory at `relative` if there is nothing in it, not even hidden.
    pub(crate) fn empty_dir(&self, relative: &Path) -> io::Result<Option<FileStat>> {
        let dir = self.open_dir(relative)?;
        // Before its entries are read: one that comes later shows as a change.
        let stat = FileStat::from_stat(&rustix::fs::fstat(&dir)?);
        for entry in Dir::read_from(&dir)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(None);
            }
        }
        Ok(Some(stat))
    }

    /// What the link at (or above) `relative` stands for, as a path below the folder that was free of links.
    pub(crate) fn follow(&self, relative: &Path) -> io::Result<PathBuf> {
        let target = self.path.join(relative).canonicalize()?;
        let inside = target.strip_prefix(&self.path).map_err(|_| escapes())?;
        let hidden = |part: Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b".");
        if inside.components().any(hidden) { Err(escapes()) } else { Ok(inside.to_path_buf()) }
    }

    /// The directory that `name` lies in, which is made where it is missing. Links are not followed.
    pub(crate) fn create_parent(&self, name: &FileName) -> io::Result<OwnedFd> {
        let mut parts: Vec<&str> = name.parts().collect();
        parts.pop();
        self.create_dirs(&parts, 0o777)
    }

    /// The hidden directory `part`, which is made where it is missing.
    pub(crate) fn hidden_dir(&self, part: &str) -> io::Result<OwnedFd> {
        self.create_dirs(&[HIDDEN, part], 0o700)
    }

    fn create_dirs(&self, parts: &[&str], mode: u32) -> io::Result<OwnedFd> {
        let mut dir = self.dir.try_clone()?;
        for part in parts {
            dir = match rustix::fs::openat(&dir, *part, DIRECTORY, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => {
                    match rustix::fs::mkdirat(&dir, *part, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    rustix::fs::openat(&dir, *part, DIRECTORY, Mode::empty())?
                }
                opened => opened?,
            };
        }
        Ok(dir)
    }

    /// Removes the file (or the link, or the directory if there is nothing in it) `name`, then the directories above it as far as they are empty.
    pub(crate) fn remove(&self, name: &FileName) -> io::Result<()> {
        let relative = name.below(Path::new(""));
        let (parent, base) = self.open_parent(&relative)?;
        match rustix::fs::unlinkat(&parent, &base, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => rustix::fs::unlinkat(&parent, &base, AtFlags::REMOVEDIR)?,
            removed => removed?,
        }
        let _synced = rustix::fs::fsync(&parent);
        let mut above = relative.parent();
        while let Some(dir) = above.filter(|dir| !dir.as_os_str().is_empty()) {
            let Ok((parent, base)) = self.open_parent(dir) else { break };
            if rustix::fs::unlinkat(&parent, &base, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            above = dir.parent();
        }
        Ok(())
    }

    /// The directory in which `relative` lies, and its last part. Links on the way are followed inside the folder.
    fn open_parent(&self, relative: &Path) -> io::Result<(OwnedFd, PathBuf)> {
        let base = relative.file_name().ok_or_else(escapes)?;
        let parent = self.open_dir(relative.parent().unwrap_or(Path::new("")))?;
        Ok((parent, base.into()))
    }

    fn open_regular(&self, relative: &Path) -> io::Result<OwnedFd> {
        let base = relative.file_name().ok_or_else(escapes)?;
        let parent = self.open_directory(relative.parent().unwrap_or(Path::new("")))?;
        let stat = rustix::fs::statat(&parent, base, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(rustix::fs::openat(&parent, base, FILE, Mode::empty())?),
            FileType::Symlink => Err(rustix::io::Errno::LOOP.into()),
            _ => Err(not_regular()),
        }
    }

    fn open_directory(&self, relative: &Path) -> io::Result<OwnedFd> {
        let mut dir = self.dir.try_clone()?;
        for part in relative.components() {
            let part = normal(part)?;
            dir = rustix::fs::openat(&dir, part, DIRECTORY, Mode::empty())?;
        }
        Ok(dir)
    }
}

fn normal(part: Component<'_>) -> io::Result<&OsStr> {
    match part {
        Component::Normal(part) => Ok(part),
        _ => Err(escapes()),
    }
}

/// What opening a link without following it gives, with `O_DIRECTORY` and without.
fn is_link_error(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| {
        code == rustix::io::Errno::LOOP.raw_os_error() || code == rustix::io::Errno::NOTDIR.raw_os_error()
    })
}

fn escapes() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "it is a link out of the share or to something hidden in it")
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use super::*;

    fn share() -> (tempfile::TempDir, ConfinedDir) {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir_all(share.join("docs/deep")).unwrap();
        fs::write(share.join("docs/a.txt"), "inside").unwrap();
        fs::create_dir(share.join(".hidden")).unwrap();
        fs::write(share.join(".hidden/key"), "hidden").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        let root = ConfinedDir::open(&share).unwrap();
        (dir, root)
    }

    fn read(root: &ConfinedDir, relative: &str) -> io::Result<String> {
        let mut text = String::new();
        root.open_file(Path::new(relative))?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn links_inside_the_share_are_followed() {
        let (_dir, root) = share();
        symlink("docs/a.txt", root.path().join("b.txt")).unwrap();
        symlink("docs", root.path().join("d")).unwrap();
        symlink(root.path().join("docs/a.txt"), root.path().join("docs/deep/c.txt")).unwrap();
        for name in ["docs/a.txt", "b.txt", "d/a.txt", "d/deep/c.txt"] {
            assert_eq!(read(&root, name).unwrap(), "inside", "{name}");
        }
    }

    #[test]
    fn nothing_outside_or_hidden_can_be_opened() {
        let (dir, root) = share();
        symlink("../secret", root.path().join("relative")).unwrap();
        symlink(dir.path().join("secret"), root.path().join("absolute")).unwrap();
        symlink("..", root.path().join("up")).unwrap();
        symlink(".hidden/key", root.path().join("to_hidden")).unwrap();
        symlink("relative", root.path().join("chain")).unwrap();
        symlink("loop", root.path().join("loop")).unwrap();
        for name in
            ["relative", "absolute", "up/secret", "to_hidden", "chain", "loop", "../secret", "docs/../../secret"]
        {
            assert!(read(&root, name).is_err(), "{name}");
        }
        assert!(root.create_parent(&"up/x".parse().unwrap()).is_err(), "nor can anything be written there");
    }

    #[test]
    fn pipes_and_devices_are_refused_without_waiting() {
        let (_dir, root) = share();
        rustix::fs::mknodat(root.dir(), "pipe", FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(root.open_file(Path::new("pipe")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(root.open_file(Path::new("docs")).is_err());
    }

    #[test]
    fn a_link_swapped_in_never_leads_out() {
        let (dir, root) = share();
        let swapped = root.path().join("docs");
        let aside = root.path().join("docs2");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("a.txt"), "outside").unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    fs::rename(&swapped, &aside).unwrap();
                    symlink(&outside, &swapped).unwrap();
                    fs::remove_file(&swapped).unwrap();
                    fs::rename(&aside, &swapped).unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let mut opened = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok(text) = read(&root, "docs/a.txt") {
                    assert_eq!(text, "inside");
                    opened += 1;
                }
            }
            assert!(opened > 0);
        });
    }

    #[test]
    fn removing_takes_empty_directories_along() {
        let (_dir, root) = share();
        fs::write(root.path().join("docs/deep/z"), "z").unwrap();
        root.remove(&"docs/deep/z".parse().unwrap()).unwrap();
        assert!(!root.path().join("docs/deep").exists());
        assert!(root.path().join("docs").exists(), "it has another file");
        root.remove(&"docs/a.txt".parse().unwrap()).unwrap();
        assert!(!root.path().join("docs").exists());
        assert!(root.path().exists());
    }
}
