//! The invariants of `docs/election.md`, checked from outside the cores.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use nameserver::registry::Registry;
use protocol::election::{Action, Core, DurableState, ElectionFailure, Event, Reply, Report, Role, StepDown, Token};
use shared::{
    electors::provisional_quorum,
    epoch::Epoch,
    id::{Incarnation, PeerId},
    limits::SEAT_LEASE,
    name::Name,
    rpc::{
        nameserver::{Claim, Seat},
        peer::{SeatNotice, VoteRequest},
        tracker::{Addressee, AnnouncementKind, TrackerError},
    },
    time::Timestamp,
};

use crate::{
    input::{Answer, Call, Input, Output},
    world::Node,
};

/// History of a run, as far as the invariants need it.
#[derive(Default)]
pub(crate) struct Checks {
    /// Epochs whose claim the nameserver accepted.
    accepted: BTreeSet<Epoch>,
    /// Epochs that were won, with the nameserver or without it.
    won: BTreeSet<Epoch>,
    /// Highest epoch registered.
    registered: Epoch,
    /// Candidate of each peer's vote in each epoch.
    votes: BTreeMap<(PeerId, Epoch), PeerId>,
    /// Votes with the seat that each replaces: voter, candidate, epoch, replaced epoch.
    grants: BTreeSet<(PeerId, PeerId, Epoch, Epoch)>,
    /// Provisional trackers, with the electors as each saw them.
    provisional: BTreeMap<Epoch, (PeerId, BTreeSet<PeerId>)>,
    /// Epochs that each run claimed, or won without the nameserver.
    tried: BTreeSet<(PeerId, Incarnation, Epoch)>,
    /// Epochs with two provisional trackers, which is possible where two parts of the network knew too little of each
    /// other.
    conflicts: BTreeSet<Epoch>,
    /// Highest epoch that each peer followed.
    followed: BTreeMap<PeerId, Epoch>,
    /// Open vote requests by voter and token.
    asked: BTreeMap<(PeerId, Token), (PeerId, VoteRequest)>,
    /// Highest epoch of a claimed seat that each run has received.
    received: BTreeMap<(PeerId, Incarnation), Epoch>,
    /// Durable state of each peer.
    persisted: BTreeMap<PeerId, DurableState>,
    /// Count of announcements that each tracker accepted before its index was settled.
    settled: BTreeMap<(PeerId, Epoch), usize>,
    /// Count of each situation that occurred.
    pub(crate) sometimes: BTreeMap<&'static str, u64>,
}

impl Checks {
    pub(crate) fn sometimes(&mut self, what: &'static str) {
        *self.sometimes.entry(what).or_default() += 1;
    }

    fn voted(&mut self, voter: &PeerId, epoch: Epoch, candidate: &PeerId) {
        let first = self.votes.entry((voter.clone(), epoch)).or_insert_with(|| candidate.clone());
        assert_eq!(first, candidate, "S3: {voter} voted twice in epoch {epoch}");
    }

    /// Notes what a process receives, before it handles the input.
    pub(crate) fn receives(&mut self, peer: &PeerId, run: Incarnation, input: &Input) {
        if let Input::Event(Event::VoteRequested { token, from, request }) = input {
            self.asked.insert((peer.clone(), *token), (from.clone(), request.clone()));
        }
        let epoch = match input {
            Input::Event(Event::SeatAnswered { result: Ok(view), .. } | Event::NoticeAnswered { view, .. }) => {
                view.epoch_high
            }
            Input::Event(Event::VoteAnswered { result: Ok(reply), .. }) => reply.seat.epoch_high,
            Input::Call { call: Call::Heartbeat(beat), .. } => beat.epoch,
            Input::Call { call: Call::Announcement(announcement), .. } => announcement.epoch,
            Input::Call { call: Call::Notice(SeatNotice::Taken(seat)), .. } => seat.epoch,
            _ => return,
        };
        let known = self.received.entry((peer.clone(), run)).or_default();
        *known = epoch.max(*known);
    }

    /// A process crashed. What its `full_disk` did not store is forgotten.
    pub(crate) fn crashed(&mut self, peer: &PeerId, full_disk: bool) {
        if full_disk {
            self.sometimes("peer crashed with a full disk");
            let stored = self.persisted.get(peer).map_or(Epoch::NONE, |durable| durable.epoch_high);
            self.followed.insert(peer.clone(), stored);
        }
    }

    /// `durable` is on the disk.
    pub(crate) fn persisted(&mut self, peer: &PeerId, durable: &DurableState) {
        let before = self.persisted.insert(peer.clone(), durable.clone()).unwrap_or_default();
        assert!(durable.epoch_high >= before.epoch_high, "S5: {peer} forgot an epoch");
        let epochs = [&before, durable].map(|state| state.voted.as_ref().map(|vote| vote.epoch));
        assert!(epochs[1] >= epochs[0], "S3: {peer} forgot a vote");
    }

    /// An action, caused by `input`, leaves the core.
    pub(crate) fn action(&mut self, peer: &PeerId, run: Incarnation, action: &Action, input: &Input) {
        match action {
            Action::RequestVote { request, .. } if request.pre_vote => {}
            Action::RequestVote { request, .. } => {
                self.voted(peer, request.epoch, peer);
                self.grants.insert((peer.clone(), peer.clone(), request.epoch, request.expected_epoch));
            }
            Action::Claim { claim, .. } => {
                self.voted(peer, claim.epoch, peer);
                if !claim.epoch.is_provisional() {
                    self.grants.insert((peer.clone(), peer.clone(), claim.epoch, claim.expected_epoch));
                }
                self.votes_fit(peer, claim);
                self.tried.insert((peer.clone(), run, claim.epoch));
            }
            Action::Reply { token, reply: Reply::Vote(reply) } => {
                let (from, request) = self.asked.remove(&(peer.clone(), *token)).expect("a vote was requested");
                if !matches!(input, Input::Event(Event::VoteRequested { token: now, .. }) if now == token) {
                    self.sometimes(if reply.granted { "granted after a probe" } else { "refused after a probe" });
                }
                if !reply.granted {
                    return;
                }
                if request.pre_vote {
                    return;
                }
                self.voted(peer, request.epoch, &from);
                self.sometimes("vote given");
                self.grants.insert((peer.clone(), from, request.epoch, request.expected_epoch));
            }
            Action::Reply { reply: Reply::Elected(Ok(_)), .. } => self.sometimes("forced election won"),
            Action::Report(Report::Settled { epoch, missing, members, announcements }) => {
                self.settled.insert((peer.clone(), *epoch), *announcements);
                if *missing == 0 && *members > 0 && *announcements == 0 {
                    self.sometimes("failover without announcements");
                }
            }
            Action::Report(report) => self.report(report),
            _ => {}
        }
    }

    /// The answer to the call in `input` leaves the core.
    pub(crate) fn answer(&mut self, peer: &PeerId, run: Incarnation, answer: &Answer, input: &Input) {
        match (answer, input) {
            (Answer::Announcement(result), Input::Call { call: Call::Announcement(announcement), .. }) => {
                match result {
                    Ok(()) => {
                        let received = self.received.get(&(peer.clone(), run)).copied().unwrap_or_default();
                        let epoch = announcement.epoch;
                        assert!(
                            epoch >= received,
                            "S6: {peer} accepted a write of epoch {epoch} and knows epoch {received}"
                        );
                        self.sometimes(match (announcement.kind, announcement.to) {
                            (AnnouncementKind::Delta, Addressee::Tracker) => "delta accepted",
                            (AnnouncementKind::Delta, Addressee::Standby) => "delta accepted by a standby",
                            (AnnouncementKind::Snapshot { .. }, Addressee::Tracker) => "snapshot accepted",
                            (AnnouncementKind::Snapshot { .. }, Addressee::Standby) => "snapshot accepted by a standby",
                        });
                    }
                    Err(TrackerError::SnapshotNeeded) => self.sometimes("snapshot requested"),
                    Err(TrackerError::StaleEpoch(_)) => self.sometimes("stale epoch refused"),
                    Err(TrackerError::Unavailable(_)) => self.sometimes("write refused after a stall"),
                    Err(_) => {}
                }
            }
            (Answer::Announcement(_), _) => panic!("the answer belongs to no announcement"),
            (Answer::Heartbeat(Err(TrackerError::StaleEpoch(_))), _) => self.sometimes("stale epoch refused"),
            (Answer::Heartbeat(_) | Answer::Leave | Answer::Notice(_), _) => {}
        }
    }

    fn report(&mut self, report: &Report) {
        match report {
            Report::ElectionFailed { why: ElectionFailure::Lost(_), .. } => self.sometimes("claim lost"),
            Report::ElectionFailed { why: ElectionFailure::NotStored, .. } => {
                self.sometimes("campaign ended by a full disk");
            }
            Report::ElectionFailed { why: ElectionFailure::NoMajority { .. }, .. } => {
                self.sometimes("election without a majority");
            }
            Report::SteppedDown { why: StepDown::Stalled, .. } => self.sometimes("stepped down after a stall"),
            Report::SteppedDown { why: StepDown::Isolated, .. } => self.sometimes("stepped down isolated"),
            Report::SteppedDown { why: StepDown::HigherEpoch, .. } => {
                self.sometimes("stepped down for a higher epoch");
            }
            Report::SteppedDown { why: StepDown::Conflict, .. } => self.sometimes("conflicting trackers stepped down"),
            Report::SuspicionLifted { .. } => self.sometimes("suspicion lifted"),
            Report::PeerGone { why: protocol::election::Departure::Silent, .. } => {
                self.sometimes("silent peer forgotten");
            }
            Report::Superseded => self.sometimes("superseded run stopped"),
            _ => {}
        }
    }

    /// `tracker` of `epoch` had a complete index as a standby.
    pub(crate) fn complete_standby_took_seat(&mut self, tracker: &PeerId, epoch: Epoch) {
        if let Some(announcements) = self.settled.get(&(tracker.clone(), epoch)) {
            assert_eq!(*announcements, 0, "L6: {tracker} had a complete index and received announcements");
            self.sometimes("failover to a complete standby");
        }
    }

    /// `winner` became tracker without the nameserver; `electors` as it sees them.
    pub(crate) fn elected_provisionally(
        &mut self,
        winner: &PeerId,
        run: Incarnation,
        epoch: Epoch,
        electors: &BTreeSet<PeerId>,
    ) {
        self.tried.insert((winner.clone(), run, epoch));
        let voters: BTreeSet<&PeerId> =
            self.grants.iter().filter(|grant| grant.1 == *winner && grant.2 == epoch).map(|grant| &grant.0).collect();
        let votes = electors.iter().filter(|elector| voters.contains(elector)).count();
        assert!(votes >= provisional_quorum(electors.len()), "S4: {winner} became tracker with {votes} votes");
        assert!(epoch.is_provisional(), "S1: {winner} took {epoch}, which only the nameserver grants");
        if let Some((first, its_electors)) = self.provisional.get(&epoch) {
            let all = its_electors.union(electors).count();
            let close = all <= its_electors.len().min(electors.len()) + 1;
            assert!(!close || first == winner, "S1: {first} and {winner} were elected in {epoch} by the same peers");
            self.conflicts.insert(epoch);
            self.sometimes("conflicting provisional trackers");
        } else {
            self.provisional.insert(epoch, (winner.clone(), electors.clone()));
        }
        self.won.insert(epoch);
        self.sometimes("provisional tracker");
    }

    /// Checks that a claim names the seat that its votes replace, whether it will be accepted or not.
    fn votes_fit(&self, claimant: &PeerId, claim: &Claim) {
        for voter in &claim.votes {
            let grant = (voter.clone(), claimant.clone(), claim.epoch, claim.expected_epoch);
            assert!(
                self.grants.contains(&grant),
                "S4: {claimant} claims to replace {} with a vote of {voter} for another seat",
                claim.expected_epoch
            );
        }
    }

    /// The registry has answered a claim; `held` is the seat before it.
    pub(crate) fn claim(&mut self, claimant: &PeerId, claim: &Claim, held: Option<&Seat>, accepted: bool) {
        if !accepted {
            return;
        }
        let epoch = claim.epoch;
        assert!(self.accepted.insert(epoch), "S1: two claims to epoch {epoch} were accepted");
        self.won.insert(epoch);
        if epoch.is_provisional() {
            let elected = self.provisional.get(&epoch).is_some_and(|(winner, _)| winner == claimant);
            assert!(
                elected || self.conflicts.contains(&epoch),
                "S1: {claimant} registered {epoch}, which it did not win"
            );
            self.sometimes("provisional tracker registered");
        }
        if let Some(held) = held {
            assert_eq!(held.epoch, claim.expected_epoch, "S4: {claimant} replaced a seat that its claim does not name");
            self.sometimes("claim accepted with a majority");
        } else {
            self.sometimes("claim accepted over a vacant seat");
        }
    }

    /// The registry has changed.
    pub(crate) fn registry(&mut self, now: Timestamp, registry: &Registry) {
        let view = registry.seat(now);
        assert!(view.epoch_high >= self.registered, "S2: the registered epoch fell to {}", view.epoch_high);
        self.registered = view.epoch_high;
        if let Some(seat) = view.seat {
            let name = Name::tracker(seat.epoch);
            assert!(registry.lookup(now, name.as_str()).is_ok(), "S8: {name} is not registered while its seat is held");
        }
    }

    /// A core has made a step, and its actions are carried out.
    pub(crate) fn core(&mut self, now: Timestamp, node: &Node, core: &Core, registry: &Registry) {
        let peer = core.id();
        let shown = node.clock.local(now);
        if let Some(seat) = core.tracker() {
            let before = self.followed.entry(peer.clone()).or_default();
            assert!(seat.epoch >= *before, "S5: {peer} followed {before} and follows {}", seat.epoch);
            *before = seat.epoch;
            assert!(self.won.contains(&seat.epoch), "S5: {peer} follows an epoch that was never accepted");
            let persisted = self.persisted.get(peer).map_or(Epoch::NONE, |durable| durable.epoch_high);
            let stored = persisted >= seat.epoch || core.storage_fails();
            assert!(stored, "S5: {peer} follows {}, which is not durable", seat.epoch);
            // The seat of an earlier run is not this run's: the others know that run's endpoint and announced to it.
            let tried = (peer.clone(), node.incarnation, seat.epoch);
            let is_its_own = core.role() != Role::Tracker || self.tried.contains(&tried);
            assert!(is_its_own, "S1: {peer} uses the seat of an earlier run, {}", seat.epoch);
        }
        // But for its clock's drift, no tracker relies on its lease for longer than the nameserver granted it.
        if let (Some(until), Some(seat)) = (core.lease_until(), core.tracker())
            && let Some(registered) = registry.seat(now).seat
            && registered.epoch == seat.epoch
            && shown < until
        {
            let last = node.clock.world(until) - SEAT_LEASE / 50 - Duration::from_micros(2);
            assert!(
                last <= now || registry.seat(last).seat.is_some(),
                "lease: {peer} relies on its lease after its end"
            );
        }
    }

    /// A core has handled an input at `shown` by its own clock.
    pub(crate) fn deadline(&mut self, shown: Timestamp, core: &Core, outputs: &[Output]) {
        let ended = outputs.iter().any(|output| matches!(output, Output::Action(Action::Stopped)));
        let deadline = core.next_deadline();
        let lies_ahead = deadline.is_some_and(|deadline| deadline > shown);
        assert!(lies_ahead || ended, "S7: {} in {:?}: {deadline:?}", core.id(), core.role());
    }

    /// Checks that no epoch has two trackers. (A peer whose disk is being written does nothing until that is done.)
    pub(crate) fn trackers(&mut self, nodes: &[Node]) {
        let mut epochs = BTreeSet::new();
        let awake = nodes.iter().filter(|node| node.syncing.is_none());
        for core in awake.filter_map(|node| node.core.as_ref()).filter(|core| core.role() == Role::Tracker) {
            let epoch = core.tracker().expect("a tracker has a seat").epoch;
            assert!(epochs.insert(epoch) || self.conflicts.contains(&epoch), "S1: two trackers of epoch {epoch}");
        }
    }
}
