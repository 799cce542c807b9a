//! Owners that lie, are gone, busy or silent, and a swarm that cannot go on.

use super::*;

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
    assert!(waits[0] >= PROVIDER_BACKOFF / 2 && waits[0] <= PROVIDER_BACKOFF, "{waits:?}");
    assert!(waits[7] > MAX_PROVIDER_BACKOFF / 2 && waits[7] <= MAX_PROVIDER_BACKOFF, "{waits:?}");
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
    bed.wait(PROVIDER_SILENCE - MILLISECOND);
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
        bed.wait(PROVIDER_SILENCE - MILLISECOND);
        bed.tell(Event::Heard { owner: ProviderId(1), rtt: None });
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
    bed.wait(PROVIDER_SILENCE);
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
    assert!(!bed.wait(PROVIDER_BACKOFF).is_empty());
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
