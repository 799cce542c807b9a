//! Whom this peer follows, and how that changes.

use std::time::Duration;

use shared::{
    contact::Contact,
    epoch::Epoch,
    id::PeerId,
    limits::{CLOSE_DEADLINE, HEARTBEAT, MAX_EPOCH_STEP, SEAT_LEASE, SUSPICION},
    rpc::{
        nameserver::{Seat, SeatView},
        peer::SeatNotice,
        tracker::Addressee,
    },
    time::Timestamp,
};

use super::{
    Action, Core, ElectionFailure, Report, StepDown, Suspicion,
    campaign::Campaign,
    follower::Following,
    port_probe::{Knocking, Refusal},
    standby::Standby,
    standby_feeds::Mirrors,
    tracker::Term,
};
use crate::{CallId, replication::announcer::Publisher};

/// Where a peer stands towards the seat.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// Has no tracker that it trusts.
    Seeking(Seeking),
    /// Follows a tracker.
    Following(Box<Following>),
    /// Is the tracker.
    Tracking(Box<Term>),
    /// Was the tracker and is about to end.
    Leaving(Leaving),
}

/// A peer without a tracker that it trusts.
#[derive(Debug, Clone)]
pub(crate) struct Seeking {
    /// The tracker that seems to be gone; heartbeats to it go on, since it may come back.
    pub(crate) suspected: Option<Seat>,
    /// Who was tracker before, if that was not this peer: not waited for when the index is rebuilt.
    pub(crate) former: Option<PeerId>,
    /// The nameserver's last word, if it is fresh.
    pub(crate) word: Option<Word>,
    /// When this peer's turn to stand comes.
    pub(crate) campaign_at: Timestamp,
    pub(crate) next_beat: Timestamp,
    /// Why the suspect is one, if its port was refused.
    pub(crate) refusal: Option<Refusal>,
}

/// What the nameserver said of the seat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nobody holds it: it can be claimed without votes.
    Vacant,
    /// The suspect still holds it.
    Held(PeerId),
    /// Nothing: it did not answer.
    Away,
}

/// A tracker that resigns in order to end.
#[derive(Debug, Clone)]
pub(crate) struct Leaving {
    pub(crate) epoch: Epoch,
    pub(crate) call: CallId,
    pub(crate) until: Timestamp,
    /// Who is told when the seat is free.
    pub(crate) followers: Vec<Contact>,
}

impl Seeking {
    /// Nobody is known.
    pub(crate) fn nobody(now: Timestamp) -> Self {
        Self { suspected: None, former: None, word: None, campaign_at: now, next_beat: now, refusal: None }
    }
}

impl Core {
    /// An epoch was claimed somewhere: persisted before anything is done about it. Whether it was news.
    pub(crate) fn raise(&mut self, now: Timestamp, epoch: Epoch, out: &mut Vec<Action>) -> bool {
        if epoch <= self.durable.epoch_high {
            return false;
        }
        self.durable.epoch_high = epoch;
        self.expected = self.expected.max(epoch);
        out.push(Action::Persist(self.durable.clone()));
        // A claim under way in this very epoch may be the one that others speak of.
        if self.campaign.as_ref().is_some_and(|campaign| !(campaign.is_claiming() && campaign.epoch == epoch)) {
            self.end_campaign(now, ElectionFailure::Lost(self.seat_view()), out);
        }
        match &self.standing {
            Standing::Tracking(term) if term.seat.epoch < epoch => self.step_down(now, StepDown::HigherEpoch, out),
            Standing::Following(following) if following.seat.epoch < epoch => {
                self.seek(now, Seeking::nobody(now));
            }
            Standing::Seeking(Seeking { former, campaign_at, .. }) => {
                let (former, campaign_at) = (former.clone(), *campaign_at);
                self.seek(now, Seeking { former, campaign_at, ..Seeking::nobody(now) });
            }
            Standing::Tracking(_) | Standing::Following(_) | Standing::Leaving(_) => {}
        }
        true
    }

    /// Another peer spoke of an epoch.
    pub(crate) fn raise_hearsay(&mut self, now: Timestamp, epoch: Epoch, out: &mut Vec<Action>) -> bool {
        self.is_credible(epoch) && self.raise(now, epoch, out)
    }

    /// Whether a peer's word for an epoch is believed: not further above the nameserver's own word than leaves
    /// room for claims, so that a liar can neither use up the epochs nor push this peer out of bounds.
    pub(crate) fn is_credible(&self, epoch: Epoch) -> bool {
        epoch.0.saturating_sub(self.confirmed.0) <= MAX_EPOCH_STEP / 2
    }

    /// Another peer told how it sees the seat.
    pub(crate) fn learn_hearsay(&mut self, now: Timestamp, view: &SeatView, out: &mut Vec<Action>) {
        if matches!(self.standing, Standing::Leaving(_)) {
            return;
        }
        self.raise_hearsay(now, view.epoch_high, out);
        let Some(seat) = &view.seat else { return };
        self.meet_rival(now, seat, out);
        if seat.epoch != self.durable.epoch_high || seat.epoch <= self.vacated || seat.peer == self.id {
            return;
        }
        // What is suspected here is known; that others still believe in it changes nothing.
        if matches!(&self.standing, Standing::Seeking(seeking) if seeking.suspected.as_ref() != Some(seat)) {
            self.follow(now, seat.clone(), out);
        }
    }

    /// News from the peer that holds, or held, the seat.
    pub(crate) fn on_notice(&mut self, now: Timestamp, from: &PeerId, notice: SeatNotice, out: &mut Vec<Action>) {
        if matches!(self.standing, Standing::Leaving(_)) {
            return;
        }
        match notice {
            SeatNotice::Taken(seat) if seat.peer == *from => {
                self.raise_hearsay(now, seat.epoch, out);
                self.meet_rival(now, &seat, out);
                let current = seat.epoch == self.durable.epoch_high && seat.epoch > self.vacated;
                // Its own word lifts a suspicion too.
                if current && matches!(self.standing, Standing::Seeking(_)) {
                    self.follow(now, seat, out);
                }
            }
            SeatNotice::Taken(_) => {}
            SeatNotice::Vacated(epoch) => {
                let held = |seat: &Seat| seat.peer == *from && seat.epoch == epoch;
                let seat = self.seat_view().seat.filter(held);
                if seat.is_none() || matches!(self.standing, Standing::Tracking(_)) {
                    return;
                }
                self.vacated = self.vacated.max(epoch);
                self.suspect(now, Suspicion::Vacated, out);
            }
        }
    }

    /// Two parts of the network that knew too little of each other elected a tracker each in the same epoch: both step
    /// down, and the next epoch has one.
    fn meet_rival(&mut self, now: Timestamp, seat: &Seat, out: &mut Vec<Action>) {
        let rival = |own: &Seat| own.epoch == seat.epoch && own.peer != seat.peer;
        if matches!(&self.standing, Standing::Tracking(term) if term.mandate.is_some() && rival(&term.seat)) {
            self.step_down(now, StepDown::Conflict, out);
        }
    }

    /// Begins to follow `seat`, whose epoch is the highest known.
    pub(crate) fn follow(&mut self, now: Timestamp, seat: Seat, out: &mut Vec<Action>) {
        match &self.standing {
            Standing::Following(following) if following.seat == seat => return,
            Standing::Tracking(_) | Standing::Leaving(_) => return,
            Standing::Following(_) | Standing::Seeking(_) => {}
        }
        if self.campaign.as_ref().is_some_and(|campaign| !campaign.is_forced()) {
            self.end_campaign(now, ElectionFailure::Lost(self.seat_view()), out);
        }
        out.push(Action::Report(Report::Following(seat.clone())));
        let first_call = self.call();
        let publisher = Publisher::new(seat.epoch, self.incarnation, Addressee::Tracker, first_call, now);
        let suspect_at = now + SUSPICION;
        let pace = HEARTBEAT;
        let knocking = Knocking::new(now, self.trusts_refusals_of(&Self::contact_of(&seat)));
        let mirrors = Mirrors::default();
        if let Some(standby) = &mut self.standby {
            standby.forgive(now);
        }
        let next_beat = now;
        let following = Following { seat, suspect_at, first_call, pace, next_beat, knocking, publisher, mirrors };
        self.standing = Standing::Following(Box::new(following));
    }

    /// The followed tracker seems to be gone.
    pub(crate) fn suspect(&mut self, now: Timestamp, why: Suspicion, out: &mut Vec<Action>) {
        let seat = match &self.standing {
            Standing::Following(following) => following.seat.clone(),
            // Suspected already; only its own farewell is news.
            Standing::Seeking(Seeking { suspected: Some(seat), .. }) if why == Suspicion::Vacated => seat.clone(),
            _ => return,
        };
        let former = Some(seat.peer.clone());
        out.push(Action::Report(Report::TrackerSuspected { seat: seat.clone(), why }));
        let suspected = (why != Suspicion::Vacated).then_some(seat);
        let campaign_at = now + self.stagger(former.as_ref());
        self.seek(now, Seeking { suspected, former, word: None, campaign_at, next_beat: now, refusal: None });
        self.refresh_peers(now);
    }

    /// The suspected tracker answered after all.
    pub(crate) fn lift_suspicion(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let Standing::Seeking(Seeking { suspected: Some(seat), .. }) = &self.standing else { return };
        let seat = seat.clone();
        out.push(Action::Report(Report::SuspicionLifted { seat: seat.clone() }));
        self.follow(now, seat, out);
    }

    /// Looks for a tracker, asking the nameserver at once.
    pub(crate) fn seek(&mut self, now: Timestamp, seeking: Seeking) {
        self.standing = Standing::Seeking(seeking);
        // An answer under way may be older than the reason to ask.
        self.seat_poll.pending = None;
        self.seat_poll.at = now;
    }

    /// Stops being tracker. The seat is given up where the nameserver may still think that it is ours.
    pub(crate) fn step_down(&mut self, now: Timestamp, why: StepDown, out: &mut Vec<Action>) {
        let Standing::Tracking(term) = &mut self.standing else { return };
        let epoch = term.seat.epoch;
        out.push(Action::Report(Report::SteppedDown { epoch, why }));
        // What it knows is as good as a standby's, if it is to be one.
        self.standby = Some(Box::new(Standby::of(std::mem::take(&mut term.index), &self.id)));
        self.claimed = None;
        self.end_campaign(now, ElectionFailure::Lost(self.seat_view()), out);
        let call = self.call();
        out.push(Action::Resign { call, epoch });
        self.seek(now, Seeking::nobody(now));
    }

    /// This process slept: that is not the others' silence, and may have cost the seat.
    pub(crate) fn standing_overslept(
        &mut self,
        now: Timestamp,
        late: Duration,
        asleep: Duration,
        out: &mut Vec<Action>,
    ) {
        match &mut self.standing {
            Standing::Following(following) => {
                following.suspect_at += late;
                if let Some(standby) = &mut self.standby {
                    standby.forgive(now);
                }
            }
            Standing::Seeking(_) => {
                // What the nameserver said is old, and its answer may be waiting to be read.
                let campaign_at = now + self.stagger(None);
                if let Standing::Seeking(seeking) = &mut self.standing {
                    seeking.word = None;
                    seeking.campaign_at = seeking.campaign_at.max(campaign_at);
                }
                self.seat_poll.pending = None;
                self.seat_poll.at = now;
            }
            Standing::Tracking(term) => {
                let lease_held = term.lease_until.is_some_and(|until| now < until);
                if asleep >= SEAT_LEASE && !lease_held {
                    self.step_down(now, StepDown::Stalled, out);
                    return;
                }
                term.liveness.forgive(late, now);
                if asleep > SUSPICION {
                    term.confirm_first(now);
                }
            }
            Standing::Leaving(_) => {}
        }
    }

    pub(crate) fn standing_deadline(&self) -> Option<Timestamp> {
        match &self.standing {
            Standing::Seeking(seeking) => self.seeking_deadline(seeking),
            Standing::Following(following) => {
                let own = following.deadline(&self.share);
                Some(self.standby_deadline().map_or(own, |standby| standby.min(own)))
            }
            Standing::Tracking(term) => Some(term.deadline()),
            Standing::Leaving(leaving) => Some(leaving.until),
        }
    }

    pub(crate) fn run_standing_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        match &self.standing {
            Standing::Seeking(_) => self.run_seeking_timers(now, out),
            Standing::Following(_) => self.run_following_timers(now, out),
            Standing::Tracking(_) => self.run_tracking_timers(now, out),
            Standing::Leaving(leaving) => {
                if leaving.until <= now {
                    self.stop_leaving(out);
                }
            }
        }
    }

    /// The process ends: a tracker resigns first and says goodbye when the seat is free, so that the first
    /// successor's claim finds it vacant.
    pub(crate) fn on_shutdown(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let campaign = self.campaign.take();
        self.answer_waiters(Err(ElectionFailure::Stopping), out);
        match &self.standing {
            Standing::Leaving(_) => return,
            Standing::Tracking(term) => {
                let epoch = term.seat.epoch;
                // Standbys first: they are to take the seat.
                let heirs = term.standbys.iter().filter_map(|peer| self.members.get_key_value(peer));
                let rest = self.members.iter().filter(|(peer, _)| !term.standbys.contains(peer));
                let known = heirs.chain(rest).map(|(peer, endpoint)| Self::contact(peer, endpoint));
                let unlisted = term.liveness.peers().filter(|peer| !self.members.contains_key(*peer));
                let unlisted = unlisted.filter_map(|peer| Some(Self::contact(peer, term.index.endpoint(peer)?)));
                let followers = known.chain(unlisted).collect();
                let call = self.call();
                out.push(Action::Resign { call, epoch });
                self.standing = Standing::Leaving(Leaving { epoch, call, until: now + CLOSE_DEADLINE, followers });
                return;
            }
            Standing::Following(following) => {
                let to = following.contact();
                let (epoch, incarnation) = (following.seat.epoch, self.incarnation);
                out.extend(
                    std::iter::once(to).chain(following.mirrors.contacts().cloned()).map(|to| Action::SendLeave {
                        to,
                        epoch,
                        incarnation,
                    }),
                );
            }
            Standing::Seeking(_) => {}
        }
        if let Some(campaign) = campaign.filter(Campaign::is_claiming) {
            // The claim may arrive, or have arrived: the seat must not wait for the dead.
            let call = self.call();
            out.push(Action::Resign { call, epoch: campaign.epoch });
        }
        self.stopped = true;
        out.push(Action::Stopped);
    }

    pub(crate) fn stop_leaving(&mut self, out: &mut Vec<Action>) {
        let Standing::Leaving(leaving) = &mut self.standing else { return };
        let notice = SeatNotice::Vacated(leaving.epoch);
        let followers = std::mem::take(&mut leaving.followers);
        out.extend(followers.into_iter().map(|to| Action::SendNotice { to, notice: notice.clone() }));
        self.stopped = true;
        out.push(Action::Stopped);
    }
}
