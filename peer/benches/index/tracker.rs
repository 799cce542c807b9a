//! A core in the tracker state, and the requests of peers to it.

use std::time::Duration;

use protocol::{
    election::{Action, Core, CoreConfig, DurableState, Event, Role, params::PEER_SILENCE},
    replication::params::{SNAPSHOT_FILE_COST, SNAPSHOT_PAGE_COST},
};
use shared::{
    contact::Contact,
    content::ContentHash,
    digest::ShareDigest,
    epoch::Epoch,
    id::PeerId,
    limits::SEAT_LEASE,
    name::Endpoint,
    rpc::{
        nameserver::{SeatGrant, SeatView},
        tracker::{Addressee, Announcement, Heartbeat, IndexPage, ListAll, WhoHas},
    },
    time::Timestamp,
};

use crate::shares::INCARNATION;

/// Tracker with a virtual clock that only [`Self::advance`] moves. No timer fires in between, so a measurement covers
/// the measured request alone.
pub struct Tracker {
    core: Core,
    now: Timestamp,
    epoch: Epoch,
    actions: Vec<Action>,
    members: Vec<PeerId>,
    /// Time of the last heartbeats of all members.
    heartbeats_at: Timestamp,
}

fn endpoint(host: &str) -> Endpoint {
    format!("quic://{host}.example.net:4000").parse().expect("an endpoint")
}

impl Tracker {
    /// Starts a core and lets it win the election in a network without other peers.
    pub fn start() -> Self {
        let id: PeerId = "tracker".parse().expect("an id");
        let config = CoreConfig {
            id: id.clone(),
            incarnation: INCARNATION,
            endpoint: endpoint("tracker"),
            seed: 1,
            durable: DurableState::default(),
            candidate: true,
        };
        let now = Timestamp::ZERO;
        let core = Core::new(config, now);
        let mut tracker =
            Self { core, now, epoch: Epoch::NONE, actions: Vec::new(), members: Vec::new(), heartbeats_at: now };
        let mut events = vec![Event::Tick];
        while let Some(event) = events.pop() {
            for action in tracker.handle(event) {
                match action {
                    Action::QueryPeers { call } => {
                        let contact = Contact { peer: id.clone(), endpoint: endpoint("tracker") };
                        events.push(Event::PeersAnswered { call, result: Ok(vec![contact]) });
                    }
                    Action::QuerySeat { call } => {
                        events.push(Event::SeatAnswered { call, result: Ok(SeatView::default()) });
                    }
                    Action::Claim { call, claim } => {
                        let grant = SeatGrant { epoch: claim.epoch, lease: SEAT_LEASE };
                        events.push(Event::ClaimAnswered { call, result: Ok(grant) });
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(tracker.core.role(), Role::Tracker, "a peer without rivals becomes the tracker");
        tracker.epoch = tracker.core.seat_view().epoch_high;
        tracker
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.core.handle(self.now, event, &mut self.actions);
        std::mem::take(&mut self.actions)
    }

    /// Advances the clock. The seat is renewed and all members send heartbeats meanwhile.
    pub fn advance(&mut self, duration: Duration) {
        self.now += duration;
        for action in self.handle(Event::Tick) {
            if let Action::RenewSeat { call, epoch } = action {
                let grant = SeatGrant { epoch, lease: SEAT_LEASE };
                self.handle(Event::RenewalAnswered { call, result: Ok(grant) });
            }
        }
        if self.now.since(self.heartbeats_at) > PEER_SILENCE / 3 {
            self.heartbeats_at = self.now;
            let members = std::mem::take(&mut self.members);
            members.iter().for_each(|peer| self.heartbeat(peer));
            self.members = members;
        }
    }

    /// Admits a peer with its first heartbeat.
    pub fn join(&mut self, peer: &PeerId) {
        self.heartbeat(peer);
        self.members.push(peer.clone());
    }

    fn heartbeat(&mut self, peer: &PeerId) {
        // A sequence number above all later ones: the tracker then does not compare the digest.
        let beat = Heartbeat {
            to: Addressee::Tracker,
            epoch: self.epoch,
            incarnation: INCARNATION,
            seq: u64::MAX,
            digest: ShareDigest::default(),
            endpoint: endpoint(peer.as_str()),
        };
        let answer = self.core.on_heartbeat(self.now, peer, &beat, &mut self.actions);
        self.actions.clear();
        assert!(answer.is_ok(), "the tracker accepts a heartbeat");
    }

    /// Advances the clock by the budgeted cost of a snapshot page. The tracker postpones snapshots that come faster.
    pub fn advance_by_page(&mut self, announcement: &Announcement) {
        let files = u32::try_from(announcement.upserts.len()).expect("a page");
        self.advance(SNAPSHOT_PAGE_COST + SNAPSHOT_FILE_COST * files);
    }

    /// Sends an announcement, which the tracker must accept.
    pub fn announce(&mut self, peer: &PeerId, mut announcement: Announcement) {
        announcement.epoch = self.epoch;
        let answer = self.core.on_announcement(self.now, peer, announcement, &mut self.actions);
        self.actions.clear();
        assert!(answer.is_ok(), "the tracker accepts an announcement");
    }

    /// Returns the number of owners that the tracker finds.
    pub fn who_has(&mut self, asker: &PeerId, name: &str) -> usize {
        let query = WhoHas { epoch: self.epoch, name: name.to_owned(), version: None };
        let versions = self.core.who_has(self.now, asker, &query, &mut self.actions).expect("the tracker answers");
        versions.iter().map(|version| version.owners.len()).sum()
    }

    /// Returns a page of the listing.
    pub fn list(&mut self, prefix: &str, after: Option<(String, ContentHash)>) -> IndexPage {
        let query = ListAll { epoch: self.epoch, prefix: prefix.to_owned(), after };
        self.core.list_all(self.now, &query, &mut self.actions).expect("the tracker answers")
    }

    /// Removes a peer with all its files.
    pub fn leave(&mut self, peer: &PeerId) {
        let answer = self.core.on_leave(self.now, peer, self.epoch, INCARNATION, &mut self.actions);
        self.actions.clear();
        assert!(answer.is_ok(), "the tracker accepts a leave");
        self.members.retain(|member| member != peer);
    }

    /// Returns the number of members and the number of file versions.
    pub fn size(&self) -> (usize, usize) {
        self.core.index_size().expect("the tracker has an index")
    }
}
