//! Peers that this peer knew last, in its state directory: while the nameserver is away, a peer that starts joins them.
//!
//! The file has one line a peer, `ID quic://HOST:PORT`, and may be deleted at any time.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use shared::{contact::Contact, electors::electors, id::PeerId, name::Endpoint, time::Clock};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::params::{KNOWN_PEERS_INTERVAL, KNOWN_PEERS_POLL, MAX_KNOWN_PEERS};
use crate::{
    core_handle::CoreHandle,
    diagnostics::warnings::{Topic, Warnings},
};

/// Largest file that is read, bytes: that of the longest ids and host names.
const MAX_FILE_BYTES: u64 = (MAX_KNOWN_PEERS as u64) * 512;

/// Reads the known peers. Lines that are none are left out; a file that cannot be read counts as empty.
pub fn load(file: &Path) -> Vec<Contact> {
    use io::Read as _;
    let mut bytes = Vec::new();
    match std::fs::File::open(file).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => parse(&String::from_utf8_lossy(&bytes)),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, file = %file.display(), "cannot read the known peers");
            }
            Vec::new()
        }
    }
}

/// Writes the peers that the core knows to `file` until `stop`, rarely, and once more at the end.
pub async fn keep(file: PathBuf, me: PeerId, core: CoreHandle, warnings: Warnings, stop: CancellationToken) {
    let clock = Clock::start();
    let mut written = parse_peers(&load(&file));
    let mut latest = written.clone();
    let mut next_write = clock.now();
    loop {
        let stopped = tokio::select! {
            () = sleep(KNOWN_PEERS_POLL) => false,
            () = stop.cancelled() => true,
        };
        // A list that became empty is no better than an old one.
        if let Ok(members) = core.members().await
            && !members.is_empty()
        {
            latest = selected(&me, members);
        }
        if latest != written && (stopped || clock.now() >= next_write) {
            next_write = clock.now() + KNOWN_PEERS_INTERVAL;
            let (path, text) = (file.clone(), format(&latest));
            let subject = file.to_string_lossy();
            match tokio::task::spawn_blocking(move || certs::write_private(&path, text.as_bytes())).await {
                Ok(Ok(())) => {
                    written.clone_from(&latest);
                    warnings.clear(Topic::State, &subject);
                }
                Ok(Err(error)) => warnings.set(
                    Topic::State,
                    &subject,
                    format!(
                        "cannot write {subject}: {error}; after a restart without the nameserver, old peers are asked"
                    ),
                ),
                Err(error) => tracing::warn!(%error, "the write of the known peers did not end"),
            }
        }
        if stopped {
            return;
        }
    }
}

/// The peers to remember: all electors, then others, at most [`MAX_KNOWN_PEERS`].
fn selected(me: &PeerId, members: BTreeMap<PeerId, Endpoint>) -> BTreeMap<PeerId, Endpoint> {
    let first = electors(members.keys().chain([me]));
    let (electing, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        members.into_iter().partition(|(peer, _)| first.contains(peer));
    electing.into_iter().chain(others).take(MAX_KNOWN_PEERS).collect()
}

fn parse_peers(contacts: &[Contact]) -> BTreeMap<PeerId, Endpoint> {
    contacts.iter().map(|contact| (contact.peer.clone(), contact.endpoint.clone())).collect()
}

fn format(peers: &BTreeMap<PeerId, Endpoint>) -> String {
    peers.iter().map(|(peer, endpoint)| format!("{peer} {endpoint}\n")).collect()
}

fn parse(text: &str) -> Vec<Contact> {
    let contact = |line: &str| {
        let (peer, endpoint) = line.split_once(' ')?;
        Some(Contact { peer: peer.parse().ok()?, endpoint: endpoint.parse().ok()? })
    };
    text.lines().filter_map(contact).take(MAX_KNOWN_PEERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: usize) -> BTreeMap<PeerId, Endpoint> {
        let member = |number: usize| {
            (format!("p{number}").parse().unwrap(), format!("quic://10.0.0.1:{}", 1000 + number).parse().unwrap())
        };
        (0..count).map(member).collect()
    }

    #[test]
    fn known_peers_round_trip_and_damaged_lines_are_left_out() {
        let peers = members(3);
        let text = format(&peers);
        assert_eq!(parse_peers(&parse(&text)), peers);
        let damaged = format!("\u{fffd}\nP! quic://10.0.0.1:1\np9 nowhere\n{text}p8");
        assert_eq!(parse_peers(&parse(&damaged)), peers);
    }

    #[test]
    fn remembered_peers_are_bounded_and_contain_all_electors() {
        let (me, all) = ("me".parse().unwrap(), members(MAX_KNOWN_PEERS * 2));
        let kept = selected(&me, all.clone());
        assert_eq!(kept.len(), MAX_KNOWN_PEERS);
        assert_eq!(electors(kept.keys().chain([&me])), electors(all.keys().chain([&me])));
    }
}
