//! One try for the seat: who was asked, who agreed, and what is waited for.

use std::collections::BTreeSet;

use shared::{
    electors::{electors, majority, provisional_quorum},
    epoch::Epoch,
    id::PeerId,
    limits::{CLAIM_WAIT, MAX_ELECTORS},
    time::Timestamp,
};

use crate::CallId;

/// One try for the seat.
#[derive(Debug, Clone)]
pub(crate) struct Campaign {
    /// The epoch stood for.
    pub(crate) epoch: Epoch,
    /// The seat to be replaced. Fixed with the votes: they were given for replacing this one (invariant S4).
    pub(crate) expected: Epoch,
    pub(crate) kind: Kind,
    electorate: Electorate,
    /// Voters that have not answered.
    pub(crate) open: BTreeSet<PeerId>,
    pub(crate) votes: BTreeSet<PeerId>,
    pub(crate) started: Timestamp,
    pub(crate) stage: Stage,
}

/// What a campaign is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The tracker is gone.
    Ordinary,
    /// `eleger`: replaces a living tracker.
    Forced,
    /// The nameserver is away: votes alone make a provisional tracker.
    Provisional,
    /// A provisional tracker makes its epoch known to the nameserver.
    Registering,
}

/// Where a campaign stands.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// Asks whether it would get votes. Nothing has changed anywhere yet.
    Probing { call: CallId, until: Timestamp },
    /// Waits for votes.
    Voting { call: CallId, until: Timestamp },
    /// Waits for the nameserver.
    Claiming { call: CallId, sent: Timestamp },
    /// Claims again then.
    Held { until: Timestamp },
}

/// Whose votes count.
#[derive(Debug, Clone)]
pub(crate) struct Electorate {
    /// The electors without the incumbent, since it would have to be waited for when it is dead ...
    without: BTreeSet<PeerId>,
    /// ... and with it: if it has voted, and where the nameserver cannot tell whether it lives.
    with: BTreeSet<PeerId>,
    /// Whom the campaign would replace, if that is another peer.
    incumbent: Option<PeerId>,
    /// What those who voted think who elects; counts only without the nameserver, which otherwise decides.
    others_views: BTreeSet<BTreeSet<PeerId>>,
}

impl Electorate {
    /// The electorate among `peers`, which `incumbent` is one of if it is known.
    pub(crate) fn new<'a>(peers: impl Iterator<Item = &'a PeerId> + Clone, incumbent: Option<PeerId>) -> Self {
        let without = electors(peers.clone().filter(|peer| Some(*peer) != incumbent.as_ref()));
        Self { without, with: electors(peers), incumbent, others_views: BTreeSet::new() }
    }

    /// All whose votes could count.
    pub(crate) fn voters(&self) -> impl Iterator<Item = &PeerId> {
        self.without.union(&self.with)
    }

    /// Whom the campaign would replace, if that is another peer.
    pub(crate) fn incumbent(&self) -> Option<&PeerId> {
        self.incumbent.as_ref()
    }
}

impl Campaign {
    pub(crate) fn new(kind: Kind, epoch: Epoch, expected: Epoch, electorate: Electorate, now: Timestamp) -> Self {
        Self {
            epoch,
            expected,
            kind,
            electorate,
            open: BTreeSet::new(),
            votes: BTreeSet::new(),
            started: now,
            stage: Stage::Held { until: now },
        }
    }

    pub(crate) fn deadline(&self) -> Timestamp {
        match self.stage {
            Stage::Probing { until, .. } | Stage::Voting { until, .. } | Stage::Held { until } => until,
            Stage::Claiming { sent, .. } => sent + CLAIM_WAIT,
        }
    }

    /// Another view of who elects, a voter's or this peer's own of today; what cannot be one is not looked at.
    pub(crate) fn note_view(&mut self, electors: Vec<PeerId>) {
        if self.kind == Kind::Provisional && electors.len() <= MAX_ELECTORS {
            self.electorate.others_views.insert(electors.into_iter().collect());
        }
    }

    /// Of `votes`, those that count, and how many are needed. Where the nameserver decides, as it counts: a majority of
    /// the electors, the incumbent left out unless it voted. Without it: of the electors with the incumbent, who may
    /// be alive elsewhere, as this peer *and* each voter sees them; the count that is shortest of its goal.
    pub(crate) fn count(&self, votes: &BTreeSet<PeerId>) -> (usize, usize) {
        let of = |electors: &BTreeSet<PeerId>, needed: usize| (electors.intersection(votes).count(), needed);
        if self.kind == Kind::Provisional {
            let views = std::iter::once(&self.electorate.with).chain(&self.electorate.others_views);
            let counts = views.map(|electors| of(electors, provisional_quorum(electors.len())));
            return counts.max_by_key(|(votes, needed)| needed.saturating_sub(*votes)).unwrap_or((0, 1));
        }
        let incumbent_voted = self.electorate.incumbent.as_ref().is_some_and(|incumbent| votes.contains(incumbent));
        let electors = if incumbent_voted { &self.electorate.with } else { &self.electorate.without };
        of(electors, majority(electors.len()))
    }

    /// Whether the votes suffice.
    pub(crate) fn is_won(&self) -> bool {
        let (votes, needed) = self.count(&self.votes);
        votes >= needed
    }

    /// Whether they could, if all who were asked agreed.
    pub(crate) fn can_be_won(&self) -> bool {
        let (votes, needed) = self.count(&self.votes.union(&self.open).cloned().collect());
        votes >= needed
    }

    pub(crate) fn is_forced(&self) -> bool {
        self.kind == Kind::Forced
    }

    /// Whether votes, or answers whether there would be votes, are waited for.
    pub(crate) fn is_voting(&self) -> bool {
        matches!(self.stage, Stage::Probing { .. } | Stage::Voting { .. })
    }

    /// Whether nothing was promised yet.
    pub(crate) fn is_probing(&self) -> bool {
        matches!(self.stage, Stage::Probing { .. })
    }

    /// Whether a claim is under way: it may be accepted whatever this peer does now.
    pub(crate) fn is_claiming(&self) -> bool {
        matches!(self.stage, Stage::Claiming { .. })
    }

    pub(crate) fn electorate(&self) -> &Electorate {
        &self.electorate
    }
}
