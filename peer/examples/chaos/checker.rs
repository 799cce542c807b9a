//! Checks of a healed cluster. Every wait has a deadline.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde_json::Value;
use shared::time::Timestamp;
use tokio::time::sleep;

use crate::{
    cluster::{Cluster, CommandResult},
    deadline::within,
    listing::{Listing, Version, differences, listing, scan},
    operations::verify,
    topology::{PeerIndex, peer_name},
};

/// Deadline for a healed cluster to converge. The simulation proves 4 and 6 s of virtual time; here dozens of processes
/// share one machine.
const CONVERGENCE_DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two polls of all peers.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Commands that run at a time.
const CONCURRENT_COMMANDS: usize = 4;
/// Files that are downloaded after each round.
const SAMPLES: usize = 8;

/// Checks that all peers come to name the same tracker, and records the time from `since`.
pub async fn one_tracker(cluster: &Cluster, since: Timestamp) {
    let mut answers = Vec::new();
    let converged = within(CONVERGENCE_DEADLINE, async {
        loop {
            answers = ask_all(cluster, &["tracker"]).await;
            let first = answers.first().map(|(_, answer)| answer);
            if answers.iter().all(|(_, answer)| answer.is_ok() && Some(answer) == first) {
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    });
    if converged.await.is_none() {
        let limit = CONVERGENCE_DEADLINE;
        return cluster
            .violation(&format!("the peers did not agree on a tracker within {limit:?} of healing: {answers:?}"));
    }
    let took = cluster.clock().now().since(since);
    cluster.note(&format!("one tracker after {:.1} s: {:?}", took.as_secs_f64(), answers.first()));
    cluster.stats().one_tracker.push(took);
}

/// Compares the shares with the model and all listings with the shares, then downloads a sample of the files.
///
/// # Errors
/// When a share cannot be read.
pub async fn index_and_files(cluster: &Cluster, rng: &mut fastrand::Rng) -> Result<(), String> {
    let since = cluster.clock().now();
    let mut expected = Listing::new();
    for peer in cluster.peers() {
        let share = cluster.share(peer);
        let found = tokio::task::spawn_blocking(move || scan(&share)).await.map_err(|error| error.to_string())?;
        let found = found.map_err(|error| format!("the share of {}: {error}", peer_name(peer)))?;
        let files = found.iter().filter_map(|(name, found)| found.as_ref().map(|(hash, _)| (name, hash)));
        let files = files.map(|(name, hash)| (name.clone(), hash.clone())).collect();
        let differences = cluster.model().check(peer, &files);
        differences.iter().for_each(|difference| cluster.violation(difference));
        for (name, found) in found {
            let (hash, size) = found.unwrap_or_default();
            let owned = expected.entry((name, hash)).or_default();
            owned.size = size;
            owned.owners.push(peer_name(peer));
        }
    }
    expected.values_mut().for_each(|owned| owned.owners.sort());
    full_listings(cluster, since, &expected).await;
    sample_downloads(cluster, &expected, rng).await;
    Ok(())
}

/// Checks that `listAll` of every peer comes to match the shares, and records the time from `since`.
async fn full_listings(cluster: &Cluster, since: Timestamp, expected: &Listing) {
    let mut wrong = Vec::new();
    let converged = within(CONVERGENCE_DEADLINE, async {
        loop {
            let answers = ask_all(cluster, &["listAll"]).await;
            wrong = answers.iter().filter_map(|(peer, answer)| listing_error(*peer, answer, expected)).collect();
            if wrong.is_empty() {
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    });
    if converged.await.is_none() {
        let (limit, wrong) = (CONVERGENCE_DEADLINE, wrong.join("\n    "));
        return cluster
            .violation(&format!("listings do not match the shares {limit:?} after the last change:\n    {wrong}"));
    }
    let took = cluster.clock().now().since(since);
    cluster.note(&format!("all peers list {} files after {:.1} s", expected.len(), took.as_secs_f64()));
    cluster.stats().full_index.push(took);
}

fn listing_error(peer: PeerIndex, answer: &Result<Value, String>, expected: &Listing) -> Option<String> {
    let error = match answer {
        Ok(document) => differences(&listing(document), expected).join("; "),
        Err(error) => error.clone(),
    };
    (!error.is_empty()).then(|| format!("{}: {error}", peer_name(peer)))
}

/// Checks that random peers can download random files.
async fn sample_downloads(cluster: &Cluster, expected: &Listing, rng: &mut fastrand::Rng) {
    let mut files: Vec<&Version> = expected.keys().filter(|(_, hash)| !hash.is_empty()).collect();
    rng.shuffle(&mut files);
    for (number, (name, hash)) in files.into_iter().take(SAMPLES).enumerate() {
        let peer = rng.usize(cluster.peers());
        let to = cluster.home(peer).join(format!("sample{number}.bin"));
        let version = format!("{name}@{hash}");
        match cluster.command(peer, &["download", &version, "--to", &to.to_string_lossy()]).await {
            CommandResult::Done(document) => {
                if verify(cluster, number, name, &document["files"][0]).await.as_ref() != Some(hash) {
                    cluster.violation(&format!("{} requested {version} and got {document}", peer_name(peer)));
                }
                cluster.stats().count("download after healing", "done");
            }
            CommandResult::Failed(code, message) => {
                cluster.violation(&format!(
                    "{} cannot download {version}, which is shared: {code}: {message}",
                    peer_name(peer)
                ));
            }
        }
        // The file does not exist after a failed download.
        let _ = tokio::fs::remove_file(&to).await;
    }
}

/// Returns the answers of all peers to a command, ordered by peer.
async fn ask_all(cluster: &Cluster, words: &[&str]) -> Vec<(PeerIndex, Result<Value, String>)> {
    let ask = async |peer| {
        let answer = match cluster.command(peer, words).await {
            CommandResult::Done(document) => Ok(document),
            CommandResult::Failed(code, message) => Err(format!("{code}: {message}")),
        };
        (peer, answer)
    };
    stream::iter(cluster.peers()).map(ask).buffered(CONCURRENT_COMMANDS).collect().await
}
