//! Carries out what users do, and notes in the ledger what came of it.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::{fs, time::sleep};

use crate::{
    ledger::{Change, Hash},
    plan::{Act, Deed, Peer, Way, content, peer_name},
    world::{Answer, Shared},
};

/// Waits for a deed's time and does it. `number` is that of the deed.
///
/// # Errors
/// When the machine it runs on fails, not the network.
pub async fn carry_out(world: Shared, number: usize, deed: Deed) -> Result<(), String> {
    sleep(deed.at).await;
    match deed.act {
        Act::Write { name, content: drawn, size, way } => {
            write(&world, number, deed.peer, &name, content(drawn, size), way).await
        }
        Act::Remove { draw, way } => remove(&world, number, deed.peer, draw, way).await,
        Act::Download { draw, into_share } => download(&world, number, deed.peer, draw, into_share).await,
        Act::Elect => {
            if world.is_up(deed.peer) {
                let answer = world.command(deed.peer, &["eleger"]).await;
                count(&world, number, "eleger", &answer);
            }
            Ok(())
        }
    }
}

/// Puts a file into a share, new or over what is there.
///
/// # Errors
/// When a folder cannot be written.
pub async fn write(
    world: &Shared,
    number: usize,
    peer: Peer,
    name: &str,
    bytes: Vec<u8>,
    way: Way,
) -> Result<(), String> {
    if way == Way::Command && !world.is_up(peer) {
        world.tally().count("not begun", "the peer does not run");
        return Ok(());
    }
    let hash = blake3::hash(&bytes).to_hex().to_string();
    {
        let mut ledger = world.ledger();
        if !ledger.begin(peer, name) {
            world.tally().count("not begun", "the file is being changed");
            return Ok(());
        }
        ledger.publish(name, &hash);
    }
    world.note(&format!("deed {number}: {} writes {name} {} ({way:?})", peer_name(peer), &hash[..8]));
    let change = match way {
        Way::Command => add(world, number, peer, name, &bytes, &hash).await,
        Way::Folder | Way::InPlace => put(world, number, peer, name, &bytes, way).await.map(|()| {
            world.tally().count("write", "done in the folder");
            Change::Now(hash.clone())
        }),
    };
    // Whoever cannot write leaves something unknown.
    let (change, result) = change.map_or_else(|why| (Change::Unsure, Err(why)), |change| (change, Ok(())));
    world.ledger().end(peer, name, change);
    result
}

async fn add(
    world: &Shared,
    number: usize,
    peer: Peer,
    name: &str,
    bytes: &[u8],
    hash: &str,
) -> Result<Change, String> {
    let folder = world.home(peer).join(format!("add{number}"));
    let file = folder.join(name);
    write_new(&file, bytes).await?;
    let kills = world.kills(peer);
    let answer = world.command(peer, &["add", &file.to_string_lossy()]).await;
    let change = match &answer {
        Answer::Done(_) => Change::Now(hash.to_owned()),
        // One that was given up may be carried out yet.
        Answer::Failed(code, _) if code == "timeout" || world.kills(peer) != kills => Change::Unsure,
        Answer::Failed(..) => Change::None,
    };
    count(world, number, "add", &answer);
    fs::remove_dir_all(&folder).await.map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(change)
}

async fn put(world: &Shared, number: usize, peer: Peer, name: &str, bytes: &[u8], way: Way) -> Result<(), String> {
    let share = world.share(peer);
    let path = share.join(name);
    if way == Way::InPlace {
        return write_new(&path, bytes).await;
    }
    let aside = share.join(format!(".chaos-{number}"));
    write_new(&aside, bytes).await?;
    make_parent(&path).await?;
    fs::rename(&aside, &path).await.map_err(|error| format!("{}: {error}", path.display()))
}

async fn write_new(path: &Path, bytes: &[u8]) -> Result<(), String> {
    // A peer may take an emptied directory away between the two.
    for _ in 0..3 {
        make_parent(path).await?;
        match fs::write(path, bytes).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => return other.map_err(|error| format!("{}: {error}", path.display())),
        }
    }
    Err(format!("{} cannot be written: its directory goes again and again", path.display()))
}

async fn make_parent(path: &Path) -> Result<(), String> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).await.map_err(|error| format!("{}: {error}", parent.display()))
}

async fn remove(world: &Shared, number: usize, peer: Peer, draw: u64, way: Way) -> Result<(), String> {
    if way == Way::Command && !world.is_up(peer) {
        world.tally().count("not begun", "the peer does not run");
        return Ok(());
    }
    let name = {
        let mut ledger = world.ledger();
        let Some(name) = pick(&ledger.names_of(peer), draw) else { return Ok(()) };
        ledger.begin(peer, &name);
        name
    };
    world.note(&format!("deed {number}: {} removes {name} ({way:?})", peer_name(peer)));
    let change = if way == Way::Command {
        let kills = world.kills(peer);
        let answer = world.command(peer, &["remove", &name]).await;
        let change = match &answer {
            Answer::Done(_) => Change::Gone,
            // One that was given up may be carried out yet.
            Answer::Failed(code, _) if code == "timeout" || world.kills(peer) != kills => Change::Unsure,
            Answer::Failed(..) => Change::None,
        };
        count(world, number, "remove", &answer);
        change
    } else {
        match fs::remove_file(world.share(peer).join(&name)).await {
            Ok(()) => {
                world.tally().count("remove", "done in the folder");
                Change::Gone
            }
            // It was unsure whether there is one.
            Err(_) => Change::None,
        }
    };
    world.ledger().end(peer, &name, change);
    Ok(())
}

async fn download(world: &Shared, number: usize, peer: Peer, draw: u64, into_share: bool) -> Result<(), String> {
    if !world.is_up(peer) {
        world.tally().count("not begun", "the peer does not run");
        return Ok(());
    }
    let (name, into_share) = {
        let mut ledger = world.ledger();
        let Some(name) = pick(&ledger.names(), draw) else { return Ok(()) };
        // What is there already is not overwritten.
        let into_share = into_share && ledger.is_absent(peer, &name) && ledger.begin(peer, &name);
        (name, into_share)
    };
    world.note(&format!("deed {number}: {} downloads {name}", peer_name(peer)));
    let elsewhere = world.home(peer).join(format!("got{number}.bin"));
    let to = elsewhere.to_string_lossy();
    let kills = world.kills(peer);
    let words: &[&str] = if into_share { &["download", &name] } else { &["download", &name, "--to", &to] };
    let answer = world.command(peer, words).await;
    let mut change = match &answer {
        // One that was given up may be carried out yet.
        Answer::Failed(code, _) if code == "timeout" || world.kills(peer) != kills => Change::Unsure,
        _ => Change::None,
    };
    if let Answer::Done(document) = &answer {
        let files = document["files"].as_array().map(Vec::as_slice).unwrap_or_default();
        if files.len() != 1 {
            world.violation(&format!("deed {number}: a download of {name} gave {document}"));
        }
        for file in files {
            if let Some(hash) = verify(world, number, &name, file).await {
                change = Change::Now(hash);
            }
        }
    }
    count(world, number, "download", &answer);
    // It may be out of reach at the time; how often that is shows how good the index is under faults.
    if matches!(&answer, Answer::Failed(code, _) if code == "no_such_file") {
        let is_there = world.ledger().is_held(&name);
        world.tally().count("no such file", if is_there { "a peer has it" } else { "no peer has it" });
    }
    if into_share {
        world.ledger().end(peer, &name, change);
    } else if fs::metadata(&elsewhere).await.is_ok() {
        fs::remove_file(&elsewhere).await.map_err(|error| format!("{to}: {error}"))?;
    }
    Ok(())
}

/// Compares a file that was downloaded with what it is said to be and with what was published; its hash as it is.
pub async fn verify(world: &Shared, number: usize, name: &str, file: &Value) -> Option<Hash> {
    let (Some(said), Some(path)) = (file["hash"].as_str(), file["path"].as_str()) else {
        world.violation(&format!("deed {number}: a download without hash or path: {file}"));
        return None;
    };
    let path = PathBuf::from(path);
    let Ok(bytes) = fs::read(&path).await else {
        world.violation(&format!("deed {number}: {name} was downloaded and is not at {}", path.display()));
        return None;
    };
    let hash = blake3::hash(&bytes).to_hex().to_string();
    if hash != said {
        world.violation(&format!("deed {number}: {name} was to be {said} and is {hash}"));
    } else if file["name"] != name || !world.ledger().was_published(name, &hash) {
        world.violation(&format!("deed {number}: {name} is {hash}, which nobody ever published under that name"));
    }
    world.tally().downloaded_bytes += bytes.len() as u64;
    Some(hash)
}

fn count(world: &Shared, number: usize, what: &str, answer: &Answer) {
    match answer {
        Answer::Done(_) => world.tally().count(what, "done"),
        Answer::Failed(code, message) => {
            world.note(&format!("deed {number}: {what} failed: {code}: {message}"));
            world.tally().count(what, &format!("failed: {code}"));
            // These are the program's own defects, however bad the network is.
            if matches!(code.as_str(), "internal" | "usage" | "verification_failed" | "no document" | "no process") {
                world.violation(&format!("deed {number}: {what}: {code}: {message}"));
            }
        }
    }
}

fn pick(names: &[&str], draw: u64) -> Option<String> {
    let count = u64::try_from(names.len()).ok().filter(|count| *count > 0)?;
    usize::try_from(draw % count).ok().map(|at| names[at].to_owned())
}
