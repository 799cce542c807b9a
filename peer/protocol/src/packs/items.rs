//! Wanted items, grouped by the providers that have them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    event::{ItemId, PackId},
    params::PACK_ITEM_COST,
    provider::Provider,
};
use crate::swarm::ProviderId;

/// A wanted content.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) size: u64,
    /// Number of its class in [`Items`].
    pub(super) class: usize,
    pub(super) state: ItemState,
}

impl Item {
    /// Bytes, and what an item costs besides them.
    pub(super) fn cost(&self) -> u64 {
        self.size + PACK_ITEM_COST
    }
}

/// State of an item; see the table of the module [`packs`](super).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ItemState {
    Waiting,
    InFlight(PackId, Option<PackId>),
    Ended,
}

/// Items that may still be requested from the same providers.
#[derive(Debug)]
struct Class {
    providers: BTreeSet<ProviderId>,
    waiting: BTreeSet<ItemId>,
}

/// All items. Those with the same providers, which are most, form a class.
#[derive(Debug)]
pub(super) struct Items {
    items: Vec<Item>,
    classes: Vec<Class>,
    class_of: BTreeMap<BTreeSet<ProviderId>, usize>,
    /// Cost of the waiting items.
    waiting_cost: u64,
    /// Number of items that are waiting or in flight.
    open: usize,
}

impl Items {
    pub(super) fn with_capacity(items: usize) -> Self {
        Self {
            items: Vec::with_capacity(items),
            classes: Vec::new(),
            class_of: BTreeMap::new(),
            waiting_cost: 0,
            open: 0,
        }
    }

    /// Adds a waiting item.
    pub(super) fn push(&mut self, size: u64, available_from: BTreeSet<ProviderId>, providers: &mut [Provider]) {
        let id = ItemId(u32::try_from(self.items.len()).expect("items are numbered by u32"));
        let class = self.class(available_from);
        self.items.push(Item { size, class, state: ItemState::Ended });
        self.open += 1;
        self.enqueue(id, providers);
    }

    pub(super) fn get(&self, item: ItemId) -> Option<&Item> {
        self.items.get(item.0 as usize)
    }

    pub(super) fn cost(&self, item: ItemId) -> u64 {
        self.items[item.0 as usize].cost()
    }

    pub(super) fn state(&self, item: ItemId) -> ItemState {
        self.items[item.0 as usize].state
    }

    pub(super) fn set_state(&mut self, item: ItemId, state: ItemState) {
        self.items[item.0 as usize].state = state;
    }

    /// Ends a waiting or in-flight item for good.
    pub(super) fn end(&mut self, item: ItemId) {
        self.set_state(item, ItemState::Ended);
        self.open -= 1;
    }

    pub(super) fn open(&self) -> usize {
        self.open
    }

    pub(super) fn waiting_cost(&self) -> u64 {
        self.waiting_cost
    }

    /// Providers from which the item may still be requested.
    pub(super) fn providers(&self, item: ItemId) -> &BTreeSet<ProviderId> {
        &self.classes[self.items[item.0 as usize].class].providers
    }

    /// The first waiting item of a class.
    pub(super) fn first_waiting(&self, class: usize) -> Option<ItemId> {
        self.classes[class].waiting.first().copied()
    }

    /// Waiting items of all classes that have no provider left.
    pub(super) fn orphans(&self, providers: &[Provider]) -> Vec<ItemId> {
        let orphaned = self.classes.iter().filter(|class| !has_provider(&class.providers, providers));
        orphaned.flat_map(|class| class.waiting.iter().copied()).collect()
    }

    /// True if a provider of the item is left.
    pub(super) fn is_available(&self, item: ItemId, providers: &[Provider]) -> bool {
        has_provider(self.providers(item), providers)
    }

    /// Removes a provider that refused the item.
    pub(super) fn remove_provider(&mut self, item: ItemId, provider: ProviderId) {
        let mut left = self.providers(item).clone();
        left.remove(&provider);
        self.items[item.0 as usize].class = self.class(left);
    }

    /// Makes an item wait.
    pub(super) fn enqueue(&mut self, item: ItemId, providers: &mut [Provider]) {
        let entry = &mut self.items[item.0 as usize];
        entry.state = ItemState::Waiting;
        self.waiting_cost += entry.cost();
        let number = entry.class;
        let class = &mut self.classes[number];
        if class.waiting.is_empty() {
            for provider in &class.providers {
                providers[provider.0 as usize].classes.insert((class.providers.len(), number));
            }
        }
        class.waiting.insert(item);
    }

    /// Takes an item out of the waiting ones. A no-op for an item that does not wait.
    pub(super) fn dequeue(&mut self, item: ItemId, providers: &mut [Provider]) {
        let entry = &self.items[item.0 as usize];
        let number = entry.class;
        let class = &mut self.classes[number];
        if class.waiting.remove(&item) {
            self.waiting_cost -= entry.cost();
            if class.waiting.is_empty() {
                for provider in &class.providers {
                    providers[provider.0 as usize].classes.remove(&(class.providers.len(), number));
                }
            }
        }
    }

    /// Number of the class of these providers.
    fn class(&mut self, providers: BTreeSet<ProviderId>) -> usize {
        if let Some(class) = self.class_of.get(&providers) {
            return *class;
        }
        self.class_of.insert(providers.clone(), self.classes.len());
        self.classes.push(Class { providers, waiting: BTreeSet::new() });
        self.classes.len() - 1
    }
}

fn has_provider(of: &BTreeSet<ProviderId>, providers: &[Provider]) -> bool {
    of.iter().any(|provider| providers[provider.0 as usize].dropped.is_none())
}
