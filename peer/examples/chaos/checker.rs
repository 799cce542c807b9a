//! What must hold when nothing is wrong any more. Every wait has a deadline.

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use futures::{StreamExt as _, stream};
use serde_json::Value;
use shared::time::Timestamp;
use tokio::time::sleep;

use crate::{
    deeds::verify,
    ledger::Hash,
    plan::{Peer, peer_name},
    world::{Answer, Shared},
};

/// How long a healed network may take to agree. The simulation proves 4 and 6 s of its own time; this is a machine that
/// dozens of processes share.
const AGREEMENT: Duration = Duration::from_secs(30);
/// How often is looked at what cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Commands at a time.
const AT_A_TIME: usize = 4;
/// Files that are downloaded to see that they can be.
const SAMPLES: usize = 8;
/// Differences of one listing that are told.
const TOLD: usize = 4;

/// One version of a file in a listing.
type Version = (String, Hash);

/// The size of a version, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Owned {
    size: u64,
    owners: Vec<String>,
}

type Listing = BTreeMap<Version, Owned>;

/// Waits until all peers name one tracker; how long that took from `since` on.
pub async fn one_tracker(world: &Shared, since: Timestamp) {
    loop {
        let said = ask_all(world, &["tracker"]).await;
        let first = said.first().map(|(_, answer)| answer);
        let agree = said.iter().all(|(_, answer)| answer.is_ok() && Some(answer) == first);
        let took = world.clock().now().since(since);
        if agree {
            world.note(&format!("one tracker after {:.1} s: {first:?}", took.as_secs_f64()));
            return world.tally().one_tracker.push(took);
        }
        if took > AGREEMENT {
            return world.violation(&format!("no tracker known to all {AGREEMENT:?} after all was mended: {said:?}"));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Compares the disks with the ledger and all listings with the disks, then downloads some of the files.
///
/// # Errors
/// When a share cannot be read.
pub async fn index_and_files(world: &Shared, random: &mut fastrand::Rng) -> Result<(), String> {
    let since = world.clock().now();
    let mut expected = Listing::new();
    for peer in world.peers() {
        let share = world.share(peer);
        let found = tokio::task::spawn_blocking(move || scan(&share)).await.map_err(|error| error.to_string())?;
        let found = found.map_err(|error| format!("the share of {}: {error}", peer_name(peer)))?;
        let files = found.iter().filter_map(|(name, found)| found.as_ref().map(|(hash, _)| (name, hash)));
        let files = files.map(|(name, hash)| (name.clone(), hash.clone())).collect();
        let wrong = world.ledger().judge(peer, &files);
        wrong.iter().for_each(|wrong| world.violation(wrong));
        for (name, found) in found {
            let (hash, size) = found.unwrap_or_default();
            let owned = expected.entry((name, hash)).or_default();
            owned.size = size;
            owned.owners.push(peer_name(peer));
        }
    }
    expected.values_mut().for_each(|owned| owned.owners.sort());
    listings(world, since, &expected).await;
    samples(world, &expected, random).await;
    Ok(())
}

async fn listings(world: &Shared, since: Timestamp, expected: &Listing) {
    loop {
        let said = ask_all(world, &["listAll"]).await;
        let mut wrong = Vec::new();
        for (peer, answer) in &said {
            match answer {
                Ok(document) => {
                    let differences = differences(&listing(document), expected);
                    if !differences.is_empty() {
                        wrong.push(format!("{}: {}", peer_name(*peer), differences.join("; ")));
                    }
                }
                Err(why) => wrong.push(format!("{}: {why}", peer_name(*peer))),
            }
        }
        let took = world.clock().now().since(since);
        if wrong.is_empty() {
            world.note(&format!("all list {} files after {:.1} s", expected.len(), took.as_secs_f64()));
            return world.tally().full_index.push(took);
        }
        if took > AGREEMENT {
            let all = wrong.join("\n    ");
            return world
                .violation(&format!("not all list what is there, {AGREEMENT:?} after the last change:\n    {all}"));
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn samples(world: &Shared, expected: &Listing, random: &mut fastrand::Rng) {
    let mut files: Vec<&Version> = expected.keys().filter(|(_, hash)| !hash.is_empty()).collect();
    random.shuffle(&mut files);
    for (number, (name, hash)) in files.into_iter().take(SAMPLES).enumerate() {
        let peer = random.usize(world.peers());
        let to = world.home(peer).join(format!("sample{number}.bin"));
        let wish = format!("{name}@{hash}");
        match world.command(peer, &["download", &wish, "--to", &to.to_string_lossy()]).await {
            Answer::Done(document) => {
                if verify(world, number, name, &document["files"][0]).await.as_ref() != Some(hash) {
                    world.violation(&format!("{} asked for {wish} and got {document}", peer_name(peer)));
                }
                world.tally().count("download of what must be there", "done");
            }
            Answer::Failed(code, message) => {
                world.violation(&format!("{} cannot get {wish}, which is there: {code}: {message}", peer_name(peer)));
            }
        }
        // It may not be there.
        let _ = tokio::fs::remove_file(&to).await;
    }
}

/// What all peers say to a command, by number.
async fn ask_all(world: &Shared, words: &[&str]) -> Vec<(Peer, Result<Value, String>)> {
    let ask = async |peer| {
        let answer = match world.command(peer, words).await {
            Answer::Done(document) => Ok(document),
            Answer::Failed(code, message) => Err(format!("{code}: {message}")),
        };
        (peer, answer)
    };
    stream::iter(world.peers()).map(ask).buffered(AT_A_TIME).collect().await
}

fn listing(document: &Value) -> Listing {
    let files = document["files"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entry = |file: &Value| {
        let is_directory = file["kind"] == "directory";
        let name = text(&file["name"]);
        let hash = if is_directory { Hash::new() } else { text(&file["hash"]) };
        let owners = file["owners"].as_array().into_iter().flatten().map(text).collect();
        let version = (name.trim_end_matches('/').to_owned(), hash);
        (version, Owned { size: file["size"].as_u64().unwrap_or(u64::MAX), owners })
    };
    files.iter().map(entry).collect()
}

fn differences(found: &Listing, expected: &Listing) -> Vec<String> {
    let show = |(name, hash): &Version| format!("{name}@{}", hash.get(..8).unwrap_or("directory"));
    let missing = expected.iter().filter_map(|(version, owned)| match found.get(version) {
        Some(other) if other == owned => None,
        Some(other) => Some(format!("{} is {other:?}, not {owned:?}", show(version))),
        None => Some(format!("{} of {:?} is missing", show(version), owned.owners)),
    });
    let more = found.iter().filter(|(version, _)| !expected.contains_key(*version));
    let more = more.map(|(version, owned)| format!("{} of {:?} is not there", show(version), owned.owners));
    let mut all: Vec<String> = missing.chain(more).collect();
    if all.len() > TOLD {
        let left_out = all.len() - TOLD;
        all.truncate(TOLD);
        all.push(format!("and {left_out} more"));
    }
    all
}

/// The files of a share with hash and size, and as `None` its directories with nothing in them.
type Found = BTreeMap<String, Option<(Hash, u64)>>;

fn scan(share: &Path) -> io::Result<Found> {
    let mut found = Found::new();
    let mut folders = vec![(String::new(), share.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let mut is_empty = true;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            is_empty = false;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let path = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                folders.push((format!("{path}/"), entry.path()));
            } else {
                let bytes = std::fs::read(entry.path())?;
                found.insert(path, Some((blake3::hash(&bytes).to_hex().to_string(), bytes.len() as u64)));
            }
        }
        if is_empty && !prefix.is_empty() {
            found.insert(prefix.trim_end_matches('/').to_owned(), None);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_finds_files_and_empty_directories_and_nothing_hidden() {
        let folder = tempfile::tempdir().unwrap();
        for directory in ["d/e", "f", "g/.h", ".i"] {
            std::fs::create_dir_all(folder.path().join(directory)).unwrap();
        }
        std::fs::write(folder.path().join("d/e/a.bin"), b"a").unwrap();
        let found = scan(folder.path()).unwrap();
        let hash = blake3::hash(b"a").to_hex().to_string();
        assert_eq!(found, Found::from([("d/e/a.bin".to_owned(), Some((hash, 1))), ("f".to_owned(), None)]));
    }

    #[test]
    fn listings_differ_by_what_is_missing_wrong_and_too_much() {
        let document = serde_json::json!({"files": [
            {"name": "a", "size": 1, "hash": "h1", "owners": ["peer1"]},
            {"name": "b", "size": 1, "hash": "h2", "owners": ["peer1"]},
            {"name": "d/", "size": 0, "hash": "h0", "owners": ["peer2"], "kind": "directory"},
        ]});
        let owned = |owner: &str, size| Owned { size, owners: vec![owner.to_owned()] };
        let version = |name: &str, hash: &str| (name.to_owned(), hash.to_owned());
        let same = Listing::from([
            (version("a", "h1"), owned("peer1", 1)),
            (version("b", "h2"), owned("peer1", 1)),
            (version("d", ""), owned("peer2", 0)),
        ]);
        assert!(differences(&listing(&document), &same).is_empty());
        let mut other = same.clone();
        other.remove(&version("a", "h1"));
        other.insert(version("b", "h2"), owned("peer2", 1));
        other.insert(version("c", "h3"), owned("peer2", 1));
        assert_eq!(differences(&listing(&document), &other).len(), 3);
    }
}
