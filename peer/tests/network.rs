//! What users of the whole network see: failovers, absences of the nameserver, nonsense, and a third program. Real
//! programs on loopback; nothing here is timed, every wait has a deadline.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::UdpSocket,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime},
};

use rustix::process::Signal;
use serde_json::Value;
use shared::{
    id::Role,
    limits::CALL_DEADLINE,
    net::{
        NetError, Target,
        session::{Session, SessionConfig},
    },
    rpc::{
        nameserver::{LeaseRequest, NameError, NameServiceClient, Register, SeatView},
        peer::PeerServiceClient,
        tracker::{Announcement, AnnouncementKind, ListAll, TrackerError, TrackerServiceClient, WhoHas},
    },
};

mod common;
use common::{Network, prepare, process::Program};

/// A port that nothing else here takes; the nameservers of the other tests take free ones, which are higher.
const FREE_PORT: &str = "19741";

fn names(listing: &Value) -> BTreeSet<String> {
    let files = listing["files"].as_array().unwrap();
    files.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect()
}

/// Five peers that share one file each.
fn five(network: &Network) -> Vec<(String, Program)> {
    let start = |number| {
        let id = format!("peer{number}");
        network.put(&id, &format!("{id}.txt"), id.as_bytes());
        let program = network.headless(&id);
        (id, program)
    };
    let peers: Vec<_> = (1..=5).map(start).collect();
    network.json_until("peer5", &["listAll"], |listing| names(listing).len() == 5);
    peers
}

/// Takes the tracker out of `peers`.
fn tracker_of(network: &Network, peers: &mut Vec<(String, Program)>) -> (u64, String, Program) {
    let tracker = network.json(&peers[0].0, &["tracker"]);
    let id = tracker["peer"].as_str().unwrap();
    let at = peers.iter().position(|(peer, _)| peer == id).unwrap();
    let (id, program) = peers.remove(at);
    (tracker["epoch"].as_u64().unwrap(), id, program)
}

fn successor_is_complete(network: &Network, survivor: &str, epoch: u64, gone: &str) {
    let listing = network.json_until(survivor, &["listAll"], |listing| {
        listing["epoch"].as_u64().unwrap() > epoch && names(listing).len() == 4
    });
    assert!(!names(&listing).contains(&format!("{gone}.txt")), "{listing}");
}

#[test]
fn a_killed_tracker_is_replaced_with_the_complete_index() {
    let network = Network::start();
    let mut peers = five(&network);
    let (epoch, id, tracker) = tracker_of(&network, &mut peers);
    tracker.signal(Signal::KILL);
    successor_is_complete(&network, &peers[0].0, epoch, &id);
    // It comes back under its id at once, although its lease still runs.
    let _again = network.headless(&id);
    network.json_until(&peers[0].0, &["listAll"], |listing| names(listing).len() == 5);
}

#[test]
fn a_frozen_tracker_is_replaced_and_steps_down_when_it_thaws() {
    let network = Network::start();
    let mut peers = five(&network);
    let (epoch, id, tracker) = tracker_of(&network, &mut peers);
    tracker.signal(Signal::STOP);
    successor_is_complete(&network, &peers[0].0, epoch, &id);
    let next = network.json(&peers[0].0, &["tracker"]);
    tracker.signal(Signal::CONT);
    network.json_until(&id, &["tracker"], |tracker| tracker["peer"] == next["peer"]);
    network.json_until(&peers[0].0, &["listAll"], |listing| names(listing).len() == 5);
    assert_eq!(network.json(&id, &["tracker"])["epoch"], next["epoch"], "thawing raises no epoch");
}

#[test]
fn a_tracker_that_leaves_is_replaced() {
    let network = Network::start();
    let mut peers = five(&network);
    let (epoch, id, tracker) = tracker_of(&network, &mut peers);
    tracker.signal(Signal::TERM);
    assert_eq!(tracker.wait().status, Some(0));
    successor_is_complete(&network, &peers[0].0, epoch, &id);
    let peers_now = network.json(&peers[0].0, &["peers"]);
    assert_eq!(peers_now["peers"].as_array().unwrap().len(), 4, "its name is gone at once: {peers_now}");
}

#[test]
fn a_nameserver_that_is_killed_and_comes_back_is_used_again() {
    let mut network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    let before = network.json("peer2", &["tracker"]);
    network.kill_nameserver();
    // While it is away, the tracker goes on and files are found and fetched.
    assert_eq!(names(&network.json("peer2", &["listAll"])).len(), 1);
    network.json("peer2", &["download", "a.txt"]);
    assert_eq!(fs::read(network.shared("peer2", "a.txt")).unwrap(), b"a");

    network.restart_nameserver();
    network.json_until("peer2", &["peers"], |peers| peers["peers"].as_array().unwrap().len() == 2);
    let seat = network.json_until("peer1", &["eleger"], |elected| elected["epoch"].as_u64() > before["epoch"].as_u64());
    network.json_until("peer2", &["tracker"], |tracker| tracker["epoch"] == seat["epoch"]);
    // A third peer finds everybody.
    network.json_until("peer3", &["listAll"], |listing| names(listing).len() == 1);
}

#[test]
fn the_second_peer_of_an_id_is_refused_with_a_reason() {
    let network = Network::start();
    let _first = network.headless("peer1");
    let second = network.run("peer1", &["--headless"]);
    assert_eq!(second.status, Some(1));
    assert!(second.err.starts_with("error: peer1 is running already ("), "{}", second.err);

    // From another state folder, as on another machine, with a token: the id belongs to the first one's key.
    let mut nsc = std::process::Command::new(common::program("nsc"));
    nsc.args(["-p", network.port(), "token"]);
    prepare(&mut nsc, network.folder());
    let token = String::from_utf8(nsc.output().unwrap().stdout).unwrap();
    let elsewhere = network.folder().join("elsewhere");
    let other = network.run("peer1", &["--state-dir", &elsewhere.to_string_lossy(), "--join", token.trim(), "list"]);
    assert_eq!(other.status, Some(4), "{}", other.err);
    assert!(other.err.contains("enrolled already"), "{}", other.err);
}

#[test]
fn garbage_on_the_ports_disturbs_nobody() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
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
                // What looks like the first packet of a QUIC version 1 handshake.
                datagram[0] = 0xc0;
                datagram.splice(1..1, [0, 0, 0, 1]);
            }
            // A full socket buffer drops it, as a network would.
            let _ = socket.send_to(&datagram, address.as_str());
        }
    }
    network.json("peer2", &["download", "a.txt"]);
    assert_eq!(fs::read(network.shared("peer2", "a.txt")).unwrap(), b"a");
}

#[test]
fn files_that_come_change_and_go_are_known_to_all() {
    let network = Network::start();
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    network.put("peer1", "docs/a.txt", b"first");
    let first = network.json_until("peer2", &["listAll"], |listing| names(listing).contains("docs/a.txt"));
    network.put("peer1", "docs/a.txt", b"second");
    let changed =
        |listing: &Value| listing["files"][0]["hash"] != first["files"][0]["hash"] && names(listing).len() == 1;
    network.json_until("peer2", &["listAll"], changed);
    network.json("peer2", &["download", "docs/"]);
    assert_eq!(fs::read(network.shared("peer2", "docs/a.txt")).unwrap(), b"second");
    fs::remove_file(network.shared("peer1", "docs/a.txt")).unwrap();
    // What is left at peer1 is an empty directory, which is an entry of its own.
    network.json_until("peer1", &["listAll"], |listing| {
        let files = listing["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["name"] == "docs/a.txt");
        file.is_some_and(|file| file["owners"] == serde_json::json!(["peer2"]))
    });
}

#[test]
fn versions_are_chosen_by_hash_and_names_that_look_like_one_are_names() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"one");
    network.put("peer2", "a.txt", b"two");
    network.put("peer1", "x@12345678", b"named so");
    let _one = network.headless("peer1");
    let _two = network.headless("peer2");
    let listing = network.json_until("peer3", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 3);
    let hash = |owner: &str| {
        let files = listing["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["name"] == "a.txt" && file["owners"][0] == owner).unwrap();
        file["hash"].as_str().unwrap().to_owned()
    };
    for (owner, content) in [("peer1", "one"), ("peer2", "two")] {
        network.json("peer3", &["download", &format!("a.txt@{}", &hash(owner)[..8]), "--force"]);
        assert_eq!(fs::read_to_string(network.shared("peer3", "a.txt")).unwrap(), content);
    }
    network.json("peer3", &["download", "x@12345678"]);
    assert_eq!(fs::read(network.shared("peer3", "x@12345678")).unwrap(), b"named so");
}

#[test]
fn a_frozen_peer_does_not_hold_up_its_user_for_ever() {
    let network = Network::start();
    let peer = network.headless("peer1");
    peer.signal(Signal::STOP);
    let ended = network.run("peer1", &["status"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.err.starts_with("error: the running peer does not answer ("), "{}", ended.err);
    peer.signal(Signal::CONT);
    network.json("peer1", &["list"]);
}

#[test]
fn a_network_that_is_just_starting_lets_its_peers_in() {
    // Several nameservers-to-be and peers on one new state folder, all at once: one of them is the nameserver.
    let network = Network::start();
    let state = network.folder().join("fresh");
    let start = |peer: &str| {
        let mut command = network.command(peer, &["--with-nameserver", "--headless", "-n", "127.0.0.1", "-p"]);
        command.arg(FREE_PORT).arg("--state-dir").arg(&state).stdin(Stdio::null());
        Program::spawn(&mut command)
    };
    let mut peers: Vec<_> = ["a", "b", "c"].into_iter().map(start).collect();
    for peer in &mut peers {
        assert!(peer.line().contains("] ready at "), "each is let in");
    }
}

#[test]
fn a_download_does_not_need_a_running_tracker_or_nameserver() {
    let mut network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let one = network.headless("peer1");
    let _two = network.headless("peer2");
    let _three = network.headless("peer3");
    assert_eq!(network.json("peer2", &["tracker"])["peer"], "peer1");
    network.json("peer3", &["download", "a.txt"]);
    // peer2 has heard of peer3 at least once.
    assert_eq!(network.json("peer2", &["peers"])["peers"].as_array().unwrap().len(), 3);
    network.kill_nameserver();
    one.signal(Signal::KILL);
    drop(one);
    // No tracker, no nameserver: the peers that are known are asked.
    let done = network.json_until_done("peer2", &["download", "a.txt"]);
    assert_eq!(done["files"][0]["sources"][0]["peer"], "peer3");
}

#[test]
fn a_download_comes_from_all_owners_and_survives_the_death_of_one() {
    let network = Network::start();
    let mut content = vec![0; 48 << 20];
    fastrand::Rng::with_seed(3).fill(&mut content);
    for peer in ["peer1", "peer2"] {
        network.put(peer, "big.bin", &content);
    }
    let _one = network.headless("peer1");
    let two = network.headless("peer2");
    let _three = network.headless("peer3");
    network.json_until("peer3", &["listAll"], |listing| {
        listing["files"][0]["owners"].as_array().is_some_and(|owners| owners.len() == 2)
    });
    let done = network.json("peer3", &["download", "big.bin"]);
    let sources = done["files"][0]["sources"].as_array().unwrap();
    let bytes = |source: &Value| source["bytes"].as_u64().unwrap();
    assert_eq!(sources.len(), 2, "{done}");
    assert_eq!(sources.iter().map(bytes).sum::<u64>(), content.len() as u64, "{done}");
    assert!(fs::read(network.shared("peer3", "big.bin")).unwrap() == content);

    // The index still names peer2 as an owner for a while; nobody there answers.
    two.signal(Signal::KILL);
    let done = network.json("peer4", &["download", "big.bin"]);
    assert!(fs::read(network.shared("peer4", "big.bin")).unwrap() == content, "{done}");
}

/// At the end both owners are asked for the same; who is overtaken still writes when the file gets its time.
#[test]
fn a_file_keeps_its_time_and_its_size_though_an_owner_is_overtaken() {
    let network = Network::start();
    let mut content = vec![0; 64 << 20];
    fastrand::Rng::with_seed(4).fill(&mut content);
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for peer in ["fast", "slow"] {
        network.put(peer, "big.bin", &content);
        let file = File::options().write(true).open(network.shared(peer, "big.bin")).unwrap();
        file.set_modified(written).unwrap();
    }
    let _fast = network.headless("fast");
    let _slow = network.headless_with("slow", &["--limit-up", "20MB"]);
    let _receiver = network.headless("receiver");
    network.json_until("receiver", &["listAll"], |listing| {
        listing["files"][0]["owners"].as_array().is_some_and(|owners| owners.len() == 2)
    });
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
fn the_same_download_twice_at_once_is_one_download() {
    let network = Network::start();
    let mut content = vec![0; 8 << 20];
    fastrand::Rng::with_seed(5).fill(&mut content);
    network.put("owner", "large", &content);
    network.put("owner", "small", b"small");
    let _owner = network.headless("owner");
    // Long enough that the second begins in the middle of the first.
    let _receiver = network.headless_with("receiver", &["--limit-down", "20MB"]);
    network.json_until("receiver", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 2);
    let elsewhere = network.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let to = elsewhere.join("file");
    for words in
        [vec!["download", "large"], vec!["download", "small"], vec!["download", "large", "--to", to.to_str().unwrap()]]
    {
        let all: Vec<_> =
            (0..3).map(|_| network.command("receiver", &words).stdout(Stdio::null()).spawn().unwrap()).collect();
        for mut one in all {
            assert!(one.wait().unwrap().success(), "{words:?}");
        }
        let status = network.json("receiver", &["status"]);
        assert_eq!(status["unfinished"], Value::Array(Vec::new()), "{words:?}");
    }
    assert!(fs::read(&to).unwrap() == content && fs::read(network.shared("receiver", "large")).unwrap() == content);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "nothing is left beside it");
    let partial = network.shared("receiver", ".brasa/partial");
    assert_eq!(fs::read_dir(partial).unwrap().count(), 0, "nor in the share");
}

#[test]
fn several_files_do_not_become_one() {
    let network = Network::start();
    network.put("owner", "a", b"a");
    network.put("owner", "b", b"b");
    let _owner = network.headless("owner");
    let _receiver = network.headless("receiver");
    network.json_until("receiver", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 2);
    let to = network.folder().join("one");
    let ended = network.run("receiver", &["download", "a", "b", "--force", "--to", to.to_str().unwrap()]);
    assert_eq!((ended.status, ended.out.as_str()), (Some(2), ""), "{ended:?}");
    assert!(ended.err.contains("several files cannot become one") && !to.exists(), "{ended:?}");
    fs::create_dir(&to).unwrap();
    network.json("receiver", &["download", "a", "b", "--to", to.to_str().unwrap()]);
    assert_eq!((fs::read(to.join("a")).unwrap(), fs::read(to.join("b")).unwrap()), (b"a".to_vec(), b"b".to_vec()));
}

/// As `ulimit -f` makes it, and services' limits do.
#[test]
fn a_file_that_is_too_large_for_the_process_is_an_error_and_not_its_end() {
    let network = Network::start();
    network.put("owner", "large", &vec![7; 4 << 20]);
    let _owner = network.headless("owner");
    let limited = network.headless("receiver");
    limited.limit_file_size(1 << 20);
    network.json_until("receiver", &["listAll"], |listing| listing["files"].as_array().unwrap().len() == 1);
    let ended = network.run("receiver", &["download", "large"]);
    assert!(ended.status == Some(1) && ended.err.contains("large"), "{ended:?}");
    assert_eq!(network.run("receiver", &["list"]).status, Some(0), "it lives");
}

#[tokio::test]
async fn a_third_program_uses_the_public_clients() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let _one = network.headless("peer1");
    let session = session(&network.folder().join("state"), Role::Admin, &network).await;
    let (connections, nameserver) = (&session.connections, &session.nameserver);

    let count = |names: NameServiceClient, cx| async move { names.count(cx).await };
    let registered: u64 = connections.call(nameserver, CALL_DEADLINE, count).await.unwrap();
    assert_eq!(registered, 3, "nameserver, peer.peer1, tracker.1");

    let seat = |names: NameServiceClient, cx| async move { names.seat(cx).await };
    let SeatView { seat, .. } = connections.call(nameserver, CALL_DEADLINE, seat).await.unwrap();
    let seat = seat.unwrap();
    let tracker = Target { role: Role::Peer(seat.peer.clone()), endpoint: seat.endpoint.clone() };

    let query = WhoHas { epoch: seat.epoch, name: "a.txt".to_owned(), version: None };
    let ask = |tracker: TrackerServiceClient, cx| async move { tracker.who_has(cx, query).await };
    let versions = connections.call(&tracker, CALL_DEADLINE, ask).await.unwrap().unwrap();
    assert_eq!((versions.len(), versions[0].owners[0].peer.as_str()), (1, "peer1"));

    let list = |peer: PeerServiceClient, cx| async move { peer.list(cx, None).await };
    let page = connections.call(&tracker, CALL_DEADLINE, list).await.unwrap();
    assert_eq!((page.files.len(), page.next), (1, None));

    // An epoch that is over is refused, with the one that is not.
    let query = ListAll { epoch: shared::epoch::Epoch::NONE, prefix: String::new(), after: None };
    let ask = |tracker: TrackerServiceClient, cx| async move { tracker.list_all(cx, query).await };
    let stale = connections.call(&tracker, CALL_DEADLINE, ask).await.unwrap();
    assert!(matches!(stale, Err(TrackerError::StaleEpoch(view)) if view.epoch_high == seat.epoch));

    // Another peer's certificate must not answer in its place.
    let impostor = Target { role: Role::Peer("peer9".parse().unwrap()), endpoint: seat.endpoint };
    let info = |peer: PeerServiceClient, cx| async move { peer.info(cx).await };
    let refused = connections.call(&impostor, CALL_DEADLINE, info).await;
    assert!(matches!(refused, Err(NetError::NotAuthorised { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_peer_speaks_for_itself_only() {
    let network = Network::start();
    let _one = network.headless("peer1");
    let session = session(&network.folder().join("state"), Role::Peer("mallory".parse().unwrap()), &network).await;
    let connections = &session.connections;
    let register = |name: &str, lease| Register {
        name: name.to_owned(),
        uri: "quic://127.0.0.1:9".to_owned(),
        tags: None,
        lease,
        condition: shared::rpc::nameserver::Condition::Always,
        incarnation: shared::id::Incarnation(u64::MAX),
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

    let seat = |names: NameServiceClient, cx| async move { names.seat(cx).await };
    let seat = connections.call(&session.nameserver, CALL_DEADLINE, seat).await.unwrap().seat.unwrap();
    let tracker = Target { role: Role::Peer(seat.peer), endpoint: seat.endpoint };
    for name in ["../../etc/passwd", "/abs", "a\u{1b}[2Jb", "c:\\x", ".hidden"] {
        let file = shared::rpc::tracker::WireFile {
            name: name.to_owned(),
            size: 1,
            hash: shared::content::ContentHash([1; 32]),
            mtime_micros: 0,
            executable: false,
        };
        let announcement = Announcement {
            to: shared::rpc::tracker::Addressee::Tracker,
            epoch: seat.epoch,
            incarnation: shared::id::Incarnation(1),
            seq: 1,
            kind: AnnouncementKind::Snapshot { page: 0, last: true },
            upserts: vec![file],
            removals: Vec::new(),
        };
        let ask = |tracker: TrackerServiceClient, cx| async move { tracker.announce(cx, announcement).await };
        let refused = connections.call(&tracker, CALL_DEADLINE, ask).await.unwrap();
        assert!(refused.is_err(), "{name}: {refused:?}");
    }
    assert_eq!(names(&network.json("peer1", &["listAll"])).len(), 0);
}

async fn session(state_dir: &Path, role: Role, network: &Network) -> Session {
    let nameserver = shared::name::Endpoint::from_host_port(&network.address).unwrap();
    let config = SessionConfig { role, state_dir: state_dir.to_owned(), nameserver: Some(nameserver), join: None };
    Session::open(&config).await.unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn an_idle_peer_is_small() {
    let network = Network::start();
    network.put("peer1", "a.txt", b"a");
    let peer = network.headless("peer1");
    network.json("peer1", &["listAll"]);
    let status = fs::read_to_string(format!("/proc/{}/status", peer.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 30 << 10, "{kib} KiB resident");
}
