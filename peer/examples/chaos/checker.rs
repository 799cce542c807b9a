//! What must hold when nothing is wrong any more. Every wait has a deadline.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde_json::Value;
use shared::time::Timestamp;
use tokio::time::sleep;

use crate::{
    deeds::verify,
    listing::{Listing, Version, differences, listing, scan},
    patience::within,
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

/// Waits until all peers name one tracker; how long that took from `since` on.
pub async fn one_tracker(world: &Shared, since: Timestamp) {
    let mut said = Vec::new();
    let agreed = within(AGREEMENT, async {
        loop {
            said = ask_all(world, &["tracker"]).await;
            let first = said.first().map(|(_, answer)| answer);
            if said.iter().all(|(_, answer)| answer.is_ok() && Some(answer) == first) {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    });
    if agreed.await.is_none() {
        return world.violation(&format!("no tracker known to all {AGREEMENT:?} after all was mended: {said:?}"));
    }
    let took = world.clock().now().since(since);
    world.note(&format!("one tracker after {:.1} s: {:?}", took.as_secs_f64(), said.first()));
    world.tally().one_tracker.push(took);
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
    let mut wrong = Vec::new();
    let complete = within(AGREEMENT, async {
        loop {
            let said = ask_all(world, &["listAll"]).await;
            wrong = said.iter().filter_map(|(peer, answer)| wrong_with(*peer, answer, expected)).collect();
            if wrong.is_empty() {
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    });
    if complete.await.is_none() {
        let all = wrong.join("\n    ");
        return world
            .violation(&format!("not all list what is there, {AGREEMENT:?} after the last change:\n    {all}"));
    }
    let took = world.clock().now().since(since);
    world.note(&format!("all list {} files after {:.1} s", expected.len(), took.as_secs_f64()));
    world.tally().full_index.push(took);
}

fn wrong_with(peer: Peer, answer: &Result<Value, String>, expected: &Listing) -> Option<String> {
    let wrong = match answer {
        Ok(document) => differences(&listing(document), expected).join("; "),
        Err(why) => why.clone(),
    };
    (!wrong.is_empty()).then(|| format!("{}: {wrong}", peer_name(peer)))
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
