//! Behaviour of the pack scheduler as its shell observes it, and the harness of the tests.

use std::collections::BTreeSet;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use shared::limits::{MAX_PACK_BYTES, MAX_PACK_CONTENTS, MAX_PACKED_FILE_BYTES};

use super::{params::PACKS_PER_PROVIDER, *};
use crate::provider_health::PROVIDER_SILENCE;

mod simulation;

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
    let requested: Vec<_> = harness.in_flight.values().map(Vec::len).collect();
    assert_eq!(requested, [MAX_PACK_CONTENTS; 2]);
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
    let requested: usize = harness.in_flight.values().map(Vec::len).sum();
    assert!(requested < 210, "some items wait for rebalancing");
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
    let mut requested = 0;
    while !harness.finished {
        requested += harness.packs_of(0).len();
        harness.now = harness.packs.next_deadline(harness.now).expect("a tick is due");
        harness.handle(Event::Tick);
        assert!(requested < 100);
    }
    assert_eq!(requested, MAX_PROVIDER_FAILURES as usize);
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
