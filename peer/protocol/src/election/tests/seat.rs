//! Suspicion, votes and claims.

use super::*;

#[test]
fn first_peer_becomes_tracker_by_its_own_vote() {
    let mut peer = Harness::new("me");
    peer.event(Event::Tick);
    let out = peer.answer_seat(vacant(0));
    let (call, claim) = picked!(out, Action::Claim { call, claim } => (*call, claim.clone()));
    let expected = Claim {
        epoch: Epoch(1),
        expected_epoch: Epoch(0),
        endpoint: endpoint("me"),
        votes: vec![id("me")],
        force: false,
    };
    assert_eq!(claim, expected);
    // The own vote is durable before it is used.
    assert!(
        position(&out, |a| matches!(a, Action::Persist(_))) < position(&out, |a| matches!(a, Action::Claim { .. }))
    );
    let out = peer.grant(call, 1);
    assert!(position(&out, |a| matches!(a, Action::Persist(d) if d.epoch_high == Epoch(1))) == 0);
    assert_eq!(peer.core.role(), Role::Tracker);
    assert_eq!(peer.core.tracker(), Some(&seat("me", 1)));
}

#[test]
fn vote_is_durable_before_the_answer_and_unique_across_restarts() {
    let mut voter = Harness::new("me");
    let (reply, out) = voter.vote("a", 4, 3, false);
    assert!(reply.granted);
    let persisted = picked!(out, Action::Persist(durable) if durable.voted.is_some() => durable);
    assert!(
        position(&out, |a| *a == Action::Persist(persisted.clone()))
            < position(&out, |a| matches!(a, Action::Reply { .. }))
    );
    assert!(!voter.vote("b", 4, 3, false).0.granted);
    assert!(!voter.vote("b", 3, 2, false).0.granted);
    assert!(voter.vote("a", 4, 3, false).0.granted);

    let mut again = Harness::with("me", persisted);
    assert!(!again.vote("b", 4, 3, false).0.granted);
    assert!(again.vote("a", 4, 3, false).0.granted);
    assert!(again.vote("b", 5, 3, false).0.granted);
}

#[test]
fn voter_that_hears_a_tracker_grants_only_forced_votes() {
    let mut voter = Harness::follower(&["a", "tracker"]);
    none!(voter.ask_for_vote("a", 2, 1, false), Action::Reply { .. });
    let out = voter.pass(VOTE_HOLD);
    let reply = picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply);
    assert!(!reply.granted);
    assert_eq!(reply.seat, held("tracker", 1));
    assert!(voter.vote("a", 2, 1, true).0.granted);
    let mut tracker = Harness::tracker(&["a", "b"]);
    assert!(!tracker.vote("a", 2, 1, false).0.granted);
    assert_eq!(tracker.core.role(), Role::Tracker);
}

#[test]
fn candidate_that_does_not_know_the_newest_seat_is_refused() {
    let mut voter = Harness::with("me", DurableState { voted: None, epoch_high: Epoch(5) });
    for (epoch, expected) in [(5, 4), (6, 4), (6, 6)] {
        assert!(!voter.vote("a", epoch, expected, true).0.granted, "{epoch} over {expected}");
    }
    let mut voter = Harness::with("me", DurableState { voted: None, epoch_high: Epoch(5) });
    assert!(voter.vote("a", 6, 5, true).0.granted);
}

#[test]
fn incredible_epochs_of_peers_are_ignored() {
    let mut tracker = Harness::tracker(&["a", "b"]);
    let wild = MAX_EPOCH_STEP;
    assert!(!tracker.vote("a", wild, 1, true).0.granted);
    assert!(!tracker.vote("a", wild + 1, wild, true).0.granted);
    assert!(matches!(tracker.beat("a", u64::MAX), Err(TrackerError::NotTracker(_))));
    let notice = SeatNotice::Taken(seat("a", u64::MAX));
    tracker.notice("a", notice);
    assert_eq!(tracker.core.durable().epoch_high, Epoch(1));
    assert_eq!(tracker.core.role(), Role::Tracker);
}

#[test]
fn silent_tracker_is_suspected_until_it_answers() {
    let mut peer = Harness::follower(&["a", "tracker"]);
    peer.pass(SUSPICION - ms(1));
    assert_eq!(peer.core.role(), Role::Follower);
    let out = peer.pass(ms(1));
    assert_eq!(peer.core.role(), Role::Suspect);
    picked!(out, Action::QuerySeat { call } => call);
    peer.ack(&out, None);
    assert_eq!(peer.core.role(), Role::Follower);
    assert_eq!(peer.core.tracker(), Some(&seat("tracker", 1)));
}

#[test]
fn lost_connection_and_not_tracker_answer_raise_suspicion_at_once() {
    let mut peer = Harness::follower(&["a", "tracker"]);
    peer.event(Event::ConnectionLost { peer: id("a") });
    assert_eq!(peer.core.role(), Role::Follower);
    peer.event(Event::ConnectionLost { peer: id("tracker") });
    assert_eq!(peer.core.role(), Role::Suspect);

    let mut peer = Harness::follower(&["a", "tracker"]);
    let out = peer.pass(HEARTBEAT);
    let call = picked!(out, Action::SendHeartbeat { call, .. } => call);
    let result = Err(CallError::Refused(TrackerError::NotTracker(vacant(1))));
    peer.event(Event::HeartbeatAnswered { call, from: id("tracker"), result });
    assert_eq!(peer.core.role(), Role::Suspect);
}

#[test]
fn stalled_follower_ignores_disconnects_and_extends_suspicion() {
    let mut peer = Harness::follower(&["a", "tracker"]);
    peer.now += ms(5000);
    let out = peer.event(Event::Tick);
    picked!(out, Action::Report(Report::Stalled { late }) => late);
    picked!(out, Action::SendHeartbeat { call, .. } => call);
    peer.event(Event::ConnectionLost { peer: id("tracker") });
    assert_eq!(peer.core.role(), Role::Follower);
    none!(peer.ask_for_vote("a", 2, 1, false), Action::Reply { .. });
    let out = peer.pass(SUSPICION);
    assert!(!picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply).granted);
    assert_eq!(peer.core.role(), Role::Suspect);
}

#[test]
fn candidate_with_majority_claims_with_its_votes_and_the_replaced_seat() {
    let mut peer = Harness::follower(&["a", "b", "c", "tracker"]);
    peer.event(Event::ConnectionLost { peer: id("tracker") });
    // Longer than the stagger of any of four ranks, and shorter than `VOTE_WAIT`.
    let out = [peer.answer_seat(held("tracker", 1)), peer.pass(ms(100))].concat();
    assert_eq!(peer.core.role(), Role::Candidate);
    let asked: Vec<PeerId> = out
        .iter()
        .filter_map(|action| match action {
            Action::RequestVote { to, .. } => Some(to.peer.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [id("a"), id("b"), id("c")]);
    // The pre-vote comes first: nothing is durable before a majority has promised.
    none!(out, Action::Persist(_));
    assert!(picked!(out, Action::RequestVote { request, .. } => request).pre_vote);
    let out = peer.grant_votes(&out, &["a", "b"]);
    picked!(out, Action::Persist(durable) => durable);
    let (call, request) = picked!(out, Action::RequestVote { call, request, .. } => (*call, request.clone()));
    assert!(!request.pre_vote);
    let reply = |granted| VoteReply {
        epoch: request.epoch,
        granted,
        seat: held("tracker", 1),
        voted_epoch: Epoch(2),
        electors: vec![],
    };
    let answered = |from: &str, granted| Event::VoteAnswered { call, from: id(from), result: Ok(reply(granted)) };
    none!(peer.event(answered("a", true)), Action::Claim { .. });
    // A repeated answer is one vote.
    none!(peer.event(answered("a", true)), Action::Claim { .. });
    let out = peer.event(answered("b", true));
    let claim = picked!(out, Action::Claim { claim, .. } => claim);
    assert_eq!((claim.epoch, claim.expected_epoch), (Epoch(2), Epoch(1)));
    assert_eq!(claim.votes, [id("a"), id("b"), id("me")]);
    assert_eq!(peer.core.role(), Role::Claiming);
}

#[test]
fn candidate_without_majority_retries_in_the_same_epoch() {
    let mut peer = Harness::follower(&["a", "b", "c", "tracker"]);
    peer.event(Event::ConnectionLost { peer: id("tracker") });
    let out = [peer.answer_seat(held("tracker", 1)), peer.pass(ms(100))].concat();
    let first = picked!(out, Action::RequestVote { request, .. } => request);
    let out = peer.pass(VOTE_WAIT);
    // A failed pre-vote is not reported.
    none!(out, Action::Report(Report::ElectionFailed { .. }));
    let out = [peer.answer_seat(held("tracker", 1)), peer.pass(ms(250))].concat();
    assert_eq!(picked!(out, Action::RequestVote { request, .. } => request), first);
}

#[test]
fn held_seat_is_claimed_again_and_moved_seat_is_followed() {
    let mut peer = Harness::follower(&["tracker"]);
    peer.event(Event::ConnectionLost { peer: id("tracker") });
    let out = peer.answer_seat(held("tracker", 1));
    let out = if out.is_empty() { peer.pass(ms(20)) } else { out };
    let call = picked!(out, Action::Claim { call, .. } => call);
    let refused = ClaimError::Held { retry_after: ms(70) };
    peer.event(Event::ClaimAnswered { call, result: Err(CallError::Refused(refused)) });
    none!(peer.pass(ms(69)), Action::Claim { .. });
    let out = peer.pass(ms(1));
    let call = picked!(out, Action::Claim { call, .. } => call);
    let refused = ClaimError::Moved(held("a", 2));
    peer.event(Event::ClaimAnswered { call, result: Err(CallError::Refused(refused)) });
    assert_eq!(peer.core.tracker(), Some(&seat("a", 2)));
    assert_eq!(peer.core.durable().epoch_high, Epoch(2));
}

#[test]
fn vacated_seat_is_claimed_without_votes() {
    let mut peer = Harness::follower(&["a", "b", "c", "tracker"]);
    let notice = SeatNotice::Vacated(Epoch(1));
    // Another peer's notice is ignored.
    peer.notice("a", notice.clone());
    assert_eq!(peer.core.role(), Role::Follower);
    peer.notice("tracker", notice);
    let answered = peer.answer_seat(vacant(1));
    let out = [answered, peer.pass(ms(150))].concat();
    let claim = picked!(out, Action::Claim { claim, .. } => claim);
    assert_eq!(claim.votes, [id("me")]);
    none!(out, Action::RequestVote { .. });
}

#[test]
fn accepted_claim_with_lost_answer_is_discovered() {
    let mut peer = Harness::new("me");
    peer.event(Event::Tick);
    peer.answer_seat(vacant(0));
    let out = peer.pass(ms(600));
    none!(out, Action::Report(Report::BecameTracker { .. }));
    let out = peer.answer_seat(held("me", 1));
    assert_eq!(peer.core.role(), Role::Tracker);
    // The end of the lease is not known.
    assert_eq!(peer.core.lease_until(), None);
    picked!(out, Action::RenewSeat { epoch, .. } => epoch);
}

#[test]
fn seat_of_an_earlier_run_is_resigned() {
    let mut peer = Harness::with("me", DurableState { voted: None, epoch_high: Epoch(3) });
    peer.event(Event::Tick);
    let out = peer.answer_seat(held("me", 3));
    let call = picked!(out, Action::Resign { call, epoch: Epoch(3) } => call);
    assert_ne!(peer.core.role(), Role::Tracker);
    peer.event(Event::ResignAnswered { call, result: Ok(()) });
    let out = peer.answer_seat(vacant(3));
    assert_eq!(picked!(out, Action::Claim { claim, .. } => claim.epoch), Epoch(4));
}

#[test]
fn nameserver_that_lost_its_memory_does_not_lower_epochs() {
    let mut peer = Harness::with("me", DurableState { voted: None, epoch_high: Epoch(7) });
    peer.event(Event::Tick);
    let out = peer.answer_seat(vacant(0));
    let claim = picked!(out, Action::Claim { claim, .. } => claim);
    assert_eq!((claim.epoch, claim.expected_epoch), (Epoch(8), Epoch(0)));

    // A new peer took the seat first: this peer sends it the higher epoch and does not follow it.
    let mut peer = Harness::with("me", DurableState { voted: None, epoch_high: Epoch(7) });
    peer.event(Event::Tick);
    let out = peer.answer_seat(held("new", 1));
    let (to, beat) = picked!(out, Action::SendHeartbeat { to, beat, .. } => (to.clone(), beat.clone()));
    assert_eq!((to.peer, beat.epoch), (id("new"), Epoch(7)));
    assert_eq!(peer.core.tracker(), None);
}

#[test]
fn forced_election_gives_a_lone_tracker_a_new_epoch() {
    let mut tracker = Harness::tracker(&["me"]);
    tracker.event(Event::ShareChanged { upserts: vec![file("x")], removals: vec![] });
    let out = tracker.event(Event::ElectionRequested { token: Token(7) });
    let (call, claim) = picked!(out, Action::Claim { call, claim } => (*call, claim.clone()));
    assert!(claim.force);
    assert_eq!(claim.votes, [id("me")]);
    let out = tracker.grant(call, 2);
    let (token, result) =
        picked!(out, Action::Reply { token, reply: Reply::Elected(result) } => (*token, result.clone()));
    assert_eq!((token, result), (Token(7), Ok(seat("me", 2))));
    assert_eq!(tracker.list(2), Ok(vec!["x".to_owned()]));
}

#[test]
fn forced_election_without_votes_fails_and_keeps_the_tracker() {
    let mut peer = Harness::follower(&["a", "b", "c", "tracker"]);
    let out = peer.event(Event::ElectionRequested { token: Token(7) });
    assert!(picked!(out, Action::RequestVote { request, .. } => request).force);
    let out = peer.pass(VOTE_WAIT);
    let result = picked!(out, Action::Reply { token: Token(7), reply: Reply::Elected(result) } => result);
    assert_eq!(result, Err(ElectionFailure::NoMajority { votes: 1, needed: 3 }));
    assert_eq!(peer.core.tracker(), Some(&seat("tracker", 1)));
}

#[test]
fn same_seed_and_events_give_the_same_actions() {
    let run = || {
        let mut peer = Harness::follower(&["a", "b", "c", "tracker"]);
        peer.event(Event::ConnectionLost { peer: id("tracker") });
        peer.answer_seat(held("tracker", 1));
        peer.pass(Duration::from_secs(3))
    };
    assert_eq!(run(), run());
}

#[test]
fn vote_of_the_incumbent_counts_in_a_forced_election() {
    let mut peer = Harness::follower(&["a", "b", "c", "tracker"]);
    let out = peer.event(Event::ElectionRequested { token: Token(7) });
    let (call, request) = picked!(out, Action::RequestVote { call, request, .. } => (*call, request.clone()));
    let reply = VoteReply {
        epoch: request.epoch,
        granted: true,
        seat: held("tracker", 1),
        voted_epoch: request.epoch,
        electors: vec![],
    };
    let granted = |from: &str| Event::VoteAnswered { call, from: id(from), result: Ok(reply.clone()) };
    none!(peer.event(granted("tracker")), Action::Claim { .. });
    let out = peer.event(granted("a"));
    assert_eq!(picked!(out, Action::Claim { claim, .. } => claim.votes), [id("a"), id("me"), id("tracker")]);
}

#[test]
fn pre_vote_is_granted_to_several_candidates_and_not_stored() {
    let mut voter = Harness::new("me");
    let request =
        VoteRequest { epoch: Epoch(4), expected_epoch: Epoch(0), force: false, pre_vote: true, provisional: false };
    for candidate in ["a", "b"] {
        let out = voter.event(Event::VoteRequested { token: Token(1), from: id(candidate), request: request.clone() });
        assert!(picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply).granted);
        none!(out, Action::Persist(_));
    }
    assert_eq!(voter.core.durable().voted, None);
}

#[test]
fn peers_that_do_not_elect_get_a_reduced_heartbeat() {
    let many: Vec<String> = (0..30).map(|number| format!("peer{number}")).collect();
    let mut names: Vec<&str> = many.iter().map(String::as_str).collect();
    names.push("me");
    let mut tracker = Harness::tracker(&names);
    let electors = tracker.core.electors().clone();
    assert_eq!(electors.len(), MAX_ELECTORS);
    for name in names.iter().filter(|name| **name != "me") {
        let expected = if electors.contains(&id(name)) { HEARTBEAT } else { REDUCED_HEARTBEAT };
        assert_eq!(tracker.beat(name, 1).unwrap().next_beat, expected, "{name}");
    }
    let out = tracker.event(Event::ElectionRequested { token: Token(7) });
    let asked = out.iter().filter(|action| matches!(action, Action::RequestVote { .. })).count();
    assert_eq!(asked, electors.iter().filter(|elector| **elector != id("me")).count());
}

#[test]
fn peer_with_reduced_heartbeat_suspects_later() {
    let mut peer = Harness::follower(&["a", "tracker"]);
    let out = peer.pass(HEARTBEAT);
    let (call, to) = picked!(out, Action::SendHeartbeat { call, to, .. } => (*call, to.clone()));
    let ack = HeartbeatAck { epoch: Epoch(1), known_seq: None, next_beat: REDUCED_HEARTBEAT, standbys: Vec::new() };
    peer.event(Event::HeartbeatAnswered { call, from: to.peer, result: Ok(ack) });
    peer.pass(SUSPICION + REDUCED_HEARTBEAT - HEARTBEAT - ms(1));
    assert_eq!(peer.core.role(), Role::Follower);
    peer.pass(ms(1));
    assert_eq!(peer.core.role(), Role::Suspect);
}
