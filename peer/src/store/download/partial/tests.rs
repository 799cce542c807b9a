//! Partial files from their creation to their destination.

use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

use crate::store::{
    download::direct_io::tests::{is_available, noise},
    params::{DIRECT_MIN_FILE_BYTES, DIRECT_MIN_RUN_BYTES},
};
use shared::{file_name::FileName, time::Clock};

use super::*;

fn dir(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn create(path: &Path, size: u64) -> Result<Partial, PartialError> {
    let name: FileName = "f".parse().unwrap();
    let location = PartialLocation {
        dir: dir(path),
        name: "partial".into(),
        resume_dir: dir(path),
        resume_name: "partial.have".into(),
        goal: Goal::Share(name.clone()),
    };
    let file = FileMeta { name, size, hash: ContentHash([1; 32]), mtime_micros: 0, executable: false };
    Partial::open(location, &file, &AtomicBool::new(false))
}

fn complete(path: &Path, content: &[u8]) -> Partial {
    let partial = create(path, content.len() as u64).unwrap();
    partial.file().write_all_at(content, 0).unwrap();
    partial.mark_verified(&GroupRanges::all(content.len() as u64)).unwrap();
    partial
}

#[test]
fn finalize_moves_a_complete_file_with_its_attributes() {
    let folder = tempfile::tempdir().unwrap();
    let partial = complete(folder.path(), b"hello");
    let stat = partial.finalize(&dir(folder.path()), OsStr::new("final"), 1_500_000_000_123_456, true, false).unwrap();
    assert_eq!(fs::read(folder.path().join("final")).unwrap(), b"hello");
    assert_eq!((stat.mtime_micros(), stat.executable, stat.size), (1_500_000_000_123_456, true, 5));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file remains");
}

#[test]
fn finalize_of_an_incomplete_file_fails_and_deletes_it() {
    let folder = tempfile::tempdir().unwrap();
    let partial = create(folder.path(), 3 * GROUP_BYTES).unwrap();
    partial.mark_verified(&GroupRanges::requested(&[(0, 2)], 3 * GROUP_BYTES).unwrap()).unwrap();
    let error = partial.finalize(&dir(folder.path()), OsStr::new("final"), 0, false, true).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn finalize_without_overwrite_replaces_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("final"), "mine").unwrap();
    let partial = complete(folder.path(), b"theirs");
    let error = partial.finalize(&dir(folder.path()), OsStr::new("final"), 0, false, false).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(folder.path().join("final")).unwrap(), b"mine");
    complete(folder.path(), b"theirs").finalize(&dir(folder.path()), OsStr::new("final"), 0, false, true).unwrap();
    assert_eq!(fs::read(folder.path().join("final")).unwrap(), b"theirs");
}

#[test]
fn open_while_the_content_is_being_received_is_busy() {
    let folder = tempfile::tempdir().unwrap();
    let first = create(folder.path(), 10).unwrap();
    assert!(matches!(create(folder.path(), 10), Err(PartialError::Busy)));
    drop(first);
    create(folder.path(), 10).unwrap();
}

#[test]
fn finalize_with_an_unrepresentable_time_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    for mtime in [i64::MIN, -1, 0, i64::MAX] {
        let finalized =
            complete(folder.path(), b"x").finalize(&dir(folder.path()), OsStr::new("f"), mtime, false, true);
        finalized.unwrap_or_else(|error| panic!("{mtime}: {error}"));
    }
}

#[test]
fn open_with_an_impossible_size_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    for size in [u64::MAX, 1 << 62, i64::MAX as u64] {
        match create(folder.path(), size) {
            Err(PartialError::NoSpace { needed, .. }) => assert_eq!(needed, size),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no file remains");
}

#[test]
fn large_runs_bypass_the_page_cache_and_are_readable() {
    let folder = tempfile::tempdir().unwrap();
    let run = DIRECT_MIN_RUN_BYTES as u64;
    // The file does not end at a block boundary.
    let size = DIRECT_MIN_FILE_BYTES + run + 17;
    let partial = create(folder.path(), size).unwrap();
    if !is_available(partial.inner.direct.as_ref(), partial.file()) {
        return;
    }
    let data = noise(DIRECT_MIN_RUN_BYTES + 17);
    let end = size - data.bytes().len() as u64;
    partial.write_at(data.bytes(), end).unwrap();
    partial.write_at(&data.bytes()[..DIRECT_MIN_RUN_BYTES], 0).unwrap();
    partial.write_at(&data.bytes()[..GROUP_BYTES as usize], 4 * run).unwrap();
    let direct = partial.inner.direct.as_ref().unwrap();
    assert_eq!(direct.written(), 2 * run, "both runs, but neither the group nor the bytes after the last whole block");
    let (source, _) = partial.open_for_serving().unwrap();
    let read = |offset, len: usize| {
        let mut bytes = vec![0; len];
        source.file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    assert!(read(end, data.bytes().len()) == data.bytes());
    assert!(read(0, DIRECT_MIN_RUN_BYTES) == data.bytes()[..DIRECT_MIN_RUN_BYTES]);
    assert!(read(4 * run, GROUP_BYTES as usize) == data.bytes()[..GROUP_BYTES as usize]);
    let small = create(tempfile::tempdir().unwrap().path(), DIRECT_MIN_FILE_BYTES - 1).unwrap();
    assert!(small.inner.direct.is_none());
}

#[test]
fn write_verified_of_known_groups_does_not_touch_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let content = noise(3 * GROUP_BYTES as usize);
    let content = content.bytes();
    let partial = create(folder.path(), content.len() as u64).unwrap();
    let pairs = [(0, vec![1; 128])];
    let two = &content[..2 * GROUP_BYTES as usize];
    assert_eq!(partial.write_verified(two, 0, 0..2, &pairs).unwrap(), 2 * GROUP_BYTES);
    assert_eq!(
        partial.write_verified(two, 0, 0..2, &[(0, vec![2; 128])]).unwrap(),
        0,
        "both groups are verified already"
    );
    assert_eq!(
        partial.write_verified(&content[GROUP_BYTES as usize..], GROUP_BYTES, 1..3, &[]).unwrap(),
        GROUP_BYTES,
        "one of two groups is new"
    );
    let mut outboard = vec![0; 128];
    partial.outboard().unwrap().read_exact_at(&mut outboard, 0).unwrap();
    assert_eq!(outboard, pairs[0].1, "the pairs are not written again either");

    let overtaken = partial.clone();
    let is_closed = &partial.inner.is_closed;
    let writer = is_closed.read().unwrap();
    let finalizing = {
        let (partial, dir) = (partial.clone(), dir(folder.path()));
        std::thread::spawn(move || partial.finalize(&dir, OsStr::new("final"), 5_000_000, false, false))
    };
    // The lock admits no further reader once a writer waits for it.
    let clock = Clock::start();
    while is_closed.try_read().is_ok() {
        assert!(!finalizing.is_finished(), "finalize waits for the writer");
        assert!(clock.now().since_origin() < Duration::from_secs(60), "finalize closes the file");
        std::thread::yield_now();
    }
    assert!(!folder.path().join("final").exists(), "finalize waits for the writer");
    drop(writer);
    let stat = finalizing.join().unwrap().unwrap();
    assert_eq!(stat.mtime_micros(), 5_000_000);
    assert_eq!(overtaken.write_verified(two, 0, 0..2, &pairs).unwrap(), 0);
    assert_eq!(FileStat::of(&folder.path().join("final").metadata().unwrap()), stat, "the file is unchanged since");
    assert!(fs::read(folder.path().join("final")).unwrap() == content);
}
