//! Scan of a directory tree: the files that can be shared and the empty directories.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use super::{
    confined_dir::ConfinedDir,
    file_stat::{FileId, FileStat},
    params::MAX_SHARE_DEPTH,
    private::{Private, is_key_file},
};
use rustix::fs::{AtFlags, Dir, FileType};
use shared::{file_name::FileName, limits::MAX_FILES_PER_PEER};

/// Result of a scan.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Regular files and empty directories. A directory with hidden or unshareable entries is not empty.
    pub(crate) files: BTreeMap<FileName, FileStat>,
    /// Entries that cannot be shared. Hidden entries are not listed.
    pub(crate) skipped: Vec<Skipped>,
    /// True if the scanned directory itself is empty.
    pub(crate) is_empty: bool,
    /// Directories whose entries are in the scan, with their paths below the scanned directory.
    pub(crate) directories: HashMap<FileId, PathBuf>,
    /// Directories that could not be read for the moment. Nothing is known about the files in them.
    pub(crate) unread: Vec<FileName>,
}

impl Scan {
    /// Returns true if nothing is known about `name` because a directory above it could not be read.
    pub(crate) fn is_unread(&self, name: &FileName) -> bool {
        let lies_below = |dir: &FileName| {
            name.as_str().strip_prefix(dir.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.unread.iter().any(lies_below)
    }
}

/// Entry that cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Skipped {
    /// Path below the scanned directory.
    pub(crate) path: PathBuf,
    /// Reason for the user.
    pub(crate) reason: String,
    /// Kind of the reason.
    pub(crate) kind: SkipKind,
}

/// Kind of reason why an entry is not shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SkipKind {
    /// It can never be shared: its name, its type, its place.
    Unshareable,
    /// The system refuses to read it.
    Unreadable,
    /// It is a state directory.
    StateDirectory,
}

/// Scans everything below `root`, except the directory `except`.
///
/// # Errors
/// If `root` cannot be read. Errors below it are in [`Scan::skipped`] and, if they may pass, in [`Scan::unread`].
pub(crate) fn scan(root: &ConfinedDir, except: Option<FileId>) -> io::Result<Scan> {
    let mut walk = Walk { root, except, found: Scan::default(), above: Vec::new() };
    walk.directory(Path::new(""), root.dir())?;
    Ok(walk.found)
}

struct Walk<'a> {
    root: &'a ConfinedDir,
    except: Option<FileId>,
    found: Scan,
    /// Directories on the current path, outermost first, to detect cycles of links.
    above: Vec<FileId>,
}

impl Walk<'_> {
    fn directory(&mut self, relative: &Path, dir: impl AsFd) -> io::Result<()> {
        // Read before the entries, so that a later entry changes the stat.
        let stat = FileStat::from_stat(&rustix::fs::fstat(&dir)?);
        let id = stat.id();
        if self.except == Some(id) {
            return Ok(());
        }
        if self.above.contains(&id) {
            self.skip(relative, "it is a link to a directory that it lies in");
            return Ok(());
        }
        if self.above.len() >= MAX_SHARE_DEPTH {
            self.skip(relative, "it lies too deep");
            return Ok(());
        }
        self.above.push(id);
        let listed = self.entries(relative, &dir);
        self.above.pop();
        let is_empty = listed?;
        self.found.directories.entry(id).or_insert_with(|| relative.to_path_buf());
        if is_empty {
            match FileName::from_relative_path(relative) {
                Ok(name) => drop(self.found.files.insert(name, stat)),
                // Only the scanned directory has no name. All other names were checked before.
                Err(_) => self.found.is_empty = true,
            }
        }
        Ok(())
    }

    /// Scans the entries of a directory. Returns true if it has none.
    fn entries(&mut self, relative: &Path, dir: impl AsFd) -> io::Result<bool> {
        let mut is_empty = true;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            is_empty = false;
            if name.starts_with(b".") {
                continue;
            }
            if self.found.files.len() >= MAX_FILES_PER_PEER {
                self.skip(relative, "the share has as many files as a share can have");
                break;
            }
            let path = relative.join(OsStr::from_bytes(name));
            if let Err(error) = self.entry(&path, &dir) {
                self.failed(&path, &error);
            }
        }
        Ok(is_empty)
    }

    /// Records an entry that cannot be read. One that is gone by now is not recorded.
    fn failed(&mut self, path: &Path, error: &io::Error) {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => return,
            _ if is_private_directory(error) => SkipKind::StateDirectory,
            // Reasons of this program have no number.
            io::ErrorKind::PermissionDenied if error.raw_os_error().is_some() => SkipKind::Unreadable,
            _ if may_pass(error) => SkipKind::Unreadable,
            _ => SkipKind::Unshareable,
        };
        if may_pass(error)
            && let Ok(name) = FileName::from_relative_path(path)
        {
            self.found.unread.push(name);
        }
        self.skip_because(path, &error.to_string(), kind);
    }

    fn entry(&mut self, path: &Path, dir: impl AsFd) -> io::Result<()> {
        let name = match FileName::from_relative_path(path) {
            Ok(name) => name,
            Err(error) => {
                self.skip(path, &error.reason);
                return Ok(());
            }
        };
        let base = path.file_name().unwrap_or(path.as_os_str());
        let stat = rustix::fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile if is_key_file(base.as_bytes(), stat.st_mode) => {
                self.skip(path, "it is a file of keys");
            }
            FileType::RegularFile => {
                self.found.files.insert(name, FileStat::from_stat(&stat));
            }
            FileType::Directory => self.directory(path, self.root.open_dir(path)?)?,
            FileType::Symlink => self.link(path, name)?,
            _ => self.skip(path, "it is neither a file nor a directory"),
        }
        Ok(())
    }

    fn link(&mut self, path: &Path, name: FileName) -> io::Result<()> {
        let target = match self.root.follow(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.skip(path, "it is a link to something that is not there");
                return Ok(());
            }
            target => target?,
        };
        match self.root.open_dir(&target) {
            Ok(dir) => return self.directory(path, dir),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(error),
        }
        // The stat is that of the opened file, so the replacement of a link appears as a change of the file.
        let metadata = self.root.open_file(&target)?.metadata()?;
        self.found.files.insert(name, FileStat::of(&metadata));
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        self.skip_because(path, reason, SkipKind::Unshareable);
    }

    fn skip_because(&mut self, path: &Path, reason: &str, kind: SkipKind) {
        // Bounds the memory, with the same limit as for files.
        if self.found.skipped.len() < MAX_FILES_PER_PEER {
            self.found.skipped.push(Skipped { path: path.to_path_buf(), reason: reason.to_owned(), kind });
        }
    }
}

/// Returns true if the error is one of the system or the disk that may pass: the entry is unknown, not gone.
pub(crate) fn may_pass(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const PASSING: [Errno; 9] = [
        Errno::IO,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::STALE,
        Errno::TIMEDOUT,
        Errno::INTR,
        Errno::NOTCONN,
        Errno::HOSTDOWN,
    ];
    error.raw_os_error().is_some_and(|code| PASSING.iter().any(|errno| errno.raw_os_error() == code))
}

fn is_private_directory(error: &io::Error) -> bool {
    let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
    matches!(reason, Some(Private::Directory))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{ffi::OsStrExt, fs::symlink},
    };

    use proptest::prelude::*;
    use rustix::fs::Mode;

    use super::*;

    fn names(scan: &Scan) -> Vec<&str> {
        scan.files.keys().map(FileName::as_str).collect()
    }

    #[test]
    fn scan_returns_files_and_lists_unshareable_entries() {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        fs::create_dir_all(share.join("docs/.git")).unwrap();
        fs::create_dir(share.join(".brasa")).unwrap();
        for name in ["a", "docs/b€.txt", "docs/.git/c", ".brasa/d", "bad\nname", "CON"] {
            fs::write(share.join(name), "x").unwrap();
        }
        fs::write(share.join(OsStr::from_bytes(b"not-utf8-\xff")), "x").unwrap();
        fs::write(dir.path().join("outside"), "x").unwrap();
        symlink("a", share.join("link")).unwrap();
        symlink("docs", share.join("docs-link")).unwrap();
        symlink("..", share.join("docs/cycle")).unwrap();
        symlink("../outside", share.join("escape")).unwrap();
        symlink("nothing", share.join("dangling")).unwrap();
        let root = ConfinedDir::open(&share).unwrap();
        rustix::fs::mknodat(root.dir(), "pipe", FileType::Fifo, Mode::RWXU, 0).unwrap();
        let found = scan(&root, None).unwrap();
        assert_eq!(names(&found), ["a", "docs-link/b€.txt", "docs/b€.txt", "link"]);
        let mut skipped: Vec<_> = found.skipped.iter().map(|skipped| skipped.path.to_string_lossy()).collect();
        skipped.sort();
        assert_eq!(
            skipped,
            ["CON", "bad\nname", "dangling", "docs-link/cycle", "docs/cycle", "escape", "not-utf8-\u{fffd}", "pipe"]
        );
    }

    #[test]
    fn scan_returns_empty_directories() {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        for made in ["empty", "deep/er/empty", "full", ".brasa/incoming", "hides/.git", "bad\nname", "unshareable"] {
            fs::create_dir_all(share.join(made)).unwrap();
        }
        for file in ["full/a", "unshareable/bad\nname"] {
            fs::write(share.join(file), "x").unwrap();
        }
        let found = scan(&ConfinedDir::open(&share).unwrap(), None).unwrap();
        assert_eq!(names(&found), ["deep/er/empty", "empty", "full/a"]);
        let empty = found.files["empty"];
        assert!(empty.directory && empty.size == 0 && !empty.executable, "{empty:?}");
        assert!(!found.is_empty && scan(&ConfinedDir::open(&share.join("empty")).unwrap(), None).unwrap().is_empty);
    }

    #[test]
    fn scan_omits_the_excepted_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("compartilhados/peer1")).unwrap();
        fs::write(dir.path().join("compartilhados/peer1/own"), "x").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        let own = FileStat::of(&fs::metadata(dir.path().join("compartilhados/peer1")).unwrap()).id();
        let found = scan(&ConfinedDir::open(dir.path()).unwrap(), Some(own)).unwrap();
        assert_eq!(names(&found), ["other"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn scan_returns_every_file_of_any_tree(
            paths in prop::collection::btree_set(prop::collection::vec("[a-c€]{1,2}", 1..5), 0..20),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut made = std::collections::BTreeSet::new();
            for parts in paths {
                let path: PathBuf = parts.iter().collect();
                let full = dir.path().join(&path);
                // A path may need a directory where another one has a file.
                if fs::create_dir_all(full.parent().unwrap()).is_ok() && !full.exists() {
                    fs::write(&full, parts.join("/")).unwrap();
                    made.insert(parts.join("/"));
                }
            }
            let found = scan(&ConfinedDir::open(dir.path()).unwrap(), None).unwrap();
            prop_assert_eq!(names(&found), made.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(found.skipped, []);
            for (name, stat) in found.files {
                prop_assert_eq!(stat.size, name.as_str().len() as u64);
            }
        }
    }
}
