//! What a peer shares, in 24 bytes: two shares with the same digest are the same.

use serde::{Deserialize, Serialize};

use crate::content::{ContentHash, FileMeta};

/// A digest of a set of files that does not depend on their order and changes with each file alone: the sum of the files'
/// hashes, and their number ("AdHash", Bellare and Micciancio 1997).
///
/// It tells a tracker whether what it has of a peer is what the peer has. A peer is the only writer of its entries, so it
/// could deceive nobody but itself by finding two sets with the same sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShareDigest {
    /// Sum of the first 16 bytes of each file's hash, modulo 2^128, little-endian.
    sum: [u8; 16],
    /// Files.
    count: u64,
}

impl ShareDigest {
    /// The set has one file more.
    pub fn add(&mut self, file: &FileMeta) {
        self.add_described(file.name.as_str(), file.hash, file.size, file.mtime_micros, file.executable);
    }

    /// The set has one file less, which it had.
    pub fn remove(&mut self, file: &FileMeta) {
        self.remove_described(file.name.as_str(), file.hash, file.size, file.mtime_micros, file.executable);
    }

    /// As [`Self::add`], of a file that is not kept in one piece. Size in bytes, time in microseconds since 1970.
    pub fn add_described(&mut self, name: &str, hash: ContentHash, size: u64, mtime_micros: i64, executable: bool) {
        let file = hash_of(name, hash, size, mtime_micros, executable);
        self.sum = u128::from_le_bytes(self.sum).wrapping_add(file).to_le_bytes();
        self.count = self.count.wrapping_add(1);
    }

    /// As [`Self::remove`], of a file that is not kept in one piece. Size in bytes, time in microseconds since 1970.
    pub fn remove_described(&mut self, name: &str, hash: ContentHash, size: u64, mtime_micros: i64, executable: bool) {
        let file = hash_of(name, hash, size, mtime_micros, executable);
        self.sum = u128::from_le_bytes(self.sum).wrapping_sub(file).to_le_bytes();
        self.count = self.count.wrapping_sub(1);
    }
}

fn hash_of(name: &str, hash: ContentHash, size: u64, mtime_micros: i64, executable: bool) -> u128 {
    let mut hasher = blake3::Hasher::new();
    // The name is last, so that no two files are the same bytes.
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
    fn it_depends_on_the_files_and_not_on_their_order() {
        let files = [file("a", 1), file("b", 1), file("a", 2)];
        let (mut there, mut back) = (ShareDigest::default(), ShareDigest::default());
        files.iter().for_each(|file| there.add(file));
        files.iter().rev().for_each(|file| back.add(file));
        assert_eq!(there, back);
        files.iter().for_each(|file| back.remove(file));
        assert_eq!(back, ShareDigest::default());
    }

    #[test]
    fn whatever_is_different_in_a_file_shows() {
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
