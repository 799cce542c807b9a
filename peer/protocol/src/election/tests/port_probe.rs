//! What a refused knock does, and what it does not.

use super::*;

impl Harness {
    fn refused(&mut self) -> Vec<Action> {
        self.event(Event::ProbeRefused { at: contact("tracker") })
    }
}

fn knocks(out: &[Action]) -> usize {
    out.iter().filter(|action| matches!(action, Action::ProbePort { at } if *at == contact("tracker"))).count()
}

#[test]
fn two_refusals_and_no_answer_between_them_are_a_suspicion() {
    let mut peer = Harness::follower(&["a", "b", "tracker"]);
    assert_eq!(knocks(&peer.pass(PROBE_INTERVAL)), 1);
    picked!(peer.refused(), Action::SendHeartbeat { to, .. } => to);
    // What was on its way already says nothing new.
    peer.refused();
    assert_eq!(peer.core.role(), Role::Follower);
    assert_eq!(knocks(&peer.pass(PROBE_RETRY)), 1);
    let out = peer.refused();
    assert_eq!(peer.core.role(), Role::Suspect);
    picked!(out, Action::QuerySeat { call } => call);
}

#[test]
fn the_refusal_of_another_port_says_nothing() {
    let mut peer = Harness::follower(&["a", "b", "tracker"]);
    let elsewhere = Contact { endpoint: endpoint("elsewhere"), ..contact("tracker") };
    for at in [elsewhere, contact("a")] {
        for _ in 0..3 {
            peer.event(Event::ProbeRefused { at: at.clone() });
            let out = peer.pass(HEARTBEAT);
            peer.ack(&out, None);
        }
    }
    assert_eq!(peer.core.role(), Role::Follower);
}

#[test]
fn who_answers_although_its_port_is_refused_is_not_knocked_at_any_more() {
    for suspected in [false, true] {
        let mut peer = Harness::follower(&["a", "b", "tracker"]);
        let out = peer.refused();
        if suspected {
            peer.pass(PROBE_RETRY);
            peer.refused();
            assert_eq!(peer.core.role(), Role::Suspect);
        }
        peer.ack(&out, None);
        assert_eq!(peer.core.role(), Role::Follower);
        peer.refused();
        let out = peer.pass(PROBE_INTERVAL * 3);
        assert_eq!(knocks(&out), 0);
        peer.refused();
        assert_eq!(peer.core.role(), Role::Follower);
        // Then it has nothing to look with, and answers candidates at once.
        assert!(!peer.vote("a", 2, 1, false).0.granted);
    }
}

#[test]
fn an_answer_from_before_the_refusal_disproves_nothing() {
    let mut peer = Harness::follower(&["a", "b", "tracker"]);
    let asked_before = peer.pass(HEARTBEAT);
    peer.refused();
    peer.ack(&asked_before, None);
    peer.pass(PROBE_RETRY);
    peer.refused();
    assert_eq!(peer.core.role(), Role::Suspect);
}

#[test]
fn a_voter_looks_for_itself_before_it_answers() {
    let mut voter = Harness::follower(&["a", "b", "tracker"]);
    let out = voter.ask_for_vote("a", 2, 1, false);
    none!(out, Action::Reply { .. });
    assert_eq!(knocks(&out), 1);
    voter.refused();
    none!(voter.pass(PROBE_RETRY), Action::Reply { .. });
    let out = voter.refused();
    assert!(picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply).granted);
    let durable = position(&out, |action| matches!(action, Action::Persist(durable) if durable.voted.is_some()));
    assert!(durable < position(&out, |action| matches!(action, Action::Reply { .. })));
}

#[test]
fn so_many_candidates_wait_and_no_more() {
    let mut voter = Harness::follower(&["a", "b", "tracker"]);
    for _ in 0..MAX_ELECTORS {
        none!(voter.ask_for_vote("a", 2, 1, false), Action::Reply { .. });
    }
    assert!(!voter.vote("b", 2, 1, false).0.granted);
    let out = voter.pass(VOTE_HOLD);
    assert_eq!(out.iter().filter(|action| matches!(action, Action::Reply { .. })).count(), MAX_ELECTORS);
}

#[test]
fn who_rests_does_not_knock() {
    let mut peer = Harness::follower(&["a", "b", "tracker"]);
    let out = peer.pass(HEARTBEAT);
    let call = picked!(out, Action::SendHeartbeat { call, .. } => call);
    let ack = HeartbeatAck { epoch: Epoch(1), known_seq: None, next_beat: REDUCED_HEARTBEAT, standbys: Vec::new() };
    let result = Ok(ack);
    peer.event(Event::HeartbeatAnswered { call, from: id("tracker"), result });
    assert_eq!(knocks(&peer.pass(REDUCED_HEARTBEAT / 2)), 0);
}
