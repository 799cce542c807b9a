//! File contents: hashes, hash prefixes and metadata.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::file_name::FileName;

/// BLAKE3 hash of a file's bytes (32 bytes; BLAKE3 paper, section 2). It identifies a *version* of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// Returns the hash as 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// Returns the first ten hexadecimal digits, for display.
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

/// Reserved hash that marks an empty directory. Such an entry has size 0.
///
/// It is derived from [`DIRECTORY_CONTEXT`] with BLAKE3's key derivation mode (BLAKE3 paper, section 6), whose outputs
/// are disjoint from file hashes, so no file has this hash.
///
/// A reserved value needs no new field: the wire format and the file formats do not change, and an empty file and an
/// empty directory of the same name are two versions. A peer without support for it sees a file that it cannot fetch.
pub const DIRECTORY_HASH: ContentHash = ContentHash([
    0x35, 0xaf, 0xac, 0x8f, 0x14, 0xbe, 0xa6, 0x2b, 0x5f, 0x9b, 0x20, 0x58, 0x48, 0x83, 0x07, 0x3a, 0xbb, 0x54, 0xe8,
    0xec, 0xca, 0x68, 0x9e, 0xb4, 0x61, 0x62, 0x1c, 0x47, 0x4a, 0xe3, 0xd0, 0xd2,
]);

/// Key derivation context of [`DIRECTORY_HASH`].
pub const DIRECTORY_CONTEXT: &str = "Brasa 2026-11-22 directory with nothing in it";

/// Prefix of a [`ContentHash`], as a user types it after `@`: 4 to 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashPrefix(String);

/// Error of parsing a [`HashPrefix`]; holds the first 80 characters of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hash prefix: expected 4 to 64 hexadecimal digits")]
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
    /// Returns true if `hash` begins with these digits.
    pub fn matches(&self, hash: &ContentHash) -> bool {
        hash.to_hex().starts_with(&self.0)
    }
}

impl fmt::Display for HashPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Metadata of a shared file or of an empty directory, as its owner reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// Name within the share.
    pub name: FileName,
    /// Size, bytes.
    pub size: u64,
    /// Hash of the file's bytes; [`DIRECTORY_HASH`] for an empty directory.
    pub hash: ContentHash,
    /// Time of the last modification, microseconds since the Unix epoch (negative before it).
    pub mtime_micros: i64,
    /// Execute permission of the file's owner.
    pub executable: bool,
}

impl FileMeta {
    /// Returns true for an empty directory.
    pub fn is_directory(&self) -> bool {
        self.size == 0 && self.hash == DIRECTORY_HASH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_hash_is_derived_from_its_context() {
        assert_eq!(DIRECTORY_HASH.to_hex(), ContentHash(blake3::derive_key(DIRECTORY_CONTEXT, &[])).to_hex());
        assert_ne!(DIRECTORY_HASH.0, *blake3::hash(&[]).as_bytes());
    }

    #[test]
    fn hash_prefix_matches_only_hashes_that_begin_with_it() {
        let hash = ContentHash([0xab; 32]);
        assert!("ABab".parse::<HashPrefix>().unwrap().matches(&hash));
        assert!(!"abac".parse::<HashPrefix>().unwrap().matches(&hash));
        for bad in ["", "abc", "xyzw", &"a".repeat(65)] {
            assert!(bad.parse::<HashPrefix>().is_err(), "{bad:?}");
        }
    }
}
