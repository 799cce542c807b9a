//! What is known of one owner.

use std::{collections::BTreeSet, time::Duration};

use shared::{
    time::Timestamp,
};
use crate::provider_health::MAX_PROVIDER_BACKOFF;
use crate::provider_health::PROVIDER_BACKOFF;
use crate::provider_health::PROVIDER_SILENCE;

use super::{Pack, Why};

/// An owner, numbered by its place.
#[derive(Debug)]
pub(crate) struct Owner {
    /// Classes with items that wait and that it has: number of their owners, class.
    pub(crate) classes: BTreeSet<(usize, usize)>,
    /// Packs under way.
    pub(crate) packs: usize,
    /// Cost delivered in a second, once a pack has come.
    pub(crate) rate: Option<f64>,
    /// When it last gave a sign of life, or was asked while nothing was under way.
    pub(crate) heard: Timestamp,
    /// Why it is not asked any more.
    pub(crate) dropped: Option<Why>,
    /// Failures, and times it was busy, since it delivered last.
    failures: u32,
    busy: u32,
    waiting_until: Option<Timestamp>,
    /// Since when its sending can only have been for the pack that is first in line.
    free_since: Timestamp,
    rng: fastrand::Rng,
}

impl Owner {
    pub(crate) fn new(rng: fastrand::Rng) -> Self {
        Self {
            classes: BTreeSet::new(),
            packs: 0,
            rate: None,
            heard: Timestamp::ZERO,
            dropped: None,
            failures: 0,
            busy: 0,
            waiting_until: None,
            free_since: Timestamp::ZERO,
            rng,
        }
    }

    pub(crate) fn may_be_asked(&self, now: Timestamp) -> bool {
        self.dropped.is_none() && self.waiting_until.is_none_or(|until| until <= now)
    }

    pub(crate) fn asked(&mut self, now: Timestamp) {
        if self.packs == 0 {
            self.heard = now;
            self.free_since = now;
        }
        self.packs += 1;
        self.waiting_until = None;
    }

    pub(crate) fn delivered(&mut self, now: Timestamp) {
        self.heard = now;
        self.failures = 0;
        self.busy = 0;
    }

    /// A pack of which `cost` came is over.
    pub(crate) fn finished_pack(&mut self, now: Timestamp, since: Timestamp, cost: u64) {
        self.packs -= 1;
        self.heard = now;
        let begun = since.max(self.free_since);
        self.free_since = now;
        let seconds = now.since(begun).as_secs_f64();
        if cost > 0 && seconds > 0.0 {
            let rate = cost as f64 / seconds;
            // The newest counts half: enough to follow, not so much that one pack decides.
            self.rate = Some(self.rate.map_or(rate, |before| (before + rate) / 2.0));
        }
    }

    /// A failure; how many there were in a row. Several packs that fail together are one.
    pub(crate) fn failed(&mut self, now: Timestamp) -> u32 {
        if self.waiting_until.is_none_or(|until| until <= now) {
            self.failures += 1;
            self.back_off(now, self.failures);
        }
        self.failures
    }

    /// It has no slot free: no failure, but it is left alone for a while.
    pub(crate) fn busy(&mut self, now: Timestamp) {
        if self.waiting_until.is_none_or(|until| until <= now) {
            self.busy = self.busy.saturating_add(1);
            self.back_off(now, self.busy);
        }
    }

    fn back_off(&mut self, now: Timestamp, times: u32) {
        let doublings = times.saturating_sub(1).min(16);
        let backoff = PROVIDER_BACKOFF.saturating_mul(1 << doublings).min(MAX_PROVIDER_BACKOFF);
        // Many askers must not come back all at once.
        self.waiting_until = Some(now + backoff / 2 + (backoff / 2).mul_f64(self.rng.f64()));
    }

    pub(crate) fn is_silent(&self, now: Timestamp) -> bool {
        self.packs > 0 && now >= self.heard + PROVIDER_SILENCE
    }

    /// When something is to be done about it.
    pub(crate) fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        if self.dropped.is_some() {
            return None;
        }
        let silence = (self.packs > 0).then(|| self.heard + PROVIDER_SILENCE);
        // A wait that is over has been seen: there was nothing to ask it for.
        silence.into_iter().chain(self.waiting_until.filter(|until| *until > now)).min()
    }

    /// How long what is left of a pack should take it.
    pub(crate) fn time_for(&self, now: Timestamp, pack: &Pack) -> Duration {
        let under_way = now.since(pack.since.max(self.free_since));
        let seconds = under_way.as_secs_f64();
        let rate = if pack.came_cost > 0 && seconds > 0.0 { Some(pack.came_cost as f64 / seconds) } else { self.rate };
        match rate {
            // What it has shown so far; but a pack that brings nothing for long is slow whatever was before.
            Some(rate) => {
                let time = Duration::try_from_secs_f64(pack.left_cost as f64 / rate).unwrap_or(Duration::MAX);
                time.max(now.since(self.heard))
            }
            None => under_way,
        }
    }
}
