//! One attempt to take the seat: the votes requested, the votes granted, and the claim.
//!
//! | stage | waits for | next |
//! |---|---|---|
//! | PreVote | a majority that would vote for this peer, `VOTE_WAIT` | Voting; over |
//! | Voting | votes of a majority, `VOTE_WAIT` | Claiming; over: provisional tracker or lost |
//! | Claiming | the nameserver, `CLAIM_WAIT` | over: tracker or lost; Held |
//! | Held | `retry_after`: the incumbent renewed its lease recently | Claiming; over: lost |
//!
//! A vacant seat needs no votes but the claimant's own: its campaign begins with Claiming.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Action, ElectionFailure, Report,
    ctx::{Ctx, contact},
    params::{CLAIM_WAIT, SEAT_POLL, VOTE_WAIT},
    tracker::Mandate,
};
use shared::{
    electors::{electors, majority, provisional_quorum},
    epoch::Epoch,
    id::PeerId,
    limits::{MAX_ELECTORS, SEAT_LEASE},
    rpc::{
        nameserver::Claim,
        peer::{VoteReply, VoteRequest},
    },
    time::Timestamp,
};

use crate::CallId;

/// Minimum wait before a refused claim is repeated: prevents a busy loop if the nameserver asks for no wait.
const MIN_RETRY: Duration = Duration::from_millis(10);
/// Time for which a campaign repeats the claim to a seat that is held. A seat that is held for longer than a lease was
/// renewed meanwhile, so its incumbent runs.
const MAX_HELD: Duration = SEAT_LEASE.saturating_add(CLAIM_WAIT);

/// One attempt to take the seat.
#[derive(Debug, Clone)]
pub(crate) struct Campaign {
    /// Epoch stood for.
    pub(crate) epoch: Epoch,
    /// Epoch of the seat to be replaced. It is fixed with the votes, which are given for replacing this seat
    /// (invariant S4).
    expected: Epoch,
    pub(crate) kind: Kind,
    electorate: Electorate,
    /// Voters that have not answered.
    open: BTreeSet<PeerId>,
    votes: BTreeSet<PeerId>,
    started: Timestamp,
    stage: Stage,
}

/// Purpose of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Replaces a tracker that is gone.
    Ordinary,
    /// Replaces a running tracker, at the user's request (`eleger`).
    Forced,
    /// Makes a provisional tracker by votes alone while the nameserver is away.
    Provisional,
    /// Registers the epoch of a provisional tracker with the nameserver.
    Registering,
}

/// Stage of a campaign.
#[derive(Debug, Clone)]
enum Stage {
    /// Asks for promises. Nothing has changed anywhere yet.
    PreVote { call: CallId, until: Timestamp },
    /// Asks for votes.
    Voting { call: CallId, until: Timestamp },
    /// Waits for the nameserver.
    Claiming { call: CallId, sent: Timestamp },
    /// Claims again at `until`.
    Held { until: Timestamp },
}

/// State of the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tally {
    /// Open votes decide.
    Open,
    /// A majority agrees.
    Won,
    /// The open votes cannot make a majority.
    Lost,
}

/// Effect of a passed deadline.
#[derive(Debug)]
pub(crate) enum Timeout {
    /// The deadline lies ahead, or the claim was repeated.
    Continue,
    /// The campaign is over.
    Over(ElectionFailure),
}

/// Peers whose votes count.
#[derive(Debug, Clone)]
pub(crate) struct Electorate {
    /// Electors without the incumbent, which is not asked since it may be gone.
    without: BTreeSet<PeerId>,
    /// Electors with the incumbent: they count if it has voted, and without the nameserver, which alone could
    /// tell that its lease has ended.
    with: BTreeSet<PeerId>,
    /// Tracker to be replaced, if that is another peer.
    incumbent: Option<PeerId>,
    /// Lists of electors that the voters named. They count only without the nameserver, whose list decides otherwise.
    voters_views: BTreeSet<BTreeSet<PeerId>>,
}

impl Electorate {
    /// Electorate among `peers`, the incumbent included if it is known.
    pub(crate) fn new<'a>(peers: impl Iterator<Item = &'a PeerId> + Clone, incumbent: Option<PeerId>) -> Self {
        let without = electors(peers.clone().filter(|peer| Some(*peer) != incumbent.as_ref()));
        Self { without, with: electors(peers), incumbent, voters_views: BTreeSet::new() }
    }

    /// Electorate of a claim that needs no votes but the claimant's own.
    pub(crate) fn only(me: &PeerId) -> Self {
        Self::new(std::iter::once(me), None)
    }

    /// All peers whose votes could count.
    fn voters(&self) -> impl Iterator<Item = &PeerId> {
        self.without.union(&self.with)
    }
}

impl Campaign {
    /// Campaign for the next epoch. Nothing of it is durable or known to others yet.
    pub(crate) fn new(ctx: &Ctx<'_>, kind: Kind, electorate: Electorate) -> Self {
        let provisional = kind == Kind::Provisional;
        let epoch = ctx.epochs.next(&ctx.me.id, provisional);
        let expected = if provisional { ctx.epochs.high() } else { ctx.epochs.expected };
        Self::for_epoch(ctx, kind, electorate, epoch, expected)
    }

    /// Campaign of a provisional tracker for its own epoch. The votes, its own included, count only for what they
    /// were given for: to replace the seat of `mandate.expected` (invariant S4). The seat may be another by now,
    /// since a claim of which this peer was not notified was accepted after all. Then the seat has to become vacant
    /// first.
    pub(crate) fn registering(ctx: &Ctx<'_>, epoch: Epoch, mandate: Mandate) -> Self {
        let expected = ctx.epochs.expected;
        let mut campaign = Self::for_epoch(ctx, Kind::Registering, Electorate::only(&ctx.me.id), epoch, expected);
        if mandate.expected == expected {
            campaign.votes = mandate.votes;
        }
        campaign
    }

    fn for_epoch(ctx: &Ctx<'_>, kind: Kind, electorate: Electorate, epoch: Epoch, expected: Epoch) -> Self {
        Self {
            epoch,
            expected,
            kind,
            electorate,
            open: BTreeSet::new(),
            votes: BTreeSet::new(),
            started: ctx.now,
            stage: Stage::Held { until: ctx.now },
        }
    }

    pub(crate) fn deadline(&self) -> Timestamp {
        match self.stage {
            Stage::PreVote { until, .. } | Stage::Voting { until, .. } | Stage::Held { until } => until,
            Stage::Claiming { sent, .. } => sent + CLAIM_WAIT,
        }
    }

    /// Asks for promises: a peer that alone misses the tracker disturbs no other peer.
    pub(crate) fn begin_pre_vote(&mut self, ctx: &mut Ctx<'_>) {
        let call = ctx.calls.next();
        self.stage = Stage::PreVote { call, until: ctx.now + VOTE_WAIT };
        self.request_votes(ctx, call);
    }

    /// Votes for itself and asks for votes.
    pub(crate) fn begin_vote(&mut self, ctx: &mut Ctx<'_>) {
        let call = self.cast_own_vote(ctx);
        self.request_votes(ctx, call);
    }

    /// Votes for itself, durably.
    pub(crate) fn cast_own_vote(&mut self, ctx: &mut Ctx<'_>) -> CallId {
        let call = ctx.calls.next();
        self.stage = Stage::Voting { call, until: ctx.now + VOTE_WAIT };
        self.votes = BTreeSet::from([ctx.me.id.clone()]);
        let (_, needed) = self.count(&self.votes);
        ctx.report(Report::Candidate { epoch: self.epoch, needed: needed as u64 });
        ctx.vote(self.epoch, ctx.me.id.clone());
        call
    }

    /// Sends the requests of the stage to all voters that could answer.
    fn request_votes(&mut self, ctx: &mut Ctx<'_>, call: CallId) {
        let forced = self.is_forced();
        // A suspected incumbent is not asked. In a forced election the incumbent may grant its vote.
        let incumbent = self.electorate.incumbent.as_ref().filter(|_| !forced);
        let asked = |peer: &&PeerId| **peer != ctx.me.id && Some(*peer) != incumbent;
        let voters: BTreeSet<PeerId> = self.electorate.voters().filter(asked).cloned().collect();
        let request = VoteRequest {
            epoch: self.epoch,
            expected_epoch: self.expected,
            force: forced,
            pre_vote: matches!(self.stage, Stage::PreVote { .. }),
            provisional: self.kind == Kind::Provisional,
        };
        for voter in &voters {
            if let Some(endpoint) = ctx.members.others.get(voter) {
                let to = contact(voter, endpoint);
                ctx.out.push(Action::RequestVote { call, to, request: request.clone() });
            }
        }
        self.votes = BTreeSet::from([ctx.me.id.clone()]);
        self.open = voters;
    }

    /// Takes the answer of `from`; `None` when it did not answer. Returns whether it belongs to this stage.
    pub(crate) fn on_vote_answer(&mut self, call: CallId, from: PeerId, reply: Option<VoteReply>) -> bool {
        let (Stage::PreVote { call: asked, .. } | Stage::Voting { call: asked, .. }) = self.stage else { return false };
        if asked != call || !self.open.remove(&from) {
            return false;
        }
        if let Some(reply) = reply
            && reply.granted
            && reply.epoch == self.epoch
        {
            self.votes.insert(from);
            self.note_view(reply.electors);
        }
        true
    }

    /// Counts the electors as another peer, or this one by now, sees them. A list that is too long to be one is
    /// ignored.
    pub(crate) fn note_view(&mut self, electors: Vec<PeerId>) {
        if self.kind == Kind::Provisional && electors.len() <= MAX_ELECTORS {
            self.electorate.voters_views.insert(electors.into_iter().collect());
        }
    }

    /// Votes that count, and votes needed. With the nameserver, as it counts: a majority of the electors, without the
    /// incumbent unless it voted. Without the nameserver: a majority of the electors with the incumbent, which may be
    /// alive elsewhere, as this peer *and* each voter sees them; of these counts the one that is furthest from its
    /// goal.
    fn count(&self, votes: &BTreeSet<PeerId>) -> (usize, usize) {
        let of = |electors: &BTreeSet<PeerId>, needed: usize| (electors.intersection(votes).count(), needed);
        if self.kind == Kind::Provisional {
            let views = std::iter::once(&self.electorate.with).chain(&self.electorate.voters_views);
            let counts = views.map(|electors| of(electors, provisional_quorum(electors.len())));
            return counts.max_by_key(|(votes, needed)| needed.saturating_sub(*votes)).unwrap_or((0, 1));
        }
        let incumbent_voted = self.electorate.incumbent.as_ref().is_some_and(|incumbent| votes.contains(incumbent));
        let electors = if incumbent_voted { &self.electorate.with } else { &self.electorate.without };
        of(electors, majority(electors.len()))
    }

    pub(crate) fn tally(&self) -> Tally {
        let suffices = |votes: &BTreeSet<PeerId>| {
            let (votes, needed) = self.count(votes);
            votes >= needed
        };
        if suffices(&self.votes) {
            Tally::Won
        } else if suffices(&self.votes.union(&self.open).cloned().collect()) {
            Tally::Open
        } else {
            Tally::Lost
        }
    }

    /// The failure of a campaign whose votes do not suffice.
    pub(crate) fn no_majority(&self) -> ElectionFailure {
        let (votes, needed) = self.count(&self.votes);
        ElectionFailure::NoMajority { votes: votes as u64, needed: needed as u64 }
    }

    /// The votes of a campaign that was won without the nameserver.
    pub(crate) fn mandate(&self) -> Mandate {
        Mandate { votes: self.votes.clone(), expected: self.expected }
    }

    /// Asks the nameserver for the seat.
    pub(crate) fn claim(&mut self, ctx: &mut Ctx<'_>) {
        let call = ctx.calls.next();
        self.stage = Stage::Claiming { call, sent: ctx.now };
        let claim = Claim {
            epoch: self.epoch,
            expected_epoch: self.expected,
            endpoint: ctx.me.endpoint.clone(),
            votes: self.votes.iter().cloned().collect(),
            force: self.is_forced(),
        };
        ctx.epochs.claimed = Some(self.epoch);
        ctx.out.push(Action::Claim { call, claim });
    }

    /// Time at which the claim `call` was sent, if it is the one under way.
    pub(crate) fn claim_sent(&self, call: CallId) -> Option<Timestamp> {
        match self.stage {
            Stage::Claiming { call: asked, sent } if asked == call => Some(sent),
            _ => None,
        }
    }

    /// Handles a refusal because the seat is held. Returns false when the claim was repeated for long enough.
    pub(crate) fn hold(&mut self, now: Timestamp, retry_after: Duration) -> bool {
        let goes_on = now.since(self.started) < MAX_HELD;
        if goes_on {
            self.stage = Stage::Held { until: now + retry_after.clamp(MIN_RETRY, SEAT_POLL) };
        }
        goes_on
    }

    pub(crate) fn run_timer(&mut self, ctx: &mut Ctx<'_>) -> Timeout {
        if ctx.now < self.deadline() {
            return Timeout::Continue;
        }
        match self.stage {
            Stage::PreVote { .. } | Stage::Voting { .. } => Timeout::Over(self.no_majority()),
            Stage::Held { .. } => {
                self.claim(ctx);
                Timeout::Continue
            }
            Stage::Claiming { .. } => Timeout::Over(ElectionFailure::NameserverUnreachable),
        }
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.kind == Kind::Forced
    }

    /// True if it waits for votes or promises.
    pub(crate) fn is_voting(&self) -> bool {
        matches!(self.stage, Stage::PreVote { .. } | Stage::Voting { .. })
    }

    /// True if nothing was promised yet.
    pub(crate) fn is_pre_vote(&self) -> bool {
        matches!(self.stage, Stage::PreVote { .. })
    }

    /// True if a claim is under way: it may be accepted whatever this peer does now.
    pub(crate) fn is_claiming(&self) -> bool {
        matches!(self.stage, Stage::Claiming { .. })
    }
}
