//! State of one provider: its groups, its rate, its requests in flight.
//!
//! | state | receives requests | next state |
//! |---|---|---|
//! | ready | yes | suspended: lost work to another provider while it stalled; waiting: busy, silent or broken |
//! | suspended | no | ready: it shows activity, or the suspension has lasted as long as the stall; waiting: silent |
//! | waiting | no; requests in flight continue after a refusal as busy | ready: the wait is over |
//!
//! A provider in any state is dropped for corrupt data, changed or missing content, a permanent refusal, or too many
//! failures. A dropped provider is removed; the ids of those that sent corrupt data are kept.

use std::{collections::VecDeque, ops::Range, time::Duration};

use shared::{limits::MIN_REQUESTS_PER_PROVIDER, time::Timestamp};

use super::{
    event::{Has, RequestId},
    have::Have,
    params::{
        DEFAULT_RTT, MAX_BEGUN_PIECES_PER_PROVIDER, MAX_REQUESTS_PER_PROVIDER, MAX_RESERVED_TIME, PIPELINE_MARGIN,
    },
    piece::{Layout, Pieces},
    rate::{Rate, bytes_at},
};
use crate::provider_health::ProviderHealth;

/// A request in flight.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    /// Wanted groups; the end moves down when the request is truncated.
    pub(crate) groups: Range<u64>,
    /// End of the verified groups.
    pub(crate) proven: u64,
    /// The first bytes have arrived.
    pub(crate) has_started: bool,
}

impl Request {
    /// Groups that are still to come.
    pub(crate) fn rest(&self) -> Range<u64> {
        self.proven..self.groups.end
    }

    /// True if the provider has begun to send.
    pub(crate) fn is_flowing(&self) -> bool {
        self.has_started || self.proven > self.groups.start
    }
}

/// One provider.
#[derive(Debug)]
pub(crate) struct Provider {
    layout: Layout,
    /// `None` if it has the whole version.
    have: Option<Have>,
    /// Requests in flight, in the order in which they were sent and in which the provider serves them.
    pub(crate) requests: VecDeque<Request>,
    /// A request that is sent while nothing is in flight restarts its silence.
    health: ProviderHealth,
    rate: Rate,
    rtt: Option<Duration>,
    suspended_until: Option<Timestamp>,
    /// The last attempt found nothing to request from it.
    pub(crate) exhausted: bool,
    /// The last attempt found only pieces that are reserved for other receivers.
    pub(crate) reserved_for_others: bool,
    /// Start of the time without requests because of that.
    reserved_since: Option<Timestamp>,
    /// Piece after the last requested one, where the next run continues if it can.
    pub(crate) next_piece: Option<u32>,
    /// Bytes that it delivered and that were verified.
    pub(crate) bytes_proven: u64,
}

impl Provider {
    pub(crate) fn new(now: Timestamp, layout: Layout, has: &Has, rtt: Option<Duration>, pieces: &mut Pieces) -> Self {
        let have = match has {
            Has::All => {
                pieces.add_full_provider();
                None
            }
            Has::Groups(_) => Some(Have::new(layout, MAX_BEGUN_PIECES_PER_PROVIDER)),
        };
        let mut provider = Self {
            layout,
            have,
            requests: VecDeque::new(),
            health: ProviderHealth::new(now),
            rate: Rate::default(),
            rtt,
            suspended_until: None,
            exhausted: false,
            reserved_for_others: false,
            reserved_since: None,
            next_piece: None,
            bytes_proven: 0,
        };
        if let Has::Groups(groups) = has {
            provider.gain(groups.iter(), pieces);
        }
        provider
    }

    /// Takes over what a provider that joins again has, and clears its failures.
    pub(crate) fn rejoin(&mut self, has: &Has, rtt: Option<Duration>, pieces: &mut Pieces) {
        self.rtt = rtt.or(self.rtt);
        self.health.reset();
        self.suspended_until = None;
        match has {
            Has::Groups(groups) => {
                self.gain(groups.iter(), pieces);
            }
            Has::All if self.have.is_some() => {
                self.withdraw(pieces);
                self.have = None;
                pieces.add_full_provider();
                self.exhausted = false;
            }
            Has::All => {}
        }
    }

    /// Adds groups; returns the pieces that became complete.
    pub(crate) fn gain(&mut self, runs: impl Iterator<Item = Range<u64>>, pieces: &mut Pieces) -> Vec<u32> {
        let mut gained = Vec::new();
        let Some(have) = &mut self.have else { return gained };
        for groups in runs {
            have.insert(groups, |piece| gained.push(piece));
        }
        gained.iter().for_each(|&piece| pieces.add_provider(piece));
        self.exhausted = false;
        gained
    }

    /// Removes its pieces from the availability counts.
    pub(crate) fn withdraw(&self, pieces: &mut Pieces) {
        match &self.have {
            None => pieces.remove_full_provider(),
            Some(have) => have.complete().for_each(|piece| pieces.remove_provider(piece)),
        }
    }

    pub(crate) fn has_all(&self) -> bool {
        self.have.is_none()
    }

    pub(crate) fn has_piece(&self, piece: u32) -> bool {
        self.have.as_ref().is_none_or(|have| have.has_piece(piece))
    }

    pub(crate) fn has_group(&self, group: u64) -> bool {
        self.have.as_ref().is_none_or(|have| have.has_group(group))
    }

    /// Pieces of which it has some groups and not all.
    pub(crate) fn begun(&self) -> impl Iterator<Item = u32> {
        self.have.iter().flat_map(Have::begun)
    }

    /// True if it can take another request: it is ready, it delivers, and its requests do not last for a round trip.
    pub(crate) fn has_capacity(&self, now: Timestamp) -> bool {
        self.health.is_available(now)
            && self.suspended_until.is_none_or(|until| until <= now)
            && self.stall(now) == Duration::ZERO
            && self.requests.len() < MAX_REQUESTS_PER_PROVIDER
            && (self.requests.len() < MIN_REQUESTS_PER_PROVIDER || self.backlog_bytes() < self.pipeline_bytes())
    }

    /// Bytes in flight or queued at the provider.
    pub(crate) fn backlog_bytes(&self) -> u64 {
        self.requests.iter().map(|request| self.layout.bytes(&request.rest())).sum()
    }

    /// Bytes that keep the provider sending for a round trip and a margin.
    pub(crate) fn pipeline_bytes(&self) -> u64 {
        let seconds = (self.rtt() + PIPELINE_MARGIN).as_secs_f64();
        bytes_at(self.rate().unwrap_or(0.0), seconds)
    }

    /// Bytes per second while requests are in flight; `None` before it is measured.
    pub(crate) fn rate(&self) -> Option<f64> {
        self.rate.estimate()
    }

    /// Round-trip time, measured or assumed.
    pub(crate) fn rtt(&self) -> Duration {
        self.rtt.unwrap_or(DEFAULT_RTT)
    }

    /// Time without any activity although data is due, beyond a round trip. Estimates assume that the stall lasts as
    /// long again, so a stalled provider looks slower the longer it stalls.
    pub(crate) fn stall(&self, now: Timestamp) -> Duration {
        if self.requests.is_empty() {
            Duration::ZERO
        } else {
            now.since(self.health.last_activity() + self.rtt() + PIPELINE_MARGIN)
        }
    }

    /// True if it has requests in flight and delivers.
    pub(crate) fn is_delivering(&self, now: Timestamp) -> bool {
        !self.requests.is_empty() && self.stall(now) == Duration::ZERO
    }

    pub(crate) fn push(&mut self, now: Timestamp, id: RequestId, groups: Range<u64>) {
        if self.requests.is_empty() && self.suspended_until.is_none() {
            self.health.start_silence(now);
        }
        self.next_piece = Some(self.layout.piece_of(groups.end - 1) + 1);
        self.reserved_since = None;
        self.requests.push_back(Request { id, proven: groups.start, groups, has_started: false });
    }

    /// Notes that everything it could send now is reserved for other receivers.
    pub(crate) fn reserve_for_others(&mut self, now: Timestamp) {
        self.reserved_for_others = true;
        if self.requests.is_empty() {
            self.reserved_since.get_or_insert(now);
        }
    }

    /// True if the reservation has lasted long enough: the other receivers do not fetch the pieces, or the active
    /// providers are slow, or send keep-alives without data.
    pub(crate) fn is_reservation_over(&self, now: Timestamp) -> bool {
        self.reserved_since.is_some_and(|since| now.since(since) >= MAX_RESERVED_TIME)
    }

    pub(crate) fn request(&self, id: RequestId) -> Option<&Request> {
        self.requests.iter().find(|request| request.id == id)
    }

    pub(crate) fn request_mut(&mut self, id: RequestId) -> Option<&mut Request> {
        self.requests.iter_mut().find(|request| request.id == id)
    }

    pub(crate) fn remove(&mut self, id: RequestId) -> Option<Request> {
        let index = self.requests.iter().position(|request| request.id == id)?;
        let request = self.requests.remove(index);
        if self.requests.is_empty() {
            self.rate.pause();
        }
        request
    }

    pub(crate) fn on_activity(&mut self, now: Timestamp, rtt: Option<Duration>) {
        self.health.on_activity(now);
        self.suspended_until = None;
        self.rtt = rtt.or(self.rtt);
    }

    /// Records verified bytes of it, including those that were verified before.
    pub(crate) fn on_delivery(&mut self, now: Timestamp, bytes: u64) {
        self.on_activity(now, None);
        self.health.on_delivery(now);
        self.bytes_proven += bytes;
        if !self.requests.is_empty() {
            self.rate.measure(now, bytes);
        }
    }

    /// Records a failure and returns the number of consecutive ones.
    pub(crate) fn record_failure(&mut self) -> u32 {
        self.health.record_failure()
    }

    /// Records a refusal as busy and starts a wait; returns its end.
    pub(crate) fn on_refusal(
        &mut self,
        now: Timestamp,
        retry_after: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) -> Timestamp {
        self.health.record_refusal();
        self.back_off(now, retry_after, rng)
    }

    /// Starts or extends a wait of at least `requested`; returns its end.
    pub(crate) fn back_off(
        &mut self,
        now: Timestamp,
        requested: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) -> Timestamp {
        self.suspended_until = None;
        self.health.back_off(now, requested, rng)
    }

    /// Suspends a stalled provider that loses work to another one, for as long as it has stalled. Its silence counts
    /// from its last activity even if it gets requests again, so two unresponsive providers do not pass work back
    /// and forth.
    pub(crate) fn suspend_if_stalled(&mut self, now: Timestamp) {
        let stall = self.stall(now);
        if stall > Duration::ZERO {
            self.suspended_until = Some(now + stall);
        }
    }

    pub(crate) fn suspended_until(&self) -> Option<Timestamp> {
        self.suspended_until
    }

    /// Extends the silence deadline because this peer itself did not run for `stall`.
    pub(crate) fn extend_deadline(&mut self, stall: Duration) {
        self.health.extend_deadline(stall);
    }

    /// End of its wait after a failure or a refusal.
    pub(crate) fn retry_at(&self) -> Option<Timestamp> {
        self.health.retry_at()
    }

    /// Ends a wait that has expired.
    pub(crate) fn end_wait(&mut self, now: Timestamp) {
        if self.health.end_wait(now) {
            self.exhausted = false;
        }
    }

    /// Time at which its silence becomes a failure.
    pub(crate) fn silence_deadline(&self) -> Option<Timestamp> {
        let is_due = !self.requests.is_empty() || self.suspended_until.is_some();
        is_due.then(|| self.health.silence_deadline())
    }
}
