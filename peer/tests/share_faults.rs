//! Real peers whose share or state directory is in trouble.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

mod common;

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use common::{Network, files, noise, wait_for};
use serde_json::Value;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(shared::time::unix_micros())
}

/// Warnings in the status of a running peer.
fn warnings(network: &Network, peer: &str) -> Vec<String> {
    let status = network.json(peer, &["status"]);
    let texts = status["warnings"].as_array().unwrap_or_else(|| panic!("no warnings in {status}"));
    texts.iter().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
}

fn wait_for_warning(network: &Network, peer: &str, part: &str) {
    wait_for(&format!("warning with {part:?}"), || {
        let warnings = warnings(network, peer);
        if warnings.iter().any(|text| text.contains(part)) { Ok(()) } else { Err(format!("{warnings:?}")) }
    });
}

fn names(listing: &Value) -> Vec<&str> {
    files(listing).iter().map(|file| file["name"].as_str().unwrap_or_default()).collect()
}

// Keys.

#[test]
fn peer_with_state_and_share_in_one_another_refuses_to_start() {
    let network = Network::start();
    let base = network.folder();
    fs::create_dir_all(base.join("share")).unwrap();
    symlink("share", base.join("link")).unwrap();
    for (folder, state) in [("share", "share/state"), ("share", "link/new/state"), (".", "state"), ("state/x", "state")]
    {
        let flags = ["--dir", folder, "--state-dir", state, "list"];
        let refused = network.run("ana", &flags);
        assert_ne!(refused.status, Some(0), "{folder} {state}: {refused:?}");
        for part in ["error: cannot share", "state directory", "--dir", "--state-dir"] {
            assert!(refused.err.contains(part), "{folder} {state}: {refused:?}");
        }
        assert_eq!(refused.err.lines().count(), 1, "{refused:?}");
    }
    assert!(!base.join("share/state").exists(), "nothing was written into the share");
}

#[test]
fn keys_that_appear_in_a_share_reach_no_other_peer() {
    let network = Network::start();
    network.put("ana", "a.txt", b"a");
    let _ana = network.headless("ana");
    let _bia = network.headless("bia");
    network.wait_for_files("bia", 1);
    // A backup of the state of the network, keys included.
    let backup = network.shared("ana", "backup");
    copy_tree(&network.folder().join("state"), &backup);
    network.put("ana", "b.txt", b"b");
    let listing = network.json_until("bia", &["listAll"], |listing| names(listing).contains(&"b.txt"));
    for name in names(&listing) {
        for key in ["authority.pem", "identity.pem", "local.token", "newcomer.key", "reset.key"] {
            assert!(!name.ends_with(key), "{name} is offered");
        }
    }
    let to = network.folder().join("stolen");
    let stolen = network.run("bia", &["download", "backup/nameserver/authority.pem", "--to", &to.to_string_lossy()]);
    assert!(stolen.status != Some(0) && !to.exists(), "{stolen:?}");
    // A download does not write into a state directory either.
    let state = network.folder().join("state/peers/bia/a.txt");
    let refused = network.run("bia", &["download", "a.txt", "--to", &state.to_string_lossy()]);
    assert!(refused.status == Some(1) && refused.err.contains("state directory"), "{refused:?}");
    assert!(!state.exists());
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_tree(&entry.path(), &to);
        } else if kind.is_file() {
            // The copy keeps the mode.
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

// The folder of the share.

#[test]
fn replaced_folder_is_shared_and_downloaded_into() {
    let network = Network::start();
    network.put("ana", "one.txt", b"one");
    network.put("bia", "old.txt", b"old");
    let _ana = network.headless("ana");
    let _bia = network.headless("bia");
    network.wait_for_files("ana", 2);
    let share = network.shared("bia", "");
    fs::rename(&share, network.folder().join("aside")).unwrap();
    fs::create_dir(&share).unwrap();
    // At once: the peer has not necessarily noticed.
    let downloaded = network.run("bia", &["download", "one.txt", "--json"]);
    if downloaded.status == Some(0) {
        assert_eq!(fs::read(network.shared("bia", "one.txt")).unwrap(), b"one", "{downloaded:?}");
    } else {
        assert!(downloaded.err.contains("folder"), "{downloaded:?}");
    }
    assert!(!network.folder().join("aside/one.txt").exists());
    network.put("bia", "new.txt", b"new");
    let listing = network.json_until("ana", &["listAll"], |listing| {
        names(listing).contains(&"new.txt") && !names(listing).contains(&"old.txt")
    });
    assert!(names(&listing).contains(&"one.txt"));
    assert!(network.json("ana", &["download", "new.txt"])["files"][0]["path"].is_string());
}

#[test]
fn missing_folder_is_reported_and_comes_back() {
    let network = Network::start();
    network.put("ana", "one.txt", b"one");
    network.put("bia", "two.txt", b"two");
    let _ana = network.headless("ana");
    let _bia = network.headless("bia");
    network.wait_for_files("ana", 2);
    let (share, aside) = (network.shared("bia", ""), network.folder().join("aside"));
    fs::rename(&share, &aside).unwrap();
    let refused = network.run("bia", &["download", "one.txt"]);
    assert!(refused.status == Some(1) && refused.err.contains("is not there"), "{refused:?}");
    wait_for_warning(&network, "bia", "is not there");
    network.wait_for_files("ana", 1);
    assert!(!aside.join("one.txt").exists());
    fs::rename(&aside, &share).unwrap();
    network.wait_for_files("ana", 2);
    wait_for("the end of the warning", || {
        let warnings = warnings(&network, "bia");
        if warnings.iter().any(|text| text.contains("is not there")) { Err(format!("{warnings:?}")) } else { Ok(()) }
    });
    network.json("bia", &["download", "one.txt"]);
    assert_eq!(fs::read(network.shared("bia", "one.txt")).unwrap(), b"one");
}

// Content in doubt.

#[test]
fn file_that_is_touched_linked_and_chmoded_all_the_time_can_be_downloaded() {
    let network = Network::start();
    let content = noise(96 << 20, 3);
    network.put("ana", "large", &content);
    let path = network.shared("ana", "large");
    File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let _ana = network.headless("ana");
    let _bia = network.headless("bia");
    network.wait_for_files("bia", 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_u32.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                File::options().write(true).open(&path).unwrap().set_modified(now()).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o644 - (round % 2) * 0o004)).unwrap();
                let link = network.folder().join("link");
                fs::hard_link(&path, &link).unwrap();
                fs::remove_file(link).unwrap();
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        for number in 0..3 {
            let to = network.folder().join(format!("copy{number}"));
            let finished = network.run("bia", &["download", "large", "--to", &to.to_string_lossy()]);
            let is_right = finished.status == Some(0) && fs::read(&to).is_ok_and(|bytes| bytes == content);
            if !is_right {
                stop.store(true, Ordering::Relaxed);
                panic!("download {number}: {finished:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn file_that_changes_in_place_is_never_received_wrong() {
    let network = Network::start();
    let mut content = noise(20 << 20, 4);
    network.put("ana", "file", &content);
    let _ana = network.headless("ana");
    let _bia = network.headless("bia");
    network.wait_for_files("bia", 1);
    let last = content.len() - 1;
    content[last] ^= 1;
    fs::write(network.shared("ana", "file"), &content).unwrap();
    // Old or new, or a clear refusal; then the new version.
    let to = network.folder().join("copy");
    wait_for("the new version", || {
        let finished = network.run("bia", &["download", "file", "--to", &to.to_string_lossy(), "--force"]);
        match fs::read(&to) {
            Ok(bytes) if bytes == content && finished.status == Some(0) => Ok(()),
            state => Err(format!("{finished:?} {:?}", state.map(|bytes| bytes.len()))),
        }
    });
}
