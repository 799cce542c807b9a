//! What a shell notices of the scheduler. The simulation of whole swarms is `tests/swarm_sim.rs`.

use proptest::prelude::*;
use shared::limits::{
    GROUP_BYTES, LEFT_ALONE_AT_MOST, MAX_ACTIVE_OWNERS, MAX_OWNER_BACKOFF, MAX_REQUEST_BYTES, MAX_REQUESTS_PER_OWNER,
    MIN_PIECE_BYTES, OWNER_BACKOFF, OWNER_SILENCE,
};

use super::*;

const PIECE: u64 = MIN_PIECE_BYTES / GROUP_BYTES;
const MILLISECOND: Duration = Duration::from_millis(1);

/// A swarm and the shell's view of it: which requests are under way.
struct Bed {
    swarm: Swarm,
    now: Timestamp,
    under_way: BTreeMap<RequestId, Range<u64>>,
    dropped: Vec<(u32, Dropped)>,
    stuck: usize,
    finished: usize,
}

impl Bed {
    fn new(size: u64, have: &[Range<u64>], picker: PickerKind, seed: u64) -> Self {
        Self::with(SwarmConfig { size, have: set(have), picker, is_sociable: false, seed })
    }

    fn with(config: SwarmConfig) -> Self {
        Self {
            swarm: Swarm::new(config, Timestamp::ZERO),
            now: Timestamp::ZERO,
            under_way: BTreeMap::new(),
            dropped: Vec::new(),
            stuck: 0,
            finished: 0,
        }
    }

    fn rarest(size: u64) -> Self {
        Self::new(size, &[], PickerKind::RarestFirst, 1)
    }

    /// Carries out what the swarm wants; returns the new requests.
    fn tell(&mut self, event: Event) -> Vec<(RequestId, Range<u64>)> {
        if let Event::OwnerLost { owner } = &event {
            self.under_way.retain(|request, _| request.owner != *owner);
        }
        let mut out = Vec::new();
        self.swarm.handle(self.now, event, &mut out);
        let mut requests = Vec::new();
        for action in out {
            match action {
                Action::Request { request, groups } => {
                    assert!(!groups.is_empty());
                    assert!(!self.dropped.iter().any(|(owner, _)| *owner == request.owner.0), "{request:?}, dropped");
                    assert!(self.under_way.insert(request, groups.clone()).is_none(), "a new name for a new request");
                    requests.push((request, groups));
                }
                Action::Truncate { request, at_group } => {
                    let groups = self.under_way.get_mut(&request).expect("only what is under way is cut");
                    assert!(groups.start < at_group && at_group < groups.end, "{groups:?} at {at_group}");
                    groups.end = at_group;
                }
                Action::Cancel { request } => {
                    assert!(self.under_way.remove(&request).is_some(), "only what is under way is cancelled");
                }
                Action::Drop { owner, why } => self.dropped.push((owner.0, why)),
                Action::Stuck => self.stuck += 1,
                Action::Finished => self.finished += 1,
            }
        }
        self.check();
        requests
    }

    /// What holds after every event.
    fn check(&self) {
        let mut of_piece: BTreeMap<u64, Vec<OwnerId>> = BTreeMap::new();
        let mut of_owner: BTreeMap<OwnerId, usize> = BTreeMap::new();
        for (request, groups) in &self.under_way {
            *of_owner.entry(request.owner).or_default() += 1;
            for piece in self.swarm.layout.pieces_of(groups) {
                of_piece.entry(piece.into()).or_default().push(request.owner);
            }
        }
        for (piece, owners) in of_piece {
            assert!(owners.len() <= 2, "piece {piece} is asked of {owners:?}");
            assert!(owners.len() < 2 || owners[0] != owners[1], "piece {piece} is asked of {owners:?}");
        }
        assert!(of_owner.len() <= MAX_ACTIVE_OWNERS, "{of_owner:?}");
        assert!(of_owner.values().all(|requests| *requests <= MAX_REQUESTS_PER_OWNER), "{of_owner:?}");
        let due = self.swarm.next_deadline();
        // Silence is counted beyond a round trip, a wait is jittered.
        let latest = self.now + 2 * (MAX_OWNER_BACKOFF + OWNER_SILENCE);
        assert!(due.is_none_or(|due| due <= latest), "due {due:?} at {:?}", self.now);
        assert!(self.under_way.is_empty() || due.is_some(), "nobody would notice silence");
    }

    fn add(&mut self, owner: u32, has: Has) -> Vec<(RequestId, Range<u64>)> {
        self.dropped.retain(|(dropped, why)| *dropped != owner || *why == Dropped::Lied);
        self.tell(Event::OwnerAdded { owner: OwnerId(owner), has, rtt: Some(10 * MILLISECOND) })
    }

    fn gain(&mut self, owner: u32, groups: Range<u64>) -> Vec<(RequestId, Range<u64>)> {
        self.tell(Event::OwnerHas { owner: OwnerId(owner), gained: set(&[groups]) })
    }

    /// The next `count` groups of a request are proven, `after` from now.
    fn bring(&mut self, request: RequestId, count: u64, after: Duration) -> Vec<(RequestId, Range<u64>)> {
        self.now += after;
        let groups = self.under_way.get_mut(&request).expect("under way");
        let brought = groups.start..(groups.start + count).min(groups.end);
        groups.start = brought.end;
        if groups.is_empty() {
            self.under_way.remove(&request);
        }
        self.tell(Event::Verified { request, groups: brought })
    }

    fn fail(&mut self, request: RequestId, why: Failure) -> Vec<(RequestId, Range<u64>)> {
        self.under_way.remove(&request);
        self.tell(Event::RequestFailed { request, why })
    }

    /// Lets time pass, with the ticks that are due.
    fn wait(&mut self, time: Duration) -> Vec<(RequestId, Range<u64>)> {
        let until = self.now + time;
        let mut requests = Vec::new();
        while let Some(due) = self.swarm.next_deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            requests.extend(self.tell(Event::Tick));
        }
        self.now = until;
        requests
    }

    /// The requests to `owner` that are under way, in order.
    fn of(&self, owner: u32) -> Vec<(RequestId, Range<u64>)> {
        let of = self.under_way.iter().filter(|(request, _)| request.owner.0 == owner);
        of.map(|(&request, groups)| (request, groups.clone())).collect()
    }

    /// The first request of `owner` that is under way brings a group each `pace`, for `count` groups.
    fn flow(&mut self, owner: u32, count: u64, pace: Duration) {
        for _ in 0..count {
            let Some((request, _)) = self.of(owner).first().cloned() else { return };
            self.bring(request, 1, pace);
        }
    }

    fn standing(&self) -> Standing {
        self.swarm.progress().standing
    }
}

fn set(runs: &[Range<u64>]) -> GroupRanges {
    let mut set = GroupRanges::default();
    runs.iter().cloned().for_each(|run| set.insert(run));
    set
}

fn one(run: Range<u64>) -> GroupRanges {
    set(std::slice::from_ref(&run))
}

fn pieces(range: Range<u64>) -> Range<u64> {
    range.start * PIECE..range.end * PIECE
}

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
        Bed::with(SwarmConfig { size: 1 << 30, have: GroupRanges::default(), picker, is_sociable: true, seed: 1 });
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
    bed.tell(Event::OwnerAdded { owner: OwnerId(1), has: Has::All, rtt });
    // 2 GB/s: 250 ms of it are 500 MB, 16 runs of 32 MiB.
    for _ in 0..80 {
        let (request, _) = bed.of(1)[0].clone();
        bed.bring(request, 2000, 16 * MILLISECOND);
    }
    assert_eq!(bed.of(1).len(), MAX_REQUESTS_PER_OWNER);
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
fn a_liar_is_never_asked_again_and_what_it_proved_stays() {
    let mut bed = Bed::rarest(4 << 20);
    let (request, _) = bed.add(1, Has::All).remove(0);
    bed.add(2, Has::All);
    bed.bring(request, 5, MILLISECOND);
    let went_over = bed.fail(request, Failure::Lied);
    assert_eq!(bed.dropped, [(1, Dropped::Lied)]);
    assert!(bed.of(1).is_empty());
    assert!(went_over.iter().all(|(request, _)| request.owner.0 == 2));
    assert_eq!(bed.swarm.progress().bytes_proven, 5 * GROUP_BYTES);
    assert!(bed.add(1, Has::All).is_empty());
    assert_eq!(bed.dropped.len(), 2, "said again");
}

#[test]
fn a_lie_counts_though_the_request_was_cancelled() {
    let mut bed = Bed::rarest(4 << 20);
    let (request, _) = bed.add(1, Has::All).remove(0);
    bed.tell(Event::Pause);
    assert!(bed.under_way.is_empty());
    bed.tell(Event::RequestFailed { request, why: Failure::Lied });
    assert_eq!(bed.dropped, [(1, Dropped::Lied)]);
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
fn the_gone_the_changed_and_the_unwilling_are_asked_when_they_come_again() {
    let reasons = [
        (Failure::Changed, Dropped::Changed),
        (Failure::NotHere, Dropped::NotHere),
        (Failure::Refused, Dropped::Refused),
    ];
    for (failure, why) in reasons {
        let mut bed = Bed::rarest(4 << 20);
        let (request, _) = bed.add(1, Has::All).remove(0);
        bed.fail(request, failure);
        assert_eq!((bed.dropped.clone(), bed.stuck), (vec![(1, why)], 1));
        assert!(!bed.add(1, Has::All).is_empty());
    }
}

#[test]
fn a_busy_owner_is_left_alone_for_longer_and_longer() {
    let mut bed = Bed::rarest(4 << 20);
    let (mut request, _) = bed.add(1, Has::All).remove(0);
    let mut waits = Vec::new();
    for _ in 0..8 {
        for (other, _) in bed.of(1) {
            bed.under_way.remove(&other);
            bed.tell(Event::RequestFailed { request: other, why: Failure::Busy { retry_after: None } });
        }
        let since = bed.now;
        let due = bed.swarm.next_deadline().expect("it is asked again");
        assert!(bed.of(1).is_empty());
        let mut again = bed.wait(due.since(bed.now));
        while again.is_empty() {
            let due = bed.swarm.next_deadline().expect("it is asked again");
            again = bed.wait(due.since(bed.now));
        }
        (request, _) = again.remove(0);
        waits.push(bed.now.since(since));
    }
    assert!(waits[0] >= OWNER_BACKOFF / 2 && waits[0] <= OWNER_BACKOFF, "{waits:?}");
    assert!(waits[7] > MAX_OWNER_BACKOFF / 2 && waits[7] <= MAX_OWNER_BACKOFF, "{waits:?}");
    assert_eq!((bed.dropped.len(), bed.stuck), (0, 0), "busy is no failure");
    bed.bring(request, 1, MILLISECOND);
    let wanted = Duration::from_secs(5);
    bed.fail(request, Failure::Busy { retry_after: Some(wanted) });
    assert!(bed.wait(wanted - MILLISECOND).iter().all(|(request, _)| request.owner.0 != 1), "as it said");
}

#[test]
fn requests_under_way_go_on_when_the_next_is_refused_as_busy() {
    let mut bed = Bed::rarest(64 << 20);
    let requests = bed.add(1, Has::All);
    bed.fail(requests[1].0, Failure::Busy { retry_after: None });
    assert_eq!(bed.of(1).len(), 1);
    assert!(bed.bring(requests[0].0, 100, MILLISECOND).is_empty(), "nothing new before its wait is over");
    assert_eq!(bed.swarm.progress().bytes_proven, 100 * GROUP_BYTES);
}

#[test]
fn a_silent_owner_loses_its_work_and_is_given_up_in_the_end() {
    let mut bed = Bed::rarest(4 << 20);
    bed.add(1, Has::All);
    bed.wait(OWNER_SILENCE - MILLISECOND);
    assert!(!bed.of(1).is_empty());
    bed.wait(MILLISECOND);
    assert!(bed.of(1).is_empty());
    assert_eq!(bed.stuck, 0, "it may come back");
    bed.wait(Duration::from_secs(120));
    assert_eq!(bed.dropped, [(1, Dropped::Failing)]);
    assert_eq!((bed.stuck, bed.standing()), (1, Standing::Stuck));
}

#[test]
fn an_owner_that_is_heard_is_not_silent() {
    let mut bed = Bed::rarest(4 << 20);
    bed.add(1, Has::All);
    for _ in 0..5 {
        bed.wait(OWNER_SILENCE - MILLISECOND);
        bed.tell(Event::Heard { owner: OwnerId(1), rtt: None });
    }
    assert_eq!(bed.of(1).len(), 1);
}

#[test]
fn an_owner_is_not_blamed_for_this_peers_sleep() {
    let mut bed = Bed::rarest(4 << 20);
    bed.add(1, Has::All);
    bed.now += Duration::from_secs(3600);
    bed.tell(Event::Tick);
    assert_eq!(bed.of(1).len(), 1);
    bed.wait(OWNER_SILENCE);
    assert!(bed.of(1).is_empty(), "but for its own");
}

#[test]
fn a_stream_that_ends_too_early_is_a_failure() {
    let mut bed = Bed::rarest(4 << 20);
    let (request, _) = bed.add(1, Has::All).remove(0);
    bed.bring(request, 3, MILLISECOND);
    bed.under_way.remove(&request);
    assert!(bed.tell(Event::RequestDone { request }).is_empty(), "no endless loop of requests");
    assert!(bed.of(1).is_empty());
    assert!(!bed.wait(OWNER_BACKOFF).is_empty());
}

#[test]
fn stuck_is_said_once_and_passes() {
    let mut bed = Bed::rarest(1 << 20);
    bed.tell(Event::Tick);
    assert_eq!(bed.stuck, 1, "nobody is there");
    bed.add(1, Has::Groups(set(&[pieces(0..1)])));
    assert_eq!(bed.standing(), Standing::Running);
    let (request, _) = bed.of(1)[0].clone();
    bed.bring(request, PIECE, MILLISECOND);
    assert_eq!((bed.stuck, bed.standing()), (2, Standing::Stuck), "it has no more");
    bed.gain(1, pieces(1..2));
    assert_eq!((bed.stuck, bed.standing()), (2, Standing::Running));
}

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
fn in_sequence_means_from_the_beginning() {
    let mut bed = Bed::new(4 << 20, &[], PickerKind::Sequential, 1);
    bed.add(1, Has::All);
    bed.add(2, Has::All);
    let mut pieces: Vec<_> = bed.under_way.values().cloned().collect();
    pieces.sort_by_key(|groups| groups.start);
    assert_eq!(pieces, [0..16, 16..32, 32..48, 48..64]);
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
        assert!(left < LEFT_ALONE_AT_MOST + Duration::from_millis(200), "it drips for {left:?}");
    }
    assert!(bed.now.since(since) >= LEFT_ALONE_AT_MOST);
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
    assert!(bed.now < Timestamp::from_origin(OWNER_SILENCE));
    assert!(bed.under_way.is_empty(), "its requests are cancelled");
    assert_eq!(bed.swarm.owners(bed.now).map(|owner| owner.bytes_proven).sum::<u64>(), 2 << 20);
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
    for owner in 0..u32::try_from(MAX_SWARM_OWNERS).unwrap() {
        bed.add(owner, Has::All);
    }
    let asked: BTreeSet<_> = bed.under_way.keys().map(|request| request.owner).collect();
    assert_eq!(asked.len(), MAX_ACTIVE_OWNERS);
    bed.add(9999, Has::All);
    assert_eq!(bed.dropped, [(9999, Dropped::TooMany)]);
    let gone = asked.first().copied().unwrap();
    bed.tell(Event::OwnerLost { owner: gone });
    let asked: BTreeSet<_> = bed.under_way.keys().map(|request| request.owner).collect();
    assert_eq!(asked.len(), MAX_ACTIVE_OWNERS, "another gets its turn");
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
        let groups = crate::transfer::groups::group_count(size);
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
                Step::Lose(owner) => bed.tell(Event::OwnerLost { owner: OwnerId(owner) }),
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
