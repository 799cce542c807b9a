//! Whole downloads in virtual time, with providers of every kind.

use std::collections::BTreeSet;

use super::*;

/// Maximum number of events of one download.
const MAX_EVENTS: usize = 200_000;

/// Behaviour of a simulated provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Honest {
        /// Time between two items, microseconds.
        micros_per_item: u64,
    },
    /// Sends corrupt data for the item of this number.
    Corrupt(u32),
    /// Sends nothing.
    Silent,
    /// Refuses its first packs as busy.
    Busy,
    /// Shows activity, then breaks the stream of each pack.
    Breaks,
    /// Refuses a third of the items.
    Forgetful,
}

struct Simulation {
    seed: u64,
    harness: Harness,
    behaviours: Vec<Behaviour>,
    items: Vec<Wanted>,
    delivered: BTreeSet<ItemId>,
    /// Number of packs that each provider has begun.
    begun: BTreeMap<ProviderId, u32>,
    /// Time and index of the next item of each pack in flight.
    next: BTreeMap<PackId, (Timestamp, usize)>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let providers = rng.u32(1..8);
        let behaviours = (0..providers)
            .map(|_| match rng.u8(0..10) {
                0 => Behaviour::Corrupt(rng.u32(0..300)),
                1 => Behaviour::Silent,
                2 => Behaviour::Busy,
                3 => Behaviour::Breaks,
                4 => Behaviour::Forgetful,
                _ => Behaviour::Honest { micros_per_item: rng.u64(10..3000) },
            })
            .collect();
        let items: Vec<Wanted> = (0..rng.u32(0..1500))
            .map(|_| {
                let available_from = (0..providers).filter(|_| rng.bool()).map(ProviderId).collect();
                Wanted { size: rng.u64(0..MAX_PACKED_FILE_BYTES), providers: available_from }
            })
            .collect();
        Self {
            seed,
            harness: Harness::new(items.clone(), providers),
            behaviours,
            items,
            delivered: BTreeSet::new(),
            begun: BTreeMap::new(),
            next: BTreeMap::new(),
        }
    }

    /// Runs the download to its end; returns the digest of its actions.
    fn run(mut self) -> u64 {
        for event in 0.. {
            assert!(event < MAX_EVENTS, "seed {} does not end: {:?}", self.seed, self.harness.in_flight);
            if self.harness.finished {
                break;
            }
            self.step(event == 0);
        }
        self.check();
        self.harness.digest.finish()
    }

    /// Advances the time to the next tick or item, whichever is earlier, and handles it.
    fn step(&mut self, is_first: bool) {
        let harness = &self.harness;
        self.next.retain(|pack, _| harness.in_flight.contains_key(pack));
        for pack in harness.in_flight.keys() {
            self.next.entry(*pack).or_insert_with(|| (harness.now + MILLISECOND, 0));
        }
        let item = self.next_item();
        let deadline = harness.packs.next_deadline(harness.now);
        match (item, deadline) {
            (Some((pack, at, index)), deadline) if deadline.is_none_or(|deadline| deadline >= at) => {
                self.harness.now = self.harness.now.max(at);
                self.send(pack, index);
            }
            (item, Some(deadline)) => {
                let now = self.harness.now;
                assert!(deadline > now || is_first || item.is_none_or(|(_, at, _)| at >= now), "a tick is due again");
                self.harness.now = self.harness.now.max(deadline);
                self.harness.handle(Event::Tick);
            }
            (_, None) => panic!("seed {}: neither an item nor a tick is due", self.seed),
        }
    }

    /// The earliest next item. A provider sends one pack after the other.
    fn next_item(&self) -> Option<(PackId, Timestamp, usize)> {
        let is_first = |pack: &PackId| self.harness.packs_of(pack.provider.0).first() == Some(pack);
        let sends = |pack: &PackId| self.behaviours[pack.provider.0 as usize] != Behaviour::Silent;
        let next = self.next.iter().filter(|(pack, _)| is_first(pack) && sends(pack));
        next.min_by_key(|(_, (at, _))| *at).map(|(&pack, &(at, index))| (pack, at, index))
    }

    /// Lets a provider send the item of a pack at `index`, changed as its behaviour requires.
    fn send(&mut self, pack: PackId, index: usize) {
        let behaviour = self.behaviours[pack.provider.0 as usize];
        let begun = self.begun.entry(pack.provider).and_modify(|begun| *begun += u32::from(index == 0)).or_insert(1);
        let begun = *begun;
        let Some(item) = self.harness.in_flight[&pack].get(index).copied() else {
            self.harness.handle(Event::Done(pack));
            return;
        };
        let micros = match behaviour {
            Behaviour::Honest { micros_per_item } => micros_per_item,
            _ => 100,
        };
        self.next.insert(pack, (self.harness.now + Duration::from_micros(micros), index + 1));
        let event = match behaviour {
            Behaviour::Corrupt(number) if number == item.0 => Event::Failed(pack, PackFailure::SentCorruptData),
            Behaviour::Busy if begun < 3 => Event::Failed(pack, PackFailure::Busy),
            Behaviour::Breaks if index > 0 => Event::Failed(pack, PackFailure::Broken),
            Behaviour::Breaks => Event::Activity(pack.provider),
            Behaviour::Forgetful if item.0.is_multiple_of(3) => Event::Refused(pack, item),
            Behaviour::Silent => unreachable!("a silent provider sends nothing"),
            _ => {
                let is_available = self.items[item.0 as usize].providers.contains(&pack.provider);
                assert!(is_available, "seed {}: requested from a provider that has it", self.seed);
                self.delivered.insert(item);
                Event::Delivered(pack, item)
            }
        };
        self.harness.handle(event);
    }

    /// Asserts that every item ended one way, and that every available one was delivered.
    fn check(&self) {
        let Self { seed, harness, delivered, .. } = self;
        let is_honest = |provider: &ProviderId| {
            matches!(self.behaviours[provider.0 as usize], Behaviour::Honest { .. } | Behaviour::Busy)
        };
        for (number, item) in (0..).zip(&self.items) {
            let id = ItemId(number);
            let is_delivered = delivered.contains(&id);
            assert!(
                is_delivered != harness.failed.contains_key(&id),
                "seed {seed}: {id:?} is either delivered or failed"
            );
            assert!(is_delivered || !item.providers.iter().any(is_honest), "seed {seed}: {id:?} was available");
            if let Some(reasons) = harness.failed.get(&id) {
                let named: BTreeSet<_> = reasons.iter().map(|(provider, _)| *provider).collect();
                assert_eq!(named, item.providers, "seed {seed}: the failure names every provider");
            }
        }
        assert!(harness.in_flight.is_empty(), "seed {seed}");
    }
}

#[test]
fn every_item_ends_with_providers_of_every_kind() {
    for seed in 0..300 {
        Simulation::new(seed).run();
    }
}

#[test]
fn same_seed_gives_the_same_actions() {
    assert!((0..10).all(|seed| Simulation::new(seed).run() == Simulation::new(seed).run()));
}
