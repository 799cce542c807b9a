//! Reference model of the shares: the contents that each share may hold after the operations on it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::topology::{PeerIndex, peer_name};

/// BLAKE3 hash of a content, in hexadecimal.
pub type Hash = String;

/// Expected content of a name in a share. A name without an entry is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    /// Exactly this content.
    Exactly(Hash),
    /// Any content that was published under this name, or none: the peer was killed during a change.
    Indeterminate,
}

/// Outcome of a change to one name in one share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The share holds this content.
    Written(Hash),
    /// The share no longer holds the name.
    Removed,
    /// The change did not take effect.
    Unchanged,
    /// The change may or may not have taken effect, or may still do so.
    Indeterminate,
}

/// Published contents, and the share contents that follow from the operations so far.
#[derive(Debug, Default)]
pub struct Model {
    published: BTreeMap<String, BTreeSet<Hash>>,
    shares: BTreeMap<PeerIndex, BTreeMap<String, Expected>>,
    in_flight: BTreeSet<(PeerIndex, String)>,
}

impl Model {
    /// Records that some share may hold this content under this name. Call it before the content is written.
    pub fn publish(&mut self, name: &str, hash: &str) {
        self.published.entry(name.to_owned()).or_default().insert(hash.to_owned());
    }

    /// Returns whether this content was ever published under this name.
    pub fn was_published(&self, name: &str, hash: &str) -> bool {
        was_published(&self.published, name, hash)
    }

    /// Returns all names that were ever published.
    pub fn names(&self) -> Vec<&str> {
        self.published.keys().map(String::as_str).collect()
    }

    /// Returns the names in a share that no operation is changing.
    pub fn idle_names(&self, peer: PeerIndex) -> Vec<&str> {
        let share = self.shares.get(&peer).into_iter().flat_map(BTreeMap::keys);
        share.filter(|name| !self.in_flight.contains(&(peer, (*name).clone()))).map(String::as_str).collect()
    }

    /// Returns whether the share is known not to hold the name.
    pub fn is_absent(&self, peer: PeerIndex, name: &str) -> bool {
        !self.shares.get(&peer).is_some_and(|share| share.contains_key(name))
    }

    /// Returns whether at least one share is known to hold the name.
    pub fn is_shared(&self, name: &str) -> bool {
        self.shares.values().any(|share| matches!(share.get(name), Some(Expected::Exactly(_))))
    }

    /// Begins a change to a name in a share. Returns `false` when another change of it is in flight.
    pub fn begin(&mut self, peer: PeerIndex, name: &str) -> bool {
        self.in_flight.insert((peer, name.to_owned()))
    }

    /// Completes a change that [`Self::begin`] began.
    pub fn complete(&mut self, peer: PeerIndex, name: &str, outcome: Outcome) {
        self.in_flight.remove(&(peer, name.to_owned()));
        let share = self.shares.entry(peer).or_default();
        match outcome {
            Outcome::Written(hash) => {
                share.insert(name.to_owned(), Expected::Exactly(hash));
            }
            Outcome::Removed => {
                share.remove(name);
            }
            Outcome::Indeterminate => {
                share.insert(name.to_owned(), Expected::Indeterminate);
            }
            Outcome::Unchanged => {}
        }
    }

    /// Returns the changes in flight.
    pub fn in_flight(&self) -> impl Iterator<Item = &(PeerIndex, String)> {
        self.in_flight.iter()
    }

    /// Compares a share with its files on disk while no change is in flight, and adopts the files as the expected ones.
    /// Returns one line for each difference.
    pub fn check(&mut self, peer: PeerIndex, disk: &BTreeMap<String, Hash>) -> Vec<String> {
        let mut differences = Vec::new();
        let share = self.shares.entry(peer).or_default();
        let id = peer_name(peer);
        for (name, expected) in &*share {
            match (expected, disk.get(name)) {
                (Expected::Exactly(hash), Some(found)) if hash == found => {}
                (Expected::Exactly(_), None) => differences.push(format!("{id} lost {name}")),
                (Expected::Exactly(hash), Some(found)) => {
                    let (hash, found) = (short(hash), short(found));
                    differences.push(format!("{name} of {id} is {found}, expected {hash}"));
                }
                (Expected::Indeterminate, None) => {}
                (Expected::Indeterminate, Some(found)) => {
                    if !was_published(&self.published, name, found) {
                        differences.push(format!("{name} of {id} is {}, which was never published", short(found)));
                    }
                }
            }
        }
        let unexpected = disk.keys().filter(|name| !share.contains_key(*name));
        differences.extend(unexpected.map(|name| format!("{id} has {name}, which was removed or never written")));
        *share = disk.iter().map(|(name, hash)| (name.clone(), Expected::Exactly(hash.clone()))).collect();
        differences
    }
}

fn was_published(published: &BTreeMap<String, BTreeSet<Hash>>, name: &str, hash: &str) -> bool {
    published.get(name).is_some_and(|hashes| hashes.contains(hash))
}

fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(files: &[(&str, &str)]) -> BTreeMap<String, Hash> {
        files.iter().map(|(name, hash)| ((*name).to_owned(), (*hash).to_owned())).collect()
    }

    fn model() -> Model {
        let mut model = Model::default();
        for (name, hash) in [("a", "1"), ("a", "2"), ("b", "3")] {
            model.publish(name, hash);
        }
        assert!(model.begin(0, "a"));
        model.complete(0, "a", Outcome::Written("1".to_owned()));
        model
    }

    #[test]
    fn written_file_that_is_lost_changed_or_unknown_is_reported() {
        assert!(model().check(0, &disk(&[("a", "1")])).is_empty());
        assert_eq!(model().check(0, &disk(&[])), ["peer1 lost a"]);
        assert_eq!(model().check(0, &disk(&[("a", "2")])), ["a of peer1 is 2, expected 1"]);
        assert_eq!(
            model().check(0, &disk(&[("a", "1"), ("b", "3")])),
            ["peer1 has b, which was removed or never written"]
        );
    }

    #[test]
    fn indeterminate_change_accepts_any_published_content_or_none() {
        let indeterminate = || {
            let mut model = model();
            assert!(model.begin(0, "a"));
            model.complete(0, "a", Outcome::Indeterminate);
            model
        };
        assert!(indeterminate().check(0, &disk(&[("a", "2")])).is_empty());
        let mut absent = indeterminate();
        assert!(absent.check(0, &disk(&[])).is_empty());
        assert!(absent.is_absent(0, "a"), "the check makes the content known");
        assert_eq!(indeterminate().check(0, &disk(&[("a", "9")])), ["a of peer1 is 9, which was never published"]);
    }

    #[test]
    fn second_change_of_a_name_is_refused_until_the_first_completes() {
        let mut model = model();
        assert!(model.begin(0, "a") && !model.begin(0, "a") && model.begin(1, "a"));
        assert!(model.idle_names(0).is_empty());
        model.complete(0, "a", Outcome::Removed);
        assert!(model.is_absent(0, "a") && model.begin(0, "a"));
    }
}
