use std::time::Duration;

use shared::{
    limits::DEFAULT_LEASE,
    rpc::nameserver::{NameError, Register, Selector},
};

use super::*;
use crate::registry::tests::{NOW, peer, registry, request};

/// A registry with these peers registered.
fn with_peers(ids: &[&str]) -> Registry {
    let mut registry = registry();
    for id in ids {
        registry.register(NOW, &peer(id), request(&format!("peer.{id}"))).unwrap();
    }
    registry
}

fn claim(epoch: u64, expected: u64, votes: &[&str]) -> Claim {
    Claim {
        epoch: Epoch(epoch),
        expected_epoch: Epoch(expected),
        endpoint: "quic://10.0.0.1:7".parse().unwrap(),
        votes: votes.iter().map(|id| id.parse().unwrap()).collect(),
        force: false,
    }
}

fn forced(epoch: u64, expected: u64, votes: &[&str]) -> Claim {
    Claim { force: true, ..claim(epoch, expected, votes) }
}

fn holder(registry: &Registry, now: Timestamp) -> Option<(u64, String)> {
    registry.seat(now).seat.map(|seat| (seat.epoch.0, seat.peer.to_string()))
}

fn trackers(registry: &Registry) -> Vec<String> {
    registry.tables.names_under(TRACKER_PREFIX).map(ToString::to_string).collect()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn no_majority(votes: u64, needed: u64) -> Result<SeatGrant, ClaimError> {
    Err(ClaimError::NoMajority { votes, needed })
}

#[test]
fn the_first_peer_takes_the_vacant_seat() {
    let mut registry = with_peers(&["a", "b", "c"]);
    let grant = registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    assert_eq!(grant, SeatGrant { epoch: Epoch(1), lease: SEAT_LEASE });
    assert_eq!(holder(&registry, NOW), Some((1, "a".into())));
    let record = registry.lookup(NOW, "tracker.1").unwrap();
    assert_eq!(record.uri.to_string(), "quic://10.0.0.1:7");
    assert_eq!(record.tags[0].as_str(), TRACKER_TAG);
}

#[test]
fn only_a_registered_peer_claims() {
    let mut registry = with_peers(&["a"]);
    for caller in [peer("x"), Role::Admin, Role::Nameserver] {
        let denied = registry.claim(NOW, &caller, claim(1, 0, &["a"]));
        assert!(matches!(denied, Err(ClaimError::NotAuthorised(_))), "{caller}: {denied:?}");
    }
    let over = NOW + DEFAULT_LEASE;
    assert!(matches!(registry.claim(over, &peer("a"), claim(1, 0, &[])), Err(ClaimError::NotAuthorised(_))));
}

#[test]
fn a_claim_must_know_the_highest_epoch_and_rise_above_it() {
    let mut registry = with_peers(&["a", "b"]);
    registry.claim(NOW, &peer("a"), claim(5, 0, &["a"])).unwrap();
    registry.resign(NOW, &peer("a"), Epoch(5)).unwrap();
    for stale in
        [claim(5, 5, &["b"]), claim(4, 5, &["b"]), claim(6, 0, &["b"]), claim(7, 6, &["b"]), forced(5, 5, &["a", "b"])]
    {
        let moved = registry.claim(NOW, &peer("b"), stale);
        assert_eq!(moved, Err(ClaimError::Moved(SeatView { epoch_high: Epoch(5), seat: None })));
    }
    let far = registry.claim(NOW, &peer("b"), claim(u64::MAX, 5, &["b"]));
    assert!(matches!(far, Err(ClaimError::NotAuthorised(_))), "the epochs must not be used up: {far:?}");
    registry.claim(NOW, &peer("b"), claim(6, 5, &["b"])).unwrap();
    let again = registry.claim(NOW, &peer("b"), claim(6, 5, &["b"]));
    assert!(
        matches!(again, Err(ClaimError::Moved(view)) if view.seat.as_ref().is_some_and(|seat| seat.peer.as_str() == "b"))
    );
}

#[test]
fn a_held_seat_needs_a_majority_and_silence() {
    let mut registry = with_peers(&["a", "b", "c", "d"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let quiet = NOW + SEAT_SILENCE;
    // Of b, c, d two are needed; strangers, repeated votes and the dead do not count.
    assert_eq!(registry.claim(quiet, &peer("b"), claim(2, 1, &["b"])), no_majority(1, 2));
    assert_eq!(registry.claim(quiet, &peer("b"), claim(2, 1, &["b", "b", "x", "y"])), no_majority(1, 2));
    let early = registry.claim(NOW + millis(300), &peer("b"), claim(2, 1, &["b", "c"]));
    assert_eq!(early, Err(ClaimError::Held { retry_after: millis(100) }));
    registry.claim(quiet, &peer("b"), claim(2, 1, &["b", "c"])).unwrap();
    assert_eq!(holder(&registry, quiet), Some((2, "b".into())));
    assert_eq!(trackers(&registry), ["tracker.2"]);
    assert_eq!(registry.renew_seat(quiet, &peer("a"), Epoch(1)), Err(ClaimError::Moved(registry.seat(quiet))));
}

#[test]
fn an_incumbent_that_renews_is_heard() {
    let mut registry = with_peers(&["a", "b", "c"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let mut now = NOW;
    for _ in 0..20 {
        now += millis(200);
        registry.renew_seat(now, &peer("a"), Epoch(1)).unwrap();
    }
    // Another call of its process is no sign of its tracker.
    registry.renew(now + millis(300), &peer("a"), "peer.a", Incarnation(1)).unwrap();
    let early = registry.claim(now + millis(399), &peer("b"), claim(2, 1, &["b", "c"]));
    assert_eq!(early, Err(ClaimError::Held { retry_after: millis(1) }));
    registry.claim(now + millis(400), &peer("b"), claim(2, 1, &["b", "c"])).unwrap();
}

#[test]
fn an_incumbent_whose_port_is_closed_is_not_waited_for() {
    let mut registry = with_peers(&["a", "b", "c", "d"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let (since, found) = (NOW + millis(20), NOW + millis(40));
    // Of another seat, and of one that was heard meanwhile, it says nothing.
    assert!(!registry.note_closed_port(found, Epoch(2), since));
    assert!(!registry.note_closed_port(found, Epoch(1), NOW));
    let held = |answer| matches!(answer, Err(ClaimError::Held { .. }));
    assert!(held(registry.claim(found, &peer("b"), claim(2, 1, &["b", "c"]))));
    // Who renews lives, whatever its port seems to be.
    assert!(registry.note_closed_port(found, Epoch(1), since));
    registry.renew_seat(found, &peer("a"), Epoch(1)).unwrap();
    assert!(held(registry.claim(found, &peer("b"), claim(2, 1, &["b", "c"]))));
    // A majority is needed all the same; the seat that it takes is a new one.
    let later = found + millis(20);
    assert!(registry.note_closed_port(later, Epoch(1), later));
    assert_eq!(registry.claim(later, &peer("b"), claim(2, 1, &["b"])), no_majority(1, 2));
    registry.claim(later, &peer("b"), claim(2, 1, &["b", "c"])).unwrap();
    assert_eq!(holder(&registry, later), Some((2, "b".into())));
    assert!(held(registry.claim(later, &peer("c"), claim(3, 2, &["c", "d"]))));
}

#[test]
fn peers_whose_leases_ran_out_neither_vote_nor_count() {
    let mut registry = with_peers(&["a", "b", "c", "d", "e"]);
    let later = NOW + DEFAULT_LEASE;
    for id in ["a", "b"] {
        registry.renew(later - millis(1), &peer(id), &format!("peer.{id}"), Incarnation(1)).unwrap();
    }
    registry.claim(later, &peer("a"), claim(1, 0, &["a"])).unwrap();
    registry.claim(later + SEAT_SILENCE, &peer("b"), claim(2, 1, &["b"])).unwrap();
}

#[test]
fn eleger_works_with_every_peer_alive() {
    let mut registry = with_peers(&["a", "b", "c"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    assert!(matches!(registry.claim(NOW, &peer("b"), claim(2, 1, &["b", "c"])), Err(ClaimError::Held { .. })));
    assert_eq!(registry.claim(NOW, &peer("b"), forced(2, 1, &["b"])), no_majority(1, 2));
    // Without the incumbent's vote two of b, c; with it two of all three.
    registry.claim(NOW, &peer("b"), forced(2, 1, &["b", "a"])).unwrap();
    registry.claim(NOW, &peer("c"), forced(3, 2, &["c", "a"])).unwrap();
    assert_eq!(registry.claim(NOW, &peer("c"), forced(4, 3, &["c"])), no_majority(1, 2));
    registry.claim(NOW, &peer("c"), forced(4, 3, &["a", "c"])).expect("the tracker itself may ask for an election");
    assert_eq!(holder(&registry, NOW), Some((4, "c".into())));
}

#[test]
fn eleger_works_with_one_and_with_two_peers() {
    let mut registry = with_peers(&["a"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    registry.claim(NOW, &peer("a"), forced(2, 1, &["a"])).expect("alone it is its own majority");
    registry.register(NOW, &peer("b"), request("peer.b")).unwrap();
    registry.claim(NOW, &peer("b"), forced(3, 2, &["b"])).expect("without the incumbent there is only b");
    registry.claim(NOW, &peer("a"), forced(4, 3, &["a", "b"])).unwrap();
}

#[test]
fn the_seat_runs_out_and_takes_its_name_along_but_not_its_number() {
    let mut registry = with_peers(&["a", "b"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    assert_eq!(registry.next_deadline(), Some(NOW + SEAT_LEASE));
    let over = NOW + SEAT_LEASE;
    // Invisible at once, swept or not.
    assert_eq!(registry.seat(over), SeatView { epoch_high: Epoch(1), seat: None });
    assert!(registry.lookup(over, "tracker.1").is_err());
    assert_eq!(registry.count(over), 3);
    assert!(registry.renew_seat(over, &peer("a"), Epoch(1)).is_err());
    registry.expire(over);
    assert_eq!(trackers(&registry), [""; 0]);
    assert_eq!(registry.count(over), 3);
    assert_eq!(registry.seat(over).epoch_high, Epoch(1));
    registry.claim(over, &peer("b"), claim(2, 1, &[])).unwrap();
}

#[test]
fn an_expired_seat_can_be_claimed_before_it_is_swept() {
    let mut registry = with_peers(&["a", "b"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let over = NOW + SEAT_LEASE;
    registry.claim(over, &peer("b"), claim(2, 1, &["b"])).unwrap();
    assert_eq!(trackers(&registry), ["tracker.2"]);
    registry.expire(over);
    assert_eq!(holder(&registry, over), Some((2, "b".into())));
}

#[test]
fn only_its_holder_renews_and_resigns() {
    let mut registry = with_peers(&["a", "b"]);
    registry.claim(NOW, &peer("a"), claim(3, 0, &["a"])).unwrap();
    for (caller, epoch) in [(peer("b"), 3), (peer("a"), 2), (peer("a"), 4)] {
        assert!(matches!(registry.renew_seat(NOW, &caller, Epoch(epoch)), Err(ClaimError::Moved(_))));
        assert!(matches!(registry.resign(NOW, &caller, Epoch(epoch)), Err(ClaimError::Moved(_))));
    }
    assert!(matches!(registry.resign(NOW, &Role::Admin, Epoch(3)), Err(ClaimError::NotAuthorised(_))));
    let revision = registry.revision();
    registry.renew_seat(NOW, &peer("a"), Epoch(3)).unwrap();
    assert_eq!(registry.revision(), revision, "a renewal is no change");
    registry.resign(NOW, &peer("a"), Epoch(3)).unwrap();
    assert_eq!(trackers(&registry), [""; 0]);
    registry.claim(NOW, &peer("b"), claim(4, 3, &["b"])).expect("a resigned seat is vacant at once");
}

#[test]
fn a_trackers_name_is_the_seat() {
    let mut registry = with_peers(&["a"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let tracker = Selector { name: Some("tracker.1".into()), ..Selector::default() };
    let everything = Selector { regex: Some(".*".into()), ..Selector::default() };
    for result in [
        registry.remove(NOW, &peer("a"), tracker.clone()).map(drop),
        registry.set_metadata(NOW, &peer("a"), "tracker.1", Vec::new()).map(drop),
        registry.renew(NOW, &peer("a"), "tracker.1", Incarnation(0)).map(drop),
        registry.register(NOW, &peer("a"), Register { ..request("tracker.1") }).map(drop),
    ] {
        assert!(matches!(result, Err(NameError::NotAuthorised(_))), "{result:?}");
    }
    assert_eq!(registry.remove(NOW, &peer("a"), everything), Ok(1), "its own name, not the seat's");
    assert_eq!(holder(&registry, NOW), Some((1, "a".into())));
    assert_eq!(registry.remove(NOW, &Role::Admin, tracker), Ok(1));
    assert_eq!(registry.seat(NOW), SeatView { epoch_high: Epoch(1), seat: None });
}

#[test]
fn a_restart_and_an_undone_claim_keep_seat_and_epoch() {
    let mut before = with_peers(&["a", "b"]);
    before.claim(NOW, &peer("a"), claim(8, 0, &["a"])).unwrap();
    before.settle();
    let stored = before.snapshot();
    before.claim(NOW, &peer("b"), forced(9, 8, &["a", "b"])).unwrap();
    before.roll_back();
    assert_eq!(before.snapshot(), stored);
    assert_eq!(holder(&before, NOW), Some((8, "a".into())));

    let start = Timestamp::ZERO;
    let mut after = Registry::restore(stored, start);
    assert_eq!(holder(&after, start + SEAT_LEASE - millis(1)), Some((8, "a".into())));
    // The new nameserver has not heard the incumbent, but not for long enough to let it be replaced either.
    assert!(matches!(after.claim(start, &peer("b"), claim(9, 8, &["b"])), Err(ClaimError::Held { .. })));
    after.renew_seat(start + millis(700), &peer("a"), Epoch(8)).unwrap();
    assert_eq!(holder(&after, start + millis(1400)), Some((8, "a".into())));
}
