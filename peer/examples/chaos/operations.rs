//! Carries out user operations and records their outcome in the model.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use tokio::{fs, time::sleep};

use crate::{
    cluster::{Cluster, CommandResult},
    model::{Hash, Outcome},
    plan::{Method, Operation, ScheduledOperation, content},
    topology::{PeerIndex, peer_name},
};

/// Waits for the start of operation number `number` and carries it out.
///
/// # Errors
/// When a file or directory of this machine cannot be read or written. A failed command is not an error.
pub async fn carry_out(cluster: Arc<Cluster>, number: usize, scheduled: ScheduledOperation) -> Result<(), String> {
    sleep(scheduled.at).await;
    let peer = scheduled.peer;
    match scheduled.operation {
        Operation::Write { name, content: content_number, size, method } => {
            write(&cluster, number, peer, &name, content(content_number, size), method).await
        }
        Operation::Remove { draw, method } => remove(&cluster, number, peer, draw, method).await,
        Operation::Download { draw, into_share } => download(&cluster, number, peer, draw, into_share).await,
        Operation::Elect => {
            if cluster.peer(peer).is_ready() {
                let result = cluster.command(peer, &["eleger"]).await;
                count(&cluster, number, "eleger", &result);
            }
            Ok(())
        }
    }
}

/// Writes a file into a share, new or over an existing one.
///
/// # Errors
/// When a file or directory cannot be written.
pub async fn write(
    cluster: &Cluster,
    number: usize,
    peer: PeerIndex,
    name: &str,
    bytes: Vec<u8>,
    method: Method,
) -> Result<(), String> {
    if method == Method::Command && !cluster.peer(peer).is_ready() {
        cluster.stats().count("operation skipped", "the peer is not ready");
        return Ok(());
    }
    let hash = blake3::hash(&bytes).to_hex().to_string();
    {
        let mut model = cluster.model();
        if !model.begin(peer, name) {
            cluster.stats().count("operation skipped", "another operation changes the file");
            return Ok(());
        }
        model.publish(name, &hash);
    }
    cluster.note(&format!("operation {number}: {} writes {name} {} ({method:?})", peer_name(peer), &hash[..8]));
    let outcome = match method {
        Method::Command => add(cluster, number, peer, name, &bytes, &hash).await,
        Method::Filesystem | Method::InPlace => {
            write_into_share(cluster, number, peer, name, &bytes, method).await.map(|()| {
                cluster.stats().count("write", "done in the share");
                Outcome::Written(hash.clone())
            })
        }
    };
    // A failed write may have replaced a part of the file.
    let (outcome, result) = match outcome {
        Ok(outcome) => (outcome, Ok(())),
        Err(error) => (Outcome::Indeterminate, Err(error)),
    };
    cluster.model().complete(peer, name, outcome);
    result
}

async fn add(
    cluster: &Cluster,
    number: usize,
    peer: PeerIndex,
    name: &str,
    bytes: &[u8],
    hash: &str,
) -> Result<Outcome, String> {
    let folder = cluster.home(peer).join(format!("add{number}"));
    let file = folder.join(name);
    write_file(&file, bytes).await?;
    let kills = cluster.peer(peer).kills();
    let result = cluster.command(peer, &["add", &file.to_string_lossy()]).await;
    let outcome = match &result {
        CommandResult::Done(_) => Outcome::Written(hash.to_owned()),
        CommandResult::Failed(code, _) => outcome_of_failure(cluster, peer, kills, code),
    };
    count(cluster, number, "add", &result);
    fs::remove_dir_all(&folder).await.map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(outcome)
}

async fn write_into_share(
    cluster: &Cluster,
    number: usize,
    peer: PeerIndex,
    name: &str,
    bytes: &[u8],
    method: Method,
) -> Result<(), String> {
    let share = cluster.share(peer);
    let path = share.join(name);
    if method == Method::InPlace {
        return write_file(&path, bytes).await;
    }
    let temporary = share.join(format!(".chaos-{number}"));
    write_file(&temporary, bytes).await?;
    create_parent(&path).await?;
    fs::rename(&temporary, &path).await.map_err(|error| format!("{}: {error}", path.display()))
}

async fn write_file(path: &Path, bytes: &[u8]) -> Result<(), String> {
    // A peer may remove the empty parent directory between its creation and the write.
    for _ in 0..3 {
        create_parent(path).await?;
        match fs::write(path, bytes).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => return other.map_err(|error| format!("{}: {error}", path.display())),
        }
    }
    Err(format!("cannot write {}: its directory is removed again and again", path.display()))
}

async fn create_parent(path: &Path) -> Result<(), String> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).await.map_err(|error| format!("{}: {error}", parent.display()))
}

async fn remove(cluster: &Cluster, number: usize, peer: PeerIndex, draw: u64, method: Method) -> Result<(), String> {
    if method == Method::Command && !cluster.peer(peer).is_ready() {
        cluster.stats().count("operation skipped", "the peer is not ready");
        return Ok(());
    }
    let name = {
        let mut model = cluster.model();
        let Some(name) = select(&model.idle_names(peer), draw) else { return Ok(()) };
        model.begin(peer, &name);
        name
    };
    cluster.note(&format!("operation {number}: {} removes {name} ({method:?})", peer_name(peer)));
    let outcome = if method == Method::Command {
        let kills = cluster.peer(peer).kills();
        let result = cluster.command(peer, &["remove", &name]).await;
        let outcome = match &result {
            CommandResult::Done(_) => Outcome::Removed,
            CommandResult::Failed(code, _) => outcome_of_failure(cluster, peer, kills, code),
        };
        count(cluster, number, "remove", &result);
        outcome
    } else {
        match fs::remove_file(cluster.share(peer).join(&name)).await {
            Ok(()) => {
                cluster.stats().count("remove", "done in the share");
                Outcome::Removed
            }
            // The file was indeterminate and turns out to be absent.
            Err(_) => Outcome::Unchanged,
        }
    };
    cluster.model().complete(peer, &name, outcome);
    Ok(())
}

async fn download(
    cluster: &Cluster,
    number: usize,
    peer: PeerIndex,
    draw: u64,
    into_share: bool,
) -> Result<(), String> {
    if !cluster.peer(peer).is_ready() {
        cluster.stats().count("operation skipped", "the peer is not ready");
        return Ok(());
    }
    let (name, into_share) = {
        let mut model = cluster.model();
        let Some(name) = select(&model.names(), draw) else { return Ok(()) };
        // `download` does not overwrite a file.
        let into_share = into_share && model.is_absent(peer, &name) && model.begin(peer, &name);
        (name, into_share)
    };
    cluster.note(&format!("operation {number}: {} downloads {name}", peer_name(peer)));
    let outside = cluster.home(peer).join(format!("got{number}.bin"));
    let to = outside.to_string_lossy();
    let kills = cluster.peer(peer).kills();
    let words: &[&str] = if into_share { &["download", &name] } else { &["download", &name, "--to", &to] };
    let result = cluster.command(peer, words).await;
    let mut outcome = match &result {
        CommandResult::Done(_) => Outcome::Unchanged,
        CommandResult::Failed(code, _) => outcome_of_failure(cluster, peer, kills, code),
    };
    if let CommandResult::Done(document) = &result {
        let files = document["files"].as_array().map(Vec::as_slice).unwrap_or_default();
        if files.len() != 1 {
            cluster.violation(&format!("operation {number}: the download of {name} returned {document}"));
        }
        for file in files {
            if let Some(hash) = verify(cluster, number, &name, file).await {
                outcome = Outcome::Written(hash);
            }
        }
    }
    count(cluster, number, "download", &result);
    // No violation: every owner may be unreachable at the time. The count shows how complete the index is under faults.
    if matches!(&result, CommandResult::Failed(code, _) if code == "no_such_file") {
        let is_shared = cluster.model().is_shared(&name);
        cluster.stats().count("no such file", if is_shared { "a peer has it" } else { "no peer has it" });
    }
    if into_share {
        cluster.model().complete(peer, &name, outcome);
    } else if fs::metadata(&outside).await.is_ok() {
        fs::remove_file(&outside).await.map_err(|error| format!("{to}: {error}"))?;
    }
    Ok(())
}

/// Checks that a downloaded file has the hash that its document states, and that this content was published under its
/// name. Returns the hash of the file on disk.
pub async fn verify(cluster: &Cluster, number: usize, name: &str, file: &Value) -> Option<Hash> {
    let (Some(stated), Some(path)) = (file["hash"].as_str(), file["path"].as_str()) else {
        cluster.violation(&format!("operation {number}: a download has no hash or no path: {file}"));
        return None;
    };
    let path = PathBuf::from(path);
    let Ok(bytes) = fs::read(&path).await else {
        cluster.violation(&format!("operation {number}: {name} was downloaded but is not at {}", path.display()));
        return None;
    };
    let hash = blake3::hash(&bytes).to_hex().to_string();
    if hash != stated {
        cluster.violation(&format!("operation {number}: {name} is {hash}, the download states {stated}"));
    } else if file["name"] != name || !cluster.model().was_published(name, &hash) {
        cluster.violation(&format!("operation {number}: {name} is {hash}, which was never published under this name"));
    }
    cluster.stats().downloaded_bytes += bytes.len() as u64;
    Some(hash)
}

/// Returns the outcome of a failed command. The peer may still carry out a command that timed out, and may have
/// carried out one that it was killed in.
fn outcome_of_failure(cluster: &Cluster, peer: PeerIndex, kills_before: u64, code: &str) -> Outcome {
    if code == "timeout" || cluster.peer(peer).kills() != kills_before {
        Outcome::Indeterminate
    } else {
        Outcome::Unchanged
    }
}

fn count(cluster: &Cluster, number: usize, command: &str, result: &CommandResult) {
    match result {
        CommandResult::Done(_) => cluster.stats().count(command, "done"),
        CommandResult::Failed(code, message) => {
            cluster.note(&format!("operation {number}: {command} failed: {code}: {message}"));
            cluster.stats().count(command, &format!("failed: {code}"));
            // No fault excuses these.
            if matches!(code.as_str(), "internal" | "usage" | "verification_failed" | "no document" | "no process") {
                cluster.violation(&format!("operation {number}: {command}: {code}: {message}"));
            }
        }
    }
}

fn select(names: &[&str], draw: u64) -> Option<String> {
    let count = u64::try_from(names.len()).ok().filter(|count| *count > 0)?;
    usize::try_from(draw % count).ok().map(|index| names[index].to_owned())
}
