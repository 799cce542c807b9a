//! Admission of snapshots: keeps the heartbeats of a tracker or standby from waiting behind many snapshots at once.
//!
//! Snapshots are admitted at the rate at which they can be applied. A peer beyond that rate gets `Later` with the
//! time of its reservation, and is admitted then. Deltas are small and are always admitted.

use std::{collections::BTreeMap, time::Duration};

use super::params::{MAX_SNAPSHOTS, SNAPSHOT_BURST, SNAPSHOT_FILE_COST, SNAPSHOT_PAGE_COST, SNAPSHOT_RETRY};
use shared::{
    id::PeerId,
    limits::CALL_DEADLINE,
    rpc::tracker::{Announcement, AnnouncementKind, TrackerError},
    time::Timestamp,
};

/// Snapshots under way, reservations, and the work admitted so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotAdmission {
    /// Snapshots with further pages, and the time until which the next page is expected.
    in_progress: BTreeMap<PeerId, Timestamp>,
    /// Time at which each refused peer may send its snapshot.
    reservations: BTreeMap<PeerId, Timestamp>,
    /// Time at which all admitted and reserved work is done.
    busy_until: Timestamp,
}

impl SnapshotAdmission {
    /// Admits an announcement of a member.
    ///
    /// # Errors
    /// `Later` with the wait until the reservation of `peer`.
    pub(crate) fn admit(
        &mut self,
        now: Timestamp,
        peer: &PeerId,
        announcement: &Announcement,
    ) -> Result<(), TrackerError> {
        let AnnouncementKind::Snapshot { page, last } = announcement.kind else { return Ok(()) };
        let files = u32::try_from(announcement.upserts.len()).unwrap_or(u32::MAX);
        let work = SNAPSHOT_PAGE_COST + SNAPSHOT_FILE_COST.saturating_mul(files);
        match page {
            // The cost of a second page, which is certain to follow, is counted with the first.
            0 => self.begin(now, peer, if last { work } else { work * 2 }, last)?,
            1 => {}
            // One page at a time of each admitted snapshot.
            _ => self.busy_until = self.busy_until.max(now) + work,
        }
        if last {
            self.in_progress.remove(peer);
        } else {
            self.in_progress.insert(peer.clone(), now + CALL_DEADLINE);
        }
        Ok(())
    }

    /// Admits the first page of a snapshot that costs at least `work`.
    fn begin(&mut self, now: Timestamp, peer: &PeerId, work: Duration, last: bool) -> Result<(), TrackerError> {
        match self.reservations.get(peer) {
            Some(at) if now < *at => return Err(TrackerError::Later { wait: at.since(now) }),
            Some(_) => {
                self.reservations.remove(peer);
            }
            None => {
                let start = self.busy_until.max(now);
                self.busy_until = start + work;
                if start > now + SNAPSHOT_BURST {
                    self.reservations.insert(peer.clone(), start);
                    return Err(TrackerError::Later { wait: start.since(now) });
                }
            }
        }
        if !last && self.in_progress.len() >= MAX_SNAPSHOTS && !self.in_progress.contains_key(peer) {
            self.in_progress.retain(|_, until| now < *until);
            if self.in_progress.len() >= MAX_SNAPSHOTS {
                self.reservations.insert(peer.clone(), now + SNAPSHOT_RETRY);
                return Err(TrackerError::Later { wait: SNAPSHOT_RETRY });
            }
        }
        Ok(())
    }

    /// Removes `peer`, which is no longer a member.
    pub(crate) fn remove(&mut self, peer: &PeerId) {
        self.in_progress.remove(peer);
        self.reservations.remove(peer);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use shared::{
        content::ContentHash,
        epoch::Epoch,
        id::Incarnation,
        rpc::tracker::{Addressee, WireFile},
    };

    use super::*;

    fn id(number: usize) -> PeerId {
        format!("peer{number}").parse().unwrap()
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_millis(millis))
    }

    fn snapshot(page: u32, last: bool, files: usize) -> Announcement {
        let hash = ContentHash([0; 32]);
        let file = |n| WireFile { name: format!("{n}"), size: 0, hash, mtime_micros: 0, executable: false };
        let kind = AnnouncementKind::Snapshot { page, last };
        let upserts = (0..files).map(file).collect();
        let (epoch, incarnation, to) = (Epoch(1), Incarnation(1), Addressee::Tracker);
        Announcement { to, epoch, incarnation, seq: 1, kind, upserts, removals: Vec::new() }
    }

    #[test]
    fn thousand_simultaneous_snapshots_are_admitted_in_turn_with_at_most_one_refusal_each() {
        let mut admission = SnapshotAdmission::default();
        let announcement = snapshot(0, true, 400);
        let work = SNAPSHOT_PAGE_COST + SNAPSHOT_FILE_COST * 400;
        let mut waiting: BinaryHeap<_> = (0..1000).map(|peer| (std::cmp::Reverse(at(0)), peer, 0)).collect();
        let mut admitted = Vec::new();
        while let Some((std::cmp::Reverse(now), peer, refusals)) = waiting.pop() {
            match admission.admit(now, &id(peer), &announcement) {
                Ok(()) => admitted.push(now),
                Err(TrackerError::Later { wait }) => {
                    assert_eq!(refusals, 0, "peer {peer} was refused twice");
                    waiting.push((std::cmp::Reverse(now + wait), peer, 1));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(admitted.len(), 1000);
        // At most the burst at once, and no idle time in between.
        let burst = usize::try_from(SNAPSHOT_BURST.as_micros() / work.as_micros()).unwrap() + 1;
        for (first, later) in admitted.iter().zip(admitted.iter().skip(burst + 1)) {
            assert!(later.since(*first) > Duration::ZERO);
        }
        assert!(admitted[999] <= at(0) + work * 1000);
        assert!(admission.reservations.is_empty());
    }

    #[test]
    fn early_peer_keeps_its_reservation_and_removed_peer_loses_it() {
        let mut admission = SnapshotAdmission::default();
        let announcement = snapshot(0, true, 500);
        let wait = |admission: &mut SnapshotAdmission, now, peer| match admission.admit(now, &id(peer), &announcement) {
            Ok(()) => Duration::ZERO,
            Err(TrackerError::Later { wait }) => wait,
            Err(other) => panic!("{other}"),
        };
        let first = (0..).find(|peer| wait(&mut admission, at(0), *peer) > Duration::ZERO).unwrap();
        let reserved = wait(&mut admission, at(0), first);
        assert_eq!(wait(&mut admission, at(5), first), reserved - Duration::from_millis(5));
        admission.remove(&id(first));
        assert!(wait(&mut admission, at(0), first) > reserved);
        // A delta does not wait.
        let delta = Announcement { kind: AnnouncementKind::Delta, ..announcement.clone() };
        assert_eq!(admission.admit(at(5), &id(first), &delta), Ok(()));
    }

    #[test]
    fn concurrent_multi_page_snapshots_are_bounded_and_stalled_ones_expire() {
        let mut admission = SnapshotAdmission::default();
        for peer in 0..MAX_SNAPSHOTS {
            assert_eq!(admission.admit(at(0), &id(peer), &snapshot(0, false, 1)), Ok(()));
        }
        let more = id(MAX_SNAPSHOTS);
        let later = Err(TrackerError::Later { wait: SNAPSHOT_RETRY });
        assert_eq!(admission.admit(at(1), &more, &snapshot(0, false, 1)), later);
        // One snapshot ends and frees its slot.
        assert_eq!(admission.admit(at(2), &id(0), &snapshot(1, true, 1)), Ok(()));
        assert_eq!(admission.admit(at(1) + SNAPSHOT_RETRY, &more, &snapshot(0, false, 1)), Ok(()));
        // The other snapshots never continue.
        let late = at(2) + CALL_DEADLINE + SNAPSHOT_RETRY;
        assert_eq!(admission.admit(late, &id(MAX_SNAPSHOTS + 1), &snapshot(0, false, 1)), Ok(()));
    }
}
