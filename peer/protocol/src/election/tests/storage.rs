//! A disk that stores nothing: no vote, no candidacy, and everything else goes on.

use super::*;

/// Reports that the write of the last step failed. Returns the actions that remain of those behind it, and the further
/// ones.
fn fail_write(peer: &mut Harness) -> Vec<Action> {
    let write = position(&peer.out, |action| matches!(action, Action::Persist(_)));
    let behind = peer.out.split_off(write + 1);
    let mut out: Vec<Action> = behind.into_iter().filter_map(Action::without_durability).collect();
    peer.core.on_persist_failed(peer.now, &mut out);
    assert!(peer.core.next_deadline().is_some_and(|deadline| deadline > peer.now));
    peer.out.clone_from(&out);
    out
}

/// Peer that sees a vacant seat, at the write of its own vote.
fn claimant() -> Harness {
    let mut peer = Harness::new("me");
    let first = peer.event(Event::Tick);
    peer.know_peers(&["a", "me"]);
    peer.out = first;
    let out = peer.answer_seat(vacant(0));
    if !out.iter().any(|action| matches!(action, Action::Claim { .. })) {
        peer.pass(ms(100));
    }
    picked!(peer.out, Action::Claim { call, .. } => call);
    peer
}

#[test]
fn vote_that_cannot_be_stored_is_not_given() {
    let mut peer = Harness::new("me");
    peer.ask_for_vote("a", 3, 2, true);
    let out = fail_write(&mut peer);
    let reply = picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply);
    assert!(!reply.granted, "{reply:?}");
    // Also not on a second request, nor a promise: it could not be kept.
    assert!(!peer.vote("a", 3, 2, true).0.granted);
    let request =
        VoteRequest { epoch: Epoch(4), expected_epoch: Epoch(3), force: true, pre_vote: true, provisional: false };
    let out = peer.event(Event::VoteRequested { token: Token(2), from: id("b"), request });
    assert!(!picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply).granted);

    peer.event(Event::Persisted);
    assert!(peer.vote("a", 5, 4, true).0.granted, "it votes when the disk has room");
}

#[test]
fn candidate_that_cannot_store_its_vote_claims_nothing_until_the_disk_has_room() {
    let mut peer = claimant();
    none!(fail_write(&mut peer), Action::Claim { .. });
    let out = peer.pass(ms(5000));
    none!(out, Action::Claim { .. } | Action::RequestVote { .. });
    assert!(out.iter().any(|action| matches!(action, Action::QuerySeat { .. })), "it goes on searching");

    // It follows another tracker meanwhile.
    peer.answer_seat(held("a", 1));
    assert_eq!(peer.core.tracker(), Some(&seat("a", 1)));
    peer.event(Event::ConnectionLost { peer: id("a") });
    peer.event(Event::Persisted);
    let out = peer.pass(ms(5000));
    assert!(out.iter().any(|action| matches!(action, Action::RequestVote { .. } | Action::QuerySeat { .. })));
    peer.out = out;
    peer.answer_seat(vacant(1));
    let out = peer.pass(ms(500));
    let claimed = |action: &Action| matches!(action, Action::Claim { .. });
    assert!(out.iter().chain(&peer.out).any(claimed), "{out:?}");
}

#[test]
fn tracker_with_a_full_disk_serves_and_gives_a_vacant_seat_up() {
    let mut peer = claimant();
    let call = picked!(peer.out, Action::Claim { call, .. } => call);
    // Its own vote was stored; the epoch is not.
    peer.grant(call, 1);
    fail_write(&mut peer);
    assert_eq!(peer.core.role(), Role::Tracker);
    assert!(peer.beat("a", 1).is_ok());

    let out = peer.pass(SEAT_RENEWAL);
    let call = picked!(out, Action::RenewSeat { call, .. } => call);
    let moved = Err(CallError::Refused(ClaimError::Moved(vacant(1))));
    let out = peer.event(Event::RenewalAnswered { call, result: moved });
    none!(out, Action::Claim { .. });
    picked!(out, Action::Report(Report::SteppedDown { why: StepDown::NotStored, .. }) => ());
}

#[test]
fn forced_election_of_a_peer_that_cannot_stand_fails_with_the_reason() {
    let mut peer = claimant();
    fail_write(&mut peer);
    let out = peer.event(Event::ElectionRequested { token: Token(7) });
    let reply = picked!(out, Action::Reply { token: Token(7), reply } => reply);
    assert_eq!(reply, Reply::Elected(Err(ElectionFailure::NotStored)));

    let mut observer = observer();
    let out = observer.event(Event::ElectionRequested { token: Token(7) });
    let reply = picked!(out, Action::Reply { token: Token(7), reply } => reply);
    assert_eq!(reply, Reply::Elected(Err(ElectionFailure::NoCandidate)));
}

fn observer() -> Harness {
    let mut peer = Harness::new("me");
    let config = CoreConfig {
        id: id("me"),
        incarnation: Incarnation(5),
        endpoint: endpoint("me"),
        seed: 1,
        durable: DurableState::default(),
        candidate: false,
    };
    peer.core = Core::new(config, peer.now);
    peer
}

#[test]
fn observer_votes_and_follows_but_never_stands() {
    let mut peer = observer();
    let first = peer.event(Event::Tick);
    peer.know_peers(&["a", "b", "me"]);
    peer.out = first;
    let out = peer.answer_seat(vacant(0));
    none!(out, Action::Claim { .. });
    none!(peer.pass(ms(3000)), Action::Claim { .. } | Action::RequestVote { .. });
    assert!(peer.vote("a", 1, 0, false).0.granted);
    peer.notice("a", SeatNotice::Taken(seat("a", 1)));
    assert_eq!(peer.core.tracker(), Some(&seat("a", 1)));
}

#[test]
fn remembered_peers_count_until_the_nameserver_lists_the_registered_ones() {
    let mut peer = Harness::new("me");
    let first = peer.event(Event::Tick);
    peer.event(Event::PeersRemembered { peers: vec![contact("old"), contact("a"), contact("me")] });
    assert_eq!(peer.core.electors(), &BTreeSet::from([id("a"), id("me"), id("old")]));
    peer.out = first;
    peer.know_peers(&["a", "me"]);
    peer.event(Event::PeersRemembered { peers: vec![contact("old")] });
    assert_eq!(peer.core.electors(), &BTreeSet::from([id("a"), id("me")]));
}
