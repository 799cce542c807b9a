//! Work that goes from one owner to another, and the endgame.

use super::*;

#[test]
fn a_second_owner_gets_what_the_first_was_asked_for() {
    let mut bed = Bed::rarest(64 << 20);
    bed.add(1, Has::All);
    assert!(bed.of(2).is_empty());
    bed.add(2, Has::All);
    assert_eq!(bed.of(2).len(), 2);
    let left: u64 = bed.of(1).iter().map(|(_, groups)| groups.end - groups.start).sum();
    assert!(left <= 2 * PIECE, "nothing is measured yet: {left} groups");
}

#[test]
fn an_idle_owner_takes_over_the_end_of_a_slow_ones_work() {
    let mut bed = Bed::rarest(16 << 20);
    bed.add(1, Has::All);
    let before = bed.of(1);
    bed.flow(1, 64, 50 * MILLISECOND);
    bed.add(2, Has::All);
    // The first one has slow groups before it, the second one is done with the rest of the file at once.
    while let Some((request, _)) = bed.of(2).first().cloned() {
        bed.bring(request, PIECE, MILLISECOND);
        assert!(bed.now < Timestamp::from_origin(Duration::from_secs(10)), "{:?}", bed.under_way);
    }
    bed.wait(100 * MILLISECOND);
    assert!(bed.swarm.progress().bytes_twice <= MIN_PIECE_BYTES);
    assert!(bed.finished == 1 || bed.of(2).len() == 1, "{:?} of {before:?}", bed.under_way);
}

#[test]
fn in_the_endgame_two_are_asked_and_the_slower_is_spared() {
    let mut bed = Bed::rarest(2 << 20);
    bed.add(1, Has::All);
    bed.add(2, Has::All);
    bed.add(3, Has::All);
    // Owner 1 brings nothing at all; the others do.
    for _ in 0..200 {
        for owner in [2, 3] {
            bed.flow(owner, 1, MILLISECOND);
        }
        bed.wait(5 * MILLISECOND);
        if bed.finished == 1 {
            break;
        }
    }
    assert_eq!(bed.finished, 1, "without waiting for its silence to end: {:?}", bed.under_way);
    assert!(bed.now < Timestamp::from_origin(PROVIDER_SILENCE));
    assert!(bed.under_way.is_empty(), "its requests are cancelled");
    assert_eq!(bed.swarm.owners(bed.now).map(|owner| owner.bytes_proven).sum::<u64>(), 2 << 20);
}
