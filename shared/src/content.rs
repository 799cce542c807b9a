//! One content of a file: its hash, size and time.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::file_name::FileName;

/// BLAKE3 hash of a file's bytes (32 bytes; BLAKE3 paper, section 2). It names a *version* of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The hash as 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The first ten digits: enough for people to tell versions apart.
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..5])
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// What stands in place of a content for a directory with nothing in it: such an entry has this "hash" and no bytes. It is derived from
/// [`DIRECTORY_CONTEXT`] in a mode of BLAKE3 of its own (section 6 of the paper), so no bytes have it.
///
/// A value instead of a field: what peers tell each other and keep on their disks stays as it was, and an empty file and an empty
/// directory of one name are two versions of it. A peer that does not know it sees a file that it cannot fetch.
pub const DIRECTORY_HASH: ContentHash = ContentHash([
    0x35, 0xaf, 0xac, 0x8f, 0x14, 0xbe, 0xa6, 0x2b, 0x5f, 0x9b, 0x20, 0x58, 0x48, 0x83, 0x07, 0x3a, 0xbb, 0x54, 0xe8,
    0xec, 0xca, 0x68, 0x9e, 0xb4, 0x61, 0x62, 0x1c, 0x47, 0x4a, 0xe3, 0xd0, 0xd2,
]);

/// See [`DIRECTORY_HASH`].
pub const DIRECTORY_CONTEXT: &str = "Brasa 2026-11-22 directory with nothing in it";

/// The beginning of a [`ContentHash`] as a person types it after `@`: 4 to 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashPrefix(String);

/// Why a text is not a [`HashPrefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hash: 4 to 64 hexadecimal digits")]
pub struct InvalidHashPrefix(pub String);

impl FromStr for HashPrefix {
    type Err = InvalidHashPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidHashPrefix> {
        if (4..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidHashPrefix(text.chars().take(80).collect()))
        }
    }
}

impl HashPrefix {
    /// Whether `hash` begins with these digits.
    pub fn matches(&self, hash: &ContentHash) -> bool {
        hash.to_hex().starts_with(&self.0)
    }
}

impl fmt::Display for HashPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file, or a directory with nothing in it, as its owner describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// Its name within the share.
    pub name: FileName,
    /// Bytes.
    pub size: u64,
    /// Hash of its bytes; [`DIRECTORY_HASH`] for a directory.
    pub hash: ContentHash,
    /// Last modification, microseconds since 1970 (negative before).
    pub mtime_micros: i64,
    /// Whether its owner may execute it.
    pub executable: bool,
}

impl FileMeta {
    /// Whether it is a directory with nothing in it.
    pub fn is_directory(&self) -> bool {
        self.size == 0 && self.hash == DIRECTORY_HASH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_have_the_hash_of_a_directory() {
        assert_eq!(DIRECTORY_HASH.to_hex(), ContentHash(blake3::derive_key(DIRECTORY_CONTEXT, &[])).to_hex());
        assert_ne!(DIRECTORY_HASH.0, *blake3::hash(&[]).as_bytes());
    }

    #[test]
    fn a_prefix_matches_what_it_begins() {
        let hash = ContentHash([0xab; 32]);
        assert!("ABab".parse::<HashPrefix>().unwrap().matches(&hash));
        assert!(!"abac".parse::<HashPrefix>().unwrap().matches(&hash));
        for bad in ["", "abc", "xyzw", &"a".repeat(65)] {
            assert!(bad.parse::<HashPrefix>().is_err(), "{bad:?}");
        }
    }
}
