//! Behaviour of the pack scheduler as its shell observes it, and a simulation with providers of every kind.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use shared::limits::{MAX_PACK_BYTES, MAX_PACK_CONTENTS, MAX_PACKED_FILE_BYTES};

use super::{params::PACKS_PER_PROVIDER, *};
use crate::provider_health::PROVIDER_SILENCE;

const MILLISECOND: Duration = Duration::from_millis(1);

fn providers(numbers: &[u32]) -> BTreeSet<ProviderId> {
    numbers.iter().copied().map(ProviderId).collect()
}

fn wanted(count: usize, size: u64, of: &[u32]) -> Vec<Wanted> {
    vec![Wanted { size, providers: providers(of) }; count]
}

/// A scheduler and a shell that tracks the packs in flight.
struct Harness {
    packs: Packs,
    now: Timestamp,
    in_flight: BTreeMap<PackId, Vec<ItemId>>,
    dropped: Vec<(ProviderId, PackFailure)>,
    failed: BTreeMap<ItemId, Vec<(ProviderId, PackFailure)>>,
    finished: bool,
    /// Digest of all actions, in order.
    digest: DefaultHasher,
}

impl Harness {
    fn new(wanted: Vec<Wanted>, providers: u32) -> Self {
        let mut harness = Self {
            packs: Packs::new(wanted, providers, 1),
            now: Timestamp::ZERO,
            in_flight: BTreeMap::new(),
            dropped: Vec::new(),
            failed: BTreeMap::new(),
            finished: false,
            digest: DefaultHasher::new(),
        };
        harness.handle(Event::Tick);
        harness
    }

    fn handle(&mut self, event: Event) {
        if let Event::Done(pack) | Event::Failed(pack, _) = event {
            self.in_flight.remove(&pack);
        }
        let mut out = Vec::new();
        self.packs.handle(self.now, event, &mut out);
        for action in out {
            self.record(&action);
            assert!(!self.finished, "an action after the end: {action:?}");
            match action {
                Action::Request(pack, items) => {
                    assert!(!items.is_empty() && items.len() <= MAX_PACK_CONTENTS);
                    assert!(
                        !self.dropped.iter().any(|(provider, _)| *provider == pack.provider),
                        "{pack:?} is dropped"
                    );
                    assert!(self.in_flight.insert(pack, items).is_none());
                    assert!(self.packs_of(pack.provider.0).len() <= PACKS_PER_PROVIDER);
                }
                Action::Cancel(pack) => {
                    self.in_flight.remove(&pack);
                }
                Action::Drop(provider, why) => self.dropped.push((provider, why)),
                Action::Failed(item, reasons) => assert!(self.failed.insert(item, reasons).is_none()),
                Action::Finished => self.finished = true,
            }
        }
    }

    /// Adds an action to the digest of the run.
    fn record(&mut self, action: &Action) {
        match action {
            Action::Request(pack, items) => (0, pack.provider.0, pack.number, items).hash(&mut self.digest),
            Action::Cancel(pack) => (1, pack.provider.0, pack.number).hash(&mut self.digest),
            Action::Drop(provider, why) => (2, provider.0, *why as u8).hash(&mut self.digest),
            Action::Failed(item, reasons) => (3, item, reasons.len()).hash(&mut self.digest),
            Action::Finished => 4.hash(&mut self.digest),
        }
        self.now.since_origin().hash(&mut self.digest);
    }

    fn packs_of(&self, provider: u32) -> Vec<PackId> {
        self.in_flight.keys().filter(|pack| pack.provider.0 == provider).copied().collect()
    }

    fn deliver(&mut self, pack: PackId) {
        for item in self.in_flight[&pack].clone() {
            self.handle(Event::Delivered(pack, item));
        }
        self.handle(Event::Done(pack));
    }
}

#[test]
fn empty_download_finishes_at_once() {
    assert!(Harness::new(vec![], 3).finished);
}

#[test]
fn single_provider_gets_two_full_packs_at_a_time() {
    let mut harness = Harness::new(wanted(3 * MAX_PACK_CONTENTS, 100, &[0]), 1);
    let asked: Vec<_> = harness.in_flight.values().map(Vec::len).collect();
    assert_eq!(asked, [MAX_PACK_CONTENTS; 2]);
    while let Some(pack) = harness.packs_of(0).first().copied() {
        harness.now += MILLISECOND;
        harness.deliver(pack);
    }
    assert!(harness.finished && harness.failed.is_empty());
}

#[test]
fn packs_are_bounded_in_bytes() {
    let harness = Harness::new(wanted(100, MAX_PACKED_FILE_BYTES, &[0]), 1);
    let largest = usize::try_from(MAX_PACK_BYTES / MAX_PACKED_FILE_BYTES).unwrap();
    assert_eq!(harness.in_flight.values().map(Vec::len).collect::<Vec<_>>(), [largest; 2]);
}

#[test]
fn items_are_divided_among_providers_and_rare_ones_go_first() {
    let mut all = wanted(200, 4096, &[0, 1]);
    all.extend(wanted(10, 4096, &[1]));
    let harness = Harness::new(all, 2);
    let first = &harness.in_flight[&harness.packs_of(1)[0]];
    assert!((200..210).all(|item| first.contains(&ItemId(item))), "{first:?}");
    assert_eq!(harness.packs_of(0).len(), 2);
    let asked: usize = harness.in_flight.values().map(Vec::len).sum();
    assert!(asked < 210, "some items wait for rebalancing");
}

#[test]
fn refused_item_goes_to_another_provider_and_fails_when_all_refuse() {
    let mut harness = Harness::new(wanted(2, 10, &[0, 1]), 2);
    let pack = harness.packs_of(0)[0];
    harness.handle(Event::Refused(pack, ItemId(0)));
    harness.handle(Event::Delivered(pack, ItemId(1)));
    harness.handle(Event::Done(pack));
    let pack = harness.packs_of(1)[0];
    assert_eq!(harness.in_flight[&pack], [ItemId(0)]);
    harness.handle(Event::Refused(pack, ItemId(0)));
    assert_eq!(
        harness.failed[&ItemId(0)],
        [(ProviderId(0), PackFailure::Refused), (ProviderId(1), PackFailure::Refused)]
    );
    assert!(harness.finished);
}

#[test]
fn provider_of_corrupt_data_is_dropped_and_its_items_go_to_others() {
    let mut all = wanted(3, 10, &[0]);
    all.extend(wanted(1, 10, &[0, 1]));
    let mut harness = Harness::new(all, 2);
    let pack = harness.packs_of(0)[0];
    let owed = harness.in_flight[&pack].clone();
    harness.handle(Event::Delivered(pack, owed[0]));
    harness.handle(Event::Failed(pack, PackFailure::SentCorruptData));
    assert_eq!(harness.dropped, [(ProviderId(0), PackFailure::SentCorruptData)]);
    while let Some(pack) = harness.packs_of(1).first().copied() {
        harness.deliver(pack);
    }
    assert!(harness.finished && harness.packs_of(0).is_empty());
    assert!(harness.failed.values().all(|reasons| *reasons == [(ProviderId(0), PackFailure::SentCorruptData)]));
    assert_eq!(harness.failed.len(), 2, "the items that only the dropped provider had, without the delivered one");
}

#[test]
fn silent_provider_is_dropped_after_repeated_failures() {
    let mut harness = Harness::new(wanted(50, 10, &[0]), 1);
    let mut asked = 0;
    while !harness.finished {
        asked += harness.packs_of(0).len();
        harness.now = harness.packs.next_deadline(harness.now).expect("a tick is due");
        harness.handle(Event::Tick);
        assert!(asked < 100);
    }
    assert_eq!(asked, MAX_PROVIDER_FAILURES as usize);
    assert_eq!(harness.failed.len(), 50);
    assert!(harness.now < Timestamp::ZERO + PROVIDER_SILENCE * 2 * MAX_PROVIDER_FAILURES);
}

#[test]
fn activity_prevents_silence() {
    let mut harness = Harness::new(wanted(5, 10, &[0]), 1);
    let pack = harness.packs_of(0)[0];
    for _ in 0..10 {
        harness.now += PROVIDER_SILENCE / 2;
        harness.handle(Event::Activity(ProviderId(0)));
        harness.handle(Event::Tick);
    }
    assert_eq!(harness.packs_of(0), [pack]);
}

#[test]
fn idle_provider_duplicates_the_rear_of_a_slow_pack() {
    let mut harness = Harness::new(wanted(8, 10, &[0, 1]), 2);
    // There are few items: the first provider gets all of them.
    let slow = harness.packs_of(0)[0];
    assert_eq!(harness.in_flight[&slow].len(), 8);
    while harness.packs_of(1).is_empty() {
        harness.now = harness.packs.next_deadline(harness.now).unwrap();
        assert!(harness.now < Timestamp::ZERO + PROVIDER_SILENCE, "before the slow provider counts as silent");
        harness.handle(Event::Tick);
    }
    let fast = harness.packs_of(1)[0];
    assert_eq!(harness.in_flight[&fast], [4, 5, 6, 7].map(ItemId));
    harness.deliver(fast);
    // And so on until nothing is left of the slow pack, which is cancelled.
    while !harness.finished {
        harness.now += MILLISECOND;
        harness.handle(Event::Tick);
        let fast = harness.packs_of(1)[0];
        harness.deliver(fast);
    }
    assert!(harness.in_flight.is_empty());
}

#[test]
fn pack_done_with_items_missing_is_a_failure() {
    let mut harness = Harness::new(wanted(5, 10, &[0]), 1);
    for _ in 0..MAX_PROVIDER_FAILURES {
        while harness.packs_of(0).is_empty() {
            harness.now = harness.packs.next_deadline(harness.now).unwrap();
            harness.handle(Event::Tick);
        }
        let pack = harness.packs_of(0)[0];
        harness.handle(Event::Done(pack));
    }
    assert_eq!(harness.dropped, [(ProviderId(0), PackFailure::Broken)]);
    assert_eq!(harness.failed.len(), 5);
}

/// Behaviour of a simulated provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Honest {
        micros_an_item: u64,
    },
    /// Sends corrupt data for the item of this number.
    Corrupt(u32),
    Silent,
    Busy,
    Breaks,
    Forgetful,
}

/// Runs one download to its end, in virtual time; returns the digest of its actions.
fn simulate(seed: u64) -> u64 {
    let mut rng = fastrand::Rng::with_seed(seed);
    let provider_count = rng.u32(1..8);
    let behaviours: Vec<Behaviour> = (0..provider_count)
        .map(|_| match rng.u8(0..10) {
            0 => Behaviour::Corrupt(rng.u32(0..300)),
            1 => Behaviour::Silent,
            2 => Behaviour::Busy,
            3 => Behaviour::Breaks,
            4 => Behaviour::Forgetful,
            _ => Behaviour::Honest { micros_an_item: rng.u64(10..3000) },
        })
        .collect();
    let items: Vec<Wanted> = (0..rng.u32(0..1500))
        .map(|_| {
            let providers = (0..provider_count).filter(|_| rng.bool()).map(ProviderId).collect();
            Wanted { size: rng.u64(0..MAX_PACKED_FILE_BYTES), providers }
        })
        .collect();
    let honest = |item: &Wanted| {
        item.providers
            .iter()
            .any(|provider| matches!(behaviours[provider.0 as usize], Behaviour::Honest { .. } | Behaviour::Busy))
    };
    let mut harness = Harness::new(items.clone(), provider_count);
    let mut got = BTreeSet::new();
    // Number of packs requested from each provider; time and index of the next item of each pack.
    let mut asked: BTreeMap<ProviderId, u32> = BTreeMap::new();
    let mut next: BTreeMap<PackId, (Timestamp, usize)> = BTreeMap::new();
    for step in 0.. {
        assert!(step < 200_000, "seed {seed} does not end: {:?}", harness.in_flight);
        if harness.finished {
            break;
        }
        next.retain(|pack, _| harness.in_flight.contains_key(pack));
        for pack in harness.in_flight.keys() {
            next.entry(*pack).or_insert_with(|| (harness.now + MILLISECOND, 0));
        }
        // A provider sends one pack after the other.
        let first_in_line = |pack: &PackId| harness.packs_of(pack.provider.0).first() == Some(pack);
        let sends = |pack: &PackId| behaviours[pack.provider.0 as usize] != Behaviour::Silent;
        let coming = next.iter().filter(|(pack, _)| first_in_line(pack) && sends(pack)).min_by_key(|(_, (at, _))| *at);
        let deadline = harness.packs.next_deadline(harness.now);
        let tick = match (coming, deadline) {
            (Some((_, (at, _))), Some(deadline)) => deadline < *at,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if tick {
            let deadline = deadline.expect("a tick was chosen");
            assert!(deadline > harness.now || step == 0 || coming.is_none_or(|(_, (at, _))| *at >= harness.now));
            harness.now = harness.now.max(deadline);
            harness.handle(Event::Tick);
            continue;
        }
        let (&pack, &(at, place)) = coming.expect("an item is next");
        harness.now = harness.now.max(at);
        let behaviour = behaviours[pack.provider.0 as usize];
        let times = *asked.entry(pack.provider).and_modify(|times| *times += u32::from(place == 0)).or_insert(1);
        let Some(item) = harness.in_flight[&pack].get(place).copied() else {
            harness.handle(Event::Done(pack));
            continue;
        };
        let pace = match behaviour {
            Behaviour::Honest { micros_an_item } => micros_an_item,
            _ => 100,
        };
        next.insert(pack, (harness.now + Duration::from_micros(pace), place + 1));
        match behaviour {
            Behaviour::Corrupt(number) if number == item.0 => {
                harness.handle(Event::Failed(pack, PackFailure::SentCorruptData))
            }
            Behaviour::Busy if times < 3 => harness.handle(Event::Failed(pack, PackFailure::Busy)),
            Behaviour::Breaks if place > 0 => harness.handle(Event::Failed(pack, PackFailure::Broken)),
            Behaviour::Breaks => harness.handle(Event::Activity(pack.provider)),
            Behaviour::Forgetful if item.0 % 3 == 0 => harness.handle(Event::Refused(pack, item)),
            Behaviour::Silent => unreachable!("a silent provider sends nothing"),
            _ => {
                assert!(
                    items[item.0 as usize].providers.contains(&pack.provider),
                    "seed {seed}: requested from a provider that has it"
                );
                got.insert(item);
                harness.handle(Event::Delivered(pack, item));
            }
        }
    }
    for (number, item) in (0..).zip(&items) {
        let id = ItemId(number);
        assert!(
            got.contains(&id) != harness.failed.contains_key(&id),
            "seed {seed}: {id:?} is either delivered or failed"
        );
        assert!(got.contains(&id) || !honest(item), "seed {seed}: {id:?} was available");
        if let Some(reasons) = harness.failed.get(&id) {
            let named: BTreeSet<_> = reasons.iter().map(|(provider, _)| *provider).collect();
            assert_eq!(named, item.providers, "seed {seed}: the failure names every provider");
        }
    }
    assert!(harness.in_flight.is_empty(), "seed {seed}");
    harness.digest.finish()
}

#[test]
fn every_item_ends_with_providers_of_every_kind() {
    for seed in 0..300 {
        simulate(seed);
    }
}

#[test]
fn same_seed_gives_the_same_actions() {
    assert!((0..10).all(|seed| simulate(seed) == simulate(seed)));
}
