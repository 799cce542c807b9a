//! Which small files are asked of whom, in which pack. Pure.
//!
//! An *item* is a content that is wanted; it is asked of an provider in a *pack* with others, and ends fetched or failed:
//!
//! | state of an item | leaves it by |
//! |---|---|
//! | waiting | a pack it is asked in: *asked*; its last provider dropped: *failed* |
//! | asked | its bytes, proven: *fetched*; a refusal, or the pack's end: *waiting*, or *failed* when nobody is left |
//! | fetched, failed | - |
//!
//! All providers are asked at once, each for at most two packs. Packs shrink towards the end, by the providers' measured rates,
//! so that all finish together; an provider with nothing left to do is then asked for the rear half of a pack that will take a while.
//! Items that few providers have go first.

pub mod params;
mod provider;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::packs::params::MIN_PACK_COST;
use crate::packs::params::PACK_DUPLICATE_AFTER;
use crate::packs::params::PACK_ITEM_COST;
use crate::packs::params::PACKS_PER_PROVIDER;
use crate::provider_health::MAX_PROVIDER_FAILURES;
use crate::swarm::params::BALANCE_INTERVAL;
use crate::swarm::params::MAX_ACTIVE_PROVIDERS;
use shared::{
    limits::{MAX_PACK_BYTES, MAX_PACK_CONTENTS},
    time::Timestamp,
};

pub use crate::swarm::ProviderId;
use provider::Provider;

/// A content that is wanted, by its place in the list that [`Packs::new`] was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(pub u32);

/// A pack under way. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackId {
    /// Who is asked.
    pub provider: ProviderId,
    /// Which of its packs.
    pub number: u64,
}

/// PackFailure an provider did not deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackFailure {
    /// It refused this item; another item may be had of it.
    Refused,
    /// It serves as many as it will; it is asked again later.
    Busy,
    /// It said nothing for too long.
    Silent,
    /// The stream or the connection failed.
    Broken,
    /// It sent bytes that are not the content's. It is never asked again.
    SentCorruptData,
}

/// What the shell tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An item came and was proven, whichever pack it came in and whatever became of that.
    Delivered(PackId, ItemId),
    /// The provider leaves this item of the pack out.
    Refused(PackId, ItemId),
    /// The pack came to its end.
    Done(PackId),
    /// It did not. Items of it that were not delivered are asked of others.
    Failed(PackId, PackFailure),
    /// The provider sent something, or could not because this peer did not take it.
    Activity(ProviderId),
    /// Time passed.
    Tick,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for these, in this order.
    Request(PackId, Vec<ItemId>),
    /// Nothing more is wanted of this pack, or it is given up; events of it are not waited for.
    Cancel(PackId),
    /// This provider is not asked any more.
    Drop(ProviderId, PackFailure),
    /// Nobody is left to ask for this item. What each of its providers did is told.
    Failed(ItemId, Vec<(ProviderId, PackFailure)>),
    /// Every item was delivered or has failed.
    Finished,
}

/// A wanted content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes; at most `limits::MAX_PACKED_FILE_BYTES`.
    pub size: u64,
    /// Who has it.
    pub providers: BTreeSet<ProviderId>,
}

/// See the module.
#[derive(Debug)]
pub struct Packs {
    items: Vec<Item>,
    /// Items with the same providers, which most have, are kept together.
    classes: Vec<Class>,
    class_of: BTreeMap<BTreeSet<ProviderId>, usize>,
    providers: Vec<Provider>,
    packs: BTreeMap<PackId, Pack>,
    refusals: BTreeMap<ItemId, Vec<ProviderId>>,
    numbers: u64,
    /// Cost of the items that wait.
    waiting_cost: u64,
    open: usize,
    /// Whether somebody may have room who had none.
    room: bool,
    /// Whether an provider was dropped (or this is the start, where items may have none).
    orphans: bool,
    /// When to look whether slow packs are to be asked for twice.
    balance_at: Option<Timestamp>,
    finished: bool,
}

#[derive(Debug)]
struct Item {
    size: u64,
    class: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight(PackId, Option<PackId>),
    Ended,
}

/// Items that the same providers may still be asked for.
#[derive(Debug)]
struct Class {
    providers: BTreeSet<ProviderId>,
    waiting: BTreeSet<ItemId>,
}

#[derive(Debug)]
struct Pack {
    /// What is still to come, in the order in which it comes.
    left: BTreeSet<ItemId>,
    left_cost: u64,
    /// Cost of what came of it, and since when it can have been coming.
    came_cost: u64,
    since: Timestamp,
}

impl Item {
    fn cost(&self) -> u64 {
        self.size + PACK_ITEM_COST
    }
}

impl Packs {
    /// A download of `wanted` from `providers` providers, numbered from 0. Begins with the first [`Event::Tick`].
    pub fn new(wanted: Vec<Wanted>, providers: u32, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut packs = Self {
            items: Vec::with_capacity(wanted.len()),
            classes: Vec::new(),
            class_of: BTreeMap::new(),
            providers: (0..providers).map(|_| Provider::new(rng.fork())).collect(),
            packs: BTreeMap::new(),
            refusals: BTreeMap::new(),
            numbers: 0,
            waiting_cost: 0,
            open: wanted.len(),
            room: true,
            orphans: true,
            balance_at: None,
            finished: false,
        };
        for (number, Wanted { size, mut providers }) in (0..).zip(wanted) {
            providers.retain(|provider| (provider.0 as usize) < packs.providers.len());
            let class = packs.class(providers);
            packs.items.push(Item { size, class, state: State::Ended });
            packs.wait(ItemId(number));
        }
        packs
    }

    /// Takes an event in.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Delivered(pack, item) => self.delivered(now, pack, item, out),
            Event::Refused(pack, item) => self.refused(now, pack, item, out),
            // What it left out without a word it failed to send.
            Event::Done(pack) => match self.packs.get(&pack).map(|pack| pack.left.is_empty()) {
                Some(true) => self.close(now, pack),
                Some(false) => self.failed(now, pack, PackFailure::Broken, out),
                None => {}
            },
            Event::Failed(pack, why) => self.failed(now, pack, why, out),
            Event::Activity(provider) => {
                if let Some(provider) = self.providers.get_mut(provider.0 as usize) {
                    provider.heard = now;
                }
            }
            Event::Tick => self.silences(now, out),
        }
        if std::mem::take(&mut self.orphans) {
            self.fail_orphans(out);
        }
        // Most events are deliveries, which change nothing for anybody else.
        if std::mem::take(&mut self.room) || event == Event::Tick || self.balance_at.is_some_and(|at| at <= now) {
            self.assign(now, out);
            let idle = |provider: &Provider| provider.packs == 0 && provider.may_be_asked(now);
            let balance = !self.packs.is_empty() && self.providers.iter().any(idle);
            self.balance_at = balance.then(|| now + BALANCE_INTERVAL);
        }
        if self.open == 0 && !self.finished {
            self.finished = true;
            let under_way: Vec<_> = self.packs.keys().copied().collect();
            out.extend(under_way.into_iter().map(Action::Cancel));
            self.packs.clear();
            out.push(Action::Finished);
        }
    }

    /// When a tick is due, as seen at `now`.
    pub fn next_deadline(&self, now: Timestamp) -> Option<Timestamp> {
        if self.finished {
            return None;
        }
        self.providers.iter().filter_map(|provider| provider.deadline(now)).chain(self.balance_at).min()
    }

    fn delivered(&mut self, now: Timestamp, pack: PackId, item: ItemId, out: &mut Vec<Action>) {
        let Some(found) = self.items.get(item.0 as usize) else { return };
        let cost = found.cost();
        match found.state {
            State::Ended => return,
            State::Waiting => self.take(item),
            State::InFlight(first, second) => {
                for asked in [Some(first), second].into_iter().flatten() {
                    if let Some(asked_pack) = self.packs.get_mut(&asked)
                        && asked_pack.left.remove(&item)
                    {
                        asked_pack.left_cost -= cost;
                        asked_pack.came_cost += if asked == pack { cost } else { 0 };
                        if asked != pack && asked_pack.left.is_empty() {
                            out.push(Action::Cancel(asked));
                            self.close(now, asked);
                        }
                    }
                }
            }
        }
        self.items[item.0 as usize].state = State::Ended;
        self.open -= 1;
        if let Some(provider) = self.providers.get_mut(pack.provider.0 as usize) {
            provider.delivered(now);
        }
    }

    fn refused(&mut self, now: Timestamp, pack: PackId, item: ItemId, out: &mut Vec<Action>) {
        let Some(asked) = self.packs.get_mut(&pack) else { return };
        if !asked.left.remove(&item) {
            return;
        }
        asked.left_cost -= self.items[item.0 as usize].cost();
        self.providers[pack.provider.0 as usize].heard = now;
        self.refusals.entry(item).or_default().push(pack.provider);
        let mut providers = self.classes[self.items[item.0 as usize].class].providers.clone();
        providers.remove(&pack.provider);
        let class = self.class(providers);
        self.items[item.0 as usize].class = class;
        self.back(item, pack, out);
    }

    /// A pack is over without all of it having come.
    fn failed(&mut self, now: Timestamp, pack: PackId, why: PackFailure, out: &mut Vec<Action>) {
        if !self.packs.contains_key(&pack) {
            return;
        }
        self.give_up(pack, out);
        let provider = &mut self.providers[pack.provider.0 as usize];
        if provider.dropped.is_some() {
            return;
        }
        match why {
            PackFailure::Busy => provider.busy(now),
            PackFailure::SentCorruptData => self.drop_provider(pack.provider, why, out),
            PackFailure::Silent | PackFailure::Broken | PackFailure::Refused => {
                if provider.failed(now) >= MAX_PROVIDER_FAILURES {
                    self.drop_provider(pack.provider, why, out);
                }
            }
        }
    }

    /// Providers that say nothing lose all their work.
    fn silences(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        for number in 0..self.providers.len() {
            if !self.providers[number].is_silent(now) {
                continue;
            }
            let silent = ProviderId(u32::try_from(number).expect("providers are numbered by u32"));
            let packs: Vec<_> = self.packs_of(silent).collect();
            for pack in packs {
                // The first may have had the provider dropped, with all its packs.
                if self.packs.contains_key(&pack) {
                    out.push(Action::Cancel(pack));
                    self.failed(now, pack, PackFailure::Silent, out);
                }
            }
        }
    }

    fn drop_provider(&mut self, provider: ProviderId, why: PackFailure, out: &mut Vec<Action>) {
        self.providers[provider.0 as usize].dropped = Some(why);
        self.orphans = true;
        out.push(Action::Drop(provider, why));
        let packs: Vec<_> = self.packs_of(provider).collect();
        for pack in packs {
            out.push(Action::Cancel(pack));
            self.give_up(pack, out);
        }
    }

    /// Forgets a pack; what did not come of it waits again.
    fn give_up(&mut self, pack: PackId, out: &mut Vec<Action>) {
        let Some(Pack { left, .. }) = self.packs.remove(&pack) else { return };
        self.providers[pack.provider.0 as usize].packs -= 1;
        self.room = true;
        for item in left {
            self.back(item, pack, out);
        }
    }

    /// A pack of which all came that was wanted.
    fn close(&mut self, now: Timestamp, pack: PackId) {
        if let Some(Pack { came_cost, since, .. }) = self.packs.remove(&pack) {
            self.providers[pack.provider.0 as usize].finished_pack(now, since, came_cost);
            self.room = true;
        }
    }

    /// An item does not come in `pack`.
    fn back(&mut self, item: ItemId, pack: PackId, out: &mut Vec<Action>) {
        let State::InFlight(first, second) = self.items[item.0 as usize].state else { return };
        let other = if first == pack { second } else { Some(first) };
        match other {
            Some(other) => self.items[item.0 as usize].state = State::InFlight(other, None),
            None => {
                self.wait(item);
                self.fail_if_orphan(item, out);
            }
        }
    }

    fn class(&mut self, providers: BTreeSet<ProviderId>) -> usize {
        if let Some(class) = self.class_of.get(&providers) {
            return *class;
        }
        self.class_of.insert(providers.clone(), self.classes.len());
        self.classes.push(Class { providers, waiting: BTreeSet::new() });
        self.classes.len() - 1
    }

    fn wait(&mut self, item: ItemId) {
        let entry = &mut self.items[item.0 as usize];
        entry.state = State::Waiting;
        self.waiting_cost += entry.cost();
        self.room = true;
        let number = entry.class;
        let class = &mut self.classes[number];
        if class.waiting.is_empty() {
            for provider in &class.providers {
                self.providers[provider.0 as usize].classes.insert((class.providers.len(), number));
            }
        }
        class.waiting.insert(item);
    }

    /// Takes an item out of those that wait.
    fn take(&mut self, item: ItemId) {
        let entry = &self.items[item.0 as usize];
        let number = entry.class;
        let class = &mut self.classes[number];
        if class.waiting.remove(&item) {
            self.waiting_cost -= entry.cost();
            if class.waiting.is_empty() {
                for provider in &class.providers {
                    self.providers[provider.0 as usize].classes.remove(&(class.providers.len(), number));
                }
            }
        }
    }

    fn has_somebody(&self, class: usize) -> bool {
        self.classes[class].providers.iter().any(|provider| self.providers[provider.0 as usize].dropped.is_none())
    }

    /// Items whose providers have all been dropped.
    fn fail_orphans(&mut self, out: &mut Vec<Action>) {
        let orphans: Vec<_> = (0..self.classes.len())
            .filter(|class| !self.has_somebody(*class))
            .flat_map(|class| self.classes[class].waiting.iter().copied())
            .collect();
        for item in orphans {
            self.fail_if_orphan(item, out);
        }
    }

    fn fail_if_orphan(&mut self, item: ItemId, out: &mut Vec<Action>) {
        let class = self.items[item.0 as usize].class;
        if self.has_somebody(class) {
            return;
        }
        self.take(item);
        self.items[item.0 as usize].state = State::Ended;
        self.open -= 1;
        let refused = self
            .refusals
            .remove(&item)
            .unwrap_or_default()
            .into_iter()
            .map(|provider| (provider, PackFailure::Refused));
        let dropped = self.classes[class].providers.iter().filter_map(|provider| {
            let why = self.providers[provider.0 as usize].dropped?;
            Some((*provider, why))
        });
        out.push(Action::Failed(item, refused.chain(dropped).collect()));
    }

    fn packs_of(&self, provider: ProviderId) -> impl Iterator<Item = PackId> {
        let all = PackId { provider, number: 0 }..=PackId { provider, number: u64::MAX };
        self.packs.range(all).map(|(pack, _)| *pack)
    }

    /// Gives every provider that has room a pack: first those with none, then a second one each.
    fn assign(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let mut active = self.providers.iter().filter(|provider| provider.packs > 0).count();
        for depth in 0..PACKS_PER_PROVIDER {
            for number in 0..self.providers.len() {
                let provider = &self.providers[number];
                let idle = provider.packs == 0;
                if provider.packs != depth || !provider.may_be_asked(now) || (idle && active >= MAX_ACTIVE_PROVIDERS) {
                    continue;
                }
                let provider = ProviderId(u32::try_from(number).expect("providers are numbered by u32"));
                let mut items = self.next_items(provider, now);
                if items.is_empty() && idle {
                    items = self.duplicates(provider, now);
                }
                if !items.is_empty() {
                    active += usize::from(idle);
                    self.ask(now, provider, items, out);
                }
            }
        }
    }

    /// Items that wait, as many as this provider should be asked for at a time.
    fn next_items(&mut self, provider: ProviderId, now: Timestamp) -> BTreeSet<ItemId> {
        let limit = self.pack_cost(provider, now);
        let (mut items, mut bytes, mut cost) = (BTreeSet::new(), 0, 0);
        'full: while let Some((_, class)) = self.providers[provider.0 as usize].classes.first().copied() {
            while let Some(item) = self.classes[class].waiting.first().copied() {
                let entry = &self.items[item.0 as usize];
                let over = bytes + entry.size > MAX_PACK_BYTES || cost >= limit;
                if items.len() >= MAX_PACK_CONTENTS || (over && !items.is_empty()) {
                    break 'full;
                }
                bytes += entry.size;
                cost += entry.cost();
                self.take(item);
                items.insert(item);
            }
        }
        items
    }

    /// Cost of the next pack of this provider: half of what would be its part of what waits, by rate.
    fn pack_cost(&self, provider: ProviderId, now: Timestamp) -> u64 {
        let live = || self.providers.iter().filter(|provider| provider.may_be_asked(now) || provider.packs > 0);
        if live().count() <= 1 {
            return u64::MAX;
        }
        let known: Vec<f64> = live().filter_map(|provider| provider.rate).collect();
        let mean = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        let all: f64 = live().map(|provider| provider.rate.unwrap_or(mean)).sum();
        let part = self.providers[provider.0 as usize].rate.unwrap_or(mean) / all.max(f64::MIN_POSITIVE);
        ((self.waiting_cost as f64 * part / 2.0) as u64).max(MIN_PACK_COST)
    }

    /// For an provider with nothing to do: the rear half of the pack that will take longest.
    fn duplicates(&self, provider: ProviderId, now: Timestamp) -> BTreeSet<ItemId> {
        let once = |item: &&ItemId| {
            let item = &self.items[item.0 as usize];
            matches!(item.state, State::InFlight(_, None)) && self.classes[item.class].providers.contains(&provider)
        };
        let slowest = self
            .packs
            .iter()
            .filter(|(id, pack)| id.provider != provider && pack.left.iter().any(|item| once(&item)))
            .map(|(id, pack)| (self.providers[id.provider.0 as usize].time_for(now, pack), pack))
            .max_by_key(|(time, _)| *time);
        let Some((time, pack)) = slowest else { return BTreeSet::new() };
        if time < PACK_DUPLICATE_AFTER {
            return BTreeSet::new();
        }
        let half = pack.left.len().div_ceil(2);
        pack.left.iter().rev().take(half).filter(once).copied().collect()
    }

    fn ask(&mut self, now: Timestamp, provider: ProviderId, items: BTreeSet<ItemId>, out: &mut Vec<Action>) {
        self.numbers += 1;
        let pack = PackId { provider, number: self.numbers };
        for item in &items {
            let state = &mut self.items[item.0 as usize].state;
            *state = match *state {
                State::InFlight(first, _) => State::InFlight(first, Some(pack)),
                State::Waiting | State::Ended => State::InFlight(pack, None),
            };
        }
        let left_cost = items.iter().map(|item| self.items[item.0 as usize].cost()).sum();
        out.push(Action::Request(pack, items.iter().copied().collect()));
        self.packs.insert(pack, Pack { left: items, left_cost, came_cost: 0, since: now });
        self.providers[provider.0 as usize].asked(now);
    }
}
