//! Moving work: providers that have nothing to do take over the ends of what others have not got to, and in the endgame
//! fetch a second time what others are slow to bring.

use std::{ops::Range, time::Duration};

use crate::swarm::params::BALANCE_GAIN;
use crate::swarm::params::BALANCE_INTERVAL;
use crate::swarm::params::ENDGAME_GAIN;
use crate::swarm::params::MAX_ACTIVE_PROVIDERS;
use crate::swarm::params::PIPELINE_MARGIN;
use shared::{limits::GROUP_BYTES, time::Timestamp};

use super::{
    Swarm,
    event::{Action, ProviderId, RequestId},
    piece::PieceState,
    provider::{Provider, bytes_at},
};

/// Bytes a second of providers when none was measured yet.
const UNKNOWN_RATE: f64 = 1e6;

/// An provider that has nothing to do, or little.
struct Thief<'a> {
    provider: &'a Provider,
    id: ProviderId,
    /// Bytes a second.
    rate: f64,
    /// Seconds until it could begin with something new.
    free_in: f64,
}

/// A request under way, as seen by one who could take it over.
struct Victim {
    request: RequestId,
    /// What is still to come of it.
    rest: Range<u64>,
    /// The first group that is not on its way yet.
    takeable_from: u64,
    /// Its provider's bytes a second.
    rate: f64,
    /// Seconds until it is through.
    done_in: f64,
}

impl Swarm {
    /// Lets each idle provider, the fastest first, take over one run of groups, if that brings them earlier.
    pub(crate) fn balance(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        // Again later, even where nobody can help just now: a slow provider's work will not get better by itself.
        let is_left_alone = self.providers.values().any(|provider| provider.left_alone);
        self.balance = is_left_alone || self.active > 0 && self.providers.values().any(|provider| provider.exhausted);
        self.balance_from = now + BALANCE_INTERVAL;
        if !self.balance {
            return;
        }
        let usual_rate = self.usual_rate();
        let can_help =
            |provider: &Provider| provider.exhausted && self.may_be_asked(provider) && provider.has_room(now);
        let thieves = self.providers.iter().filter(|(_, provider)| can_help(provider));
        let mut thieves: Vec<_> = thieves.map(|(&id, provider)| (id, provider.rate().unwrap_or_default())).collect();
        thieves.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        thieves.truncate(MAX_ACTIVE_PROVIDERS);
        let mut victims = self.victims(now, usual_rate);
        for (id, _) in thieves {
            let Some(provider) = self.providers.get(&id).filter(|provider| self.may_be_asked(provider)) else {
                continue;
            };
            let rate = provider.rate().unwrap_or(usual_rate).max(1.0);
            let free_in = provider.rtt().as_secs_f64() + provider.backlog_bytes() as f64 / rate;
            let thief = Thief { provider, id, rate, free_in };
            if let Some((request, groups)) = self.work_to_take(&thief, &victims) {
                if let Some(provider) = self.providers.get_mut(&request.provider) {
                    provider.doubt(now);
                }
                self.cut(request, groups.start, out);
                // What came back goes out again, unless it has gaps.
                let run = self.missing_run(&groups);
                self.came_back = run.as_ref().is_none_or(|run| run.end < groups.end);
                if let Some(run) = run {
                    self.ask(now, id, run, out);
                }
            } else if let Some(run) = self.work_to_double(&thief, &victims) {
                self.ask(now, id, run, out);
            } else {
                continue;
            }
            victims = self.victims(now, usual_rate);
        }
    }

    /// The first groups of a run that are not there: a request that was cancelled since may have brought some.
    fn missing_run(&self, groups: &Range<u64>) -> Option<Range<u64>> {
        let is_missing = |group: &u64| !self.have.has_group(*group);
        let start = groups.clone().find(is_missing)?;
        Some(start..(start..groups.end).find(|group| !is_missing(group)).unwrap_or(groups.end))
    }

    /// The mean of the measured rates, for providers without one.
    fn usual_rate(&self) -> f64 {
        let rates: Vec<f64> = self.providers.values().filter_map(Provider::rate).collect();
        if rates.is_empty() { UNKNOWN_RATE } else { (rates.iter().sum::<f64>() / rates.len() as f64).max(1.0) }
    }

    /// All requests under way, those that will be through last first.
    fn victims(&self, now: Timestamp, usual_rate: f64) -> Vec<Victim> {
        let mut victims = Vec::new();
        for provider in self.providers.values().filter(|provider| !provider.requests.is_empty()) {
            let rate = provider.rate().unwrap_or(usual_rate).max(1.0);
            let quiet = provider.quiet(now);
            let mut done_in = quiet.as_secs_f64();
            for (index, request) in provider.requests.iter().enumerate() {
                done_in += self.layout.bytes(&request.rest()) as f64 / rate;
                let is_flowing = quiet == Duration::ZERO && (index == 0 || request.has_begun());
                let on_its_way =
                    if is_flowing { bytes_at(rate, (provider.rtt() + PIPELINE_MARGIN).as_secs_f64()) } else { 0 };
                let takeable_from = request.proven + on_its_way.div_ceil(GROUP_BYTES);
                victims.push(Victim { request: request.id, rest: request.rest(), takeable_from, rate, done_in });
            }
        }
        victims.sort_by(|one, other| other.done_in.total_cmp(&one.done_in));
        victims
    }

    /// The end of the request that will be through last, as much of it as makes both providers finish together.
    fn work_to_take(&self, thief: &Thief<'_>, victims: &[Victim]) -> Option<(RequestId, Range<u64>)> {
        let later = victims.iter().take_while(|victim| thief.free_in < victim.done_in);
        let of_others = later.filter(|victim| victim.request.provider != thief.id);
        of_others.filter_map(|victim| Some((victim.request, self.end_to_take(thief, victim)?))).next()
    }

    /// Complete pieces from the end of a request.
    fn end_to_take(&self, thief: &Thief<'_>, victim: &Victim) -> Option<Range<u64>> {
        // thief.free_in + x / thief.rate = victim.done_in - x / victim.rate
        let even = (victim.done_in - thief.free_in) / (1.0 / thief.rate + 1.0 / victim.rate);
        let mut taken = victim.rest.end..victim.rest.end;
        for piece in self.layout.pieces_of(&victim.rest).rev() {
            let start = self.layout.groups_of(piece).start.max(victim.rest.start);
            let is_its_own = self.pieces.state(piece) == PieceState::InFlight(victim.request);
            if start < victim.takeable_from || !is_its_own || !thief.provider.has_piece(piece) {
                break;
            }
            let bytes = self.layout.bytes(&(start..taken.end)) as f64;
            let is_first = taken.is_empty();
            let pays = thief.free_in + bytes / thief.rate + BALANCE_GAIN.as_secs_f64() < victim.done_in;
            if bytes > even && !(is_first && pays) {
                break;
            }
            taken.start = start;
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// The rest of a piece that another provider is asked for and that this one would bring much earlier: the latest such.
    /// Only when no piece is left that nobody is asked for.
    fn work_to_double(&self, thief: &Thief<'_>, victims: &[Victim]) -> Option<Range<u64>> {
        if self.pieces.missing() > 0 {
            return None;
        }
        let later = victims.iter().take_while(|victim| thief.free_in < victim.done_in);
        for victim in later.filter(|victim| victim.request.provider != thief.id) {
            let mut done_in = victim.done_in;
            for piece in self.layout.pieces_of(&victim.rest).rev() {
                let all = self.layout.groups_of(piece);
                let groups = all.start.max(victim.rest.start)..all.end.min(victim.rest.end);
                let bytes = self.layout.bytes(&groups) as f64;
                let here_in = thief.free_in + bytes / thief.rate;
                let pays = here_in * ENDGAME_GAIN + BALANCE_GAIN.as_secs_f64() < done_in;
                let is_single = self.pieces.state(piece) == PieceState::InFlight(victim.request);
                let may_help = pays && is_single && thief.provider.has_piece(piece);
                if let Some(run) = may_help.then(|| self.missing_run(&groups)).flatten() {
                    return Some(run);
                }
                done_in -= bytes / victim.rate;
            }
        }
        None
    }
}
