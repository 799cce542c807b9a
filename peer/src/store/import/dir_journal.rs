//! Which directories a download is making: noted before the first is made and forgotten at its end, so that the same download, begun
//! again after its process was killed, still knows them from those that were there before.
//!
//! `.brasa/directories/<16 hex>`: the names (postcard); the digits are of the BLAKE3 of what the download is of. Written to a file of its own
//! beside it and renamed, so it is whole after a kill, and whole when the same download runs twice. Not synced: a crash of the machine may
//! lose it, and with it the modes. A download that is never repeated leaves its note behind: the start of the peer removes old ones.

use std::{
    collections::BTreeSet,
    fs::{self, DirEntry, File},
    io::{self, Read as _},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use shared::{
    error::Failure,
    file_name::FileName,
    limits::{MAX_FILE_NAME_BYTES, MAX_FILES_PER_PEER, NOTE_LIFE},
    time::unix_micros,
};
use tokio::task;
use tracing::warn;

use crate::store::{
    confined_dir::{ConfinedDir, HIDDEN},
    download::resume::journal::{NEW, write_new},
    error::thread_failure,
    file_stat::FileStat,
    share::Share,
};

/// Where, in the hidden directory of the share, the notes are.
const DIRECTORIES: &str = "directories";

impl Share {
    /// Notes that the download of `what` is about to make the directories `new`. Returns those of `all` that it makes, `new` and those that
    /// the same download was making when its process was killed. What cannot be noted is made all the same.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) async fn begin_dir_journal(
        &self,
        what: String,
        all: BTreeSet<FileName>,
        new: BTreeSet<FileName>,
    ) -> Result<BTreeSet<FileName>, Failure> {
        let inner = Arc::clone(&self.inner);
        let note = move || {
            note(&inner.root, &what, &all, new.clone()).unwrap_or_else(|error| {
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
    pub(crate) async fn end_dir_journal(&self, what: String) -> Result<(), Failure> {
        let inner = Arc::clone(&self.inner);
        let forget = move || {
            if let Err(error) = forget(&inner.root, &what) {
                warn!(%error, "a note of directories stays");
            }
        };
        task::spawn_blocking(forget).await.map_err(|error| thread_failure(&error))
    }
}

fn note(
    root: &ConfinedDir,
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

fn forget(root: &ConfinedDir, what: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(root.hidden_dir(DIRECTORIES)?, file_of(what), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

/// At the start: removes the notes of downloads that nobody repeated within `NOTE_LIFE`, and those that a killed process left half-written.
pub(crate) fn sweep(root: &ConfinedDir) {
    // There are none where no download made a directory yet.
    let Ok(entries) = fs::read_dir(root.path().join(HIDDEN).join(DIRECTORIES)) else { return };
    for entry in entries.flatten() {
        if let Err(error) = sweep_note(&entry) {
            warn!(%error, path = %entry.path().display(), "a left-over note of directories cannot be deleted");
        }
    }
}

fn sweep_note(entry: &DirEntry) -> io::Result<()> {
    let is_temporary = entry.file_name().to_string_lossy().contains(NEW);
    let now = i64::try_from(unix_micros()).unwrap_or(i64::MAX);
    // Below zero when the clock was put back: as if it were new.
    let age_micros = now.saturating_sub(FileStat::of(&entry.metadata()?).mtime_micros());
    if is_temporary || Duration::from_micros(u64::try_from(age_micros).unwrap_or(0)) > NOTE_LIFE {
        fs::remove_file(entry.path())?;
    }
    Ok(())
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
    let content = postcard::to_stdvec(names).map_err(io::Error::other)?;
    let (_, beside) = write_new(dir, file.as_ref(), &content, false)?;
    let renamed = rustix::fs::renameat(dir, &beside, dir, file);
    if renamed.is_err() {
        let _swept_at_next_start = rustix::fs::unlinkat(dir, &beside, AtFlags::empty());
    }
    Ok(renamed?)
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
        let root = ConfinedDir::open(dir.path()).unwrap();
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
        let root = ConfinedDir::open(dir.path()).unwrap();
        let all = names(&["a"]);
        let file = dir.path().join(".brasa").join(DIRECTORIES).join(file_of("a"));
        note(&root, "a", &all, all.clone()).unwrap();
        let noted = fs::read(&file).unwrap();
        for damaged in [&noted[..1], &[0xff; 64], b""] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(note(&root, "a", &all, names(&[])).unwrap(), names(&[]));
            assert_eq!(note(&root, "a", &all, all.clone()).unwrap(), all);
            assert_eq!(fs::read(&file).unwrap(), noted);
        }
    }

    #[test]
    fn identical_downloads_at_once_note_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        // Long enough that writing it takes a moment.
        let all: BTreeSet<FileName> = (0..1_000).map(|n| format!("folder/{n:04}").parse().unwrap()).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for time in 0..100 {
                        assert_eq!(note(&root, "folder", &all, all.clone()).unwrap(), all, "time {time}");
                    }
                });
            }
        });
        assert_eq!(note(&root, "folder", &all, names(&[])).unwrap(), all, "what stays is whole");
        assert_eq!(fs::read_dir(dir.path().join(".brasa").join(DIRECTORIES)).unwrap().count(), 1, "and alone");
    }

    #[tokio::test]
    async fn the_start_sweeps_notes_that_nobody_came_back_for() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("shared");
        fs::create_dir(&inner).unwrap();
        let root = ConfinedDir::open(&inner).unwrap();
        let all = names(&["a"]);
        let notes = inner.join(".brasa").join(DIRECTORIES);
        let age = |file: &str, age: Duration| {
            let then = std::time::UNIX_EPOCH + Duration::from_micros(unix_micros()) - age;
            File::options().write(true).open(notes.join(file)).unwrap().set_modified(then).unwrap();
        };
        let margin = Duration::from_secs(3600);
        for what in ["recent", "old", "old and repeated"] {
            note(&root, what, &all, all.clone()).unwrap();
        }
        age(&file_of("recent"), NOTE_LIFE - margin);
        age(&file_of("old"), NOTE_LIFE + margin);
        age(&file_of("old and repeated"), NOTE_LIFE + margin);
        assert_eq!(note(&root, "old and repeated", &all, names(&[])).unwrap(), all);
        fs::write(notes.join(format!("{}{NEW}0123456789abcdef", file_of("killed"))), "half").unwrap();

        let (events, _changes) = tokio::sync::mpsc::channel(16);
        let options = crate::store::ShareOptions::default();
        let share = Share::open(&inner, &dir.path().join("state"), options, events).await.unwrap();
        let left: BTreeSet<_> =
            fs::read_dir(&notes).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(left, BTreeSet::from([file_of("recent"), file_of("old and repeated")]));
        drop(share);
    }
}
