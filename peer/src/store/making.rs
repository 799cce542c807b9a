//! Which directories a download is making: noted before the first is made and forgotten at its end, so that the same download, begun
//! again after its process was killed, still knows them from those that were there before.
//!
//! `.brasa/directories/<16 hex>`: the names (postcard); the digits are of the BLAKE3 of what the download is of. Written to a file beside it
//! and renamed, so it is whole after a kill. Not synced: a crash of the machine may lose it, and with it the modes.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use shared::{
    error::Failure,
    file_name::FileName,
    limits::{MAX_FILE_NAME_BYTES, MAX_FILES_PER_PEER},
};
use tokio::task;
use tracing::warn;

use super::{failure::thread_failure, root::Root, share::Share};

/// Where, in the hidden directory of the share, the notes are.
const DIRECTORIES: &str = "directories";

impl Share {
    /// Notes that the download of `what` is about to make the directories `new`. Returns those of `all` that it makes, `new` and those that
    /// the same download was making when its process was killed. What cannot be noted is made all the same.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) async fn note_making(
        &self,
        what: String,
        all: BTreeSet<FileName>,
        new: BTreeSet<FileName>,
    ) -> Result<BTreeSet<FileName>, Failure> {
        let shared = Arc::clone(&self.shared);
        let note = move || {
            note(&shared.root, &what, &all, new.clone()).unwrap_or_else(|error| {
                warn!(%error, "a download that is killed will not know which directories it made");
                new
            })
        };
        task::spawn_blocking(note).await.map_err(|error| thread_failure(&error))
    }

    /// The download of `what` is over.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) async fn forget_making(&self, what: String) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let forget = move || {
            if let Err(error) = forget(&shared.root, &what) {
                warn!(%error, "a note of directories stays");
            }
        };
        task::spawn_blocking(forget).await.map_err(|error| thread_failure(&error))
    }
}

fn note(
    root: &Root,
    what: &str,
    all: &BTreeSet<FileName>,
    mut new: BTreeSet<FileName>,
) -> io::Result<BTreeSet<FileName>> {
    let file = file_of(what);
    let dir = root.hidden_dir(DIRECTORIES)?;
    new.extend(read(&dir, &file)?.into_iter().filter(|name| all.contains(name)));
    if !new.is_empty() {
        write(&dir, &file, &new)?;
    }
    Ok(new)
}

fn forget(root: &Root, what: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(root.hidden_dir(DIRECTORIES)?, file_of(what), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

fn file_of(what: &str) -> String {
    blake3::hash(what.as_bytes()).to_hex()[..16].to_owned()
}

/// What was noted; nothing when that cannot be understood.
fn read(dir: &OwnedFd, file: &str) -> io::Result<BTreeSet<FileName>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(dir, file, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(BTreeSet::new()),
        opened => File::from(opened?),
    };
    let mut content = Vec::new();
    opened.take((MAX_FILES_PER_PEER * MAX_FILE_NAME_BYTES) as u64).read_to_end(&mut content)?;
    Ok(postcard::from_bytes(&content).unwrap_or_else(|error| {
        warn!(%error, "a note of directories is damaged");
        BTreeSet::new()
    }))
}

fn write(dir: &OwnedFd, file: &str, names: &BTreeSet<FileName>) -> io::Result<()> {
    let beside = format!("{file}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let content = postcard::to_stdvec(names).map_err(io::Error::other)?;
    File::from(rustix::fs::openat(dir, &beside, flags, Mode::from_raw_mode(0o600))?).write_all(&content)?;
    Ok(rustix::fs::renameat(dir.as_fd(), &beside, dir.as_fd(), file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<FileName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn what_was_being_made_is_known_until_the_download_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let all = names(&["a", "a/b", "a/c"]);
        let note = |what: &str, new: &[&str]| note(&root, what, &all, names(new)).unwrap();
        assert_eq!(note("a", &["a/b"]), names(&["a/b"]));
        assert_eq!(note("a", &["a/c"]), names(&["a/b", "a/c"]), "begun again");
        assert_eq!(note("a to elsewhere", &[]), names(&[]), "another download's are its own");
        assert_eq!(note("a", &[]), all.range(names(&["a/b"]).pop_first().unwrap()..).cloned().collect());
        forget(&root, "a").unwrap();
        forget(&root, "a").unwrap();
        assert_eq!(note("a", &[]), names(&[]));
    }

    #[test]
    fn a_damaged_note_says_nothing_and_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let all = names(&["a"]);
        let file = dir.path().join(".brasa").join(DIRECTORIES).join(file_of("a"));
        note(&root, "a", &all, all.clone()).unwrap();
        let noted = std::fs::read(&file).unwrap();
        for damaged in [&noted[..1], &[0xff; 64], b""] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(note(&root, "a", &all, names(&[])).unwrap(), names(&[]));
            assert_eq!(note(&root, "a", &all, all.clone()).unwrap(), all);
            assert_eq!(std::fs::read(&file).unwrap(), noted);
        }
    }
}
