//! The registry's tables and the indices over them. Every durable change goes through [`Tables::make`], which
//! numbers it, keeps the indices right, and remembers how to undo it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use certs::TokenId;
use shared::{
    epoch::Epoch,
    id::{PeerId, Role},
    limits::{EXPIRIES_PER_SWEEP, SEAT_LEASE},
    name::Name,
    rpc::nameserver::Revision,
    time::Timestamp,
};

use super::{
    change::{Change, EnrolmentRow, Mutation, NameRow, Snapshot, TokenRow},
    lease::Deadlines,
    log::Log,
    seat::SeatState,
};

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

/// What was there before a change.
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
        let log = Log::beginning(revision);
        let mut tables = Self { revision, epoch_high, tokens, enrolments, log, ..Self::default() };
        tables.seat = seat.map(|seat| SeatState { seat, deadline: now + SEAT_LEASE, heard: now, gone: false });
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
            self.log.note(&mutation);
        }
        self.undo.clear();
        // A large removal must not keep its room for ever.
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

    /// The revision that the next change will have.
    pub(super) fn next_revision(&self) -> Revision {
        Revision(self.revision.0 + 1)
    }

    pub(super) fn name(&self, name: &Name) -> Option<&Arc<NameRow>> {
        self.names.get(name)
    }

    pub(super) fn names(&self) -> std::collections::btree_map::Iter<'_, Name, Arc<NameRow>> {
        self.names.iter()
    }

    /// Names in order, from `start` on.
    pub(super) fn names_from(&self, start: Bound<&Name>) -> impl Iterator<Item = (&Name, &Arc<NameRow>)> {
        self.names.range::<Name, _>((start, Bound::Unbounded))
    }

    /// Names that begin with `prefix`, which is itself a name's text.
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

    /// Begins the lease of a name anew. No durable change.
    pub(super) fn extend(&mut self, name: &Name, now: Timestamp) {
        let term = self.names.get(name).and_then(|row| row.lease.term());
        self.deadlines.set(name, term.map(|term| now + term));
    }

    /// Replaces a row without touching its lease.
    pub(super) fn amend(&mut self, name: Name, row: NameRow, now: Timestamp) -> Revision {
        let deadline = self.deadlines.of(&name);
        let revision = self.make(Change::NamePut(name.clone(), Arc::new(row)), now);
        self.deadlines.set(&name, deadline);
        revision
    }

    /// Makes a durable change; leases that begin with it begin at `now`. The revision of the change.
    pub(super) fn make(&mut self, change: Change, now: Timestamp) -> Revision {
        let undo = match &change {
            Change::NamePut(name, row) => {
                let deadline = row.lease.term().map(|term| now + term);
                self.set_name(name, Some(Arc::clone(row)), deadline)
            }
            Change::NameRemoved(name) => self.set_name(name, None, None),
            Change::SeatTaken(seat) => {
                let state = SeatState { seat: seat.clone(), deadline: now + SEAT_LEASE, heard: now, gone: false };
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

    /// Sets or removes a name with its deadline and ownership; tells how to undo it.
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

/// Inserts, replaces or removes; what was there before.
fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}
