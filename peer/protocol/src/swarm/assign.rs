//! Filling the owners' pipelines: how much to ask of whom.

use std::ops::Range;

use shared::{
    time::Timestamp,
};
use crate::swarm::params::MAX_ACTIVE_PROVIDERS;
use crate::swarm::params::MAX_REQUEST_BYTES;
use crate::swarm::params::REQUEST_TIME;

use super::{
    Fill, Swarm,
    event::{Action, ProviderId, RequestId},
    picker::{Choice, Pick},
    piece::PieceState,
    provider::{Owner, bytes_at},
};

/// Of its share of what is left an owner is asked for one part in so many at a time, so that requests get shorter towards
/// the end and all owners finish together (guided self-scheduling: Polychronopoulos and Kuck, IEEE Trans. Comput. 1987).
const PARTS_OF_SHARE: u64 = 2;

/// What an owner is asked for next.
enum Next {
    Run(Range<u64>),
    /// What it could be asked for is left to other receivers for now.
    Later,
    Nothing,
}

impl Swarm {
    /// Asks those for more that have room and something that is missing.
    pub(crate) fn fill(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        match std::mem::replace(&mut self.fill, Fill::Nobody) {
            Fill::Nobody => {}
            Fill::One(id) => {
                self.fill_one(now, id, out);
                if self.turned_away && self.active < MAX_ACTIVE_PROVIDERS {
                    self.fill_all(now, out);
                }
            }
            Fill::All => self.fill_all(now, out),
        }
    }

    /// Those that are at work first, then the others from a random one on: of many owners a random few get a turn.
    fn fill_all(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.turned_away = false;
        let (mut ids, mut others) = (Vec::new(), Vec::new());
        for (&id, owner) in self.owners.iter().filter(|(_, owner)| !owner.starved) {
            if owner.requests.is_empty() { others.push(id) } else { ids.push(id) }
        }
        if !others.is_empty() {
            let first = self.rng.usize(..others.len());
            others.rotate_left(first);
        }
        ids.append(&mut others);
        for id in ids {
            self.fill_one(now, id, out);
        }
    }

    fn fill_one(&mut self, now: Timestamp, id: ProviderId, out: &mut Vec<Action>) {
        while let Some(owner) = self.owners.get(&id).filter(|owner| owner.has_room(now) && !owner.starved) {
            if !self.may_be_asked(owner) {
                self.turned_away = true;
                return;
            }
            match self.next_run(now, id) {
                Next::Run(groups) => self.ask(now, id, groups, out),
                Next::Later => {
                    if let Some(owner) = self.owners.get_mut(&id) {
                        owner.leave_alone(now);
                    }
                    self.balance = true;
                    return;
                }
                Next::Nothing => {
                    if let Some(owner) = self.owners.get_mut(&id) {
                        owner.starved = true;
                    }
                    self.balance = true;
                }
            }
        }
    }

    /// Whether it is one of the [`MAX_ACTIVE_PROVIDERS`], or can become one.
    pub(crate) fn may_be_asked(&self, owner: &Owner) -> bool {
        self.active < MAX_ACTIVE_PROVIDERS || !owner.requests.is_empty()
    }

    pub(crate) fn ask(&mut self, now: Timestamp, id: ProviderId, groups: Range<u64>, out: &mut Vec<Action>) {
        let Some(owner) = self.owners.get_mut(&id) else { return };
        self.last_serial += 1;
        let request = RequestId { owner: id, serial: self.last_serial };
        for piece in self.layout.pieces_of(&groups) {
            self.pieces.ask(piece, request);
        }
        self.active += usize::from(owner.requests.is_empty());
        owner.push(now, request, groups.clone());
        let silence = owner.silence_deadline();
        out.push(Action::Request { request, groups });
        if let Some(deadline) = silence {
            self.arm(deadline);
        }
    }

    /// What an owner is asked for next.
    fn next_run(&mut self, now: Timestamp, id: ProviderId) -> Next {
        if self.pieces.missing() == 0 {
            return Next::Nothing;
        }
        let Some(owner) = self.owners.get(&id) else { return Next::Nothing };
        let bytes = self.request_bytes(owner);
        let wanted = bytes.div_ceil(self.layout.piece_bytes());
        let choice = Choice {
            pieces: &self.pieces,
            owner,
            layout: self.layout,
            place: self.place,
            home: self.layout.part(self.place),
            now,
            owners: &self.owners,
            wanted,
        };
        match self.picker.pick(&choice, &mut self.rng) {
            Pick::Piece(first) => Next::Run(self.run_from(first, bytes, &choice)),
            Pick::Later => Next::Later,
            Pick::Nothing => self.fragment(owner).map_or(Next::Nothing, Next::Run),
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
            if !choice.is_open(next) || !self.picker.goes_on(choice, first, next) {
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

    /// Groups of a piece that no owner has whole: what is left of it may be spread over several.
    fn fragment(&self, owner: &Owner) -> Option<Range<u64>> {
        let is_wanted = |group: u64| owner.has_group(group) && !self.have.has_group(group);
        owner
            .begun()
            .filter(|&piece| self.pieces.state(piece) == PieceState::Missing && self.pieces.owners(piece) == 0)
            .find_map(|piece| {
                let groups = self.layout.groups_of(piece);
                let start = groups.clone().find(|&group| is_wanted(group))?;
                let end = (start..groups.end).find(|&group| !is_wanted(group)).unwrap_or(groups.end);
                Some(start..end)
            })
    }

    /// How much an owner is asked for at a time: much of a lone one (where others may turn up, no more than it has brought
    /// already), of several what [`REQUEST_TIME`] brings and less towards the end. At least a piece.
    pub(crate) fn request_bytes(&self, owner: &Owner) -> u64 {
        let least = self.layout.piece_bytes();
        if self.owners.len() == 1 {
            let most = MAX_REQUEST_BYTES.max(least);
            // An owner's stream takes in 12 MiB at once, and sends them until it hears that a long request was cut.
            return if self.expects_receivers { owner.bytes.clamp(least, most) } else { most };
        }
        let Some(rate) = owner.rate() else { return least };
        let others: f64 =
            self.owners.values().filter(|other| other.waiting_until().is_none()).filter_map(Owner::rate).sum();
        let left = u64::from(self.pieces.missing()) * self.layout.piece_bytes();
        let share = bytes_at(rate / others.max(rate).max(1.0), left as f64) / PARTS_OF_SHARE;
        let is_swarm = self.owners.values().any(|owner| !owner.has_all());
        let comfortable =
            if is_swarm { owner.pipeline_bytes() / 2 } else { bytes_at(rate, REQUEST_TIME.as_secs_f64()) };
        comfortable.min(share).min(MAX_REQUEST_BYTES).max(least)
    }

    /// A second owner has come: the long requests that the first one got while it was alone are cut to what it would
    /// get now.
    pub(crate) fn share_out(&mut self, out: &mut Vec<Action>) {
        for id in self.owners.keys().copied().collect::<Vec<_>>() {
            let Some(owner) = self.owners.get(&id) else { continue };
            let mut budget = self.request_bytes(owner).max(owner.pipeline_bytes());
            let requests: Vec<_> = owner.requests.iter().map(|request| (request.id, request.rest())).collect();
            for (index, (request, rest)) in requests.into_iter().enumerate() {
                let bytes = self.layout.bytes(&rest);
                if bytes > budget {
                    // What is on its way for the first one is not given up.
                    let kept = rest.start + (budget / shared::limits::GROUP_BYTES).max(u64::from(index == 0));
                    let at_group = kept.next_multiple_of(self.layout.groups_per_piece());
                    self.cut(request, if budget == 0 { rest.start } else { at_group }, out);
                }
                budget = budget.saturating_sub(bytes);
            }
        }
    }
}
