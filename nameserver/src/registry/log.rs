//! The last durable changes of names, for watchers. The log does not survive a restart; watchers list all names again
//! then.

use std::{collections::VecDeque, sync::Arc};

use crate::params::MAX_CHANGES_REMEMBERED;
use shared::{name::Name, rpc::nameserver::Revision};

use super::change::{Change, Mutation, NameRow};

/// The last [`MAX_CHANGES_REMEMBERED`] changes of names.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Entry>,
    /// `entries` holds every change of a name after this revision.
    complete_since: Revision,
    /// Last durable revision.
    last: Revision,
}

/// A change of one name.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) revision: Revision,
    pub(super) name: Name,
    /// Row after the change; `None` when the name was removed.
    pub(super) row: Option<Arc<NameRow>>,
}

impl Log {
    /// Creates an empty log that starts after `revision`.
    pub(super) fn starting_at(revision: Revision) -> Self {
        Self { entries: VecDeque::new(), complete_since: revision, last: revision }
    }

    /// Appends a change that has become durable.
    pub(super) fn push(&mut self, mutation: &Mutation) {
        self.last = mutation.revision;
        let (name, row) = match &mutation.change {
            Change::NamePut(name, row) => (name.clone(), Some(row.clone())),
            Change::NameRemoved(name) => (name.clone(), None),
            // Watchers see the seat as the name of its tracker.
            Change::SeatTaken(_)
            | Change::SeatVacated(_)
            | Change::TokenPut(..)
            | Change::TokenRemoved(_)
            | Change::Enrolled(..) => return,
        };
        self.entries.push_back(Entry { revision: mutation.revision, name, row });
        if self.entries.len() > MAX_CHANGES_REMEMBERED
            && let Some(oldest) = self.entries.pop_front()
        {
            self.complete_since = oldest.revision;
        }
    }

    /// Last durable revision.
    pub(super) fn last(&self) -> Revision {
        self.last
    }

    /// Returns the changes after `since`, oldest first; `None` when the log does not hold all of them.
    pub(super) fn after(&self, since: Revision) -> Option<impl Iterator<Item = &Entry>> {
        if !(self.complete_since..=self.last).contains(&since) {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.revision <= since);
        Some(self.entries.range(first..))
    }
}
