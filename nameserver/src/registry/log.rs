//! The last changes of names, for those who watch. Only what is durable gets here, and nothing of it survives a restart:
//! then watchers are told to list anew.

use std::{collections::VecDeque, sync::Arc};

use shared::{
    limits::{MAX_CHANGES_REMEMBERED, NAMES_PER_PAGE, PAGE_BYTES},
    name::Name,
    rpc::nameserver::{NameChange, Revision},
};

use super::{
    Change, Mutation, NameRow, Registry,
    query::{Query, record_bytes},
};

/// A ring of changes.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Entry>,
    /// Every change of a name after this revision is in `entries`.
    complete_since: Revision,
    /// The last durable revision.
    last: Revision,
}

#[derive(Debug)]
struct Entry {
    revision: Revision,
    name: Name,
    row: Option<Arc<NameRow>>,
}

impl Log {
    /// A log that knows nothing of what was up to `revision`.
    pub(super) fn beginning(revision: Revision) -> Self {
        Self { entries: VecDeque::new(), complete_since: revision, last: revision }
    }

    /// A change has become durable.
    pub(super) fn note(&mut self, mutation: &Mutation) {
        self.last = mutation.revision;
        let (name, row) = match &mutation.change {
            Change::NamePut(name, row) => (name.clone(), Some(row.clone())),
            Change::NameRemoved(name) => (name.clone(), None),
            // The seat shows in the name of its tracker.
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
}

impl Registry {
    /// The changes of names that `filter` means after `since`, oldest first and at most [`NAMES_PER_PAGE`] or
    /// [`PAGE_BYTES`], and up to which revision that is all. `None` when that is not known (any more).
    pub fn changes(&self, since: Option<Revision>, filter: &Query) -> (Revision, Option<Vec<NameChange>>) {
        let log = self.tables.log();
        let Some(since) = since.filter(|since| (log.complete_since..=log.last).contains(since)) else {
            return (log.last, None);
        };
        let first = log.entries.partition_point(|entry| entry.revision <= since);
        let (mut changes, mut bytes, mut known) = (Vec::new(), 0, since);
        for entry in log.entries.range(first..) {
            if filter.matches(&entry.name) {
                let record = entry.row.as_ref().map(|row| row.record(&entry.name));
                bytes += entry.name.as_str().len() + 10 + record.as_ref().map_or(0, record_bytes);
                if changes.len() == NAMES_PER_PAGE || (bytes > PAGE_BYTES && !changes.is_empty()) {
                    return (known, Some(changes));
                }
                changes.push(NameChange { name: entry.name.clone(), record });
            }
            known = entry.revision;
        }
        (log.last, Some(changes))
    }
}

#[cfg(test)]
mod tests {
    use shared::rpc::nameserver::{ListQuery, Register, Selector};

    use super::*;
    use crate::registry::tests::{NOW, peer, registry, request};

    fn prefix(text: &str) -> Query {
        ListQuery { prefix: Some(text.to_owned()), ..ListQuery::default() }.try_into().unwrap()
    }

    fn names(changes: Option<Vec<NameChange>>) -> Vec<(String, bool)> {
        changes.unwrap().into_iter().map(|change| (change.name.to_string(), change.record.is_some())).collect()
    }

    #[test]
    fn a_watcher_gets_what_is_durable_after_what_it_knows_and_only_that() {
        let mut registry = registry();
        registry.settle();
        let (start, unknown) = registry.changes(None, &prefix(""));
        assert_eq!(unknown, None);
        for name in ["a.1", "b.1", "a.2"] {
            registry.register(NOW, &peer("p"), request(name)).unwrap();
        }
        assert_eq!(registry.changes(Some(start), &prefix("a.")), (start, Some(vec![])), "not durable yet");
        registry.settle();
        let (position, changes) = registry.changes(Some(start), &prefix("a."));
        assert_eq!(names(changes), [("a.1".to_owned(), true), ("a.2".to_owned(), true)]);
        assert_eq!(position, registry.revision());
        registry.remove(NOW, &peer("p"), Selector { name: Some("a.1".to_owned()), ..Selector::default() }).unwrap();
        registry.register(NOW, &peer("p"), request("c")).unwrap();
        registry.roll_back();
        assert_eq!(registry.changes(Some(position), &prefix("")), (position, Some(vec![])), "undone");
        registry.remove(NOW, &peer("p"), Selector { name: Some("a.1".to_owned()), ..Selector::default() }).unwrap();
        registry.settle();
        assert_eq!(names(registry.changes(Some(position), &prefix("a.")).1), [("a.1".to_owned(), false)]);
        // Nobody can be ahead.
        assert_eq!(registry.changes(Some(Revision(1000)), &prefix("")).1, None);
    }

    #[test]
    fn who_is_too_slow_is_told_and_pages_leave_nothing_out() {
        let mut registry = registry();
        registry.settle();
        let start = registry.revision();
        let mut tags = 0..;
        let mut change = |registry: &mut Registry, times: usize| {
            for tag in tags.by_ref().take(times) {
                registry
                    .register(NOW, &peer("p"), Register { tags: Some(vec![format!("{tag}")]), ..request("a") })
                    .unwrap();
                registry.settle();
            }
        };
        change(&mut registry, MAX_CHANGES_REMEMBERED);
        let (mut since, mut seen) = (start, 0);
        loop {
            let (position, changes) = registry.changes(Some(since), &prefix("a"));
            let changes = changes.unwrap();
            if changes.is_empty() {
                break;
            }
            assert!(changes.len() <= NAMES_PER_PAGE);
            seen += changes.len();
            since = position;
        }
        assert_eq!(seen, MAX_CHANGES_REMEMBERED);
        change(&mut registry, 1);
        assert_eq!(registry.changes(Some(start), &prefix("a")), (registry.revision(), None));
        assert_eq!(registry.changes(Some(since), &prefix("a")).1.unwrap().len(), 1);
    }
}
