//! Moving work: an exhausted provider takes over the ends of other providers' requests, and in the endgame duplicates
//! what another one is slow to deliver.

use std::{ops::Range, time::Duration};

use shared::{limits::GROUP_BYTES, time::Timestamp};

use super::{
    Swarm,
    event::{Action, ProviderId, RequestId},
    params::{BALANCE_GAIN, BALANCE_INTERVAL, ENDGAME_GAIN, MAX_ACTIVE_PROVIDERS, PIPELINE_MARGIN},
    piece::PieceState,
    provider::Provider,
    rate::bytes_at,
};

/// Bytes per second assumed of providers while none is measured.
const UNKNOWN_RATE: f64 = 1e6;

/// A provider that can take over work.
struct Thief<'a> {
    provider: &'a Provider,
    id: ProviderId,
    /// Bytes per second.
    rate: f64,
    /// Seconds until new data of it could arrive.
    free_in: f64,
}

/// A request in flight from which work can be taken.
struct Victim {
    request: RequestId,
    /// Groups still to come.
    rest: Range<u64>,
    /// First group that is not on the wire yet.
    takeable_from: u64,
    /// Bytes per second of its provider.
    rate: f64,
    /// Seconds until it is complete.
    done_in: f64,
}

impl Swarm {
    /// Lets each exhausted provider, the fastest first, take over one run of groups if they arrive earlier that way.
    pub(super) fn rebalance(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        // Repeats even if no provider gains now: a slow one's estimate gets worse while it stalls.
        let is_reserving = self.providers.values().any(|provider| provider.reserved_for_others);
        self.must_rebalance =
            is_reserving || self.active > 0 && self.providers.values().any(|provider| provider.exhausted);
        self.rebalance_from = now + BALANCE_INTERVAL;
        if !self.must_rebalance {
            return;
        }
        let usual_rate = self.usual_rate();
        let mut victims = self.victims(now, usual_rate);
        for id in self.thieves(now) {
            let Some(provider) = self.providers.get(&id).filter(|provider| self.may_be_active(provider)) else {
                continue;
            };
            let rate = provider.rate().unwrap_or(usual_rate).max(1.0);
            let free_in = provider.rtt().as_secs_f64() + provider.backlog_bytes() as f64 / rate;
            let thief = Thief { provider, id, rate, free_in };
            if let Some((request, groups)) = self.work_to_steal(&thief, &victims) {
                self.steal(now, id, request, &groups, out);
            } else if let Some(run) = self.work_to_duplicate(&thief, &victims) {
                self.request(now, id, run, out);
            } else {
                continue;
            }
            victims = self.victims(now, usual_rate);
        }
    }

    /// Exhausted providers with capacity, the fastest first.
    fn thieves(&self, now: Timestamp) -> Vec<ProviderId> {
        let can_steal =
            |provider: &Provider| provider.exhausted && self.may_be_active(provider) && provider.has_capacity(now);
        let thieves = self.providers.iter().filter(|(_, provider)| can_steal(provider));
        let mut thieves: Vec<_> = thieves.map(|(&id, provider)| (id, provider.rate().unwrap_or_default())).collect();
        thieves.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        thieves.truncate(MAX_ACTIVE_PROVIDERS);
        thieves.into_iter().map(|(id, _)| id).collect()
    }

    /// Moves `groups`, the end of a request, to the provider `thief`.
    fn steal(
        &mut self,
        now: Timestamp,
        thief: ProviderId,
        request: RequestId,
        groups: &Range<u64>,
        out: &mut Vec<Action>,
    ) {
        if let Some(victim) = self.providers.get_mut(&request.provider) {
            victim.suspend_if_stalled(now);
        }
        let has_released = self.has_released;
        self.truncate(request, groups.start, out);
        // The released groups are requested again at once, unless they have gaps.
        let run = self.missing_run(groups);
        self.has_released = has_released || run.as_ref().is_none_or(|run| run.end < groups.end);
        if let Some(run) = run {
            self.request(now, thief, run, out);
        }
    }

    /// First missing groups of a run: a request that was cancelled since may have delivered some.
    fn missing_run(&self, groups: &Range<u64>) -> Option<Range<u64>> {
        let is_missing = |group: &u64| !self.have.has_group(*group);
        let start = groups.clone().find(is_missing)?;
        Some(start..(start..groups.end).find(|group| !is_missing(group)).unwrap_or(groups.end))
    }

    /// Mean of the measured rates, assumed of providers without one.
    fn usual_rate(&self) -> f64 {
        let rates: Vec<f64> = self.providers.values().filter_map(Provider::rate).collect();
        if rates.is_empty() { UNKNOWN_RATE } else { (rates.iter().sum::<f64>() / rates.len() as f64).max(1.0) }
    }

    /// All requests in flight, the one that completes last first.
    fn victims(&self, now: Timestamp, usual_rate: f64) -> Vec<Victim> {
        let mut victims = Vec::new();
        for provider in self.providers.values().filter(|provider| !provider.requests.is_empty()) {
            let rate = provider.rate().unwrap_or(usual_rate).max(1.0);
            let stall = provider.stall(now);
            let mut done_in = stall.as_secs_f64();
            for (index, request) in provider.requests.iter().enumerate() {
                done_in += self.layout.bytes(&request.rest()) as f64 / rate;
                let is_flowing = stall == Duration::ZERO && (index == 0 || request.is_flowing());
                let on_the_wire =
                    if is_flowing { bytes_at(rate, (provider.rtt() + PIPELINE_MARGIN).as_secs_f64()) } else { 0 };
                let takeable_from = request.proven + on_the_wire.div_ceil(GROUP_BYTES);
                victims.push(Victim { request: request.id, rest: request.rest(), takeable_from, rate, done_in });
            }
        }
        victims.sort_by(|one, other| other.done_in.total_cmp(&one.done_in));
        victims
    }

    /// The end of the request that completes last, of a length with which both providers finish together.
    fn work_to_steal(&self, thief: &Thief<'_>, victims: &[Victim]) -> Option<(RequestId, Range<u64>)> {
        let later = victims.iter().take_while(|victim| thief.free_in < victim.done_in);
        let of_others = later.filter(|victim| victim.request.provider != thief.id);
        of_others.filter_map(|victim| Some((victim.request, self.end_to_steal(thief, victim)?))).next()
    }

    /// Whole pieces from the end of a request.
    fn end_to_steal(&self, thief: &Thief<'_>, victim: &Victim) -> Option<Range<u64>> {
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

    /// Rest of the latest piece that is in flight from another provider and that this one would deliver much earlier.
    /// `None` while a piece is in no request.
    fn work_to_duplicate(&self, thief: &Thief<'_>, victims: &[Victim]) -> Option<Range<u64>> {
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
                let may_duplicate = pays && is_single && thief.provider.has_piece(piece);
                if let Some(run) = may_duplicate.then(|| self.missing_run(&groups)).flatten() {
                    return Some(run);
                }
                done_in -= bytes / victim.rate;
            }
        }
        None
    }
}
