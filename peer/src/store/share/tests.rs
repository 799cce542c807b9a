//! Batches of small files in a share.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use shared::content::{ContentHash, FileMeta};
use tokio::sync::mpsc;

use crate::store::{Changes, Inspected, Share, ShareOptions, Staged, StagedBatch, error::FinalizeError};

async fn share(dir: &Path) -> (Share, mpsc::Receiver<Changes>) {
    let (events, changes) = mpsc::channel(64);
    let options = ShareOptions { rescan: Duration::from_secs(3600), ..ShareOptions::default() };
    (Share::open(&dir.join("share"), &dir.join("state"), options, events).await.unwrap(), changes)
}

fn file(name: &str, content: &[u8]) -> FileMeta {
    let hash = ContentHash(*blake3::hash(content).as_bytes());
    let size = content.len() as u64;
    FileMeta { name: name.parse().unwrap(), size, hash, mtime_micros: 1_000_000_000_123_456, executable: true }
}

fn stage(batch: &StagedBatch, meta: &FileMeta, to: Option<&Path>, content: &[u8]) -> Staged {
    match batch.inspect(meta, to).unwrap() {
        Inspected::Wanted(destination) => batch.stage(&destination, meta, content).unwrap(),
        Inspected::Identical(..) => panic!("{} is there already", meta.name),
    }
}

#[tokio::test]
async fn committed_group_is_shared_and_not_hashed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (share, mut changes) = share(dir.path()).await;
    let batch = share.staged_batch(None, false);
    let contents: Vec<Vec<u8>> = (0..40_usize).map(|number| vec![7; number * 1_000]).collect();
    let metas: Vec<FileMeta> =
        contents.iter().enumerate().map(|(n, content)| file(&format!("d{}/f{n}", n % 20), content)).collect();
    let group = metas.iter().zip(&contents).map(|(meta, content)| stage(&batch, meta, None, content)).collect();
    assert_eq!(share.list(), [], "a staged file is not shared");
    let committed = batch.commit(group).unwrap();
    share.adopt(committed.arrived).await.unwrap();
    for ((meta, content), path) in metas.iter().zip(&contents).zip(committed.files) {
        let path = path.unwrap();
        assert_eq!(path, meta.name.below(share.path()));
        assert_eq!(&fs::read(&path).unwrap(), content);
        assert_ne!(path.metadata().unwrap().permissions().mode() & 0o100, 0);
        assert_eq!(share.get(&meta.name).as_ref(), Some(meta));
        share.open_for_serving(&meta.hash).unwrap();
    }
    share.rescan_now().await.unwrap();
    assert_eq!((share.stats().files, share.stats().hashed_bytes), (40, 0));
    let reported = changes.recv().await.unwrap();
    assert_eq!(reported.upserts.len(), 40, "one report has all files");
    drop(batch);
    assert_eq!(fs::read_dir(share.path().join(".brasa/incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn commit_does_not_replace_new_files_and_accepts_identical_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (share, _changes) = share(dir.path()).await;
    let metas = [file("other", b"theirs"), file("same", b"theirs"), file("free", b"theirs")];
    let batch = share.staged_batch(None, false);
    let group = metas.iter().map(|meta| stage(&batch, meta, None, b"theirs")).collect();
    fs::write(share.path().join("other"), "mine").unwrap();
    fs::write(share.path().join("same"), "theirs").unwrap();
    let committed = batch.commit(group).unwrap();
    assert!(matches!(&committed.files[..], [Err(FinalizeError::Exists(_)), Ok(_), Ok(_)]), "{:?}", committed.files);
    assert_eq!(fs::read(share.path().join("other")).unwrap(), b"mine");
    let forced = share.staged_batch(None, true);
    let group = vec![stage(&forced, &metas[0], None, b"theirs")];
    forced.commit(group).unwrap().files[0].as_ref().unwrap();
    assert_eq!(fs::read(share.path().join("other")).unwrap(), b"theirs");
}

#[tokio::test]
async fn batch_outside_of_the_share_stages_beside_the_destination_and_sweeps_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let (share, _changes) = share(dir.path()).await;
    let outside = dir.path().join("outside");
    fs::create_dir_all(outside.join(".brasa-incoming-killed")).unwrap();
    fs::write(outside.join(".brasa-incoming-killed/0"), "half").unwrap();
    let batch = share.staged_batch(Some(&outside), false);
    let meta = file("docs/a", b"content");
    let staged = stage(&batch, &meta, Some(&outside.join("b")), b"content");
    assert!(!outside.join(".brasa-incoming-killed").exists());
    assert!(!outside.join("b").exists());
    let committed = batch.commit(vec![staged]).unwrap();
    assert!(committed.arrived.files.is_empty());
    drop(batch);
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["b"]);
}

#[tokio::test]
async fn dropped_batch_deletes_its_staged_files() {
    let dir = tempfile::tempdir().unwrap();
    let (share, _changes) = share(dir.path()).await;
    let batch = share.staged_batch(None, false);
    let staged = stage(&batch, &file("a/b", b"content"), None, b"content");
    assert_eq!(fs::read_dir(share.path().join(".brasa/incoming")).unwrap().count(), 1);
    drop((batch, staged));
    assert_eq!(fs::read_dir(share.path().join(".brasa/incoming")).unwrap().count(), 0);
    assert!(!share.path().join("a").exists());
}

#[tokio::test]
async fn open_sweeps_incomplete_directory_journals() {
    let dir = tempfile::tempdir().unwrap();
    let journals = dir.path().join("share/.brasa/directories");
    fs::create_dir_all(&journals).unwrap();
    for name in ["0123456789abcdef", "0123456789abcdef.new-0123456789abcdef"] {
        fs::write(journals.join(name), "half").unwrap();
    }
    let (_share, _changes) = share(dir.path()).await;
    let names: Vec<_> = fs::read_dir(&journals).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["0123456789abcdef"]);
}
