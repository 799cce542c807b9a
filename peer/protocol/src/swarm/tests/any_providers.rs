//! Arbitrary sequences of events.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Add(u32, Option<Vec<Range<u64>>>),
    Introduce(u32, Option<Vec<Range<u64>>>),
    Gain(u32, Range<u64>),
    Lose(u32),
    Deliver(prop::sample::Index, u64),
    Fail(prop::sample::Index, Failure),
    Advance(u64),
    Rank(u32, u32),
}

fn run(groups: u64) -> impl Strategy<Value = Range<u64>> {
    (0..groups, 1u64..60).prop_map(move |(start, len)| start..(start + len).min(groups))
}

fn step(groups: u64) -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        Just(Failure::SentCorruptData),
        Just(Failure::Changed),
        Just(Failure::NotHere),
        Just(Failure::Refused),
        Just(Failure::Busy { retry_after: None }),
        Just(Failure::Silent),
        Just(Failure::Broken),
    ];
    let has = || prop::option::of(prop::collection::vec(run(groups), 0..4));
    prop_oneof![
        2 => (0u32..6, has()).prop_map(|(provider, has)| Step::Add(provider, has)),
        1 => (0u32..6, has()).prop_map(|(provider, has)| Step::Introduce(provider, has)),
        2 => (0u32..6, run(groups)).prop_map(|(provider, run)| Step::Gain(provider, run)),
        1 => (0u32..6).prop_map(Step::Lose),
        12 => (any::<prop::sample::Index>(), 1u64..20).prop_map(|(which, count)| Step::Deliver(which, count)),
        1 => (any::<prop::sample::Index>(), failure).prop_map(|(which, why)| Step::Fail(which, why)),
        3 => (1u64..3000).prop_map(Step::Advance),
        1 => (0u32..5, 0u32..5).prop_map(|(rank, receivers)| Step::Rank(rank, receivers)),
    ]
}

/// Records what a provider that joins has.
fn learn(has: &mut BTreeMap<u32, BTreeSet<u64>>, groups: u64, provider: u32, runs: Option<Vec<Range<u64>>>) -> Has {
    let known = has.entry(provider).or_default();
    match &runs {
        None => known.extend(0..groups),
        Some(runs) => known.extend(runs.iter().cloned().flatten().filter(|group| *group < groups)),
    }
    runs.map_or(Has::All, |runs| Has::Groups(set(&runs)))
}

proptest! {
    /// Every request is for missing groups that the provider has, no group is in more than two requests, dropped
    /// providers get none (asserted by [`Harness::handle`]), and one honest provider completes the download.
    #[test]
    fn arbitrary_events_lead_only_to_valid_requests_and_an_honest_provider_finishes(
        size in 1u64..6 << 20,
        steps in prop::collection::vec(step(384), 0..120),
        seed in any::<u64>(),
    ) {
        let groups = shared::group_ranges::group_count(size);
        let mut harness = Harness::resumed(size, &[], seed);
        let mut has: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        let mut proven: BTreeSet<u64> = BTreeSet::new();
        for step in steps {
            let requests = match step {
                Step::Add(provider, runs) => {
                    let offered = learn(&mut has, groups, provider, runs);
                    harness.add(provider, offered)
                }
                Step::Introduce(provider, runs) => {
                    let offered = learn(&mut has, groups, provider, runs);
                    harness.introduce(provider, &offered);
                    Vec::new()
                }
                Step::Gain(provider, run) => {
                    has.entry(provider).or_default().extend(run.clone().filter(|group| *group < groups));
                    harness.gain(provider, run)
                }
                Step::Lose(provider) => harness.handle(Event::ProviderLost { provider: ProviderId(provider) }),
                Step::Deliver(which, count) if !harness.in_flight.is_empty() => {
                    let (request, run) = harness.in_flight.iter().nth(which.index(harness.in_flight.len())).unwrap();
                    let (request, run) = (*request, run.clone());
                    proven.extend(run.start..(run.start + count).min(run.end));
                    harness.deliver(request, count, MILLISECOND)
                }
                Step::Fail(which, why) if !harness.in_flight.is_empty() => {
                    let request = *harness.in_flight.keys().nth(which.index(harness.in_flight.len())).unwrap();
                    harness.fail(request, why)
                }
                Step::Deliver(..) | Step::Fail(..) => Vec::new(),
                Step::Advance(millis) => harness.advance(Duration::from_millis(millis)),
                Step::Rank(rank, receivers) => harness.handle(Event::Ranked { rank, receivers }),
            };
            for (request, run) in requests {
                prop_assert!(run.clone().all(|group| has[&request.provider.0].contains(&group)), "{request:?} {run:?}");
                prop_assert!(run.clone().all(|group| !proven.contains(&group)), "{request:?} for {run:?}, which is verified");
            }
        }
        harness.add(100, Has::All);
        let mut rounds = 0;
        while harness.finished == 0 {
            rounds += 1;
            prop_assert!(rounds < 5000, "{} bytes, {:?}", harness.swarm.bytes_proven(), harness.in_flight);
            match harness.requests_to(100).first().cloned() {
                Some((request, run)) => {
                    proven.extend(run.start..(run.start + 4).min(run.end));
                    harness.deliver(request, 4, 2 * MILLISECOND);
                }
                None => {
                    harness.advance(100 * MILLISECOND);
                }
            }
        }
        prop_assert_eq!(proven.len() as u64, groups);
        prop_assert_eq!(harness.swarm.bytes_proven(), size);
        prop_assert_eq!((harness.finished, harness.in_flight.len(), harness.swarm.next_deadline()), (1, 0, None));
    }
}
