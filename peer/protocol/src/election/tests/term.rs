//! The tracker while it holds the seat, and its followers' announcements.

use super::*;

#[test]
fn lease_counts_from_the_sending_of_the_renewal() {
    let mut tracker = Harness::tracker(&["me"]);
    let out = tracker.pass(SEAT_RENEWAL);
    let sent = tracker.now;
    let call = picked!(out, Action::RenewSeat { call, .. } => call);
    tracker.now += ms(90);
    let result = Ok(SeatGrant { epoch: Epoch(1), lease: SEAT_LEASE });
    tracker.event(Event::RenewalAnswered { call, result });
    assert_eq!(tracker.core.lease_until(), Some(sent + SEAT_LEASE));
}

#[test]
fn lone_tracker_survives_nameserver_outage_and_reclaims_its_seat() {
    let mut tracker = Harness::tracker(&["me"]);
    tracker.event(Event::ShareChanged { upserts: vec![file("x")], removals: vec![] });
    tracker.pass(Duration::from_secs(10));
    assert_eq!(tracker.core.role(), Role::Tracker);
    let call = tracker.out.iter().rev().find_map(|action| match action {
        Action::RenewSeat { call, .. } => Some(*call),
        _ => None,
    });
    let result = Err(CallError::Refused(ClaimError::Moved(vacant(1))));
    let out = tracker.event(Event::RenewalAnswered { call: call.unwrap(), result });
    let (call, claim) = picked!(out, Action::Claim { call, claim } => (*call, claim.clone()));
    assert_eq!(claim.epoch, Epoch(2));
    tracker.grant(call, 2);
    assert_eq!(tracker.core.tracker(), Some(&seat("me", 2)));
    assert_eq!(tracker.list(2), Ok(vec!["x".to_owned()]));
}

#[test]
fn tracker_without_lease_lasts_as_long_as_a_majority_is_heard() {
    let mut tracker = Harness::tracker(&["me", "a", "b"]);
    for _ in 0..30 {
        tracker.beat("a", 1).unwrap();
        tracker.pass(ms(100));
    }
    assert_eq!(tracker.core.role(), Role::Tracker);
    let out = tracker.pass(DRAIN_AFTER);
    picked!(out, Action::Report(Report::SteppedDown { why: StepDown::Isolated, .. }) => ());
    picked!(out, Action::Resign { epoch: Epoch(1), .. } => ());
    assert!(matches!(tracker.beat("a", 1), Err(TrackerError::NotTracker(_))));
}

#[test]
fn tracker_that_stalled_past_its_lease_steps_down_before_a_write() {
    for members in [&["me", "a"][..], &["me"][..]] {
        let mut tracker = Harness::tracker(members);
        tracker.beat("a", 1).unwrap();
        tracker.now += ms(1200);
        assert!(matches!(tracker.announce("a", 1, "x"), Err(TrackerError::NotTracker(_))));
        picked!(tracker.out, Action::Report(Report::SteppedDown { why: StepDown::Stalled, .. }) => ());
    }
}

#[test]
fn tracker_that_stalled_briefly_refuses_writes_until_confirmed() {
    let mut tracker = Harness::tracker(&["me", "a"]);
    tracker.beat("a", 1).unwrap();
    let out = tracker.pass(SEAT_RENEWAL);
    tracker.renewed(&out);
    tracker.now += ms(500);
    assert!(matches!(tracker.announce("a", 1, "x"), Err(TrackerError::Unavailable(_))));
    let out = tracker.out.clone();
    tracker.renewed(&out);
    assert_eq!(tracker.announce("a", 1, "x"), Ok(()));
}

#[test]
fn lower_epochs_are_refused_and_a_higher_one_ends_the_term() {
    let mut tracker = Harness::tracker(&["me", "a"]);
    tracker.event(Event::ElectionRequested { token: Token(7) });
    let call = picked!(tracker.out, Action::RequestVote { call, .. } => call);
    let reply =
        VoteReply { epoch: Epoch(2), granted: true, seat: held("me", 1), voted_epoch: Epoch(2), electors: vec![] };
    let out = tracker.event(Event::VoteAnswered { call, from: id("a"), result: Ok(reply) });
    let call = picked!(out, Action::Claim { call, .. } => call);
    tracker.grant(call, 2);
    assert_eq!(tracker.announce("a", 1, "x"), Err(TrackerError::StaleEpoch(held("me", 2))));
    assert_eq!(tracker.beat("a", 1), Err(TrackerError::StaleEpoch(held("me", 2))));
    assert!(tracker.beat("a", 2).is_ok());
    assert!(matches!(tracker.beat("a", 3), Err(TrackerError::NotTracker(_))));
    assert_eq!(tracker.core.durable().epoch_high, Epoch(3));
    picked!(tracker.out, Action::Persist(durable) => durable);
    picked!(tracker.out, Action::QuerySeat { call } => call);
}

#[test]
fn tracker_resigns_before_it_notifies_followers() {
    let mut tracker = Harness::tracker(&["me", "a", "b"]);
    let out = tracker.event(Event::Shutdown);
    let call = picked!(out, Action::Resign { call, epoch: Epoch(1) } => call);
    none!(out, Action::SendNotice { .. });
    assert!(matches!(tracker.beat("a", 1), Err(TrackerError::NotTracker(_))));
    let out = tracker.event(Event::ResignAnswered { call, result: Ok(()) });
    let told = out.iter().filter(|a| matches!(a, Action::SendNotice { notice: SeatNotice::Vacated(Epoch(1)), .. }));
    assert_eq!(told.count(), 2);
    assert_eq!(out.last(), Some(&Action::Stopped));
    assert_eq!(tracker.core.next_deadline(), None);

    // Without an answer of the nameserver it stops after `CLOSE_DEADLINE`.
    let mut tracker = Harness::tracker(&["me", "a", "b"]);
    tracker.event(Event::Shutdown);
    assert_eq!(tracker.pass(ms(300)).last(), Some(&Action::Stopped));
}

#[test]
fn leaving_follower_is_forgotten_at_once() {
    let mut peer = Harness::follower(&["a", "tracker"]);
    let out = peer.event(Event::Shutdown);
    assert_eq!(picked!(out, Action::SendLeave { to, .. } => to), contact("tracker"));
    assert_eq!(out.last(), Some(&Action::Stopped));

    let mut tracker = Harness::tracker(&["me", "a"]);
    tracker.beat("a", 1).unwrap();
    tracker.announce("a", 1, "x").unwrap();
    assert_eq!(tracker.list(1), Ok(vec!["x".to_owned()]));
    assert_eq!(tracker.leave("a", 0), Err(TrackerError::Superseded));
    assert_eq!(tracker.list(1), Ok(vec!["x".to_owned()]));
    tracker.leave("a", 1).unwrap();
    assert_eq!(tracker.list(1), Ok(vec![]));
}

#[test]
fn files_of_a_silent_peer_are_removed_and_return_with_it() {
    let mut tracker = Harness::tracker(&["me", "a"]);
    tracker.beat("a", 1).unwrap();
    tracker.announce("a", 1, "x").unwrap();
    for _ in 0..(PEER_SILENCE.as_millis() / 100) {
        let out = tracker.pass(ms(100));
        if out.iter().any(|action| matches!(action, Action::RenewSeat { .. })) {
            tracker.renewed(&out);
        }
    }
    assert_eq!(tracker.list(1), Ok(vec![]));
    assert_eq!(tracker.announce("a", 1, "x"), Err(TrackerError::SnapshotNeeded));
    assert_eq!(tracker.beat("a", 1).map(|ack| ack.known_seq), Ok(None));
    tracker.announce("a", 1, "x").unwrap();
    assert_eq!(tracker.list(1), Ok(vec!["x".to_owned()]));
}

#[test]
fn index_opens_when_all_peers_announced_or_time_is_over() {
    let mut tracker = Harness::tracker(&["me", "a", "b"]);
    tracker.beat("a", 1).unwrap();
    tracker.announce("a", 1, "x").unwrap();
    assert_eq!(tracker.list(1), Err(TrackerError::Settling));
    tracker.beat("b", 1).unwrap();
    tracker.announce("b", 1, "y").unwrap();
    assert_eq!(tracker.list(1), Ok(vec!["x".to_owned(), "y".to_owned()]));

    let mut tracker = Harness::tracker(&["me", "a", "b"]);
    let mut waited = Duration::ZERO;
    while waited < INDEX_SETTLE {
        assert_eq!(tracker.list(1), Err(TrackerError::Settling));
        let out = tracker.pass(ms(200));
        tracker.renewed(&out);
        waited += ms(200);
    }
    assert_eq!(tracker.list(1), Ok(vec![]));
}

#[test]
fn follower_announces_a_snapshot_then_deltas() {
    let mut peer = Harness::new("me");
    let first = peer.event(Event::Tick);
    peer.event(Event::ShareChanged { upserts: vec![file("x")], removals: vec![] });
    peer.out = first;
    let out = peer.answer_seat(held("tracker", 1));
    let out = peer.ack(&out, None);
    let sent = |out: &[Action]| picked!(out, Action::SendAnnouncement { call, announcement, .. } => (*call, announcement.clone()));
    let (call, snapshot) = sent(&out);
    assert_eq!((snapshot.seq, snapshot.kind), (2, AnnouncementKind::Snapshot { page: 0, last: true }));
    // One announcement at a time: later changes wait.
    none!(
        peer.event(Event::ShareChanged { upserts: vec![file("y")], removals: vec![] }),
        Action::SendAnnouncement { .. }
    );
    let taken = |call| Event::AnnouncementAnswered { call, from: id("tracker"), result: Ok(()) };
    let (call, delta) = sent(&peer.event(taken(call)));
    assert_eq!((delta.seq, delta.kind), (3, AnnouncementKind::Delta));
    // A lost announcement is repeated unchanged.
    let lost = Err(CallError::Failed(CallFailure::NoAnswer));
    peer.event(Event::AnnouncementAnswered { call, from: id("tracker"), result: lost });
    let (call, again) = sent(&peer.pass(HEARTBEAT));
    assert_eq!(again, delta);
    assert!(!peer.core.is_announced());
    peer.event(taken(call));
    assert!(peer.core.is_announced());
}

#[test]
fn heartbeat_answer_from_before_an_announcement_is_ignored() {
    let mut peer = Harness::new("me");
    peer.event(Event::Tick);
    let first = peer.answer_seat(held("tracker", 1));
    let late = peer.pass(HEARTBEAT);
    let out = peer.ack(&first, None);
    let call = picked!(out, Action::SendAnnouncement { call, .. } => call);
    peer.event(Event::AnnouncementAnswered { call, from: id("tracker"), result: Ok(()) });
    assert!(peer.core.is_announced());
    // The heartbeat was sent and answered before the snapshot arrived; its answer is read after that.
    none!(peer.ack(&late, None), Action::SendAnnouncement { .. });
    assert!(peer.core.is_announced());
}

#[test]
fn superseded_run_stops() {
    let mut peer = Harness::follower(&["tracker"]);
    let out = peer.pass(HEARTBEAT);
    let call = picked!(out, Action::SendHeartbeat { call, .. } => call);
    let result = Err(CallError::Refused(TrackerError::Superseded));
    let out = peer.event(Event::HeartbeatAnswered { call, from: id("tracker"), result });
    picked!(out, Action::Report(Report::Superseded) => ());
    assert_eq!(out.last(), Some(&Action::Stopped));
}
