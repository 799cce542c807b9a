//! Moving work: owners that have nothing to do take over the ends of what others have not got to, and in the endgame
//! fetch a second time what others are slow to bring.

use std::{ops::Range, time::Duration};

use shared::{
    limits::GROUP_BYTES,
    time::Timestamp,
};
use crate::swarm::params::BALANCE_GAIN;
use crate::swarm::params::BALANCE_INTERVAL;
use crate::swarm::params::ENDGAME_GAIN;
use crate::swarm::params::MAX_ACTIVE_PROVIDERS;
use crate::swarm::params::PIPELINE_MARGIN;

use super::{
    Swarm,
    event::{Action, ProviderId, RequestId},
    piece::PieceState,
    provider::{Owner, bytes_at},
};

/// Bytes a second of owners when none was measured yet.
const UNKNOWN_RATE: f64 = 1e6;

/// An owner that has nothing to do, or little.
struct Helper<'a> {
    owner: &'a Owner,
    id: ProviderId,
    /// Bytes a second.
    rate: f64,
    /// Seconds until it could begin with something new.
    free_in: f64,
}

/// A request under way, as seen by one who could take it over.
struct Burden {
    request: RequestId,
    /// What is still to come of it.
    rest: Range<u64>,
    /// The first group that is not on its way yet.
    takeable_from: u64,
    /// Its owner's bytes a second.
    rate: f64,
    /// Seconds until it is through.
    done_in: f64,
}

impl Swarm {
    /// Lets each idle owner, the fastest first, take over one run of groups, if that brings them earlier.
    pub(crate) fn balance(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        // Again later, even where nobody can help just now: a slow owner's work will not get better by itself.
        let is_left_alone = self.owners.values().any(|owner| owner.left_alone);
        self.balance = is_left_alone || self.active > 0 && self.owners.values().any(|owner| owner.starved);
        self.balance_from = now + BALANCE_INTERVAL;
        if !self.balance {
            return;
        }
        let usual_rate = self.usual_rate();
        let can_help = |owner: &Owner| owner.starved && self.may_be_asked(owner) && owner.has_room(now);
        let helpers = self.owners.iter().filter(|(_, owner)| can_help(owner));
        let mut helpers: Vec<_> = helpers.map(|(&id, owner)| (id, owner.rate().unwrap_or_default())).collect();
        helpers.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        helpers.truncate(MAX_ACTIVE_PROVIDERS);
        let mut burdens = self.burdens(now, usual_rate);
        for (id, _) in helpers {
            let Some(owner) = self.owners.get(&id).filter(|owner| self.may_be_asked(owner)) else { continue };
            let rate = owner.rate().unwrap_or(usual_rate).max(1.0);
            let free_in = owner.rtt().as_secs_f64() + owner.backlog_bytes() as f64 / rate;
            let helper = Helper { owner, id, rate, free_in };
            if let Some((request, groups)) = self.work_to_take(&helper, &burdens) {
                if let Some(owner) = self.owners.get_mut(&request.owner) {
                    owner.doubt(now);
                }
                self.cut(request, groups.start, out);
                // What came back goes out again, unless it has gaps.
                let run = self.missing_run(&groups);
                self.came_back = run.as_ref().is_none_or(|run| run.end < groups.end);
                if let Some(run) = run {
                    self.ask(now, id, run, out);
                }
            } else if let Some(run) = self.work_to_double(&helper, &burdens) {
                self.ask(now, id, run, out);
            } else {
                continue;
            }
            burdens = self.burdens(now, usual_rate);
        }
    }

    /// The first groups of a run that are not there: a request that was cancelled since may have brought some.
    fn missing_run(&self, groups: &Range<u64>) -> Option<Range<u64>> {
        let is_missing = |group: &u64| !self.have.has_group(*group);
        let start = groups.clone().find(is_missing)?;
        Some(start..(start..groups.end).find(|group| !is_missing(group)).unwrap_or(groups.end))
    }

    /// The mean of the measured rates, for owners without one.
    fn usual_rate(&self) -> f64 {
        let rates: Vec<f64> = self.owners.values().filter_map(Owner::rate).collect();
        if rates.is_empty() { UNKNOWN_RATE } else { (rates.iter().sum::<f64>() / rates.len() as f64).max(1.0) }
    }

    /// All requests under way, those that will be through last first.
    fn burdens(&self, now: Timestamp, usual_rate: f64) -> Vec<Burden> {
        let mut burdens = Vec::new();
        for owner in self.owners.values().filter(|owner| !owner.requests.is_empty()) {
            let rate = owner.rate().unwrap_or(usual_rate).max(1.0);
            let quiet = owner.quiet(now);
            let mut done_in = quiet.as_secs_f64();
            for (index, request) in owner.requests.iter().enumerate() {
                done_in += self.layout.bytes(&request.rest()) as f64 / rate;
                let is_flowing = quiet == Duration::ZERO && (index == 0 || request.has_begun());
                let on_its_way =
                    if is_flowing { bytes_at(rate, (owner.rtt() + PIPELINE_MARGIN).as_secs_f64()) } else { 0 };
                let takeable_from = request.proven + on_its_way.div_ceil(GROUP_BYTES);
                burdens.push(Burden { request: request.id, rest: request.rest(), takeable_from, rate, done_in });
            }
        }
        burdens.sort_by(|one, other| other.done_in.total_cmp(&one.done_in));
        burdens
    }

    /// The end of the request that will be through last, as much of it as makes both owners finish together.
    fn work_to_take(&self, helper: &Helper<'_>, burdens: &[Burden]) -> Option<(RequestId, Range<u64>)> {
        let later = burdens.iter().take_while(|burden| helper.free_in < burden.done_in);
        let of_others = later.filter(|burden| burden.request.owner != helper.id);
        of_others.filter_map(|burden| Some((burden.request, self.end_to_take(helper, burden)?))).next()
    }

    /// Whole pieces from the end of a request.
    fn end_to_take(&self, helper: &Helper<'_>, burden: &Burden) -> Option<Range<u64>> {
        // helper.free_in + x / helper.rate = burden.done_in - x / burden.rate
        let even = (burden.done_in - helper.free_in) / (1.0 / helper.rate + 1.0 / burden.rate);
        let mut taken = burden.rest.end..burden.rest.end;
        for piece in self.layout.pieces_of(&burden.rest).rev() {
            let start = self.layout.groups_of(piece).start.max(burden.rest.start);
            let is_its_own = self.pieces.state(piece) == PieceState::Asked(burden.request);
            if start < burden.takeable_from || !is_its_own || !helper.owner.has_piece(piece) {
                break;
            }
            let bytes = self.layout.bytes(&(start..taken.end)) as f64;
            let is_first = taken.is_empty();
            let pays = helper.free_in + bytes / helper.rate + BALANCE_GAIN.as_secs_f64() < burden.done_in;
            if bytes > even && !(is_first && pays) {
                break;
            }
            taken.start = start;
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// The rest of a piece that another owner is asked for and that this one would bring much earlier: the latest such.
    /// Only when no piece is left that nobody is asked for.
    fn work_to_double(&self, helper: &Helper<'_>, burdens: &[Burden]) -> Option<Range<u64>> {
        if self.pieces.missing() > 0 {
            return None;
        }
        let later = burdens.iter().take_while(|burden| helper.free_in < burden.done_in);
        for burden in later.filter(|burden| burden.request.owner != helper.id) {
            let mut done_in = burden.done_in;
            for piece in self.layout.pieces_of(&burden.rest).rev() {
                let all = self.layout.groups_of(piece);
                let groups = all.start.max(burden.rest.start)..all.end.min(burden.rest.end);
                let bytes = self.layout.bytes(&groups) as f64;
                let here_in = helper.free_in + bytes / helper.rate;
                let pays = here_in * ENDGAME_GAIN + BALANCE_GAIN.as_secs_f64() < done_in;
                let is_single = self.pieces.state(piece) == PieceState::Asked(burden.request);
                let may_help = pays && is_single && helper.owner.has_piece(piece);
                if let Some(run) = may_help.then(|| self.missing_run(&groups)).flatten() {
                    return Some(run);
                }
                done_in -= bytes / burden.rate;
            }
        }
        None
    }
}
