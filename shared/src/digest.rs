//! Digest of a share, 24 bytes.

use serde::{Deserialize, Serialize};

use crate::content::{ContentHash, FileMeta};

/// Incremental digest of a set of files, independent of their order: the sum of the files' hashes and their number
/// ("AdHash", Bellare and Micciancio 1997).
///
/// A tracker compares it with the digest of its own entries for a peer to detect that they differ. Only the peer itself
/// writes its entries, so a collision that it constructs affects no other peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShareDigest {
    /// Sum of the first 16 bytes of each file's hash, modulo 2^128, little-endian.
    sum: [u8; 16],
    /// Number of files.
    count: u64,
}

impl ShareDigest {
    /// Adds a file to the set.
    pub fn add(&mut self, file: &FileMeta) {
        self.add_fields(file.name.as_str(), file.hash, file.size, file.mtime_micros, file.executable);
    }

    /// Removes a file, which must be in the set.
    pub fn remove(&mut self, file: &FileMeta) {
        self.remove_fields(file.name.as_str(), file.hash, file.size, file.mtime_micros, file.executable);
    }

    /// Adds a file given by its fields. The size is in bytes, the time in microseconds since the Unix epoch.
    pub fn add_fields(&mut self, name: &str, hash: ContentHash, size: u64, mtime_micros: i64, executable: bool) {
        let file = hash_of(name, hash, size, mtime_micros, executable);
        self.sum = u128::from_le_bytes(self.sum).wrapping_add(file).to_le_bytes();
        self.count = self.count.wrapping_add(1);
    }

    /// Removes a file given by its fields, which must be in the set. The units are those of [`Self::add_fields`].
    pub fn remove_fields(&mut self, name: &str, hash: ContentHash, size: u64, mtime_micros: i64, executable: bool) {
        let file = hash_of(name, hash, size, mtime_micros, executable);
        self.sum = u128::from_le_bytes(self.sum).wrapping_sub(file).to_le_bytes();
        self.count = self.count.wrapping_sub(1);
    }
}

fn hash_of(name: &str, hash: ContentHash, size: u64, mtime_micros: i64, executable: bool) -> u128 {
    let mut hasher = blake3::Hasher::new();
    // The name has a variable length. It comes last, so two different files never encode to the same bytes.
    hasher.update(&hash.0).update(&size.to_le_bytes()).update(&mtime_micros.to_le_bytes());
    hasher.update(&[u8::from(executable)]).update(name.as_bytes());
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, n: u8) -> FileMeta {
        let hash = ContentHash([n; 32]);
        FileMeta { name: name.parse().unwrap(), size: 1, hash, mtime_micros: 0, executable: false }
    }

    #[test]
    fn digest_of_the_same_files_in_another_order_is_equal() {
        let files = [file("a", 1), file("b", 1), file("a", 2)];
        let (mut forward, mut backward) = (ShareDigest::default(), ShareDigest::default());
        files.iter().for_each(|file| forward.add(file));
        files.iter().rev().for_each(|file| backward.add(file));
        assert_eq!(forward, backward);
        files.iter().for_each(|file| backward.remove(file));
        assert_eq!(backward, ShareDigest::default());
    }

    #[test]
    fn digest_changes_with_every_field_of_a_file() {
        let changed: [fn(&mut FileMeta); 5] = [
            |file| file.name = "b".parse().unwrap(),
            |file| file.size = 2,
            |file| file.hash = ContentHash([9; 32]),
            |file| file.mtime_micros = -1,
            |file| file.executable = true,
        ];
        let mut plain = ShareDigest::default();
        plain.add(&file("a", 1));
        for change in changed {
            let (mut other, mut digest) = (file("a", 1), ShareDigest::default());
            change(&mut other);
            digest.add(&other);
            assert_ne!(digest, plain, "{other:?}");
        }
    }
}
