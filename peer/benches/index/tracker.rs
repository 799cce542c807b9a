//! A core that is tracker, and the shares that peers announce to it.

use std::time::Duration;

use protocol::election::{Action, Core, CoreConfig, DurableState, Event, Reply, Role, Token};
use shared::{
    contact::Contact,
    content::ContentHash,
    digest::ShareDigest,
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::{FILES_PER_PAGE, PEER_SILENCE, SEAT_LEASE, SNAPSHOT_FILE_COST, SNAPSHOT_PAGE_COST},
    name::Endpoint,
    rpc::{
        nameserver::{SeatGrant, SeatView},
        tracker::{Addressee, Announcement, AnnouncementKind, Heartbeat, IndexPage, ListAll, WhoHas, WireFile},
    },
    time::Timestamp,
};

const INCARNATION: Incarnation = Incarnation(1);
const SNAPSHOT: u64 = 1;

/// A tracker whose clock stands still unless it is told to move: nothing is due, so that only what is asked of it is timed.
pub struct Tracker {
    core: Core,
    now: Timestamp,
    epoch: Epoch,
    actions: Vec<Action>,
    members: Vec<PeerId>,
    beaten: Timestamp,
}

fn endpoint(host: &str) -> Endpoint {
    format!("quic://{host}.example.net:4000").parse().expect("an endpoint")
}

impl Tracker {
    /// A tracker that is alone.
    pub fn start() -> Self {
        let id: PeerId = "tracker".parse().expect("an id");
        let config = CoreConfig {
            id: id.clone(),
            incarnation: INCARNATION,
            endpoint: endpoint("tracker"),
            seed: 1,
            durable: DurableState::default(),
        };
        let now = Timestamp::ZERO;
        let core = Core::new(config, now);
        let mut tracker = Self { core, now, epoch: Epoch::NONE, actions: Vec::new(), members: Vec::new(), beaten: now };
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
        assert_eq!(tracker.core.role(), Role::Tracker, "who is alone takes the seat");
        tracker.epoch = tracker.core.seat_view().epoch_high;
        tracker
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        self.core.handle(self.now, event, &mut self.actions);
        std::mem::take(&mut self.actions)
    }

    /// Lets time pass, in which the seat is kept and all members are heard.
    pub fn pass(&mut self, wait: Duration) {
        self.now += wait;
        for action in self.handle(Event::Tick) {
            if let Action::RenewSeat { call, epoch } = action {
                let grant = SeatGrant { epoch, lease: SEAT_LEASE };
                self.handle(Event::RenewalAnswered { call, result: Ok(grant) });
            }
        }
        if self.now.since(self.beaten) > PEER_SILENCE / 3 {
            self.beaten = self.now;
            let members = std::mem::take(&mut self.members);
            members.iter().for_each(|peer| self.beat(peer));
            self.members = members;
        }
    }

    /// A peer's first heartbeat.
    pub fn join(&mut self, peer: &PeerId) {
        self.beat(peer);
        self.members.push(peer.clone());
    }

    fn beat(&mut self, peer: &PeerId) {
        // A number above all that follow, so that the digest is compared with nothing.
        let beat = Heartbeat {
            to: Addressee::Tracker,
            epoch: self.epoch,
            incarnation: INCARNATION,
            seq: u64::MAX,
            digest: ShareDigest::default(),
            endpoint: endpoint(peer.as_str()),
        };
        let actions = self.handle(Event::HeartbeatReceived { token: Token(1), from: peer.clone(), beat });
        let taken = |action: &Action| matches!(action, Action::Reply { reply: Reply::Heartbeat(Ok(_)), .. });
        assert!(actions.iter().any(taken), "a member is taken in");
    }

    /// Lets the time pass that a page of a snapshot is expected to cost at most: more would be told to come later.
    pub fn pace(&mut self, announcement: &Announcement) {
        let files = u32::try_from(announcement.upserts.len()).expect("a page");
        self.pass(SNAPSHOT_PAGE_COST + SNAPSHOT_FILE_COST * files);
    }

    /// Takes an announcement in.
    pub fn announce(&mut self, peer: &PeerId, mut announcement: Announcement) {
        announcement.epoch = self.epoch;
        let event = Event::AnnouncementReceived { token: Token(1), from: peer.clone(), announcement };
        let actions = self.handle(event);
        let taken = |action: &Action| matches!(action, Action::Reply { reply: Reply::Announcement(Ok(())), .. });
        assert!(actions.iter().any(taken), "an announcement is taken");
    }

    /// Owners found.
    pub fn who_has(&mut self, asker: &PeerId, name: &str) -> usize {
        let query = WhoHas { epoch: self.epoch, name: name.to_owned(), version: None };
        let versions = self.core.who_has(self.now, asker, &query, &mut self.actions).expect("a tracker answers");
        versions.iter().map(|version| version.owners.len()).sum()
    }

    /// A page of all files.
    pub fn list(&mut self, prefix: &str, after: Option<(String, ContentHash)>) -> IndexPage {
        let query = ListAll { epoch: self.epoch, prefix: prefix.to_owned(), after };
        self.core.list_all(self.now, &query, &mut self.actions).expect("a tracker lists")
    }

    /// A peer goes, with all its files.
    pub fn leave(&mut self, peer: &PeerId) {
        let event =
            Event::LeaveReceived { token: Token(1), from: peer.clone(), epoch: self.epoch, incarnation: INCARNATION };
        let actions = self.handle(event);
        let gone = |action: &Action| matches!(action, Action::Reply { reply: Reply::Leave(Ok(())), .. });
        assert!(actions.iter().any(gone), "a member may go");
        self.members.retain(|member| member != peer);
    }

    /// Members and versions.
    pub fn size(&self) -> (usize, usize) {
        self.core.index_size().expect("a tracker has an index")
    }
}

/// What all peers have.
pub struct Shares {
    pub peers: usize,
    pub files_per_peer: usize,
}

impl Shares {
    pub fn id(peer: usize) -> PeerId {
        format!("peer{peer:05}").parse().expect("an id")
    }

    /// Announcements of a whole share.
    pub fn pages(&self) -> usize {
        self.files_per_peer.div_ceil(FILES_PER_PAGE).max(1)
    }

    /// 25 to 55 bytes, 40 on average; neighbours in the order are files of different peers.
    pub fn name(&self, peer: usize, file: usize) -> String {
        let number = (file * self.peers + peer) as u64;
        let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let more = "-depois-do-almoco-com-a-familia"[..(scattered % 31) as usize].trim_end_matches('-');
        format!("fotos/{:02x}/{scattered:016x}{more}", scattered >> 56)
    }

    pub fn file(&self, peer: usize, file: usize, version: usize) -> WireFile {
        let text = [peer, file, version].map(usize::to_le_bytes).concat();
        WireFile {
            name: self.name(peer, file),
            size: 1 << 20,
            hash: ContentHash(*blake3::hash(&text).as_bytes()),
            mtime_micros: 1_700_000_000_000_000,
            executable: false,
        }
    }

    fn announcement(seq: u64, kind: AnnouncementKind, upserts: Vec<WireFile>) -> Announcement {
        let to = Addressee::Tracker;
        Announcement { to, epoch: Epoch::NONE, incarnation: INCARNATION, seq, kind, upserts, removals: Vec::new() }
    }

    /// A page of a peer's snapshot, in the order of names as a share tells it.
    pub fn page(&self, peer: usize, page: usize) -> Announcement {
        let last = page + 1 == self.pages();
        let files = (page * FILES_PER_PAGE..self.files_per_peer.min((page + 1) * FILES_PER_PAGE))
            .map(|file| self.file(peer, file, 0));
        let kind = AnnouncementKind::Snapshot { page: u32::try_from(page).expect("few pages"), last };
        Self::announcement(SNAPSHOT, kind, files.collect())
    }

    /// The `number`th change of a peer's share: another content of one of its files.
    pub fn change(&self, peer: usize, number: usize) -> Announcement {
        let file = number.wrapping_mul(7919) % self.files_per_peer;
        let upserts = vec![self.file(peer, file, number + 1)];
        Self::announcement(SNAPSHOT + 1 + number as u64, AnnouncementKind::Delta, upserts)
    }

    pub fn popular_name(number: usize) -> String {
        format!("all/everybody has this {number}")
    }

    /// A peer gets `count` files that all others have too, after `changes` changes of its own.
    pub fn popular(&self, changes: usize, count: usize) -> Announcement {
        let file = |number: usize| WireFile { name: Self::popular_name(number), ..self.file(0, 0, 0) };
        let upserts = (0..count).map(file).collect();
        Self::announcement(SNAPSHOT + 1 + changes as u64, AnnouncementKind::Delta, upserts)
    }
}
