//! Trees of many small files between real programs: they arrive identical although owners misbehave and programs are
//! killed.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::process::Signal;
use shared::{content::ContentHash, limits::MAX_PACKED_FILE_BYTES, rpc::tracker::WireFile};

mod common;
use common::{
    Network, content_hash,
    fake_peer::{
        self,
        corrupt::{CorruptOwner, Fault},
    },
    files,
    process::Program,
    wait_for,
};

/// What of a file is shared: content, modification time in seconds since 1970, whether it is executable.
type FileState = (Vec<u8>, u64, bool);

/// All files below a folder without the hidden ones.
fn tree(folder: &Path) -> BTreeMap<String, FileState> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            let modified = metadata.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            found.insert(name, (fs::read(&path).unwrap(), modified, metadata.permissions().mode() & 0o100 != 0));
        }
    }
    found
}

/// Puts `count` small files, some of them empty, and a large one into a peer's share, in directories below `tree`, with
/// fixed modification times.
fn plant(network: &Network, peer: &str, count: u64) {
    let mut rng = fastrand::Rng::with_seed(3);
    for number in 0..count {
        let size = match number % 20 {
            0 => 0,
            1 => rng.u64(16_000..70_000),
            _ => rng.u64(1..8_000),
        };
        let mut content = vec![0; usize::try_from(size).unwrap()];
        rng.fill(&mut content);
        // Some files have the same content.
        if number % 50 == 2 {
            content = b"the same everywhere".to_vec();
        }
        let name = format!("tree/{}/ação {}/f{number}", number % 7, number % 3);
        network.put(peer, &name, &content);
        let file = File::options().write(true).open(network.shared(peer, &name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1 + number * 700_001)).unwrap();
        if number % 5 == 0 {
            file.set_permissions(Permissions::from_mode(0o755)).unwrap();
        }
    }
    // A file that is too large for a pack.
    let mut large = vec![0; usize::try_from(2 * MAX_PACKED_FILE_BYTES).unwrap()];
    rng.fill(&mut large);
    network.put(peer, "tree/large", &large);
    let file = File::options().write(true).open(network.shared(peer, "tree/large")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

/// Paths in the hidden directories of a peer's share where downloads are staged.
fn staged(network: &Network, peer: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in [".brasa/incoming", ".brasa/partial"] {
        let Ok(entries) = fs::read_dir(network.shared(peer, part)) else { continue };
        for entry in entries.flatten() {
            found.push(entry.path().display().to_string());
            // The peer may sweep the stage meanwhile.
            let inside = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            found.extend(inside.map(|file| file.path().display().to_string()));
        }
    }
    found
}

fn senders(document: &serde_json::Value) -> BTreeSet<String> {
    let sources = files(document).iter().flat_map(|file| file["sources"].as_array().unwrap());
    sources.map(|source| source["peer"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn downloaded_tree_is_identical_and_shared_at_once() {
    let network = Network::start();
    plant(&network, "peer1", 2_000);
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    network.wait_for_files("peer2", 2_001);
    let done = network.json("peer2", &["download", "tree/"]);
    assert_eq!(files(&done).len(), 2_001);
    let original = tree(&network.shared("peer1", "tree"));
    assert!(original.len() == 2_001 && tree(&network.shared("peer2", "tree")) == original);
    assert_eq!(staged(&network, "peer2"), [""; 0]);
    // The receiver is an owner of every file, and the tracker learns it.
    assert_eq!(files(&network.json("peer2", &["list"])).len(), 2_001);
    network.wait_for_owners("peer1", 2_001, 2);

    // A repeated download has nothing to do; one to another place copies from the share.
    let again = network.json("peer2", &["download", "tree/"]);
    assert!(senders(&again).is_empty(), "no owner sent anything");
    let outside = network.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    let copied = network.json("peer2", &["download", "tree/", "--to", outside.to_str().unwrap()]);
    assert_eq!(senders(&copied), BTreeSet::from(["peer2".to_owned()]));
    assert!(tree(&outside.join("tree")) == original);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "the folder holds the tree alone");
}

#[test]
fn empty_directories_are_listed_downloaded_and_removed() {
    let network = Network::start();
    plant(&network, "peer1", 40);
    let empty = ["tree/0/empty", "tree/nested/deeper/deepest", "alone"];
    for name in empty.into_iter().chain(["tree/hides/.git"]) {
        fs::create_dir_all(network.shared("peer1", name)).unwrap();
    }
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let kind = |listing: &serde_json::Value, name: &str| -> Option<String> {
        let file = files(listing).iter().find(|file| file["name"] == name)?;
        Some(file["kind"].as_str().unwrap_or("file").to_owned())
    };
    let listing = network.wait_for_files("peer2", 44);
    assert!(empty.iter().all(|name| kind(&listing, name).as_deref() == Some("directory")), "{listing}");
    assert_eq!(kind(&listing, "tree/large").as_deref(), Some("file"));
    assert!(network.run("peer2", &["listAll"]).out.lines().any(|line| line.starts_with("tree/0/empty/ ")));

    let done = network.json("peer2", &["download", "tree/"]);
    assert_eq!(files(&done).len(), 43);
    let original = tree(&network.shared("peer1", "tree"));
    assert!(tree(&network.shared("peer2", "tree")) == original, "with times and modes");
    assert!(empty[..2].iter().all(|name| fs::read_dir(network.shared("peer2", name)).unwrap().next().is_none()));
    assert!(!network.shared("peer2", "tree/hides").exists() && !network.shared("peer2", "alone").exists());
    assert_eq!(files(&network.json("peer2", &["list"])).len(), 43, "the receiver shares these entries and no other");
    network.json("peer2", &["download", "alone"]);
    assert!(network.shared("peer2", "alone").is_dir());

    // A repeated download to another place adds nothing.
    let outside = network.folder().join("outside");
    for _ in 0..2 {
        network.json("peer2", &["download", "tree/nested", "--to", outside.to_str().unwrap()]);
        assert!(tree(&outside).is_empty());
        assert_eq!(fs::read_dir(outside.join("tree/nested/deeper/deepest")).unwrap().count(), 0);
    }

    // When another peer has a file in it, the directory stands for that file, and the entry of the empty one goes.
    network.put("peer2", "alone/file", b"x");
    network.json_until("peer1", &["listAll"], |listing| kind(listing, "alone/file").is_some());
    network.json("peer1", &["download", "alone"]);
    assert_eq!(fs::read(network.shared("peer1", "alone/file")).unwrap(), b"x");
    network.json_until("peer1", &["listAll"], |listing| kind(listing, "alone").is_none());

    // An empty directory can be removed. A file in its place stays and fails the download.
    let removed = network.json("peer2", &["remove", "tree/0/empty/"]);
    assert_eq!(removed["files"][0]["kind"], "directory");
    assert!(!network.shared("peer2", "tree/0/empty").exists());
    network.put("peer2", "tree/0/empty", b"mine");
    let failed = network.run("peer2", &["download", "tree/0/empty/", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&failed.err).unwrap();
    assert_eq!((failed.status, &error["error"]["code"]), (Some(1), &"exists".into()), "{error}");
    assert_eq!(fs::read(network.shared("peer2", "tree/0/empty")).unwrap(), b"mine");
}

/// Modification time in seconds since 1970 and permission bits of directories.
fn metadata_of(folder: &Path, directories: &[&str]) -> Vec<(u64, u32)> {
    let of = |name: &&str| {
        let metadata = folder.join(name).symlink_metadata().unwrap();
        let modified = metadata.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        (modified, metadata.permissions().mode() & 0o777)
    };
    directories.iter().map(of).collect()
}

#[test]
fn downloaded_directories_keep_times_and_modes() {
    let network = Network::start();
    plant(&network, "peer1", 60);
    let directories = ["tree", "tree/0", "tree/0/ação 0", "tree/0/empty"];
    fs::create_dir(network.shared("peer1", "tree/0/empty")).unwrap();
    let set_metadata = |folder: &Path| {
        for (number, name) in directories.iter().enumerate() {
            let directory = File::open(folder.join(name)).unwrap();
            directory.set_permissions(Permissions::from_mode([0o755, 0o700, 0o750, 0o711][number])).unwrap();
            directory.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(900_000_000 + number as u64)).unwrap();
        }
    };
    set_metadata(&network.shared("peer1", ""));
    // The umask of this process restricts the modes further.
    fs::create_dir(network.folder().join("new")).unwrap();
    let new = metadata_of(network.folder(), &["new"])[0].1;
    let original = metadata_of(&network.shared("peer1", ""), &directories);
    let original: Vec<_> = original.into_iter().map(|(modified, mode)| (modified, mode & new)).collect();
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    network.wait_for_files("peer2", 62);
    network.json("peer2", &["download", "tree/"]);
    assert_eq!(metadata_of(&network.shared("peer2", ""), &directories), original);

    // A directory that exists at the destination keeps its mode.
    let outside = network.folder().join("outside");
    fs::create_dir_all(outside.join("tree/0")).unwrap();
    fs::set_permissions(outside.join("tree/0"), Permissions::from_mode(0o755)).unwrap();
    network.json("peer2", &["download", "tree", "--to", outside.to_str().unwrap()]);
    let mut expected = original.clone();
    expected[1].1 = 0o755;
    assert_eq!(metadata_of(&outside, &directories), expected);

    // A glob for everything in a directory includes the directory itself.
    let all = network.folder().join("all");
    fs::create_dir(&all).unwrap();
    network.json("peer2", &["download", "tree/**", "--to", all.to_str().unwrap()]);
    assert_eq!(metadata_of(&all, &directories), original);

    // `add` copies times and modes with a tree, so that other peers get them too.
    fs::rename(outside.join("tree"), network.folder().join("copied")).unwrap();
    let copied = ["copied", "copied/0", "copied/0/ação 0", "copied/0/empty"];
    network.json("peer2", &["add", network.folder().join("copied").to_str().unwrap()]);
    assert_eq!(metadata_of(&network.shared("peer2", ""), &copied), expected);
    network.json_until("peer1", &["listAll"], |listing| {
        let is_copied = |file: &&serde_json::Value| file["name"].as_str().unwrap().starts_with("copied/");
        files(listing).iter().filter(is_copied).count() == 62
    });
    network.json("peer1", &["download", "copied"]);
    assert_eq!(metadata_of(&network.shared("peer1", ""), &copied), expected);
    // The download of one file does not set the metadata of its directory.
    fs::remove_dir_all(network.shared("peer1", "copied")).unwrap();
    network.json_until("peer1", &["list"], |listing| !listing.to_string().contains("copied"));
    network.json("peer1", &["download", "copied/large"]);
    assert_ne!(metadata_of(&network.shared("peer1", ""), &copied[..1]), expected[..1]);
}

#[test]
fn directories_of_failed_download_get_the_modes_of_their_owner() {
    let network = Network::start();
    plant(&network, "peer1", 60);
    let directories = ["tree", "tree/0", "tree/0/ação 0"];
    for name in directories {
        fs::set_permissions(network.shared("peer1", name), Permissions::from_mode(0o700)).unwrap();
    }
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    network.wait_for_files("peer2", 61);
    let outside = network.folder().join("outside");
    for (place, to) in [(network.shared("peer2", ""), None), (outside.clone(), outside.to_str())] {
        let obstacle = place.join("tree/1/ação 1/f1");
        fs::create_dir_all(obstacle.parent().unwrap()).unwrap();
        // peer2 shares the obstacle as another version of the name, and the tracker lists it for a while after its
        // removal. It is older than peer1's version, which a download prefers therefore. The rename makes it appear
        // with its time.
        let hidden = obstacle.with_file_name(".f1");
        fs::write(&hidden, b"mine").unwrap();
        File::options().write(true).open(&hidden).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        fs::rename(&hidden, &obstacle).unwrap();
        fs::set_permissions(place.join("tree"), Permissions::from_mode(0o755)).unwrap();
        let words: Vec<&str> = ["download", "tree/"].into_iter().chain(to.map(|_| "--to")).chain(to).collect();
        let failed = network.run("peer2", &words);
        assert_eq!(failed.status, Some(1), "{failed:?}");
        let modes = || metadata_of(&place, &directories).into_iter().map(|(_, mode)| mode).collect::<Vec<_>>();
        assert_eq!(modes(), [0o755, 0o700, 0o700], "new directories get their modes although a file is missing");
        fs::remove_file(&obstacle).unwrap();
        network.json("peer2", &words);
        assert_eq!(modes(), [0o755, 0o700, 0o700]);
        let times =
            |folder: &Path| metadata_of(folder, &directories).into_iter().map(|(time, _)| time).collect::<Vec<_>>();
        assert_eq!(times(&place), times(&network.shared("peer1", "")), "the complete download sets the times");
    }
}

/// Starts `peer1` with a tree of small files and two private directories in it, and `slow` with one more file of the
/// tree, which takes half a minute to send. Starts `peer2` and waits until all files are listed.
fn begin_slow_tree(network: &Network) -> [Program; 3] {
    plant(network, "peer1", 60);
    network.put("slow", "tree/larger", &vec![7; 2 << 20]);
    for name in ["tree/0", "tree/1"] {
        fs::set_permissions(network.shared("peer1", name), Permissions::from_mode(0o700)).unwrap();
    }
    let running =
        [network.headless("peer1"), network.headless_with("slow", &["--limit-up", "64KiB"]), network.headless("peer2")];
    network.wait_for_files("peer2", 62);
    running
}

/// Begins the download of that tree and waits for the first of its directories.
fn begin_slow_download(network: &Network) -> Program {
    let download = network.begin("peer2", &["download", "tree/"]);
    wait_for("directory of the download", || {
        network.shared("peer2", "tree/0").exists().then_some(()).ok_or_else(|| "there is none".to_owned())
    });
    download
}

#[test]
fn directories_of_interrupted_download_get_the_modes_of_their_owner() {
    let network = Network::start();
    let _running = begin_slow_tree(&network);
    let download = begin_slow_download(&network);
    download.signal(Signal::INT);
    assert_ne!(download.wait().status, Some(0), "the download was interrupted");
    wait_for("private directory", || {
        let mode = metadata_of(&network.shared("peer2", ""), &["tree/0"])[0].1;
        if mode == 0o700 { Ok(()) } else { Err(format!("mode {mode:o}")) }
    });
}

#[test]
fn directories_of_killed_download_get_the_modes_of_their_owner_when_repeated() {
    let network = Network::start();
    let there_before = network.shared("peer2", "tree/1");
    // A hidden file is not shared, and the directory does not count as empty.
    network.put("peer2", "tree/1/.mine", b"");
    fs::set_permissions(&there_before, Permissions::from_mode(0o755)).unwrap();
    let [_owner, slow, receiver] = begin_slow_tree(&network);
    let download = begin_slow_download(&network);
    receiver.signal(Signal::KILL);
    assert_ne!(download.wait().status, Some(0), "its peer was killed");
    drop((slow, receiver));
    let _running = [network.headless("slow"), network.headless("peer2")];
    network.json_until_success("peer2", &["download", "tree"]);
    let modes: Vec<_> =
        metadata_of(&network.shared("peer2", ""), &["tree/0", "tree/1"]).into_iter().map(|(_, mode)| mode).collect();
    assert_eq!(modes, [0o700, 0o755], "only directories that the download made get a mode");
    assert_eq!(fs::read_dir(network.shared("peer2", ".brasa/directories")).unwrap().count(), 0, "no journal is left");
}

#[test]
fn directory_metadata_comes_from_another_owner_when_the_first_is_frozen() {
    let network = Network::start();
    // Both have the same number of files, so the first by name is asked first.
    let owners = ["a", "b"];
    owners.iter().for_each(|owner| plant(&network, owner, 60));
    for owner in owners {
        fs::set_permissions(network.shared(owner, "tree/0"), Permissions::from_mode(0o700)).unwrap();
    }
    let _receiver = network.headless("receiver");
    let running = owners.map(|owner| network.headless(owner));
    network.wait_for_owners("receiver", 61, 2);
    running[0].signal(Signal::STOP);
    network.json("receiver", &["download", "tree/"]);
    assert_eq!(metadata_of(&network.shared("receiver", ""), &["tree/0"])[0].1, 0o700);
}

#[test]
fn existing_file_stays_and_other_files_arrive() {
    let network = Network::start();
    plant(&network, "peer1", 200);
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let name = "tree/1/ação 1/f1";
    network.put("peer2", name, b"mine");
    network.wait_for_files("peer2", 202);
    let failed = network.run("peer2", &["download", "tree/", "--from", "peer1", "--json"]);
    assert_eq!(failed.status, Some(1), "{}", failed.err);
    let error: serde_json::Value = serde_json::from_str(&failed.err).unwrap();
    assert_eq!(error["error"]["code"], "exists", "{error}");
    assert_eq!(fs::read(network.shared("peer2", name)).unwrap(), b"mine");
    let mut original = tree(&network.shared("peer1", "tree"));
    let mut here = tree(&network.shared("peer2", "tree"));
    here.remove("1/ação 1/f1").unwrap();
    let theirs = original.remove("1/ação 1/f1").unwrap();
    assert!(here == original, "all other files arrived");
    network.json("peer2", &["download", "tree/", "--from", "peer1", "--force"]);
    assert_eq!(tree(&network.shared("peer2", "tree"))["1/ação 1/f1"], theirs);
}

#[test]
fn small_files_come_from_both_owners() {
    let network = Network::start();
    plant(&network, "peer1", 1_500);
    plant(&network, "peer2", 1_500);
    // The caps make the download last for three seconds, so that no pause of one owner leaves it all to the other.
    let _owners = ["peer1", "peer2"].map(|owner| network.headless_with(owner, &["--limit-up", "1500KiB"]));
    let _receiver = network.headless("peer3");
    network.wait_for_owners("peer3", 1_501, 2);
    let done = network.json("peer3", &["download", "tree/"]);
    let from = |peer: &str| {
        let is_source =
            |file: &&serde_json::Value| file["sources"].as_array().unwrap().iter().any(|source| source["peer"] == peer);
        files(&done).iter().filter(is_source).count()
    };
    assert!(from("peer1") > 200 && from("peer2") > 200, "{} and {}", from("peer1"), from("peer2"));
    assert!(tree(&network.shared("peer3", "tree")) == tree(&network.shared("peer1", "tree")));
}

/// Contents of the files `tree/0` to `tree/39` by their hashes, and the files as a fake peer announces them.
fn forty() -> (BTreeMap<ContentHash, Vec<u8>>, Vec<WireFile>) {
    let files = (0..40_u32).map(|number| {
        let content = format!("content {number}").repeat(100).into_bytes();
        let hash = content_hash(&content);
        let size = content.len() as u64;
        (hash, content, WireFile { name: format!("tree/{number}"), size, hash, mtime_micros: 0, executable: false })
    });
    let mut contents = BTreeMap::new();
    let announced = files.map(|(hash, content, file)| {
        contents.insert(hash, content);
        file
    });
    let announced = announced.collect();
    (contents, announced)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_with_one_corrupt_file_is_dropped_and_the_tree_is_right() {
    let network = Network::start();
    let (contents, announced) = forty();
    for file in &announced {
        network.put("peer1", &file.name, &contents[&file.hash]);
    }
    let _honest = network.headless("peer1");
    let mut receiver = network.headless("peer2");
    let corrupt = CorruptOwner { fault: Fault::PackedContent(announced[20].hash), contents };
    let _corrupt = fake_peer::start(&network, "corrupt", corrupt, announced).await;
    network.wait_for_owners("peer2", 40, 2);
    // With two owners chance decides who is asked for the file; `--from` names the corrupt one.
    let failed = network.run("peer2", &["download", "tree/", "--from", "corrupt", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&failed.err).unwrap();
    assert_eq!(error["error"]["code"], "verification_failed", "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("corrupt: wrong bytes"), "{message}");
    // The log names the owner.
    receiver.wait_for_error_line("corrupt");
    let kept = tree(&network.shared("peer2", "tree"));
    assert!((1..40).contains(&kept.len()), "files before the corrupt one are kept: {}", kept.len());
    let content =
        |tree: BTreeMap<String, FileState>| tree.into_iter().map(|(name, (c, _, _))| (name, c)).collect::<Vec<_>>();
    let original = content(tree(&network.shared("peer1", "tree")));
    assert!(content(kept).iter().all(|file| original.contains(file)));
    network.json("peer2", &["download", "tree/"]);
    assert!(content(tree(&network.shared("peer2", "tree"))) == original);
    assert_eq!(staged(&network, "peer2"), [""; 0]);
}

#[test]
fn killed_receiver_completes_with_the_same_command() {
    let network = Network::start();
    plant(&network, "peer1", 3_000);
    // The cap makes the download last for two seconds, with hundreds of files staged at most times.
    let _owner = network.headless_with("peer1", &["--limit-up", "8MiB"]);
    let receiver = network.headless("peer2");
    network.wait_for_files("peer2", 3_001);
    let original = tree(&network.shared("peer1", "tree"));
    std::thread::scope(|scope| {
        let download = scope.spawn(|| network.run("peer2", &["download", "tree/"]));
        wait_for("moment with 300 staged files", || {
            assert!(!download.is_finished(), "the download ended before its peer was killed");
            // Files are moved to their places meanwhile; of a stopped peer what is staged stays staged.
            receiver.signal(Signal::STOP);
            let count = staged(&network, "peer2").len();
            if count >= 300 {
                receiver.signal(Signal::KILL);
                return Ok(());
            }
            receiver.signal(Signal::CONT);
            Err(format!("{count} staged files"))
        });
        assert_ne!(download.join().unwrap().status, Some(0), "the peer was killed before the end of the download");
    });
    drop(receiver);
    assert!(staged(&network, "peer2").len() >= 300, "the staged files are still there");
    if network.shared("peer2", "tree").exists() {
        for (name, state) in tree(&network.shared("peer2", "tree")) {
            assert!(original.get(&name) == Some(&state), "{name} is whole");
        }
    }
    let _receiver = network.headless("peer2");
    assert_eq!(staged(&network, "peer2"), [""; 0], "a start sweeps the stage");
    network.json_until_success("peer2", &["download", "tree/"]);
    assert!(tree(&network.shared("peer2", "tree")) == original);
}
