//! Property test: the index answers as a naive model does after random announcements.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shared::{
    digest::ShareDigest,
    epoch::Epoch,
    rpc::tracker::{Addressee, WireFile},
};

use super::*;

const PEERS: usize = 5;

/// Operation on the index.
#[derive(Debug, Clone)]
enum Op {
    /// Heartbeat of the same or a later run, with the same or another digest.
    Beat { peer: usize, restarted: bool, same: bool },
    /// Snapshot of a peer, `page` files in each announcement.
    Snapshot { peer: usize, files: Vec<Announced>, page: usize },
    /// Change of a peer's share.
    Delta { peer: usize, upserts: Vec<Announced>, removals: Vec<u8> },
    /// Removal of a peer.
    Remove { peer: usize },
}

/// File as a peer announces it.
#[derive(Debug, Clone)]
struct Announced {
    name: u8,
    hash: u8,
    size: u64,
    mtime: u8,
}

fn name(number: u8) -> String {
    // Some names share a prefix, some are prefixes of others.
    let folder = ["a", "a/b", "b", "ba"][usize::from(number % 4)];
    format!("{folder}/{}", "n".repeat(usize::from(number / 4 % 5) + 1) + &(number / 20).to_string())
}

impl Announced {
    fn wire(&self) -> WireFile {
        let hash = ContentHash([self.hash; 32]);
        // Equal times imply equal flags, since the flag of either owner may be shown.
        let executable = self.mtime % 2 == 1;
        WireFile { name: name(self.name), size: self.size, hash, mtime_micros: i64::from(self.mtime), executable }
    }
}

fn announced() -> impl Strategy<Value = Announced> {
    (0..80u8, 0..3u8, 0..2u64, 0..4u8).prop_map(|(name, hash, size, mtime)| Announced { name, hash, size, mtime })
}

fn op() -> impl Strategy<Value = Op> {
    let peer = || 0..PEERS;
    prop_oneof![
        1 => (peer(), prop::bool::weighted(0.3), prop::bool::weighted(0.7))
            .prop_map(|(peer, restarted, same)| Op::Beat { peer, restarted, same }),
        2 => (peer(), prop::collection::vec(announced(), 0..60), 1..20usize)
            .prop_map(|(peer, files, page)| Op::Snapshot { peer, files, page }),
        5 => (peer(), prop::collection::vec(announced(), 0..8), prop::collection::vec(0..80u8, 0..8))
            .prop_map(|(peer, upserts, removals)| Op::Delta { peer, upserts, removals }),
        1 => peer().prop_map(|peer| Op::Remove { peer }),
    ]
}

/// Announcements of one peer.
#[derive(Debug, Default)]
struct Known {
    run: u64,
    /// Highest number announced; later runs announce higher ones.
    number: u64,
    seq: Option<u64>,
    files: BTreeMap<String, WireFile>,
}

impl Known {
    fn digest(&self) -> ShareDigest {
        let mut digest = ShareDigest::default();
        self.files.values().for_each(|file| digest.add(&file.clone().try_into().unwrap()));
        digest
    }
}

/// Owners of a content with their descriptions of it.
type Owners<'a> = Vec<(&'a PeerId, &'a WireFile)>;

#[derive(Debug, Default)]
struct Model(BTreeMap<PeerId, Known>);

impl Model {
    /// Contents of each name: for equal hashes the size with most owners, then with the newest file.
    fn listed(&self) -> Vec<IndexedFile> {
        let mut contents: BTreeMap<(String, ContentHash), BTreeMap<u64, Owners<'_>>> = BTreeMap::new();
        for (peer, known) in &self.0 {
            for file in known.files.values() {
                let sizes = contents.entry((file.name.clone(), file.hash)).or_default();
                sizes.entry(file.size).or_default().push((peer, file));
            }
        }
        let newest = |owners: &[(&PeerId, &WireFile)]| owners.iter().map(|(_, file)| file.mtime_micros).max();
        let listed = contents.into_values().filter_map(|sizes| {
            let (_, owners) = sizes.into_iter().max_by_key(|(size, owners)| (owners.len(), newest(owners), *size))?;
            let (_, file) = owners.iter().max_by_key(|(_, file)| file.mtime_micros)?;
            let file = FileMeta::try_from((*file).clone()).unwrap();
            Some(IndexedFile { file, owners: owners.iter().map(|(peer, _)| (*peer).clone()).collect() })
        });
        listed.collect()
    }
}

fn id(peer: usize) -> PeerId {
    format!("peer{peer}").parse().unwrap()
}

fn endpoint(peer: usize) -> Endpoint {
    format!("quic://10.0.0.{}:1", peer + 1).parse().unwrap()
}

/// Applies the operation to both.
fn apply(index: &mut Index, model: &mut Model, op: Op) {
    match op {
        Op::Beat { peer, restarted, same } => {
            let known = model.0.entry(id(peer)).or_default();
            let mut digest = known.digest();
            if !same {
                digest.add(&Announced { name: 0, hash: 77, size: 0, mtime: 0 }.wire().try_into().unwrap());
            }
            if restarted {
                known.run += 1;
                known.seq = known.seq.map(|seq| seq + 10);
            }
            let seq = known.seq.unwrap_or(known.number.max(1));
            known.number = seq;
            if !same {
                *known = Known { run: known.run, number: seq, ..Known::default() };
            }
            let (to, epoch, incarnation) = (Addressee::Tracker, Epoch(1), Incarnation(known.run));
            let beat = Heartbeat { to, epoch, incarnation, seq, digest, endpoint: endpoint(peer) };
            assert_eq!(index.on_heartbeat(&id(peer), &beat), Ok(known.seq));
            assert_eq!(index.is_complete(&id(peer)), known.seq.is_some());
        }
        Op::Snapshot { peer, files, page } => {
            let Some(known) = model.0.get_mut(&id(peer)) else { return };
            let seq = known.number + 3;
            known.number = seq;
            let pages: Vec<&[Announced]> = if files.is_empty() { vec![&[]] } else { files.chunks(page).collect() };
            for (number, files) in pages.iter().enumerate() {
                let kind = AnnouncementKind::Snapshot {
                    page: u32::try_from(number).unwrap(),
                    last: number + 1 == pages.len(),
                };
                let upserts = files.iter().map(Announced::wire).collect();
                announce(index, peer, known.run, seq, kind, upserts, Vec::new());
            }
            known.seq = Some(seq);
            known.files = files.iter().map(|file| (name(file.name), file.wire())).collect();
        }
        Op::Delta { peer, upserts, removals } => {
            let Some(known) = model.0.get_mut(&id(peer)) else { return };
            let Some(seq) = &mut known.seq else { return };
            *seq += 1;
            known.number = *seq;
            let removals: Vec<String> = removals.into_iter().map(name).collect();
            let files: Vec<WireFile> = upserts.iter().map(Announced::wire).collect();
            announce(index, peer, known.run, *seq, AnnouncementKind::Delta, files.clone(), removals.clone());
            removals.iter().for_each(|name| drop(known.files.remove(name)));
            known.files.extend(files.into_iter().map(|file| (file.name.clone(), file)));
        }
        Op::Remove { peer } => {
            index.remove(&id(peer));
            model.0.remove(&id(peer));
        }
    }
}

fn announce(
    index: &mut Index,
    peer: usize,
    run: u64,
    seq: u64,
    kind: AnnouncementKind,
    upserts: Vec<WireFile>,
    removals: Vec<String>,
) {
    let to = Addressee::Tracker;
    let announcement =
        Announcement { to, epoch: Epoch(1), incarnation: Incarnation(run), seq, kind, upserts, removals };
    index.announce(&id(peer), announcement).unwrap();
}

fn compare(index: &Index, model: &Model, prefix: &str, skip: usize) {
    let all = model.listed();
    let versions: usize = {
        let mut seen: Vec<_> =
            model.0.values().flat_map(|known| known.files.values().map(|f| (&f.name, f.hash, f.size))).collect();
        seen.sort_unstable();
        seen.dedup();
        seen.len()
    };
    assert_eq!(index.size(), (model.0.len(), versions));
    let query = |prefix: &str, after| ListAll { epoch: Epoch(1), prefix: prefix.to_owned(), after };
    let begins: Vec<IndexedFile> = all.iter().filter(|f| f.file.name.as_str().starts_with(prefix)).cloned().collect();
    assert_eq!(index.list_all(&query(prefix, None)), (begins.clone(), None), "prefix {prefix:?}");
    if let Some(after) = begins.get(skip) {
        let after = Some((after.file.name.to_string(), after.file.hash));
        assert_eq!(index.list_all(&query(prefix, after)), (begins[skip + 1..].to_vec(), None), "after {skip}");
    }
    for number in 0..80 {
        let query = WhoHas { epoch: Epoch(1), name: name(number), version: None };
        let found = index.who_has(&id(0), &query).unwrap();
        let mut expected: Vec<&IndexedFile> = all.iter().filter(|f| f.file.name.as_str() == query.name).collect();
        expected.sort_by_key(|f| (std::cmp::Reverse((f.owners.len(), f.file.mtime_micros)), f.file.hash));
        assert_eq!(found.len(), expected.len(), "{}", query.name);
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.file, expected.file);
            let owners: Vec<PeerId> = found.owners.iter().map(|owner| owner.peer.clone()).collect();
            assert_eq!(owners, expected.owners);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn index_answers_as_a_naive_model_does(
        ops in prop::collection::vec(op(), 1..40),
        prefix in prop::sample::select(vec!["", "a", "a/", "a/b", "b", "ba/n", "c", "\u{10ffff}"]),
        skip in 0..30usize,
    ) {
        let (mut index, mut model) = (Index::default(), Model::default());
        for peer in 0..PEERS - 1 {
            apply(&mut index, &mut model, Op::Beat { peer, restarted: false, same: true });
        }
        for op in ops {
            apply(&mut index, &mut model, op);
            compare(&index, &model, prefix, skip);
        }
        for peer in 0..PEERS {
            index.remove(&id(peer));
        }
        compare(&index, &Model::default(), prefix, skip);
    }
}
