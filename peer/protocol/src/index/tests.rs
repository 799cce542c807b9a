use std::collections::BTreeSet;

use shared::{
    epoch::Epoch,
    rpc::tracker::{Addressee, WireFile},
};

use super::*;

fn id(text: &str) -> PeerId {
    text.parse().unwrap()
}

fn endpoint() -> Endpoint {
    "quic://10.0.0.1:1".parse().unwrap()
}

fn hash(n: u8) -> ContentHash {
    ContentHash([n; 32])
}

fn file(name: &str, n: u8, mtime_micros: i64) -> WireFile {
    WireFile { name: name.to_owned(), size: u64::from(n), hash: hash(n), mtime_micros, executable: false }
}

fn delta(seq: u64, upserts: Vec<WireFile>, removals: &[&str]) -> Announcement {
    let removals = removals.iter().map(|name| (*name).to_owned()).collect();
    let (to, kind) = (Addressee::Tracker, AnnouncementKind::Delta);
    Announcement { to, epoch: Epoch(1), incarnation: Incarnation(1), seq, kind, upserts, removals }
}

fn page(seq: u64, page: u32, last: bool, upserts: Vec<WireFile>) -> Announcement {
    Announcement { kind: AnnouncementKind::Snapshot { page, last }, ..delta(seq, upserts, &[]) }
}

fn admit(index: &mut Index, peer: &str) -> Option<u64> {
    index.admit(&id(peer), Incarnation(1), &endpoint()).unwrap()
}

fn with(peers: &[(&str, Vec<WireFile>)]) -> Index {
    let mut index = Index::default();
    for (peer, files) in peers {
        admit(&mut index, peer);
        index.announce(&id(peer), page(1, 0, true, files.clone())).unwrap();
    }
    index
}

fn listed(index: &Index) -> Vec<(String, u8, Vec<String>)> {
    let (files, next) = index.list_all(&ListAll { epoch: Epoch(1), prefix: String::new(), after: None });
    assert_eq!(next, None);
    let owners = |owners: Vec<PeerId>| owners.iter().map(ToString::to_string).collect();
    files.into_iter().map(|f| (f.file.name.to_string(), f.file.hash.0[0], owners(f.owners))).collect()
}

fn entry(name: &str, n: u8, owners: &[&str]) -> (String, u8, Vec<String>) {
    (name.to_owned(), n, owners.iter().map(|owner| (*owner).to_owned()).collect())
}

fn who_has(index: &Index, name: &str, version: Option<&str>) -> Vec<Version> {
    let version = version.map(|text| text.parse().unwrap());
    index.who_has(&id("asker"), &WhoHas { epoch: Epoch(1), name: name.to_owned(), version }).unwrap()
}

#[test]
fn deltas_apply_in_order_and_once() {
    let mut index = with(&[("a", vec![file("x", 1, 0)])]);
    let peer = id("a");
    let second = delta(2, vec![file("y", 2, 0)], &["x"]);
    index.announce(&peer, second.clone()).unwrap();
    index.announce(&peer, delta(3, vec![file("x", 3, 0)], &[])).unwrap();
    index.announce(&peer, second).unwrap();
    assert_eq!(listed(&index), [entry("x", 3, &["a"]), entry("y", 2, &["a"])]);
    assert_eq!(admit(&mut index, "a"), Some(3));
    assert_eq!(index.announce(&peer, delta(5, vec![], &["x"])), Err(TrackerError::SnapshotNeeded));
    assert_eq!(listed(&index).len(), 2);
}

#[test]
fn snapshot_replaces_earlier_files_page_by_page() {
    let mut index = with(&[("a", vec![file("old", 1, 0)]), ("b", vec![file("old", 1, 0)])]);
    let peer = id("a");
    let first = page(7, 0, false, vec![file("x", 1, 0)]);
    index.announce(&peer, first.clone()).unwrap();
    assert_eq!(admit(&mut index, "a"), None);
    assert!(!index.is_complete(&peer));
    assert_eq!(index.announce(&peer, page(7, 2, true, vec![])), Err(TrackerError::SnapshotNeeded));
    assert_eq!(index.announce(&peer, delta(8, vec![], &[])), Err(TrackerError::SnapshotNeeded));
    index.announce(&peer, page(7, 1, true, vec![file("y", 2, 0)])).unwrap();
    assert_eq!(listed(&index), [entry("old", 1, &["b"]), entry("x", 1, &["a"]), entry("y", 2, &["a"])]);
    // Repeated and late announcements change nothing.
    index.announce(&peer, first).unwrap();
    index.announce(&peer, page(6, 0, true, vec![])).unwrap();
    assert_eq!(listed(&index).len(), 3);
    assert_eq!(admit(&mut index, "a"), Some(7));
}

#[test]
fn later_run_starts_over_and_earlier_run_is_refused() {
    let mut index = with(&[("a", vec![file("x", 1, 0)])]);
    let peer = id("a");
    let later = Announcement { incarnation: Incarnation(2), ..page(1, 0, true, vec![file("y", 1, 0)]) };
    assert_eq!(index.announce(&peer, later.clone()), Err(TrackerError::SnapshotNeeded));
    assert_eq!(index.admit(&peer, Incarnation(2), &endpoint()), Ok(None));
    assert_eq!(listed(&index), []);
    index.announce(&peer, later).unwrap();
    assert_eq!(index.announce(&peer, delta(2, vec![], &["y"])), Err(TrackerError::Superseded));
    assert_eq!(index.admit(&peer, Incarnation(1), &endpoint()), Err(TrackerError::Superseded));
    assert_eq!(listed(&index), [entry("y", 1, &["a"])]);
}

#[test]
fn announcement_of_unknown_peer_needs_a_heartbeat_first() {
    assert_eq!(Index::default().announce(&id("a"), page(1, 0, true, vec![])), Err(TrackerError::SnapshotNeeded));
}

#[test]
fn announcement_with_invalid_name_or_too_many_files_changes_nothing() {
    let mut index = with(&[("a", vec![file("x", 1, 0)])]);
    let peer = id("a");
    for bad in [delta(2, vec![file("ok", 1, 0), file("../x", 1, 0)], &[]), delta(2, vec![], &["x", "/etc/passwd"])] {
        assert!(matches!(index.announce(&peer, bad), Err(TrackerError::InvalidFileName(_))));
    }
    let many = (0..=FILES_PER_PAGE).map(|n| file(&format!("f{n}"), 1, 0)).collect();
    assert!(matches!(index.announce(&peer, delta(2, many, &[])), Err(TrackerError::LimitReached { .. })));
    assert_eq!(listed(&index), [entry("x", 1, &["a"])]);
    assert_eq!(admit(&mut index, "a"), Some(1));
}

#[test]
fn number_of_peers_is_bounded() {
    let mut index = Index::default();
    for n in 0..MAX_PEERS {
        admit(&mut index, &format!("p{n}"));
    }
    let refused = index.admit(&id("one-more"), Incarnation(1), &endpoint());
    assert!(matches!(refused, Err(TrackerError::LimitReached { .. })));
    index.remove(&id("p5"));
    assert_eq!(admit(&mut index, "one-more"), None);
}

#[test]
fn removed_peer_loses_its_files_and_its_slot_is_reused() {
    let mut index = with(&[("a", vec![file("x", 1, 0), file("y", 2, 0)]), ("b", vec![file("x", 1, 0)])]);
    index.remove(&id("a"));
    assert_eq!(listed(&index), [entry("x", 1, &["b"])]);
    assert_eq!(index.size(), (1, 1));
    assert_eq!(admit(&mut index, "c"), None);
    index.announce(&id("c"), page(1, 0, true, vec![file("x", 1, 0)])).unwrap();
    assert_eq!(listed(&index), [entry("x", 1, &["b", "c"])]);
    index.remove(&id("b"));
    index.remove(&id("c"));
    assert_eq!(index.files.versions(), 0);
    assert_eq!(index.files.from("").count(), 0);
}

#[test]
fn versions_are_ordered_by_owners_then_age_then_hash() {
    let index = with(&[
        ("a", vec![file("x", 1, 5)]),
        ("b", vec![file("x", 2, 9)]),
        ("c", vec![file("x", 3, 9)]),
        ("d", vec![file("x", 4, 1)]),
        ("e", vec![file("x", 4, 2)]),
    ]);
    let versions = who_has(&index, "x", None);
    assert_eq!(versions.iter().map(|version| version.file.hash.0[0]).collect::<Vec<_>>(), [4, 2, 3, 1]);
    assert_eq!(versions[0].file.mtime_micros, 2);
    assert_eq!(versions[0].owners.iter().map(|owner| owner.peer.as_str()).collect::<Vec<_>>(), ["d", "e"]);
    let third = who_has(&index, "x", Some("0303"));
    assert_eq!(third.len(), 1);
    assert_eq!(third[0].file.hash, hash(3));
    assert_eq!(who_has(&index, "nothing", None), []);
    let bad = WhoHas { epoch: Epoch(1), name: "../x".to_owned(), version: None };
    assert!(matches!(index.who_has(&id("asker"), &bad), Err(TrackerError::InvalidFileName(_))));
}

#[test]
fn answers_are_bounded_and_vary_by_asker() {
    let files = |n: u8| vec![file("same", 1, 0), file("other", n, 0)];
    let ids: Vec<String> = (0..60).map(|n| format!("p{n:02}")).collect();
    let peers: Vec<_> = ids.iter().zip(0..).map(|(id, n)| (id.as_str(), files(n))).collect();
    let index = with(&peers);
    assert_eq!(who_has(&index, "other", None).len(), MAX_VERSIONS_PER_ANSWER);
    let query = WhoHas { epoch: Epoch(1), name: "same".to_owned(), version: None };
    let answers: BTreeSet<Vec<PeerId>> = (0..8)
        .map(|n| {
            let versions = index.who_has(&id(&format!("asker{n}")), &query).unwrap();
            let owners: Vec<PeerId> = versions[0].owners.iter().map(|owner| owner.peer.clone()).collect();
            assert_eq!(owners.len(), MAX_OWNERS_TRIED);
            assert!(owners.is_sorted());
            owners
        })
        .collect();
    assert!(answers.len() > 1);
}

#[test]
fn wrong_size_of_one_owner_does_not_hide_the_others() {
    let mut wrong = file("x", 1, 99);
    wrong.size = 1 << 40;
    let index = with(&[("wrong", vec![wrong]), ("a", vec![file("x", 1, 0)]), ("b", vec![file("x", 1, 0)])]);
    let versions = who_has(&index, "x", None);
    assert_eq!(versions.len(), 1);
    assert_eq!(versions[0].file.size, 1);
    assert_eq!(listed(&index), [entry("x", 1, &["a", "b"])]);
}

#[test]
fn pages_cover_the_index_without_gap_or_repetition() {
    let mut index = Index::default();
    let total = FILES_PER_PAGE * 2 + 7;
    for (peer, n) in [("a", 1), ("b", 2)] {
        admit(&mut index, peer);
        let files: Vec<WireFile> = (0..total).map(|i| file(&format!("d/{i:05}"), n, 0)).collect();
        let pages: Vec<_> = files.chunks(FILES_PER_PAGE).collect();
        for (number, files) in pages.iter().enumerate() {
            let number32 = u32::try_from(number).unwrap();
            index.announce(&id(peer), page(1, number32, number + 1 == pages.len(), files.to_vec())).unwrap();
        }
    }
    admit(&mut index, "c");
    index.announce(&id("c"), page(1, 0, true, vec![file("c", 1, 0), file("e", 1, 0)])).unwrap();

    let mut seen = Vec::new();
    let mut query = ListAll { epoch: Epoch(1), prefix: "d/".to_owned(), after: None };
    loop {
        let (files, next) = index.list_all(&query);
        assert!(files.len() <= FILES_PER_PAGE);
        seen.extend(files.into_iter().map(|file| (file.file.name.to_string(), file.file.hash)));
        if next.is_none() {
            break;
        }
        query.after = next;
    }
    let expected: Vec<_> = (0..total).flat_map(|i| [1, 2].map(|n| (format!("d/{i:05}"), hash(n)))).collect();
    assert_eq!(seen, expected);
}

#[test]
fn page_with_long_names_and_many_owners_fits_a_frame() {
    let mut index = Index::default();
    let name = |i: usize| ["n".repeat(200).as_str(); 5].join("/") + &format!("/{i:04}");
    for peer in 0..100 {
        let peer = format!("{}{peer:03}", "p".repeat(60));
        admit(&mut index, &peer);
        let files = (0..FILES_PER_PAGE).map(|i| file(&name(i), 1, 0)).collect();
        index.announce(&id(&peer), page(1, 0, true, files)).unwrap();
    }
    let (files, next) = index.list_all(&ListAll { epoch: Epoch(1), prefix: String::new(), after: None });
    let bytes = postcard::to_stdvec(&files).unwrap().len();
    assert!(bytes <= PAGE_BYTES && bytes > PAGE_BYTES / 2, "{bytes}");
    assert!(next.is_some());
}

#[test]
fn random_announcements_leave_the_last_announced_state() {
    for seed in 0..50 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut index = Index::default();
        let mut model: BTreeMap<String, BTreeMap<String, u8>> = BTreeMap::new();
        let mut seqs: BTreeMap<String, u64> = BTreeMap::new();
        for _ in 0..300 {
            let peer = format!("p{}", rng.u8(0..4));
            let name = format!("f{}", rng.u8(0..6));
            let known = admit(&mut index, &peer);
            assert_eq!(known, seqs.get(&peer).copied());
            let files = model.entry(peer.clone()).or_default();
            match (rng.u8(0..10), known) {
                (0, _) => {
                    index.remove(&id(&peer));
                    model.remove(&peer);
                    seqs.remove(&peer);
                }
                (_, None) => {
                    files.clear();
                    files.insert(name.clone(), 1);
                    index.announce(&id(&peer), page(9, 0, true, vec![file(&name, 1, 0)])).unwrap();
                    seqs.insert(peer, 9);
                }
                (kind, Some(known)) => {
                    let n = rng.u8(1..4);
                    let announcement = if kind < 4 {
                        files.remove(&name);
                        delta(known + 1, vec![], &[&name])
                    } else {
                        files.insert(name.clone(), n);
                        delta(known + 1, vec![file(&name, n, 0)], &[])
                    };
                    index.announce(&id(&peer), announcement).unwrap();
                    seqs.insert(peer, known + 1);
                }
            }
            let mut expected: BTreeMap<(String, u8), Vec<String>> = BTreeMap::new();
            for (peer, files) in &model {
                for (name, n) in files {
                    expected.entry((name.clone(), *n)).or_default().push(peer.clone());
                }
            }
            let found: BTreeMap<_, _> = listed(&index).into_iter().map(|(name, n, o)| ((name, n), o)).collect();
            assert_eq!(found, expected, "seed {seed}");
            assert_eq!(index.size().1, expected.len(), "seed {seed}");
        }
    }
}
