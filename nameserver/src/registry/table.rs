//! The registry's tables and their indices. Every durable change goes through [`Tables::apply`], which numbers the
//! change, updates the indices and records how to undo it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use crate::params::EXPIRIES_PER_SWEEP;
use certs::TokenId;
use shared::{
    epoch::Epoch,
    id::{PeerId, Role},
    limits::SEAT_LEASE,
    name::Name,
    rpc::nameserver::{Revision, Seat},
    time::Timestamp,
};

use super::{
    change::{Change, EnrolmentRow, Mutation, NameRow, Snapshot, TokenRow},
    lease::Deadlines,
    log::Log,
};

/// The seat, with the state that only this run of the nameserver knows.
#[derive(Debug, Clone)]
pub(super) struct SeatState {
    pub(super) seat: Seat,
    /// End of the seat's lease.
    pub(super) deadline: Timestamp,
    /// Time of the holder's last renewal. Other calls of the holder do not count: its process may be alive while its
    /// tracker is not.
    pub(super) renewed_at: Timestamp,
    /// True if the nameserver found the holder's port closed after `renewed_at`.
    pub(super) port_closed: bool,
}

impl SeatState {
    fn granted(seat: Seat, now: Timestamp) -> Self {
        Self { seat, deadline: now + SEAT_LEASE, renewed_at: now, port_closed: false }
    }
}

/// Tables and indices of the registry.
#[derive(Debug, Default)]
pub(super) struct Tables {
    revision: Revision,
    names: BTreeMap<Name, Arc<NameRow>>,
    deadlines: Deadlines,
    by_owner: BTreeMap<Role, BTreeSet<Name>>,
    epoch_high: Epoch,
    seat: Option<SeatState>,
    tokens: BTreeMap<TokenId, TokenRow>,
    enrolments: BTreeMap<PeerId, EnrolmentRow>,
    log: Log,
    pending: Vec<Mutation>,
    undo: Vec<Undo>,
}

/// State before a change.
#[derive(Debug)]
enum Undo {
    Name(Name, Option<Arc<NameRow>>, Option<Timestamp>),
    Seat(Epoch, Option<SeatState>),
    Token(TokenId, Option<TokenRow>),
    Enrolment(PeerId, Option<EnrolmentRow>),
}

impl Tables {
    pub(super) fn restore(snapshot: Snapshot, now: Timestamp) -> Self {
        let Snapshot { revision, epoch_high, seat, names, tokens, enrolments } = snapshot;
        let log = Log::starting_at(revision);
        let mut tables = Self { revision, epoch_high, tokens, enrolments, log, ..Self::default() };
        tables.seat = seat.map(|seat| SeatState::granted(seat, now));
        for (name, row) in names {
            let deadline = row.lease.term().map(|term| now + term);
            tables.set_name(&name, Some(row), deadline);
        }
        tables
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            epoch_high: self.epoch_high,
            seat: self.seat.as_ref().map(|state| state.seat.clone()),
            names: self.names.clone(),
            tokens: self.tokens.clone(),
            enrolments: self.enrolments.clone(),
        }
    }

    pub(super) fn pending(&self) -> &[Mutation] {
        &self.pending
    }

    pub(super) fn settle(&mut self) {
        for mutation in self.pending.drain(..) {
            self.log.push(&mutation);
        }
        self.undo.clear();
        // Release the memory that a large removal needed.
        self.pending.shrink_to(EXPIRIES_PER_SWEEP);
        self.undo.shrink_to(EXPIRIES_PER_SWEEP);
    }

    pub(super) fn roll_back(&mut self) {
        if let Some(first) = self.pending.first() {
            self.revision = Revision(first.revision.0 - 1);
        }
        self.pending.clear();
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Name(name, row, deadline) => drop(self.set_name(&name, row, deadline)),
                Undo::Seat(epoch_high, seat) => (self.epoch_high, self.seat) = (epoch_high, seat),
                Undo::Token(id, row) => drop(set(&mut self.tokens, id, row)),
                Undo::Enrolment(peer, row) => drop(set(&mut self.enrolments, peer, row)),
            }
        }
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Revision of the next change.
    pub(super) fn next_revision(&self) -> Revision {
        Revision(self.revision.0 + 1)
    }

    pub(super) fn name(&self, name: &Name) -> Option<&Arc<NameRow>> {
        self.names.get(name)
    }

    pub(super) fn names(&self) -> std::collections::btree_map::Iter<'_, Name, Arc<NameRow>> {
        self.names.iter()
    }

    /// Names from `start` on, in order.
    pub(super) fn names_from(&self, start: Bound<&Name>) -> impl Iterator<Item = (&Name, &Arc<NameRow>)> {
        self.names.range::<Name, _>((start, Bound::Unbounded))
    }

    /// Names that begin with `prefix`, which must be a valid name itself.
    pub(super) fn names_under(&self, prefix: &'static str) -> impl Iterator<Item = &Name> {
        let first: Name = prefix.parse().expect("the prefixes are constants within the limits of names");
        let range = self.names.range((Bound::Included(first), Bound::Unbounded));
        range.map(|(name, _)| name).take_while(move |name| name.as_str().starts_with(prefix))
    }

    pub(super) fn owned_by(&self, owner: &Role) -> std::collections::btree_set::Iter<'_, Name> {
        static NONE: BTreeSet<Name> = BTreeSet::new();
        self.by_owner.get(owner).unwrap_or(&NONE).iter()
    }

    pub(super) fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    pub(super) fn epoch_high(&self) -> Epoch {
        self.epoch_high
    }

    pub(super) fn seat(&self) -> Option<&SeatState> {
        self.seat.as_ref()
    }

    pub(super) fn seat_mut(&mut self) -> Option<&mut SeatState> {
        self.seat.as_mut()
    }

    pub(super) fn tokens(&self) -> &BTreeMap<TokenId, TokenRow> {
        &self.tokens
    }

    pub(super) fn enrolments(&self) -> &BTreeMap<PeerId, EnrolmentRow> {
        &self.enrolments
    }

    /// Restarts the lease of a name. Not a durable change.
    pub(super) fn extend(&mut self, name: &Name, now: Timestamp) {
        let term = self.names.get(name).and_then(|row| row.lease.term());
        self.deadlines.set(name, term.map(|term| now + term));
    }

    /// Replaces a row without restarting its lease.
    pub(super) fn amend(&mut self, name: Name, row: NameRow, now: Timestamp) -> Revision {
        let deadline = self.deadlines.of(&name);
        let revision = self.apply(Change::NamePut(name.clone(), Arc::new(row)), now);
        self.deadlines.set(&name, deadline);
        revision
    }

    /// Applies a durable change and returns its revision. Leases that start with the change start at `now`.
    pub(super) fn apply(&mut self, change: Change, now: Timestamp) -> Revision {
        let undo = match &change {
            Change::NamePut(name, row) => {
                let deadline = row.lease.term().map(|term| now + term);
                self.set_name(name, Some(Arc::clone(row)), deadline)
            }
            Change::NameRemoved(name) => self.set_name(name, None, None),
            Change::SeatTaken(seat) => {
                let state = SeatState::granted(seat.clone(), now);
                let epoch_high = std::mem::replace(&mut self.epoch_high, seat.epoch);
                Undo::Seat(epoch_high, self.seat.replace(state))
            }
            Change::SeatVacated(_) => Undo::Seat(self.epoch_high, self.seat.take()),
            Change::TokenPut(id, row) => Undo::Token(*id, set(&mut self.tokens, *id, Some(row.clone()))),
            Change::TokenRemoved(id) => Undo::Token(*id, set(&mut self.tokens, *id, None)),
            Change::Enrolled(peer, row) => {
                Undo::Enrolment(peer.clone(), set(&mut self.enrolments, peer.clone(), Some(row.clone())))
            }
        };
        self.undo.push(undo);
        self.revision = self.next_revision();
        self.pending.push(Mutation { revision: self.revision, change });
        self.revision
    }

    /// Sets or removes a name with its deadline and its entry in the index by owner; returns how to undo it.
    fn set_name(&mut self, name: &Name, row: Option<Arc<NameRow>>, deadline: Option<Timestamp>) -> Undo {
        let old_deadline = self.deadlines.set(name, deadline);
        if let Some(row) = &row {
            self.by_owner.entry(row.owner.clone()).or_default().insert(name.clone());
        }
        let owner = row.as_ref().map(|row| row.owner.clone());
        let old = set(&mut self.names, name.clone(), row);
        if let Some(old_owner) = old.as_ref().map(|old| &old.owner).filter(|old| Some(*old) != owner.as_ref())
            && let Some(names) = self.by_owner.get_mut(old_owner)
        {
            names.remove(name);
            if names.is_empty() {
                self.by_owner.remove(old_owner);
            }
        }
        Undo::Name(name.clone(), old, old_deadline)
    }
}

/// Inserts, replaces or removes a value; returns the previous one.
fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}
