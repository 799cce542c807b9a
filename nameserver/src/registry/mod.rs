//! The state of the nameserver: names, leases, the tracker's seat, join tokens. Pure: no clock, I/O or randomness.
//!
//! Every call receives its caller and the current time. A call records durable changes, which are
//! [`pending`](Registry::pending) until the actor either stores them ([`Registry::settle`]) or undoes them
//! ([`Registry::roll_back`]).
//!
//! | file | content |
//! |---|---|
//! | [`lease`] | duration and end of registrations |
//! | [`change`] | durable rows and the changes to them |
//! | [`query`] | filters of listings |
//! | `log` | the last durable changes, for watchers |
//! | `table` | tables and their indices, with undo |
//! | `mod.rs` | [`Registry`]: restore, settle, roll back, expire |
//! | `names` | registration, change and removal of names; ownership |
//! | `listing` | pages of names and of changes |
//! | [`seat`] | the tracker's seat: claim, renew, resign |
//! | [`token`] | join tokens, and the key that each peer's id is bound to |
//!
//! Each module imports only modules above it.
//!
//! Not implemented yet: batches (several requests between two settles), revocation (one more table beside the
//! enrolments), backup (a [`Snapshot`] written to a file).

pub mod change;
pub mod lease;
mod listing;
mod log;
mod names;
pub mod query;
pub mod seat;
mod table;
pub mod token;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use crate::params::EXPIRIES_PER_SWEEP;
use shared::{name::Name, rpc::nameserver::Revision, time::Timestamp};

pub use self::change::{Change, EnrolmentRow, Mutation, NameRow, Snapshot, TokenRow};
use self::{lease::Lease, table::Tables};

/// Tag of the nameserver's own entry.
pub const NAMESERVER_TAG: &str = "brasa.nameserver";
/// Tag of the tracker's entry.
pub const TRACKER_TAG: &str = "brasa.tracker";

/// The state of the nameserver.
#[derive(Debug)]
pub struct Registry {
    tables: Tables,
}

impl Registry {
    /// Restores the registry from `snapshot`. All leases, the seat's included, start again at `now`, because no holder
    /// could renew them while the nameserver was down.
    pub fn restore(snapshot: Snapshot, now: Timestamp) -> Self {
        Self { tables: Tables::restore(snapshot, now) }
    }

    /// Copies the durable state. Clones the keys of every table, so it is meant for tests and backups.
    pub fn snapshot(&self) -> Snapshot {
        self.tables.snapshot()
    }

    /// Changes that are not durable yet, in order.
    pub fn pending(&self) -> &[Mutation] {
        self.tables.pending()
    }

    /// Marks the pending changes as durable.
    pub fn settle(&mut self) {
        self.tables.settle();
    }

    /// Undoes the pending changes, last first.
    pub fn roll_back(&mut self) {
        self.tables.roll_back();
    }

    /// Number of changes so far, pending ones included.
    pub fn revision(&self) -> Revision {
        self.tables.revision()
    }

    /// Time at which [`Registry::expire`] has work to do next.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let seat = self.tables.seat().map(|state| state.deadline);
        [self.tables.deadlines().next(), seat].into_iter().flatten().min()
    }

    /// Removes names and the seat whose leases have ended by `now`, at most [`EXPIRIES_PER_SWEEP`] names a call. No
    /// other call sees an ended lease, even before its removal.
    pub fn expire(&mut self, now: Timestamp) {
        if let Some(state) = self.tables.seat().filter(|state| state.deadline <= now) {
            let epoch = state.seat.epoch;
            self.vacate(now, epoch);
        }
        let due: Vec<Name> = self.tables.deadlines().due(now).take(EXPIRIES_PER_SWEEP).cloned().collect();
        for name in due {
            self.tables.apply(Change::NameRemoved(name), now);
        }
    }

    /// Returns the row of a name whose lease has not ended.
    fn live(&self, name: &Name, now: Timestamp) -> Option<&Arc<NameRow>> {
        self.tables.name(name).filter(|row| match row.lease {
            Lease::Permanent => true,
            Lease::For(_) => !self.tables.deadlines().passed(name, now),
            Lease::Seat => self.live_seat(now).is_some(),
        })
    }
}
