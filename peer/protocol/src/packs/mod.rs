//! Which small files are asked of whom, in which pack. Pure.
//!
//! An *item* is a content that is wanted; it is asked of an owner in a *pack* with others, and ends fetched or failed:
//!
//! | state of an item | leaves it by |
//! |---|---|
//! | waiting | a pack it is asked in: *asked*; its last owner dropped: *failed* |
//! | asked | its bytes, proven: *fetched*; a refusal, or the pack's end: *waiting*, or *failed* when nobody is left |
//! | fetched, failed | - |
//!
//! All owners are asked at once, each for at most two packs. Packs shrink towards the end, by the owners' measured rates,
//! so that all finish together; an owner with nothing left to do is then asked for the rear half of a pack that will take a while.
//! Items that few owners have go first.

mod provider;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use shared::{
    limits::{MAX_PACK_BYTES, MAX_PACK_CONTENTS},
    time::Timestamp,
};
use crate::swarm::params::BALANCE_INTERVAL;
use crate::swarm::params::MAX_ACTIVE_PROVIDERS;
use crate::packs::params::MIN_PACK_COST;
use crate::provider_health::MAX_PROVIDER_FAILURES;
use crate::packs::params::PACK_DUPLICATE_AFTER;
use crate::packs::params::PACK_ITEM_COST;
use crate::packs::params::PACKS_PER_PROVIDER;

pub use crate::swarm::ProviderId;
use provider::Owner;

/// A content that is wanted, by its place in the list that [`Packs::new`] was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(pub u32);

/// A pack under way. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackId {
    /// Who is asked.
    pub owner: ProviderId,
    /// Which of its packs.
    pub number: u64,
}

/// Why an owner did not deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It refused this item; another item may be had of it.
    Refused,
    /// It serves as many as it will; it is asked again later.
    Busy,
    /// It said nothing for too long.
    Silent,
    /// The stream or the connection failed.
    Broken,
    /// It sent bytes that are not the content's. It is never asked again.
    Lied,
}

/// What the shell tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An item came and was proven, whichever pack it came in and whatever became of that.
    Delivered(PackId, ItemId),
    /// The owner leaves this item of the pack out.
    Refused(PackId, ItemId),
    /// The pack came to its end.
    Done(PackId),
    /// It did not. Items of it that were not delivered are asked of others.
    Failed(PackId, Why),
    /// The owner sent something, or could not because this peer did not take it.
    Heard(ProviderId),
    /// Time passed.
    Tick,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for these, in this order.
    Ask(PackId, Vec<ItemId>),
    /// Nothing more is wanted of this pack, or it is given up; events of it are not waited for.
    Cancel(PackId),
    /// This owner is not asked any more.
    Drop(ProviderId, Why),
    /// Nobody is left to ask for this item. What each of its owners did is told.
    Failed(ItemId, Vec<(ProviderId, Why)>),
    /// Every item was delivered or has failed.
    Finished,
}

/// A wanted content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes; at most `limits::MAX_PACKED_FILE_BYTES`.
    pub size: u64,
    /// Who has it.
    pub owners: BTreeSet<ProviderId>,
}

/// See the module.
#[derive(Debug)]
pub struct Packs {
    items: Vec<Item>,
    /// Items with the same owners, which most have, are kept together.
    classes: Vec<Class>,
    class_of: BTreeMap<BTreeSet<ProviderId>, usize>,
    owners: Vec<Owner>,
    packs: BTreeMap<PackId, Pack>,
    refusals: BTreeMap<ItemId, Vec<ProviderId>>,
    numbers: u64,
    /// Cost of the items that wait.
    waiting_cost: u64,
    open: usize,
    /// Whether somebody may have room who had none.
    room: bool,
    /// Whether an owner was dropped (or this is the start, where items may have none).
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
    Asked(PackId, Option<PackId>),
    Ended,
}

/// Items that the same owners may still be asked for.
#[derive(Debug)]
struct Class {
    owners: BTreeSet<ProviderId>,
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
    /// A download of `wanted` from `owners` owners, numbered from 0. Begins with the first [`Event::Tick`].
    pub fn new(wanted: Vec<Wanted>, owners: u32, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut packs = Self {
            items: Vec::with_capacity(wanted.len()),
            classes: Vec::new(),
            class_of: BTreeMap::new(),
            owners: (0..owners).map(|_| Owner::new(rng.fork())).collect(),
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
        for (number, Wanted { size, mut owners }) in (0..).zip(wanted) {
            owners.retain(|owner| (owner.0 as usize) < packs.owners.len());
            let class = packs.class(owners);
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
                Some(false) => self.failed(now, pack, Why::Broken, out),
                None => {}
            },
            Event::Failed(pack, why) => self.failed(now, pack, why, out),
            Event::Heard(owner) => {
                if let Some(owner) = self.owners.get_mut(owner.0 as usize) {
                    owner.heard = now;
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
            let idle = |owner: &Owner| owner.packs == 0 && owner.may_be_asked(now);
            let balance = !self.packs.is_empty() && self.owners.iter().any(idle);
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
        self.owners.iter().filter_map(|owner| owner.deadline(now)).chain(self.balance_at).min()
    }

    fn delivered(&mut self, now: Timestamp, pack: PackId, item: ItemId, out: &mut Vec<Action>) {
        let Some(found) = self.items.get(item.0 as usize) else { return };
        let cost = found.cost();
        match found.state {
            State::Ended => return,
            State::Waiting => self.take(item),
            State::Asked(first, second) => {
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
        if let Some(owner) = self.owners.get_mut(pack.owner.0 as usize) {
            owner.delivered(now);
        }
    }

    fn refused(&mut self, now: Timestamp, pack: PackId, item: ItemId, out: &mut Vec<Action>) {
        let Some(asked) = self.packs.get_mut(&pack) else { return };
        if !asked.left.remove(&item) {
            return;
        }
        asked.left_cost -= self.items[item.0 as usize].cost();
        self.owners[pack.owner.0 as usize].heard = now;
        self.refusals.entry(item).or_default().push(pack.owner);
        let mut owners = self.classes[self.items[item.0 as usize].class].owners.clone();
        owners.remove(&pack.owner);
        let class = self.class(owners);
        self.items[item.0 as usize].class = class;
        self.back(item, pack, out);
    }

    /// A pack is over without all of it having come.
    fn failed(&mut self, now: Timestamp, pack: PackId, why: Why, out: &mut Vec<Action>) {
        if !self.packs.contains_key(&pack) {
            return;
        }
        self.give_up(pack, out);
        let owner = &mut self.owners[pack.owner.0 as usize];
        if owner.dropped.is_some() {
            return;
        }
        match why {
            Why::Busy => owner.busy(now),
            Why::Lied => self.drop_owner(pack.owner, why, out),
            Why::Silent | Why::Broken | Why::Refused => {
                if owner.failed(now) >= MAX_PROVIDER_FAILURES {
                    self.drop_owner(pack.owner, why, out);
                }
            }
        }
    }

    /// Owners that say nothing lose all their work.
    fn silences(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        for number in 0..self.owners.len() {
            if !self.owners[number].is_silent(now) {
                continue;
            }
            let silent = ProviderId(u32::try_from(number).expect("owners are numbered by u32"));
            let packs: Vec<_> = self.packs_of(silent).collect();
            for pack in packs {
                // The first may have had the owner dropped, with all its packs.
                if self.packs.contains_key(&pack) {
                    out.push(Action::Cancel(pack));
                    self.failed(now, pack, Why::Silent, out);
                }
            }
        }
    }

    fn drop_owner(&mut self, owner: ProviderId, why: Why, out: &mut Vec<Action>) {
        self.owners[owner.0 as usize].dropped = Some(why);
        self.orphans = true;
        out.push(Action::Drop(owner, why));
        let packs: Vec<_> = self.packs_of(owner).collect();
        for pack in packs {
            out.push(Action::Cancel(pack));
            self.give_up(pack, out);
        }
    }

    /// Forgets a pack; what did not come of it waits again.
    fn give_up(&mut self, pack: PackId, out: &mut Vec<Action>) {
        let Some(Pack { left, .. }) = self.packs.remove(&pack) else { return };
        self.owners[pack.owner.0 as usize].packs -= 1;
        self.room = true;
        for item in left {
            self.back(item, pack, out);
        }
    }

    /// A pack of which all came that was wanted.
    fn close(&mut self, now: Timestamp, pack: PackId) {
        if let Some(Pack { came_cost, since, .. }) = self.packs.remove(&pack) {
            self.owners[pack.owner.0 as usize].finished_pack(now, since, came_cost);
            self.room = true;
        }
    }

    /// An item does not come in `pack`.
    fn back(&mut self, item: ItemId, pack: PackId, out: &mut Vec<Action>) {
        let State::Asked(first, second) = self.items[item.0 as usize].state else { return };
        let other = if first == pack { second } else { Some(first) };
        match other {
            Some(other) => self.items[item.0 as usize].state = State::Asked(other, None),
            None => {
                self.wait(item);
                self.fail_if_orphan(item, out);
            }
        }
    }

    fn class(&mut self, owners: BTreeSet<ProviderId>) -> usize {
        if let Some(class) = self.class_of.get(&owners) {
            return *class;
        }
        self.class_of.insert(owners.clone(), self.classes.len());
        self.classes.push(Class { owners, waiting: BTreeSet::new() });
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
            for owner in &class.owners {
                self.owners[owner.0 as usize].classes.insert((class.owners.len(), number));
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
                for owner in &class.owners {
                    self.owners[owner.0 as usize].classes.remove(&(class.owners.len(), number));
                }
            }
        }
    }

    fn has_somebody(&self, class: usize) -> bool {
        self.classes[class].owners.iter().any(|owner| self.owners[owner.0 as usize].dropped.is_none())
    }

    /// Items whose owners have all been dropped.
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
        let refused = self.refusals.remove(&item).unwrap_or_default().into_iter().map(|owner| (owner, Why::Refused));
        let dropped = self.classes[class].owners.iter().filter_map(|owner| {
            let why = self.owners[owner.0 as usize].dropped?;
            Some((*owner, why))
        });
        out.push(Action::Failed(item, refused.chain(dropped).collect()));
    }

    fn packs_of(&self, owner: ProviderId) -> impl Iterator<Item = PackId> {
        let all = PackId { owner, number: 0 }..=PackId { owner, number: u64::MAX };
        self.packs.range(all).map(|(pack, _)| *pack)
    }

    /// Gives every owner that has room a pack: first those with none, then a second one each.
    fn assign(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let mut active = self.owners.iter().filter(|owner| owner.packs > 0).count();
        for depth in 0..PACKS_PER_PROVIDER {
            for number in 0..self.owners.len() {
                let owner = &self.owners[number];
                let idle = owner.packs == 0;
                if owner.packs != depth || !owner.may_be_asked(now) || (idle && active >= MAX_ACTIVE_PROVIDERS) {
                    continue;
                }
                let owner = ProviderId(u32::try_from(number).expect("owners are numbered by u32"));
                let mut items = self.next_items(owner, now);
                if items.is_empty() && idle {
                    items = self.duplicates(owner, now);
                }
                if !items.is_empty() {
                    active += usize::from(idle);
                    self.ask(now, owner, items, out);
                }
            }
        }
    }

    /// Items that wait, as many as this owner should be asked for at a time.
    fn next_items(&mut self, owner: ProviderId, now: Timestamp) -> BTreeSet<ItemId> {
        let limit = self.pack_cost(owner, now);
        let (mut items, mut bytes, mut cost) = (BTreeSet::new(), 0, 0);
        'full: while let Some((_, class)) = self.owners[owner.0 as usize].classes.first().copied() {
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

    /// Cost of the next pack of this owner: half of what would be its part of what waits, by rate.
    fn pack_cost(&self, owner: ProviderId, now: Timestamp) -> u64 {
        let live = || self.owners.iter().filter(|owner| owner.may_be_asked(now) || owner.packs > 0);
        if live().count() <= 1 {
            return u64::MAX;
        }
        let known: Vec<f64> = live().filter_map(|owner| owner.rate).collect();
        let mean = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
        let all: f64 = live().map(|owner| owner.rate.unwrap_or(mean)).sum();
        let part = self.owners[owner.0 as usize].rate.unwrap_or(mean) / all.max(f64::MIN_POSITIVE);
        ((self.waiting_cost as f64 * part / 2.0) as u64).max(MIN_PACK_COST)
    }

    /// For an owner with nothing to do: the rear half of the pack that will take longest.
    fn duplicates(&self, owner: ProviderId, now: Timestamp) -> BTreeSet<ItemId> {
        let once = |item: &&ItemId| {
            let item = &self.items[item.0 as usize];
            matches!(item.state, State::Asked(_, None)) && self.classes[item.class].owners.contains(&owner)
        };
        let slowest = self
            .packs
            .iter()
            .filter(|(id, pack)| id.owner != owner && pack.left.iter().any(|item| once(&item)))
            .map(|(id, pack)| (self.owners[id.owner.0 as usize].time_for(now, pack), pack))
            .max_by_key(|(time, _)| *time);
        let Some((time, pack)) = slowest else { return BTreeSet::new() };
        if time < PACK_DUPLICATE_AFTER {
            return BTreeSet::new();
        }
        let half = pack.left.len().div_ceil(2);
        pack.left.iter().rev().take(half).filter(once).copied().collect()
    }

    fn ask(&mut self, now: Timestamp, owner: ProviderId, items: BTreeSet<ItemId>, out: &mut Vec<Action>) {
        self.numbers += 1;
        let pack = PackId { owner, number: self.numbers };
        for item in &items {
            let state = &mut self.items[item.0 as usize].state;
            *state = match *state {
                State::Asked(first, _) => State::Asked(first, Some(pack)),
                State::Waiting | State::Ended => State::Asked(pack, None),
            };
        }
        let left_cost = items.iter().map(|item| self.items[item.0 as usize].cost()).sum();
        out.push(Action::Ask(pack, items.iter().copied().collect()));
        self.packs.insert(pack, Pack { left: items, left_cost, came_cost: 0, since: now });
        self.owners[owner.0 as usize].asked(now);
    }
}
