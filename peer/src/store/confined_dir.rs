//! Access to files below one directory only.
//!
//! Each part of a path is opened relative to the part before it and without following symbolic links, so replacing a
//! directory by a link between a check and its use cannot lead out of the directory. Links are resolved explicitly:
//! the target must lie below the directory and outside of hidden directories, and is then opened in the same way.
//!
//! State directories ([`PrivateDirs`]) are never opened, wherever they are mounted.
//!
//! The directory at the path may be replaced: moved and recreated, covered by a mount, or a link may point elsewhere.
//! Reads go on in the open directory until [`reopen`](ConfinedDir::reopen); every change first makes sure that the open
//! directory is the one at the path.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use shared::file_name::FileName;

use super::{
    error::FolderMissing,
    file_stat::{FileId, FileStat},
    private::{Private, PrivateDirs, is_key_file},
};

/// Hidden directory of a share, for files that are not complete yet and for journals.
pub(crate) const HIDDEN: &str = ".brasa";

/// Open directory that bounds all accesses.
#[derive(Debug)]
pub(crate) struct ConfinedDir {
    /// Absolute path, which may lead through links.
    path: PathBuf,
    private: Arc<PrivateDirs>,
    current: RwLock<Arc<Current>>,
}

/// Directory that was at the path when it was opened.
#[derive(Debug)]
struct Current {
    dir: Arc<OwnedFd>,
    id: FileId,
    /// Path without links.
    real: PathBuf,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
// Without NONBLOCK, the open of a named pipe blocks until it has a writer.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

impl Current {
    fn open(path: &Path, private: &PrivateDirs) -> io::Result<Self> {
        let real = path.canonicalize()?;
        let dir = rustix::fs::openat(rustix::fs::CWD, &real, DIRECTORY, Mode::empty())?;
        let id = FileStat::from_stat(&rustix::fs::fstat(&dir)?).id();
        if private.contains(id) || private.encloses(&real) {
            return Err(Private::Directory.into());
        }
        Ok(Self { dir: Arc::new(dir), id, real })
    }
}

impl ConfinedDir {
    /// Opens the directory at `path`, which may itself be a link.
    #[cfg(test)]
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_except(path, Arc::default())
    }

    /// Opens the directory at `path`, which may itself be a link, for accesses outside of `private`.
    ///
    /// # Errors
    /// [`Private`] if the directory is private.
    pub(crate) fn open_except(path: &Path, private: Arc<PrivateDirs>) -> io::Result<Self> {
        let mut path = std::path::absolute(path)?;
        if path.components().any(|part| part == Component::ParentDir) {
            path = path.canonicalize()?;
        }
        let current = RwLock::new(Arc::new(Current::open(&path, &private)?));
        Ok(Self { path, private, current })
    }

    /// Opens another directory with the same private directories.
    pub(crate) fn open_other(&self, path: &Path) -> io::Result<Self> {
        Self::open_except(path, Arc::clone(&self.private))
    }

    /// Opens the directory at the path again if the open one is not there any more. Returns true if it was replaced.
    ///
    /// # Errors
    /// [`FolderMissing`] if no directory is there, [`Private`] if it is private; the open one stays then.
    pub(crate) fn reopen(&self) -> io::Result<bool> {
        let missing = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FolderMissing(self.path.clone()).into(),
            _ => error,
        };
        let there = self.path.metadata().map_err(missing)?;
        if FileStat::of(&there).id() == self.id() {
            return Ok(false);
        }
        let new = Current::open(&self.path, &self.private).map_err(missing)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.id == new.id {
            return Ok(false);
        }
        *current = Arc::new(new);
        drop(current);
        tracing::warn!(folder = %self.path.display(), "another folder has replaced this one; it is used from now on");
        Ok(true)
    }

    /// Returns the absolute path, which may lead through links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the part of `real`, a path without links, below the directory, or `None` if it lies elsewhere.
    pub(crate) fn inside<'a>(&self, real: &'a Path) -> Option<&'a Path> {
        real.strip_prefix(&self.current().real).ok()
    }

    /// Returns true if the directory `path` is a state directory or lies in one.
    pub(crate) fn is_private(&self, path: &Path) -> bool {
        self.private.encloses(path)
    }

    pub(crate) fn private(&self) -> &PrivateDirs {
        &self.private
    }

    pub(crate) fn dir(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.current().dir)
    }

    /// Returns device and inode of the open directory.
    pub(crate) fn id(&self) -> FileId {
        self.current().id
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens the regular file at `relative` for reading. Never blocks on a pipe or device.
    ///
    /// # Errors
    /// `PermissionDenied` if the path leads out of the directory, `InvalidInput` if it is not a regular file.
    pub(crate) fn open_file(&self, relative: &Path) -> io::Result<File> {
        let fd = match self.open_regular(relative) {
            Err(error) if is_link_error(&error) => self.open_regular(&self.follow(relative)?)?,
            opened => opened?,
        };
        let file = File::from(fd);
        // The check before the open only keeps devices from being opened. This one is authoritative.
        if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
    }

    /// Opens the directory at `relative`.
    pub(crate) fn open_dir(&self, relative: &Path) -> io::Result<OwnedFd> {
        match self.open_directory(relative) {
            Err(error) if is_link_error(&error) => self.open_directory(&self.follow(relative)?),
            opened => opened,
        }
    }

    /// Returns the stat of the directory at `relative` if it is empty. Hidden entries count.
    pub(crate) fn empty_dir(&self, relative: &Path) -> io::Result<Option<FileStat>> {
        let dir = self.open_dir(relative)?;
        // Read before the entries, so that a later entry changes the stat.
        let stat = FileStat::from_stat(&rustix::fs::fstat(&dir)?);
        for entry in Dir::read_from(&dir)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(None);
            }
        }
        Ok(Some(stat))
    }

    /// Resolves the links in `relative` to a path below the directory.
    pub(crate) fn follow(&self, relative: &Path) -> io::Result<PathBuf> {
        let current = self.current();
        let target = current.real.join(relative).canonicalize()?;
        let inside = target.strip_prefix(&current.real).map_err(|_| escapes())?;
        let hidden = |part: Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b".");
        if inside.components().any(hidden) { Err(escapes()) } else { Ok(inside.to_path_buf()) }
    }

    /// Opens the parent directory of `name`. Creates missing directories and follows no links.
    pub(crate) fn create_parent(&self, name: &FileName) -> io::Result<OwnedFd> {
        let mut parts: Vec<&str> = name.parts().collect();
        parts.pop();
        self.create_dirs(&parts, 0o777)
    }

    /// Opens the hidden directory `part`. Creates it if it is missing.
    pub(crate) fn hidden_dir(&self, part: &str) -> io::Result<OwnedFd> {
        self.create_dirs(&[HIDDEN, part], 0o700)
    }

    fn create_dirs(&self, parts: &[&str], mode: u32) -> io::Result<OwnedFd> {
        self.reopen()?;
        let mut dir = self.dir().try_clone()?;
        for part in parts {
            dir = match self.open_part(&dir, part.as_ref()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match rustix::fs::mkdirat(&dir, *part, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.open_part(&dir, part.as_ref())?
                }
                opened => opened?,
            };
        }
        Ok(dir)
    }

    /// Opens the directory `part` of `dir` unless it is private.
    fn open_part(&self, dir: &OwnedFd, part: &OsStr) -> io::Result<OwnedFd> {
        let opened = rustix::fs::openat(dir, part, DIRECTORY, Mode::empty())?;
        let id = FileStat::from_stat(&rustix::fs::fstat(&opened)?).id();
        if self.private.contains(id) { Err(Private::Directory.into()) } else { Ok(opened) }
    }

    /// Removes the file, link or empty directory `name`, then the directories above it that are empty.
    pub(crate) fn remove(&self, name: &FileName) -> io::Result<()> {
        self.reopen()?;
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

    /// Returns the parent directory of `relative` and its last part. Follows links inside the directory.
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
            FileType::RegularFile if is_key_file(base.as_bytes(), stat.st_mode) => {
                Err(Private::KeyFile(base.to_string_lossy().into_owned()).into())
            }
            FileType::RegularFile => Ok(rustix::fs::openat(&parent, base, FILE, Mode::empty())?),
            FileType::Symlink => Err(rustix::io::Errno::LOOP.into()),
            _ => Err(not_regular()),
        }
    }

    fn open_directory(&self, relative: &Path) -> io::Result<OwnedFd> {
        let mut dir = self.dir().try_clone()?;
        for part in relative.components() {
            dir = self.open_part(&dir, normal(part)?)?;
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

/// Returns true if the error is that of opening a link with `O_NOFOLLOW`, with or without `O_DIRECTORY`.
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
    use std::{
        fs,
        io::Read,
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
        time::Duration,
    };

    use shared::time::Clock;

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
    fn open_file_follows_links_inside_the_share() {
        let (_dir, root) = share();
        symlink("docs/a.txt", root.path().join("b.txt")).unwrap();
        symlink("docs", root.path().join("d")).unwrap();
        symlink(root.path().join("docs/a.txt"), root.path().join("docs/deep/c.txt")).unwrap();
        for name in ["docs/a.txt", "b.txt", "d/a.txt", "d/deep/c.txt"] {
            assert_eq!(read(&root, name).unwrap(), "inside", "{name}");
        }
    }

    #[test]
    fn open_file_rejects_links_to_outside_or_hidden_files() {
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
        assert!(root.create_parent(&"up/x".parse().unwrap()).is_err(), "no directory is created outside");
    }

    #[test]
    fn open_file_of_a_pipe_fails_without_blocking() {
        let (_dir, root) = share();
        rustix::fs::mknodat(root.dir(), "pipe", FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(root.open_file(Path::new("pipe")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(root.open_file(Path::new("docs")).is_err());
    }

    #[test]
    fn open_file_during_a_swap_with_a_link_never_leads_out() {
        let (dir, root) = share();
        let swapped = root.path().join("docs");
        let aside = root.path().join("docs2");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("a.txt"), "outside").unwrap();
        let (opened, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let clock = Clock::start();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Continues until the reader has had 100 successful opens.
                for round in 0.. {
                    let is_enough = round >= 2_000 && opened.load(Ordering::Relaxed) >= 100;
                    if is_enough || clock.now().since_origin() >= Duration::from_secs(60) {
                        break;
                    }
                    fs::rename(&swapped, &aside).unwrap();
                    symlink(&outside, &swapped).unwrap();
                    fs::remove_file(&swapped).unwrap();
                    fs::rename(&aside, &swapped).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                if let Ok(text) = read(&root, "docs/a.txt") {
                    assert_eq!(text, "inside");
                    opened.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        assert!(opened.into_inner() >= 100, "the reader opened the file too rarely within 60 s");
    }

    #[test]
    fn remove_deletes_empty_parent_directories() {
        let (_dir, root) = share();
        fs::write(root.path().join("docs/deep/z"), "z").unwrap();
        root.remove(&"docs/deep/z".parse().unwrap()).unwrap();
        assert!(!root.path().join("docs/deep").exists());
        assert!(root.path().join("docs").exists(), "the directory has another file");
        root.remove(&"docs/a.txt".parse().unwrap()).unwrap();
        assert!(!root.path().join("docs").exists());
        assert!(root.path().exists());
    }
}
