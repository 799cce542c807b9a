//! Digest of a run's whole trace, to show that a refactoring of the core changes no behaviour.
//!
//! `BRASA_SIM_DIGEST=1` hashes, for every step of every seed, the time, the peer, the event, the actions and the next
//! deadline, and prints one digest of all seeds. Two builds with the same digest act alike, event for event. The digest
//! covers `Debug` text, in which each identifier is replaced by the order of its first appearance in the seed: renaming
//! a type, variant or field keeps the digest; merging, splitting or reordering them changes it. An intended change of
//! behaviour changes it too, so the value is compared between two commits and not stored.

use std::{collections::HashMap, fmt::Debug};

use shared::time::Timestamp;

/// The trace of one seed.
#[derive(Default)]
pub(crate) struct Digest {
    hasher: blake3::Hasher,
    /// Identifiers, numbered by first appearance.
    names: HashMap<String, u32>,
}

impl Digest {
    /// Adds one step of `peer`.
    pub(crate) fn record(&mut self, now: Timestamp, peer: usize, step: impl Debug) {
        self.hasher.update(&now.since_origin().as_nanos().to_le_bytes());
        self.hasher.update(&peer.to_le_bytes());
        let text = format!("{step:?}");
        let mut rest = text.as_str();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                '"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
                _ if is_name(first) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            let (token, after) = rest.split_at(length);
            if first.is_ascii_alphabetic() || first == '_' {
                let next = u32::try_from(self.names.len()).expect("few names");
                let number = *self.names.entry(token.to_owned()).or_insert(next);
                self.hasher.update(&[0]).update(&number.to_le_bytes());
            } else {
                self.hasher.update(token.as_bytes());
            }
            rest = after;
        }
    }

    /// The digest of `seed`, to be summed over all seeds.
    pub(crate) fn of_seed(mut self, seed: u64) -> u64 {
        self.hasher.update(&seed.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&self.hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}
