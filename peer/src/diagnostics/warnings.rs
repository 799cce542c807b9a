//! Conditions that need the user's attention and that last: `status` lists them, the log has a line when one begins,
//! changes or ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::params::MAX_WARNINGS;

/// Part of the peer that a warning is about. The order is that of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Connection to the nameserver, registration.
    Nameserver,
    /// Addresses at which other peers reach this one.
    Addresses,
    /// Files of the state directory.
    State,
    /// Folder of the share.
    Share,
    /// Detection of changes of the share.
    Watch,
    /// Sockets, open files and other resources of the machine.
    Machine,
}

/// Current warnings of a peer. Cheap to clone; all clones share the warnings.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<BTreeMap<(Topic, String), String>>>);

impl Warnings {
    /// Sets the warning about `subject` (a path, an address, or empty) to `text`: what is wrong, its effect, and the
    /// remedy. Logs it if it is new or has changed. At most [`MAX_WARNINGS`] are kept; further ones are only logged.
    pub fn set(&self, topic: Topic, subject: &str, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.lock();
        let key = (topic, subject.to_owned());
        if warnings.get(&key) == Some(&text) {
            return;
        }
        // The state of the machine is no event: a line at each start would be noise, in one-shot commands most of all.
        match topic {
            Topic::Machine => tracing::info!(?topic, subject, "{text}"),
            _ => tracing::warn!(?topic, subject, "{text}"),
        }
        if warnings.len() < MAX_WARNINGS || warnings.contains_key(&key) {
            warnings.insert(key, text);
        }
    }

    /// Ends the warning about `subject`, if there is one.
    pub fn clear(&self, topic: Topic, subject: &str) {
        if self.lock().remove(&(topic, subject.to_owned())).is_some() {
            tracing::info!(?topic, subject, "the condition of an earlier warning has ended");
        }
    }

    /// Texts of the current warnings, by topic and subject.
    pub fn list(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Topic, String), String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warning_is_listed_until_it_is_cleared() {
        let warnings = Warnings::default();
        warnings.set(Topic::Share, "b", "second");
        warnings.set(Topic::State, "", "first");
        warnings.clone().set(Topic::Share, "b", "changed");
        assert_eq!(warnings.list(), ["first", "changed"]);
        warnings.clear(Topic::State, "");
        warnings.clear(Topic::State, "");
        assert_eq!(warnings.list(), ["changed"]);
    }

    #[test]
    fn warnings_are_bounded() {
        let warnings = Warnings::default();
        for number in 0..=MAX_WARNINGS {
            warnings.set(Topic::Watch, &format!("{number:03}"), "x");
        }
        assert_eq!(warnings.list().len(), MAX_WARNINGS);
        warnings.set(Topic::Watch, "000", "y");
        assert!(warnings.list().contains(&"y".to_owned()));
    }
}
