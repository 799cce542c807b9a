//! Times of the members' last heartbeats, at a tracker or standby.

use std::{collections::BTreeMap, time::Duration};

use super::params::PEER_SILENCE;
use shared::{id::PeerId, limits::HEARTBEAT, time::Timestamp};

/// Time of the last heartbeat of each member.
#[derive(Debug, Clone, Default)]
pub(crate) struct Liveness {
    heard: BTreeMap<PeerId, Timestamp>,
    /// Additional silence allowed to members with a reduced heartbeat.
    extra_silence: BTreeMap<PeerId, Duration>,
    /// Earliest time at which a member can have been silent for too long. Heartbeats only postpone that, so they need
    /// not touch this field: one sweep each `PEER_SILENCE` instead of a heap.
    sweep_at: Option<Timestamp>,
}

impl Liveness {
    /// Notes a heartbeat of `peer`, which sends the next one after `interval`. Returns whether `peer` is new.
    pub(crate) fn heard(&mut self, peer: &PeerId, interval: Duration, now: Timestamp) -> bool {
        let extra = interval.saturating_sub(HEARTBEAT);
        if extra.is_zero() {
            self.extra_silence.remove(peer);
        } else if self.extra_silence.get(peer) != Some(&extra) {
            self.extra_silence.insert(peer.clone(), extra);
        }
        self.sweep_at.get_or_insert(now + PEER_SILENCE);
        if let Some(last) = self.heard.get_mut(peer) {
            *last = now.max(*last);
            return false;
        }
        self.heard.insert(peer.clone(), now);
        true
    }

    /// Forgets `peer`. Returns whether it was a member.
    pub(crate) fn remove(&mut self, peer: &PeerId) -> bool {
        self.extra_silence.remove(peer);
        self.heard.remove(peer).is_some()
    }

    /// Earliest time at which [`Self::sweep`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.sweep_at
    }

    /// Removes and returns the members that were silent for `PEER_SILENCE`.
    pub(crate) fn sweep(&mut self, now: Timestamp) -> Vec<PeerId> {
        if self.sweep_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let ends = |peer: &PeerId, last: Timestamp| {
            last + PEER_SILENCE + self.extra_silence.get(peer).copied().unwrap_or_default()
        };
        let silent: Vec<PeerId> =
            self.heard.iter().filter(|(peer, last)| now >= ends(peer, **last)).map(|(peer, _)| peer.clone()).collect();
        for peer in &silent {
            self.remove(peer);
        }
        let extra_silence = &self.extra_silence;
        let ends = |(peer, last): (&PeerId, &Timestamp)| {
            *last + PEER_SILENCE + extra_silence.get(peer).copied().unwrap_or_default()
        };
        self.sweep_at = self.heard.iter().map(ends).min();
        silent
    }

    /// Extends all deadlines by `stall`: heartbeats that arrived while this process stalled have not been read, so
    /// that time is no silence.
    pub(crate) fn extend_deadlines(&mut self, stall: Duration, now: Timestamp) {
        for last in self.heard.values_mut() {
            *last = (*last + stall).min(now);
        }
    }

    /// Latest time since which `needed` of `peers` have been heard; `now` when none is needed, `None` when fewer were
    /// ever heard.
    pub(crate) fn majority_heard<'a>(
        &self,
        peers: impl Iterator<Item = &'a PeerId>,
        needed: usize,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if needed == 0 {
            return Some(now);
        }
        let mut times: Vec<Timestamp> = peers.filter_map(|peer| self.heard.get(peer).copied()).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        times.get(needed - 1).copied()
    }

    /// True if `peer` is a member.
    pub(crate) fn hears(&self, peer: &PeerId) -> bool {
        self.heard.contains_key(peer)
    }

    /// Members in order of their ids.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.heard.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> PeerId {
        text.parse().unwrap()
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn sweep_removes_silent_members_only() {
        let mut liveness = Liveness::default();
        assert!(liveness.heard(&id("a"), HEARTBEAT, at(0)));
        assert!(liveness.heard(&id("b"), HEARTBEAT, at(0)));
        assert!(!liveness.heard(&id("b"), HEARTBEAT, at(1000)));
        assert_eq!(liveness.sweep(at(1499)), []);
        assert_eq!(liveness.sweep(at(1500)), [id("a")]);
        assert_eq!(liveness.deadline(), Some(at(2500)));
        assert_eq!(liveness.sweep(at(2500)), [id("b")]);
        assert_eq!(liveness.deadline(), None);
    }

    #[test]
    fn stall_is_not_counted_as_silence() {
        let mut liveness = Liveness::default();
        liveness.heard(&id("a"), HEARTBEAT, at(0));
        liveness.extend_deadlines(Duration::from_millis(5000), at(5100));
        assert_eq!(liveness.sweep(at(5100)), []);
        assert_eq!(liveness.sweep(at(6500)), [id("a")]);
    }

    #[test]
    fn majority_is_as_fresh_as_its_least_recently_heard_member() {
        let mut liveness = Liveness::default();
        let peers = [id("a"), id("b"), id("c"), id("d")];
        liveness.heard(&peers[0], HEARTBEAT, at(10));
        liveness.heard(&peers[1], HEARTBEAT, at(30));
        liveness.heard(&peers[2], HEARTBEAT, at(20));
        assert_eq!(liveness.majority_heard(peers.iter(), 2, at(50)), Some(at(20)));
        assert_eq!(liveness.majority_heard(peers.iter(), 4, at(50)), None);
        assert_eq!(liveness.majority_heard(peers.iter(), 0, at(50)), Some(at(50)));
    }

    #[test]
    fn member_with_reduced_heartbeat_may_be_silent_longer() {
        let mut liveness = Liveness::default();
        liveness.heard(&id("a"), Duration::from_millis(1000), at(0));
        assert_eq!(liveness.sweep(at(2399)), []);
        assert_eq!(liveness.sweep(at(2400)), [id("a")]);
    }
}
