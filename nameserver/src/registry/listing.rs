//! Pages of names and of changes.

use crate::params::{NAMES_PER_PAGE, NAMES_SCANNED_PER_PAGE};
use shared::{
    limits::PAGE_BYTES,
    name::Name,
    rpc::nameserver::{NameChange, Page, Record, Revision},
    time::Timestamp,
};

use super::{
    Registry,
    query::{Filter, Query},
};

impl Registry {
    /// Returns a page of names, in order. A page ends after [`NAMES_PER_PAGE`] names, [`PAGE_BYTES`], or
    /// [`NAMES_SCANNED_PER_PAGE`] scanned names, so it can be short or even empty although a next page exists.
    pub fn page(&self, now: Timestamp, query: &Query) -> Page {
        let mut page = Page { records: Vec::new(), next: None, revision: self.revision() };
        let Some(start) = query.start() else { return page };
        let mut bytes = 0;
        let mut last: Option<&Name> = None;
        for (scanned, (name, row)) in self.tables.names_from(start.as_ref()).enumerate() {
            if let Filter::Prefix(prefix) = query.filter()
                && !name.as_str().starts_with(prefix)
            {
                return page;
            }
            if scanned == NAMES_SCANNED_PER_PAGE {
                page.next = last.cloned();
                return page;
            }
            if query.filter().matches_row(name, row) && self.live(name, now).is_some() {
                let record = row.record(name);
                bytes += record_bytes(&record);
                if page.records.len() == NAMES_PER_PAGE || bytes > PAGE_BYTES {
                    page.next = last.cloned();
                    return page;
                }
                page.records.push(record);
            }
            last = Some(name);
        }
        page
    }

    /// Returns the durable changes after `since` to names that `query` matches, oldest first, at most
    /// [`NAMES_PER_PAGE`] or [`PAGE_BYTES`], and the revision up to which they are complete. `None` instead of changes
    /// when `since` is unknown or the log does not reach back to it.
    pub fn changes(&self, since: Option<Revision>, query: &Query) -> (Revision, Option<Vec<NameChange>>) {
        let log = self.tables.log();
        let Some((since, entries)) = since.and_then(|since| Some((since, log.after(since)?))) else {
            return (log.last(), None);
        };
        let (mut changes, mut bytes, mut complete) = (Vec::new(), 0, since);
        for entry in entries {
            if query.filter().matches(&entry.name) {
                let record = entry.row.as_ref().map(|row| row.record(&entry.name));
                bytes += entry.name.as_str().len() + 10 + record.as_ref().map_or(0, record_bytes);
                if changes.len() == NAMES_PER_PAGE || (bytes > PAGE_BYTES && !changes.is_empty()) {
                    return (complete, Some(changes));
                }
                changes.push(NameChange { name: entry.name.clone(), record });
            }
            complete = entry.revision;
        }
        (log.last(), Some(changes))
    }
}

/// Upper bound on the encoded size of a record in bytes: its texts with up to five bytes of length each, and ten bytes
/// each for its revision and its number of tags (postcard's varints).
fn record_bytes(record: &Record) -> usize {
    let tags: usize = record.tags.iter().map(|tag| tag.as_str().len() + 5).sum();
    record.name.as_str().len() + record.uri.to_string().len() + tags + 30
}

#[cfg(test)]
mod tests {
    use crate::params::MAX_CHANGES_REMEMBERED;
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
    fn watcher_receives_durable_changes_after_its_revision_only() {
        let mut registry = registry();
        registry.settle();
        let (start, unknown) = registry.changes(None, &prefix(""));
        assert_eq!(unknown, None);
        for name in ["a.1", "b.1", "a.2"] {
            registry.register(NOW, &peer("p"), request(name)).unwrap();
        }
        assert_eq!(
            registry.changes(Some(start), &prefix("a.")),
            (start, Some(vec![])),
            "a change is visible before it is durable"
        );
        registry.settle();
        let (position, changes) = registry.changes(Some(start), &prefix("a."));
        assert_eq!(names(changes), [("a.1".to_owned(), true), ("a.2".to_owned(), true)]);
        assert_eq!(position, registry.revision());
        registry.remove(NOW, &peer("p"), Selector { name: Some("a.1".to_owned()), ..Selector::default() }).unwrap();
        registry.register(NOW, &peer("p"), request("c")).unwrap();
        registry.roll_back();
        assert_eq!(
            registry.changes(Some(position), &prefix("")),
            (position, Some(vec![])),
            "an undone change is visible"
        );
        registry.remove(NOW, &peer("p"), Selector { name: Some("a.1".to_owned()), ..Selector::default() }).unwrap();
        registry.settle();
        assert_eq!(names(registry.changes(Some(position), &prefix("a.")).1), [("a.1".to_owned(), false)]);
        // A revision ahead of the registry is unknown.
        assert_eq!(registry.changes(Some(Revision(1000)), &prefix("")).1, None);
    }

    #[test]
    fn pages_of_changes_are_complete_until_the_log_is_full() {
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
