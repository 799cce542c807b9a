//! Trees of many small files, between real programs: they arrive identical, whatever owners and crashes do.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use rustix::process::Signal;
use shared::{content::ContentHash, limits::MAX_PACKED_FILE_BYTES, rpc::tracker::WireFile};

mod common;
use common::{
    Deadline, Network, impostor,
    liar::{Liar, Lie},
    process::{Program, WAIT},
};

/// What a file is to others: content, modification time in seconds since 1970, whether it can be executed.
type Seen = (Vec<u8>, u64, bool);

/// All files below a folder, hidden ones left out.
fn tree(folder: &Path) -> BTreeMap<String, Seen> {
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

/// Puts `count` files into a peer's share, below `tree`: of all sizes, empty ones among them, in directories, with odd times.
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
        // Some contents are there twice.
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
    // One that is not small is part of the tree too.
    let mut large = vec![0; usize::try_from(2 * MAX_PACKED_FILE_BYTES).unwrap()];
    rng.fill(&mut large);
    network.put(peer, "tree/large", &large);
    let file = File::options().write(true).open(network.shared(peer, "tree/large")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

/// What lies in the hidden directories of a peer's share.
fn left_over(network: &Network, peer: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in [".brasa/incoming", ".brasa/partial"] {
        let Ok(entries) = fs::read_dir(network.shared(peer, part)) else { continue };
        for entry in entries.flatten() {
            found.push(entry.path().display().to_string());
            // The stage may be swept while it is looked into.
            let inside = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            found.extend(inside.map(|file| file.path().display().to_string()));
        }
    }
    found
}

fn senders(document: &serde_json::Value) -> BTreeSet<String> {
    let files = document["files"].as_array().unwrap();
    let sources = files.iter().flat_map(|file| file["sources"].as_array().unwrap());
    sources.map(|source| source["peer"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_tree_arrives_identical_and_is_shared_at_once() {
    let network = Network::start();
    plant(&network, "peer1", 2_000);
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    network.json_until("peer2", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 2_001);
    let done = network.json("peer2", &["download", "tree/"]);
    assert_eq!(done["files"].as_array().unwrap().len(), 2_001);
    let original = tree(&network.shared("peer1", "tree"));
    assert!(original.len() == 2_001 && tree(&network.shared("peer2", "tree")) == original);
    assert_eq!(left_over(&network, "peer2"), [""; 0]);
    // The receiver is an owner of all of it, and the tracker knows.
    let mine = network.json("peer2", &["list"]);
    assert_eq!(mine["files"].as_array().unwrap().len(), 2_001);
    let owners = |listing: &serde_json::Value| {
        listing["files"].as_array().unwrap().iter().all(|file| file["owners"].as_array().unwrap().len() == 2)
    };
    network.json_until("peer1", &["listAll"], owners);

    // Once more there is nothing to do; outside of the share everything is copied from it.
    let again = network.json("peer2", &["download", "tree/"]);
    assert!(senders(&again).is_empty(), "nothing was sent");
    let outside = network.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    let copied = network.json("peer2", &["download", "tree/", "--to", outside.to_str().unwrap()]);
    assert_eq!(senders(&copied), BTreeSet::from(["peer2".to_owned()]));
    assert!(tree(&outside.join("tree")) == original);
    let hidden = fs::read_dir(&outside).unwrap().count();
    assert_eq!(hidden, 1, "nothing is left beside it");
}

#[test]
fn empty_directories_arrive_too() {
    let network = Network::start();
    plant(&network, "peer1", 40);
    let empty = ["tree/0/empty", "tree/nested/deeper/deepest", "alone"];
    for name in empty.into_iter().chain(["tree/hides/.git"]) {
        fs::create_dir_all(network.shared("peer1", name)).unwrap();
    }
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let kind = |listing: &serde_json::Value, name: &str| -> Option<String> {
        let file = listing["files"].as_array().unwrap().iter().find(|file| file["name"] == name)?;
        Some(file["kind"].as_str().unwrap_or("file").to_owned())
    };
    let listing = network.json_until("peer2", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 44);
    assert!(empty.iter().all(|name| kind(&listing, name).as_deref() == Some("directory")), "{listing}");
    assert_eq!(kind(&listing, "tree/large").as_deref(), Some("file"));
    assert!(network.run("peer2", &["listAll"]).out.lines().any(|line| line.starts_with("tree/0/empty/ ")));

    let done = network.json("peer2", &["download", "tree/"]);
    assert_eq!(done["files"].as_array().unwrap().len(), 43);
    let original = tree(&network.shared("peer1", "tree"));
    assert!(tree(&network.shared("peer2", "tree")) == original, "with times and modes");
    assert!(empty[..2].iter().all(|name| fs::read_dir(network.shared("peer2", name)).unwrap().next().is_none()));
    assert!(!network.shared("peer2", "tree/hides").exists() && !network.shared("peer2", "alone").exists());
    let mine = network.json("peer2", &["list"]);
    assert_eq!(mine["files"].as_array().unwrap().len(), 43, "the receiver has them to share at once, and nothing else");
    network.json("peer2", &["download", "alone"]);
    assert!(network.shared("peer2", "alone").is_dir());

    // Twice to another place: the second time nothing is put into what is there.
    let outside = network.folder().join("outside");
    for _ in 0..2 {
        network.json("peer2", &["download", "tree/nested", "--to", outside.to_str().unwrap()]);
        assert!(tree(&outside).is_empty());
        assert_eq!(fs::read_dir(outside.join("tree/nested/deeper/deepest")).unwrap().count(), 0);
    }

    // With something in it elsewhere it is a directory like any other; then that is what comes, and the entry goes.
    network.put("peer2", "alone/file", b"x");
    network.json_until("peer1", &["listAll"], |listing| kind(listing, "alone/file").is_some());
    network.json("peer1", &["download", "alone"]);
    assert_eq!(fs::read(network.shared("peer1", "alone/file")).unwrap(), b"x");
    network.json_until("peer1", &["listAll"], |listing| kind(listing, "alone").is_none());

    // Removed, and with a file in the way, which stays.
    let removed = network.json("peer2", &["remove", "tree/0/empty/"]);
    assert_eq!(removed["files"][0]["kind"], "directory");
    assert!(!network.shared("peer2", "tree/0/empty").exists());
    network.put("peer2", "tree/0/empty", b"mine");
    let ended = network.run("peer2", &["download", "tree/0/empty/", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!((ended.status, &error["error"]["code"]), (Some(1), &"exists".into()), "{error}");
    assert_eq!(fs::read(network.shared("peer2", "tree/0/empty")).unwrap(), b"mine");
}

/// Modification time in seconds since 1970 and permission bits of directories.
fn described(folder: &Path, directories: &[&str]) -> Vec<(u64, u32)> {
    let of = |name: &&str| {
        let metadata = folder.join(name).symlink_metadata().unwrap();
        let modified = metadata.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        (modified, metadata.permissions().mode() & 0o777)
    };
    directories.iter().map(of).collect()
}

#[test]
fn directories_keep_their_times_and_are_no_more_open_than_with_their_owner() {
    let network = Network::start();
    plant(&network, "peer1", 60);
    let directories = ["tree", "tree/0", "tree/0/ação 0", "tree/0/empty"];
    fs::create_dir(network.shared("peer1", "tree/0/empty")).unwrap();
    let describe = |folder: &Path| {
        for (number, name) in directories.iter().enumerate() {
            let directory = File::open(folder.join(name)).unwrap();
            directory.set_permissions(Permissions::from_mode([0o755, 0o700, 0o750, 0o711][number])).unwrap();
            directory.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(900_000_000 + number as u64)).unwrap();
        }
    };
    describe(&network.shared("peer1", ""));
    // The umask of who runs this takes its part too.
    fs::create_dir(network.folder().join("new")).unwrap();
    let new = described(network.folder(), &["new"])[0].1;
    let original = described(&network.shared("peer1", ""), &directories);
    let original: Vec<_> = original.into_iter().map(|(modified, mode)| (modified, mode & new)).collect();
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    network.json_until("peer2", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 62);
    network.json("peer2", &["download", "tree/"]);
    assert_eq!(described(&network.shared("peer2", ""), &directories), original);

    // Elsewhere, with one that is there already: its mode is its user's own.
    let outside = network.folder().join("outside");
    fs::create_dir_all(outside.join("tree/0")).unwrap();
    fs::set_permissions(outside.join("tree/0"), Permissions::from_mode(0o755)).unwrap();
    network.json("peer2", &["download", "tree", "--to", outside.to_str().unwrap()]);
    let mut expected = original.clone();
    expected[1].1 = 0o755;
    assert_eq!(described(&outside, &directories), expected);

    // A glob for all that is in it means the directory.
    let all = network.folder().join("all");
    fs::create_dir(&all).unwrap();
    network.json("peer2", &["download", "tree/**", "--to", all.to_str().unwrap()]);
    assert_eq!(described(&all, &directories), original);

    // A tree that is added is copied with them, so others get them too.
    fs::rename(outside.join("tree"), network.folder().join("copied")).unwrap();
    let copied = ["copied", "copied/0", "copied/0/ação 0", "copied/0/empty"];
    network.json("peer2", &["add", network.folder().join("copied").to_str().unwrap()]);
    assert_eq!(described(&network.shared("peer2", ""), &copied), expected);
    network.json_until("peer1", &["listAll"], |listing| listing.to_string().contains("copied/0/empty"));
    network.json("peer1", &["download", "copied"]);
    assert_eq!(described(&network.shared("peer1", ""), &copied), expected);
    // A file alone says nothing of the directory it lies in.
    fs::remove_dir_all(network.shared("peer1", "copied")).unwrap();
    network.json_until("peer1", &["list"], |listing| !listing.to_string().contains("copied"));
    network.json("peer1", &["download", "copied/large"]);
    assert_ne!(described(&network.shared("peer1", ""), &copied[..1]), expected[..1]);
}

#[test]
fn directories_of_a_download_that_failed_are_no_more_open_either() {
    let network = Network::start();
    plant(&network, "peer1", 60);
    let directories = ["tree", "tree/0", "tree/0/ação 0"];
    for name in directories {
        fs::set_permissions(network.shared("peer1", name), Permissions::from_mode(0o700)).unwrap();
    }
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    network.json_until("peer2", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 61);
    let outside = network.folder().join("outside");
    for (place, to) in [(network.shared("peer2", ""), None), (outside.clone(), outside.to_str())] {
        let in_the_way = place.join("tree/1/ação 1/f1");
        fs::create_dir_all(in_the_way.parent().unwrap()).unwrap();
        fs::write(&in_the_way, b"mine").unwrap();
        fs::set_permissions(place.join("tree"), Permissions::from_mode(0o755)).unwrap();
        let words: Vec<&str> = ["download", "tree/"].into_iter().chain(to.map(|_| "--to")).chain(to).collect();
        let ended = network.run("peer2", &words);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        let modes = || described(&place, &directories).into_iter().map(|(_, mode)| mode).collect::<Vec<_>>();
        assert_eq!(modes(), [0o755, 0o700, 0o700], "only those that are new, though a file is missing");
        fs::remove_file(&in_the_way).unwrap();
        network.json("peer2", &words);
        assert_eq!(modes(), [0o755, 0o700, 0o700]);
        let times =
            |folder: &Path| described(folder, &directories).into_iter().map(|(time, _)| time).collect::<Vec<_>>();
        assert_eq!(times(&place), times(&network.shared("peer1", "")), "the times are set in the end");
    }
}

/// A tree of small files that `peer1` has, with two directories for itself alone, and in it one that only `slow` has, from which it takes half a
/// minute; both run, and `peer2` waits until they are listed.
fn begin_slow_tree(network: &Network) -> [Program; 3] {
    plant(network, "peer1", 60);
    network.put("slow", "tree/larger", &vec![7; 2 << 20]);
    for name in ["tree/0", "tree/1"] {
        fs::set_permissions(network.shared("peer1", name), Permissions::from_mode(0o700)).unwrap();
    }
    let running =
        [network.headless("peer1"), network.headless_with("slow", &["--limit-up", "64KiB"]), network.headless("peer2")];
    network.json_until("peer2", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 62);
    running
}

/// Begins to download it, and waits for the first of its directories.
fn begin_slow_download(network: &Network) -> Program {
    let download = Program::spawn(network.command("peer2", &["download", "tree/"]).stdin(Stdio::null()));
    let deadline = Deadline::after(WAIT);
    while !network.shared("peer2", "tree/0").exists() {
        deadline.pause("a directory");
    }
    download
}

#[test]
fn directories_of_a_download_that_is_interrupted_are_no_more_open_either() {
    let network = Network::start();
    let _running = begin_slow_tree(&network);
    let download = begin_slow_download(&network);
    download.signal(Signal::INT);
    assert_ne!(download.wait().status, Some(0), "it was interrupted");
    let deadline = Deadline::after(WAIT);
    while described(&network.shared("peer2", ""), &["tree/0"])[0].1 != 0o700 {
        deadline.pause("its mode");
    }
}

#[test]
fn directories_of_a_download_that_is_killed_are_no_more_open_when_it_has_been_repeated() {
    let network = Network::start();
    let there_before = network.shared("peer2", "tree/1");
    // Not shared, so that it is no empty directory either.
    network.put("peer2", "tree/1/.mine", b"");
    fs::set_permissions(&there_before, Permissions::from_mode(0o755)).unwrap();
    let [_owner, slow, receiver] = begin_slow_tree(&network);
    let download = begin_slow_download(&network);
    receiver.signal(Signal::KILL);
    assert_ne!(download.wait().status, Some(0), "it was killed");
    drop((slow, receiver));
    let _running = [network.headless("slow"), network.headless("peer2")];
    network.json_until_done("peer2", &["download", "tree"]);
    let modes: Vec<_> =
        described(&network.shared("peer2", ""), &["tree/0", "tree/1"]).into_iter().map(|(_, mode)| mode).collect();
    assert_eq!(modes, [0o700, 0o755], "only those that it made");
    assert_eq!(fs::read_dir(network.shared("peer2", ".brasa/directories")).unwrap().count(), 0, "nothing is left over");
}

#[test]
fn a_silent_owner_does_not_keep_directories_from_being_described() {
    let network = Network::start();
    // The first that is asked: all have as many of the files, and it is the first by name.
    let owners = ["a", "b"];
    owners.iter().for_each(|owner| plant(&network, owner, 60));
    for owner in owners {
        fs::set_permissions(network.shared(owner, "tree/0"), Permissions::from_mode(0o700)).unwrap();
    }
    let _receiver = network.headless("receiver");
    let running = owners.map(|owner| network.headless(owner));
    network.json_until("receiver", &["listAll"], |listing| {
        let files = listing["files"].as_array().unwrap();
        files.len() == 61 && files.iter().all(|file| file["owners"].as_array().unwrap().len() == 2)
    });
    running[0].signal(Signal::STOP);
    network.json("receiver", &["download", "tree/"]);
    assert_eq!(described(&network.shared("receiver", ""), &["tree/0"])[0].1, 0o700);
}

#[test]
fn what_is_in_the_way_stays_and_does_not_keep_the_others() {
    let network = Network::start();
    plant(&network, "peer1", 200);
    let _owner = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let name = "tree/1/ação 1/f1";
    network.put("peer2", name, b"mine");
    network.json_until("peer2", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 202);
    let ended = network.run("peer2", &["download", "tree/", "--from", "peer1", "--json"]);
    assert_eq!(ended.status, Some(1), "{}", ended.err);
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["error"]["code"], "exists", "{error}");
    assert_eq!(fs::read(network.shared("peer2", name)).unwrap(), b"mine");
    let mut original = tree(&network.shared("peer1", "tree"));
    let mut here = tree(&network.shared("peer2", "tree"));
    here.remove("1/ação 1/f1").unwrap();
    let theirs = original.remove("1/ação 1/f1").unwrap();
    assert!(here == original, "all others came");
    network.json("peer2", &["download", "tree/", "--from", "peer1", "--force"]);
    assert_eq!(tree(&network.shared("peer2", "tree"))["1/ação 1/f1"], theirs);
}

#[test]
fn two_owners_share_the_work() {
    let network = Network::start();
    plant(&network, "peer1", 1_500);
    plant(&network, "peer2", 1_500);
    let _owners = [network.headless("peer1"), network.headless("peer2")];
    let _receiver = network.headless("peer3");
    network.json_until("peer3", &["listAll"], |listing| {
        let files = listing["files"].as_array().unwrap();
        files.len() == 1_501 && files.iter().all(|file| file["owners"].as_array().unwrap().len() == 2)
    });
    let done = network.json("peer3", &["download", "tree/"]);
    let from = |peer: &str| {
        let files = done["files"].as_array().unwrap().iter();
        files.filter(|file| file["sources"].as_array().unwrap().iter().any(|source| source["peer"] == peer)).count()
    };
    assert!(from("peer1") > 200 && from("peer2") > 200, "{} and {}", from("peer1"), from("peer2"));
    assert!(tree(&network.shared("peer3", "tree")) == tree(&network.shared("peer1", "tree")));
}

/// The files `tree/0` to `tree/39`, as an impostor announces them.
fn forty() -> (BTreeMap<ContentHash, Vec<u8>>, Vec<WireFile>) {
    let files = (0..40_u32).map(|number| {
        let content = format!("content {number}").repeat(100).into_bytes();
        let hash = ContentHash(*blake3::hash(&content).as_bytes());
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
async fn an_owner_that_lies_in_one_file_is_dropped_and_the_tree_is_right() {
    let network = Network::start();
    let (contents, files) = forty();
    for file in &files {
        network.put("peer1", &file.name, &contents[&file.hash]);
    }
    let _honest = network.headless("peer1");
    let mut receiver = network.headless("peer2");
    let _liar = impostor::start(&network, "liar", Liar { lie: Lie::Content(files[20].hash), contents }, files).await;
    network.json_until("peer2", &["listAll"], |listing| {
        let files = listing["files"].as_array().unwrap();
        files.len() == 40 && files.iter().all(|file| file["owners"].as_array().unwrap().len() == 2)
    });
    // Which owner is asked for which file is chance; from the liar alone it is none.
    let ended = network.run("peer2", &["download", "tree/", "--from", "liar", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["error"]["code"], "verification_failed", "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("liar: wrong bytes"), "{message}");
    assert!(receiver.error_line().contains("liar"), "the log names it");
    let kept = tree(&network.shared("peer2", "tree"));
    assert!((1..40).contains(&kept.len()), "what it sent before the lie was right: {}", kept.len());
    let content =
        |seen: BTreeMap<String, Seen>| seen.into_iter().map(|(name, (c, _, _))| (name, c)).collect::<Vec<_>>();
    let original = content(tree(&network.shared("peer1", "tree")));
    assert!(content(kept).iter().all(|file| original.contains(file)));
    network.json("peer2", &["download", "tree/"]);
    assert!(content(tree(&network.shared("peer2", "tree"))) == original);
    assert_eq!(left_over(&network, "peer2"), [""; 0]);
}

#[test]
fn a_receiver_that_is_killed_completes_with_the_same_command() {
    let network = Network::start();
    plant(&network, "peer1", 3_000);
    let _owner = network.headless("peer1");
    let receiver = network.headless("peer2");
    network.json_until("peer2", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 3_001);
    let original = tree(&network.shared("peer1", "tree"));
    std::thread::scope(|scope| {
        let download = scope.spawn(|| network.run("peer2", &["download", "tree/"]));
        let deadline = Deadline::after(WAIT);
        while left_over(&network, "peer2").len() < 300 && !download.is_finished() {
            deadline.pause("files on their way in");
        }
        receiver.signal(Signal::KILL);
        assert_ne!(download.join().unwrap().status, Some(0), "it was killed before its end");
    });
    drop(receiver);
    assert!(left_over(&network, "peer2").len() >= 300, "what was on its way is still there");
    if network.shared("peer2", "tree").exists() {
        for (name, seen) in tree(&network.shared("peer2", "tree")) {
            assert!(original.get(&name) == Some(&seen), "{name} is whole");
        }
    }
    let _receiver = network.headless("peer2");
    assert_eq!(left_over(&network, "peer2"), [""; 0], "swept at the start");
    network.json_until_done("peer2", &["download", "tree/"]);
    assert!(tree(&network.shared("peer2", "tree")) == original);
}
