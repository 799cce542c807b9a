//! What the shares may hold, by what was done to them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{Peer, peer_name};

/// A content's BLAKE3 hash in hexadecimal.
pub type Hash = String;

/// What a share holds under a name. Nothing is known to be there: no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// This content.
    Exactly(Hash),
    /// A content that was published under this name, or nothing: who was to change it was killed meanwhile.
    Unsure,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The share holds this content now.
    Now(Hash),
    /// The share does not have it any more.
    Gone,
    /// It did not happen.
    None,
    /// That cannot be known.
    Unsure,
}

/// What was published, and who should have it.
#[derive(Debug, Default)]
pub struct Ledger {
    published: BTreeMap<String, BTreeSet<Hash>>,
    shares: BTreeMap<Peer, BTreeMap<String, Held>>,
    busy: BTreeSet<(Peer, String)>,
}

impl Ledger {
    /// Notes that a name has this content somewhere from now on; before it is written anywhere.
    pub fn publish(&mut self, name: &str, hash: &str) {
        self.published.entry(name.to_owned()).or_default().insert(hash.to_owned());
    }

    /// Whether a name ever had this content.
    pub fn was_published(&self, name: &str, hash: &str) -> bool {
        self.published.get(name).is_some_and(|hashes| hashes.contains(hash))
    }

    /// All names that were ever published.
    pub fn names(&self) -> Vec<&str> {
        self.published.keys().map(String::as_str).collect()
    }

    /// The names in a share that nobody is changing.
    pub fn names_of(&self, peer: Peer) -> Vec<&str> {
        let share = self.shares.get(&peer).into_iter().flat_map(BTreeMap::keys);
        share.filter(|name| !self.busy.contains(&(peer, (*name).clone()))).map(String::as_str).collect()
    }

    /// Whether the share holds nothing of this name, for sure.
    pub fn is_absent(&self, peer: Peer, name: &str) -> bool {
        !self.shares.get(&peer).is_some_and(|share| share.contains_key(name))
    }

    /// Whether some share holds something of this name, for sure.
    pub fn is_held(&self, name: &str) -> bool {
        self.shares.values().any(|share| matches!(share.get(name), Some(Held::Exactly(_))))
    }

    /// Takes a name of a share for one change; `false` when another is under way.
    pub fn begin(&mut self, peer: Peer, name: &str) -> bool {
        self.busy.insert((peer, name.to_owned()))
    }

    /// Ends a change that was begun.
    pub fn end(&mut self, peer: Peer, name: &str, change: Change) {
        self.busy.remove(&(peer, name.to_owned()));
        let share = self.shares.entry(peer).or_default();
        match change {
            Change::Now(hash) => {
                share.insert(name.to_owned(), Held::Exactly(hash));
            }
            Change::Gone => {
                share.remove(name);
            }
            Change::Unsure => {
                share.insert(name.to_owned(), Held::Unsure);
            }
            Change::None => {}
        }
    }

    /// Changes under way.
    pub fn busy(&self) -> impl Iterator<Item = &(Peer, String)> {
        self.busy.iter()
    }

    /// Compares a share with what is on its disk, at rest; what was unsure is known from then on. What is wrong, a line each.
    pub fn judge(&mut self, peer: Peer, disk: &BTreeMap<String, Hash>) -> Vec<String> {
        let mut wrong = Vec::new();
        let share = self.shares.entry(peer).or_default();
        let id = peer_name(peer);
        for (name, held) in &*share {
            let found = disk.get(name);
            match (held, found) {
                (Held::Exactly(hash), Some(found)) if hash == found => {}
                (Held::Exactly(_), None) => wrong.push(format!("{id} lost {name}")),
                (Held::Exactly(hash), Some(found)) => {
                    wrong.push(format!("{name} of {id} should be {} and is {}", short(hash), short(found)));
                }
                (Held::Unsure, None) => {}
                (Held::Unsure, Some(found)) => {
                    if !self.published.get(name).is_some_and(|hashes| hashes.contains(found)) {
                        wrong.push(format!("{name} of {id} is {}, which nobody ever published", short(found)));
                    }
                }
            }
        }
        let unknown = disk.keys().filter(|name| !share.contains_key(*name));
        wrong.extend(unknown.map(|name| format!("{id} has {name}, which was removed or never there")));
        *share = disk.iter().map(|(name, hash)| (name.clone(), Held::Exactly(hash.clone()))).collect();
        wrong
    }
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

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for (name, hash) in [("a", "1"), ("a", "2"), ("b", "3")] {
            ledger.publish(name, hash);
        }
        assert!(ledger.begin(0, "a"));
        ledger.end(0, "a", Change::Now("1".to_owned()));
        ledger
    }

    #[test]
    fn what_was_written_must_be_there_as_it_was() {
        assert!(ledger().judge(0, &disk(&[("a", "1")])).is_empty());
        assert_eq!(ledger().judge(0, &disk(&[])), ["peer1 lost a"]);
        assert_eq!(ledger().judge(0, &disk(&[("a", "2")])), ["a of peer1 should be 1 and is 2"]);
        assert_eq!(
            ledger().judge(0, &disk(&[("a", "1"), ("b", "3")])),
            ["peer1 has b, which was removed or never there"]
        );
    }

    #[test]
    fn what_is_unsure_is_something_that_was_published_or_nothing() {
        let unsure = || {
            let mut ledger = ledger();
            assert!(ledger.begin(0, "a"));
            ledger.end(0, "a", Change::Unsure);
            ledger
        };
        assert!(unsure().judge(0, &disk(&[("a", "2")])).is_empty());
        let mut gone = unsure();
        assert!(gone.judge(0, &disk(&[])).is_empty());
        assert!(gone.is_absent(0, "a"), "it is known from then on");
        assert_eq!(unsure().judge(0, &disk(&[("a", "9")])), ["a of peer1 is 9, which nobody ever published"]);
    }

    #[test]
    fn one_change_at_a_time() {
        let mut ledger = ledger();
        assert!(ledger.begin(0, "a") && !ledger.begin(0, "a") && ledger.begin(1, "a"));
        assert!(ledger.names_of(0).is_empty());
        ledger.end(0, "a", Change::Gone);
        assert!(ledger.is_absent(0, "a") && ledger.begin(0, "a"));
    }
}
