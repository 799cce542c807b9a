//! Download of many small files: which to request from which provider, in which pack. Pure, like
//! [`swarm`](crate::swarm).
//!
//! An *item* is a wanted content. It is requested from a provider in a *pack* with others, and ends delivered or
//! failed:
//!
//! | state of an item | next state |
//! |---|---|
//! | waiting | in flight: requested in a pack; ended (failed): its last provider was dropped |
//! | in flight, in one pack or two | ended (delivered): it was verified; waiting: the last pack ended or refused it |
//! | ended | none |
//!
//! An item that would wait and has no provider left ends as failed.
//!
//! All providers work at once, each on at most [`PACKS_PER_PROVIDER`](params::PACKS_PER_PROVIDER) packs. Packs shrink
//! towards the end, by the providers' measured rates, so that all finish together. An idle provider then duplicates the
//! rear half of a pack that will take a while. Items that few providers have are requested first.
//!
//! | module | content |
//! |---|---|
//! | [`event`] | input and output |
//! | [`params`] | parameters |
//! | `items` | items and their states, grouped by their providers |
//! | `provider` | one provider, with a table of its states |
//! | `assign` | new packs |

mod assign;
pub mod event;
mod items;
mod pack;
pub mod params;
mod provider;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use shared::time::Timestamp;

pub use crate::swarm::ProviderId;
use crate::{provider_health::MAX_PROVIDER_FAILURES, swarm::params::BALANCE_INTERVAL};
pub use event::{Action, Event, ItemId, PackFailure, PackId, Wanted};
use items::{ItemState, Items};
use pack::Pack;
use provider::Provider;

/// Scheduler of one download of small files.
#[derive(Debug)]
pub struct Packs {
    items: Items,
    providers: Vec<Provider>,
    packs: BTreeMap<PackId, Pack>,
    refusals: BTreeMap<ItemId, Vec<ProviderId>>,
    last_number: u64,
    /// A provider may have capacity, or an item waits, since packs were last assigned.
    must_assign: bool,
    /// A provider was dropped (or no event has come yet, and items may have no provider).
    may_have_orphans: bool,
    /// Time at which slow packs are considered for duplication.
    rebalance_at: Option<Timestamp>,
    is_finished: bool,
}

impl Packs {
    /// A download of `wanted` from `providers` providers, numbered from 0. Starts with the first [`Event::Tick`].
    pub fn new(wanted: Vec<Wanted>, providers: u32, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut providers: Vec<_> = (0..providers).map(|_| Provider::new(rng.fork())).collect();
        let mut items = Items::with_capacity(wanted.len());
        for Wanted { size, providers: mut available_from } in wanted {
            available_from.retain(|provider| (provider.0 as usize) < providers.len());
            items.push(size, available_from, &mut providers);
        }
        Self {
            items,
            providers,
            packs: BTreeMap::new(),
            refusals: BTreeMap::new(),
            last_number: 0,
            must_assign: true,
            may_have_orphans: true,
            rebalance_at: None,
            is_finished: false,
        }
    }

    /// Processes an event that happened at `now` and appends the resulting actions, in order.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        self.dispatch(now, event, out);
        if std::mem::take(&mut self.may_have_orphans) {
            for item in self.items.orphans(&self.providers) {
                self.fail_if_orphan(item, out);
            }
        }
        // Most events are deliveries, which change nothing for other providers.
        let is_rebalance_due = self.rebalance_at.is_some_and(|at| at <= now);
        if std::mem::take(&mut self.must_assign) || event == Event::Tick || is_rebalance_due {
            self.assign(now, out);
            let may_rebalance = !self.packs.is_empty() && self.providers.iter().any(|provider| provider.is_idle(now));
            self.rebalance_at = may_rebalance.then(|| now + BALANCE_INTERVAL);
        }
        if self.items.open() == 0 && !self.is_finished {
            self.is_finished = true;
            let in_flight: Vec<_> = self.packs.keys().copied().collect();
            out.extend(in_flight.into_iter().map(Action::Cancel));
            self.packs.clear();
            out.push(Action::Finished);
        }
    }

    /// Time at which [`Event::Tick`] is due, as of `now`.
    pub fn next_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        if self.is_finished {
            return None;
        }
        self.providers.iter().filter_map(|provider| provider.deadline(now)).chain(self.rebalance_at).min()
    }

    fn dispatch(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Delivered(pack, item) => self.on_delivered(now, pack, item, out),
            Event::Refused(pack, item) => self.on_refused(now, pack, item, out),
            // An item that is left out without a refusal is a failure.
            Event::Done(pack) => match self.packs.get(&pack).map(|pack| pack.left.is_empty()) {
                Some(true) => self.complete(now, pack),
                Some(false) => self.on_failed(now, pack, PackFailure::Broken, out),
                None => {}
            },
            Event::Failed(pack, why) => self.on_failed(now, pack, why, out),
            Event::Activity(provider) => {
                if let Some(provider) = self.providers.get_mut(provider.0 as usize) {
                    provider.on_activity(now);
                }
            }
            Event::Tick => self.fail_silent(now, out),
        }
    }

    fn on_delivered(&mut self, now: Timestamp, pack: PackId, item: ItemId, out: &mut Vec<Action>) {
        let Some(found) = self.items.get(item) else { return };
        let cost = found.cost();
        match found.state {
            ItemState::Ended => return,
            ItemState::Waiting => self.items.dequeue(item, &mut self.providers),
            ItemState::InFlight(first, second) => {
                for requested in [Some(first), second].into_iter().flatten() {
                    self.take_from_pack(now, requested, item, cost, requested == pack, out);
                }
            }
        }
        self.items.end(item);
        if let Some(provider) = self.providers.get_mut(pack.provider.0 as usize) {
            provider.on_delivery(now);
        }
    }

    /// Takes a delivered item out of a pack that requested it. A pack that has nothing left and did not deliver the
    /// item itself is cancelled.
    fn take_from_pack(
        &mut self,
        now: Timestamp,
        id: PackId,
        item: ItemId,
        cost: u64,
        has_delivered: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(pack) = self.packs.get_mut(&id) else { return };
        if !pack.left.remove(&item) {
            return;
        }
        pack.left_cost -= cost;
        if has_delivered {
            pack.came_cost += cost;
        } else if pack.left.is_empty() {
            out.push(Action::Cancel(id));
            self.complete(now, id);
        }
    }

    fn on_refused(&mut self, now: Timestamp, pack: PackId, item: ItemId, out: &mut Vec<Action>) {
        let Some(requested) = self.packs.get_mut(&pack) else { return };
        if !requested.left.remove(&item) {
            return;
        }
        requested.left_cost -= self.items.cost(item);
        self.providers[pack.provider.0 as usize].on_activity(now);
        self.refusals.entry(item).or_default().push(pack.provider);
        self.items.remove_provider(item, pack.provider);
        self.release(item, pack, out);
    }

    /// Ends a pack that did not deliver all its items.
    fn on_failed(&mut self, now: Timestamp, pack: PackId, why: PackFailure, out: &mut Vec<Action>) {
        if !self.packs.contains_key(&pack) {
            return;
        }
        self.abandon(pack, out);
        let provider = &mut self.providers[pack.provider.0 as usize];
        if provider.dropped.is_some() {
            return;
        }
        match why {
            PackFailure::Busy => provider.on_refusal(now),
            PackFailure::SentCorruptData => self.drop_provider(pack.provider, why, out),
            PackFailure::Silent | PackFailure::Broken | PackFailure::Refused => {
                if provider.on_failure(now) >= MAX_PROVIDER_FAILURES {
                    self.drop_provider(pack.provider, why, out);
                }
            }
        }
    }

    /// Cancels the packs of silent providers.
    fn fail_silent(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        for number in 0..self.providers.len() {
            if !self.providers[number].is_silent(now) {
                continue;
            }
            let packs: Vec<_> = self.packs_of(provider_id(number)).collect();
            for pack in packs {
                // The first one may have dropped the provider with all its packs.
                if self.packs.contains_key(&pack) {
                    out.push(Action::Cancel(pack));
                    self.on_failed(now, pack, PackFailure::Silent, out);
                }
            }
        }
    }

    fn drop_provider(&mut self, provider: ProviderId, why: PackFailure, out: &mut Vec<Action>) {
        self.providers[provider.0 as usize].dropped = Some(why);
        self.may_have_orphans = true;
        out.push(Action::Drop(provider, why));
        let packs: Vec<_> = self.packs_of(provider).collect();
        for pack in packs {
            out.push(Action::Cancel(pack));
            self.abandon(pack, out);
        }
    }

    /// Removes a pack and releases the items that it did not deliver.
    fn abandon(&mut self, pack: PackId, out: &mut Vec<Action>) {
        let Some(Pack { left, .. }) = self.packs.remove(&pack) else { return };
        self.providers[pack.provider.0 as usize].packs -= 1;
        self.must_assign = true;
        for item in left {
            self.release(item, pack, out);
        }
    }

    /// Removes a pack of which nothing is left.
    fn complete(&mut self, now: Timestamp, pack: PackId) {
        if let Some(Pack { came_cost, since, .. }) = self.packs.remove(&pack) {
            self.providers[pack.provider.0 as usize].on_pack_done(now, since, came_cost);
            self.must_assign = true;
        }
    }

    /// Records that an item does not arrive in `pack`.
    fn release(&mut self, item: ItemId, pack: PackId, out: &mut Vec<Action>) {
        let ItemState::InFlight(first, second) = self.items.state(item) else { return };
        let other = if first == pack { second } else { Some(first) };
        match other {
            Some(other) => self.items.set_state(item, ItemState::InFlight(other, None)),
            None => {
                self.items.enqueue(item, &mut self.providers);
                self.must_assign = true;
                self.fail_if_orphan(item, out);
            }
        }
    }

    /// Fails a waiting item whose providers have all refused it or been dropped.
    fn fail_if_orphan(&mut self, item: ItemId, out: &mut Vec<Action>) {
        if self.items.is_available(item, &self.providers) {
            return;
        }
        self.items.dequeue(item, &mut self.providers);
        self.items.end(item);
        let refused = self.refusals.remove(&item).unwrap_or_default().into_iter();
        let refused = refused.map(|provider| (provider, PackFailure::Refused));
        let dropped = self.items.providers(item).iter().filter_map(|provider| {
            let why = self.providers[provider.0 as usize].dropped?;
            Some((*provider, why))
        });
        out.push(Action::Failed(item, refused.chain(dropped).collect()));
    }

    fn packs_of(&self, provider: ProviderId) -> impl Iterator<Item = PackId> {
        let all = PackId { provider, number: 0 }..=PackId { provider, number: u64::MAX };
        self.packs.range(all).map(|(pack, _)| *pack)
    }
}

fn provider_id(number: usize) -> ProviderId {
    ProviderId(u32::try_from(number).expect("providers are numbered by u32"))
}
