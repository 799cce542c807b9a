//! Several receivers: rarity, partitions, reservations.

use super::*;

#[test]
fn first_request_is_for_the_rarest_piece() {
    let mut harness = Harness::new(4 << 20);
    harness.introduce(1, &Has::All);
    harness.introduce(2, &Has::Groups(set(&[pieces(0..7), pieces(8..16)])));
    harness.introduce(3, &Has::Groups(set(&[pieces(0..6), pieces(8..16)])));
    harness.handle(Event::Tick);
    let first = |harness: &Harness, provider| harness.requests_to(provider)[0].1.clone();
    assert_eq!(first(&harness, 1), pieces(7..8), "one provider has it");
    assert_eq!(first(&harness, 2), pieces(6..7), "two providers have it");
}

#[test]
fn unranked_receivers_start_at_different_pieces() {
    let mut starts = BTreeSet::new();
    for seed in 0..8 {
        let mut harness = Harness::resumed(128 << 20, &[], seed);
        harness.add(1, Has::All);
        harness.add(2, Has::Groups(set(&[])));
        starts.extend(harness.requests_to(1).iter().map(|(_, groups)| groups.start));
    }
    assert!(starts.len() >= 12, "{starts:?}");
}

#[test]
fn ranked_receivers_fetch_their_own_partition_first() {
    // Each receiver fetches nearly all of its own partition before anything of another one.
    let (size, receivers) = (32 << 20, 4);
    for rank in 0..receivers {
        let mut harness = Harness::resumed(size, &[], u64::from(rank));
        harness.handle(Event::Ranked { rank, receivers });
        harness.introduce(1, &Has::All);
        harness.introduce(2, &Has::Groups(set(&[])));
        harness.handle(Event::Tick);
        let part = pieces(u64::from(rank) * 32..u64::from(rank + 1) * 32);
        let mut brought = BTreeSet::new();
        while brought.len() < 31 * PIECE as usize {
            let (request, groups) = harness.requests_to(1)[0].clone();
            assert!(part.start <= groups.start && groups.end <= part.end, "{groups:?} is outside of {part:?}");
            brought.extend(groups.clone());
            harness.deliver(request, groups.end - groups.start, MILLISECOND);
        }
        // Afterwards it continues with the other partitions.
        let (mut others, due) = (BTreeSet::new(), harness.now + Duration::from_secs(10));
        while harness.finished == 0 {
            let (request, groups) =
                harness.requests_to(1).first().cloned().expect("a request is in flight while something is missing");
            others.extend(groups.clone());
            harness.deliver(request, groups.end - groups.start, MILLISECOND);
            assert!(harness.now < due, "the download does not end");
        }
        assert!(others.len() as u64 >= 96 * PIECE);
    }
}

#[test]
fn receivers_with_a_finished_partition_take_different_pieces_from_the_ends_of_others() {
    let (size, receivers) = (32 << 20, 4);
    let mut taken = BTreeSet::new();
    for rank in 0..receivers {
        let part = |rank: u32| pieces(u64::from(rank) * 32..u64::from(rank + 1) * 32);
        let mut harness = Harness::resumed(size, &[part(rank)], u64::from(rank));
        harness.handle(Event::Ranked { rank, receivers });
        harness.introduce(1, &Has::All);
        harness.introduce(2, &Has::Groups(set(&[])));
        harness.handle(Event::Tick);
        let [(_, groups)] = &harness.requests_to(1)[..] else {
            panic!("expected one request: {:?}", harness.requests_to(1))
        };
        let of = (0..receivers).find(|&other| part(other).contains(&groups.start)).unwrap();
        assert!(of != rank && groups.start >= part(of).start + 16 * PIECE, "{groups:?}");
        taken.insert(groups.start);
    }
    assert_eq!(taken.len(), receivers as usize, "{taken:?}");
}

/// Four partitions of 32 pieces: the first and the third are verified but for the last three pieces of the third, which
/// only provider 1 has; provider 2, another receiver, has the second.
fn last_of_another_partition() -> Harness {
    let mut harness = Harness::resumed(32 << 20, &[pieces(0..32), pieces(64..125)], 1);
    harness.handle(Event::Ranked { rank: 0, receivers: 4 });
    harness.add(2, Has::Groups(one(pieces(32..64))));
    harness.add(1, Has::All);
    harness
}

#[test]
fn reserved_pieces_are_not_requested_while_another_provider_delivers() {
    let mut harness = last_of_another_partition();
    for _ in 0..8 {
        let (request, groups) = harness.requests_to(2)[0].clone();
        harness.deliver(request, groups.end - groups.start, 30 * MILLISECOND);
        assert_eq!(harness.requests_to(1), [], "the pieces are reserved and provider 2 delivers");
    }
    harness.advance(Duration::from_millis(500));
    let [(_, groups)] = &harness.requests_to(1)[..] else {
        panic!("expected one request: {:?}", harness.requests_to(1))
    };
    assert!(pieces(125..128).contains(&groups.start), "{groups:?}");
}

#[test]
fn reservation_expires_while_another_provider_delivers_slowly() {
    let mut harness = last_of_another_partition();
    let since = harness.now;
    while harness.requests_to(1).is_empty() {
        let (request, _) = harness.requests_to(2)[0].clone();
        harness.deliver(request, 1, 30 * MILLISECOND);
        let left = harness.now.since(since);
        assert!(left < MAX_RESERVED_TIME + Duration::from_millis(200), "reserved for {left:?}");
    }
    assert!(harness.now.since(since) >= MAX_RESERVED_TIME);
}

#[test]
fn rarity_takes_precedence_over_the_own_partition() {
    let mut harness = Harness::new(4 << 20);
    harness.handle(Event::Ranked { rank: 0, receivers: 2 });
    harness.introduce(1, &Has::All);
    harness.introduce(2, &Has::Groups(one(pieces(0..8))));
    harness.handle(Event::Tick);
    assert_eq!(harness.requests_to(1)[0].1, pieces(12..13), "one provider has it, although it is in another partition");
    assert!(harness.requests_to(2)[0].1.end <= 8 * PIECE);
}

#[test]
fn partitions_cover_the_file_without_overlap() {
    for (size, receivers) in [(1, 7), (1 << 20, 2), (4 << 20, 3), (128 << 20, 8), (5 << 30, 200)] {
        let layout = Layout::new(size);
        let parts: Vec<_> = (0..receivers).filter_map(|rank| layout.partition(Rank::new(rank, receivers))).collect();
        assert_eq!(parts.len(), receivers as usize);
        assert_eq!((parts[0].start, parts.last().unwrap().end), (0, layout.pieces()));
        assert!(parts.windows(2).all(|two| two[0].end == two[1].start), "{parts:?}");
    }
    let layout = Layout::new(4 << 20);
    for single in [Rank::new(0, 0), Rank::new(3, 3), Rank::new(0, 1)] {
        assert_eq!(layout.partition(single), None, "a single receiver and ranks out of range have no partition");
    }
}

#[test]
fn run_that_another_receiver_leads_is_given_up() {
    let mut harness = Harness::new(128 << 20);
    harness.introduce(1, &Has::All);
    harness.introduce(2, &Has::Groups(set(&[])));
    harness.handle(Event::Tick);
    let [(first, one), (second, two)] = &harness.requests_to(1)[..] else { panic!("expected two requests") };
    assert_eq!(one.end, two.start);
    harness.deliver(*first, 3, MILLISECOND);
    harness.gain(2, one.clone());
    assert!(harness.in_flight.contains_key(first), "the request that delivers continues");
    assert!(!harness.in_flight.contains_key(second), "the request for what the other receiver gets next is cancelled");
    let next = harness.requests_to(1).last().expect("a request at another position").1.start;
    assert!(next != two.start);
}
