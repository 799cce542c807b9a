//! Effects of refused port probes.

use super::*;

impl Harness {
    fn refused(&mut self) -> Vec<Action> {
        self.event(Event::ProbeRefused { at: contact("tracker") })
    }
}

fn probes(out: &[Action]) -> usize {
    out.iter().filter(|action| matches!(action, Action::ProbePort { at } if *at == contact("tracker"))).count()
}

#[test]
fn two_refusals_without_an_answer_between_raise_suspicion() {
    let mut peer = Harness::follower(&["a", "b", "tracker"]);
    assert_eq!(probes(&peer.pass(PROBE_INTERVAL)), 1);
    picked!(peer.refused(), Action::SendHeartbeat { to, .. } => to);
    // A refusal of an earlier probe is ignored.
    peer.refused();
    assert_eq!(peer.core.role(), Role::Follower);
    assert_eq!(probes(&peer.pass(PROBE_RETRY)), 1);
    let out = peer.refused();
    assert_eq!(peer.core.role(), Role::Suspect);
    picked!(out, Action::QuerySeat { call } => call);
}

#[test]
fn refusal_of_another_port_is_ignored() {
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
fn tracker_that_answers_despite_refusals_is_not_probed_again() {
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
        assert_eq!(probes(&out), 0);
        peer.refused();
        assert_eq!(peer.core.role(), Role::Follower);
        // Without probes, candidates are answered at once.
        assert!(!peer.vote("a", 2, 1, false).0.granted);
    }
}

#[test]
fn answer_sent_before_the_refusal_does_not_disprove_it() {
    let mut peer = Harness::follower(&["a", "b", "tracker"]);
    let asked_before = peer.pass(HEARTBEAT);
    peer.refused();
    peer.ack(&asked_before, None);
    peer.pass(PROBE_RETRY);
    peer.refused();
    assert_eq!(peer.core.role(), Role::Suspect);
}

#[test]
fn voter_probes_the_port_before_it_answers() {
    let mut voter = Harness::follower(&["a", "b", "tracker"]);
    let out = voter.ask_for_vote("a", 2, 1, false);
    none!(out, Action::Reply { .. });
    assert_eq!(probes(&out), 1);
    voter.refused();
    none!(voter.pass(PROBE_RETRY), Action::Reply { .. });
    let out = voter.refused();
    assert!(picked!(out, Action::Reply { reply: Reply::Vote(reply), .. } => reply).granted);
    let durable = position(&out, |action| matches!(action, Action::Persist(durable) if durable.voted.is_some()));
    assert!(durable < position(&out, |action| matches!(action, Action::Reply { .. })));
}

#[test]
fn deferred_votes_are_bounded() {
    let mut voter = Harness::follower(&["a", "b", "tracker"]);
    for _ in 0..MAX_ELECTORS {
        none!(voter.ask_for_vote("a", 2, 1, false), Action::Reply { .. });
    }
    assert!(!voter.vote("b", 2, 1, false).0.granted);
    let out = voter.pass(VOTE_HOLD);
    assert_eq!(out.iter().filter(|action| matches!(action, Action::Reply { .. })).count(), MAX_ELECTORS);
}

#[test]
fn peer_with_reduced_heartbeat_does_not_probe() {
    let mut peer = Harness::follower(&["a", "b", "tracker"]);
    let out = peer.pass(HEARTBEAT);
    let call = picked!(out, Action::SendHeartbeat { call, .. } => call);
    let ack = HeartbeatAck { epoch: Epoch(1), known_seq: None, next_beat: REDUCED_HEARTBEAT, standbys: Vec::new() };
    let result = Ok(ack);
    peer.event(Event::HeartbeatAnswered { call, from: id("tracker"), result });
    assert_eq!(probes(&peer.pass(REDUCED_HEARTBEAT / 2)), 0);
}
