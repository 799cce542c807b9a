//! New requests: which providers get one, of which groups, and how long.

use std::ops::Range;

use shared::{limits::GROUP_BYTES, time::Timestamp};

use super::{
    Refill, Swarm,
    event::{Action, ProviderId, RequestId},
    params::{MAX_ACTIVE_PROVIDERS, MAX_REQUEST_BYTES, REQUEST_TIME},
    picker::{Choice, Pick, pick},
    piece::PieceState,
    provider::Provider,
    rate::bytes_at,
};

/// A request takes this part of a provider's share of what is left, so that requests get shorter towards the end and
/// all providers finish together (guided self-scheduling: Polychronopoulos and Kuck, IEEE Trans. Comput. 1987).
const PARTS_OF_SHARE: u64 = 2;

/// Next request to a provider.
enum Next {
    Run(Range<u64>),
    /// Nothing for now: what it could send is reserved for other receivers.
    Later,
    Nothing,
}

impl Swarm {
    /// Sends requests to the providers that need a refill and have capacity.
    pub(super) fn assign(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.refill, Refill::None) {
            Refill::None => {}
            Refill::One(id) => {
                self.assign_to(now, id, out);
                if self.has_skipped && self.active < MAX_ACTIVE_PROVIDERS {
                    self.assign_to_all(now, out);
                }
            }
            Refill::All => self.assign_to_all(now, out),
        }
    }

    /// Serves active providers first, then the others from a random one on, so that each of many gets a turn.
    fn assign_to_all(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.has_skipped = false;
        let (mut ids, mut idle) = (Vec::new(), Vec::new());
        for (&id, provider) in self.providers.iter().filter(|(_, provider)| !provider.exhausted) {
            if provider.requests.is_empty() { idle.push(id) } else { ids.push(id) }
        }
        if !idle.is_empty() {
            let first = self.rng.usize(..idle.len());
            idle.rotate_left(first);
        }
        ids.append(&mut idle);
        for id in ids {
            self.assign_to(now, id, out);
        }
    }

    fn assign_to(&mut self, now: Timestamp, id: ProviderId, out: &mut Vec<Action>) {
        while let Some(provider) =
            self.providers.get(&id).filter(|provider| provider.has_capacity(now) && !provider.exhausted)
        {
            if !self.may_be_active(provider) {
                self.has_skipped = true;
                return;
            }
            match self.next_run(now, id) {
                Next::Run(groups) => self.request(now, id, groups, out),
                Next::Later => {
                    if let Some(provider) = self.providers.get_mut(&id) {
                        provider.reserve_for_others(now);
                    }
                    self.must_rebalance = true;
                    return;
                }
                Next::Nothing => {
                    if let Some(provider) = self.providers.get_mut(&id) {
                        provider.exhausted = true;
                    }
                    self.must_rebalance = true;
                }
            }
        }
    }

    /// True if the provider is one of the [`MAX_ACTIVE_PROVIDERS`], or may become one.
    pub(super) fn may_be_active(&self, provider: &Provider) -> bool {
        self.active < MAX_ACTIVE_PROVIDERS || !provider.requests.is_empty()
    }

    pub(super) fn request(&mut self, now: Timestamp, id: ProviderId, groups: Range<u64>, out: &mut Vec<Action>) {
        let Some(provider) = self.providers.get_mut(&id) else { return };
        self.last_serial += 1;
        let request = RequestId { provider: id, serial: self.last_serial };
        for piece in self.layout.pieces_of(&groups) {
            self.pieces.assign(piece, request);
        }
        self.active += usize::from(provider.requests.is_empty());
        provider.push(now, request, groups.clone());
        let silence = provider.silence_deadline();
        out.push(Action::Request { request, groups });
        if let Some(deadline) = silence {
            self.arm(deadline);
        }
    }

    fn next_run(&mut self, now: Timestamp, id: ProviderId) -> Next {
        if self.pieces.missing() == 0 {
            return Next::Nothing;
        }
        let Some(provider) = self.providers.get(&id) else { return Next::Nothing };
        let bytes = self.request_bytes(provider);
        let wanted = bytes.div_ceil(self.layout.piece_bytes());
        let choice = Choice {
            pieces: &self.pieces,
            provider,
            layout: self.layout,
            rank: self.rank,
            own_partition: self.layout.partition(self.rank),
            now,
            providers: &self.providers,
            wanted,
        };
        match pick(&choice, &mut self.rng) {
            Pick::Piece(first) => Next::Run(self.run_from(first, bytes, &choice)),
            Pick::Later => Next::Later,
            Pick::Nothing => self.fragment(provider).map_or(Next::Nothing, Next::Run),
        }
    }

    /// The first missing groups of the piece `first`, and what follows without a gap, up to about `bytes`.
    fn run_from(&self, first: u32, bytes: u64, choice: &Choice<'_>) -> Range<u64> {
        let is_missing = |group: &u64| !self.have.has_group(*group);
        let mut groups = self.layout.groups_of(first);
        let start = groups.find(is_missing).unwrap_or(groups.start);
        let mut run = start..self.missing_until(start, self.layout.groups_of(first).end);
        for next in first + 1..self.pieces.count() {
            let groups = self.layout.groups_of(next);
            let is_full = self.layout.bytes(&run) + self.layout.piece_bytes() / 2 > bytes;
            if is_full || run.end < groups.start || !is_missing(&groups.start) {
                break;
            }
            if !choice.is_open(next) || !choice.extends_run(first, next) {
                break;
            }
            run.end = self.missing_until(groups.start, groups.end);
        }
        run
    }

    fn missing_until(&self, start: u64, end: u64) -> u64 {
        if self.have.is_begun(self.layout.piece_of(start)) {
            (start..end).find(|&group| self.have.has_group(group)).unwrap_or(end)
        } else {
            end
        }
    }

    /// Groups of a piece that no provider has complete: its groups may be spread over several.
    fn fragment(&self, provider: &Provider) -> Option<Range<u64>> {
        let is_wanted = |group: u64| provider.has_group(group) && !self.have.has_group(group);
        provider
            .begun()
            .filter(|&piece| self.pieces.state(piece) == PieceState::Missing && self.pieces.providers(piece) == 0)
            .find_map(|piece| {
                let groups = self.layout.groups_of(piece);
                let start = groups.clone().find(|&group| is_wanted(group))?;
                let end = (start..groups.end).find(|&group| !is_wanted(group)).unwrap_or(groups.end);
                Some(start..end)
            })
    }

    /// Length of the next request, bytes; at least a piece.
    ///
    /// A single provider gets long requests, but while other receivers may appear no more than it has delivered
    /// already. Of several providers, each gets what it sends within [`REQUEST_TIME`], and less towards the end.
    fn request_bytes(&self, provider: &Provider) -> u64 {
        let least = self.layout.piece_bytes();
        if self.providers.len() == 1 {
            let most = MAX_REQUEST_BYTES.max(least);
            // A provider's stream buffers 12 MiB at once, and still sends them after a long request was cut.
            return if self.expects_receivers { provider.bytes_proven.clamp(least, most) } else { most };
        }
        let Some(rate) = provider.rate() else { return least };
        let others: f64 =
            self.providers.values().filter(|other| other.retry_at().is_none()).filter_map(Provider::rate).sum();
        let left = u64::from(self.pieces.missing()) * self.layout.piece_bytes();
        let share = bytes_at(rate / others.max(rate).max(1.0), left as f64) / PARTS_OF_SHARE;
        let is_swarm = self.providers.values().any(|provider| !provider.has_all());
        let preferred =
            if is_swarm { provider.pipeline_bytes() / 2 } else { bytes_at(rate, REQUEST_TIME.as_secs_f64()) };
        preferred.min(share).min(MAX_REQUEST_BYTES).max(least)
    }

    /// Truncates the long requests that the first provider got while it was the only one, to what it would get now
    /// that a second one is here.
    pub(super) fn redistribute(&mut self, out: &mut Vec<Action>) {
        for id in self.providers.keys().copied().collect::<Vec<_>>() {
            let Some(provider) = self.providers.get(&id) else { continue };
            let mut budget = self.request_bytes(provider).max(provider.pipeline_bytes());
            let requests: Vec<_> = provider.requests.iter().map(|request| (request.id, request.rest())).collect();
            for (index, (request, rest)) in requests.into_iter().enumerate() {
                let bytes = self.layout.bytes(&rest);
                if bytes > budget {
                    // The first request keeps the group that is being sent.
                    let kept = rest.start + (budget / GROUP_BYTES).max(u64::from(index == 0));
                    let at_group = kept.next_multiple_of(self.layout.groups_per_piece());
                    self.truncate(request, if budget == 0 { rest.start } else { at_group }, out);
                }
                budget = budget.saturating_sub(bytes);
            }
        }
    }
}
