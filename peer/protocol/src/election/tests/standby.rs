//! Standbys: their choice, the announcements to them, and their index when they take the seat.

use super::*;

fn named(peers: &[&str]) -> Vec<StandbyContact> {
    peers.iter().map(|peer| StandbyContact { peer: id(peer), endpoint: endpoint(peer) }).collect()
}

impl Harness {
    /// Answers the next heartbeat as a tracker that names `standbys` and has the share up to `known_seq`.
    fn name(&mut self, standbys: &[&str], known_seq: Option<u64>) -> Vec<Action> {
        let out = self.pass(HEARTBEAT);
        let is_to_tracker = |to: &Contact| *to == contact("tracker");
        let call = picked!(out, Action::SendHeartbeat { call, to, .. } if is_to_tracker(to) => call);
        let epoch = self.core.durable().epoch_high;
        let ack = HeartbeatAck { epoch, known_seq, next_beat: HEARTBEAT, standbys: named(standbys) };
        self.event(Event::HeartbeatAnswered { call, from: id("tracker"), result: Ok(ack) })
    }

    /// Standby of `tracker` with one file of `a`.
    fn standby() -> Self {
        let mut peer = Self::follower(&["me", "a", "b", "tracker"]);
        peer.name(&["me", "b"], Some(1));
        assert_eq!(peer.beat_as("a", 1, Addressee::Standby, &["x"]).map(|ack| ack.known_seq), Ok(None));
        peer.announce_as("a", 1, Addressee::Standby, "x").unwrap();
        peer
    }

    /// Lets the tracker leave and this peer take the seat.
    fn succeed(&mut self) -> Vec<Action> {
        let notice = SeatNotice::Vacated(Epoch(1));
        self.notice("tracker", notice);
        let mut out = self.answer_seat(vacant(1));
        if !out.iter().any(|action| matches!(action, Action::Claim { .. })) {
            out = self.pass(ms(15));
        }
        let call = picked!(out, Action::Claim { call, .. } => call);
        self.grant(call, 2);
        self.know_peers(&["me", "a"])
    }
}

#[test]
fn follower_announces_to_standbys_after_the_tracker() {
    let mut peer = Harness::new("me");
    let first = peer.event(Event::Tick);
    peer.event(Event::ShareChanged { upserts: vec![file("x")], removals: vec![] });
    peer.out = first;
    peer.answer_seat(held("tracker", 1));
    let out = peer.name(&["a", "b"], None);
    let to_a = |to: &Contact| *to == contact("a");
    let (call, beat) = picked!(out, Action::SendHeartbeat { call, to, beat } if to_a(to) => (*call, beat.clone()));
    assert_eq!(beat.to, Addressee::Standby);
    picked!(out, Action::SendHeartbeat { to, .. } if *to == contact("b") => ());
    // The standby has nothing, but the tracker comes first.
    let ack = HeartbeatAck { epoch: Epoch(1), known_seq: None, next_beat: REDUCED_HEARTBEAT, standbys: vec![] };
    let answered = peer.event(Event::HeartbeatAnswered { call, from: id("a"), result: Ok(ack) });
    none!(answered, Action::SendAnnouncement { .. });
    let call = picked!(out, Action::SendAnnouncement { call, to, .. } if *to == contact("tracker") => call);
    let out = peer.event(Event::AnnouncementAnswered { call, from: id("tracker"), result: Ok(()) });
    assert!(peer.core.is_announced());
    let said = picked!(out, Action::SendAnnouncement { to, announcement, .. } if to_a(to) => announcement);
    assert_eq!((said.to, said.seq, said.upserts.len()), (Addressee::Standby, 2, 1));
    // A standby's silence does not concern the tracker, and a former standby gets no announcements.
    peer.event(Event::HeartbeatAnswered {
        call,
        from: id("a"),
        result: Err(CallError::Failed(CallFailure::Unreachable)),
    });
    assert_eq!(peer.core.role(), Role::Follower);
    peer.name(&["b"], Some(2));
    let out = peer.event(Event::ShareChanged { upserts: vec![file("y")], removals: vec![] });
    assert!(!out.iter().any(|action| matches!(action, Action::SendAnnouncement { to, .. } if to_a(to))));
}

#[test]
fn tracker_names_heard_electors_as_standbys_and_keeps_them() {
    let mut tracker = Harness::tracker(&["me", "a", "b", "c"]);
    for peer in ["a", "b", "c"] {
        tracker.beat(peer, 1).unwrap();
        tracker.announce(peer, 1, peer).unwrap();
    }
    let first = tracker.beat_as("a", 1, Addressee::Tracker, &["a"]).unwrap().standbys;
    assert_eq!(first.len(), 2);
    // One standby leaves: the other stays, and becomes first.
    let (gone, stays) = (first[0].peer.clone(), first[1].clone());
    tracker.leave(gone.as_str(), 1).unwrap();
    let asker = stays.peer.to_string();
    let then = tracker.beat_as(&asker, 1, Addressee::Tracker, &[&asker]).unwrap().standbys;
    assert_eq!((then.len(), &then[0]), (2, &stays));
}

#[test]
fn standby_that_takes_the_seat_settles_by_digests() {
    let mut peer = Harness::standby();
    let out = peer.succeed();
    none!(out, Action::Report(Report::Settled { .. }));
    assert_eq!(peer.list(2), Err(TrackerError::Settling));
    // An inherited share counts when its owner's heartbeat confirms it.
    assert_eq!(peer.beat_as("a", 2, Addressee::Tracker, &["x"]).map(|ack| ack.known_seq), Ok(Some(1)));
    picked!(peer.out, Action::Report(Report::Settled { missing: 0, announcements: 0, .. }) => ());
    assert_eq!(peer.list(2), Ok(vec!["x".to_owned()]));
}

#[test]
fn inherited_entries_with_wrong_digest_or_without_heartbeat_are_removed() {
    let mut peer = Harness::standby();
    peer.succeed();
    assert_eq!(peer.beat_as("a", 2, Addressee::Tracker, &["y"]).map(|ack| ack.known_seq), Ok(None));
    assert_eq!(peer.core.index_size(), Some((2, 0)));

    let mut peer = Harness::standby();
    peer.succeed();
    assert_eq!(peer.core.index_size(), Some((2, 1)));
    let mut waited = Duration::ZERO;
    while waited < PEER_SILENCE {
        let out = peer.pass(ms(100));
        if out.iter().any(|action| matches!(action, Action::RenewSeat { .. })) {
            peer.renewed(&out);
        }
        waited += ms(100);
    }
    assert_eq!(peer.core.index_size(), Some((1, 0)));
}

#[test]
fn standby_and_tracker_refuse_calls_meant_for_the_other() {
    let mut peer = Harness::standby();
    assert!(matches!(peer.beat("a", 1), Err(TrackerError::NotTracker(_))));
    assert!(matches!(peer.announce("a", 1, "y"), Err(TrackerError::NotTracker(_))));
    assert!(matches!(peer.beat_as("a", 0, Addressee::Standby, &[]), Err(TrackerError::StaleEpoch(_))));
    assert_eq!(peer.core.standby_size(), Some((1, 1)));
    peer.name(&["b"], Some(1));
    assert_eq!(peer.core.standby_size(), None);
    assert!(matches!(peer.beat_as("a", 1, Addressee::Standby, &[]), Err(TrackerError::NotTracker(_))));

    let mut tracker = Harness::tracker(&["me", "a"]);
    assert!(matches!(tracker.beat_as("a", 1, Addressee::Standby, &[]), Err(TrackerError::NotTracker(_))));
}

#[test]
fn standbys_stand_for_election_before_other_peers() {
    for (standbys, is_first) in [(&["me", "b"][..], true), (&["a", "b"], false)] {
        let mut peer = Harness::follower(&["me", "a", "b", "tracker"]);
        peer.name(standbys, Some(1));
        let notice = SeatNotice::Vacated(Epoch(1));
        peer.notice("tracker", notice);
        let mut out = peer.answer_seat(vacant(1));
        out.extend(peer.pass(ms(20)));
        assert_eq!(out.iter().any(|action| matches!(action, Action::Claim { .. })), is_first);
    }
}
