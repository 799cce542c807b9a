//! Providers that send corrupt data, are gone, busy or silent, and downloads that are stuck.

use super::*;

#[test]
fn provider_of_corrupt_data_is_dropped_for_good_and_its_verified_groups_remain() {
    let mut harness = Harness::new(4 << 20);
    let (request, _) = harness.add(1, Has::All).remove(0);
    harness.add(2, Has::All);
    harness.deliver(request, 5, MILLISECOND);
    let moved = harness.fail(request, Failure::SentCorruptData);
    assert_eq!(harness.dropped, [(1, Dropped::SentCorruptData)]);
    assert!(harness.requests_to(1).is_empty());
    assert!(moved.iter().all(|(request, _)| request.provider.0 == 2));
    assert_eq!(harness.swarm.bytes_proven(), 5 * GROUP_BYTES);
    assert!(harness.add(1, Has::All).is_empty());
    assert_eq!(harness.dropped.len(), 2, "a rejoin is rejected");
}

#[test]
fn corrupt_data_of_a_cancelled_request_drops_the_provider() {
    let mut harness = Harness::new(64 << 20);
    let requests = harness.add(1, Has::All);
    harness.fail(requests[1].0, Failure::Broken);
    assert!(harness.in_flight.is_empty(), "the failure cancels the other request");
    harness.handle(Event::RequestFailed { request: requests[0].0, why: Failure::SentCorruptData });
    assert_eq!(harness.dropped, [(1, Dropped::SentCorruptData)]);
}

#[test]
fn provider_that_changed_is_gone_or_refused_is_used_again_when_it_rejoins() {
    let reasons = [
        (Failure::Changed, Dropped::Changed),
        (Failure::NotHere, Dropped::NotHere),
        (Failure::Refused, Dropped::Refused),
    ];
    for (failure, why) in reasons {
        let mut harness = Harness::new(4 << 20);
        let (request, _) = harness.add(1, Has::All).remove(0);
        harness.fail(request, failure);
        assert_eq!((harness.dropped.clone(), harness.stuck), (vec![(1, why)], 1));
        assert!(!harness.add(1, Has::All).is_empty());
    }
}

#[test]
fn wait_for_a_busy_provider_doubles_and_honours_its_request() {
    let mut harness = Harness::new(4 << 20);
    let (mut request, _) = harness.add(1, Has::All).remove(0);
    let mut waits = Vec::new();
    for _ in 0..8 {
        for (other, _) in harness.requests_to(1) {
            harness.in_flight.remove(&other);
            harness.handle(Event::RequestFailed { request: other, why: Failure::Busy { retry_after: None } });
        }
        let since = harness.now;
        let due = harness.swarm.next_deadline().expect("the provider is retried");
        assert!(harness.requests_to(1).is_empty());
        let mut again = harness.advance(due.since(harness.now));
        while again.is_empty() {
            let due = harness.swarm.next_deadline().expect("the provider is retried");
            again = harness.advance(due.since(harness.now));
        }
        (request, _) = again.remove(0);
        waits.push(harness.now.since(since));
    }
    assert!(waits[0] >= PROVIDER_BACKOFF / 2 && waits[0] <= PROVIDER_BACKOFF, "{waits:?}");
    assert!(waits[7] > MAX_PROVIDER_BACKOFF / 2 && waits[7] <= MAX_PROVIDER_BACKOFF, "{waits:?}");
    assert_eq!((harness.dropped.len(), harness.stuck), (0, 0), "busy is not a failure");
    harness.deliver(request, 1, MILLISECOND);
    let wanted = Duration::from_secs(5);
    harness.fail(request, Failure::Busy { retry_after: Some(wanted) });
    assert!(
        harness.advance(wanted - MILLISECOND).iter().all(|(request, _)| request.provider.0 != 1),
        "the requested wait is honoured"
    );
}

#[test]
fn refusal_as_busy_leaves_other_requests_in_flight() {
    let mut harness = Harness::new(64 << 20);
    let requests = harness.add(1, Has::All);
    harness.fail(requests[1].0, Failure::Busy { retry_after: None });
    assert_eq!(harness.requests_to(1).len(), 1);
    assert!(harness.deliver(requests[0].0, 100, MILLISECOND).is_empty(), "no request before the wait is over");
    assert_eq!(harness.swarm.bytes_proven(), 100 * GROUP_BYTES);
}

#[test]
fn silent_provider_loses_its_requests_and_is_dropped_after_repeated_failures() {
    let mut harness = Harness::new(4 << 20);
    harness.add(1, Has::All);
    harness.advance(PROVIDER_SILENCE - MILLISECOND);
    assert!(!harness.requests_to(1).is_empty());
    harness.advance(MILLISECOND);
    assert!(harness.requests_to(1).is_empty());
    assert_eq!(harness.stuck, 0, "the provider may recover");
    harness.advance(Duration::from_secs(120));
    assert_eq!(harness.dropped, [(1, Dropped::Failing)]);
    assert_eq!((harness.stuck, harness.swarm.phase), (1, Phase::Stuck));
}

#[test]
fn activity_prevents_silence() {
    let mut harness = Harness::new(4 << 20);
    harness.add(1, Has::All);
    for _ in 0..5 {
        harness.advance(PROVIDER_SILENCE - MILLISECOND);
        harness.handle(Event::Activity { provider: ProviderId(1), rtt: None });
    }
    assert_eq!(harness.requests_to(1).len(), 1);
}

#[test]
fn stall_of_this_peer_extends_the_silence_deadline() {
    let mut harness = Harness::new(4 << 20);
    harness.add(1, Has::All);
    harness.now += Duration::from_secs(3600);
    harness.handle(Event::Tick);
    assert_eq!(harness.requests_to(1).len(), 1);
    harness.advance(PROVIDER_SILENCE);
    assert!(harness.requests_to(1).is_empty(), "its own silence still counts");
}

#[test]
fn request_done_before_its_last_group_is_a_failure() {
    let mut harness = Harness::new(4 << 20);
    let (request, _) = harness.add(1, Has::All).remove(0);
    harness.deliver(request, 3, MILLISECOND);
    harness.in_flight.remove(&request);
    assert!(harness.handle(Event::RequestDone { request }).is_empty(), "the provider is not retried at once");
    assert!(harness.requests_to(1).is_empty());
    assert!(!harness.advance(PROVIDER_BACKOFF).is_empty());
}

#[test]
fn truncated_request_is_over_once_its_wanted_groups_are_verified() {
    let mut harness = Harness::new(64 << 20);
    let (request, _) = harness.add(1, Has::All).remove(0);
    harness.deliver(request, 1, MILLISECOND);
    // A second provider truncates the long request of the first.
    harness.add(2, Has::All);
    let wanted = harness.in_flight[&request].clone();
    assert!(wanted.end - wanted.start < 2 * PIECE, "{wanted:?}");
    harness.deliver(request, wanted.end - wanted.start, MILLISECOND);
    let in_flight = harness.requests_to(1);
    assert!(in_flight.iter().all(|(other, _)| *other != request));
    // The shell reports the end of the stream once, as of any other request.
    harness.handle(Event::RequestDone { request });
    assert_eq!(harness.requests_to(1), in_flight, "the report is not a failure");
    let provider = &harness.swarm.providers[&ProviderId(1)];
    assert!(provider.retry_at().is_none() && provider.request(request).is_none());
}

#[test]
fn stuck_is_reported_once_until_a_provider_gains_a_missing_group() {
    let mut harness = Harness::new(1 << 20);
    harness.handle(Event::Tick);
    assert_eq!(harness.stuck, 1, "no provider");
    harness.add(1, Has::Groups(set(&[pieces(0..1)])));
    assert_eq!(harness.swarm.phase, Phase::Running);
    let (request, _) = harness.requests_to(1)[0].clone();
    harness.deliver(request, PIECE, MILLISECOND);
    assert_eq!((harness.stuck, harness.swarm.phase), (2, Phase::Stuck), "the provider has no more");
    harness.gain(1, pieces(1..2));
    assert_eq!((harness.stuck, harness.swarm.phase), (2, Phase::Running));
}
