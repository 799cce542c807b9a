//! Pack streams: many small contents on one stream (docs/transfer.md, "Small files").
//!
//! ```text
//! receiver -> owner      kind byte 17, length (4 bytes, big endian), PackRequest, end of stream
//! owner    -> receiver   length, Result<PackAccepted, BulkRefusal>; if accepted, status bytes as on a bulk stream,
//!                        then for each content in the order of the request one byte: 0 followed by all of its
//!                        bytes, or the code of an ItemRefusal; end of stream
//! ```
//!
//! A pack carries no proofs. The receiver verifies each content as a whole against its hash before it uses any of it.

use serde::{Deserialize, Serialize};

use crate::{
    content::ContentHash,
    limits::{MAX_BULK_HEADER_BYTES, MAX_PACK_BYTES, MAX_PACK_CONTENTS, MAX_PACKED_FILE_BYTES},
};

/// Request for contents, given by hash and size in bytes, in the order of delivery.
///
/// Deserialising does not check the limits; [`PackRequest::parse`] and [`PackRequest::contents`] do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRequest(Vec<(ContentHash, u64)>);

/// Reserved hash that requests the report on packs from `PeerService::upload_report`: one report covers all packs to
/// one peer.
///
/// Like [`crate::content::DIRECTORY_HASH`] it is derived with BLAKE3's key derivation mode, from [`PACKS_CONTEXT`], so
/// no content has it. An owner without support for it returns no report.
pub const PACKS_HASH: ContentHash = ContentHash([
    0x1c, 0xd6, 0x38, 0x73, 0x09, 0x14, 0xf4, 0x62, 0x53, 0xa1, 0xf3, 0xdf, 0xf5, 0x5d, 0x24, 0x47, 0x96, 0x1e, 0x0e,
    0xd5, 0xaa, 0x6a, 0xca, 0x80, 0xf6, 0xa9, 0xfe, 0xfb, 0xde, 0xdf, 0x62, 0xa8,
]);

/// Key derivation context of [`PACKS_HASH`].
pub const PACKS_CONTEXT: &str = "Brasa 2026-11-22 packs to one peer";

/// Acceptance of a [`PackRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackAccepted;

/// Error of a pack request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPack {
    /// The number of contents, given here, is 0 or above [`MAX_PACK_CONTENTS`].
    #[error("a pack of {0} contents is out of bounds")]
    Count(usize),
    /// The size of a content, given here in bytes, is above [`MAX_PACKED_FILE_BYTES`].
    #[error("a content of {0} bytes is too large for a pack")]
    TooLarge(u64),
    /// The total size, given here in bytes, is above [`MAX_PACK_BYTES`].
    #[error("a pack of {0} bytes is too large")]
    TooMuch(u64),
    /// The bytes do not encode a request.
    #[error("malformed request")]
    Malformed,
}

impl PackRequest {
    /// Creates a request for `contents`.
    ///
    /// # Errors
    /// Fails if a limit is exceeded or `contents` is empty.
    pub fn new(contents: Vec<(ContentHash, u64)>) -> Result<Self, InvalidPack> {
        let request = Self(contents);
        request.contents()?;
        Ok(request)
    }

    /// Parses a request from its encoding, without the length that precedes it, and checks all limits.
    ///
    /// # Errors
    /// Fails if the bytes are malformed or a limit is exceeded.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidPack> {
        if bytes.len() > MAX_BULK_HEADER_BYTES {
            return Err(InvalidPack::Malformed);
        }
        let request: Self = postcard::from_bytes(bytes).map_err(|_| InvalidPack::Malformed)?;
        request.contents()?;
        Ok(request)
    }

    /// Returns the contents after checking all limits.
    ///
    /// # Errors
    /// Fails if a limit is exceeded or the request is empty.
    pub fn contents(&self) -> Result<&[(ContentHash, u64)], InvalidPack> {
        if self.0.is_empty() || self.0.len() > MAX_PACK_CONTENTS {
            return Err(InvalidPack::Count(self.0.len()));
        }
        if let Some((_, size)) = self.0.iter().find(|(_, size)| *size > MAX_PACKED_FILE_BYTES) {
            return Err(InvalidPack::TooLarge(*size));
        }
        // The checks above bound the sum, so it cannot overflow.
        let bytes: u64 = self.0.iter().map(|(_, size)| *size).sum();
        if bytes > MAX_PACK_BYTES { Err(InvalidPack::TooMuch(bytes)) } else { Ok(&self.0) }
    }
}

/// Reason why an owner omits one content of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ItemRefusal {
    /// The owner has no content with this hash and size, or no longer has it.
    #[error("the owner no longer has this content")]
    NotHere,
    /// The owner cannot read its file.
    #[error("the owner cannot read the file")]
    Unreadable,
    /// The owner's file has changed since it was hashed.
    #[error("the owner's file has changed")]
    Changed,
}

/// Byte that precedes the bytes of a content.
pub const ITEM_FOLLOWS: u8 = 0;

impl ItemRefusal {
    /// Returns the byte on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::NotHere => 1,
            Self::Unreadable => 2,
            Self::Changed => 3,
        }
    }

    /// Returns the reason of a byte on the wire, or `None` for an unknown byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::NotHere, Self::Unreadable, Self::Changed].into_iter().find(|refusal| refusal.to_byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(count: usize, size: u64) -> Vec<(ContentHash, u64)> {
        vec![(ContentHash([7; 32]), size); count]
    }

    #[test]
    fn packs_hash_is_derived_from_its_context() {
        assert_eq!(PACKS_HASH.to_hex(), ContentHash(blake3::derive_key(PACKS_CONTEXT, &[])).to_hex());
    }

    #[test]
    fn pack_request_beyond_a_limit_is_rejected() {
        let largest = usize::try_from(MAX_PACK_BYTES / MAX_PACKED_FILE_BYTES).unwrap();
        for fits in [contents(1, 0), contents(MAX_PACK_CONTENTS, 1), contents(largest, MAX_PACKED_FILE_BYTES)] {
            let request = PackRequest::new(fits.clone()).unwrap();
            let bytes = postcard::to_stdvec(&request).unwrap();
            assert!(bytes.len() <= MAX_BULK_HEADER_BYTES, "{} bytes", bytes.len());
            assert_eq!(PackRequest::parse(&bytes).unwrap().contents().unwrap(), fits);
        }
        let refused = [
            (contents(0, 0), InvalidPack::Count(0)),
            (contents(MAX_PACK_CONTENTS + 1, 0), InvalidPack::Count(MAX_PACK_CONTENTS + 1)),
            (contents(1, MAX_PACKED_FILE_BYTES + 1), InvalidPack::TooLarge(MAX_PACKED_FILE_BYTES + 1)),
            (contents(2, u64::MAX), InvalidPack::TooLarge(u64::MAX)),
            (
                contents(largest + 1, MAX_PACKED_FILE_BYTES),
                InvalidPack::TooMuch(MAX_PACK_BYTES + MAX_PACKED_FILE_BYTES),
            ),
        ];
        for (contents, why) in refused {
            assert_eq!(PackRequest::new(contents.clone()), Err(why.clone()));
            let bytes = postcard::to_stdvec(&contents).unwrap();
            assert_eq!(PackRequest::parse(&bytes), Err(why));
        }
        assert_eq!(PackRequest::parse(&[]), Err(InvalidPack::Malformed));
        assert_eq!(PackRequest::parse(&vec![0; MAX_BULK_HEADER_BYTES + 1]), Err(InvalidPack::Malformed));
    }
}
