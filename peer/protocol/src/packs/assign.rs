//! New packs: which items to request from which provider.

use std::collections::BTreeSet;

use shared::{
    limits::{MAX_PACK_BYTES, MAX_PACK_CONTENTS},
    time::Timestamp,
};

use super::{
    Pack, Packs,
    event::{Action, ItemId, PackId},
    items::ItemState,
    params::{MIN_PACK_COST, PACK_DUPLICATE_AFTER, PACKS_PER_PROVIDER},
    provider_id,
};
use crate::swarm::{ProviderId, params::MAX_ACTIVE_PROVIDERS};

impl Packs {
    /// Gives packs to all providers that have capacity: first to those with none, then a second one to each.
    pub(super) fn assign(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let mut active = self.providers.iter().filter(|provider| provider.packs > 0).count();
        for depth in 0..PACKS_PER_PROVIDER {
            for number in 0..self.providers.len() {
                let provider = &self.providers[number];
                let is_idle = provider.packs == 0;
                let has_capacity = provider.packs == depth && provider.is_ready(now);
                if !has_capacity || (is_idle && active >= MAX_ACTIVE_PROVIDERS) {
                    continue;
                }
                let provider = provider_id(number);
                let mut items = self.next_items(provider, now);
                if items.is_empty() && is_idle {
                    items = self.duplicates(provider, now);
                }
                if !items.is_empty() {
                    active += usize::from(is_idle);
                    self.request(now, provider, items, out);
                }
            }
        }
    }

    /// Takes the waiting items of the next pack of a provider; those that few providers have come first.
    fn next_items(&mut self, provider: ProviderId, now: Timestamp) -> BTreeSet<ItemId> {
        let limit = self.pack_cost(provider, now);
        let (mut items, mut bytes, mut cost) = (BTreeSet::new(), 0, 0);
        'full: while let Some((_, class)) = self.providers[provider.0 as usize].classes.first().copied() {
            while let Some((id, item)) = self.items.first_waiting(class).and_then(|id| Some((id, self.items.get(id)?)))
            {
                let is_over = bytes + item.size > MAX_PACK_BYTES || cost >= limit;
                if items.len() >= MAX_PACK_CONTENTS || (is_over && !items.is_empty()) {
                    break 'full;
                }
                bytes += item.size;
                cost += item.cost();
                self.items.dequeue(id, &mut self.providers);
                items.insert(id);
            }
        }
        items
    }

    /// Maximum cost of the next pack of a provider: half of its share, by rate, of what waits.
    fn pack_cost(&self, provider: ProviderId, now: Timestamp) -> u64 {
        let live = || self.providers.iter().filter(|provider| provider.is_ready(now) || provider.packs > 0);
        if live().count() <= 1 {
            return u64::MAX;
        }
        let known: Vec<f64> = live().filter_map(|provider| provider.rate).collect();
        let mean = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        let all: f64 = live().map(|provider| provider.rate.unwrap_or(mean)).sum();
        let share = self.providers[provider.0 as usize].rate.unwrap_or(mean) / all.max(f64::MIN_POSITIVE);
        ((self.items.waiting_cost() as f64 * share / 2.0) as u64).max(MIN_PACK_COST)
    }

    /// Rear half of the pack that will take longest, for an idle provider.
    fn duplicates(&self, provider: ProviderId, now: Timestamp) -> BTreeSet<ItemId> {
        let may_duplicate = |item: &&ItemId| {
            matches!(self.items.state(**item), ItemState::InFlight(_, None))
                && self.items.providers(**item).contains(&provider)
        };
        let slowest = self
            .packs
            .iter()
            .filter(|(id, pack)| id.provider != provider && pack.left.iter().any(|item| may_duplicate(&item)))
            .map(|(id, pack)| (self.providers[id.provider.0 as usize].time_for(now, pack), pack))
            .max_by_key(|(time, _)| *time);
        let Some((time, pack)) = slowest else { return BTreeSet::new() };
        if time < PACK_DUPLICATE_AFTER {
            return BTreeSet::new();
        }
        let half = pack.left.len().div_ceil(2);
        pack.left.iter().rev().take(half).filter(may_duplicate).copied().collect()
    }

    fn request(&mut self, now: Timestamp, provider: ProviderId, items: BTreeSet<ItemId>, out: &mut Vec<Action>) {
        self.last_number += 1;
        let pack = PackId { provider, number: self.last_number };
        for item in &items {
            let state = match self.items.state(*item) {
                ItemState::InFlight(first, _) => ItemState::InFlight(first, Some(pack)),
                ItemState::Waiting | ItemState::Ended => ItemState::InFlight(pack, None),
            };
            self.items.set_state(*item, state);
        }
        let left_cost = items.iter().map(|item| self.items.cost(*item)).sum();
        out.push(Action::Request(pack, items.iter().copied().collect()));
        self.packs.insert(pack, Pack { left: items, left_cost, came_cost: 0, since: now });
        self.providers[provider.0 as usize].on_request(now);
    }
}
