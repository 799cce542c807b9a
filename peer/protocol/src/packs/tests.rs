//! What a shell notices of the packs, and a simulation with owners of every kind.

use std::{collections::BTreeMap, time::Duration};

use shared::limits::MAX_PACKED_FILE_BYTES;
use crate::provider_health::PROVIDER_SILENCE;

use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

fn owners(numbers: &[u32]) -> BTreeSet<ProviderId> {
    numbers.iter().copied().map(ProviderId).collect()
}

fn wanted(count: usize, size: u64, of: &[u32]) -> Vec<Wanted> {
    vec![Wanted { size, owners: owners(of) }; count]
}

/// The packs and the shell's view of them.
struct Bed {
    packs: Packs,
    now: Timestamp,
    under_way: BTreeMap<PackId, Vec<ItemId>>,
    dropped: Vec<(ProviderId, Why)>,
    failed: BTreeMap<ItemId, Vec<(ProviderId, Why)>>,
    finished: bool,
}

impl Bed {
    fn new(wanted: Vec<Wanted>, owners: u32) -> Self {
        let mut bed = Self {
            packs: Packs::new(wanted, owners, 1),
            now: Timestamp::ZERO,
            under_way: BTreeMap::new(),
            dropped: Vec::new(),
            failed: BTreeMap::new(),
            finished: false,
        };
        bed.tell(Event::Tick);
        bed
    }

    fn tell(&mut self, event: Event) {
        if let Event::Done(pack) | Event::Failed(pack, _) = event {
            self.under_way.remove(&pack);
        }
        let mut out = Vec::new();
        self.packs.handle(self.now, event, &mut out);
        for action in out {
            assert!(!self.finished, "nothing comes after the end: {action:?}");
            match action {
                Action::Ask(pack, items) => {
                    assert!(!items.is_empty() && items.len() <= MAX_PACK_CONTENTS);
                    assert!(!self.dropped.iter().any(|(owner, _)| *owner == pack.owner), "{pack:?} is dropped");
                    assert!(self.under_way.insert(pack, items).is_none());
                    assert!(self.of(pack.owner.0).len() <= PACKS_PER_PROVIDER);
                }
                Action::Cancel(pack) => {
                    self.under_way.remove(&pack);
                }
                Action::Drop(owner, why) => self.dropped.push((owner, why)),
                Action::Failed(item, reasons) => assert!(self.failed.insert(item, reasons).is_none()),
                Action::Finished => self.finished = true,
            }
        }
    }

    fn of(&self, owner: u32) -> Vec<PackId> {
        self.under_way.keys().filter(|pack| pack.owner.0 == owner).copied().collect()
    }

    fn deliver(&mut self, pack: PackId) {
        for item in self.under_way[&pack].clone() {
            self.tell(Event::Delivered(pack, item));
        }
        self.tell(Event::Done(pack));
    }
}

#[test]
fn nothing_wanted_is_done_at_once() {
    assert!(Bed::new(vec![], 3).finished);
}

#[test]
fn a_lone_owner_is_asked_for_full_packs_two_at_a_time() {
    let mut bed = Bed::new(wanted(3 * MAX_PACK_CONTENTS, 100, &[0]), 1);
    let asked: Vec<_> = bed.under_way.values().map(Vec::len).collect();
    assert_eq!(asked, [MAX_PACK_CONTENTS; 2]);
    while let Some(pack) = bed.of(0).first().copied() {
        bed.now += MILLISECOND;
        bed.deliver(pack);
    }
    assert!(bed.finished && bed.failed.is_empty());
}

#[test]
fn packs_keep_to_their_bytes() {
    let bed = Bed::new(wanted(100, MAX_PACKED_FILE_BYTES, &[0]), 1);
    let largest = usize::try_from(MAX_PACK_BYTES / MAX_PACKED_FILE_BYTES).unwrap();
    assert_eq!(bed.under_way.values().map(Vec::len).collect::<Vec<_>>(), [largest; 2]);
}

#[test]
fn work_is_divided_among_all_and_rare_items_go_first() {
    let mut all = wanted(200, 4096, &[0, 1]);
    all.extend(wanted(10, 4096, &[1]));
    let bed = Bed::new(all, 2);
    let first = &bed.under_way[&bed.of(1)[0]];
    assert!((200..210).all(|item| first.contains(&ItemId(item))), "{first:?}");
    assert_eq!(bed.of(0).len(), 2);
    let asked: usize = bed.under_way.values().map(Vec::len).sum();
    assert!(asked < 210, "something is left to balance with");
}

#[test]
fn what_one_refuses_another_is_asked_for_and_what_all_refuse_fails() {
    let mut bed = Bed::new(wanted(2, 10, &[0, 1]), 2);
    let pack = bed.of(0)[0];
    bed.tell(Event::Refused(pack, ItemId(0)));
    bed.tell(Event::Delivered(pack, ItemId(1)));
    bed.tell(Event::Done(pack));
    let pack = bed.of(1)[0];
    assert_eq!(bed.under_way[&pack], [ItemId(0)]);
    bed.tell(Event::Refused(pack, ItemId(0)));
    assert_eq!(bed.failed[&ItemId(0)], [(ProviderId(0), Why::Refused), (ProviderId(1), Why::Refused)]);
    assert!(bed.finished);
}

#[test]
fn a_liar_is_dropped_for_good_and_what_it_owed_goes_elsewhere() {
    let mut all = wanted(3, 10, &[0]);
    all.extend(wanted(1, 10, &[0, 1]));
    let mut bed = Bed::new(all, 2);
    let pack = bed.of(0)[0];
    let owed = bed.under_way[&pack].clone();
    bed.tell(Event::Delivered(pack, owed[0]));
    bed.tell(Event::Failed(pack, Why::Lied));
    assert_eq!(bed.dropped, [(ProviderId(0), Why::Lied)]);
    while let Some(pack) = bed.of(1).first().copied() {
        bed.deliver(pack);
    }
    assert!(bed.finished && bed.of(0).is_empty());
    assert!(bed.failed.values().all(|reasons| *reasons == [(ProviderId(0), Why::Lied)]));
    assert_eq!(bed.failed.len(), 2, "those that only the liar had, without the one that was right");
}

#[test]
fn a_silent_owner_loses_its_work_and_is_dropped_at_last() {
    let mut bed = Bed::new(wanted(50, 10, &[0]), 1);
    let mut asked = 0;
    while !bed.finished {
        asked += bed.of(0).len();
        bed.now = bed.packs.next_deadline(bed.now).expect("something is to come");
        bed.tell(Event::Tick);
        assert!(asked < 100);
    }
    assert_eq!(asked, MAX_PROVIDER_FAILURES as usize);
    assert_eq!(bed.failed.len(), 50);
    assert!(bed.now < Timestamp::ZERO + PROVIDER_SILENCE * 2 * MAX_PROVIDER_FAILURES);
}

#[test]
fn an_owner_that_is_heard_of_is_not_silent() {
    let mut bed = Bed::new(wanted(5, 10, &[0]), 1);
    let pack = bed.of(0)[0];
    for _ in 0..10 {
        bed.now += PROVIDER_SILENCE / 2;
        bed.tell(Event::Heard(ProviderId(0)));
        bed.tell(Event::Tick);
    }
    assert_eq!(bed.of(0), [pack]);
}

#[test]
fn an_idle_owner_is_asked_for_the_rear_of_a_slow_pack() {
    let mut bed = Bed::new(wanted(8, 10, &[0, 1]), 2);
    // Few items: the first owner got them all.
    let slow = bed.of(0)[0];
    assert_eq!(bed.under_way[&slow].len(), 8);
    while bed.of(1).is_empty() {
        bed.now = bed.packs.next_deadline(bed.now).unwrap();
        assert!(bed.now < Timestamp::ZERO + PROVIDER_SILENCE, "long before it counts as silent");
        bed.tell(Event::Tick);
    }
    let fast = bed.of(1)[0];
    assert_eq!(bed.under_way[&fast], [4, 5, 6, 7].map(ItemId));
    bed.deliver(fast);
    // ... and on, until nothing is left of the slow one, which is cancelled.
    while !bed.finished {
        bed.now += MILLISECOND;
        bed.tell(Event::Tick);
        let fast = bed.of(1)[0];
        bed.deliver(fast);
    }
    assert!(bed.under_way.is_empty());
}

#[test]
fn a_pack_that_ends_early_without_a_word_is_a_failure() {
    let mut bed = Bed::new(wanted(5, 10, &[0]), 1);
    for _ in 0..MAX_PROVIDER_FAILURES {
        while bed.of(0).is_empty() {
            bed.now = bed.packs.next_deadline(bed.now).unwrap();
            bed.tell(Event::Tick);
        }
        let pack = bed.of(0)[0];
        bed.tell(Event::Done(pack));
    }
    assert_eq!(bed.dropped, [(ProviderId(0), Why::Broken)]);
    assert_eq!(bed.failed.len(), 5);
}

/// How a simulated owner behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest {
        micros_an_item: u64,
    },
    /// Lies in the item of this number.
    Liar(u32),
    Silent,
    Busy,
    Breaks,
    Forgetful,
}

/// Runs one download to its end; time goes from event to event.
fn simulate(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let owner_count = rng.u32(1..8);
    let manners: Vec<Manner> = (0..owner_count)
        .map(|_| match rng.u8(0..10) {
            0 => Manner::Liar(rng.u32(0..300)),
            1 => Manner::Silent,
            2 => Manner::Busy,
            3 => Manner::Breaks,
            4 => Manner::Forgetful,
            _ => Manner::Honest { micros_an_item: rng.u64(10..3000) },
        })
        .collect();
    let items: Vec<Wanted> = (0..rng.u32(0..1500))
        .map(|_| {
            let owners = (0..owner_count).filter(|_| rng.bool()).map(ProviderId).collect();
            Wanted { size: rng.u64(0..MAX_PACKED_FILE_BYTES), owners }
        })
        .collect();
    let honest = |item: &Wanted| {
        item.owners.iter().any(|owner| matches!(manners[owner.0 as usize], Manner::Honest { .. } | Manner::Busy))
    };
    let mut bed = Bed::new(items.clone(), owner_count);
    let mut got = BTreeSet::new();
    // When each owner's line is free again, and how often it was asked.
    let mut asked: BTreeMap<ProviderId, u32> = BTreeMap::new();
    let mut next: BTreeMap<PackId, (Timestamp, usize)> = BTreeMap::new();
    for step in 0.. {
        assert!(step < 200_000, "seed {seed} does not come to an end: {:?}", bed.under_way);
        if bed.finished {
            break;
        }
        next.retain(|pack, _| bed.under_way.contains_key(pack));
        for pack in bed.under_way.keys() {
            next.entry(*pack).or_insert_with(|| (bed.now + MILLISECOND, 0));
        }
        // An owner sends one pack after the other: the first in line is the one that brings something.
        let first_in_line = |pack: &PackId| bed.of(pack.owner.0).first() == Some(pack);
        let speaks = |pack: &PackId| manners[pack.owner.0 as usize] != Manner::Silent;
        let coming = next.iter().filter(|(pack, _)| first_in_line(pack) && speaks(pack)).min_by_key(|(_, (at, _))| *at);
        let deadline = bed.packs.next_deadline(bed.now);
        let tick = match (coming, deadline) {
            (Some((_, (at, _))), Some(deadline)) => deadline < *at,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if tick {
            let deadline = deadline.expect("it was chosen");
            assert!(deadline > bed.now || step == 0 || coming.is_none_or(|(_, (at, _))| *at >= bed.now));
            bed.now = bed.now.max(deadline);
            bed.tell(Event::Tick);
            continue;
        }
        let (&pack, &(at, place)) = coming.expect("seed says who comes");
        bed.now = bed.now.max(at);
        let manner = manners[pack.owner.0 as usize];
        let times = *asked.entry(pack.owner).and_modify(|times| *times += u32::from(place == 0)).or_insert(1);
        let Some(item) = bed.under_way[&pack].get(place).copied() else {
            bed.tell(Event::Done(pack));
            continue;
        };
        let pace = match manner {
            Manner::Honest { micros_an_item } => micros_an_item,
            _ => 100,
        };
        next.insert(pack, (bed.now + Duration::from_micros(pace), place + 1));
        match manner {
            Manner::Liar(number) if number == item.0 => bed.tell(Event::Failed(pack, Why::Lied)),
            Manner::Busy if times < 3 => bed.tell(Event::Failed(pack, Why::Busy)),
            Manner::Breaks if place > 0 => bed.tell(Event::Failed(pack, Why::Broken)),
            Manner::Breaks => bed.tell(Event::Heard(pack.owner)),
            Manner::Forgetful if item.0 % 3 == 0 => bed.tell(Event::Refused(pack, item)),
            Manner::Silent => unreachable!("it says nothing"),
            _ => {
                assert!(items[item.0 as usize].owners.contains(&pack.owner), "seed {seed}: asked of who has it");
                got.insert(item);
                bed.tell(Event::Delivered(pack, item));
            }
        }
    }
    for (number, item) in (0..).zip(&items) {
        let id = ItemId(number);
        assert!(got.contains(&id) != bed.failed.contains_key(&id), "seed {seed}: {id:?} ends one way");
        assert!(got.contains(&id) || !honest(item), "seed {seed}: {id:?} could be had");
        if let Some(reasons) = bed.failed.get(&id) {
            let named: BTreeSet<_> = reasons.iter().map(|(owner, _)| *owner).collect();
            assert_eq!(named, item.owners, "seed {seed}: every owner's reason is told");
        }
    }
    assert!(bed.under_way.is_empty(), "seed {seed}");
}

#[test]
fn every_item_ends_whatever_the_owners_do() {
    for seed in 0..300 {
        simulate(seed);
    }
}
