//! One download of one version from all its owners at once: which groups to ask of whom, and when to give up on one.
//!
//! Pure: no I/O, no clock, no global randomness. [`Swarm::handle`] takes the time and what happened and hands out what to
//! do; the shell (`download`) opens a bulk stream for each [`Action::Request`] and reports the groups as they are proven.
//! The same seed and the same events give the same actions.
//!
//! | room | what is in it |
//! |---|---|
//! | [`event`] | what goes in and what comes out |
//! | `piece` | pieces and their states, a table |
//! | `holdings` | who has which pieces and groups |
//! | `owner` | one owner: rate, pipeline, silence, waits; a table |
//! | `picker` | which piece next: rarest first, sequential |
//! | `assign` | filling the owners' pipelines |
//! | `status` | what `status` and `--explain` show |
//! | `balance` | moving work from slow owners to idle ones, and the endgame |
//! | [`uploads`], [`rate_limit`], [`hearing`], [`taking`] | the other side: whose request is served next, how fast, and until when |
//!
//! `docs/swarm.md` has the rules, the timings and what was measured in simulation.

mod assign;
pub mod event;
mod have;
mod picker;
mod piece;
mod provider;
mod rebalance;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use shared::{
    group_ranges::GroupRanges,
    limits::OVERSLEPT,
    time::Timestamp,
};
use crate::swarm::params::MAX_SWARM_PROVIDERS;
use crate::provider_health::MAX_PROVIDER_FAILURES;

pub use event::{Action, Dropped, Event, Failure, Has, ProviderId, RequestId};
pub use picker::PickerKind;
pub use status::{OwnerStatus, Progress, Standing};

use have::Holdings;
use picker::Picker;
use piece::{Layout, PieceState, Pieces, Place};
use provider::Owner;

/// What a swarm is made of.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Size of the version, bytes.
    pub size: u64,
    /// Groups that are proven and kept already, by an earlier run.
    pub have: GroupRanges,
    /// In which order pieces are asked for.
    pub picker: PickerKind,
    /// Others who receive the version may turn up at any moment.
    pub expects_receivers: bool,
    /// For choices that shall differ between peers.
    pub seed: u64,
}

/// The scheduler of one download of one version.
#[derive(Debug)]
pub struct Swarm {
    layout: Layout,
    pieces: Pieces,
    have: Holdings,
    owners: BTreeMap<ProviderId, Owner>,
    liars: BTreeSet<ProviderId>,
    picker: Box<dyn Picker>,
    expects_receivers: bool,
    /// Which part of what receivers divide among themselves is this peer's.
    place: Place,
    rng: fastrand::Rng,
    last_serial: u64,
    standing: Standing,
    bytes_proven: u64,
    bytes_twice: u64,
    /// Not later than the end of any silence, wait or doubt.
    timer: Option<Timestamp>,
    fill: Fill,
    /// Owners with requests under way.
    active: usize,
    /// An owner was not asked for anything because so many others are.
    turned_away: bool,
    /// Pieces are missing again: those that had nothing to do may have now.
    came_back: bool,
    /// An owner has nothing to be asked for, now or at all: it may take over work of another ...
    balance: bool,
    /// ... from this time on.
    balance_from: Timestamp,
}

/// Whose pipelines have to be looked at after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    Nobody,
    One(ProviderId),
    All,
}

impl Swarm {
    /// A swarm without owners. With nothing missing it is finished; the first [`Swarm::handle`] says so.
    pub fn new(config: SwarmConfig, now: Timestamp) -> Self {
        let layout = Layout::new(config.size);
        let mut pieces = Pieces::new(&layout);
        let mut have = Holdings::new(layout, usize::MAX);
        let mut bytes_proven = 0;
        for groups in config.have.iter() {
            bytes_proven += have.insert(groups, |piece| {
                pieces.complete(piece);
            });
        }
        Self {
            layout,
            pieces,
            have,
            place: Place::ALONE,
            owners: BTreeMap::new(),
            liars: BTreeSet::new(),
            picker: config.picker.build(),
            expects_receivers: config.expects_receivers,
            rng: fastrand::Rng::with_seed(config.seed),
            last_serial: 0,
            standing: Standing::Running,
            bytes_proven,
            bytes_twice: 0,
            timer: None,
            fill: Fill::All,
            active: 0,
            turned_away: false,
            came_back: false,
            balance: false,
            balance_from: now,
        }
    }

    /// Takes in what happened at `now` and appends what is to be done, in order.
    pub fn handle(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        if self.standing == Standing::Finished {
            return;
        }
        self.excuse_own_sleep(now);
        self.dispatch(now, event, out);
        if self.timer.is_some_and(|due| due <= now) {
            self.run_timers(now, out);
        }
        if self.pieces.is_finished() {
            self.finish(out);
            return;
        }
        if self.standing != Standing::Paused {
            if std::mem::take(&mut self.came_back) {
                self.look_at_all();
            }
            if self.balance && self.balance_from <= now {
                self.look_at_those_left_alone();
            }
            self.fill(now, out);
            if self.balance && self.balance_from <= now {
                self.balance(now, out);
            }
            self.notice_stuck(out);
        }
    }

    /// When [`Event::Tick`] is due at the latest. (A tick too many does no harm.)
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let is_running = matches!(self.standing, Standing::Running);
        self.timer.into_iter().chain((self.balance && is_running).then_some(self.balance_from)).min()
    }

    /// A peer that slept (was stopped, or its machine was) hears nothing and must not blame the owners for it.
    fn excuse_own_sleep(&mut self, now: Timestamp) {
        let late = self.next_deadline().map_or(Duration::ZERO, |due| now.since(due));
        if late > OVERSLEPT {
            self.owners.values_mut().for_each(|owner| owner.excuse(late));
        }
    }

    fn dispatch(&mut self, now: Timestamp, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::ProviderAdded { owner, has, rtt } => self.on_added(now, owner, &has, rtt, out),
            Event::ProviderGained { owner, gained } => self.on_gained(owner, &gained, out),
            Event::ProviderLost { owner } => {
                self.remove_owner(owner);
            }
            Event::Placed { place, receivers } => self.place = Place::new(place, receivers),
            Event::Heard { owner, rtt } => {
                if let Some(known) = self.owners.get_mut(&owner) {
                    known.heard(now, rtt);
                    self.look_at(owner);
                }
            }
            Event::Begun { request } => {
                if let Some(owner) = self.owners.get_mut(&request.owner) {
                    owner.heard(now, None);
                    if let Some(request) = owner.request_mut(request) {
                        request.has_begun = true;
                    }
                    self.look_at(request.owner);
                }
            }
            Event::Verified { request, groups } => self.on_verified(now, request, groups, out),
            Event::RequestDone { request } => {
                // Done with all its groups it is not known any more: the stream ended too early.
                self.on_failed(now, request, Failure::Broken, out);
            }
            Event::RequestFailed { request, why } => self.on_failed(now, request, why, out),
            Event::Tick => {}
            Event::Pause => self.on_pause(out),
            Event::Resume => {
                if self.standing == Standing::Paused {
                    self.standing = Standing::Running;
                    self.look_at_all();
                }
            }
        }
    }

    fn on_added(&mut self, now: Timestamp, id: ProviderId, has: &Has, rtt: Option<Duration>, out: &mut Vec<Action>) {
        if self.liars.contains(&id) {
            out.push(Action::Drop { owner: id, why: Dropped::Lied });
        } else if let Some(owner) = self.owners.get_mut(&id) {
            owner.renew(has, rtt, &mut self.pieces);
            self.look_at(id);
        } else if self.owners.len() >= MAX_SWARM_PROVIDERS {
            out.push(Action::Drop { owner: id, why: Dropped::TooMany });
        } else {
            self.owners.insert(id, Owner::new(now, self.layout, has, rtt, &mut self.pieces));
            if self.owners.len() == 2 {
                self.share_out(out);
            }
            self.look_at(id);
        }
    }

    fn on_gained(&mut self, id: ProviderId, gained: &GroupRanges, out: &mut Vec<Action>) {
        let Some(owner) = self.owners.get_mut(&id) else { return };
        let pieces = owner.gain(gained.iter(), &mut self.pieces);
        self.look_at(id);
        for piece in pieces {
            self.make_way(piece, out);
        }
    }

    /// Two receivers must not go through the same part of an only owner side by side. When another has got a piece which
    /// only one owner had and which is on its way from there, its run is ahead of this one: what was asked behind the
    /// piece is given up, and the picker looks for another place.
    fn make_way(&mut self, piece: u32, out: &mut Vec<Action>) {
        let PieceState::Asked(request) = self.pieces.state(piece) else { return };
        if self.pieces.owners(piece) != 2 {
            return;
        }
        let Some(owner) = self.owners.get_mut(&request.owner) else { return };
        owner.next_piece = None;
        let behind = owner.requests.iter().filter(|later| later.id.serial > request.serial);
        let behind: Vec<_> = behind.filter(|later| !later.has_begun()).map(|later| later.id).collect();
        let groups = self.layout.groups_of(piece);
        let has_begun = owner.request(request).is_some_and(|request| {
            request.proven > groups.start || request.has_begun && groups.contains(&request.groups.start)
        });
        self.cut(request, if has_begun { groups.end } else { groups.start }, out);
        for later in behind {
            self.end_request(later);
            out.push(Action::Cancel { request: later });
        }
    }

    fn on_verified(&mut self, now: Timestamp, id: RequestId, groups: Range<u64>, out: &mut Vec<Action>) {
        if groups.is_empty() || groups.end > self.layout.groups() {
            return;
        }
        let mut completed = Vec::new();
        let bytes = self.layout.bytes(&groups);
        let new_bytes = self.have.insert(groups.clone(), |piece| completed.push(piece));
        self.bytes_proven += new_bytes;
        self.bytes_twice += bytes - new_bytes;
        let mut is_done = false;
        if let Some(owner) = self.owners.get_mut(&id.owner) {
            owner.delivered(now, bytes, bytes - new_bytes);
            if let Some(request) = owner.request_mut(id) {
                request.proven = request.proven.max(groups.end);
                is_done = request.proven >= request.groups.end;
            }
            self.look_at(id.owner);
        }
        for piece in completed {
            for other in self.pieces.complete(piece).into_iter().flatten().filter(|&other| other != id) {
                self.spare(other, piece, out);
            }
        }
        if is_done {
            self.end_request(id);
        }
    }

    fn on_failed(&mut self, now: Timestamp, id: RequestId, why: Failure, out: &mut Vec<Action>) {
        if why == Failure::Lied {
            // Even when the request is over: what it tells of the owner stays true.
            self.liars.insert(id.owner);
            self.end_request(id);
            self.drop_owner(id.owner, Dropped::Lied, out);
            return;
        }
        if !self.end_request(id) {
            return;
        }
        match why {
            Failure::Lied => {}
            Failure::Changed => self.drop_owner(id.owner, Dropped::Changed, out),
            Failure::NotHere => self.drop_owner(id.owner, Dropped::NotHere, out),
            Failure::Refused => self.drop_owner(id.owner, Dropped::Refused, out),
            Failure::Busy { retry_after } => {
                if let Some(owner) = self.owners.get_mut(&id.owner) {
                    let until = owner.refused_as_busy(now, retry_after, &mut self.rng);
                    self.arm(until);
                }
            }
            Failure::Silent | Failure::Broken => self.on_owner_failing(now, id.owner, out),
        }
    }

    /// An owner is silent or broke off: what it was to bring goes to others, and it is left alone for a while.
    fn on_owner_failing(&mut self, now: Timestamp, id: ProviderId, out: &mut Vec<Action>) {
        self.cancel_all(id, out);
        let Some(owner) = self.owners.get_mut(&id) else { return };
        if owner.failed() >= MAX_PROVIDER_FAILURES {
            self.drop_owner(id, Dropped::Failing, out);
        } else {
            let until = owner.wait(now, None, &mut self.rng);
            self.arm(until);
        }
    }

    fn on_pause(&mut self, out: &mut Vec<Action>) {
        self.standing = Standing::Paused;
        let owners: Vec<_> = self.owners.keys().copied().collect();
        for owner in owners {
            self.cancel_all(owner, out);
        }
    }

    fn run_timers(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        let mut silent = Vec::new();
        for (&id, owner) in &mut self.owners {
            owner.wake(now);
            if owner.silence_deadline().is_some_and(|deadline| deadline <= now) {
                silent.push(id);
            }
        }
        for id in silent {
            self.on_owner_failing(now, id, out);
        }
        // One whose wait or doubt is over may be asked again; all are looked at, which is cheap where nothing is new.
        self.fill = Fill::All;
        self.balance = true;
        let silences = self.owners.values().filter_map(Owner::silence_deadline);
        let waits = self.owners.values().filter_map(Owner::waiting_until);
        let doubts = self.owners.values().filter_map(Owner::doubted_until).filter(|until| *until > now);
        self.timer = silences.chain(waits).chain(doubts).min();
    }

    fn arm(&mut self, due: Timestamp) {
        self.timer = Some(self.timer.map_or(due, |timer| timer.min(due)));
    }

    fn look_at(&mut self, owner: ProviderId) {
        self.fill = match self.fill {
            Fill::Nobody => Fill::One(owner),
            Fill::One(other) if other == owner => Fill::One(owner),
            Fill::One(_) | Fill::All => Fill::All,
        };
    }

    /// What was left to others may be there by now, or nobody fetches it.
    fn look_at_those_left_alone(&mut self) {
        let owners = self.owners.iter_mut();
        let left_alone: Vec<_> =
            owners.filter_map(|(&id, owner)| std::mem::take(&mut owner.left_alone).then_some(id)).collect();
        left_alone.into_iter().for_each(|id| self.look_at(id));
    }

    fn look_at_all(&mut self) {
        self.owners.values_mut().for_each(|owner| owner.starved = false);
        self.fill = Fill::All;
    }

    fn drop_owner(&mut self, id: ProviderId, why: Dropped, out: &mut Vec<Action>) {
        for request in self.remove_owner(id) {
            out.push(Action::Cancel { request });
        }
        out.push(Action::Drop { owner: id, why });
    }

    /// Forgets an owner; its work comes back. Returns the requests that it had.
    fn remove_owner(&mut self, id: ProviderId) -> Vec<RequestId> {
        let Some(owner) = self.owners.get(&id) else { return Vec::new() };
        owner.withdraw(&mut self.pieces);
        let requests: Vec<_> = owner.requests.iter().map(|request| request.id).collect();
        for &request in &requests {
            self.end_request(request);
        }
        self.owners.remove(&id);
        requests
    }

    fn cancel_all(&mut self, id: ProviderId, out: &mut Vec<Action>) {
        let Some(owner) = self.owners.get(&id) else { return };
        let requests: Vec<_> = owner.requests.iter().map(|request| request.id).collect();
        for request in requests {
            self.end_request(request);
            out.push(Action::Cancel { request });
        }
    }

    /// A request is over; what it did not bring is missing again. Returns whether it was under way.
    fn end_request(&mut self, id: RequestId) -> bool {
        let Some(owner) = self.owners.get_mut(&id.owner) else { return false };
        let Some(request) = owner.remove(id) else { return false };
        self.active -= usize::from(owner.requests.is_empty());
        self.release(id, &request.groups);
        self.look_at(id.owner);
        true
    }

    fn release(&mut self, id: RequestId, groups: &Range<u64>) {
        let missing = self.pieces.missing();
        for piece in self.layout.pieces_of(groups) {
            self.pieces.release(piece, id);
        }
        self.came_back |= self.pieces.missing() > missing;
    }

    /// Wants nothing from `at_group` (where a piece begins) on of a request.
    fn cut(&mut self, id: RequestId, at_group: u64, out: &mut Vec<Action>) {
        let Some(request) = self.owners.get_mut(&id.owner).and_then(|owner| owner.request_mut(id)) else { return };
        if at_group <= request.proven {
            self.end_request(id);
            out.push(Action::Cancel { request: id });
        } else if at_group < request.groups.end {
            let gone = at_group..std::mem::replace(&mut request.groups.end, at_group);
            self.release(id, &gone);
            out.push(Action::Truncate { request: id, at_group });
        }
    }

    /// A piece that a request was to bring has come by another: saves the rest of it if nothing lies behind it.
    fn spare(&mut self, id: RequestId, piece: u32, out: &mut Vec<Action>) {
        let Some(request) = self.owners.get(&id.owner).and_then(|owner| owner.request(id)) else { return };
        let piece_groups = self.layout.groups_of(piece);
        if request.groups.end <= piece_groups.end {
            self.cut(id, piece_groups.start, out);
        }
    }

    fn finish(&mut self, out: &mut Vec<Action>) {
        let owners: Vec<_> = self.owners.keys().copied().collect();
        for owner in owners {
            self.cancel_all(owner, out);
        }
        self.standing = Standing::Finished;
        self.timer = None;
        out.push(Action::Finished);
    }

    fn notice_stuck(&mut self, out: &mut Vec<Action>) {
        let was_stuck = self.standing == Standing::Stuck;
        let is_stuck = self.active == 0 && !self.is_there_hope();
        self.standing = if is_stuck { Standing::Stuck } else { Standing::Running };
        if is_stuck && !was_stuck {
            out.push(Action::Stuck);
        }
    }

    /// Whether an owner, waiting or not, has anything that is missing.
    fn is_there_hope(&self) -> bool {
        let mut missing = (0..self.pieces.count()).filter(|&piece| self.pieces.state(piece) == PieceState::Missing);
        let has_part = |owner: &Owner, piece| {
            let mut groups = self.layout.groups_of(piece);
            groups.any(|group| owner.has_group(group) && !self.have.has_group(group))
        };
        missing.any(|piece| self.pieces.owners(piece) > 0)
            || self.owners.values().any(|owner| owner.begun().any(|piece| has_part(owner, piece)))
    }
}

#[cfg(test)]
mod tests;
