//! One look at a folder: the files in it that can be shared, and the directories with nothing in them.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Dir, FileType};
use shared::{
    file_name::FileName,
    limits::{MAX_FILES_PER_PEER, MAX_SHARE_DEPTH},
};

use super::{confined_dir::ConfinedDir, file_stat::FileStat};

/// What a look found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Regular files, and directories below the folder that have nothing in them at all, not even what is hidden or cannot be
    /// shared; with what tells that they change.
    pub(crate) files: BTreeMap<FileName, FileStat>,
    /// What is there and cannot be shared. (Hidden files are left out without a word.)
    pub(crate) skipped: Vec<Skipped>,
    /// Whether there is nothing in the folder itself.
    pub(crate) nothing: bool,
}

/// Something that cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Skipped {
    /// Below the folder.
    pub(crate) path: PathBuf,
    /// Why.
    pub(crate) reason: String,
}

/// Device and inode.
pub(crate) type FileId = (u64, u64);

/// Looks at everything below `root`, except below the directory `except`.
///
/// # Errors
/// When the folder itself cannot be read. What is wrong further down is in [`Scan::skipped`].
pub(crate) fn scan(root: &ConfinedDir, except: Option<FileId>) -> io::Result<Scan> {
    let mut walk = Walk { root, except, found: Scan::default(), above: Vec::new() };
    walk.directory(Path::new(""), root.dir())?;
    Ok(walk.found)
}

struct Walk<'a> {
    root: &'a ConfinedDir,
    except: Option<FileId>,
    found: Scan,
    /// The directories that the walk is in, outermost first: links make cycles.
    above: Vec<FileId>,
}

impl Walk<'_> {
    fn directory(&mut self, relative: &Path, dir: impl AsFd) -> io::Result<()> {
        // Before its entries are read: one that comes later shows as a change.
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
        let mut nothing = true;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            nothing = false;
            if name.starts_with(b".") {
                continue;
            }
            if self.found.files.len() >= MAX_FILES_PER_PEER {
                self.skip(relative, "the share has as many files as a share can have");
                break;
            }
            let path = relative.join(OsStr::from_bytes(name));
            // Gone since the directory was read, or not ours to read: either way it is not shared now.
            if let Err(error) = self.entry(&path, &dir)
                && error.kind() != io::ErrorKind::NotFound
            {
                self.skip(&path, &error.to_string());
            }
        }
        self.above.pop();
        if nothing {
            match FileName::from_relative_path(relative) {
                Ok(name) => drop(self.found.files.insert(name, stat)),
                // Only the folder itself has no name: those of all others were looked at before they were opened.
                Err(_) => self.found.nothing = true,
            }
        }
        Ok(())
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
        // The file is stamped by what is opened, so a link that is swapped now shows as a change.
        if self.root.path().join(&target).is_dir() {
            return self.directory(path, self.root.open_dir(&target)?);
        }
        let metadata = self.root.open_file(&target)?.metadata()?;
        self.found.files.insert(name, FileStat::of(&metadata));
        Ok(())
    }

    fn skip(&mut self, path: &Path, reason: &str) {
        // As many as files: a folder full of unshareable names must not fill the memory either.
        if self.found.skipped.len() < MAX_FILES_PER_PEER {
            self.found.skipped.push(Skipped { path: path.to_path_buf(), reason: reason.to_owned() });
        }
    }
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
    fn it_finds_files_and_names_what_it_leaves_out() {
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
    fn directories_with_nothing_in_them_are_found() {
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
        assert!(!found.nothing && scan(&ConfinedDir::open(&share.join("empty")).unwrap(), None).unwrap().nothing);
    }

    #[test]
    fn a_directory_can_be_excepted() {
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
        fn it_finds_every_file_of_any_tree(
            paths in prop::collection::btree_set(prop::collection::vec("[a-c€]{1,2}", 1..5), 0..20),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut made = std::collections::BTreeSet::new();
            for parts in paths {
                let path: PathBuf = parts.iter().collect();
                let full = dir.path().join(&path);
                // A file may stand where another path has a directory, and the other way round.
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
