//! Moving work: owners that have nothing to do take over the ends of what others have not got to, and in the endgame
//! fetch a second time what others are slow to bring.

use std::{ops::Range, time::Duration};

use shared::{
    limits::{BALANCE_GAIN, BALANCE_INTERVAL, ENDGAME_GAIN, GROUP_BYTES, PIPELINE_MARGIN},
    time::Timestamp,
};

use super::{
    Swarm,
    event::{Action, OwnerId, RequestId},
    owner::{Owner, Request, bytes_at},
    piece::PieceState,
};

/// Bytes a second of owners when none was measured yet.
const UNKNOWN_RATE: f64 = 1e6;

/// An owner's outlook: how fast it is and when it will be through.
#[derive(Debug, Clone, Copy)]
struct Outlook {
    rate: f64,
    /// Seconds until what it is asked for is here.
    done_in: f64,
}

impl Swarm {
    /// Lets each idle owner take over one run of groups, if that brings them earlier.
    pub(super) fn balance(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.balance = false;
        let is_idle = |owner: &Owner| owner.starved && owner.has_room();
        let idle: Vec<_> = self.owners.iter().filter(|(_, owner)| is_idle(owner)).map(|(&id, _)| id).collect();
        if idle.is_empty() || self.owners.values().all(|owner| owner.requests.is_empty()) {
            return;
        }
        let usual_rate = self.usual_rate();
        for id in idle {
            if !self.may_be_active(id) {
                break;
            }
            if let Some((victim, groups)) = self.work_to_take(now, id, usual_rate) {
                self.cut(victim, groups.start, out);
                self.ask(now, id, groups, out);
                // What came back has gone out again.
                self.came_back = false;
            } else if self.pieces.missing() == 0
                && let Some(groups) = self.work_to_double(now, id, usual_rate)
            {
                self.ask(now, id, groups, out);
            }
        }
        self.balance_from = now + BALANCE_INTERVAL;
        self.arm(self.balance_from);
    }

    /// The mean of the measured rates, for owners without one.
    fn usual_rate(&self) -> f64 {
        let rates: Vec<f64> = self.owners.values().filter_map(Owner::rate).collect();
        if rates.is_empty() { UNKNOWN_RATE } else { (rates.iter().sum::<f64>() / rates.len() as f64).max(1.0) }
    }

    fn outlook(owner: &Owner, usual_rate: f64) -> Outlook {
        let rate = owner.rate().unwrap_or(usual_rate).max(1.0);
        Outlook { rate, done_in: owner.rtt().as_secs_f64() + owner.backlog_bytes() as f64 / rate }
    }

    /// The end of a request of the owner that will be through last, as much of it as makes both finish together.
    fn work_to_take(&self, now: Timestamp, thief: OwnerId, usual_rate: f64) -> Option<(RequestId, Range<u64>)> {
        let taker = self.owners.get(&thief)?;
        let own = Self::outlook(taker, usual_rate);
        let mut best: Option<(f64, RequestId, Range<u64>)> = None;
        for (_, owner) in self.owners.iter().filter(|&(&id, _)| id != thief) {
            let quiet = owner.quiet(now);
            let rate = Self::outlook(owner, usual_rate).rate;
            let mut ahead = 0;
            for (index, request) in owner.requests.iter().enumerate() {
                ahead += self.layout.bytes(&request.rest());
                let done_in = quiet.as_secs_f64() + ahead as f64 / rate;
                if best.as_ref().is_some_and(|(latest, ..)| *latest >= done_in) {
                    continue;
                }
                let is_flowing = quiet == Duration::ZERO && (index == 0 || request.has_started());
                let on_its_way = if is_flowing { bytes_at(rate, (owner.rtt() + PIPELINE_MARGIN).as_secs_f64()) } else { 0 };
                let first = request.proven + on_its_way.div_ceil(GROUP_BYTES);
                if let Some(groups) = self.end_to_take(taker, own, request, first, Outlook { rate, done_in }) {
                    best = Some((done_in, request.id, groups));
                }
            }
        }
        best.map(|(_, request, groups)| (request, groups))
    }

    /// Whole pieces from the end of `request`, none before the group `first`.
    fn end_to_take(&self, taker: &Owner, own: Outlook, request: &Request, first: u64, its: Outlook) -> Option<Range<u64>> {
        // own.done_in + x / own.rate = its.done_in - x / its.rate
        let even = (its.done_in - own.done_in) / (1.0 / own.rate + 1.0 / its.rate);
        let mut taken = request.groups.end..request.groups.end;
        for piece in self.layout.pieces_of(&request.rest()).rev() {
            let start = self.layout.groups_of(piece).start.max(request.groups.start);
            let is_free = self.pieces.state(piece) == PieceState::Asked(request.id) && taker.has_piece(piece);
            if !is_free || start < first {
                break;
            }
            let bytes = self.layout.bytes(&(start..taken.end)) as f64;
            let is_first = taken.is_empty();
            let pays = own.done_in + bytes / own.rate + BALANCE_GAIN.as_secs_f64() < its.done_in;
            if bytes > even && !(is_first && pays) {
                break;
            }
            taken.start = start;
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// The rest of a piece that another owner is asked for and that this one would bring much earlier.
    fn work_to_double(&self, now: Timestamp, helper: OwnerId, usual_rate: f64) -> Option<Range<u64>> {
        let taker = self.owners.get(&helper)?;
        let own = Self::outlook(taker, usual_rate);
        let mut best: Option<(f64, Range<u64>)> = None;
        for (_, owner) in self.owners.iter().filter(|&(&id, _)| id != helper) {
            let quiet = owner.quiet(now).as_secs_f64();
            let rate = Self::outlook(owner, usual_rate).rate;
            let mut ahead = 0;
            for request in &owner.requests {
                let rest = request.rest();
                for piece in self.layout.pieces_of(&rest) {
                    let all = self.layout.groups_of(piece);
                    let groups = all.start.max(rest.start)..all.end.min(rest.end);
                    let bytes = self.layout.bytes(&groups);
                    ahead += bytes;
                    let its = quiet + ahead as f64 / rate;
                    let mine = own.done_in + bytes as f64 / own.rate;
                    let pays = mine * ENDGAME_GAIN + BALANCE_GAIN.as_secs_f64() < its;
                    let is_single = self.pieces.state(piece) == PieceState::Asked(request.id);
                    let is_latest = best.as_ref().is_none_or(|(latest, _)| *latest < its);
                    if pays && is_single && is_latest && taker.has_piece(piece) {
                        best = Some((its, groups));
                    }
                }
            }
        }
        best.map(|(_, groups)| groups)
    }
}
