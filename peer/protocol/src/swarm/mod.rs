//! Download of one version from all its providers at once: which groups to request from which provider, and when to
//! drop a provider.
//!
//! Pure: no I/O, no clock, no global randomness. [`Swarm::handle`] takes the time and an event and returns actions; the
//! shell (`download` of the crate `peer`) opens a bulk stream for each [`Action::Request`] and reports groups as they
//! are verified. The same seed and the same events give the same actions.
//!
//! | module | content |
//! |---|---|
//! | [`event`] | input and output |
//! | [`params`] | parameters |
//! | `piece` | pieces and their states, with a table |
//! | `have` | pieces and groups of one peer |
//! | `provider` | one provider: groups, requests, state, with a table |
//! | `rate` | a provider's measured rate |
//! | `picker` | choice of the next piece: rarest first |
//! | `assign` | new requests |
//! | `rebalance` | work that moves from slow providers to idle ones, and the endgame |
//! | `membership` | providers that join, gain groups, leave or are dropped |
//! | `requests` | verified groups, truncation, cancellation |
//! | `failure` | failed requests, silence, the timer |
//!
//! `docs/swarm.md` states the rules.

mod assign;
pub mod event;
mod failure;
mod have;
mod membership;
pub mod params;
mod picker;
mod piece;
mod provider;
mod rate;
mod rebalance;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shared::{group_ranges::GroupRanges, time::Timestamp};

pub use event::{Action, Dropped, Event, Failure, Has, ProviderId, RequestId};

use have::Have;
use piece::{Layout, PieceState, Pieces, Rank};
use provider::Provider;

/// Properties of one download.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Size of the version, bytes.
    pub size: u64,
    /// Groups that an earlier run verified and stored.
    pub have: GroupRanges,
    /// True if other receivers of the version may appear at any time. Requests to a single provider then start short.
    pub expects_receivers: bool,
    /// Seed of the choices that should differ between peers.
    pub seed: u64,
}

/// Scheduler of the download of one version.
#[derive(Debug)]
pub struct Swarm {
    layout: Layout,
    pieces: Pieces,
    have: Have,
    providers: BTreeMap<ProviderId, Provider>,
    /// Providers that must never be used again.
    sent_corrupt_data: BTreeSet<ProviderId>,
    expects_receivers: bool,
    rank: Rank,
    rng: fastrand::Rng,
    last_serial: u64,
    phase: Phase,
    bytes_proven: u64,
    /// Not later than the end of any silence, wait or suspension.
    timer: Option<Timestamp>,
    refill: Refill,
    /// Number of providers with requests in flight.
    active: usize,
    /// A provider got no request because too many others are active.
    has_skipped: bool,
    /// Pieces became missing again: exhausted providers may have some of them.
    has_released: bool,
    /// Some provider has nothing to request, now or at all, and may take over work of another one.
    must_rebalance: bool,
    /// Earliest time of the next rebalancing.
    rebalance_from: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A request is in flight, or will be when a provider's wait is over.
    Running,
    /// No provider has any of what is missing.
    Stuck,
    /// All groups are verified.
    Finished,
}

/// Providers that may be able to take requests after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refill {
    None,
    One(ProviderId),
    All,
}

impl Swarm {
    /// A swarm without providers. If nothing is missing, the first [`Swarm::handle`] returns [`Action::Finished`].
    pub fn new(config: SwarmConfig, now: Timestamp) -> Self {
        let layout = Layout::new(config.size);
        let mut pieces = Pieces::new(&layout);
        let mut have = Have::new(layout, usize::MAX);
        let mut bytes_proven = 0;
        for groups in config.have.iter() {
            bytes_proven += have.insert(groups, |piece| {
                pieces.complete(piece);
            });
        }
        Self {
            layout,
            pieces,
            have,
            providers: BTreeMap::new(),
            sent_corrupt_data: BTreeSet::new(),
            expects_receivers: config.expects_receivers,
            rank: Rank::SINGLE,
            rng: fastrand::Rng::with_seed(config.seed),
            last_serial: 0,
            phase: Phase::Running,
            bytes_proven,
            timer: None,
            refill: Refill::All,
            active: 0,
            has_skipped: false,
            has_released: false,
            must_rebalance: false,
            rebalance_from: now,
        }
    }

    /// Adds a provider without requesting anything from it yet. The next [`Swarm::handle`] divides the work among all
    /// providers that were introduced before.
    pub fn introduce(
        &mut self,
        now: Timestamp,
        provider: ProviderId,
        has: &Has,
        rtt: Option<Duration>,
        out: &mut Vec<Action>,
    ) {
        if self.phase != Phase::Finished {
            self.on_added(now, provider, has, rtt, out);
        }
    }

    /// Processes an event that happened at `now` and appends the resulting actions, in order.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        if self.phase == Phase::Finished {
            return;
        }
        self.extend_deadlines_after_stall(now);
        self.dispatch(now, event, out);
        if self.timer.is_some_and(|due| due <= now) {
            self.run_timers(now, out);
        }
        if self.pieces.is_finished() {
            self.finish(out);
            return;
        }
        if std::mem::take(&mut self.has_released) {
            self.refill_all();
        }
        if self.must_rebalance && self.rebalance_from <= now {
            self.refill_reserving();
        }
        self.assign(now, out);
        if self.must_rebalance && self.rebalance_from <= now {
            self.rebalance(now, out);
        }
        self.detect_stuck(out);
    }

    /// Time at which [`Event::Tick`] is due at the latest. An additional tick is harmless.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let is_running = self.phase == Phase::Running;
        self.timer.into_iter().chain((self.must_rebalance && is_running).then_some(self.rebalance_from)).min()
    }

    /// Bytes that are verified, including those of earlier runs.
    pub fn bytes_proven(&self) -> u64 {
        self.bytes_proven
    }

    fn dispatch(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::ProviderAdded { provider, has, rtt } => self.on_added(now, provider, &has, rtt, out),
            Event::ProviderGained { provider, gained } => self.on_gained(provider, &gained, out),
            Event::ProviderLost { provider } => {
                self.remove_provider(provider);
            }
            Event::Ranked { rank, receivers } => self.rank = Rank::new(rank, receivers),
            Event::Activity { provider, rtt } => {
                if let Some(known) = self.providers.get_mut(&provider) {
                    known.on_activity(now, rtt);
                    self.refill(provider);
                }
            }
            Event::RequestStarted { request } => self.on_started(now, request),
            Event::Verified { request, groups } => self.on_verified(now, request, groups, out),
            // A request that delivered all its groups is unknown by now: any other stream ended too early.
            Event::RequestDone { request } => self.on_failed(now, request, Failure::Broken, out),
            Event::RequestFailed { request, why } => self.on_failed(now, request, why, out),
            Event::Tick => {}
        }
    }

    fn refill(&mut self, provider: ProviderId) {
        self.refill = match self.refill {
            Refill::None => Refill::One(provider),
            Refill::One(other) if other == provider => Refill::One(provider),
            Refill::One(_) | Refill::All => Refill::All,
        };
    }

    /// Includes the providers that were exhausted.
    fn refill_all(&mut self) {
        self.providers.values_mut().for_each(|provider| provider.exhausted = false);
        self.refill = Refill::All;
    }

    /// Includes the providers whose pieces were reserved for other receivers: those receivers may have fetched them by
    /// now, or may never fetch them.
    fn refill_reserving(&mut self) {
        let providers = self.providers.iter_mut();
        let reserving: Vec<_> = providers
            .filter_map(|(&id, provider)| std::mem::take(&mut provider.reserved_for_others).then_some(id))
            .collect();
        reserving.into_iter().for_each(|id| self.refill(id));
    }

    fn finish(&mut self, out: &mut Vec<Action>) {
        let providers: Vec<_> = self.providers.keys().copied().collect();
        for provider in providers {
            self.cancel_all(provider, out);
        }
        self.phase = Phase::Finished;
        self.timer = None;
        out.push(Action::Finished);
    }

    fn detect_stuck(&mut self, out: &mut Vec<Action>) {
        let was_stuck = self.phase == Phase::Stuck;
        let is_stuck = self.active == 0 && !self.is_missing_available();
        self.phase = if is_stuck { Phase::Stuck } else { Phase::Running };
        if is_stuck && !was_stuck {
            out.push(Action::Stuck);
        }
    }

    /// True if a provider, waiting or not, has any group that is missing.
    fn is_missing_available(&self) -> bool {
        let mut missing = (0..self.pieces.count()).filter(|&piece| self.pieces.state(piece) == PieceState::Missing);
        let has_part = |provider: &Provider, piece| {
            let mut groups = self.layout.groups_of(piece);
            groups.any(|group| provider.has_group(group) && !self.have.has_group(group))
        };
        missing.any(|piece| self.pieces.providers(piece) > 0)
            || self.providers.values().any(|provider| provider.begun().any(|piece| has_part(provider, piece)))
    }
}

#[cfg(test)]
mod tests;
