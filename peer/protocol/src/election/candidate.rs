//! Standing for election: starts campaigns, counts votes, and acts on the result.

use super::{
    Action, CallError, CallFailure, ElectionFailure, Machine, Reply, Report, StepDown, Token,
    campaign::{Campaign, Electorate, Kind, Tally, Timeout},
    ctx::Ctx,
    params::MAX_ELECTION_WAITERS,
    searching::Candidacy,
    state::State,
    tracker::Reclaim,
    transition::Transition,
};
use shared::{
    id::PeerId,
    limits::ELECTION_BACKOFF,
    rpc::{
        nameserver::{ClaimError, Seat, SeatGrant},
        peer::VoteReply,
    },
};

use crate::CallId;

impl Machine {
    /// Starts the campaign of a searching peer.
    pub(crate) fn stand(&mut self, ctx: &mut Ctx<'_>, candidacy: Candidacy) {
        match candidacy {
            Candidacy::ClaimVacant => self.claim_vacant(ctx),
            Candidacy::Replace(incumbent, kind) => self.start_campaign(ctx, incumbent, kind),
        }
    }

    /// Starts the campaign with which a tracker keeps its seat.
    pub(crate) fn reclaim(&mut self, ctx: &mut Ctx<'_>, reclaim: Reclaim) {
        match reclaim {
            Reclaim::Vacant if ctx.obstacle().is_some() => {
                self.apply(ctx, Transition::StepDown(StepDown::NotStored));
            }
            Reclaim::Vacant => self.claim_vacant(ctx),
            Reclaim::Register(epoch, mandate) => {
                self.campaign.insert(Campaign::registering(ctx, epoch, mandate)).claim(ctx);
            }
        }
    }

    /// Claims a vacant seat, which needs no votes but this peer's own.
    fn claim_vacant(&mut self, ctx: &mut Ctx<'_>) {
        let electorate = Electorate::only(&ctx.me.id);
        let campaign = self.campaign.insert(Campaign::new(ctx, Kind::Ordinary, electorate));
        campaign.cast_own_vote(ctx);
        campaign.claim(ctx);
    }

    /// Asks for votes to replace `incumbent`: the tracker that the nameserver names or, while that is away, the one
    /// that this peer misses.
    fn start_campaign(&mut self, ctx: &mut Ctx<'_>, incumbent: Option<PeerId>, kind: Kind) {
        let incumbent = incumbent.filter(|incumbent| *incumbent != ctx.me.id);
        let electorate = Electorate::new(ctx.members.others.keys().chain([&ctx.me.id]), incumbent);
        let campaign = self.campaign.insert(Campaign::new(ctx, kind, electorate));
        if kind == Kind::Forced {
            campaign.begin_vote(ctx);
        } else {
            campaign.begin_pre_vote(ctx);
        }
        self.count_votes(ctx);
    }

    pub(crate) fn on_vote_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: CallId,
        from: PeerId,
        result: Result<VoteReply, CallFailure>,
    ) {
        if let Ok(reply) = &result {
            if !reply.granted {
                ctx.epochs.note_vote_elsewhere(reply.voted_epoch);
            }
            self.observe_peer_view(ctx, &reply.seat);
        }
        if let Some(campaign) = &mut self.campaign
            && campaign.on_vote_answer(call, from, result.ok())
        {
            self.count_votes(ctx);
        }
    }

    fn count_votes(&mut self, ctx: &mut Ctx<'_>) {
        let Some(campaign) = &mut self.campaign else { return };
        match campaign.tally() {
            Tally::Open => {}
            Tally::Lost => {
                let why = campaign.no_majority();
                self.finish_campaign(ctx, why);
            }
            Tally::Won if campaign.is_pre_vote() => {
                campaign.begin_vote(ctx);
                self.count_votes(ctx);
            }
            Tally::Won if campaign.kind == Kind::Provisional => {
                let (epoch, mandate) = (campaign.epoch, campaign.mandate());
                self.become_tracker(ctx, epoch, None, Some(mandate));
            }
            Tally::Won => campaign.claim(ctx),
        }
    }

    pub(crate) fn on_claim_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: CallId,
        result: Result<SeatGrant, CallError<ClaimError>>,
    ) {
        let now = ctx.now;
        let claiming = self.campaign.as_mut().and_then(|campaign| Some((campaign.claim_sent(call)?, campaign)));
        let Some((sent, campaign)) = claiming else {
            if result.is_ok() {
                // The answer to an accepted claim came too late: the nameserver is asked for the seat.
                ctx.seat_poll.hasten(now);
            }
            return;
        };
        let epoch = campaign.epoch;
        let why = match result {
            Ok(grant) if grant.epoch == epoch && epoch >= ctx.epochs.high() => {
                return self.become_tracker(ctx, epoch, Some(sent + grant.lease), None);
            }
            Ok(grant) => {
                let call = ctx.calls.next();
                ctx.out.push(Action::Resign { call, epoch: grant.epoch });
                ElectionFailure::Lost(self.seat_view(ctx))
            }
            Err(CallError::Refused(ClaimError::Held { retry_after })) => {
                if campaign.hold(now, retry_after) {
                    return;
                }
                ElectionFailure::Refused(ClaimError::Held { retry_after }.to_string())
            }
            Err(CallError::Refused(ClaimError::Moved(view))) => {
                let campaign = self.campaign.take();
                self.on_seat_view(ctx, &view);
                if !matches!(&self.state, State::Tracker(tracker) if tracker.seat.epoch == epoch) {
                    self.conclude(ctx, campaign, ElectionFailure::Lost(view));
                }
                return;
            }
            Err(CallError::Refused(ClaimError::NoMajority { votes, needed })) => {
                // The nameserver's list of peers differs from this peer's.
                ctx.members.poll.hasten(now);
                ElectionFailure::NoMajority { votes, needed }
            }
            Err(CallError::Refused(why @ (ClaimError::NotAuthorised(_) | ClaimError::Unavailable(_)))) => {
                ElectionFailure::Refused(why.to_string())
            }
            Err(CallError::Failed(_)) => ElectionFailure::NameserverUnreachable,
        };
        self.finish_campaign(ctx, why);
    }

    pub(crate) fn run_campaign_timer(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(campaign) = &mut self.campaign
            && let Timeout::Over(why) = campaign.run_timer(ctx)
        {
            self.finish_campaign(ctx, why);
        }
    }

    /// Ends the campaign, if any, without the seat.
    pub(crate) fn finish_campaign(&mut self, ctx: &mut Ctx<'_>, why: ElectionFailure) {
        let campaign = self.campaign.take();
        self.conclude(ctx, campaign, why);
    }

    fn conclude(&mut self, ctx: &mut Ctx<'_>, campaign: Option<Campaign>, why: ElectionFailure) {
        let Some(campaign) = campaign else { return };
        if !campaign.is_pre_vote() {
            ctx.report(Report::ElectionFailed { epoch: campaign.epoch, why: why.clone() });
        }
        let again = ctx.now + ctx.stagger(None) + ctx.jitter(ELECTION_BACKOFF);
        if let State::Searching(searching) = &mut self.state {
            searching.on_campaign_failed(ctx, again);
        }
        if campaign.is_forced() {
            self.answer_waiters(ctx, Err(why));
        }
    }

    /// Answers all requests for a forced election.
    pub(crate) fn answer_waiters(&mut self, ctx: &mut Ctx<'_>, result: Result<Seat, ElectionFailure>) {
        let waiters = std::mem::take(&mut self.waiters).into_iter();
        ctx.out.extend(waiters.map(|token| Action::Reply { token, reply: Reply::Elected(result.clone()) }));
    }

    /// The user asks for an election (`eleger`): stands although there may be a tracker.
    pub(crate) fn on_election_requested(&mut self, ctx: &mut Ctx<'_>, token: Token) {
        let refusal = match &self.state {
            State::Leaving(_) => Some(ElectionFailure::Stopping),
            _ if self.waiters.len() >= MAX_ELECTION_WAITERS => Some(ElectionFailure::Busy),
            _ => ctx.obstacle(),
        };
        if let Some(why) = refusal {
            ctx.out.push(Action::Reply { token, reply: Reply::Elected(Err(why)) });
            return;
        }
        self.waiters.push(token);
        match &mut self.campaign {
            // One campaign serves all requests. A claim under way cannot be taken back, so it counts as forced.
            Some(campaign) if campaign.is_forced() || !campaign.is_voting() => {
                campaign.kind = Kind::Forced;
                return;
            }
            Some(_) => self.campaign = None,
            None => {}
        }
        let incumbent = match &self.state {
            State::Tracker(_) | State::Leaving(_) => None,
            State::Follower(follower) => Some(follower.seat.peer.clone()),
            State::Searching(searching) => searching.former.clone(),
        };
        self.start_campaign(ctx, incumbent, Kind::Forced);
    }
}
