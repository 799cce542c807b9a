//! Journal of the directories that a download creates. If the process is killed and the download is repeated, the
//! journal distinguishes these directories from those that existed before.
//!
//! `.brasa/directories/<16 hex digits>` contains the names (postcard). The digits are the beginning of the BLAKE3 hash
//! of the download's key. The file is written under a temporary name and renamed, so it is complete after a kill and
//! with concurrent downloads. It is not synced: a crash of the machine may lose it, and with it the modes. The start of
//! the peer deletes files older than `DIR_JOURNAL_LIFE`.

use std::{
    collections::BTreeSet,
    fs::{self, DirEntry, File},
    io::{self, Read as _},
    os::fd::OwnedFd,
    time::Duration,
};

use crate::store::{
    confined_dir::{ConfinedDir, HIDDEN},
    file_ops::{TEMPORARY, create_beside},
    file_stat::FileStat,
    params::DIR_JOURNAL_LIFE,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use shared::{
    file_name::FileName,
    limits::{MAX_FILE_NAME_BYTES, MAX_FILES_PER_PEER},
    time::unix_micros,
};
use tracing::warn;

/// Directory of the journals, in the hidden directory of the share.
const DIRECTORIES: &str = "directories";

/// Records that the download `key` is about to create the directories `new`. Returns them with those of `all` that an
/// earlier run of the same download recorded.
pub(crate) fn begin(
    root: &ConfinedDir,
    key: &str,
    all: &BTreeSet<FileName>,
    mut new: BTreeSet<FileName>,
) -> io::Result<BTreeSet<FileName>> {
    let file = file_of(key);
    let dir = root.hidden_dir(DIRECTORIES)?;
    new.extend(read(&dir, &file)?.into_iter().filter(|name| all.contains(name)));
    if !new.is_empty() {
        write(&dir, &file, &new)?;
    }
    Ok(new)
}

/// Deletes the journal of the download `key`, if there is one.
pub(crate) fn end(root: &ConfinedDir, key: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(root.hidden_dir(DIRECTORIES)?, file_of(key), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

/// Deletes journals older than `DIR_JOURNAL_LIFE` and incomplete files of killed processes. Called at the start of
/// the peer.
pub(crate) fn sweep(root: &ConfinedDir) {
    // If the directory is missing, no download has written a journal yet.
    let Ok(entries) = fs::read_dir(root.path().join(HIDDEN).join(DIRECTORIES)) else { return };
    for entry in entries.flatten() {
        if let Err(error) = sweep_entry(&entry) {
            warn!(%error, path = %entry.path().display(), "cannot delete an obsolete directory journal");
        }
    }
}

fn sweep_entry(entry: &DirEntry) -> io::Result<()> {
    let is_temporary = entry.file_name().to_string_lossy().contains(TEMPORARY);
    let now = i64::try_from(unix_micros()).unwrap_or(i64::MAX);
    // A negative age, after the clock was set back, counts as zero.
    let age_micros = now.saturating_sub(FileStat::of(&entry.metadata()?).mtime_micros());
    if is_temporary || Duration::from_micros(u64::try_from(age_micros).unwrap_or(0)) > DIR_JOURNAL_LIFE {
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

fn file_of(key: &str) -> String {
    blake3::hash(key.as_bytes()).to_hex()[..16].to_owned()
}

/// Returns the recorded names, none if the file is missing or damaged.
fn read(dir: &OwnedFd, file: &str) -> io::Result<BTreeSet<FileName>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(dir, file, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(BTreeSet::new()),
        opened => File::from(opened?),
    };
    let mut content = Vec::new();
    opened.take((MAX_FILES_PER_PEER * MAX_FILE_NAME_BYTES) as u64).read_to_end(&mut content)?;
    Ok(postcard::from_bytes(&content).unwrap_or_else(|error| {
        warn!(%error, "ignoring a damaged directory journal");
        BTreeSet::new()
    }))
}

fn write(dir: &OwnedFd, file: &str, names: &BTreeSet<FileName>) -> io::Result<()> {
    let content = postcard::to_stdvec(names).map_err(io::Error::other)?;
    let (_, beside) = create_beside(dir, file.as_ref(), &content, false)?;
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
    fn begin_returns_earlier_directories_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let all = names(&["a", "a/b", "a/c"]);
        let begin = |key: &str, new: &[&str]| begin(&root, key, &all, names(new)).unwrap();
        assert_eq!(begin("a", &["a/b"]), names(&["a/b"]));
        assert_eq!(begin("a", &["a/c"]), names(&["a/b", "a/c"]), "the download is repeated");
        assert_eq!(begin("a to elsewhere", &[]), names(&[]), "another download");
        assert_eq!(begin("a", &[]), all.range(names(&["a/b"]).pop_first().unwrap()..).cloned().collect());
        end(&root, "a").unwrap();
        end(&root, "a").unwrap();
        assert_eq!(begin("a", &[]), names(&[]));
    }

    #[test]
    fn damaged_journal_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let all = names(&["a"]);
        let file = dir.path().join(".brasa").join(DIRECTORIES).join(file_of("a"));
        begin(&root, "a", &all, all.clone()).unwrap();
        let recorded = fs::read(&file).unwrap();
        for damaged in [&recorded[..1], &[0xff; 64], b""] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(begin(&root, "a", &all, names(&[])).unwrap(), names(&[]));
            assert_eq!(begin(&root, "a", &all, all.clone()).unwrap(), all);
            assert_eq!(fs::read(&file).unwrap(), recorded);
        }
    }

    #[test]
    fn concurrent_begins_leave_one_complete_journal() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        // Enough names for concurrent writes to overlap.
        let all: BTreeSet<FileName> = (0..1_000).map(|n| format!("folder/{n:04}").parse().unwrap()).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..100 {
                        assert_eq!(begin(&root, "folder", &all, all.clone()).unwrap(), all, "round {round}");
                    }
                });
            }
        });
        assert_eq!(begin(&root, "folder", &all, names(&[])).unwrap(), all, "the journal is complete");
        assert_eq!(
            fs::read_dir(dir.path().join(".brasa").join(DIRECTORIES)).unwrap().count(),
            1,
            "no other file remains"
        );
    }

    #[test]
    fn sweep_deletes_old_and_incomplete_journals() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let all = names(&["a"]);
        let journals = dir.path().join(".brasa").join(DIRECTORIES);
        let age = |file: &str, age: Duration| {
            let then = std::time::UNIX_EPOCH + Duration::from_micros(unix_micros()) - age;
            File::options().write(true).open(journals.join(file)).unwrap().set_modified(then).unwrap();
        };
        let margin = Duration::from_secs(3600);
        for key in ["recent", "old", "old and repeated"] {
            begin(&root, key, &all, all.clone()).unwrap();
        }
        age(&file_of("recent"), DIR_JOURNAL_LIFE - margin);
        age(&file_of("old"), DIR_JOURNAL_LIFE + margin);
        age(&file_of("old and repeated"), DIR_JOURNAL_LIFE + margin);
        assert_eq!(begin(&root, "old and repeated", &all, names(&[])).unwrap(), all);
        fs::write(journals.join(format!("{}{TEMPORARY}0123456789abcdef", file_of("killed"))), "half").unwrap();

        sweep(&root);
        let left: BTreeSet<_> =
            fs::read_dir(&journals).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(left, BTreeSet::from([file_of("recent"), file_of("old and repeated")]));
    }
}
