//! Standing for the seat and voting on others who do.

use std::{collections::BTreeSet, time::Duration};

use shared::{
    epoch::Epoch,
    id::PeerId,
    limits::{
        CANDIDATE_PLACES, CANDIDATE_STAGGER, CLAIM_WAIT, ELECTION_BACKOFF, MAX_ELECTION_WAITERS, SEAT_LEASE, SEAT_POLL,
        VOTE_WAIT,
    },
    rpc::{
        nameserver::{Claim, ClaimError, Seat, SeatGrant},
        peer::{VoteReply, VoteRequest},
    },
    time::Timestamp,
};

use super::{
    Action, CallError, CallFailure, CallId, Core, ElectionFailure, Reply, Report, Token, Vote, rendezvous,
    standing::Standing,
};

/// Shortest wait before a refused claim is tried again: not a busy loop against a nameserver that says "now".
const MIN_RETRY: Duration = Duration::from_millis(10);
/// How long one campaign goes on claiming a seat that is still held: past a lease, the incumbent must be alive.
const MAX_HELD: Duration = SEAT_LEASE.saturating_add(CLAIM_WAIT);

/// One try for the seat.
#[derive(Debug)]
pub(super) struct Campaign {
    /// The epoch stood for.
    pub(super) epoch: Epoch,
    /// The seat to be replaced. Fixed with the votes: they were given for replacing this one (invariant S4).
    expected: Epoch,
    /// `eleger`: replaces a living tracker.
    pub(super) force: bool,
    /// Who can vote, this peer included and the incumbent not.
    electors: usize,
    /// Whom it would replace, if that is another peer.
    incumbent: Option<PeerId>,
    /// Voters that have not answered.
    open: BTreeSet<PeerId>,
    votes: BTreeSet<PeerId>,
    started: Timestamp,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Waits for votes.
    Voting { call: CallId, until: Timestamp },
    /// Waits for the nameserver.
    Claiming { call: CallId, sent: Timestamp },
    /// Claims again then.
    Held { until: Timestamp },
}

impl Campaign {
    pub(super) fn deadline(&self) -> Timestamp {
        match self.stage {
            Stage::Voting { until, .. } | Stage::Held { until } => until,
            Stage::Claiming { sent, .. } => sent + CLAIM_WAIT,
        }
    }

    /// Votes needed where `votes` are given, as the nameserver counts: more than half of all, the incumbent left
    /// out unless it voted.
    fn needed(&self, votes: &BTreeSet<PeerId>) -> usize {
        let incumbent_voted = self.incumbent.as_ref().is_some_and(|incumbent| votes.contains(incumbent));
        (self.electors + usize::from(incumbent_voted)) / 2 + 1
    }

    pub(super) fn is_voting(&self) -> bool {
        matches!(self.stage, Stage::Voting { .. })
    }

    /// Whether a claim is under way: it may be accepted whatever this peer does now.
    pub(super) fn is_claiming(&self) -> bool {
        matches!(self.stage, Stage::Claiming { .. })
    }
}

impl Core {
    /// Claims a seat that nobody holds: needs no votes but one's own.
    pub(super) fn claim_vacant(&mut self, now: Timestamp, force: bool, out: &mut Vec<Action>) {
        self.stand(now, BTreeSet::new(), None, force, out);
        self.claim(now, out);
    }

    /// Stands against `incumbent`, whom the nameserver still has.
    pub(super) fn ask_for_votes(
        &mut self,
        now: Timestamp,
        incumbent: Option<PeerId>,
        force: bool,
        out: &mut Vec<Action>,
    ) {
        // A suspect is not waited for; a tracker that is to be replaced at a user's wish may agree.
        let asked = |peer: &PeerId| force || incumbent.as_ref() != Some(peer);
        let voters = self.members.iter().filter(|(peer, _)| asked(peer));
        let voters: Vec<_> = voters.map(|(peer, endpoint)| Self::contact(peer, endpoint)).collect();
        let call = self.stand(now, voters.iter().map(|voter| voter.peer.clone()).collect(), incumbent, force, out);
        let Some(campaign) = &self.campaign else { return };
        let request = VoteRequest { epoch: campaign.epoch, expected_epoch: campaign.expected, force };
        out.extend(voters.into_iter().map(|to| Action::RequestVote { call, to, request: request.clone() }));
        self.count_votes(now, out);
    }

    /// Begins a campaign with this peer's own vote, which is durable before anything else happens.
    fn stand(
        &mut self,
        now: Timestamp,
        open: BTreeSet<PeerId>,
        incumbent: Option<PeerId>,
        force: bool,
        out: &mut Vec<Action>,
    ) -> CallId {
        let epoch = self.next_epoch();
        self.vote(epoch, self.id.clone(), out);
        let incumbent = incumbent.filter(|incumbent| *incumbent != self.id);
        let others = open.iter().filter(|peer| Some(*peer) != incumbent.as_ref()).count();
        let call = self.call();
        self.campaign = Some(Campaign {
            epoch,
            expected: self.expected,
            force,
            electors: others + 1,
            incumbent,
            open,
            votes: BTreeSet::from([self.id.clone()]),
            started: now,
            stage: Stage::Voting { call, until: now + VOTE_WAIT },
        });
        if let Some(campaign) = &self.campaign {
            let needed = campaign.needed(&campaign.votes) as u64;
            out.push(Action::Report(Report::Candidate { epoch, needed }));
        }
        call
    }

    /// An epoch that this peer can stand for: above all that were claimed and all in which it, or a voter it
    /// heard, has voted for another. Its own unused one is used again, so that trying costs no numbers.
    fn next_epoch(&self) -> Epoch {
        let above = self.durable.epoch_high.max(self.expected).max(self.voted_elsewhere);
        match &self.durable.voted {
            Some(vote) if vote.epoch > above && vote.candidate == self.id => vote.epoch,
            Some(vote) => above.max(vote.epoch).next(),
            None => above.next(),
        }
    }

    fn vote(&mut self, epoch: Epoch, candidate: PeerId, out: &mut Vec<Action>) {
        let vote = Some(Vote { epoch, candidate });
        if self.durable.voted != vote {
            self.durable.voted = vote;
            out.push(Action::Persist(self.durable.clone()));
        }
    }

    pub(super) fn on_vote_answered(
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
        if !matches!(campaign.stage, Stage::Voting { call: asked, .. } if asked == call) {
            return;
        }
        let granted = result.is_ok_and(|reply| reply.granted && reply.epoch == campaign.epoch);
        if campaign.open.remove(&from) && granted {
            campaign.votes.insert(from);
        }
        self.count_votes(now, out);
    }

    fn count_votes(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(campaign) = &self.campaign else { return };
        let at_best: BTreeSet<PeerId> = campaign.votes.union(&campaign.open).cloned().collect();
        if campaign.votes.len() >= campaign.needed(&campaign.votes) {
            self.claim(now, out);
        } else if at_best.len() < campaign.needed(&at_best) {
            self.end_without_majority(now, out);
        }
    }

    fn end_without_majority(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(campaign) = &self.campaign else { return };
        let (votes, needed) = (campaign.votes.len() as u64, campaign.needed(&campaign.votes) as u64);
        self.end_campaign(now, ElectionFailure::NoMajority { votes, needed }, out);
    }

    /// Asks the nameserver for the seat.
    pub(super) fn claim(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let call = self.call();
        let Some(campaign) = &mut self.campaign else { return };
        campaign.stage = Stage::Claiming { call, sent: now };
        let claim = Claim {
            epoch: campaign.epoch,
            expected_epoch: campaign.expected,
            endpoint: self.endpoint.clone(),
            votes: campaign.votes.iter().cloned().collect(),
            force: campaign.force,
        };
        self.claimed = Some(campaign.epoch);
        out.push(Action::Claim { call, claim });
    }

    pub(super) fn on_claim_answered(
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
                self.take_seat(now, epoch, Some(sent + grant.lease), out);
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

    pub(super) fn run_campaign_timer(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Some(campaign) = self.campaign.as_ref().filter(|campaign| campaign.deadline() <= now) else { return };
        match campaign.stage {
            Stage::Voting { .. } => self.end_without_majority(now, out),
            Stage::Held { .. } => self.claim(now, out),
            Stage::Claiming { .. } => self.end_campaign(now, ElectionFailure::NameserverUnreachable, out),
        }
    }

    /// The campaign is over without the seat.
    pub(super) fn end_campaign(&mut self, now: Timestamp, why: ElectionFailure, out: &mut Vec<Action>) {
        let campaign = self.campaign.take();
        self.conclude(now, campaign, why, out);
    }

    fn conclude(&mut self, now: Timestamp, campaign: Option<Campaign>, why: ElectionFailure, out: &mut Vec<Action>) {
        let Some(campaign) = campaign else { return };
        out.push(Action::Report(Report::ElectionFailed { epoch: campaign.epoch, why: why.clone() }));
        let again = now + self.stagger(None) + self.jitter(ELECTION_BACKOFF);
        if let Standing::Seeking(seeking) = &mut self.standing {
            seeking.campaign_at = seeking.campaign_at.max(again);
            // What was believed of the seat did not lead to it; above all, a claim without an answer may have
            // been accepted.
            seeking.word = None;
            if self.seat_poll.pending.is_none() {
                self.seat_poll.at = now;
            }
        }
        if campaign.force {
            self.answer_waiters(Err(why), out);
        }
    }

    /// Answers everybody who waits for a forced election.
    pub(super) fn answer_waiters(&mut self, result: Result<Seat, ElectionFailure>, out: &mut Vec<Action>) {
        let waiters = std::mem::take(&mut self.waiters).into_iter();
        out.extend(waiters.map(|token| Action::Reply { token, reply: Reply::Elected(result.clone()) }));
    }

    /// `eleger`: stands for election although there is a tracker.
    pub(super) fn on_election_requested(&mut self, now: Timestamp, token: Token, out: &mut Vec<Action>) {
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
            Some(campaign) if campaign.force || !campaign.is_voting() => {
                campaign.force = true;
                return;
            }
            Some(_) => self.campaign = None,
            None => {}
        }
        match &self.standing {
            Standing::Tracking(_) => self.ask_for_votes(now, Some(self.id.clone()), true, out),
            Standing::Following(following) => {
                let incumbent = following.seat.peer.clone();
                self.ask_for_votes(now, Some(incumbent), true, out);
            }
            Standing::Seeking(seeking) => {
                let incumbent = seeking.former.clone();
                self.ask_for_votes(now, incumbent, true, out);
            }
            Standing::Leaving(_) => {}
        }
    }

    /// A candidate asks for this peer's vote.
    pub(super) fn on_vote_requested(
        &mut self,
        now: Timestamp,
        from: &PeerId,
        request: &VoteRequest,
        out: &mut Vec<Action>,
    ) -> VoteReply {
        // The candidate knows of this seat; whoever holds it.
        if request.expected_epoch < request.epoch && !matches!(self.standing, Standing::Leaving(_)) {
            self.raise_hearsay(now, request.expected_epoch, out);
        }
        let granted = self.grants(now, from, request);
        if granted {
            self.vote(request.epoch, from.clone(), out);
            let again = now + VOTE_WAIT + self.jitter(ELECTION_BACKOFF);
            if !request.force && self.campaign.as_ref().is_some_and(|own| !own.force && own.is_voting()) {
                self.end_campaign(now, ElectionFailure::Lost(self.seat_view()), out);
            }
            if let Standing::Seeking(seeking) = &mut self.standing {
                // The candidate's turn now.
                seeking.campaign_at = seeking.campaign_at.max(again);
            }
        }
        let voted_epoch = self.durable.voted.as_ref().map_or(Epoch::NONE, |vote| vote.epoch);
        VoteReply { epoch: request.epoch, granted, seat: self.seat_view(), voted_epoch }
    }

    fn grants(&self, now: Timestamp, from: &PeerId, request: &VoteRequest) -> bool {
        let high = self.durable.epoch_high;
        let plausible = request.epoch > high
            && self.is_credible(request.epoch)
            && request.expected_epoch < request.epoch
            && request.expected_epoch >= high;
        let free =
            self.durable.voted.as_ref().is_none_or(|vote| {
                request.epoch > vote.epoch || (request.epoch == vote.epoch && vote.candidate == *from)
            });
        plausible
            && free
            && *from != self.id
            && (request.force || !self.hears_a_tracker(now))
            && !matches!(self.standing, Standing::Leaving(_))
    }

    /// Whether there is, to this peer's knowledge, no need for another tracker.
    fn hears_a_tracker(&self, now: Timestamp) -> bool {
        match &self.standing {
            Standing::Following(following) => now < following.suspect_at,
            Standing::Tracking(_) => true,
            // This peer's own claim is about to be decided.
            Standing::Seeking(_) | Standing::Leaving(_) => self.campaign.as_ref().is_some_and(Campaign::is_claiming),
        }
    }

    /// How long this peer lets better-placed ones go first.
    pub(super) fn stagger(&mut self, incumbent: Option<&PeerId>) -> Duration {
        let key = self.next_epoch().0.to_le_bytes();
        let own = rendezvous(&key, &self.id);
        let others = self.members.keys().filter(|peer| Some(*peer) != incumbent);
        let before = others.filter(|peer| rendezvous(&key, peer) < own).take(CANDIDATE_PLACES as usize).count();
        let place = u32::try_from(before).unwrap_or(CANDIDATE_PLACES);
        let jitter = if self.members.is_empty() { Duration::ZERO } else { self.jitter(CANDIDATE_STAGGER / 2) };
        // Those behind the last place do not all come at once.
        let crowd = if place == CANDIDATE_PLACES { self.jitter(ELECTION_BACKOFF) } else { Duration::ZERO };
        CANDIDATE_STAGGER * place + jitter + crowd
    }

    /// A random time below `bound`.
    pub(super) fn jitter(&mut self, bound: Duration) -> Duration {
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.u64(0..micros.max(1)))
    }

    /// Asks for the registered peers now.
    pub(super) fn refresh_peers(&mut self, now: Timestamp) {
        if self.peers_poll.pending.is_none() {
            self.peers_poll.at = now;
        }
    }
}
