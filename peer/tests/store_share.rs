//! The share as the rest of the peer sees it: what is in it, what is told of it, and what comes in.
mod store_common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    time::{Duration, SystemTime},
};

use peer::store::{Share, ShareOptions, diff};
use shared::{content::ContentHash, error::FailureCode};
use store_common::{DEADLINE, Fixture, SmallDisk, name, noise, options};
use tokio::sync::mpsc;

fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash(*blake3::hash(bytes).as_bytes())
}

#[tokio::test]
async fn a_restart_hashes_nothing_again() {
    let large = noise(3_000_000, 1);
    let first = Fixture::with(|folder| {
        fs::write(folder.join("large"), &large).unwrap();
        fs::write(folder.join("small"), "x").unwrap();
    })
    .await;
    first.share.settled().await.unwrap();
    assert_eq!(first.share.stats().hashed_bytes, 3_000_001);
    let before = first.share.snapshot();
    let second = first.restarted().await;
    // Known at once, without waiting for anything to be hashed.
    assert!(diff(&before, &second.share.snapshot()).is_empty());
    second.share.settled().await.unwrap();
    assert_eq!(second.share.stats().hashed_bytes, 0);
    assert!(second.share.open_for_serving(&hash_of(&large)).is_ok(), "and it can be served");
}

#[tokio::test]
async fn what_changes_in_the_folder_is_told() {
    let mut share = Fixture::with(|folder| fs::write(folder.join("there"), "before").unwrap()).await;
    share.wait_told("the first look", |told| told.len() == 1).await;

    fs::create_dir_all(share.path("new/deep")).unwrap();
    fs::write(share.path("new/deep/file"), "hello").unwrap();
    share.wait_told("a file in a new directory", |told| told.contains_key(&name("new/deep/file"))).await;

    fs::write(share.path("there"), "after").unwrap();
    let after = hash_of(b"after");
    share.wait_told("new content", |told| told[&name("there")].hash == after).await;

    fs::rename(share.path("there"), share.path("new/moved")).unwrap();
    let moved = |told: &std::collections::BTreeMap<_, _>| {
        told.contains_key(&name("new/moved")) && !told.contains_key(&name("there"))
    };
    share.wait_told("a rename", moved).await;

    fs::set_permissions(share.path("new/moved"), fs::Permissions::from_mode(0o755)).unwrap();
    share.wait_told("the executable bit", |told| told[&name("new/moved")].executable).await;

    fs::remove_dir_all(share.path("new")).unwrap();
    share.wait_told("removals", |told| told.is_empty()).await;
    assert!(share.share.list().is_empty());
}

#[tokio::test]
async fn hidden_and_foreign_files_are_not_shared_nor_served() {
    let share = Fixture::with(|folder| {
        fs::write(folder.join(".secret"), "secret").unwrap();
        fs::write(folder.join("../outside"), "outside").unwrap();
        fs::write(folder.join("inside"), "inside").unwrap();
        symlink("../outside", folder.join("escape")).unwrap();
        symlink(".secret", folder.join("to-hidden")).unwrap();
        symlink("inside", folder.join("link")).unwrap();
    })
    .await;
    share.share.settled().await.unwrap();
    assert_eq!(share.names(), ["inside", "link"]);
    assert_eq!(share.share.stats().skipped, 2);

    // Swapped after it was indexed: the name now leads out.
    fs::remove_file(share.path("link")).unwrap();
    fs::remove_file(share.path("inside")).unwrap();
    symlink("../outside", share.path("inside")).unwrap();
    assert!(share.share.open_for_serving(&hash_of(b"inside")).is_err());
    assert!(share.share.open_for_serving(&hash_of(b"outside")).is_err());
}

#[tokio::test]
async fn a_file_that_changed_unseen_is_not_served_as_what_it_was() {
    let mut share = Fixture::with(|folder| fs::write(folder.join("a"), "before").unwrap()).await;
    share.share.settled().await.unwrap();
    fs::write(share.path("a"), "after!").unwrap();
    assert!(share.share.open_for_serving(&hash_of(b"before")).is_err());
    let after = hash_of(b"after!");
    share.wait_told("the new content", |told| told.get(&name("a")).is_some_and(|meta| meta.hash == after)).await;
    assert!(share.share.open_for_serving(&after).is_ok());
}

#[tokio::test]
async fn a_lost_outboard_is_made_again() {
    let content = noise(100_000, 3);
    let share = Fixture::with(|folder| fs::write(folder.join("a"), &content).unwrap()).await;
    share.share.settled().await.unwrap();
    fs::remove_dir_all(share.outside("state/outboards")).unwrap();
    fs::create_dir(share.outside("state/outboards")).unwrap();
    let hash = hash_of(&content);
    assert!(share.share.open_for_serving(&hash).is_err());
    share.share.settled().await.unwrap();
    assert!(share.share.open_for_serving(&hash).is_ok());
    assert_eq!(share.share.stats().hashed_bytes, 200_000);
}

#[tokio::test]
async fn a_hash_that_may_be_stale_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("share");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("fresh"), "x").unwrap();
    let (sender, _events) = mpsc::channel(100);
    let racy = ShareOptions { racy_window: Duration::from_millis(300), ..options() };
    let share = Share::open(&folder, &dir.path().join("state"), racy, sender).await.unwrap();
    share.settled().await.unwrap();
    // Hashed at once, so that it can be shared at once; and once more when the time is over.
    assert_eq!((share.list().len(), share.stats().hashed_bytes), (1, 1));
    // Nobody is told: nothing of the share changes by it.
    let confirmed = async {
        while share.stats().hashed_bytes < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, confirmed).await.expect("it is hashed once more when the time is over");
    share.rescan_now().await.unwrap();
    assert_eq!(share.stats().hashed_bytes, 2, "twice is enough");
}

#[tokio::test]
async fn thousands_of_small_files_are_indexed_and_paged() {
    let share = Fixture::with(|folder| {
        for directory in 0..30 {
            let directory = folder.join(format!("d{directory}"));
            fs::create_dir(&directory).unwrap();
            for file in 0..100 {
                fs::write(directory.join(format!("fotografia-€-{file}")), file.to_string()).unwrap();
            }
        }
    })
    .await;
    share.share.settled().await.unwrap();
    let all = share.names();
    assert_eq!(all.len(), 3000);
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = share.share.page(after.as_ref(), 500);
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        paged.extend(page.into_iter().map(|meta| meta.name.to_string()));
    }
    assert_eq!(paged, all);
}

#[tokio::test]
async fn a_slow_listener_gets_everything_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("share");
    fs::create_dir(&folder).unwrap();
    for file in 0..2000 {
        fs::write(folder.join(file.to_string()), "x").unwrap();
    }
    let (sender, mut events) = mpsc::channel(1);
    let share = Share::open(&folder, &dir.path().join("state"), options(), sender).await.unwrap();
    let mut told = 0;
    while told < 2000 {
        let changes = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
        assert!(changes.upserts.len() <= 500);
        told += changes.upserts.len();
    }
    tokio::time::timeout(DEADLINE, share.settled()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_copy_keeps_what_belongs_to_the_file() {
    let mut share = Fixture::new().await;
    let content = noise(40_000, 4);
    let source = share.outside("tool");
    fs::write(&source, &content).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
    let mtime = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    fs::File::options().write(true).open(&source).unwrap().set_modified(mtime).unwrap();

    let added = share.share.add_copy(&source).await.unwrap();
    assert_eq!(added.len(), 1);
    assert_eq!((added[0].name.as_str(), added[0].size, added[0].hash), ("tool", 40_000, hash_of(&content)));
    assert_eq!((added[0].mtime_micros, added[0].executable), (1_500_000_000_000_000, true));
    // It is known, told and servable when the call returns.
    assert_eq!(share.share.get(&name("tool")).as_ref(), added.first());
    assert_eq!(share.events.try_recv().unwrap().upserts, added);
    assert!(share.share.open_for_serving(&added[0].hash).is_ok());
    assert_eq!(fs::read(share.path("tool")).unwrap(), content);

    // The look that the new file causes finds nothing new, and nothing is hashed twice.
    share.share.rescan_now().await.unwrap();
    assert_eq!(share.share.stats().hashed_bytes, 40_000);
    assert!(share.events.try_recv().is_err());

    // Adding what is in the share already changes nothing either.
    assert_eq!(share.share.add_copy(&share.path("tool")).await.unwrap(), added);
    assert_eq!(share.share.stats().hashed_bytes, 40_000);

    // A new version replaces the old one.
    fs::write(&source, "new").unwrap();
    assert_eq!(share.share.add_copy(&source).await.unwrap()[0].hash, hash_of(b"new"));
    assert_eq!(share.names(), ["tool"]);
}

#[tokio::test]
async fn a_tree_is_added_whole_or_not_at_all() {
    let share = Fixture::new().await;
    let tree = share.outside("docs");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::create_dir(tree.join(".git")).unwrap();
    for file in 0..40 {
        fs::write(tree.join(format!("a/b/{file}")), noise(file * 1000, file as u64)).unwrap();
    }
    fs::write(tree.join(".git/config"), "x").unwrap();
    let added = share.share.add_copy(&tree).await.unwrap();
    assert_eq!(added.len(), 40);
    assert_eq!(added[0].name.as_str(), "docs/a/b/0");
    assert_eq!(fs::read(share.path("docs/a/b/7")).unwrap(), noise(7000, 7));

    fs::write(tree.join("bad\\name"), "x").unwrap();
    fs::rename(&tree, share.outside("other")).unwrap();
    let refused = share.share.add_copy(&share.outside("other")).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::InvalidName);
    share.share.rescan_now().await.unwrap();
    assert_eq!(share.names().len(), 40);
    assert!(fs::read_dir(share.path(".brasa/incoming")).unwrap().next().is_none(), "nothing is left behind");
}

#[tokio::test]
async fn what_cannot_be_added_is_refused_with_a_reason() {
    let share = Fixture::new().await;
    let code = async |path: &std::path::Path| share.share.add_copy(path).await.unwrap_err().code;
    assert_eq!(code(&share.outside("nothing")).await, FailureCode::NoSuchFile);
    fs::write(share.outside(".hidden"), "x").unwrap();
    assert_eq!(code(&share.outside(".hidden")).await, FailureCode::InvalidName);
    fs::create_dir_all(share.outside("hides/.git")).unwrap();
    assert_eq!(code(&share.outside("hides")).await, FailureCode::NoSuchFile);
    let pipe = share.outside("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let refused = tokio::time::timeout(DEADLINE, code(&pipe)).await.expect("it does not wait for a writer");
    assert_eq!(refused, FailureCode::Io);
    fs::create_dir(share.path("taken")).unwrap();
    fs::write(share.path("taken/x"), "x").unwrap();
    fs::write(share.outside("taken"), "x").unwrap();
    assert_eq!(code(&share.outside("taken")).await, FailureCode::Exists);
}

#[tokio::test]
async fn the_folder_around_the_share_can_be_added() {
    let share = Fixture::with(|folder| fs::write(folder.join("own"), "x").unwrap()).await;
    fs::write(share.outside("other"), "y").unwrap();
    let around = share.outside("");
    let added = share.share.add_copy(&around).await;
    // A temporary folder's name may begin with a dot; then that is what is refused.
    match added {
        Ok(added) => assert!(added.iter().all(|meta| !meta.name.as_str().ends_with("/own")), "{added:?}"),
        Err(failure) => assert_eq!(failure.code, FailureCode::InvalidName),
    }
}

#[tokio::test]
async fn a_note_is_made_once_and_removed() {
    let mut share = Fixture::new().await;
    let note = name("arquivo_teste.txt");
    let made = share.share.add_note(&note).await.unwrap();
    let text = fs::read(share.path("arquivo_teste.txt")).unwrap();
    assert!(!text.is_empty());
    assert_eq!((made.hash, made.size), (hash_of(&text), text.len() as u64));
    assert_eq!(share.share.add_note(&note).await.unwrap_err().code, FailureCode::Exists);

    assert_eq!(share.share.remove(&note).await.unwrap(), made);
    assert!(!share.path("arquivo_teste.txt").exists());
    assert!(share.share.get(&note).is_none());
    share.wait_told("the note", |told| told.contains_key(&note)).await;
    share.wait_told("that it went", |told| told.is_empty()).await;
    assert_eq!(share.share.remove(&note).await.unwrap_err().code, FailureCode::NoSuchFile);
}

#[tokio::test]
async fn an_empty_directory_is_told_until_something_is_in_it() {
    let mut share = Fixture::with(|folder| fs::create_dir_all(folder.join("before/deep")).unwrap()).await;
    let is_directory = |told: &std::collections::BTreeMap<_, shared::content::FileMeta>, text: &str| {
        told.get(&name(text)).is_some_and(shared::content::FileMeta::is_directory)
    };
    share.wait_told("one that was there", |told| told.len() == 1 && is_directory(told, "before/deep")).await;
    fs::create_dir(share.path("new")).unwrap();
    share.wait_told("a new one", |told| told.len() == 2 && is_directory(told, "new")).await;
    fs::write(share.path("new/file"), "x").unwrap();
    share
        .wait_told("a file in it", |told| told.contains_key(&name("new/file")) && !told.contains_key(&name("new")))
        .await;
    fs::remove_file(share.path("new/file")).unwrap();
    share.wait_told("that it is empty again", |told| told.len() == 2 && is_directory(told, "new")).await;
    share.share.settled().await.unwrap();
    assert_eq!((share.share.stats().files, share.share.stats().hashed_bytes), (0, 1));
    assert!(share.share.open_for_serving(&shared::content::DIRECTORY_HASH).is_err(), "there is nothing to send");

    fs::create_dir(share.path("kept")).unwrap();
    fs::write(share.path("kept/.hidden"), "x").unwrap();
    assert_eq!(share.share.remove(&name("kept")).await.unwrap_err().code, FailureCode::Io, "something is in it");
    assert!(share.share.remove(&name("before/deep")).await.unwrap().is_directory());
    assert!(!share.path("before").exists() && share.path("kept/.hidden").exists());
    share.wait_told("that it went", |told| told.len() == 1).await;
}

#[tokio::test]
async fn empty_directories_are_added_with_their_tree() {
    let share = Fixture::new().await;
    let tree = share.outside("tree");
    fs::create_dir_all(tree.join("a/empty")).unwrap();
    fs::create_dir_all(tree.join("hides/.git")).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    let names = |added: Vec<shared::content::FileMeta>| -> Vec<String> {
        added.iter().map(|meta| format!("{}{}", meta.name, if meta.is_directory() { "/" } else { "" })).collect()
    };
    assert_eq!(names(share.share.add_copy(&tree).await.unwrap()), ["tree/file", "tree/a/empty/"]);
    assert!(share.path("tree/a/empty").is_dir() && !share.path("tree/hides").exists());
    // Alone, and from within the share.
    fs::create_dir(share.outside("alone")).unwrap();
    assert_eq!(names(share.share.add_copy(&share.outside("alone")).await.unwrap()), ["alone/"]);
    assert_eq!(names(share.share.add_copy(&share.path("tree/a")).await.unwrap()), ["tree/a/empty/"]);
    assert_eq!(share.names(), ["alone", "tree/a/empty", "tree/file"]);

    fs::remove_dir(share.path("alone")).unwrap();
    fs::write(share.path("alone"), "a file").unwrap();
    assert_eq!(share.share.add_copy(&share.outside("alone")).await.unwrap_err().code, FailureCode::Exists);
    assert_eq!(fs::read(share.path("alone")).unwrap(), b"a file");
}

#[tokio::test]
async fn a_directory_is_not_removed_by_its_name() {
    let share = Fixture::with(|folder| {
        fs::create_dir(folder.join("docs")).unwrap();
        fs::write(folder.join("docs/a"), "x").unwrap();
    })
    .await;
    share.share.settled().await.unwrap();
    let refused = share.share.remove(&name("docs")).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::NoSuchFile);
    assert!(refused.why.contains("directory"), "{refused}");
    assert!(share.path("docs/a").exists());
    share.share.remove(&name("docs/a")).await.unwrap();
    assert!(!share.path("docs").exists(), "the empty directory went along");
}

#[tokio::test]
async fn a_read_only_folder_can_be_shared_and_takes_nothing() {
    let Some(disk) = SmallDisk::mount("ro,size=1m") else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = disk.path().to_path_buf();
    let share = Fixture::open(dir, folder).await;
    let refused = share.share.add_note(&name("a")).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::Io);
    assert!(refused.hint.contains("read-only"), "{refused}");
}

#[tokio::test]
async fn a_full_disk_refuses_a_copy_and_keeps_nothing_of_it() {
    let Some(disk) = SmallDisk::mount("size=1m") else { return };
    let share = Fixture::open(tempfile::tempdir().unwrap(), disk.path().to_path_buf()).await;
    fs::write(share.outside("big"), noise(2_000_000, 5)).unwrap();
    let refused = share.share.add_copy(&share.outside("big")).await.unwrap_err();
    assert_eq!(refused.code, FailureCode::NoSpace);
    share.share.rescan_now().await.unwrap();
    assert!(share.names().is_empty());
    fs::write(share.path("room"), noise(900_000, 6)).expect("what was copied does not fill the disk");
}
