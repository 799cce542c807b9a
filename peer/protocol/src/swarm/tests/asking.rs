//! How much is asked of whom, and what.

use super::*;

#[test]
fn a_lone_owner_is_asked_for_long_runs_one_behind_the_other() {
    let mut bed = Bed::rarest(1 << 30);
    let requests = bed.add(1, Has::All);
    let run = MAX_REQUEST_BYTES / GROUP_BYTES;
    let [(first, one), (second, two)] = &requests[..] else {
        panic!("two, so that the pipe never drains: {requests:?}")
    };
    assert_eq!((one.end - one.start, two.end - two.start), (run, run));
    assert_eq!(one.end, two.start, "one long stream");
    assert!(bed.bring(*first, run - 1, 30 * MILLISECOND).is_empty());
    let next = bed.bring(*first, 1, MILLISECOND);
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].1.start, two.end);
    assert_eq!(bed.of(1)[0].0, *second);
}

#[test]
fn where_others_may_turn_up_a_lone_owner_is_asked_for_little_at_first_and_for_more_and_more() {
    let picker = PickerKind::RarestFirst;
    let mut bed =
        Bed::with(SwarmConfig { size: 1 << 30, have: GroupRanges::default(), picker, expects_receivers: true, seed: 1 });
    bed.add(1, Has::All);
    let first = Layout::new(1 << 30).groups_per_piece();
    assert!(bed.of(1).iter().all(|(_, groups)| groups.end - groups.start == first), "{:?}", bed.of(1));
    let mut sizes = Vec::new();
    while bed.finished == 0 {
        let (request, groups) = bed.of(1)[0].clone();
        sizes.push(groups.end - groups.start);
        bed.bring(request, groups.end - groups.start, MILLISECOND);
    }
    assert!(sizes.contains(&(MAX_REQUEST_BYTES / GROUP_BYTES)), "{sizes:?}");
    assert!(sizes.len() < 50, "a few short ones, then long ones: {sizes:?}");
}

#[test]
fn long_fat_paths_get_more_requests_but_not_without_end() {
    let mut bed = Bed::rarest(8 << 30);
    let rtt = Some(Duration::from_millis(200));
    bed.tell(Event::ProviderAdded { owner: ProviderId(1), has: Has::All, rtt });
    // 2 GB/s: 250 ms of it are 500 MB, 16 runs of 32 MiB.
    for _ in 0..80 {
        let (request, _) = bed.of(1)[0].clone();
        bed.bring(request, 2000, 16 * MILLISECOND);
    }
    assert_eq!(bed.of(1).len(), MAX_REQUESTS_PER_PROVIDER);
}

#[test]
fn a_small_file_is_one_request() {
    for picker in [PickerKind::RarestFirst, PickerKind::Sequential] {
        for seed in 0..20 {
            let mut bed = Bed::new(20 * GROUP_BYTES, &[], picker, seed);
            let requests = bed.add(1, Has::All);
            assert_eq!(requests.into_iter().map(|(_, groups)| groups).collect::<Vec<_>>(), vec![0..20u64]);
        }
    }
}

#[test]
fn an_empty_file_has_an_empty_group_to_prove() {
    let mut bed = Bed::rarest(0);
    let (request, groups) = bed.add(1, Has::All).remove(0);
    assert_eq!(groups, 0..1);
    bed.bring(request, 1, MILLISECOND);
    assert_eq!((bed.finished, bed.standing()), (1, Standing::Finished));
}

#[test]
fn what_is_proven_already_is_not_asked_for() {
    let mut bed = Bed::new(1 << 20, std::slice::from_ref(&(0..64)), PickerKind::RarestFirst, 1);
    bed.tell(Event::Tick);
    assert_eq!((bed.finished, bed.swarm.progress().bytes_proven), (1, 1 << 20));

    let have = [3..5, 40..50, 60..64];
    let mut bed = Bed::new(1 << 20, &have, PickerKind::RarestFirst, 1);
    let mut asked: BTreeSet<u64> = BTreeSet::new();
    let mut requests = bed.add(1, Has::All);
    while let Some((request, groups)) = requests.pop() {
        assert!(groups.clone().all(|group| asked.insert(group)), "asked for once");
        requests.extend(bed.bring(request, 64, MILLISECOND));
    }
    assert_eq!(asked.len(), 64 - 16);
    assert!(have.iter().cloned().flatten().all(|group| !asked.contains(&group)));
    assert_eq!(bed.finished, 1);
}

#[test]
fn what_is_proven_of_a_cancelled_request_counts() {
    let mut bed = Bed::rarest(4 << 20);
    let (request, groups) = bed.add(1, Has::All).remove(0);
    bed.tell(Event::Pause);
    bed.tell(Event::Verified { request, groups: groups.start..groups.start + 3 });
    assert_eq!(bed.swarm.progress().bytes_proven, 3 * GROUP_BYTES);
    bed.tell(Event::Verified { request, groups: 0..u64::MAX });
    assert_eq!(bed.swarm.progress().bytes_proven, 3 * GROUP_BYTES, "nonsense does not");
}

#[test]
fn in_sequence_means_from_the_beginning() {
    let mut bed = Bed::new(4 << 20, &[], PickerKind::Sequential, 1);
    bed.add(1, Has::All);
    bed.add(2, Has::All);
    let mut pieces: Vec<_> = bed.under_way.values().cloned().collect();
    pieces.sort_by_key(|groups| groups.start);
    assert_eq!(pieces, [0..16, 16..32, 32..48, 48..64]);
}

#[test]
fn a_piece_can_come_from_owners_of_its_parts() {
    let mut bed = Bed::rarest(PIECE * GROUP_BYTES);
    bed.add(1, Has::Groups(one(0..7)));
    bed.add(2, Has::Groups(one(5..16)));
    for _ in 0..4 {
        let Some((&request, _)) = bed.under_way.first_key_value() else { break };
        bed.bring(request, 16, MILLISECOND);
    }
    assert_eq!(bed.finished, 1);
    assert_eq!(bed.swarm.progress().bytes_twice, 0);
}

#[test]
fn a_paused_swarm_asks_for_nothing() {
    let mut bed = Bed::rarest(4 << 20);
    bed.add(1, Has::All);
    bed.tell(Event::Pause);
    assert!(bed.under_way.is_empty());
    assert!(bed.add(2, Has::All).is_empty());
    assert!(bed.wait(Duration::from_secs(60)).is_empty());
    assert_eq!(bed.standing(), Standing::Paused);
    assert_eq!(bed.tell(Event::Resume).len(), 4, "two of each");
}

#[test]
fn few_of_many_owners_are_asked_at_a_time_and_the_number_known_is_bounded() {
    let mut bed = Bed::rarest(128 << 20);
    for owner in 0..u32::try_from(MAX_SWARM_PROVIDERS).unwrap() {
        bed.add(owner, Has::All);
    }
    let asked: BTreeSet<_> = bed.under_way.keys().map(|request| request.owner).collect();
    assert_eq!(asked.len(), MAX_ACTIVE_PROVIDERS);
    bed.add(9999, Has::All);
    assert_eq!(bed.dropped, [(9999, Dropped::TooMany)]);
    let gone = asked.first().copied().unwrap();
    bed.tell(Event::ProviderLost { owner: gone });
    let asked: BTreeSet<_> = bed.under_way.keys().map(|request| request.owner).collect();
    assert_eq!(asked.len(), MAX_ACTIVE_PROVIDERS, "another gets its turn");
}

#[test]
fn owners_are_described() {
    let mut bed = Bed::rarest(64 << 20);
    bed.add(1, Has::All);
    bed.flow(1, 200, MILLISECOND);
    let status = bed.swarm.owners(bed.now).next().expect("one owner");
    let rate = status.bytes_per_second.expect("measured");
    let expected = GROUP_BYTES as f64 * 1000.0;
    assert!((rate / expected - 1.0).abs() < 0.05, "{rate} instead of {expected}");
    assert_eq!((status.requests, status.bytes_proven, status.quiet), (2, 200 * GROUP_BYTES, Duration::ZERO));
    let progress = bed.swarm.progress();
    assert_eq!(progress.bytes_proven, 200 * GROUP_BYTES);
    assert_eq!(
        progress.bytes_asked,
        bed.under_way.values().map(|groups| groups.end - groups.start).sum::<u64>() * GROUP_BYTES
    );
}
