//! Standing for the seat.

use std::{collections::BTreeSet, time::Duration};

use shared::{
    electors::rendezvous,
    epoch::Epoch,
    id::PeerId,
    limits::{
        CANDIDATE_PLACES, CANDIDATE_STAGGER, CLAIM_WAIT, ELECTION_BACKOFF, MAX_ELECTION_WAITERS, SEAT_LEASE, SEAT_POLL,
        STANDBY_HEAD_START, VOTE_WAIT,
    },
    rpc::{
        nameserver::{Claim, ClaimError, Seat, SeatGrant},
        peer::{VoteReply, VoteRequest},
    },
    time::Timestamp,
};

use super::{
    Action, CallError, CallFailure, Core, ElectionFailure, Reply, Report, Token,
    campaign::{Campaign, Electorate, Kind, Stage},
    state::{Standing, Word},
    tracker::Mandate,
};
use crate::CallId;

/// Shortest wait before a refused claim is tried again: not a busy loop against a nameserver that says "now".
const MIN_RETRY: Duration = Duration::from_millis(10);
/// How long one campaign goes on claiming a seat that is still held: past a lease, the incumbent must be alive.
const MAX_HELD: Duration = SEAT_LEASE.saturating_add(CLAIM_WAIT);

impl Core {
    /// Claims a seat that nobody holds: needs no votes but one's own.
    pub(crate) fn claim_vacant(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let electorate = Electorate::new(std::iter::once(&self.id), None);
        self.stand(now, Kind::Ordinary, electorate);
        self.cast_own_vote(now, out);
        self.claim(now, out);
    }

    /// Stands against `incumbent`, whom the nameserver still has; or, while that is away, whom this peer misses.
    pub(crate) fn ask_for_votes(
        &mut self,
        now: Timestamp,
        incumbent: Option<PeerId>,
        kind: Kind,
        out: &mut Vec<Action>,
    ) {
        let incumbent = incumbent.filter(|incumbent| *incumbent != self.id);
        let peers = self.members.keys().chain([&self.id]);
        let electorate = Electorate::new(peers, incumbent);
        self.stand(now, kind, electorate);
        if kind == Kind::Forced {
            self.begin_vote(now, out);
        } else {
            self.probe(now, out);
        }
    }

    /// A provisional tracker asks the nameserver for its own epoch. The votes, its own too, count only for what they were
    /// given for: to replace the seat of `mandate.expected` (invariant S4). The seat may be another by now, since a claim
    /// that nobody heard of was accepted after all; then it has to become vacant first.
    pub(crate) fn register_provisional(
        &mut self,
        now: Timestamp,
        epoch: Epoch,
        mandate: Mandate,
        out: &mut Vec<Action>,
    ) {
        let electorate = Electorate::new(std::iter::once(&self.id), None);
        let mut campaign = Campaign::new(Kind::Registering, epoch, self.expected, electorate, now);
        if mandate.expected == self.expected {
            campaign.votes = mandate.votes;
        }
        self.campaign = Some(campaign);
        self.claim(now, out);
    }

    /// Begins a campaign; nothing of it is durable or known to others yet.
    fn stand(&mut self, now: Timestamp, kind: Kind, electorate: Electorate) {
        let provisional = kind == Kind::Provisional;
        let epoch = self.next_epoch(provisional);
        let expected = if provisional { self.durable.epoch_high } else { self.expected };
        self.campaign = Some(Campaign::new(kind, epoch, expected, electorate, now));
    }

    /// Asks whether there would be a majority: a peer that is alone in missing the tracker disturbs nobody.
    fn probe(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let call = self.call();
        let Some(campaign) = &mut self.campaign else { return };
        campaign.stage = Stage::Probing { call, until: now + VOTE_WAIT };
        self.request_votes(call, out);
        self.count_votes(now, out);
    }

    /// Asks for votes in earnest.
    fn begin_vote(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let call = self.cast_own_vote(now, out);
        self.request_votes(call, out);
        self.count_votes(now, out);
    }

    fn cast_own_vote(&mut self, now: Timestamp, out: &mut Vec<Action>) -> CallId {
        let call = self.call();
        if let Some(campaign) = &mut self.campaign {
            campaign.stage = Stage::Voting { call, until: now + VOTE_WAIT };
            campaign.votes = BTreeSet::from([self.id.clone()]);
            let (epoch, (_, needed)) = (campaign.epoch, campaign.count(&campaign.votes));
            out.push(Action::Report(Report::Candidate { epoch, needed: needed as u64 }));
            self.vote(epoch, self.id.clone(), out);
        }
        call
    }

    /// Sends the stage's requests to all who elect and could answer.
    fn request_votes(&mut self, call: CallId, out: &mut Vec<Action>) {
        let Some(campaign) = &mut self.campaign else { return };
        let forced = campaign.is_forced();
        // A suspect is not waited for; a tracker that is to be replaced at a user's wish may agree.
        let asked = |peer: &&PeerId| **peer != self.id && (forced || campaign.electorate().incumbent() != Some(*peer));
        let voters: BTreeSet<PeerId> = campaign.electorate().voters().filter(asked).cloned().collect();
        let request = VoteRequest {
            epoch: campaign.epoch,
            expected_epoch: campaign.expected,
            force: forced,
            pre_vote: matches!(campaign.stage, Stage::Probing { .. }),
            provisional: campaign.kind == Kind::Provisional,
        };
        for voter in &voters {
            if let Some(endpoint) = self.members.get(voter) {
                let to = Self::contact(voter, endpoint);
                out.push(Action::RequestVote { call, to, request: request.clone() });
            }
        }
        campaign.votes = BTreeSet::from([self.id.clone()]);
        campaign.open = voters;
    }

    /// An epoch that this peer can stand for: above all that were claimed and all in which it, or a voter it
    /// heard, has voted for another. Its own unused one is used again, so that trying costs no numbers.
    fn next_epoch(&self, provisional: bool) -> Epoch {
        let above = self.durable.epoch_high.max(self.expected).max(self.voted_elsewhere);
        let next = |above: Epoch| if provisional { above.next_provisional() } else { above.next() };
        match &self.durable.voted {
            Some(vote)
                if vote.epoch > above && vote.candidate == self.id && vote.epoch.is_provisional() == provisional =>
            {
                vote.epoch
            }
            Some(vote) => next(above.max(vote.epoch)),
            None => next(above),
        }
    }

    pub(crate) fn on_vote_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        from: PeerId,
        result: Result<VoteReply, CallFailure>,
        out: &mut Vec<Action>,
    ) {
        if let Ok(reply) = &result {
            if !reply.granted && self.is_credible(reply.voted_epoch) {
                self.voted_elsewhere = self.voted_elsewhere.max(reply.voted_epoch);
            }
            self.learn_hearsay(now, &reply.seat, out);
        }
        let Some(campaign) = &mut self.campaign else { return };
        let asked = match campaign.stage {
            Stage::Probing { call, .. } | Stage::Voting { call, .. } => call,
            Stage::Claiming { .. } | Stage::Held { .. } => return,
        };
        if asked != call || !campaign.open.remove(&from) {
            return;
        }
        if let Ok(reply) = result
            && reply.granted
            && reply.epoch == campaign.epoch
        {
            campaign.votes.insert(from);
            campaign.note_view(reply.electors);
        }
        self.count_votes(now, out);
    }

    fn count_votes(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(campaign) = &self.campaign else { return };
        if !campaign.is_won() {
            if !campaign.can_be_won() {
                self.end_without_majority(now, out);
            }
        } else if matches!(campaign.stage, Stage::Probing { .. }) {
            self.begin_vote(now, out);
        } else if campaign.kind == Kind::Provisional {
            let (epoch, expected, votes) = (campaign.epoch, campaign.expected, campaign.votes.clone());
            self.take_seat(now, epoch, None, Some(Mandate { votes, expected }), out);
        } else {
            self.claim(now, out);
        }
    }

    fn end_without_majority(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(campaign) = &self.campaign else { return };
        let (votes, needed) = campaign.count(&campaign.votes);
        let (votes, needed) = (votes as u64, needed as u64);
        self.end_campaign(now, ElectionFailure::NoMajority { votes, needed }, out);
    }

    /// Asks the nameserver for the seat.
    pub(crate) fn claim(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let call = self.call();
        let Some(campaign) = &mut self.campaign else { return };
        campaign.stage = Stage::Claiming { call, sent: now };
        let claim = Claim {
            epoch: campaign.epoch,
            expected_epoch: campaign.expected,
            endpoint: self.endpoint.clone(),
            votes: campaign.votes.iter().cloned().collect(),
            force: campaign.is_forced(),
        };
        self.claimed = Some(campaign.epoch);
        out.push(Action::Claim { call, claim });
    }

    pub(crate) fn on_claim_answered(
        &mut self,
        now: Timestamp,
        call: CallId,
        result: Result<SeatGrant, CallError<ClaimError>>,
        out: &mut Vec<Action>,
    ) {
        let ours =
            |campaign: &&mut Campaign| matches!(campaign.stage, Stage::Claiming { call: asked, .. } if asked == call);
        let Some(campaign) = self.campaign.as_mut().filter(ours) else {
            // An accepted claim that came too late: the nameserver says what it is worth.
            if result.is_ok() && self.seat_poll.pending.is_none() {
                self.seat_poll.at = now;
            }
            return;
        };
        let (epoch, sent) = (
            campaign.epoch,
            match campaign.stage {
                Stage::Claiming { sent, .. } => sent,
                _ => now,
            },
        );
        match result {
            Ok(grant) if grant.epoch == epoch && epoch >= self.durable.epoch_high => {
                self.take_seat(now, epoch, Some(sent + grant.lease), None, out);
            }
            Ok(grant) => {
                let call = self.call();
                out.push(Action::Resign { call, epoch: grant.epoch });
                self.end_campaign(now, ElectionFailure::Lost(self.seat_view()), out);
            }
            Err(CallError::Refused(ClaimError::Held { retry_after })) => {
                if now.since(campaign.started) < MAX_HELD {
                    campaign.stage = Stage::Held { until: now + retry_after.clamp(MIN_RETRY, SEAT_POLL) };
                } else {
                    let held = ClaimError::Held { retry_after };
                    self.end_campaign(now, ElectionFailure::Refused(held.to_string()), out);
                }
            }
            Err(CallError::Refused(ClaimError::Moved(view))) => {
                let campaign = self.campaign.take();
                self.on_seat_view(now, &view, out);
                if !matches!(&self.standing, Standing::Tracking(term) if term.seat.epoch == epoch) {
                    self.conclude(now, campaign, ElectionFailure::Lost(view), out);
                }
            }
            Err(CallError::Refused(ClaimError::NoMajority { votes, needed })) => {
                // The nameserver knows peers that this one does not, or has forgotten dead ones.
                self.refresh_peers(now);
                self.end_campaign(now, ElectionFailure::NoMajority { votes, needed }, out);
            }
            Err(CallError::Refused(why @ (ClaimError::NotAuthorised(_) | ClaimError::Unavailable(_)))) => {
                self.end_campaign(now, ElectionFailure::Refused(why.to_string()), out);
            }
            Err(CallError::Failed(_)) => self.end_campaign(now, ElectionFailure::NameserverUnreachable, out),
        }
    }

    pub(crate) fn run_campaign_timer(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(campaign) = self.campaign.as_ref().filter(|campaign| campaign.deadline() <= now) else { return };
        match campaign.stage {
            Stage::Probing { .. } | Stage::Voting { .. } => self.end_without_majority(now, out),
            Stage::Held { .. } => self.claim(now, out),
            Stage::Claiming { .. } => self.end_campaign(now, ElectionFailure::NameserverUnreachable, out),
        }
    }

    /// The campaign is over without the seat.
    pub(crate) fn end_campaign(&mut self, now: Timestamp, why: ElectionFailure, out: &mut Vec<Action>) {
        let campaign = self.campaign.take();
        self.conclude(now, campaign, why, out);
    }

    fn conclude(&mut self, now: Timestamp, campaign: Option<Campaign>, why: ElectionFailure, out: &mut Vec<Action>) {
        let Some(campaign) = campaign else { return };
        if !campaign.is_probing() {
            out.push(Action::Report(Report::ElectionFailed { epoch: campaign.epoch, why: why.clone() }));
        }
        let again = now + self.stagger(None) + self.jitter(ELECTION_BACKOFF);
        if let Standing::Seeking(seeking) = &mut self.standing {
            seeking.campaign_at = seeking.campaign_at.max(again);
            // What was believed of the seat did not lead to it; above all, a claim without an answer may have
            // been accepted. That the nameserver is away is asked about all the time.
            if seeking.word != Some(Word::Away) {
                seeking.word = None;
                if self.seat_poll.pending.is_none() {
                    self.seat_poll.at = now;
                }
            }
        }
        if campaign.is_forced() {
            self.answer_waiters(Err(why), out);
        }
    }

    /// Answers everybody who waits for a forced election.
    pub(crate) fn answer_waiters(&mut self, result: Result<Seat, ElectionFailure>, out: &mut Vec<Action>) {
        let waiters = std::mem::take(&mut self.waiters).into_iter();
        out.extend(waiters.map(|token| Action::Reply { token, reply: Reply::Elected(result.clone()) }));
    }

    /// `eleger`: stands for election although there is a tracker.
    pub(crate) fn on_election_requested(&mut self, now: Timestamp, token: Token, out: &mut Vec<Action>) {
        let refusal = match &self.standing {
            Standing::Leaving(_) => Some(ElectionFailure::Stopping),
            _ if self.waiters.len() >= MAX_ELECTION_WAITERS => Some(ElectionFailure::Busy),
            _ => None,
        };
        if let Some(why) = refusal {
            out.push(Action::Reply { token, reply: Reply::Elected(Err(why)) });
            return;
        }
        self.waiters.push(token);
        match &mut self.campaign {
            // One campaign serves all that ask; a claim that is out cannot be taken back, so it counts.
            Some(campaign) if campaign.is_forced() || !campaign.is_voting() => {
                campaign.kind = Kind::Forced;
                return;
            }
            Some(_) => self.campaign = None,
            None => {}
        }
        match &self.standing {
            Standing::Tracking(_) => self.ask_for_votes(now, None, Kind::Forced, out),
            Standing::Following(following) => {
                let incumbent = following.seat.peer.clone();
                self.ask_for_votes(now, Some(incumbent), Kind::Forced, out);
            }
            Standing::Seeking(seeking) => {
                let incumbent = seeking.former.clone();
                self.ask_for_votes(now, incumbent, Kind::Forced, out);
            }
            Standing::Leaving(_) => {}
        }
    }

    /// How long this peer lets better-placed ones go first: above all the standbys of the tracker that it followed last.
    pub(crate) fn stagger(&mut self, incumbent: Option<&PeerId>) -> Duration {
        let mut heirs = self.heirs.iter().filter(|heir| Some(*heir) != incumbent);
        if let Some(before) = heirs.clone().position(|heir| *heir == self.id) {
            let place = u32::try_from(before).unwrap_or(CANDIDATE_PLACES);
            return CANDIDATE_STAGGER * place + self.jitter(CANDIDATE_STAGGER / 2);
        }
        let head_start = if heirs.next().is_some() { STANDBY_HEAD_START } else { Duration::ZERO };
        let key = self.next_epoch(false).0.to_le_bytes();
        let own = rendezvous(&key, &self.id);
        let others = self.members.keys().filter(|peer| Some(*peer) != incumbent);
        let before = others.filter(|peer| rendezvous(&key, peer) < own).take(CANDIDATE_PLACES as usize).count();
        let place = u32::try_from(before).unwrap_or(CANDIDATE_PLACES);
        // The first place is one peer's alone, unless their lists differ.
        let jitter = if place == 0 { Duration::ZERO } else { self.jitter(CANDIDATE_STAGGER / 2) };
        // Those behind the last place do not all come at once.
        let crowd = if place == CANDIDATE_PLACES { self.jitter(ELECTION_BACKOFF) } else { Duration::ZERO };
        head_start + CANDIDATE_STAGGER * place + jitter + crowd
    }

    /// A random time below `bound`.
    pub(crate) fn jitter(&mut self, bound: Duration) -> Duration {
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.u64(0..micros.max(1)))
    }

    /// Asks for the registered peers now.
    pub(crate) fn refresh_peers(&mut self, now: Timestamp) {
        if self.peers_poll.pending.is_none() {
            self.peers_poll.at = now;
        }
    }
}
