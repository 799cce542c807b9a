use std::time::Duration;

use shared::{
    limits::DEFAULT_LEASE,
    rpc::nameserver::{NameError, Register, Selector},
};

use super::*;
use crate::registry::tests::{NOW, peer, registry, request};

/// Returns a registry with `ids` as registered peers.
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
fn claim_to_a_vacant_seat_is_granted() {
    let mut registry = with_peers(&["a", "b", "c"]);
    let grant = registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    assert_eq!(grant, SeatGrant { epoch: Epoch(1), lease: SEAT_LEASE });
    assert_eq!(holder(&registry, NOW), Some((1, "a".into())));
    let record = registry.lookup(NOW, "tracker.1").unwrap();
    assert_eq!(record.uri.to_string(), "quic://10.0.0.1:7");
    assert_eq!(record.tags[0].as_str(), TRACKER_TAG);
}

#[test]
fn claim_by_an_unregistered_caller_is_rejected() {
    let mut registry = with_peers(&["a"]);
    for caller in [peer("x"), Role::Admin, Role::Nameserver] {
        let denied = registry.claim(NOW, &caller, claim(1, 0, &["a"]));
        assert!(matches!(denied, Err(ClaimError::NotAuthorised(_))), "{caller}: {denied:?}");
    }
    let over = NOW + DEFAULT_LEASE;
    assert!(matches!(registry.claim(over, &peer("a"), claim(1, 0, &[])), Err(ClaimError::NotAuthorised(_))));
}

#[test]
fn claim_with_stale_or_distant_epoch_is_rejected() {
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
    assert!(matches!(far, Err(ClaimError::NotAuthorised(_))), "a claim could exhaust the epochs: {far:?}");
    registry.claim(NOW, &peer("b"), claim(6, 5, &["b"])).unwrap();
    let again = registry.claim(NOW, &peer("b"), claim(6, 5, &["b"]));
    assert!(
        matches!(&again, Err(ClaimError::Moved(SeatView { seat: Some(seat), .. })) if seat.peer.as_str() == "b"),
        "{again:?}"
    );
}

#[test]
fn claim_to_a_held_seat_needs_a_majority_and_silence() {
    let mut registry = with_peers(&["a", "b", "c", "d"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let silent = NOW + SEAT_SILENCE;
    // Two of b, c and d are needed; repeated votes and votes of unknown peers do not count.
    assert_eq!(registry.claim(silent, &peer("b"), claim(2, 1, &["b"])), no_majority(1, 2));
    assert_eq!(registry.claim(silent, &peer("b"), claim(2, 1, &["b", "b", "x", "y"])), no_majority(1, 2));
    let early = registry.claim(NOW + millis(300), &peer("b"), claim(2, 1, &["b", "c"]));
    assert_eq!(early, Err(ClaimError::Held { retry_after: millis(100) }));
    registry.claim(silent, &peer("b"), claim(2, 1, &["b", "c"])).unwrap();
    assert_eq!(holder(&registry, silent), Some((2, "b".into())));
    assert_eq!(trackers(&registry), ["tracker.2"]);
    assert_eq!(registry.renew_seat(silent, &peer("a"), Epoch(1)), Err(ClaimError::Moved(registry.seat(silent))));
}

#[test]
fn claim_against_a_renewing_incumbent_is_rejected() {
    let mut registry = with_peers(&["a", "b", "c"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let mut now = NOW;
    for _ in 0..20 {
        now += millis(200);
        registry.renew_seat(now, &peer("a"), Epoch(1)).unwrap();
    }
    // A renewal of the holder's name does not count as one of the seat.
    registry.renew(now + millis(300), &peer("a"), "peer.a", Incarnation(1)).unwrap();
    let early = registry.claim(now + millis(399), &peer("b"), claim(2, 1, &["b", "c"]));
    assert_eq!(early, Err(ClaimError::Held { retry_after: millis(1) }));
    registry.claim(now + millis(400), &peer("b"), claim(2, 1, &["b", "c"])).unwrap();
}

#[test]
fn claim_after_a_closed_port_needs_no_silence() {
    let mut registry = with_peers(&["a", "b", "c", "d"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let (since, found) = (NOW + millis(20), NOW + millis(40));
    // A probe of another epoch, or from before the last renewal, is invalid.
    assert!(!registry.record_closed_port(found, Epoch(2), since));
    assert!(!registry.record_closed_port(found, Epoch(1), NOW));
    let held = |answer| matches!(answer, Err(ClaimError::Held { .. }));
    assert!(held(registry.claim(found, &peer("b"), claim(2, 1, &["b", "c"]))));
    // A renewal overrides an earlier probe.
    assert!(registry.record_closed_port(found, Epoch(1), since));
    registry.renew_seat(found, &peer("a"), Epoch(1)).unwrap();
    assert!(held(registry.claim(found, &peer("b"), claim(2, 1, &["b", "c"]))));
    // A majority is still required, and the new holder does not inherit the closed port.
    let later = found + millis(20);
    assert!(registry.record_closed_port(later, Epoch(1), later));
    assert_eq!(registry.claim(later, &peer("b"), claim(2, 1, &["b"])), no_majority(1, 2));
    registry.claim(later, &peer("b"), claim(2, 1, &["b", "c"])).unwrap();
    assert_eq!(holder(&registry, later), Some((2, "b".into())));
    assert!(held(registry.claim(later, &peer("c"), claim(3, 2, &["c", "d"]))));
}

#[test]
fn expired_peers_are_no_electors() {
    let mut registry = with_peers(&["a", "b", "c", "d", "e"]);
    let later = NOW + DEFAULT_LEASE;
    for id in ["a", "b"] {
        registry.renew(later - millis(1), &peer(id), &format!("peer.{id}"), Incarnation(1)).unwrap();
    }
    registry.claim(later, &peer("a"), claim(1, 0, &["a"])).unwrap();
    registry.claim(later + SEAT_SILENCE, &peer("b"), claim(2, 1, &["b"])).unwrap();
}

#[test]
fn forced_claim_succeeds_while_every_peer_is_alive() {
    let mut registry = with_peers(&["a", "b", "c"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    assert!(matches!(registry.claim(NOW, &peer("b"), claim(2, 1, &["b", "c"])), Err(ClaimError::Held { .. })));
    assert_eq!(registry.claim(NOW, &peer("b"), forced(2, 1, &["b"])), no_majority(1, 2));
    // Without the incumbent's vote b and c are the electors, with it all three; two votes are needed in both cases.
    registry.claim(NOW, &peer("b"), forced(2, 1, &["b", "a"])).unwrap();
    registry.claim(NOW, &peer("c"), forced(3, 2, &["c", "a"])).unwrap();
    assert_eq!(registry.claim(NOW, &peer("c"), forced(4, 3, &["c"])), no_majority(1, 2));
    registry.claim(NOW, &peer("c"), forced(4, 3, &["a", "c"])).expect("the tracker itself may start an election");
    assert_eq!(holder(&registry, NOW), Some((4, "c".into())));
}

#[test]
fn forced_claim_succeeds_with_one_and_two_peers() {
    let mut registry = with_peers(&["a"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    registry.claim(NOW, &peer("a"), forced(2, 1, &["a"])).expect("a single peer is a majority");
    registry.register(NOW, &peer("b"), request("peer.b")).unwrap();
    registry.claim(NOW, &peer("b"), forced(3, 2, &["b"])).expect("without the incumbent b is the only elector");
    registry.claim(NOW, &peer("a"), forced(4, 3, &["a", "b"])).unwrap();
}

#[test]
fn expired_seat_loses_its_name_and_keeps_its_epoch() {
    let mut registry = with_peers(&["a", "b"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    assert_eq!(registry.next_deadline(), Some(NOW + SEAT_LEASE));
    let over = NOW + SEAT_LEASE;
    // The seat is invisible at once, before its removal.
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
fn expired_seat_can_be_claimed_before_its_removal() {
    let mut registry = with_peers(&["a", "b"]);
    registry.claim(NOW, &peer("a"), claim(1, 0, &["a"])).unwrap();
    let over = NOW + SEAT_LEASE;
    registry.claim(over, &peer("b"), claim(2, 1, &["b"])).unwrap();
    assert_eq!(trackers(&registry), ["tracker.2"]);
    registry.expire(over);
    assert_eq!(holder(&registry, over), Some((2, "b".into())));
}

#[test]
fn renewal_or_resignation_by_another_caller_is_rejected() {
    let mut registry = with_peers(&["a", "b"]);
    registry.claim(NOW, &peer("a"), claim(3, 0, &["a"])).unwrap();
    for (caller, epoch) in [(peer("b"), 3), (peer("a"), 2), (peer("a"), 4)] {
        assert!(matches!(registry.renew_seat(NOW, &caller, Epoch(epoch)), Err(ClaimError::Moved(_))));
        assert!(matches!(registry.resign(NOW, &caller, Epoch(epoch)), Err(ClaimError::Moved(_))));
    }
    assert!(matches!(registry.resign(NOW, &Role::Admin, Epoch(3)), Err(ClaimError::NotAuthorised(_))));
    let revision = registry.revision();
    registry.renew_seat(NOW, &peer("a"), Epoch(3)).unwrap();
    assert_eq!(registry.revision(), revision, "a renewal is a change");
    registry.resign(NOW, &peer("a"), Epoch(3)).unwrap();
    assert_eq!(trackers(&registry), [""; 0]);
    registry.claim(NOW, &peer("b"), claim(4, 3, &["b"])).expect("a resigned seat is vacant at once");
}

#[test]
fn tracker_name_changes_with_the_seat_only() {
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
    assert_eq!(
        registry.remove(NOW, &peer("a"), everything),
        Ok(1),
        "the holder removes its own name but not the seat's"
    );
    assert_eq!(holder(&registry, NOW), Some((1, "a".into())));
    assert_eq!(registry.remove(NOW, &Role::Admin, tracker), Ok(1));
    assert_eq!(registry.seat(NOW), SeatView { epoch_high: Epoch(1), seat: None });
}

#[test]
fn roll_back_and_restore_keep_seat_and_epoch() {
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
    // Restoring counts as a renewal, so the incumbent gets the full time of silence.
    assert!(matches!(after.claim(start, &peer("b"), claim(9, 8, &["b"])), Err(ClaimError::Held { .. })));
    after.renew_seat(start + millis(700), &peer("a"), Epoch(8)).unwrap();
    assert_eq!(holder(&after, start + millis(1400)), Some((8, "a".into())));
}
