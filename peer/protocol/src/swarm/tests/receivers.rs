//! Several receivers: what is rare, whose part is whose, and who makes way.

use super::*;

#[test]
fn the_rarest_piece_comes_first() {
    let mut bed = Bed::rarest(4 << 20);
    bed.tell(Event::Pause);
    bed.add(1, Has::All);
    bed.add(2, Has::Groups(set(&[pieces(0..7), pieces(8..16)])));
    bed.add(3, Has::Groups(set(&[pieces(0..6), pieces(8..16)])));
    bed.tell(Event::Resume);
    let first = |bed: &Bed, owner| bed.of(owner)[0].1.clone();
    assert_eq!(first(&bed, 1), pieces(7..8), "only one has it");
    assert_eq!(first(&bed, 2), pieces(6..7), "two have it");
}

#[test]
fn receivers_that_start_together_ask_for_different_pieces() {
    let mut starts = BTreeSet::new();
    for seed in 0..8 {
        let mut bed = Bed::new(128 << 20, &[], PickerKind::RarestFirst, seed);
        bed.add(1, Has::All);
        bed.add(2, Has::Groups(set(&[])));
        starts.extend(bed.of(1).iter().map(|(_, groups)| groups.start));
    }
    assert!(starts.len() >= 12, "{starts:?}");
}

#[test]
fn receivers_that_know_each_other_divide_what_one_owner_has() {
    // Each has nearly all of its own part before it asks for anything of another's.
    let (size, receivers) = (32 << 20, 4);
    for place in 0..receivers {
        let mut bed = Bed::new(size, &[], PickerKind::RarestFirst, u64::from(place));
        bed.tell(Event::Pause);
        bed.tell(Event::Placed { place, receivers });
        bed.add(1, Has::All);
        bed.add(2, Has::Groups(set(&[])));
        bed.tell(Event::Resume);
        let part = pieces(u64::from(place) * 32..u64::from(place + 1) * 32);
        let mut brought = BTreeSet::new();
        while brought.len() < 31 * PIECE as usize {
            let (request, groups) = bed.of(1)[0].clone();
            assert!(part.start <= groups.start && groups.end <= part.end, "{groups:?} is not of {part:?}");
            brought.extend(groups.clone());
            bed.bring(request, groups.end - groups.start, MILLISECOND);
        }
        // And then does not rest.
        let (mut others, due) = (BTreeSet::new(), bed.now + Duration::from_secs(10));
        while bed.finished == 0 {
            let (request, groups) = bed.of(1).first().cloned().expect("something is missing");
            others.extend(groups.clone());
            bed.bring(request, groups.end - groups.start, MILLISECOND);
            assert!(bed.now < due, "it does not end");
        }
        assert!(others.len() as u64 >= 96 * PIECE);
    }
}

#[test]
fn who_is_through_helps_at_the_ends_of_others_parts_and_not_where_others_do() {
    let (size, receivers) = (32 << 20, 4);
    let mut taken = BTreeSet::new();
    for place in 0..receivers {
        let part = |place: u32| pieces(u64::from(place) * 32..u64::from(place + 1) * 32);
        let mut bed = Bed::new(size, &[part(place)], PickerKind::RarestFirst, u64::from(place));
        bed.tell(Event::Pause);
        bed.tell(Event::Placed { place, receivers });
        bed.add(1, Has::All);
        bed.add(2, Has::Groups(set(&[])));
        bed.tell(Event::Resume);
        let [(_, groups)] = &bed.of(1)[..] else { panic!("one piece at a time: {:?}", bed.of(1)) };
        let of = (0..receivers).find(|&other| part(other).contains(&groups.start)).unwrap();
        assert!(of != place && groups.start >= part(of).start + 16 * PIECE, "{groups:?}");
        taken.insert(groups.start);
    }
    assert_eq!(taken.len(), receivers as usize, "{taken:?}");
}

/// Of four parts of 32 pieces the first is here, another receiver (2) has the second, the third is here, and of the last three
/// pieces are missing, which only 1 has.
fn last_of_anothers_part() -> Bed {
    let mut bed = Bed::new(32 << 20, &[pieces(0..32), pieces(64..125)], PickerKind::RarestFirst, 1);
    bed.tell(Event::Placed { place: 0, receivers: 4 });
    bed.add(2, Has::Groups(one(pieces(32..64))));
    bed.add(1, Has::All);
    bed
}

#[test]
fn the_last_of_anothers_part_is_left_to_it_as_long_as_something_else_comes() {
    let mut bed = last_of_anothers_part();
    for _ in 0..8 {
        let (request, groups) = bed.of(2)[0].clone();
        bed.bring(request, groups.end - groups.start, 30 * MILLISECOND);
        assert_eq!(bed.of(1), [], "others fetch it, and there is something else to do");
    }
    bed.wait(Duration::from_millis(500));
    let [(_, groups)] = &bed.of(1)[..] else { panic!("nothing comes: {:?}", bed.of(1)) };
    assert!(pieces(125..128).contains(&groups.start), "{groups:?}");
}

#[test]
fn an_owner_is_not_left_alone_for_long_because_another_brings_a_little() {
    let mut bed = last_of_anothers_part();
    let since = bed.now;
    while bed.of(1).is_empty() {
        let (request, _) = bed.of(2)[0].clone();
        bed.bring(request, 1, 30 * MILLISECOND);
        let left = bed.now.since(since);
        assert!(left < MAX_RESERVED_TIME + Duration::from_millis(200), "it drips for {left:?}");
    }
    assert!(bed.now.since(since) >= MAX_RESERVED_TIME);
}

#[test]
fn a_part_matters_less_than_what_is_rare() {
    let mut bed = Bed::rarest(4 << 20);
    bed.tell(Event::Pause);
    bed.tell(Event::Placed { place: 0, receivers: 2 });
    bed.add(1, Has::All);
    bed.add(2, Has::Groups(one(pieces(0..8))));
    bed.tell(Event::Resume);
    assert_eq!(bed.of(1)[0].1, pieces(12..13), "only one has it, though it is in another's part");
    assert!(bed.of(2)[0].1.end <= 8 * PIECE);
}

#[test]
fn parts_are_all_of_the_file_and_each_is_somebodys() {
    for (size, receivers) in [(1, 7), (1 << 20, 2), (4 << 20, 3), (128 << 20, 8), (5 << 30, 200)] {
        let layout = Layout::new(size);
        let parts: Vec<_> = (0..receivers).filter_map(|place| layout.part(Place::new(place, receivers))).collect();
        assert_eq!(parts.len(), receivers as usize);
        assert_eq!((parts[0].start, parts.last().unwrap().end), (0, layout.pieces()));
        assert!(parts.windows(2).all(|two| two[0].end == two[1].start), "{parts:?}");
    }
    let layout = Layout::new(4 << 20);
    for alone in [Place::new(0, 0), Place::new(3, 3), Place::new(0, 1)] {
        assert_eq!(layout.part(alone), None, "one alone, and nonsense, divide nothing");
    }
}

#[test]
fn receivers_make_way_for_each_other() {
    let mut bed = Bed::rarest(128 << 20);
    bed.tell(Event::Pause);
    bed.add(1, Has::All);
    bed.add(2, Has::Groups(set(&[])));
    bed.tell(Event::Resume);
    let [(first, one), (second, two)] = &bed.of(1)[..] else { panic!("two requests") };
    assert_eq!(one.end, two.start);
    bed.bring(*first, 3, MILLISECOND);
    bed.gain(2, one.clone());
    assert!(bed.under_way.contains_key(first), "what has begun is brought to an end");
    assert!(!bed.under_way.contains_key(second), "what the other will have next is not");
    let instead = bed.of(1).last().expect("another place").1.start;
    assert!(instead != two.start);
}
