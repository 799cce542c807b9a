//! Whatever owners do, and in whatever order.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Add(u32, Option<Vec<Range<u64>>>),
    Gain(u32, Range<u64>),
    Lose(u32),
    Bring(prop::sample::Index, u64),
    Fail(prop::sample::Index, Failure),
    Wait(u64),
    Place(u32, u32),
    PauseAndResume,
}

fn run(groups: u64) -> impl Strategy<Value = Range<u64>> {
    (0..groups, 1u64..60).prop_map(move |(start, len)| start..(start + len).min(groups))
}

fn step(groups: u64) -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        Just(Failure::Lied),
        Just(Failure::Changed),
        Just(Failure::NotHere),
        Just(Failure::Refused),
        Just(Failure::Busy { retry_after: None }),
        Just(Failure::Silent),
        Just(Failure::Broken),
    ];
    let has = prop::option::of(prop::collection::vec(run(groups), 0..4));
    prop_oneof![
        2 => (0u32..6, has).prop_map(|(owner, has)| Step::Add(owner, has)),
        2 => (0u32..6, run(groups)).prop_map(|(owner, run)| Step::Gain(owner, run)),
        1 => (0u32..6).prop_map(Step::Lose),
        12 => (any::<prop::sample::Index>(), 1u64..20).prop_map(|(which, count)| Step::Bring(which, count)),
        1 => (any::<prop::sample::Index>(), failure).prop_map(|(which, why)| Step::Fail(which, why)),
        3 => (1u64..3000).prop_map(Step::Wait),
        1 => (0u32..5, 0u32..5).prop_map(|(place, receivers)| Step::Place(place, receivers)),
        1 => Just(Step::PauseAndResume),
    ]
}

proptest! {
    /// Whatever the owners do: nothing is asked that they do not have or that is there already, no group of more than two,
    /// nothing of the dropped (as [`Bed::tell`] asserts); and with one honest owner it comes to an end.
    #[test]
    fn every_group_comes_whatever_owners_do(
        size in 1u64..6 << 20,
        steps in prop::collection::vec(step(384), 0..120),
        seed in any::<u64>(),
        sequential in any::<bool>(),
    ) {
        let groups = shared::group_ranges::group_count(size);
        let picker = if sequential { PickerKind::Sequential } else { PickerKind::RarestFirst };
        let mut bed = Bed::new(size, &[], picker, seed);
        let mut has: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        let mut proven: BTreeSet<u64> = BTreeSet::new();
        for step in steps {
            let requests = match step {
                Step::Add(owner, runs) => {
                    let known = has.entry(owner).or_default();
                    match &runs {
                        None => known.extend(0..groups),
                        Some(runs) => known.extend(runs.iter().cloned().flatten().filter(|group| *group < groups)),
                    }
                    bed.add(owner, runs.map_or(Has::All, |runs| Has::Groups(set(&runs))))
                }
                Step::Gain(owner, run) => {
                    has.entry(owner).or_default().extend(run.clone().filter(|group| *group < groups));
                    bed.gain(owner, run)
                }
                Step::Lose(owner) => bed.tell(Event::ProviderLost { owner: ProviderId(owner) }),
                Step::Bring(which, count) if !bed.under_way.is_empty() => {
                    let (request, run) = bed.under_way.iter().nth(which.index(bed.under_way.len())).unwrap();
                    let (request, run) = (*request, run.clone());
                    proven.extend(run.start..(run.start + count).min(run.end));
                    bed.bring(request, count, MILLISECOND)
                }
                Step::Fail(which, why) if !bed.under_way.is_empty() => {
                    let request = *bed.under_way.keys().nth(which.index(bed.under_way.len())).unwrap();
                    bed.fail(request, why)
                }
                Step::Bring(..) | Step::Fail(..) => Vec::new(),
                Step::Wait(millis) => bed.wait(Duration::from_millis(millis)),
                Step::Place(place, receivers) => bed.tell(Event::Placed { place, receivers }),
                Step::PauseAndResume => {
                    bed.tell(Event::Pause);
                    prop_assert!(bed.under_way.is_empty());
                    bed.tell(Event::Resume)
                }
            };
            for (request, run) in requests {
                prop_assert!(run.clone().all(|group| has[&request.owner.0].contains(&group)), "{request:?} {run:?}");
                prop_assert!(run.clone().all(|group| !proven.contains(&group)), "{request:?} {run:?} is there");
            }
        }
        bed.add(100, Has::All);
        let mut rounds = 0;
        while bed.finished == 0 {
            rounds += 1;
            prop_assert!(rounds < 5000, "{:?} {:?}", bed.swarm.progress(), bed.under_way);
            match bed.of(100).first().cloned() {
                Some((request, run)) => {
                    proven.extend(run.start..(run.start + 4).min(run.end));
                    bed.bring(request, 4, 2 * MILLISECOND);
                }
                None => {
                    bed.wait(100 * MILLISECOND);
                }
            }
        }
        prop_assert_eq!(proven.len() as u64, groups);
        prop_assert_eq!(bed.swarm.progress().bytes_proven, size);
        prop_assert_eq!((bed.finished, bed.under_way.len(), bed.swarm.next_deadline()), (1, 0, None));
    }
}
