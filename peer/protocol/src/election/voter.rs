//! Voting for other peers.

use std::cmp::Reverse;

use super::{
    Action, ElectionFailure, Machine, Reply, Token,
    campaign::{Campaign, Kind},
    ctx::Ctx,
    params::VOTE_WAIT,
    port_probe::DeferredVote,
    state::State,
};
use shared::{
    electors::rendezvous,
    epoch::Epoch,
    id::PeerId,
    limits::{ELECTION_BACKOFF, MAX_ELECTORS},
    rpc::peer::{VoteReply, VoteRequest},
    time::Timestamp,
};

impl Machine {
    /// A candidate asks for a vote or a promise. The answer may be deferred.
    pub(crate) fn on_vote_requested(&mut self, ctx: &mut Ctx<'_>, token: Token, from: &PeerId, request: &VoteRequest) {
        if !self.defer_vote(ctx, token, from, request) {
            self.answer_vote(ctx, token, from, request);
        }
    }

    /// Defers the answer if the candidate misses a tracker that answers this peer, until this peer has probed the
    /// tracker's port. Otherwise the first peer to notice would be refused by those that notice 20 ms later.
    fn defer_vote(&mut self, ctx: &Ctx<'_>, token: Token, from: &PeerId, request: &VoteRequest) -> bool {
        let State::Follower(follower) = &mut self.state else { return false };
        let deferred = self.deferred_votes.len() < MAX_ELECTORS && follower.defers_vote(ctx, from, request);
        if deferred {
            self.deferred_votes.push(DeferredVote::new(ctx.now, token, from, request));
        }
        deferred
    }

    pub(crate) fn deferred_votes_deadline(&self) -> Option<Timestamp> {
        self.deferred_votes.iter().map(|deferred| deferred.until).min()
    }

    /// Answers the deferred votes that are due; all of them when this peer misses the tracker too.
    pub(crate) fn answer_deferred_votes(&mut self, ctx: &mut Ctx<'_>) {
        let follows = matches!(self.state, State::Follower(_));
        let deferred = std::mem::take(&mut self.deferred_votes).into_iter();
        let (due, waiting): (Vec<_>, Vec<_>) = deferred.partition(|vote| !follows || vote.until <= ctx.now);
        self.deferred_votes = waiting;
        for DeferredVote { token, from, request, .. } in due {
            self.answer_vote(ctx, token, &from, &request);
        }
    }

    fn answer_vote(&mut self, ctx: &mut Ctx<'_>, token: Token, from: &PeerId, request: &VoteRequest) {
        // A seat of this epoch exists, whichever peer holds it.
        if request.expected_epoch < request.epoch && !self.state.is_leaving() {
            self.observe_peer_epoch(ctx, request.expected_epoch);
        }
        let is_rival = self.is_rival(request);
        let granted = self.grants(ctx, from, request) && !(is_rival && self.goes_before(ctx, from, request));
        if granted && is_rival {
            self.finish_campaign(ctx, ElectionFailure::Lost(self.seat_view(ctx)));
        }
        if granted && !request.pre_vote {
            self.give_vote(ctx, from, request);
        }
        let reply = VoteReply {
            epoch: request.epoch,
            granted,
            seat: self.seat_view(ctx),
            voted_epoch: ctx.epochs.voted_epoch(),
            electors: ctx.members.electors.iter().cloned().collect(),
        };
        ctx.out.push(Action::Reply { token, reply: Reply::Vote(reply) });
    }

    fn give_vote(&mut self, ctx: &mut Ctx<'_>, candidate: &PeerId, request: &VoteRequest) {
        ctx.vote(request.epoch, candidate.clone());
        let again = ctx.now + VOTE_WAIT + ctx.jitter(ELECTION_BACKOFF);
        // In the pre-vote, this peer no longer has a vote for the epoch that it asked for.
        let gives_way = |own: &Campaign| own.is_pre_vote() || (!request.force && !own.is_forced() && own.is_voting());
        if self.campaign.as_ref().is_some_and(gives_way) {
            self.finish_campaign(ctx, ElectionFailure::Lost(self.seat_view(ctx)));
        }
        if let State::Searching(searching) = &mut self.state {
            // The candidate gets the time of an election.
            searching.campaign_at = searching.campaign_at.max(again);
        }
    }

    /// True if this peer's vote, or promise, goes to the candidate.
    fn grants(&self, ctx: &Ctx<'_>, from: &PeerId, request: &VoteRequest) -> bool {
        let high = ctx.epochs.high();
        let plausible = request.epoch > high
            && ctx.epochs.is_credible(request.epoch)
            && request.expected_epoch < request.epoch
            && request.expected_epoch >= high
            && request.epoch.is_provisional() == request.provisional;
        plausible
            && !ctx.storage_fails
            && ctx.epochs.is_free_to_vote(request.epoch, from)
            && *from != ctx.me.id
            && (request.force || !self.hears_a_tracker(ctx.now))
            && (!request.provisional || self.misses_the_nameserver())
            && !self.state.is_leaving()
    }

    /// True if the candidate asks for a promise while this peer asks for one too, for the same kind of seat. If each
    /// got the other's promise, both would vote for themselves and lack each other's vote; where only a bare majority
    /// of electors is left, no election would ever be won. So one of them goes first while nothing is promised.
    fn is_rival(&self, request: &VoteRequest) -> bool {
        let rivals = |own: &Campaign| own.is_pre_vote() && (own.kind == Kind::Provisional) == request.provisional;
        request.pre_vote && self.campaign.as_ref().is_some_and(rivals)
    }

    /// True if this peer goes before `rival`; both come to the same answer unless trackers named them different
    /// standbys, which costs no more than a lost election. The higher epoch goes first, since its candidate may know
    /// that the lower one is lost; then standbys in their order; then a hash that gives each epoch another order.
    /// Within an epoch the order is fixed, so a peer that not all electors hear blocks the others until its back-off,
    /// which is random, outlasts a pre-vote.
    fn goes_before(&self, ctx: &Ctx<'_>, rival: &PeerId, request: &VoteRequest) -> bool {
        let Some(own) = &self.campaign else { return false };
        let key = request.epoch.0.to_le_bytes();
        let rank = |epoch: Epoch, peer: &PeerId| {
            let standby = ctx.succession.iter().position(|standby| standby == peer).unwrap_or(ctx.succession.len());
            (Reverse(epoch), standby, rendezvous(&key, peer))
        };
        rank(own.epoch, &ctx.me.id) < rank(request.epoch, rival)
    }

    /// True if this peer sees no need for another tracker.
    fn hears_a_tracker(&self, now: Timestamp) -> bool {
        match &self.state {
            State::Follower(follower) => follower.hears_tracker(now),
            State::Tracker(_) => true,
            // The nameserver is about to decide this peer's own claim.
            State::Searching(_) | State::Leaving(_) => self.campaign.as_ref().is_some_and(Campaign::is_claiming),
        }
    }

    fn misses_the_nameserver(&self) -> bool {
        matches!(&self.state, State::Searching(searching) if searching.misses_the_nameserver())
    }
}
