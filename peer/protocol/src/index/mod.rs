//! The tracker's index: file name -> versions -> owners. Soft state, rebuilt from the peers' announcements.
//!
//! | module | holds |
//! |---|---|
//! | `rows` | the table of files, their contents and owners |
//! | `sorted_ids` | ordered sets of row numbers |
//! | `small_list` | lists that nearly always have one element |

pub mod params;
mod rows;
mod small_list;
mod sorted_ids;

use std::collections::BTreeMap;

use params::MAX_VERSIONS_PER_ANSWER;
use shared::{
    content::{ContentHash, FileMeta},
    digest::ShareDigest,
    electors::rendezvous,
    file_name::FileName,
    id::{Incarnation, PeerId},
    limits::{FILES_PER_PAGE, MAX_FILES_PER_PEER, MAX_INDEX_ENTRIES, MAX_OWNERS_TRIED, MAX_PEERS, PAGE_BYTES},
    name::Endpoint,
    rpc::tracker::{
        Announcement, AnnouncementKind, Heartbeat, IndexedFile, ListAll, Owner, TrackerError, Version, WhoHas,
    },
};

use rows::{Content, Files, OwnerEntry, Slot};
use sorted_ids::SortedIds;

/// Salts of the hashes of owners and askers, which choose the owners named to an asker where there are too many to
/// name all.
const OWNERS_SALT: &[u8] = b"owners";
const ASKERS_SALT: &[u8] = b"askers";

/// Progress of a peer's announcements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Nothing,
    Snapshot { seq: u64, next_page: u32 },
    Complete { seq: u64 },
}

#[derive(Debug, Clone)]
struct Member {
    id: PeerId,
    endpoint: Endpoint,
    incarnation: Incarnation,
    progress: Progress,
    /// Row numbers of its files.
    files: SortedIds,
    /// Digest of its files in the index.
    digest: ShareDigest,
    /// Number of its share in its latest heartbeat to this peer; `None` before the first.
    named_seq: Option<u64>,
    /// Hash that, with the asker's, ranks it among the owners of a file.
    rank_hash: u64,
}

/// The files of all members.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    files: Files,
    slots: BTreeMap<PeerId, Slot>,
    /// Members by slot.
    members: Vec<Option<Member>>,
    free: Vec<Slot>,
}

impl Index {
    /// Takes a heartbeat of `peer`. Returns the number up to which its announcements are known; `None` when a
    /// snapshot is needed. Where the digests agree, a later run of the peer need not announce anything.
    ///
    /// # Errors
    /// As for [`Self::admit`].
    pub(crate) fn on_heartbeat(&mut self, peer: &PeerId, beat: &Heartbeat) -> Result<Option<u64>, TrackerError> {
        if let Some(slot) = self.slots.get(peer).copied() {
            let member = self.member(slot);
            let known = matches!(member.progress, Progress::Complete { .. }) && member.digest == beat.digest;
            if known && member.incarnation < beat.incarnation {
                member.incarnation = beat.incarnation;
                member.named_seq = None;
                member.progress = Progress::Complete { seq: beat.seq };
            }
            // The same number and another digest: the index is wrong, since the peer is the authority on its share.
            if member.progress == (Progress::Complete { seq: beat.seq })
                && member.incarnation == beat.incarnation
                && !known
            {
                self.clear(slot);
            }
        }
        let known = self.admit(peer, beat.incarnation, &beat.endpoint)?;
        if let Some(slot) = self.slots.get(peer).copied() {
            let named = &mut self.member(slot).named_seq;
            *named = Some(beat.seq).max(*named);
        }
        Ok(known)
    }

    /// Admits this run of `peer`, which answers at `endpoint`. Returns the number up to which its announcements are
    /// known; `None` when a snapshot is needed.
    ///
    /// # Errors
    /// `Superseded` when a later run of `peer` is known, `LimitReached` when there are `MAX_PEERS` members.
    pub(crate) fn admit(
        &mut self,
        peer: &PeerId,
        incarnation: Incarnation,
        endpoint: &Endpoint,
    ) -> Result<Option<u64>, TrackerError> {
        let Some(&slot) = self.slots.get(peer) else {
            if self.slots.len() >= MAX_PEERS {
                return Err(limit("peers", MAX_PEERS));
            }
            let slot = self.free.pop().unwrap_or_else(|| {
                self.members.push(None);
                Slot::try_from(self.members.len() - 1).expect("MAX_PEERS is far below 2^32")
            });
            self.slots.insert(peer.clone(), slot);
            self.members[slot as usize] = Some(Member {
                id: peer.clone(),
                endpoint: endpoint.clone(),
                incarnation,
                progress: Progress::Nothing,
                files: SortedIds::default(),
                digest: ShareDigest::default(),
                named_seq: None,
                rank_hash: rendezvous(OWNERS_SALT, peer),
            });
            return Ok(None);
        };
        let member = self.member(slot);
        if incarnation < member.incarnation {
            return Err(TrackerError::Superseded);
        }
        if incarnation > member.incarnation {
            member.incarnation = incarnation;
            member.named_seq = None;
            self.clear(slot);
        }
        let member = self.member(slot);
        if member.endpoint != *endpoint {
            member.endpoint = endpoint.clone();
        }
        Ok(match member.progress {
            Progress::Complete { seq } => Some(seq),
            Progress::Nothing | Progress::Snapshot { .. } => None,
        })
    }

    /// Applies an announcement of an admitted peer, entirely or not at all. An announcement already applied is
    /// accepted.
    ///
    /// # Errors
    /// `SnapshotNeeded` when it does not follow the last one, `Superseded` from an earlier run,
    /// `InvalidFileName`, `LimitReached`.
    pub(crate) fn announce(&mut self, peer: &PeerId, announcement: Announcement) -> Result<(), TrackerError> {
        let Announcement { to: _, epoch: _, incarnation, seq, kind, upserts, removals } = announcement;
        if upserts.len() + removals.len() > FILES_PER_PAGE {
            return Err(limit("files in one announcement", FILES_PER_PAGE));
        }
        let Some(&slot) = self.slots.get(peer) else { return Err(TrackerError::SnapshotNeeded) };
        let member = self.member(slot);
        if incarnation < member.incarnation {
            return Err(TrackerError::Superseded);
        }
        if incarnation > member.incarnation {
            // The later run's heartbeat names its endpoint; its files are of no use before.
            return Err(TrackerError::SnapshotNeeded);
        }
        let progress = member.progress;
        let (clears, next) = match step(progress, seq, kind)? {
            Step::Known => return Ok(()),
            Step::Apply { clears, next } => (clears, next),
        };
        let files = upserts
            .into_iter()
            .map(FileMeta::try_from)
            .collect::<Result<Vec<_>, _>>()
            .map_err(TrackerError::InvalidFileName)?;
        let removals = removals
            .iter()
            .map(|name| name.parse::<FileName>())
            .collect::<Result<Vec<_>, _>>()
            .map_err(TrackerError::InvalidFileName)?;
        if clears {
            self.clear(slot);
        }
        let count = self.member(slot).files.len();
        // Counting the new files costs a lookup for each.
        if count + files.len() > MAX_FILES_PER_PEER {
            let is_new = |file: &&FileMeta| self.files.owned(slot, file.name.as_str()).is_none();
            if count + files.iter().filter(is_new).count() > MAX_FILES_PER_PEER {
                return Err(limit("files of one peer", MAX_FILES_PER_PEER));
            }
        }
        if self.files.versions() + files.len() > MAX_INDEX_ENTRIES {
            return Err(limit("versions in the index", MAX_INDEX_ENTRIES));
        }
        for name in &removals {
            self.disown(slot, name.as_str());
        }
        for file in &files {
            self.own(slot, file);
        }
        self.member(slot).progress = next;
        Ok(())
    }

    /// Applies a change of the tracker's own share, which needs no announcement.
    pub(crate) fn apply_own(&mut self, me: &PeerId, upserts: &[FileMeta], removals: &[FileName]) {
        let Some(&slot) = self.slots.get(me) else { return };
        for name in removals {
            self.disown(slot, name.as_str());
        }
        for file in upserts {
            self.own(slot, file);
        }
    }

    /// Removes a peer and its files.
    pub(crate) fn remove(&mut self, peer: &PeerId) {
        if let Some(slot) = self.slots.remove(peer) {
            self.clear(slot);
            self.members[slot as usize] = None;
            self.free.push(slot);
        }
    }

    /// Marks the shares of all members as not confirmed by a heartbeat.
    pub(crate) fn mark_unconfirmed(&mut self) {
        self.members.iter_mut().flatten().for_each(|member| member.named_seq = None);
    }

    /// All members in order of their ids.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.slots.keys()
    }

    /// Number of a member's run.
    pub(crate) fn incarnation(&self, peer: &PeerId) -> Option<Incarnation> {
        Some(self.known(peer)?.incarnation)
    }

    /// Endpoint of a member.
    pub(crate) fn endpoint(&self, peer: &PeerId) -> Option<&Endpoint> {
        Some(&self.known(peer)?.endpoint)
    }

    /// True if the index has the whole share of `peer`, as of the number that its heartbeat named.
    pub(crate) fn is_complete(&self, peer: &PeerId) -> bool {
        self.known(peer).is_some_and(|member| match (member.progress, member.named_seq) {
            (Progress::Complete { seq }, Some(named)) => seq >= named,
            _ => false,
        })
    }

    /// Versions of a name: most owners first, then newest, then by hash. An answer is bounded:
    /// `MAX_VERSIONS_PER_ANSWER` versions, `MAX_OWNERS_TRIED` owners each. The choice of owners depends on the asker,
    /// which spreads the askers.
    ///
    /// # Errors
    /// `InvalidFileName`.
    pub(crate) fn who_has(&self, asker: &PeerId, query: &WhoHas) -> Result<Vec<Version>, TrackerError> {
        let name: FileName = query.name.parse().map_err(TrackerError::InvalidFileName)?;
        let Some(contents) = self.files.find(name.as_str()) else { return Ok(Vec::new()) };
        let wanted =
            believed(contents).filter(|content| query.version.as_ref().is_none_or(|v| v.matches(&content.hash)));
        let mut found: Vec<(&Content, FileMeta)> = wanted.map(|content| (content, meta(&name, content))).collect();
        found.sort_by(|(a, a_file), (b, b_file)| {
            let owners = b.owners().len().cmp(&a.owners().len());
            owners.then(b_file.mtime_micros.cmp(&a_file.mtime_micros)).then(a.hash.cmp(&b.hash))
        });
        found.truncate(MAX_VERSIONS_PER_ANSWER);
        let versions = found.into_iter().map(|(content, file)| Version { file, owners: self.owners(asker, content) });
        Ok(versions.collect())
    }

    fn owners(&self, asker: &PeerId, content: &Content) -> Vec<Owner> {
        let mut members: Vec<&Member> = self.owners_of(content).collect();
        if members.len() > MAX_OWNERS_TRIED {
            // A hash over owner and asker would spread better, but costs more than the rest of the query: 100 us for a
            // thousand owners.
            let asker = rendezvous(ASKERS_SALT, asker);
            members
                .select_nth_unstable_by_key(MAX_OWNERS_TRIED - 1, |member| (mix(asker ^ member.rank_hash), &member.id));
            members.truncate(MAX_OWNERS_TRIED);
        }
        members.sort_by(|a, b| a.id.cmp(&b.id));
        members.into_iter().map(|m| Owner { peer: m.id.clone(), endpoint: m.endpoint.clone() }).collect()
    }

    /// Page of files by name, then hash, and the last entry where another page follows: at most `FILES_PER_PAGE`
    /// files and about `PAGE_BYTES`.
    pub(crate) fn list_all(&self, query: &ListAll) -> (Vec<IndexedFile>, Option<(String, ContentHash)>) {
        let prefix = query.prefix.as_str();
        let after = query.after.as_ref().map(|(name, hash)| (name.as_str(), *hash));
        let start = after.map_or(prefix, |(name, _)| name.max(prefix));
        let mut files: Vec<IndexedFile> = Vec::new();
        let mut bytes = 0;
        for (name, contents) in self.files.from(start) {
            if !name.starts_with(prefix) {
                break;
            }
            for content in believed(contents) {
                if after.is_some_and(|after| (name, content.hash) <= after) {
                    continue;
                }
                let mut owners: Vec<PeerId> = self.owners_of(content).map(|member| member.id.clone()).collect();
                owners.sort_unstable();
                // Encoding of an entry: two lengths, name, hash, size and time, and each owner with its length.
                let owner_bytes: usize = owners.iter().map(|owner| owner.as_str().len() + 1).sum();
                bytes += name.len() + 64 + owner_bytes;
                if files.len() == FILES_PER_PAGE || (bytes > PAGE_BYTES && !files.is_empty()) {
                    let next = files.last().map(|last| (last.file.name.to_string(), last.file.hash));
                    return (files, next);
                }
                let name = name.parse().expect("the index holds valid names only");
                files.push(IndexedFile { file: meta(&name, content), owners });
            }
        }
        (files, None)
    }

    /// Count of members, and of versions of files.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.slots.len(), self.files.versions())
    }

    fn known(&self, peer: &PeerId) -> Option<&Member> {
        self.members.get(*self.slots.get(peer)? as usize)?.as_ref()
    }

    fn owners_of<'a>(&'a self, content: &'a Content) -> impl Iterator<Item = &'a Member> {
        content.owners().iter().filter_map(|owner| self.members.get(owner.slot as usize)?.as_ref())
    }

    fn member(&mut self, slot: Slot) -> &mut Member {
        self.members[slot as usize].as_mut().expect("a slot in use has a member")
    }

    fn clear(&mut self, slot: Slot) {
        let member = self.member(slot);
        member.progress = Progress::Nothing;
        member.digest = ShareDigest::default();
        for id in std::mem::take(&mut member.files).iter() {
            self.files.forget(slot, id);
        }
    }

    fn disown(&mut self, slot: Slot, name: &str) {
        let Some(before) = self.files.disown(slot, name) else { return };
        let member = self.member(slot);
        before.remove_from(name, &mut member.digest);
        if let Ok((_, position)) = member.files.find(|id| id.cmp(&before.id)) {
            member.files.remove(position);
        }
    }

    fn own(&mut self, slot: Slot, file: &FileMeta) {
        let (id, before) = self.files.own(slot, file);
        let member = self.member(slot);
        member.digest.add(file);
        if let Some(before) = before {
            before.remove_from(file.name.as_str(), &mut member.digest);
        } else if let Err(position) = member.files.find(|other| other.cmp(&id)) {
            member.files.insert(position, id);
        }
    }
}

/// Effect of an announcement.
enum Step {
    Known,
    Apply { clears: bool, next: Progress },
}

/// Effect of an announcement in the order of a run's announcements.
fn step(progress: Progress, seq: u64, kind: AnnouncementKind) -> Result<Step, TrackerError> {
    let known = match progress {
        Progress::Complete { seq: known } => seq <= known,
        Progress::Snapshot { seq: begun, .. } => seq < begun,
        Progress::Nothing => false,
    };
    if known {
        return Ok(Step::Known);
    }
    match kind {
        AnnouncementKind::Snapshot { page, last } => {
            let expected = match progress {
                Progress::Snapshot { seq: begun, next_page } if begun == seq => next_page,
                _ => 0,
            };
            if page < expected {
                return Ok(Step::Known);
            }
            if page > expected {
                return Err(TrackerError::SnapshotNeeded);
            }
            let next_page = page.checked_add(1).ok_or(TrackerError::SnapshotNeeded)?;
            let next = if last { Progress::Complete { seq } } else { Progress::Snapshot { seq, next_page } };
            Ok(Step::Apply { clears: page == 0, next })
        }
        AnnouncementKind::Delta => match progress {
            Progress::Complete { seq: known } if known.checked_add(1) == Some(seq) => {
                Ok(Step::Apply { clears: false, next: Progress::Complete { seq } })
            }
            _ => Err(TrackerError::SnapshotNeeded),
        },
    }
}

/// One content for each hash: where owners disagree about its size, the one with most owners, then the newest.
fn believed(contents: &[Content]) -> impl Iterator<Item = &Content> {
    contents.chunk_by(|a, b| a.hash == b.hash).filter_map(|same_hash| {
        same_hash.iter().max_by_key(|content| (content.owners().len(), newest(content).map(|owner| owner.mtime_micros)))
    })
}

fn newest(content: &Content) -> Option<&OwnerEntry> {
    content.owners().iter().max_by_key(|owner| owner.mtime_micros)
}

fn meta(name: &FileName, content: &Content) -> FileMeta {
    let newest = newest(content);
    FileMeta {
        name: name.clone(),
        size: content.size,
        hash: content.hash,
        mtime_micros: newest.map_or(0, |owner| owner.mtime_micros),
        executable: newest.is_some_and(|owner| owner.executable),
    }
}

/// Spreads a number over all 64 bits ("SplitMix64", Steele, Lea and Flood 2014).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn limit(what: &str, limit: usize) -> TrackerError {
    TrackerError::LimitReached { what: what.to_owned(), limit: limit as u64 }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
