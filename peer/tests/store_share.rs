//! The share as the rest of the peer sees it: its files, the changes that it reports, and imports into it.

mod store_common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    time::{Duration, SystemTime},
};

use peer::{
    store::{Share, ShareOptions},
    transfer::ServeError,
};
use shared::{
    content::ContentHash,
    error::{Failure, FailureCode},
    group_ranges::GroupRanges,
};
use store_common::{DEADLINE, Fixture, SmallDisk, change_visibly, name, noise, options};
use tokio::sync::mpsc;

fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash(*blake3::hash(bytes).as_bytes())
}

#[tokio::test]
async fn restarted_share_hashes_nothing_again() {
    let large = noise(3_000_000, 1);
    let first = Fixture::with(|folder| {
        fs::write(folder.join("large"), &large).unwrap();
        fs::write(folder.join("small"), "x").unwrap();
    })
    .await;
    first.share.settled().await.unwrap();
    assert_eq!(first.share.stats().hashed_bytes, 3_000_001);
    let before = first.share.list();
    let second = first.restarted().await;
    // The hash cache has everything, so nothing waits to be hashed.
    assert_eq!(second.share.list(), before);
    second.share.settled().await.unwrap();
    assert_eq!(second.share.stats().hashed_bytes, 0);
    assert!(second.share.open_for_serving(&hash_of(&large)).is_ok(), "the file can be served");
}

#[tokio::test]
async fn changes_in_the_folder_are_reported() {
    let mut share = Fixture::with(|folder| fs::write(folder.join("there"), "before").unwrap()).await;
    share.wait_for_report("the first scan", |reported| reported.len() == 1).await;

    fs::create_dir_all(share.path("new/deep")).unwrap();
    fs::write(share.path("new/deep/file"), "hello").unwrap();
    share.wait_for_report("a file in a new directory", |reported| reported.contains_key(&name("new/deep/file"))).await;

    fs::write(share.path("there"), "after").unwrap();
    let after = hash_of(b"after");
    share.wait_for_report("new content", |reported| reported[&name("there")].hash == after).await;

    fs::rename(share.path("there"), share.path("new/moved")).unwrap();
    let moved = |reported: &std::collections::BTreeMap<_, _>| {
        reported.contains_key(&name("new/moved")) && !reported.contains_key(&name("there"))
    };
    share.wait_for_report("a rename", moved).await;

    fs::set_permissions(share.path("new/moved"), fs::Permissions::from_mode(0o755)).unwrap();
    share.wait_for_report("the executable bit", |reported| reported[&name("new/moved")].executable).await;

    fs::remove_dir_all(share.path("new")).unwrap();
    share.wait_for_report("removals", |reported| reported.is_empty()).await;
    assert!(share.share.list().is_empty());
}

#[tokio::test]
async fn hidden_and_outside_files_are_neither_shared_nor_served() {
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

    // After it was indexed, a name becomes a link that leads out of the share.
    fs::remove_file(share.path("link")).unwrap();
    fs::remove_file(share.path("inside")).unwrap();
    symlink("../outside", share.path("inside")).unwrap();
    assert!(share.share.open_for_serving(&hash_of(b"inside")).is_err());
    assert!(share.share.open_for_serving(&hash_of(b"outside")).is_err());
}

#[tokio::test]
async fn file_that_changed_unnoticed_is_not_served_under_its_old_hash() {
    let mut share = Fixture::with(|folder| fs::write(folder.join("a"), "before").unwrap()).await;
    share.share.settled().await.unwrap();
    change_visibly(&share.path("a"), || fs::write(share.path("a"), "after!").unwrap());
    // The content is in doubt: it is checked before it is sent.
    let source = share.share.open_for_serving(&hash_of(b"before")).unwrap();
    let mut sent = Vec::new();
    let refused = peer::transfer::serve(source, GroupRanges::all(6), &mut sent, |_| ()).await;
    assert!(matches!(refused, Err(ServeError::Changed { .. })) && sent.is_empty(), "{refused:?}");
    let after = hash_of(b"after!");
    share
        .wait_for_report("the new content", |reported| reported.get(&name("a")).is_some_and(|meta| meta.hash == after))
        .await;
    assert!(share.share.open_for_serving(&after).is_ok());
}

#[tokio::test]
async fn lost_outboard_is_computed_again() {
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
async fn hash_of_a_file_changed_just_before_is_confirmed_later() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("share");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("fresh"), "x").unwrap();
    let (sender, _events) = mpsc::channel(100);
    let racy = ShareOptions { racy_window: Duration::from_secs(3), ..options() };
    let share = Share::open(&folder, &dir.path().join("state"), racy, sender).await.unwrap();
    share.settled().await.unwrap();
    // The file is hashed at once, so that it can be shared at once, and again after the racy window.
    assert_eq!((share.list().len(), share.stats().hashed_bytes), (1, 1));
    // The second hash changes nothing in the share, so there is no report of it.
    let confirmed = async {
        while share.stats().hashed_bytes < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, confirmed).await.expect("the file is hashed again after the window");
    share.rescan_now().await.unwrap();
    assert_eq!(share.stats().hashed_bytes, 2, "a confirmed hash is final");
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
async fn slow_listener_gets_all_changes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("share");
    fs::create_dir(&folder).unwrap();
    for file in 0..2000 {
        fs::write(folder.join(file.to_string()), "x").unwrap();
    }
    let (sender, mut events) = mpsc::channel(1);
    let share = Share::open(&folder, &dir.path().join("state"), options(), sender).await.unwrap();
    let mut received = 0;
    while received < 2000 {
        let changes = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
        assert!(changes.upserts.len() <= 500);
        received += changes.upserts.len();
    }
    tokio::time::timeout(DEADLINE, share.settled()).await.unwrap().unwrap();
}

#[tokio::test]
async fn added_copy_keeps_time_and_mode_and_is_hashed_once() {
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
    // When the call returns, the file is indexed, reported and can be served.
    assert_eq!(share.share.get(&name("tool")).as_ref(), added.first());
    assert_eq!(share.events.try_recv().unwrap().upserts, added);
    assert!(share.share.open_for_serving(&added[0].hash).is_ok());
    assert_eq!(fs::read(share.path("tool")).unwrap(), content);

    // The scan that the new file causes finds nothing new and hashes nothing again.
    share.share.rescan_now().await.unwrap();
    assert_eq!(share.share.stats().hashed_bytes, 40_000);
    assert!(share.events.try_recv().is_err());

    // Adding a file of the share changes nothing.
    assert_eq!(share.share.add_copy(&share.path("tool")).await.unwrap(), added);
    assert_eq!(share.share.stats().hashed_bytes, 40_000);

    // A new version replaces the old one.
    fs::write(&source, "new").unwrap();
    assert_eq!(share.share.add_copy(&source).await.unwrap()[0].hash, hash_of(b"new"));
    assert_eq!(share.names(), ["tool"]);
}

#[tokio::test]
async fn tree_is_added_completely_or_not_at_all() {
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
    let refused = Failure::from(share.share.add_copy(&share.outside("other")).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::InvalidName);
    share.share.rescan_now().await.unwrap();
    assert_eq!(share.names().len(), 40);
    assert!(fs::read_dir(share.path(".brasa/incoming")).unwrap().next().is_none(), "the stage is empty");
}

#[tokio::test]
async fn invalid_additions_are_refused_with_a_code() {
    let share = Fixture::new().await;
    let code = async |path: &std::path::Path| Failure::from(share.share.add_copy(path).await.unwrap_err()).code;
    assert_eq!(code(&share.outside("nothing")).await, FailureCode::NoSuchFile);
    fs::write(share.outside(".hidden"), "x").unwrap();
    assert_eq!(code(&share.outside(".hidden")).await, FailureCode::InvalidName);
    fs::create_dir_all(share.outside("hides/.git")).unwrap();
    assert_eq!(code(&share.outside("hides")).await, FailureCode::NoSuchFile);
    let pipe = share.outside("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let refused =
        tokio::time::timeout(DEADLINE, code(&pipe)).await.expect("the open of a pipe does not wait for a writer");
    assert_eq!(refused, FailureCode::Io);
    fs::create_dir(share.path("taken")).unwrap();
    fs::write(share.path("taken/x"), "x").unwrap();
    fs::write(share.outside("taken"), "x").unwrap();
    assert_eq!(code(&share.outside("taken")).await, FailureCode::Exists);
}

#[tokio::test]
async fn folder_around_the_share_is_added_without_the_share() {
    let share = Fixture::with(|folder| fs::write(folder.join("own"), "x").unwrap()).await;
    fs::write(share.outside("other"), "y").unwrap();
    let around = share.outside("");
    let added = share.share.add_copy(&around).await;
    // The name of a temporary folder may begin with a dot, which is refused.
    match added {
        Ok(added) => assert!(added.iter().all(|meta| !meta.name.as_str().ends_with("/own")), "{added:?}"),
        Err(error) => assert_eq!(Failure::from(error).code, FailureCode::InvalidName),
    }
}

#[tokio::test]
async fn note_is_created_once_and_removed() {
    let mut share = Fixture::new().await;
    let note = name("arquivo_teste.txt");
    let made = share.share.add_note(&note).await.unwrap();
    let text = fs::read(share.path("arquivo_teste.txt")).unwrap();
    assert!(!text.is_empty());
    assert_eq!((made.hash, made.size), (hash_of(&text), text.len() as u64));
    assert_eq!(Failure::from(share.share.add_note(&note).await.unwrap_err()).code, FailureCode::Exists);

    assert_eq!(share.share.remove(&note).await.unwrap(), made);
    assert!(!share.path("arquivo_teste.txt").exists());
    assert!(share.share.get(&note).is_none());
    share.wait_for_report("the note", |reported| reported.contains_key(&note)).await;
    share.wait_for_report("the removal", |reported| reported.is_empty()).await;
    assert_eq!(Failure::from(share.share.remove(&note).await.unwrap_err()).code, FailureCode::NoSuchFile);
}

#[tokio::test]
async fn empty_directory_is_reported_until_it_has_a_file() {
    let mut share = Fixture::with(|folder| fs::create_dir_all(folder.join("before/deep")).unwrap()).await;
    let is_directory = |reported: &std::collections::BTreeMap<_, shared::content::FileMeta>, text: &str| {
        reported.get(&name(text)).is_some_and(shared::content::FileMeta::is_directory)
    };
    share
        .wait_for_report("a directory that was there", |reported| {
            reported.len() == 1 && is_directory(reported, "before/deep")
        })
        .await;
    fs::create_dir(share.path("new")).unwrap();
    share.wait_for_report("a new directory", |reported| reported.len() == 2 && is_directory(reported, "new")).await;
    fs::write(share.path("new/file"), "x").unwrap();
    share
        .wait_for_report("a file in it", |reported| {
            reported.contains_key(&name("new/file")) && !reported.contains_key(&name("new"))
        })
        .await;
    fs::remove_file(share.path("new/file")).unwrap();
    share.wait_for_report("the empty directory", |reported| reported.len() == 2 && is_directory(reported, "new")).await;
    share.share.settled().await.unwrap();
    assert_eq!((share.share.stats().files, share.share.stats().hashed_bytes), (0, 1));
    assert!(
        share.share.open_for_serving(&shared::content::DIRECTORY_HASH).is_err(),
        "a directory has no content to send"
    );

    fs::create_dir(share.path("kept")).unwrap();
    fs::write(share.path("kept/.hidden"), "x").unwrap();
    assert_eq!(
        Failure::from(share.share.remove(&name("kept")).await.unwrap_err()).code,
        FailureCode::Io,
        "the directory has a hidden file"
    );
    assert!(share.share.remove(&name("before/deep")).await.unwrap().is_directory());
    assert!(!share.path("before").exists() && share.path("kept/.hidden").exists());
    share.wait_for_report("the removal", |reported| reported.len() == 1).await;
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
    // An empty directory alone, and one from within the share.
    fs::create_dir(share.outside("alone")).unwrap();
    assert_eq!(names(share.share.add_copy(&share.outside("alone")).await.unwrap()), ["alone/"]);
    assert_eq!(names(share.share.add_copy(&share.path("tree/a")).await.unwrap()), ["tree/a/empty/"]);
    assert_eq!(share.names(), ["alone", "tree/a/empty", "tree/file"]);

    fs::remove_dir(share.path("alone")).unwrap();
    fs::write(share.path("alone"), "a file").unwrap();
    assert_eq!(
        Failure::from(share.share.add_copy(&share.outside("alone")).await.unwrap_err()).code,
        FailureCode::Exists
    );
    assert_eq!(fs::read(share.path("alone")).unwrap(), b"a file");
}

#[tokio::test]
async fn removing_a_directory_with_files_by_name_is_refused() {
    let share = Fixture::with(|folder| {
        fs::create_dir(folder.join("docs")).unwrap();
        fs::write(folder.join("docs/a"), "x").unwrap();
    })
    .await;
    share.share.settled().await.unwrap();
    let refused = Failure::from(share.share.remove(&name("docs")).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::NoSuchFile);
    assert!(refused.why.contains("directory"), "{refused}");
    assert!(share.path("docs/a").exists());
    share.share.remove(&name("docs/a")).await.unwrap();
    assert!(!share.path("docs").exists(), "an emptied directory is removed too");
}

#[tokio::test]
async fn read_only_folder_is_shared_and_refuses_additions() {
    let Some(disk) = SmallDisk::mount("ro,size=1m") else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = disk.path().to_path_buf();
    let share = Fixture::open(dir, folder).await;
    let refused = Failure::from(share.share.add_note(&name("a")).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::Io);
    assert!(refused.hint.contains("read-only"), "{refused}");
}

#[tokio::test]
async fn copy_to_a_full_disk_fails_and_keeps_nothing() {
    let Some(disk) = SmallDisk::mount("size=1m") else { return };
    let share = Fixture::open(tempfile::tempdir().unwrap(), disk.path().to_path_buf()).await;
    fs::write(share.outside("big"), noise(2_000_000, 5)).unwrap();
    let refused = Failure::from(share.share.add_copy(&share.outside("big")).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::NoSpace);
    share.share.rescan_now().await.unwrap();
    assert!(share.names().is_empty());
    fs::write(share.path("room"), noise(900_000, 6)).expect("the failed copy takes no space");
}
