//! Synthetic shares and the announcements of them.

use shared::{
    content::ContentHash,
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::FILES_PER_PAGE,
    rpc::tracker::{Addressee, Announcement, AnnouncementKind, WireFile},
};

/// Incarnation of every peer.
pub const INCARNATION: Incarnation = Incarnation(1);
/// Sequence number of every snapshot.
const SNAPSHOT: u64 = 1;

/// Shares of all peers: file names, contents and announcements are functions of the indices of peer and file.
pub struct Shares {
    pub peers: usize,
    pub files_per_peer: usize,
}

impl Shares {
    pub fn id(peer: usize) -> PeerId {
        format!("peer{peer:05}").parse().expect("an id")
    }

    /// Number of announcements in a snapshot of one share.
    pub fn pages(&self) -> usize {
        self.files_per_peer.div_ceil(FILES_PER_PAGE).max(1)
    }

    /// Returns the name of a file: 25 to 55 bytes, 40 on average. Neighbours in the order of names belong to
    /// different peers.
    pub fn name(&self, peer: usize, file: usize) -> String {
        let number = (file * self.peers + peer) as u64;
        let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let suffix = "-depois-do-almoco-com-a-familia"[..(scattered % 31) as usize].trim_end_matches('-');
        format!("fotos/{:02x}/{scattered:016x}{suffix}", scattered >> 56)
    }

    /// Returns a version of a file.
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

    /// Returns a page of a peer's snapshot.
    pub fn page(&self, peer: usize, page: usize) -> Announcement {
        let last = page + 1 == self.pages();
        let files = (page * FILES_PER_PAGE..self.files_per_peer.min((page + 1) * FILES_PER_PAGE))
            .map(|file| self.file(peer, file, 0));
        let kind = AnnouncementKind::Snapshot { page: u32::try_from(page).expect("few pages"), last };
        Self::announcement(SNAPSHOT, kind, files.collect())
    }

    /// Returns change `number` of a share: a new version of one of its files.
    pub fn change(&self, peer: usize, number: usize) -> Announcement {
        let file = number.wrapping_mul(7919) % self.files_per_peer;
        let upserts = vec![self.file(peer, file, number + 1)];
        Self::announcement(SNAPSHOT + 1 + number as u64, AnnouncementKind::Delta, upserts)
    }

    /// Returns the name of a file that all peers share.
    pub fn popular_name(number: usize) -> String {
        format!("all/everybody has this {number}")
    }

    /// Returns the announcement that adds `count` files which all peers share, after `changes` changes of the share.
    pub fn popular(&self, changes: usize, count: usize) -> Announcement {
        let file = |number: usize| WireFile { name: Self::popular_name(number), ..self.file(0, 0, 0) };
        let upserts = (0..count).map(file).collect();
        Self::announcement(SNAPSHOT + 1 + changes as u64, AnnouncementKind::Delta, upserts)
    }
}
