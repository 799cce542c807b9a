//! Work that moves between providers, and the endgame.

use super::*;

#[test]
fn second_provider_takes_over_work_of_the_first() {
    let mut harness = Harness::new(64 << 20);
    harness.add(1, Has::All);
    assert!(harness.requests_to(2).is_empty());
    harness.add(2, Has::All);
    assert_eq!(harness.requests_to(2).len(), 2);
    let left: u64 = harness.requests_to(1).iter().map(|(_, groups)| groups.end - groups.start).sum();
    assert!(left <= 2 * PIECE, "no rate is measured yet: {left} groups");
}

#[test]
fn exhausted_provider_steals_the_end_of_a_slow_request() {
    let mut harness = Harness::new(16 << 20);
    harness.add(1, Has::All);
    let before = harness.requests_to(1);
    harness.stream(1, 64, 50 * MILLISECOND);
    harness.add(2, Has::All);
    // The first provider has slow groups in flight, the second delivers the rest of the file at once.
    while let Some((request, _)) = harness.requests_to(2).first().cloned() {
        harness.deliver(request, PIECE, MILLISECOND);
        assert!(harness.now < Timestamp::from_origin(Duration::from_secs(10)), "{:?}", harness.in_flight);
    }
    harness.advance(100 * MILLISECOND);
    assert!(harness.bytes_duplicated <= MIN_PIECE_BYTES);
    assert!(harness.finished == 1 || harness.requests_to(2).len() == 1, "{:?} of {before:?}", harness.in_flight);
}

#[test]
fn endgame_duplicates_the_requests_of_a_stalled_provider() {
    let mut harness = Harness::new(2 << 20);
    harness.add(1, Has::All);
    harness.add(2, Has::All);
    harness.add(3, Has::All);
    // Provider 1 delivers nothing; the others do.
    for _ in 0..200 {
        for provider in [2, 3] {
            harness.stream(provider, 1, MILLISECOND);
        }
        harness.advance(5 * MILLISECOND);
        if harness.finished == 1 {
            break;
        }
    }
    assert_eq!(harness.finished, 1, "finished before its silence is a failure: {:?}", harness.in_flight);
    assert!(harness.now < Timestamp::from_origin(PROVIDER_SILENCE));
    assert!(harness.in_flight.is_empty(), "the requests of the stalled provider are cancelled");
    assert_eq!(harness.swarm.providers.values().map(|provider| provider.bytes_proven).sum::<u64>(), 2 << 20);
}
