//! Elections without the nameserver, and registration when it is back.

use super::*;

/// Follower whose tracker and nameserver are gone, when its turn to stand has come.
fn orphan(peers: &[&str]) -> (Harness, Vec<Action>) {
    orphan_as("me", peers)
}

fn orphan_as(peer: &str, peers: &[&str]) -> (Harness, Vec<Action>) {
    let mut peer = Harness::follower_as(peer, peers);
    peer.event(Event::ConnectionLost { peer: id("tracker") });
    let out = peer.pass(HEARTBEAT_DEADLINE + ms(100));
    (peer, out)
}

/// Provisional tracker, elected by two of its three peers, and its first renewal.
fn provisional() -> (Harness, CallId) {
    let (mut peer, out) = orphan(&["a", "tracker", "me", "b"]);
    let out = peer.grant_votes(&out, &["a", "b"]);
    let out = peer.grant_votes(&out, &["a", "b"]);
    assert!(peer.core.is_provisional());
    let call = picked!(out, Action::RenewSeat { call, epoch: Epoch(64) } => call);
    (peer, call)
}

#[test]
fn majority_without_nameserver_elects_provisional_tracker_that_registers_later() {
    let (mut peer, out) = orphan(&["a", "b", "tracker", "me"]);
    let request = picked!(out, Action::RequestVote { request, .. } => request);
    assert!(request.pre_vote && request.provisional && request.epoch == Epoch(64));
    // Three votes of four: the missed tracker counts, since it may be alive elsewhere.
    let out = peer.grant_votes(&out, &["a", "b"]);
    none!(peer.grant_votes(&out, &["a"]), Action::Report(Report::BecameProvisional { .. }));
    let out = peer.grant_votes(&out, &["b"]);
    assert!(
        position(&out, |a| matches!(a, Action::Persist(d) if d.epoch_high == Epoch(64)))
            < position(&out, |a| matches!(a, Action::SendNotice { .. }))
    );
    assert!(peer.core.is_provisional());
    assert_eq!(peer.core.tracker(), Some(&seat("me", 64)));

    // The nameserver is back and names the former tracker.
    let call = picked!(out, Action::RenewSeat { call, epoch: Epoch(64) } => call);
    let moved = Err(CallError::Refused(ClaimError::Moved(held("tracker", 1))));
    let out = peer.event(Event::RenewalAnswered { call, result: moved });
    let (call, claim) = picked!(out, Action::Claim { call, claim } => (*call, claim.clone()));
    assert_eq!((claim.epoch, claim.expected_epoch), (Epoch(64), Epoch(1)));
    assert_eq!(claim.votes, [id("a"), id("b"), id("me")]);
    peer.grant(call, 64);
    assert!(!peer.core.is_provisional());
    assert_eq!(peer.core.tracker(), Some(&seat("me", 64)));
}

#[test]
fn provisional_tracker_claims_without_votes_against_unknown_seat() {
    let (mut peer, call) = provisional();
    // A claim of `a` was accepted before the nameserver went away, unknown to all. This peer's own vote, which would
    // be a majority of two peers, was not given for replacing that seat either.
    let moved = Err(CallError::Refused(ClaimError::Moved(held("a", 2))));
    let out = peer.event(Event::RenewalAnswered { call, result: moved });
    let (call, claim) = picked!(out, Action::Claim { call, claim } => (*call, claim.clone()));
    assert_eq!((claim.epoch, claim.expected_epoch, claim.votes), (Epoch(64), Epoch(2), vec![]));
    // The heartbeat tells its holder, which resigns or lets its lease end.
    let told = picked!(out, Action::SendHeartbeat { to, beat, .. } => (to.peer.clone(), beat.epoch));
    assert_eq!(told, (id("a"), Epoch(64)));

    let refused = ClaimError::NoMajority { votes: 0, needed: 1 };
    let out = peer.event(Event::ClaimAnswered { call, result: Err(CallError::Refused(refused)) });
    let out = [out, peer.pass(SEAT_RENEWAL)].concat();
    let call = picked!(out, Action::RenewSeat { call, epoch: Epoch(64) } => call);
    let moved = Err(CallError::Refused(ClaimError::Moved(vacant(2))));
    let out = peer.event(Event::RenewalAnswered { call, result: moved });
    let call = picked!(out, Action::Claim { call, claim } if claim.expected_epoch == Epoch(2) => call);
    peer.grant(call, 64);
    assert!(!peer.core.is_provisional());
    assert_eq!(peer.core.tracker(), Some(&seat("me", 64)));
}

#[test]
fn repeated_claim_names_the_seat_that_its_votes_replace() {
    let (mut peer, call) = provisional();
    let moved = |view| Err(CallError::Refused(ClaimError::Moved(view)));
    let out = peer.event(Event::RenewalAnswered { call, result: moved(held("tracker", 1)) });
    let call = picked!(out, Action::Claim { call, claim } if claim.votes.len() == 3 => call);
    peer.pass(ms(20));
    let refused = ClaimError::Held { retry_after: SEAT_RENEWAL };
    let out = peer.event(Event::ClaimAnswered { call, result: Err(CallError::Refused(refused)) });

    // Meanwhile a peer that does not know it takes the seat: the votes were not given for replacing that seat.
    let out = [out, peer.pass(SEAT_RENEWAL - ms(20))].concat();
    let call = picked!(out, Action::RenewSeat { call, .. } => call);
    let out = peer.event(Event::RenewalAnswered { call, result: moved(held("a", 2)) });
    let out = [out, peer.pass(SEAT_RENEWAL)].concat();
    let claim = picked!(out, Action::Claim { claim, .. } => claim);
    assert_eq!((claim.expected_epoch, claim.votes.len()), (Epoch(1), 3));
}

#[test]
fn simultaneous_pre_votes_let_one_candidate_win() {
    let peers = ["a", "b", "tracker"];
    let (mut a, asked_by_a) = orphan_as("a", &peers);
    let (mut b, asked_by_b) = orphan_as("b", &peers);
    // Hands the request of one peer to the other and returns the answer.
    let ask = |out: &[Action], from: &str, voter: &mut Harness| {
        let (call, request) = picked!(out, Action::RequestVote { call, request, .. } => (*call, request.clone()));
        let out = voter.event(Event::VoteRequested { token: Token(1), from: id(from), request });
        let reply = picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply);
        (reply.granted, Event::VoteAnswered { call, from: voter.core.id().clone(), result: Ok(reply) })
    };
    let (a_may, answer_to_a) = ask(&asked_by_a, "a", &mut b);
    let (b_may, answer_to_b) = ask(&asked_by_b, "b", &mut a);
    assert_ne!(a_may, b_may);
    let (first, second) =
        if a_may { ((a, answer_to_a), (b, answer_to_b)) } else { ((b, answer_to_b), (a, answer_to_a)) };
    let ((mut winner, yes), (mut voter, no)) = (first, second);
    assert_eq!((winner.core.role(), voter.core.role()), (Role::Candidate, Role::Suspect));
    voter.event(no);

    // Both votes are needed, and both are given.
    let out = winner.event(yes);
    let name = winner.core.id().to_string();
    let (granted, answer) = ask(&out, &name, &mut voter);
    assert!(granted);
    winner.event(answer);
    assert_eq!(winner.core.tracker(), Some(&seat(&name, 64)));
}

#[test]
fn vote_counts_by_the_electors_that_its_voter_sees() {
    let (mut peer, out) = orphan(&["a", "b", "tracker", "me"]);
    let out = peer.grant_votes(&out, &["a", "b"]);
    let (call, request) = picked!(out, Action::RequestVote { call, request, .. } => (*call, request.clone()));
    let reply = |electors: &[&str]| VoteReply {
        epoch: request.epoch,
        granted: true,
        seat: vacant(1),
        voted_epoch: request.epoch,
        electors: electors.iter().map(|peer| id(peer)).collect(),
    };
    let known = reply(&["a", "b", "me", "tracker"]);
    peer.event(Event::VoteAnswered { call, from: id("a"), result: Ok(known) });
    // This voter knows more peers, of which three are no majority.
    let larger = reply(&["a", "b", "c", "d", "e", "me", "tracker"]);
    let out = peer.event(Event::VoteAnswered { call, from: id("b"), result: Ok(larger) });
    none!(out, Action::Report(Report::BecameProvisional { .. }));
    assert_eq!(peer.core.tracker(), None);
}

#[test]
fn peer_that_hears_nameserver_or_tracker_refuses_provisional_vote() {
    let mut follower = Harness::follower(&["a", "b", "tracker", "me"]);
    assert!(!follower.vote("a", 64, 1, false).0.granted);
    follower.event(Event::ConnectionLost { peer: id("tracker") });
    // The nameserver was not queried yet.
    assert!(!follower.vote("a", 64, 1, false).0.granted);
    follower.pass(HEARTBEAT_DEADLINE);
    assert!(follower.vote("a", 64, 1, false).0.granted);
    // No second vote in the epoch, and no vote for a claim to a provisional epoch.
    assert!(!follower.vote("b", 64, 1, false).0.granted);
    let request =
        VoteRequest { epoch: Epoch(65), expected_epoch: Epoch(1), force: false, pre_vote: false, provisional: true };
    let out = follower.event(Event::VoteRequested { token: Token(1), from: id("a"), request });
    assert!(!picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply).granted);
}

#[test]
fn lone_peer_and_minority_elect_no_tracker() {
    for peers in [&["tracker", "me"][..], &["a", "tracker", "me"][..]] {
        let (mut peer, _) = orphan(peers);
        let out = peer.pass(Duration::from_secs(3));
        none!(out, Action::Report(Report::BecameProvisional { .. }));
        none!(out, Action::Persist(_));
    }
}
