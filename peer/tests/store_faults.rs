//! Shares whose folder, rights, state directory or files are in trouble.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

mod store_common;

use std::{
    fs::{self, File, Permissions},
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use peer::{
    diagnostics::warnings::Warnings,
    store::{Share, ShareOptions, error::OpenShareError},
    transfer::{ServeError, serve},
};
use shared::{
    content::{ContentHash, FileMeta},
    error::Failure,
    group_ranges::GroupRanges,
    limits::GROUP_BYTES,
};
use store_common::{DEADLINE, Fixture, SmallDisk, change_visibly, name, noise, options};
use tokio::sync::mpsc;

const G: usize = GROUP_BYTES as usize;
/// User without rights on the files of others.
const NOBODY: u32 = 65_534;
/// Set in the process that runs a test as [`NOBODY`].
const AS_NOBODY: &str = "BRASA_TEST_AS_NOBODY";

fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash(*blake3::hash(bytes).as_bytes())
}

/// Permissions do not bind root, so root runs the test `test` of this binary as another user. Returns true if that was
/// done.
fn done_as_nobody(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() || std::env::var_os(AS_NOBODY).is_some() {
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program);
    child.args(["--exact", test, "--nocapture"]).env(AS_NOBODY, "1").uid(NOBODY).gid(NOBODY);
    assert!(child.status().unwrap().success(), "{test} failed as another user");
    true
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(shared::time::unix_micros())
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Sets the modification time so far back that the share hashes the file at once and the hash is final.
fn set_old(path: &Path) {
    File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

/// A share with a file `a` of 200 groups that is hashed.
async fn share_of_one() -> (Fixture, Vec<u8>, ContentHash) {
    let content = noise(200 * G + 5, 1);
    let fixture = Fixture::with(|folder| {
        fs::write(folder.join("a"), &content).unwrap();
        set_old(&folder.join("a"));
    })
    .await;
    fixture.share.settled().await.unwrap();
    let hash = hash_of(&content);
    (fixture, content, hash)
}

/// Serves a whole content to a buffer.
async fn served(share: &Share, hash: &ContentHash) -> Result<Vec<u8>, String> {
    let source = share.open_for_serving(hash).map_err(|error| error.to_string())?;
    let (size, mut bytes) = (source.size, Vec::new());
    serve(source, GroupRanges::all(size), &mut bytes, |_| ()).await.map_err(|error| error.to_string())?;
    Ok(bytes)
}

async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, waited).await.is_ok(), "{what} within {DEADLINE:?}");
}

async fn opened(folder: &Path, state: &Path, options: ShareOptions) -> Result<Share, OpenShareError> {
    let (sender, events) = mpsc::channel(1000);
    // The share reports to nobody; it drops what it cannot send.
    drop(events);
    Share::open(folder, state, options, sender).await
}

// Rights.

#[test]
fn unreadable_directories_hide_no_readable_one() {
    if done_as_nobody("unreadable_directories_hide_no_readable_one") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let share = Fixture::with(|folder| {
            // The order of a scan is that of the disk, so that most readable ones come after 64 unreadable ones.
            for number in 0..200 {
                let listed_only = folder.join(format!("a{number:02}"));
                fs::create_dir(&listed_only).unwrap();
                set_mode(&listed_only, 0o400);
                let closed = folder.join(format!("b{number:02}"));
                fs::create_dir(&closed).unwrap();
                set_mode(&closed, 0);
            }
            for number in 0..200 {
                let readable = folder.join(format!("c{number:02}/deep"));
                fs::create_dir_all(&readable).unwrap();
                fs::write(readable.join("file"), "x").unwrap();
            }
        })
        .await;
        share.share.settled().await.unwrap();
        assert_eq!(share.names().len(), 200);
    });
}

#[test]
fn unreadable_spot_does_not_end_the_watching() {
    if done_as_nobody("unreadable_spot_does_not_end_the_watching") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut share = Fixture::with(|folder| {
            for spot in ["closed", ".hidden", "open"] {
                fs::create_dir(folder.join(spot)).unwrap();
            }
            set_mode(&folder.join("closed"), 0);
            set_mode(&folder.join(".hidden"), 0);
        })
        .await;
        share.share.settled().await.unwrap();
        fs::write(share.path("open/new"), "x").unwrap();
        share.wait_for_report("a file beside an unreadable spot", |all| all.contains_key(&name("open/new"))).await;
        // What becomes readable is found by the notification about its mode.
        set_mode(&share.path("closed"), 0o755);
        fs::write(share.path("closed/later"), "x").unwrap();
        share.wait_for_report("a folder that is readable now", |all| all.contains_key(&name("closed/later"))).await;
    });
}

#[tokio::test]
async fn folder_that_moves_away_and_back_is_still_watched() {
    let mut share = Fixture::with(|folder| fs::create_dir_all(folder.join("a/b")).unwrap()).await;
    share.share.settled().await.unwrap();
    for round in 0..3 {
        fs::rename(share.path("a"), share.path("other")).unwrap();
        fs::rename(share.path("other"), share.path("a")).unwrap();
        share.share.rescan_now().await.unwrap();
        let new = format!("a/b/{round}");
        fs::write(share.path(&new), "x").unwrap();
        share.wait_for_report("a file in the moved folder", |all| all.contains_key(&name(&new))).await;
    }
    fs::rename(share.path("a"), share.path("c")).unwrap();
    share.wait_for_report("the new name", |all| all.contains_key(&name("c/b/0"))).await;
    fs::write(share.path("c/b/last"), "x").unwrap();
    share.wait_for_report("a file under the new name", |all| all.contains_key(&name("c/b/last"))).await;
}

// The folder itself.

#[tokio::test]
async fn folder_that_was_moved_and_recreated_is_shared_again() {
    let mut share = Fixture::with(|folder| fs::write(folder.join("old"), "old").unwrap()).await;
    share.wait_for_report("the first file", |all| all.contains_key(&name("old"))).await;
    fs::rename(share.path(""), share.outside("aside")).unwrap();
    fs::create_dir(share.path("")).unwrap();
    fs::write(share.path("new"), "new").unwrap();
    share
        .wait_for_report("the new folder", |all| all.contains_key(&name("new")) && !all.contains_key(&name("old")))
        .await;
    assert!(share.share.open_for_serving(&hash_of(b"old")).is_err());
    assert!(share.share.open_for_serving(&hash_of(b"new")).is_ok());
    // The new folder is watched, the old one is not shared any more.
    fs::write(share.outside("aside/late"), "late").unwrap();
    fs::write(share.path("second"), "second").unwrap();
    share.wait_for_report("a change in the new folder", |all| all.contains_key(&name("second"))).await;
    assert_eq!(share.names(), ["new", "second"]);
}

#[tokio::test]
async fn folder_that_was_deleted_is_withdrawn_and_shared_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("share");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("old"), "old").unwrap();
    let warnings = Warnings::default();
    let reporting = ShareOptions { warnings: warnings.clone(), ..options() };
    let mut share = Fixture::open_with(dir, folder, reporting).await;
    share.wait_for_report("the first file", |all| all.contains_key(&name("old"))).await;
    fs::remove_dir_all(share.path("")).unwrap();
    share.wait_for_report("the removal", |all| all.is_empty()).await;
    wait_until("a warning", async || warnings.list().iter().any(|text| text.contains("is not there"))).await;
    let refused = Failure::from(share.share.add_note(&name("note")).await.unwrap_err());
    assert!(refused.to_string().contains("is not there"), "{refused}");
    fs::create_dir(share.path("")).unwrap();
    fs::write(share.path("back"), "back").unwrap();
    share.wait_for_report("the folder that is back", |all| all.contains_key(&name("back"))).await;
    assert_eq!(warnings.list(), Vec::<String>::new());
}

#[tokio::test]
async fn link_to_the_folder_that_points_elsewhere_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["one", "two"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join(folder), folder).unwrap();
    }
    let link = dir.path().join("share");
    symlink("one", &link).unwrap();
    let mut share = Fixture::open(dir, link.clone()).await;
    share.wait_for_report("the first folder", |all| all.contains_key(&name("one"))).await;
    fs::remove_file(&link).unwrap();
    symlink("two", &link).unwrap();
    share
        .wait_for_report("the second folder", |all| all.contains_key(&name("two")) && !all.contains_key(&name("one")))
        .await;
}

#[tokio::test]
async fn folder_under_a_new_mount_is_noticed_by_a_scan() {
    let mut share = Fixture::with(|folder| fs::write(folder.join("below"), "below").unwrap()).await;
    share.wait_for_report("the first file", |all| all.contains_key(&name("below"))).await;
    let Some(mounted) = SmallDisk::mount_at(&share.path(""), "size=1m") else { return };
    fs::write(share.path("above"), "above").unwrap();
    share.share.rescan_now().await.unwrap();
    assert_eq!(share.names(), ["above"]);
    drop(mounted);
    share.share.rescan_now().await.unwrap();
    assert_eq!(share.names(), ["below"]);
}

/// Receives the content of `owner` up to the last step.
async fn received(owner: &Fixture, hash: &ContentHash, receiver: &Fixture, meta: &FileMeta) -> peer::store::Partial {
    let destination = receiver.share.destination(&meta.name, None).unwrap();
    let partial = receiver.share.begin(&destination, meta).await.unwrap();
    let bytes = served(&owner.share, hash).await.unwrap();
    peer::transfer::fetch(bytes.as_slice(), partial.missing(), &partial, DEADLINE, |_| ()).await.unwrap();
    partial
}

#[tokio::test]
async fn download_into_a_replaced_folder_never_reports_a_path_without_the_file() {
    let (owner, content, hash) = share_of_one().await;
    let meta = owner.share.get(&name("a")).unwrap();
    for deleted in [false, true] {
        let receiver = Fixture::new().await;
        let partial = received(&owner, &hash, &receiver, &meta).await;
        if deleted {
            fs::remove_dir_all(receiver.path("")).unwrap();
        } else {
            fs::rename(receiver.path(""), receiver.outside("aside")).unwrap();
        }
        fs::create_dir(receiver.path("")).unwrap();
        let destination = receiver.share.destination(&meta.name, None).unwrap();
        match receiver.share.finish(partial, &destination, &meta, false).await {
            Ok(path) => assert!(fs::read(&path).unwrap() == content, "deleted: {deleted}"),
            Err(error) => {
                let failure = Failure::from(error);
                assert!(failure.to_string().contains("replaced"), "deleted: {deleted}: {failure}");
            }
        }
        assert!(!receiver.outside("aside/a").exists(), "nothing enters the old folder");
    }
}

#[tokio::test]
async fn download_into_a_missing_folder_fails_with_the_reason() {
    let (owner, _, hash) = share_of_one().await;
    let meta = owner.share.get(&name("a")).unwrap();
    let receiver = Fixture::new().await;
    let partial = received(&owner, &hash, &receiver, &meta).await;
    fs::rename(receiver.path(""), receiver.outside("aside")).unwrap();
    let destination = receiver.share.destination(&meta.name, None).unwrap();
    let failure = Failure::from(receiver.share.finish(partial, &destination, &meta, false).await.unwrap_err());
    assert!(failure.to_string().contains("is not there"), "{failure}");
    let failure = Failure::from(receiver.share.begin(&destination, &meta).await.unwrap_err());
    assert!(failure.to_string().contains("is not there"), "{failure}");
    assert!(!receiver.outside("aside/a").exists());
}

#[tokio::test]
async fn download_beside_a_replaced_folder_outside_of_the_share_is_checked_too() {
    let (owner, content, hash) = share_of_one().await;
    let meta = owner.share.get(&name("a")).unwrap();
    let receiver = Fixture::new().await;
    fs::create_dir(receiver.outside("to")).unwrap();
    let destination = receiver.share.destination(&meta.name, Some(&receiver.outside("to"))).unwrap();
    let partial = receiver.share.begin(&destination, &meta).await.unwrap();
    let bytes = served(&owner.share, &hash).await.unwrap();
    peer::transfer::fetch(bytes.as_slice(), partial.missing(), &partial, DEADLINE, |_| ()).await.unwrap();
    fs::rename(receiver.outside("to"), receiver.outside("away")).unwrap();
    fs::create_dir(receiver.outside("to")).unwrap();
    if let Ok(path) = receiver.share.finish(partial, &destination, &meta, false).await {
        assert!(fs::read(path).unwrap() == content);
    }
}

// Keys.

/// Makes the directory `from` visible at `at` too, or says that it cannot and returns `None`.
fn bind(from: &Path, at: &Path) -> Option<SmallDisk> {
    SmallDisk::mounted(Command::new("mount").arg("--bind").arg(from).arg(at), at)
}

#[tokio::test]
async fn state_directory_and_share_in_one_another_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("outer/inner")).unwrap();
    symlink("outer/inner", at("link")).unwrap();
    symlink("outer", at("outer-link")).unwrap();
    let cases = [
        ("outer", "outer/inner"),
        ("outer", "outer/inner/not-yet"),
        ("outer", "link"),
        ("outer-link", "link/x"),
        ("outer/inner", "outer"),
        ("link", "outer-link"),
        ("outer", "outer"),
        ("outer", "outer-link"),
    ];
    for (folder, state) in cases {
        let refused = opened(&at(folder), &at(state), options()).await;
        let failure = Failure::from(refused.err().unwrap_or_else(|| panic!("{folder} with {state} is accepted")));
        assert!(failure.hint.contains("--dir") && failure.hint.contains("--state-dir"), "{failure}");
    }
    // Folders beside each other are no problem, whatever their names.
    opened(&at("outer/inner"), &at("outer/inner2"), options()).await.unwrap();
}

#[tokio::test]
async fn state_directory_bound_into_the_share_is_never_shared() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, state) = (dir.path().join("share"), dir.path().join("state"));
    fs::create_dir_all(folder.join("mount")).unwrap();
    fs::create_dir_all(state.join("sub")).unwrap();
    fs::write(state.join("secret"), "secret").unwrap();
    fs::write(folder.join("a"), "a").unwrap();
    let share = opened(&folder, &state, options()).await.unwrap();
    // It appears under a running share.
    let Some(mounted) = bind(&state, &folder.join("mount")) else { return };
    share.rescan_now().await.unwrap();
    let names: Vec<_> = share.list().into_iter().map(|meta| meta.name.to_string()).collect();
    assert_eq!(names, ["a"]);
    let inside = folder.join("mount/secret");
    assert!(share.add_copy(&inside).await.is_err(), "`add` of a file in it");
    assert!(share.add_copy(&state).await.is_err(), "`add` of the state directory");
    assert!(share.add_copy(&state.join("secret")).await.is_err(), "`add` of a file of the state directory");
    assert!(share.add_note(&name("mount/note")).await.is_err(), "`add` into it");
    assert!(!state.join("note").exists());
    assert!(share.destination(&name("x"), Some(&state.join("x"))).is_err(), "a download to it");
    assert!(share.destination(&name("x"), Some(&folder.join("mount/x"))).is_err(), "a download to it by its mount");
    drop(share);
    // It is there at the start, when the closed share has released its cache.
    wait_until("a refusal", async || match opened(&folder, &state, options()).await {
        Ok(_) => panic!("a share with its state directory is accepted"),
        Err(OpenShareError::Nested { .. }) => true,
        Err(_) => false,
    })
    .await;
    drop(mounted);
}

#[tokio::test]
async fn key_files_of_other_programs_are_not_shared() {
    let share = Fixture::with(|folder| {
        fs::create_dir_all(folder.join("backup/peers/ana")).unwrap();
        for key in ["authority.pem", "local.token", "peers/ana/identity.pem", "peers/ana/newcomer.key"] {
            fs::write(folder.join("backup").join(key), "secret").unwrap();
            set_mode(&folder.join("backup").join(key), 0o600);
        }
        fs::write(folder.join("identity.pem"), "a public file of that name").unwrap();
    })
    .await;
    share.share.settled().await.unwrap();
    assert_eq!(share.names(), ["identity.pem"]);
    assert!(share.share.add_copy(&share.path("backup/authority.pem")).await.is_err());
}

// Content in doubt.

#[tokio::test]
async fn touched_linked_and_chmoded_file_stays_offered_and_served() {
    let (share, content, hash) = share_of_one().await;
    let plain = served(&share.share, &hash).await;
    let plain = plain.unwrap();
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("touch", |path| File::options().write(true).open(path).unwrap().set_modified(now()).unwrap()),
        ("chmod", |path| set_mode(path, 0o640)),
        ("hard link", |path| fs::hard_link(path, path.with_file_name("../linked")).unwrap()),
        ("copy in its place", |path| {
            fs::copy(path, path.with_file_name("../copy")).unwrap();
            fs::rename(path.with_file_name("../copy"), path).unwrap();
        }),
    ];
    for (what, change) in changes {
        change(&share.path("a"));
        // Before any scan, and while the file is hashed.
        for _ in 0..20 {
            assert!(served(&share.share, &hash).await.as_ref() == Ok(&plain), "{what}");
            assert!(share.share.get(&name("a")).is_some_and(|meta| meta.hash == hash), "{what}");
        }
        share.share.rescan_now().await.unwrap();
        assert!(served(&share.share, &hash).await.as_ref() == Ok(&plain), "{what}");
    }
    assert!(fs::read(share.path("a")).unwrap() == content);
}

#[tokio::test]
async fn renamed_and_linked_file_is_offered_under_its_new_name_at_once() {
    let (share, _, hash) = share_of_one().await;
    let hashed = share.share.stats().hashed_bytes;
    for number in 0..20 {
        fs::hard_link(share.path("a"), share.path(&format!("link{number}"))).unwrap();
    }
    fs::rename(share.path("a"), share.path("b")).unwrap();
    share.share.rescan_now().await.unwrap();
    let metas = share.share.list();
    assert!(metas.len() == 21 && metas.iter().all(|meta| meta.hash == hash), "{metas:?}");
    // 21 names of one inode are hashed once.
    assert_eq!(share.share.stats().hashed_bytes, 2 * hashed);
    let share = share.restarted().await;
    share.share.settled().await.unwrap();
    assert_eq!((share.names().len(), share.share.stats().hashed_bytes), (21, 0), "the cache knows them too");
}

#[tokio::test]
async fn changed_file_in_doubt_sends_no_wrong_byte_and_is_withdrawn() {
    let (mut share, mut content, hash) = share_of_one().await;
    // The first half stays, so that the doubt begins to be served.
    let last = content.len() - 1;
    content[last] ^= 1;
    change_visibly(&share.path("a"), || fs::write(share.path("a"), &content).unwrap());
    let source = share.share.open_for_serving(&hash).unwrap();
    let (size, mut bytes) = (source.size, Vec::new());
    let refused = serve(source, GroupRanges::all(size), &mut bytes, |_| ()).await;
    assert!(matches!(refused, Err(ServeError::Changed { .. })), "{refused:?}");
    share.share.invalidate(&hash);
    let changed = hash_of(&content);
    share.wait_for_report("the new version", |all| all.get(&name("a")).is_some_and(|meta| meta.hash == changed)).await;
    assert!(share.share.open_for_serving(&hash).is_err());
}

#[tokio::test]
async fn growing_file_serves_its_hashed_part_and_a_shorter_one_is_withdrawn() {
    let (mut share, mut content, hash) = share_of_one().await;
    let plain = served(&share.share, &hash).await.unwrap();
    content.extend_from_slice(b"another line");
    change_visibly(&share.path("a"), || fs::write(share.path("a"), &content).unwrap());
    assert!(served(&share.share, &hash).await.as_ref() == Ok(&plain), "the part that was hashed");
    let longer = hash_of(&content);
    share.wait_for_report("the longer file", |all| all.get(&name("a")).is_some_and(|meta| meta.hash == longer)).await;
    File::options().write(true).open(share.path("a")).unwrap().set_len(10).unwrap();
    assert!(served(&share.share, &longer).await.is_err());
    share.wait_for_report("the shorter file", |all| all.get(&name("a")).is_some_and(|meta| meta.size == 10)).await;
}

// The state directory.

#[tokio::test]
async fn full_state_disk_costs_no_file_and_is_recovered_from() {
    let Some(disk) = SmallDisk::mount("size=3m") else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("share");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("before"), noise(20 * G, 7)).unwrap();
    set_old(&folder.join("before"));
    let warnings = Warnings::default();
    let reporting = || ShareOptions { rescan: Duration::from_millis(200), warnings: warnings.clone(), ..options() };
    let share = opened(&folder, disk.path(), reporting()).await.unwrap();
    share.settled().await.unwrap();
    let filler = disk.path().join("filler");
    let mut full = File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut full, &[1; 4096]).is_ok() {}
    // One that needs no outboard, and one that does.
    for (file, size) in [("small", 10), ("large", 100 * G)] {
        fs::write(folder.join(file), noise(size, 8)).unwrap();
        set_old(&folder.join(file));
    }
    File::options().write(true).open(folder.join("before")).unwrap().set_modified(now()).unwrap();
    wait_until("a warning", async || !warnings.list().is_empty()).await;
    share.rescan_now().await.unwrap();
    assert!(share.get(&name("before")).is_some(), "the disk of the state is no reason to withdraw a file");
    assert!(share.get(&name("small")).is_some());
    drop(full);
    fs::remove_file(&filler).unwrap();
    wait_until("the recovery", async || warnings.list().is_empty()).await;
    wait_until("the large file", async || share.get(&name("large")).is_some()).await;
    share.rescan_now().await.unwrap();
    drop(share);
    // The next run knows all hashes.
    let again = wait_for_reopening(&folder, disk.path(), reporting()).await;
    again.settled().await.unwrap();
    assert_eq!((again.stats().files, again.stats().hashed_bytes), (3, 0));
}

/// Opens a share whose earlier handle has just been dropped.
async fn wait_for_reopening(folder: &Path, state: &Path, options: ShareOptions) -> Share {
    let reopened = async {
        loop {
            if let Ok(share) = opened(folder, state, options.clone()).await {
                return share;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, reopened).await.expect("the share is closed")
}
