//! Whose snapshot is taken when: all peers announcing themselves at once must not keep the tracker from hearing that they
//! live.
//!
//! Work is let in at the pace at which it can be done; who comes when there is enough of it is told when its turn is,
//! and has that turn for sure. Changes are small and are let in always.

use std::{collections::BTreeMap, time::Duration};

use shared::{
    id::PeerId,
    limits::{CALL_DEADLINE, MAX_SNAPSHOTS, SNAPSHOT_BURST, SNAPSHOT_FILE_COST, SNAPSHOT_PAGE_COST, SNAPSHOT_RETRY},
    rpc::tracker::{Announcement, AnnouncementKind, TrackerError},
    time::Timestamp,
};

/// Whose snapshot is taken when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    /// Snapshots under way that have further pages, and until when the next of them is waited for.
    begun: BTreeMap<PeerId, Timestamp>,
    /// Who was told to come back, and when.
    promised: BTreeMap<PeerId, Timestamp>,
    /// When all that was let in or promised is done.
    busy_until: Timestamp,
}

impl Turns {
    /// Whether a member's announcement is let in now.
    ///
    /// # Errors
    /// `Later` with the wait until its turn.
    pub(crate) fn take(
        &mut self,
        now: Timestamp,
        peer: &PeerId,
        announcement: &Announcement,
    ) -> Result<(), TrackerError> {
        let AnnouncementKind::Snapshot { page, last } = announcement.kind else { return Ok(()) };
        let files = u32::try_from(announcement.upserts.len()).unwrap_or(u32::MAX);
        let work = SNAPSHOT_PAGE_COST + SNAPSHOT_FILE_COST.saturating_mul(files);
        match page {
            // Who has a second page is known to bring it.
            0 => self.begin(now, peer, if last { work } else { work * 2 }, last)?,
            1 => {}
            // One at a time of each of those that were let in.
            _ => self.busy_until = self.busy_until.max(now) + work,
        }
        if last {
            self.begun.remove(peer);
        } else {
            self.begun.insert(peer.clone(), now + CALL_DEADLINE);
        }
        Ok(())
    }

    /// Lets a snapshot begin that costs `work` at least.
    fn begin(&mut self, now: Timestamp, peer: &PeerId, work: Duration, last: bool) -> Result<(), TrackerError> {
        match self.promised.get(peer) {
            Some(turn) if now < *turn => return Err(TrackerError::Later { wait: turn.since(now) }),
            Some(_) => {
                self.promised.remove(peer);
            }
            None => {
                let turn = self.busy_until.max(now);
                self.busy_until = turn + work;
                if turn > now + SNAPSHOT_BURST {
                    self.promised.insert(peer.clone(), turn);
                    return Err(TrackerError::Later { wait: turn.since(now) });
                }
            }
        }
        if !last && self.begun.len() >= MAX_SNAPSHOTS && !self.begun.contains_key(peer) {
            self.begun.retain(|_, until| now < *until);
            if self.begun.len() >= MAX_SNAPSHOTS {
                self.promised.insert(peer.clone(), now + SNAPSHOT_RETRY);
                return Err(TrackerError::Later { wait: SNAPSHOT_RETRY });
            }
        }
        Ok(())
    }

    /// `peer` is no member any more.
    pub(crate) fn remove(&mut self, peer: &PeerId) {
        self.begun.remove(peer);
        self.promised.remove(peer);
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
    fn a_thousand_that_come_at_once_are_let_in_one_after_another_and_none_is_sent_away_twice() {
        let mut turns = Turns::default();
        let announcement = snapshot(0, true, 400);
        let work = SNAPSHOT_PAGE_COST + SNAPSHOT_FILE_COST * 400;
        let mut waiting: BinaryHeap<_> = (0..1000).map(|peer| (std::cmp::Reverse(at(0)), peer, 0)).collect();
        let mut taken = Vec::new();
        while let Some((std::cmp::Reverse(now), peer, refusals)) = waiting.pop() {
            match turns.take(now, &id(peer), &announcement) {
                Ok(()) => taken.push(now),
                Err(TrackerError::Later { wait }) => {
                    assert_eq!(refusals, 0, "peer {peer} was sent away twice");
                    waiting.push((std::cmp::Reverse(now + wait), peer, 1));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(taken.len(), 1000);
        // Never more work at once than the burst, and done as soon as possible.
        let burst = usize::try_from(SNAPSHOT_BURST.as_micros() / work.as_micros()).unwrap() + 1;
        for (first, many) in taken.iter().zip(taken.iter().skip(burst + 1)) {
            assert!(many.since(*first) > Duration::ZERO);
        }
        assert!(taken[999] <= at(0) + work * 1000);
        assert!(turns.promised.is_empty());
    }

    #[test]
    fn who_comes_too_early_keeps_its_turn_and_who_goes_loses_it() {
        let mut turns = Turns::default();
        let announcement = snapshot(0, true, 500);
        let wait = |turns: &mut Turns, now, peer| match turns.take(now, &id(peer), &announcement) {
            Ok(()) => Duration::ZERO,
            Err(TrackerError::Later { wait }) => wait,
            Err(other) => panic!("{other}"),
        };
        let first = (0..).find(|peer| wait(&mut turns, at(0), *peer) > Duration::ZERO).unwrap();
        let turn = wait(&mut turns, at(0), first);
        assert_eq!(wait(&mut turns, at(5), first), turn - Duration::from_millis(5));
        turns.remove(&id(first));
        assert!(wait(&mut turns, at(0), first) > turn);
        // A change need not wait.
        let delta = Announcement { kind: AnnouncementKind::Delta, ..announcement.clone() };
        assert_eq!(turns.take(at(5), &id(first), &delta), Ok(()));
    }

    #[test]
    fn snapshots_of_many_pages_are_bounded_and_one_that_stops_makes_room() {
        let mut turns = Turns::default();
        for peer in 0..MAX_SNAPSHOTS {
            assert_eq!(turns.take(at(0), &id(peer), &snapshot(0, false, 1)), Ok(()));
        }
        let more = id(MAX_SNAPSHOTS);
        let later = Err(TrackerError::Later { wait: SNAPSHOT_RETRY });
        assert_eq!(turns.take(at(1), &more, &snapshot(0, false, 1)), later);
        // One ends: its place is free.
        assert_eq!(turns.take(at(2), &id(0), &snapshot(1, true, 1)), Ok(()));
        assert_eq!(turns.take(at(1) + SNAPSHOT_RETRY, &more, &snapshot(0, false, 1)), Ok(()));
        // The others are never heard of again.
        let late = at(2) + CALL_DEADLINE + SNAPSHOT_RETRY;
        assert_eq!(turns.take(late, &id(MAX_SNAPSHOTS + 1), &snapshot(0, false, 1)), Ok(()));
    }
}
