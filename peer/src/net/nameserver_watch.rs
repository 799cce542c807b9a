//! Watch of the nameserver: reports changes of the registered peers and of the tracker seat to the core.

use std::collections::BTreeMap;

use shared::{
    contact::Contact,
    id::PeerId,
    limits::{CALL_DEADLINE, HEARTBEAT, MAX_PEERS, MAX_WATCH_WAIT, PEERS_POLL},
    name::Endpoint,
    net::NetError,
    retry::Backoff,
    rpc::nameserver::{Changes, NameChange, NameServiceClient, Position, WatchQuery},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::rpc_client::RpcClient;
use crate::core_handle::{CoreHandle, Stopped};
use protocol::election::Event;

/// Regular expression of the watched names: peers and trackers.
const WATCHED: &str = r"(peer|tracker)\.";

/// Watches until `stop` or the end of the core. While the nameserver does not answer, retries with increasing pauses;
/// the core polls it meanwhile.
pub async fn watch(calls: &RpcClient, core: &CoreHandle, stop: CancellationToken) {
    let mut watch = Watch { calls, core, since: None, peers: BTreeMap::new() };
    let mut backoff = Backoff::new(HEARTBEAT, PEERS_POLL);
    loop {
        let outcome = tokio::select! {
            outcome = watch.poll() => outcome,
            () = stop.cancelled() => return,
        };
        match outcome {
            Ok(()) => backoff.reset(),
            Err(WatchError::Stopped) => return,
            Err(WatchError::Net(error)) => {
                tracing::debug!(%error, "cannot watch the nameserver");
                tokio::select! {
                    () = sleep(backoff.pause()) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

struct Watch<'a> {
    calls: &'a RpcClient,
    core: &'a CoreHandle,
    /// Position after the last answer; `None` before the first.
    since: Option<Position>,
    /// Registered peers, at most [`MAX_PEERS`].
    peers: BTreeMap<PeerId, Endpoint>,
}

enum WatchError {
    Net(NetError),
    Stopped,
}

impl From<NetError> for WatchError {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

impl From<Stopped> for WatchError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl Watch<'_> {
    /// Waits for one answer and reports it to the core.
    async fn poll(&mut self) -> Result<(), WatchError> {
        let query =
            WatchQuery { since: self.since, prefix: None, regex: Some(WATCHED.to_owned()), wait: MAX_WATCH_WAIT };
        let call = |names: NameServiceClient, cx| async move { names.changes(cx, query).await };
        match self.calls.call_nameserver(MAX_WATCH_WAIT + CALL_DEADLINE, call).await? {
            Changes::Resync { position } => {
                let peers = self.calls.peers().await?;
                self.peers = peers.into_iter().map(|contact| (contact.peer, contact.endpoint)).collect();
                self.since = Some(position);
                self.core.send(Event::SeatChanged).await?;
            }
            Changes::Delta { position, changes } => {
                self.since = Some(position);
                if apply(&mut self.peers, changes) {
                    self.core.send(Event::SeatChanged).await?;
                }
            }
        }
        let contact =
            |(peer, endpoint): (&PeerId, &Endpoint)| Contact { peer: peer.clone(), endpoint: endpoint.clone() };
        let peers = self.peers.iter().map(contact).collect();
        Ok(self.core.send(Event::PeersWatched { peers }).await?)
    }
}

/// Applies changes to the registered peers. Returns true if a tracker's name changed, and with it the seat.
fn apply(peers: &mut BTreeMap<PeerId, Endpoint>, changes: Vec<NameChange>) -> bool {
    let mut seat_changed = false;
    for NameChange { name, record } in changes {
        match (name.as_peer(), record) {
            (Some(peer), Some(record)) => {
                // At the limit no peer is added, but those known keep their current endpoints.
                if peers.len() < MAX_PEERS || peers.contains_key(&peer) {
                    peers.insert(peer, record.uri);
                }
            }
            (Some(peer), None) => drop(peers.remove(&peer)),
            (None, _) => seat_changed = true,
        }
    }
    seat_changed
}

#[cfg(test)]
mod tests {
    use shared::{
        name::Name,
        rpc::nameserver::{Record, Revision},
    };

    use super::*;

    fn moved(id: &str, port: u16) -> NameChange {
        let peer: PeerId = id.parse().unwrap();
        let name = Name::peer(&peer);
        let uri = format!("quic://127.0.0.1:{port}").parse().unwrap();
        let record = Record { name: name.clone(), uri, tags: Vec::new(), revision: Revision(1) };
        NameChange { name, record: Some(record) }
    }

    #[test]
    fn change_of_a_known_peer_is_applied_at_the_peer_limit() {
        let mut peers = BTreeMap::new();
        apply(&mut peers, (0..=MAX_PEERS).map(|number| moved(&format!("p{number}"), 1)).collect());
        assert_eq!(peers.len(), MAX_PEERS);
        apply(&mut peers, vec![moved("p7", 2)]);
        assert_eq!(peers[&"p7".parse().unwrap()].port, 2);
    }
}
