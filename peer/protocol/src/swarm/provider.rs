//! What is known of one owner: what it has, how fast it is, what it is asked for.
//!
//! | state | is asked | leaves it for |
//! |---|---|---|
//! | ready | yes | doubted: lost work to another while it was quiet; waiting: busy, silent or broken; dropped: lied, changed, not here, refused, failed too often |
//! | doubted | no | ready: it is heard, or it has been left alone for as long as it was quiet; waiting: silent |
//! | waiting | no; requests under way go on | ready: the wait is over |
//!
//! Dropped owners are not kept, but for the liars' numbers.

use std::{collections::VecDeque, ops::Range, time::Duration};

use shared::{
    limits::MIN_REQUESTS_PER_PROVIDER,
    time::Timestamp,
};
use crate::swarm::params::DEFAULT_RTT;
use crate::swarm::params::FIRST_RATE_WINDOW;
use crate::swarm::params::MAX_RESERVED_TIME;
use crate::swarm::params::MAX_BEGUN_PIECES_PER_PROVIDER;
use crate::provider_health::MAX_PROVIDER_BACKOFF;
use crate::swarm::params::MAX_REQUESTS_PER_PROVIDER;
use crate::provider_health::PROVIDER_BACKOFF;
use crate::provider_health::PROVIDER_SILENCE;
use crate::swarm::params::PIPELINE_MARGIN;
use crate::swarm::params::RATE_WINDOW;

use super::{
    event::{Has, RequestId},
    have::Holdings,
    piece::{Layout, Pieces},
};

/// Part of the estimate that one measurement replaces: three windows make up for most of a change.
const RATE_GAIN: f64 = 0.4;

/// A request under way.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    /// What is wanted of it; its end moves down when it is cut.
    pub(crate) groups: Range<u64>,
    /// Up to where its groups are proven.
    pub(crate) proven: u64,
    /// Its owner has begun to send.
    pub(crate) has_begun: bool,
}

impl Request {
    /// What is still to come of it.
    pub(crate) fn rest(&self) -> Range<u64> {
        self.proven..self.groups.end
    }

    /// Whether it is on its way.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun || self.proven > self.groups.start
    }
}

/// One owner.
#[derive(Debug)]
pub(crate) struct Owner {
    layout: Layout,
    /// `None`: everything.
    holdings: Option<Holdings>,
    /// In the order in which they were made, which is the order in which they are expected to be served.
    pub(crate) requests: VecDeque<Request>,
    rate: Rate,
    rtt: Option<Duration>,
    /// When it last showed life; while it is asked for nothing, when it was asked last.
    heard: Timestamp,
    waiting_until: Option<Timestamp>,
    doubted_until: Option<Timestamp>,
    failures: u32,
    refusals: u32,
    /// There was nothing to ask it for when it was last looked at.
    pub(crate) starved: bool,
    /// When it was last looked at, what it could be asked for was left to other receivers.
    pub(crate) left_alone: bool,
    /// Since when it has been left alone without being asked for anything.
    left_since: Option<Timestamp>,
    /// The piece behind the last one it was asked for, where it goes on if it can.
    pub(crate) next_piece: Option<u32>,
    /// Bytes proven of it.
    pub(crate) bytes: u64,
    /// Bytes proven of it that were there already.
    pub(crate) bytes_twice: u64,
}

impl Owner {
    pub(crate) fn new(now: Timestamp, layout: Layout, has: &Has, rtt: Option<Duration>, pieces: &mut Pieces) -> Self {
        let holdings = match has {
            Has::All => {
                pieces.add_full_owner();
                None
            }
            Has::Groups(_) => Some(Holdings::new(layout, MAX_BEGUN_PIECES_PER_PROVIDER)),
        };
        let mut owner = Self {
            layout,
            holdings,
            requests: VecDeque::new(),
            rate: Rate::default(),
            rtt,
            heard: now,
            waiting_until: None,
            doubted_until: None,
            failures: 0,
            refusals: 0,
            starved: false,
            left_alone: false,
            left_since: None,
            next_piece: None,
            bytes: 0,
            bytes_twice: 0,
        };
        if let Has::Groups(groups) = has {
            owner.gain(groups.iter(), pieces);
        }
        owner
    }

    /// It is there again, perhaps with more.
    pub(crate) fn renew(&mut self, has: &Has, rtt: Option<Duration>, pieces: &mut Pieces) {
        self.rtt = rtt.or(self.rtt);
        self.waiting_until = None;
        self.doubted_until = None;
        self.failures = 0;
        self.refusals = 0;
        match has {
            Has::Groups(groups) => {
                self.gain(groups.iter(), pieces);
            }
            Has::All if self.holdings.is_some() => {
                self.withdraw(pieces);
                self.holdings = None;
                pieces.add_full_owner();
                self.starved = false;
            }
            Has::All => {}
        }
    }

    /// Returns the pieces that it has whole now and had not before.
    pub(crate) fn gain(&mut self, runs: impl Iterator<Item = Range<u64>>, pieces: &mut Pieces) -> Vec<u32> {
        let mut gained = Vec::new();
        let Some(holdings) = &mut self.holdings else { return gained };
        for groups in runs {
            holdings.insert(groups, |piece| gained.push(piece));
        }
        gained.iter().for_each(|&piece| pieces.add_owner(piece));
        self.starved = false;
        gained
    }

    /// Its pieces do not count as available any more.
    pub(crate) fn withdraw(&self, pieces: &mut Pieces) {
        match &self.holdings {
            None => pieces.remove_full_owner(),
            Some(holdings) => holdings.whole().for_each(|piece| pieces.remove_owner(piece)),
        }
    }

    pub(crate) fn has_all(&self) -> bool {
        self.holdings.is_none()
    }

    pub(crate) fn has_piece(&self, piece: u32) -> bool {
        self.holdings.as_ref().is_none_or(|holdings| holdings.has_piece(piece))
    }

    pub(crate) fn has_group(&self, group: u64) -> bool {
        self.holdings.as_ref().is_none_or(|holdings| holdings.has_group(group))
    }

    /// Pieces of which it has some groups and not all.
    pub(crate) fn begun(&self) -> impl Iterator<Item = u32> {
        self.holdings.iter().flat_map(Holdings::begun)
    }

    /// Whether it may be asked for more: it is ready, brings what it is asked for, and has less to do than lasts for a
    /// round trip.
    pub(crate) fn has_room(&self, now: Timestamp) -> bool {
        self.waiting_until.is_none()
            && self.doubted_until.is_none_or(|until| until <= now)
            && self.quiet(now) == Duration::ZERO
            && self.requests.len() < MAX_REQUESTS_PER_PROVIDER
            && (self.requests.len() < MIN_REQUESTS_PER_PROVIDER || self.backlog_bytes() < self.pipeline_bytes())
    }

    /// Bytes that are on their way or on the owner's list.
    pub(crate) fn backlog_bytes(&self) -> u64 {
        self.requests.iter().map(|request| self.layout.bytes(&request.rest())).sum()
    }

    /// Bytes that keep the owner at work for a round trip and a margin.
    pub(crate) fn pipeline_bytes(&self) -> u64 {
        let seconds = (self.rtt() + PIPELINE_MARGIN).as_secs_f64();
        bytes_at(self.rate.estimate.unwrap_or(0.0), seconds)
    }

    /// Bytes a second while it was asked for something; `None` before it was measured.
    pub(crate) fn rate(&self) -> Option<f64> {
        self.rate.estimate
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.rtt.unwrap_or(DEFAULT_RTT)
    }

    /// For how long it has brought nothing though it was asked, beyond what a round trip explains. It is taken to
    /// last as long again, which makes a stalled owner look slower by and by.
    pub(crate) fn quiet(&self, now: Timestamp) -> Duration {
        if self.requests.is_empty() { Duration::ZERO } else { now.since(self.heard + self.rtt() + PIPELINE_MARGIN) }
    }

    /// Whether it is asked for something and brings it.
    pub(crate) fn is_at_work(&self, now: Timestamp) -> bool {
        !self.requests.is_empty() && self.quiet(now) == Duration::ZERO
    }

    pub(crate) fn push(&mut self, now: Timestamp, id: RequestId, groups: Range<u64>) {
        if self.requests.is_empty() && self.doubted_until.is_none() {
            self.heard = now;
        }
        self.next_piece = Some(self.layout.piece_of(groups.end - 1) + 1);
        self.left_since = None;
        self.requests.push_back(Request { id, proven: groups.start, groups, has_begun: false });
    }

    /// What it could be asked for is left to other receivers.
    pub(crate) fn leave_alone(&mut self, now: Timestamp) {
        self.left_alone = true;
        if self.requests.is_empty() {
            self.left_since.get_or_insert(now);
        }
    }

    /// Whether others have had their time: what they were left they do not fetch, or those who bring something meanwhile are slow,
    /// or pretend to bring something.
    pub(crate) fn was_left_for_long(&self, now: Timestamp) -> bool {
        self.left_since.is_some_and(|since| now.since(since) >= MAX_RESERVED_TIME)
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

    pub(crate) fn heard(&mut self, now: Timestamp, rtt: Option<Duration>) {
        self.heard = self.heard.max(now);
        self.doubted_until = None;
        self.rtt = rtt.or(self.rtt);
    }

    /// Groups of it are proven: `bytes`, of which `bytes_twice` were there already.
    pub(crate) fn delivered(&mut self, now: Timestamp, bytes: u64, bytes_twice: u64) {
        self.heard(now, None);
        self.failures = 0;
        self.refusals = 0;
        self.bytes += bytes;
        self.bytes_twice += bytes_twice;
        if !self.requests.is_empty() {
            self.rate.measure(now, bytes);
        }
    }

    /// Another failure in a row: how many now. What fails while it is waiting already is the same failure.
    pub(crate) fn failed(&mut self) -> u32 {
        self.failures += u32::from(self.waiting_until.is_none());
        self.failures
    }

    /// It has no slot free, as a polite owner says: no failure, but the next wait is longer. Returns when it ends.
    pub(crate) fn refused_as_busy(
        &mut self,
        now: Timestamp,
        retry_after: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) -> Timestamp {
        self.refusals += u32::from(self.waiting_until.is_none());
        self.wait(now, retry_after, rng)
    }

    /// Leaves it alone: for `wanted` at least, longer with each failure in a row, and not in step with other peers.
    /// Returns until when.
    pub(crate) fn wait(&mut self, now: Timestamp, wanted: Option<Duration>, rng: &mut fastrand::Rng) -> Timestamp {
        let doublings = self.failures.max(self.refusals).saturating_sub(1).min(16);
        let backoff = PROVIDER_BACKOFF.saturating_mul(1 << doublings).min(MAX_PROVIDER_BACKOFF);
        let wanted = wanted.unwrap_or_default().min(MAX_PROVIDER_BACKOFF);
        let until = now + wanted.max(backoff / 2) + (backoff / 2).mul_f64(rng.f64());
        let until = self.waiting_until.map_or(until, |earlier| earlier.max(until));
        self.waiting_until = Some(until);
        self.doubted_until = None;
        until
    }

    /// It loses work to another. If it was quiet, it is left alone for as long again; and if it stays quiet when it is
    /// asked then, that counts from the first time on: so two owners that have died do not pass work to and fro.
    pub(crate) fn doubt(&mut self, now: Timestamp) {
        let quiet = self.quiet(now);
        if quiet > Duration::ZERO {
            self.doubted_until = Some(now + quiet);
        }
    }

    pub(crate) fn doubted_until(&self) -> Option<Timestamp> {
        self.doubted_until
    }

    /// This peer itself slept for `late`.
    pub(crate) fn excuse(&mut self, late: Duration) {
        self.heard += late;
    }

    pub(crate) fn waiting_until(&self) -> Option<Timestamp> {
        self.waiting_until
    }

    /// Ends a wait that is over.
    pub(crate) fn wake(&mut self, now: Timestamp) {
        if self.waiting_until.is_some_and(|until| until <= now) {
            self.waiting_until = None;
            self.starved = false;
        }
    }

    /// When its silence becomes a failure.
    pub(crate) fn silence_deadline(&self) -> Option<Timestamp> {
        (!self.requests.is_empty() || self.doubted_until.is_some()).then(|| self.heard + PROVIDER_SILENCE)
    }
}

/// Bytes a second, over the time in which something was asked for.
#[derive(Debug, Default)]
struct Rate {
    estimate: Option<f64>,
    window_bytes: u64,
    window: Duration,
    /// Up to when the window is measured; `None` while nothing comes.
    until: Option<Timestamp>,
}

impl Rate {
    fn measure(&mut self, now: Timestamp, bytes: u64) {
        // The first bytes after a pause waited for a round trip: they only start the clock.
        let Some(until) = self.until.replace(now) else { return };
        self.window += now.since(until);
        self.window_bytes += bytes;
        let enough = if self.estimate.is_none() { FIRST_RATE_WINDOW } else { RATE_WINDOW };
        if self.window < enough {
            return;
        }
        let sample = self.window_bytes as f64 / self.window.as_secs_f64();
        self.estimate = Some(self.estimate.map_or(sample, |old| old + (sample - old) * RATE_GAIN));
        self.window = Duration::ZERO;
        self.window_bytes = 0;
    }

    fn pause(&mut self) {
        self.until = None;
    }
}

/// Bytes that come in `seconds` at a rate, rounded down.
pub(crate) fn bytes_at(bytes_per_second: f64, seconds: f64) -> u64 {
    // `as` saturates, and neither is negative.
    (bytes_per_second * seconds) as u64
}
