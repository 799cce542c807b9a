//! Voting on others who stand for the seat.

use std::cmp::Reverse;

use shared::{
    electors::rendezvous,
    epoch::Epoch,
    id::PeerId,
    limits::{ELECTION_BACKOFF, VOTE_WAIT},
    rpc::peer::{VoteReply, VoteRequest},
    time::Timestamp,
};

use super::{
    Action, Core, ElectionFailure, Vote,
    campaign::{Campaign, Kind},
    state::{Seeking, Standing, Word},
};

impl Core {
    /// A candidate asks for this peer's vote, or whether it would get it.
    pub(crate) fn on_vote_requested(
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
        let rival = self.is_rival(request);
        let granted = self.grants(now, from, request) && !(rival && self.goes_before(from, request));
        if granted && rival {
            self.end_campaign(now, ElectionFailure::Lost(self.seat_view()), out);
        }
        if granted && !request.pre_vote {
            self.vote(request.epoch, from.clone(), out);
            let again = now + VOTE_WAIT + self.jitter(ELECTION_BACKOFF);
            // Who only probed has no vote any more for the epoch that it probed for.
            let gives_way =
                |own: &Campaign| own.is_probing() || (!request.force && !own.is_forced() && own.is_voting());
            if self.campaign.as_ref().is_some_and(gives_way) {
                self.end_campaign(now, ElectionFailure::Lost(self.seat_view()), out);
            }
            if let Standing::Seeking(seeking) = &mut self.standing {
                // The candidate's turn now.
                seeking.campaign_at = seeking.campaign_at.max(again);
            }
        }
        let voted_epoch = self.durable.voted.as_ref().map_or(Epoch::NONE, |vote| vote.epoch);
        let electors = self.electors.iter().cloned().collect();
        VoteReply { epoch: request.epoch, granted, seat: self.seat_view(), voted_epoch, electors }
    }

    /// Gives this peer's vote: durable before anything else happens.
    pub(crate) fn vote(&mut self, epoch: Epoch, candidate: PeerId, out: &mut Vec<Action>) {
        let vote = Some(Vote { epoch, candidate });
        if self.durable.voted != vote {
            self.durable.voted = vote;
            out.push(Action::Persist(self.durable.clone()));
        }
    }

    fn grants(&self, now: Timestamp, from: &PeerId, request: &VoteRequest) -> bool {
        let high = self.durable.epoch_high;
        let plausible = request.epoch > high
            && self.is_credible(request.epoch)
            && request.expected_epoch < request.epoch
            && request.expected_epoch >= high
            && request.epoch.is_provisional() == request.provisional;
        let free =
            self.durable.voted.as_ref().is_none_or(|vote| {
                request.epoch > vote.epoch || (request.epoch == vote.epoch && vote.candidate == *from)
            });
        plausible
            && free
            && *from != self.id
            && (request.force || !self.hears_a_tracker(now))
            && (!request.provisional || self.misses_the_nameserver())
            && !matches!(self.standing, Standing::Leaving(_))
    }

    /// Whether the candidate only asks whether it would be elected, as this peer does for the same kind of seat. If both
    /// heard "yes", both would vote for themselves and take from each other what each of them may need to win: where
    /// only so many electors are left as make a majority, every time that two are under way at once. So one of them lets
    /// the other go first, as long as nothing is promised.
    fn is_rival(&self, request: &VoteRequest) -> bool {
        let rivals = |own: &Campaign| own.is_probing() && (own.kind == Kind::Provisional) == request.provisional;
        request.pre_vote && self.campaign.as_ref().is_some_and(rivals)
    }

    /// Which of two rivals goes first; both come to the same answer unless the tracker named them different standbys, which
    /// costs no more than a lost election. Who stands for the higher epoch may have heard that the lower one is lost; then
    /// come standbys; then it is another's turn in each epoch. Within an epoch it stays the same one's, so one whom not all
    /// electors hear is in the others' way until it backs off for longer than a probe takes, which is drawn.
    fn goes_before(&self, rival: &PeerId, request: &VoteRequest) -> bool {
        let Some(own) = &self.campaign else { return false };
        let key = request.epoch.0.to_le_bytes();
        let place = |epoch: Epoch, peer: &PeerId| {
            let heir = self.heirs.iter().position(|heir| heir == peer).unwrap_or(self.heirs.len());
            (Reverse(epoch), heir, rendezvous(&key, peer))
        };
        place(own.epoch, &self.id) < place(request.epoch, rival)
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

    /// Whether this peer looks for a tracker and the nameserver did not answer when it was asked last. Who still has
    /// the nameserver's ear has no part in an election without it.
    fn misses_the_nameserver(&self) -> bool {
        matches!(&self.standing, Standing::Seeking(Seeking { word: Some(Word::Away), .. }))
    }
}
