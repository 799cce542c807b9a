//! Failover, absence of the nameserver, malformed input and programs of other authors, as users of a network see them.
//! Real programs on loopback; every wait has a deadline and no test depends on how long anything takes.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::UdpSocket,
    process::Stdio,
    time::{Duration, SystemTime},
};

use rustix::process::Signal;
use serde_json::Value;
use shared::{
    content::ContentHash,
    epoch::Epoch,
    id::{Incarnation, Role},
    limits::CALL_DEADLINE,
    net::{NetError, Target},
    rpc::{
        nameserver::{Condition, LeaseRequest, NameError, NameServiceClient, Register},
        peer::PeerServiceClient,
        tracker::{
            Addressee, Announcement, AnnouncementKind, ListAll, TrackerError, TrackerServiceClient, WhoHas, WireFile,
        },
    },
};

mod common;
use common::{Network, fake_peer, files, free_port, noise, prepare, process::Program};

fn names(listing: &Value) -> BTreeSet<String> {
    files(listing).iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
}

/// Starts peers that share one file each and waits until all files are listed.
fn start_peers<'a>(network: &Network, ids: impl IntoIterator<Item = &'a str>) -> Vec<(String, Program)> {
    let start = |id: &str| {
        network.put(id, &format!("{id}.txt"), id.as_bytes());
        let program = network.headless(id);
        (id.to_owned(), program)
    };
    let peers: Vec<_> = ids.into_iter().map(start).collect();
    network.wait_for_files(&peers[0].0, peers.len());
    peers
}

fn start_five(network: &Network) -> Vec<(String, Program)> {
    start_peers(network, ["peer1", "peer2", "peer3", "peer4", "peer5"])
}

/// Removes the tracker from `peers`; its epoch, id and program.
fn take_tracker(network: &Network, peers: &mut Vec<(String, Program)>) -> (u64, String, Program) {
    let tracker = network.tracker(&peers[0].0);
    let id = tracker["peer"].as_str().unwrap();
    let at = peers.iter().position(|(peer, _)| peer == id).unwrap();
    let (id, program) = peers.remove(at);
    (tracker["epoch"].as_u64().unwrap(), id, program)
}

/// Waits until the successor of the tracker `gone` lists the files of the four other peers.
fn wait_for_complete_successor(network: &Network, survivor: &str, epoch: u64, gone: &str) {
    let listing = network.json_until(survivor, &["listAll"], |listing| {
        listing["epoch"].as_u64().unwrap() > epoch && names(listing).len() == 4
    });
    assert!(!names(&listing).contains(&format!("{gone}.txt")), "{listing}");
}

#[test]
fn killed_tracker_is_replaced_with_complete_index() {
    let network = Network::start();
    let mut peers = start_five(&network);
    let (epoch, id, tracker) = take_tracker(&network, &mut peers);
    tracker.signal(Signal::KILL);
    wait_for_complete_successor(&network, &peers[0].0, epoch, &id);
    // A peer can start again under its id while its former lease still runs.
    let _restarted = network.headless(&id);
    network.wait_for_files(&peers[0].0, 5);
}

#[test]
fn frozen_tracker_is_replaced_and_steps_down_when_resumed() {
    let network = Network::start();
    let mut peers = start_five(&network);
    let (epoch, id, tracker) = take_tracker(&network, &mut peers);
    tracker.signal(Signal::STOP);
    wait_for_complete_successor(&network, &peers[0].0, epoch, &id);
    let successor = network.tracker(&peers[0].0);
    tracker.signal(Signal::CONT);
    network.json_until(&id, &["tracker"], |tracker| tracker["epoch"].as_u64() > Some(epoch));
    network.wait_for_files(&peers[0].0, 5);
    // On a busy machine the other peers may suspect the successor and replace it, which they log. The resumed tracker
    // must not.
    let now = network.tracker(&id);
    let suspicions = peers.iter_mut().flat_map(|(_, program)| program.error_lines_so_far());
    let is_suspected_again = suspicions
        .filter(|line| line.contains("TrackerSuspected"))
        .any(|line| line.contains(&format!("peer: {},", successor["peer"].as_str().unwrap())));
    if !is_suspected_again {
        assert_eq!(now["epoch"], successor["epoch"], "the resumed tracker raised the epoch");
        assert_eq!(now["peer"], successor["peer"]);
    }
}

#[test]
fn tracker_that_leaves_is_replaced_and_unregistered() {
    let network = Network::start();
    let mut peers = start_five(&network);
    let (epoch, id, tracker) = take_tracker(&network, &mut peers);
    tracker.signal(Signal::TERM);
    assert_eq!(tracker.wait().status, Some(0));
    wait_for_complete_successor(&network, &peers[0].0, epoch, &id);
    let registered = network.json(&peers[0].0, &["peers"]);
    assert_eq!(registered["peers"].as_array().unwrap().len(), 4, "the name goes with its peer: {registered}");
}

#[test]
fn restarted_nameserver_is_used_again() {
    let mut network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    let before = network.tracker("peer2");
    network.wait_for_files("peer2", 1);
    network.kill_nameserver();
    // Without the nameserver the tracker goes on, and files are found and fetched.
    network.wait_for_files("peer2", 1);
    network.json("peer2", &["download", "a.txt"]);
    assert_eq!(fs::read(network.shared("peer2", "a.txt")).unwrap(), b"a");

    network.restart_nameserver();
    network.json_until("peer2", &["peers"], |peers| peers["peers"].as_array().unwrap().len() == 2);
    let elected = network.json_until_success("peer1", &["eleger"]);
    assert!(elected["epoch"].as_u64() > before["epoch"].as_u64(), "{elected}");
    network.json_until("peer2", &["tracker"], |tracker| tracker["epoch"].as_u64() >= elected["epoch"].as_u64());
    // A third peer finds the others.
    network.wait_for_files("peer3", 1);
}

#[test]
fn second_peer_of_an_id_is_refused_with_a_reason() {
    let network = Network::start();
    let _first = network.headless("peer1");
    let second = network.run("peer1", &["--headless"]);
    assert_eq!(second.status, Some(1));
    assert!(second.err.starts_with("error: peer1 is running already ("), "{}", second.err);

    // With another state folder, as on another machine, and a token: the id belongs to the key that enrolled first.
    let mut nsc = std::process::Command::new(common::program("nsc"));
    nsc.args(["-p", network.port(), "token"]);
    prepare(&mut nsc, network.folder());
    let token = String::from_utf8(nsc.output().unwrap().stdout).unwrap();
    let elsewhere = network.folder().join("elsewhere");
    let other = network.run("peer1", &["--state-dir", &elsewhere.to_string_lossy(), "--join", token.trim(), "peers"]);
    assert_eq!(other.status, Some(4), "{}", other.err);
    assert!(other.err.contains("enrolled already"), "{}", other.err);
}

#[test]
fn random_datagrams_do_not_disturb_peers_or_nameserver() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    network.wait_for_files("peer2", 1);
    let peers = network.json("peer1", &["peers"]);
    let mut addresses = vec![network.address.clone()];
    for peer in peers["peers"].as_array().unwrap() {
        addresses.push(peer["address"].as_str().unwrap().trim_start_matches("quic://").to_owned());
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for address in &addresses {
        for _ in 0..2000 {
            let mut datagram = vec![0; random.usize(0..1500)];
            random.fill(&mut datagram);
            if random.bool() && !datagram.is_empty() {
                // First byte and version of an Initial packet of QUIC version 1 (RFC 9000 section 17.2.2).
                datagram[0] = 0xc0;
                datagram.splice(1..1, [0, 0, 0, 1]);
            }
            // A full socket buffer drops the datagram, as a network does.
            let _ = socket.send_to(&datagram, address.as_str());
        }
    }
    network.json("peer2", &["download", "a.txt"]);
    assert_eq!(fs::read(network.shared("peer2", "a.txt")).unwrap(), b"a");
}

#[test]
fn added_changed_and_removed_files_reach_the_index() {
    let network = Network::start();
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    network.put("peer1", "docs/a.txt", b"first");
    let first = network.json_until("peer2", &["listAll"], |listing| names(listing).contains("docs/a.txt"));
    // Written aside and renamed: between a truncation and the write an indexer may see an empty file.
    network.put("peer1", "docs/.new", b"second");
    fs::rename(network.shared("peer1", "docs/.new"), network.shared("peer1", "docs/a.txt")).unwrap();
    let changed =
        |listing: &Value| listing["files"][0]["hash"] != first["files"][0]["hash"] && names(listing).len() == 1;
    network.json_until("peer2", &["listAll"], changed);
    network.json("peer2", &["download", "docs/"]);
    assert_eq!(fs::read(network.shared("peer2", "docs/a.txt")).unwrap(), b"second");
    fs::remove_file(network.shared("peer1", "docs/a.txt")).unwrap();
    // peer1 is left with an empty directory, which is an entry of its own.
    network.json_until("peer1", &["listAll"], |listing| {
        let file = files(listing).iter().find(|file| file["name"] == "docs/a.txt");
        file.is_some_and(|file| file["owners"] == serde_json::json!(["peer2"]))
    });
}

#[test]
fn download_after_removal_of_own_version_takes_the_version_of_another_peer() {
    let network = Network::start();
    network.put("peer1", "a", b"old");
    File::options()
        .write(true)
        .open(network.shared("peer1", "a"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    network.put("peer2", "a", b"newer");
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    network.json_until("peer2", &["listAll"], |listing| files(listing).len() == 2);
    // The index lists the version of peer2 until peer2 has announced its removal, which takes at least its debounce.
    fs::remove_file(network.shared("peer2", "a")).unwrap();
    let done = network.json("peer2", &["download", "a"]);
    assert_eq!(fs::read(network.shared("peer2", "a")).unwrap(), b"old", "{done}");
}

#[test]
fn version_is_chosen_by_hash_and_name_with_at_sign_is_a_name() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"one");
    network.put("peer2", "a.txt", b"two");
    network.put("peer1", "x@12345678", b"named so");
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    let listing = network.wait_for_files("peer3", 3);
    let hash = |owner: &str| {
        let is_wanted = |file: &&Value| file["name"] == "a.txt" && file["owners"][0] == owner;
        files(&listing).iter().find(is_wanted).unwrap()["hash"].as_str().unwrap().to_owned()
    };
    for (owner, content) in [("peer1", "one"), ("peer2", "two")] {
        network.json("peer3", &["download", &format!("a.txt@{}", &hash(owner)[..8]), "--force"]);
        assert_eq!(fs::read_to_string(network.shared("peer3", "a.txt")).unwrap(), content);
    }
    network.json("peer3", &["download", "x@12345678"]);
    assert_eq!(fs::read(network.shared("peer3", "x@12345678")).unwrap(), b"named so");
}

#[test]
fn command_for_frozen_peer_fails_with_a_reason() {
    let network = Network::start();
    let peer = network.headless("peer1");
    peer.signal(Signal::STOP);
    let status = network.run("peer1", &["status"]);
    assert_eq!(status.status, Some(1), "{status:?}");
    assert!(status.err.starts_with("error: the running peer does not answer ("), "{}", status.err);
    peer.signal(Signal::CONT);
    network.json("peer1", &["list"]);
}

#[test]
fn peers_that_start_together_without_nameserver_all_join() {
    // Each of them may become the nameserver, on one new state folder; one does.
    let network = Network::start();
    let state = network.folder().join("fresh");
    let port = free_port().to_string();
    let start = |peer: &str| {
        let mut command = network.command(peer, &["--with-nameserver", "--headless", "-n", "127.0.0.1", "-p"]);
        command.arg(&port).arg("--state-dir").arg(&state).stdin(Stdio::null());
        Program::spawn(&mut command)
    };
    let mut peers: Vec<_> = ["a", "b", "c"].into_iter().map(start).collect();
    for peer in &mut peers {
        let line = peer.next_line();
        assert!(line.contains("] ready at "), "{line}");
    }
}

#[test]
fn download_without_tracker_and_nameserver_asks_known_peers() {
    let mut network = Network::start();
    let mut peers = start_peers(&network, ["peer1", "peer2", "peer3"]);
    let (_, gone, tracker) = take_tracker(&network, &mut peers);
    let (owner, receiver) = (peers[0].0.as_str(), peers[1].0.as_str());
    let file = format!("{gone}.txt");
    network.json(owner, &["download", &file]);
    // The receiver has seen the owner's address at least once.
    network.json_until(receiver, &["peers"], |known| known["peers"].as_array().unwrap().len() == 3);
    network.kill_nameserver();
    tracker.signal(Signal::KILL);
    drop(tracker);
    let done = network.json_until_success(receiver, &["download", &file]);
    assert_eq!(done["files"][0]["sources"][0]["peer"], owner, "{done}");
}

#[test]
fn download_uses_all_owners_and_survives_the_death_of_one() {
    let network = Network::start();
    let content = noise(48 << 20, 3);
    for peer in ["peer1", "peer2"] {
        network.put(peer, "big.bin", &content);
    }
    // The caps make the download last for three seconds, so that no pause of one owner leaves it all to the other.
    let _one = network.headless_with("peer1", &["--limit-up", "8MiB"]);
    let two = network.headless_with("peer2", &["--limit-up", "8MiB"]);
    let _three = network.headless("peer3");
    network.wait_for_owners("peer3", 1, 2);
    let done = network.json("peer3", &["download", "big.bin"]);
    let sources = done["files"][0]["sources"].as_array().unwrap();
    let bytes = |source: &Value| source["bytes"].as_u64().unwrap();
    assert_eq!(sources.len(), 2, "{done}");
    assert_eq!(sources.iter().map(bytes).sum::<u64>(), content.len() as u64, "{done}");
    assert!(fs::read(network.shared("peer3", "big.bin")).unwrap() == content);

    // The index names peer2 as an owner for a while after its death.
    two.signal(Signal::KILL);
    let done = network.json("peer4", &["download", "big.bin"]);
    assert!(fs::read(network.shared("peer4", "big.bin")).unwrap() == content, "{done}");
}

/// In the endgame both owners are asked for the same pieces. The slower request may still write when the file gets its
/// modification time.
#[test]
fn file_keeps_time_and_size_when_the_endgame_duplicates_requests() {
    let network = Network::start();
    let content = noise(64 << 20, 4);
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for peer in ["fast", "slow"] {
        network.put(peer, "big.bin", &content);
        let file = File::options().write(true).open(network.shared(peer, "big.bin")).unwrap();
        file.set_modified(written).unwrap();
    }
    let _fast = network.headless("fast");
    let _slow = network.headless_with("slow", &["--limit-up", "20MB"]);
    let _receiver = network.headless("receiver");
    network.wait_for_owners("receiver", 1, 2);
    for round in 0..6 {
        let target = network.folder().join(format!("out{round}"));
        let done = network.json("receiver", &["download", "big.bin", "--to", target.to_str().unwrap()]);
        assert_eq!(target.metadata().unwrap().modified().unwrap(), written, "{round}: {done}");
        let sources = done["files"][0]["sources"].as_array().unwrap();
        let bytes: u64 = sources.iter().map(|source| source["bytes"].as_u64().unwrap()).sum();
        assert_eq!(bytes, content.len() as u64, "{round}: {done}");
        assert!(fs::read(&target).unwrap() == content, "{round}");
    }
}

#[test]
fn concurrent_downloads_of_one_file_all_succeed_and_leave_nothing() {
    let network = Network::start();
    let content = noise(8 << 20, 5);
    network.put("owner", "large", &content);
    network.put("owner", "small", b"small");
    let _owner = network.headless("owner");
    // The cap makes one download last long enough for the others to begin meanwhile.
    let _receiver = network.headless_with("receiver", &["--limit-down", "20MB"]);
    network.wait_for_files("receiver", 2);
    let elsewhere = network.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let to = elsewhere.join("file");
    for words in
        [vec!["download", "large"], vec!["download", "small"], vec!["download", "large", "--to", to.to_str().unwrap()]]
    {
        let all: Vec<_> = (0..3).map(|_| network.begin("receiver", &words)).collect();
        for one in all {
            let finished = one.wait();
            assert_eq!(finished.status, Some(0), "{words:?}: {finished:?}");
        }
        let status = network.json("receiver", &["status"]);
        assert_eq!(status["unfinished"], Value::Array(Vec::new()), "{words:?}");
    }
    assert!(fs::read(&to).unwrap() == content && fs::read(network.shared("receiver", "large")).unwrap() == content);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "the destination's folder holds the file alone");
    let partial = network.shared("receiver", ".brasa/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0, "the share holds no partial file");
}

#[test]
fn several_files_to_one_path_are_refused_and_to_a_folder_arrive() {
    let network = Network::start();
    network.put("owner", "a", b"a");
    network.put("owner", "b", b"b");
    let _owner = network.headless("owner");
    let _receiver = network.headless("receiver");
    network.wait_for_files("receiver", 2);
    let to = network.folder().join("one");
    let refused = network.run("receiver", &["download", "a", "b", "--force", "--to", to.to_str().unwrap()]);
    assert_eq!((refused.status, refused.out.as_str()), (Some(2), ""), "{refused:?}");
    assert!(refused.err.contains("several files cannot be written to one path") && !to.exists(), "{refused:?}");
    fs::create_dir(&to).unwrap();
    network.json("receiver", &["download", "a", "b", "--to", to.to_str().unwrap()]);
    assert_eq!((fs::read(to.join("a")).unwrap(), fs::read(to.join("b")).unwrap()), (b"a".to_vec(), b"b".to_vec()));
}

/// `ulimit -f` and the limits of a service manager end a process by SIGXFSZ unless it handles the signal.
#[test]
fn file_beyond_the_process_limit_fails_the_download_and_not_the_peer() {
    let network = Network::start();
    network.put("owner", "large", &vec![7; 4 << 20]);
    let _owner = network.headless("owner");
    let limited = network.headless("receiver");
    limited.limit_file_size(1 << 20);
    network.wait_for_files("receiver", 1);
    let failed = network.run("receiver", &["download", "large"]);
    assert!(failed.status == Some(1) && failed.err.contains("large"), "{failed:?}");
    assert_eq!(network.run("receiver", &["list"]).status, Some(0), "the peer still runs");
}

#[tokio::test]
async fn third_program_uses_the_public_clients() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let _one = network.headless("peer1");
    network.wait_for_files("peer1", 1);
    let session = fake_peer::session(&network, Role::Admin).await;
    let (connections, nameserver) = (&session.connections, &session.nameserver);

    let count = |names: NameServiceClient, cx| async move { names.count(cx).await };
    let registered: u64 = connections.call(nameserver, CALL_DEADLINE, count).await.unwrap();
    assert_eq!(registered, 3, "nameserver, peer.peer1, tracker.1");

    let seat = fake_peer::tracker(&session).await;
    let tracker = fake_peer::target_of(&seat);

    let query = WhoHas { epoch: seat.epoch, name: "a.txt".to_owned(), version: None };
    let ask = |tracker: TrackerServiceClient, cx| async move { tracker.who_has(cx, query).await };
    let versions = connections.call(&tracker, CALL_DEADLINE, ask).await.unwrap().unwrap();
    assert_eq!((versions.len(), versions[0].owners[0].peer.as_str()), (1, "peer1"));

    let list = |peer: PeerServiceClient, cx| async move { peer.list(cx, None).await };
    let page = connections.call(&tracker, CALL_DEADLINE, list).await.unwrap();
    assert_eq!((page.files.len(), page.next), (1, None));

    // The refusal of a stale epoch carries the current one.
    let query = ListAll { epoch: Epoch::NONE, prefix: String::new(), after: None };
    let ask = |tracker: TrackerServiceClient, cx| async move { tracker.list_all(cx, query).await };
    let stale = connections.call(&tracker, CALL_DEADLINE, ask).await.unwrap();
    assert!(matches!(stale, Err(TrackerError::StaleEpoch(view)) if view.epoch_high == seat.epoch));

    // A connection to peer1 does not pass for one to peer9.
    let other = Target { role: Role::Peer("peer9".parse().unwrap()), endpoint: seat.endpoint };
    let info = |peer: PeerServiceClient, cx| async move { peer.info(cx).await };
    let refused = connections.call(&other, CALL_DEADLINE, info).await;
    assert!(matches!(refused, Err(NetError::NotAuthorised { .. })), "{refused:?}");
}

#[tokio::test]
async fn peer_that_registers_foreign_names_or_announces_unsafe_paths_is_refused() {
    let network = Network::start();
    let _one = network.headless("peer1");
    let session = fake_peer::peer_session(&network, "mallory").await;
    let connections = &session.connections;
    let register = |name: &str, lease| Register {
        name: name.to_owned(),
        uri: "quic://127.0.0.1:9".to_owned(),
        tags: None,
        lease,
        condition: Condition::Always,
        incarnation: Incarnation(u64::MAX),
    };
    let lease = LeaseRequest::For(CALL_DEADLINE);
    for (name, lease) in
        [("peer.peer1", lease), ("tracker.99", lease), ("nameserver", lease), ("mallorys.own", LeaseRequest::Permanent)]
    {
        let request = register(name, lease);
        let ask = |names: NameServiceClient, cx| async move { names.register(cx, request).await };
        let refused = connections.call(&session.nameserver, CALL_DEADLINE, ask).await.unwrap();
        assert!(matches!(refused, Err(NameError::NotAuthorised(_))), "{name}: {refused:?}");
    }

    let seat = fake_peer::tracker(&session).await;
    let tracker = fake_peer::target_of(&seat);
    for name in ["../../etc/passwd", "/abs", "a\u{1b}[2Jb", "c:\\x", ".hidden"] {
        let hash = ContentHash([1; 32]);
        let file = WireFile { name: name.to_owned(), size: 1, hash, mtime_micros: 0, executable: false };
        let announcement = Announcement {
            to: Addressee::Tracker,
            epoch: seat.epoch,
            incarnation: Incarnation(1),
            seq: 1,
            kind: AnnouncementKind::Snapshot { page: 0, last: true },
            upserts: vec![file],
            removals: Vec::new(),
        };
        let ask = |tracker: TrackerServiceClient, cx| async move { tracker.announce(cx, announcement).await };
        let refused = connections.call(&tracker, CALL_DEADLINE, ask).await.unwrap();
        assert!(refused.is_err(), "{name}: {refused:?}");
    }
    assert_eq!(files(&network.json("peer1", &["listAll"])).len(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn idle_peer_takes_little_memory() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let peer = network.headless("peer1");
    network.wait_for_files("peer1", 1);
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 30 << 10, "{kib} KiB resident");
}
