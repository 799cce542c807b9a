//! Length, number and content of requests.

use super::*;

#[test]
fn single_provider_gets_two_long_consecutive_requests() {
    let mut harness = Harness::new(1 << 30);
    let requests = harness.add(1, Has::All);
    let run = MAX_REQUEST_BYTES / GROUP_BYTES;
    let [(first, one), (second, two)] = &requests[..] else { panic!("expected two requests: {requests:?}") };
    assert_eq!((one.end - one.start, two.end - two.start), (run, run));
    assert_eq!(one.end, two.start, "the requests are consecutive");
    assert!(harness.deliver(*first, run - 1, 30 * MILLISECOND).is_empty());
    let next = harness.deliver(*first, 1, MILLISECOND);
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].1.start, two.end);
    assert_eq!(harness.requests_to(1)[0].0, *second);
}

#[test]
fn requests_to_a_single_provider_grow_while_receivers_are_expected() {
    let mut harness =
        Harness::with(SwarmConfig { size: 1 << 30, have: GroupRanges::default(), expects_receivers: true, seed: 1 });
    harness.add(1, Has::All);
    let first = Layout::new(1 << 30).groups_per_piece();
    assert!(
        harness.requests_to(1).iter().all(|(_, groups)| groups.end - groups.start == first),
        "{:?}",
        harness.requests_to(1)
    );
    let mut sizes = Vec::new();
    while harness.finished == 0 {
        let (request, groups) = harness.requests_to(1)[0].clone();
        sizes.push(groups.end - groups.start);
        harness.deliver(request, groups.end - groups.start, MILLISECOND);
    }
    assert!(sizes.contains(&(MAX_REQUEST_BYTES / GROUP_BYTES)), "{sizes:?}");
    assert!(sizes.len() < 50, "few short requests, then long ones: {sizes:?}");
}

#[test]
fn path_with_a_large_bandwidth_delay_product_gets_the_maximum_of_requests() {
    let mut harness = Harness::new(8 << 30);
    let rtt = Some(Duration::from_millis(200));
    harness.handle(Event::ProviderAdded { provider: ProviderId(1), has: Has::All, rtt });
    // 2 GB/s: 250 ms of it are 500 MB, 16 runs of 32 MiB.
    for _ in 0..80 {
        let (request, _) = harness.requests_to(1)[0].clone();
        harness.deliver(request, 2000, 16 * MILLISECOND);
    }
    assert_eq!(harness.requests_to(1).len(), MAX_REQUESTS_PER_PROVIDER);
}

#[test]
fn small_file_is_one_request() {
    for seed in 0..20 {
        let mut harness = Harness::resumed(20 * GROUP_BYTES, &[], seed);
        let requests = harness.add(1, Has::All);
        assert_eq!(requests.into_iter().map(|(_, groups)| groups).collect::<Vec<_>>(), vec![0..20u64]);
    }
}

#[test]
fn empty_file_has_one_empty_group() {
    let mut harness = Harness::new(0);
    let (request, groups) = harness.add(1, Has::All).remove(0);
    assert_eq!(groups, 0..1);
    harness.deliver(request, 1, MILLISECOND);
    assert_eq!((harness.finished, harness.swarm.phase), (1, Phase::Finished));
}

#[test]
fn groups_of_an_earlier_run_are_not_requested() {
    let mut harness = Harness::resumed(1 << 20, std::slice::from_ref(&(0..64)), 1);
    harness.handle(Event::Tick);
    assert_eq!((harness.finished, harness.swarm.bytes_proven()), (1, 1 << 20));

    let have = [3..5, 40..50, 60..64];
    let mut harness = Harness::resumed(1 << 20, &have, 1);
    let mut requested: BTreeSet<u64> = BTreeSet::new();
    let mut requests = harness.add(1, Has::All);
    while let Some((request, groups)) = requests.pop() {
        assert!(groups.clone().all(|group| requested.insert(group)), "requested once");
        requests.extend(harness.deliver(request, 64, MILLISECOND));
    }
    assert_eq!(requested.len(), 64 - 16);
    assert!(have.iter().cloned().flatten().all(|group| !requested.contains(&group)));
    assert_eq!(harness.finished, 1);
}

#[test]
fn groups_of_a_cancelled_request_count() {
    let mut harness = Harness::new(64 << 20);
    let requests = harness.add(1, Has::All);
    let (request, groups) = requests[0].clone();
    harness.fail(requests[1].0, Failure::Broken);
    assert!(harness.in_flight.is_empty(), "the failure cancels the other request");
    harness.handle(Event::Verified { request, groups: groups.start..groups.start + 3 });
    assert_eq!(harness.swarm.bytes_proven(), 3 * GROUP_BYTES);
    harness.handle(Event::Verified { request, groups: 0..u64::MAX });
    assert_eq!(harness.swarm.bytes_proven(), 3 * GROUP_BYTES, "groups beyond the file do not");
}

#[test]
fn piece_without_a_full_provider_is_gathered_from_partial_ones() {
    let mut harness = Harness::new(PIECE * GROUP_BYTES);
    harness.add(1, Has::Groups(one(0..7)));
    harness.add(2, Has::Groups(one(5..16)));
    for _ in 0..4 {
        let Some((&request, _)) = harness.in_flight.first_key_value() else { break };
        harness.deliver(request, 16, MILLISECOND);
    }
    assert_eq!(harness.finished, 1);
    assert_eq!(harness.bytes_duplicated, 0);
}

#[test]
fn numbers_of_active_and_known_providers_are_bounded() {
    let mut harness = Harness::new(128 << 20);
    for provider in 0..u32::try_from(MAX_SWARM_PROVIDERS).unwrap() {
        harness.add(provider, Has::All);
    }
    let active: BTreeSet<_> = harness.in_flight.keys().map(|request| request.provider).collect();
    assert_eq!(active.len(), MAX_ACTIVE_PROVIDERS);
    harness.add(9999, Has::All);
    assert_eq!(harness.dropped, [(9999, Dropped::TooMany)]);
    let lost = active.first().copied().unwrap();
    harness.handle(Event::ProviderLost { provider: lost });
    let active: BTreeSet<_> = harness.in_flight.keys().map(|request| request.provider).collect();
    assert_eq!(active.len(), MAX_ACTIVE_PROVIDERS, "another provider takes its place");
}

#[test]
fn rate_of_a_provider_is_measured() {
    let mut harness = Harness::new(64 << 20);
    harness.add(1, Has::All);
    harness.stream(1, 200, MILLISECOND);
    let provider = &harness.swarm.providers[&ProviderId(1)];
    let rate = provider.rate().expect("measured");
    let expected = GROUP_BYTES as f64 * 1000.0;
    assert!((rate / expected - 1.0).abs() < 0.05, "{rate} instead of {expected}");
    assert_eq!((provider.requests.len(), provider.bytes_proven), (2, 200 * GROUP_BYTES));
    assert_eq!(provider.stall(harness.now), Duration::ZERO);
    assert_eq!(harness.swarm.bytes_proven(), 200 * GROUP_BYTES);
    assert_eq!(
        provider.backlog_bytes(),
        harness.in_flight.values().map(|groups| groups.end - groups.start).sum::<u64>() * GROUP_BYTES
    );
}
