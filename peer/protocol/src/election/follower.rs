//! The state of a peer that follows a tracker: heartbeats, suspicion, announcements.

use std::time::Duration;

use super::{
    Action, CallError, Report, Suspicion,
    ctx::{Ctx, contact, contact_of, heartbeat},
    params::{ANNOUNCE_RETRY, MAX_SNAPSHOT_WAIT, MAX_STANDBYS, SUSPICION},
    port_probe::{PortProbe, Refused},
    standby::Standby,
    transition::Transition,
};
use crate::{
    CallId,
    params::REDUCED_HEARTBEAT,
    replication::{
        announcer::Announcer,
        share_log::ShareLog,
        standby_feeds::{self, FeedMessage, StandbyFeeds},
    },
};
use shared::{
    contact::Contact,
    id::PeerId,
    limits::HEARTBEAT,
    rpc::{
        nameserver::Seat,
        peer::VoteRequest,
        tracker::{Addressee, HeartbeatAck, StandbyContact, TrackerError},
    },
    time::Timestamp,
};

/// A peer that follows a tracker.
#[derive(Debug, Clone)]
pub(crate) struct Follower {
    pub(crate) seat: Seat,
    /// Time at which silence becomes suspicion.
    suspect_at: Timestamp,
    /// Calls before this one went to the tracker that was followed before.
    first_call: CallId,
    /// Interval of heartbeats that the tracker asks for.
    interval: Duration,
    next_heartbeat: Timestamp,
    probe: PortProbe,
    announcer: Announcer,
    feeds: StandbyFeeds,
}

impl Follower {
    /// Follows the holder of `seat`.
    pub(crate) fn new(ctx: &mut Ctx<'_>, seat: Seat) -> Self {
        let now = ctx.now;
        let first_call = ctx.calls.upcoming();
        let announcer = Announcer::new(seat.epoch, ctx.me.incarnation, Addressee::Tracker, first_call, now);
        let probes_mean_something = ctx.misleading_port.as_ref() != Some(&contact_of(&seat));
        if let Some(standby) = ctx.standby {
            standby.extend_deadlines(now);
        }
        Self {
            seat,
            suspect_at: now + SUSPICION,
            first_call,
            interval: HEARTBEAT,
            next_heartbeat: now,
            probe: PortProbe::new(now, probes_mean_something),
            announcer,
            feeds: StandbyFeeds::default(),
        }
    }

    pub(crate) fn deadline(&self, share: &ShareLog, standby: Option<&Standby>) -> Timestamp {
        let own = self.next_heartbeat.min(self.suspect_at);
        let own = self.probe.next.map_or(own, |probe| probe.min(own));
        let feeds = self.feeds.deadline(share, self.announcer.is_up_to_date(share));
        let standby = standby.and_then(|standby| standby.liveness.deadline());
        [self.announcer.deadline(share), feeds, standby].into_iter().flatten().fold(own, Timestamp::min)
    }

    pub(crate) fn run_timers(&mut self, ctx: &mut Ctx<'_>) -> Transition {
        if self.suspect_at <= ctx.now {
            return Transition::Suspect(Suspicion::Silent, None);
        }
        if self.next_heartbeat <= ctx.now {
            self.next_heartbeat = ctx.now + self.interval;
            ctx.send_heartbeat(&self.seat);
        }
        self.probe.run_timer(ctx, || contact_of(&self.seat));
        if let Some(announcement) = self.announcer.next(ctx.now, ctx.share) {
            let call = ctx.calls.next();
            self.announcer.sent(call, ctx.now);
            ctx.out.push(Action::SendAnnouncement { call, to: contact_of(&self.seat), announcement });
        }
        self.feed_standbys(ctx);
        if let Some(standby) = ctx.standby {
            standby.run_timers(ctx.now);
        }
        Transition::Stay
    }

    fn feed_standbys(&mut self, ctx: &mut Ctx<'_>) {
        let tracker_up_to_date = self.announcer.is_up_to_date(ctx.share);
        let Ctx { now, out, me, calls, epochs, share, .. } = ctx;
        self.feeds.poll(*now, share, tracker_up_to_date, calls, |call, to, message| {
            let to = to.clone();
            out.push(match message {
                FeedMessage::Heartbeat => {
                    Action::SendHeartbeat { call, to, beat: heartbeat(me, epochs, share, Addressee::Standby) }
                }
                FeedMessage::Announcement(announcement) => Action::SendAnnouncement { call, to, announcement },
            });
        });
    }

    /// Takes a standby's answer to a heartbeat; without an `ack` it refused or did not answer. Returns whether `from`
    /// is a standby.
    pub(crate) fn on_standby_answer(
        &mut self,
        ctx: &Ctx<'_>,
        call: CallId,
        from: &PeerId,
        ack: Option<&HeartbeatAck>,
    ) -> bool {
        self.feeds.on_heartbeat_answer(ctx.now, call, from, self.seat.epoch, ack, ctx.share)
    }

    /// `from` answered a heartbeat or announcement, with an `ack` if it accepted a heartbeat.
    pub(crate) fn on_sign_of_life(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: CallId,
        from: &PeerId,
        ack: Option<&HeartbeatAck>,
    ) {
        if self.seat.peer != *from || ack.is_some_and(|ack| ack.epoch != self.seat.epoch) {
            return;
        }
        if self.probe.on_answer(call) {
            *ctx.misleading_port = Some(contact_of(&self.seat));
        }
        if call < self.first_call {
            return;
        }
        let now = ctx.now;
        if let Some(ack) = ack {
            self.interval = ack.next_beat.clamp(HEARTBEAT, REDUCED_HEARTBEAT);
            // The next heartbeat was planned by the previous interval.
            self.next_heartbeat = self.next_heartbeat.min(now + self.interval);
            self.announcer.on_ack(call, ack.known_seq, ctx.share);
        }
        self.probe.set_heartbeat_interval(now, self.interval);
        let silence = SUSPICION + self.interval.saturating_sub(HEARTBEAT);
        self.suspect_at = self.suspect_at.max(now + silence);
        if let Some(ack) = ack {
            self.on_standbys_named(ctx, call, &ack.standbys);
        }
    }

    /// Takes the standbys that the tracker names in its answer to the heartbeat `call`.
    fn on_standbys_named(&mut self, ctx: &mut Ctx<'_>, call: CallId, named: &[StandbyContact]) {
        if !self.feeds.accept_names(call) {
            return;
        }
        let named = &named[..named.len().min(MAX_STANDBYS)];
        let (me, first_call) = (ctx.me, ctx.calls.upcoming());
        let fed = named.iter().filter(|standby| standby.peer != me.id && standby.peer != self.seat.peer);
        let fed: Vec<Contact> = fed.map(|standby| contact(&standby.peer, &standby.endpoint)).collect();
        let announcer = || standby_feeds::announcer(self.seat.epoch, me.incarnation, first_call, ctx.now);
        self.feeds.replace(fed, ctx.now, announcer);
        *ctx.succession = named.iter().map(|standby| standby.peer.clone()).collect();
        if named.iter().all(|standby| standby.peer != me.id) {
            *ctx.standby = None;
        } else if ctx.standby.is_none() {
            *ctx.standby = Some(Box::default());
        }
    }

    /// The connection to the tracker is lost. There is no need to wait for silence, unless this process stalled: then
    /// the tracker may have closed the connection for that, and gets a heartbeat first.
    pub(crate) fn on_disconnect(&mut self, ctx: &Ctx<'_>, peer: &PeerId) -> Transition {
        if self.seat.peer != *peer {
            return Transition::Stay;
        }
        if ctx.now < ctx.ignore_disconnects_until {
            self.next_heartbeat = self.next_heartbeat.min(ctx.now + HEARTBEAT / 4);
            return Transition::Stay;
        }
        Transition::Suspect(Suspicion::Unreachable, None)
    }

    /// A probe of the port `at` was refused.
    pub(crate) fn on_probe_refused(&mut self, ctx: &mut Ctx<'_>, at: &Contact) -> Transition {
        if contact_of(&self.seat) != *at {
            return Transition::Stay;
        }
        match self.probe.on_refused(ctx.now, || ctx.send_heartbeat(&self.seat)) {
            Refused::Confirmed(refusal) => Transition::Suspect(Suspicion::Unreachable, Some(refusal)),
            Refused::First | Refused::Ignored => Transition::Stay,
        }
    }

    /// `from` refused `call` because it is not the tracker.
    pub(crate) fn on_not_tracker(&self, call: CallId, from: &PeerId) -> Transition {
        if self.seat.peer == *from && call >= self.first_call {
            Transition::Suspect(Suspicion::NotTracker, None)
        } else {
            Transition::Stay
        }
    }

    /// Takes the answer to the announcement `call`. Returns a refusal that may concern the seat.
    pub(crate) fn on_announcement_answer(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: CallId,
        result: Result<(), CallError<TrackerError>>,
    ) -> Option<TrackerError> {
        let announcer =
            if self.announcer.is_in_flight(call) { &mut self.announcer } else { self.feeds.in_flight(call)? };
        let (now, next_call) = (ctx.now, ctx.calls.upcoming());
        match result {
            Ok(()) => announcer.accepted(next_call),
            // A peer that retries at its reservation is admitted. The jitter spreads peers that were refused together.
            Err(CallError::Refused(TrackerError::Later { wait })) => {
                announcer.retry(now + wait.min(MAX_SNAPSHOT_WAIT) + ctx.jitter(HEARTBEAT));
            }
            Err(CallError::Failed(_) | CallError::Refused(TrackerError::Unavailable(_))) => {
                announcer.retry(now + HEARTBEAT);
            }
            Err(CallError::Refused(refusal)) => {
                let wait = match &refusal {
                    TrackerError::InvalidFileName(_) | TrackerError::LimitReached { .. } => {
                        ctx.report(Report::AnnouncementRefused { why: refusal.clone() });
                        ANNOUNCE_RETRY
                    }
                    _ => HEARTBEAT,
                };
                announcer.restart(next_call, now + wait);
                return Some(refusal);
            }
        }
        None
    }

    /// True if the answer to a candidate that misses this same tracker is deferred until this peer has probed the
    /// tracker's port. If so, the probe is due at once.
    pub(crate) fn defers_vote(&mut self, ctx: &Ctx<'_>, from: &PeerId, request: &VoteRequest) -> bool {
        let about_it = request.expected_epoch == self.seat.epoch && *from != self.seat.peer;
        let electors = &ctx.members.electors;
        let elect = electors.contains(from) && electors.contains(&ctx.me.id);
        !request.force && !request.provisional && about_it && elect && self.probe.hasten(ctx.now)
    }

    /// This process stalled for `late`, which is not the tracker's silence.
    pub(crate) fn on_stall(&mut self, ctx: &mut Ctx<'_>, late: Duration) {
        self.suspect_at += late;
        if let Some(standby) = ctx.standby {
            standby.extend_deadlines(ctx.now);
        }
    }

    /// Notifies the tracker and its standbys that this peer leaves.
    pub(crate) fn leave(&self, ctx: &mut Ctx<'_>) {
        let (epoch, incarnation) = (self.seat.epoch, ctx.me.incarnation);
        let to = std::iter::once(contact_of(&self.seat)).chain(self.feeds.contacts().cloned());
        ctx.out.extend(to.map(|to| Action::SendLeave { to, epoch, incarnation }));
    }

    /// True if the tracker answered recently enough not to be suspected.
    pub(crate) fn hears_tracker(&self, now: Timestamp) -> bool {
        now < self.suspect_at
    }

    /// True if the tracker has this peer's whole share.
    pub(crate) fn is_announced(&self, share: &ShareLog) -> bool {
        self.announcer.is_up_to_date(share)
    }
}
