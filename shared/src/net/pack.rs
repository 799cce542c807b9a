//! Packs: many small contents on one stream.
//!
//! ```text
//! asker  -> owner   kind byte 17, length (4 bytes, big endian), PackRequest, end of stream
//! owner  -> asker   length, Result<PackAccepted, BulkRefusal>; if accepted, zeros and a one while and when the turn comes, as on
//!                   bulk streams, then for each content in the order of the request one byte: 0 and all of its bytes, or
//!                   the number of an ItemRefusal; end of stream
//! ```
//!
//! No proofs travel: a small content is checked as a whole, by its hash, before any of it is used.

use serde::{Deserialize, Serialize};

use crate::{
    content::ContentHash,
    limits::{MAX_BULK_HEADER_BYTES, MAX_PACK_BYTES, MAX_PACK_CONTENTS, MAX_PACKED_FILE_BYTES},
};

/// What an asker wants: contents with their sizes in bytes, in the order in which they shall come.
///
/// A value read from the wire has been checked by nobody; [`PackRequest::contents`] does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRequest(Vec<(ContentHash, u64)>);

/// What stands in place of a content's hash where an owner is asked for its report on packs (`PeerService::upload_report`): all packs
/// to one peer are one report. As [`crate::content::DIRECTORY_HASH`] it is derived in a mode of BLAKE3 of its own, from
/// [`PACKS_CONTEXT`], so no bytes have it; an owner that does not know it has no report.
pub const PACKS_HASH: ContentHash = ContentHash([
    0x1c, 0xd6, 0x38, 0x73, 0x09, 0x14, 0xf4, 0x62, 0x53, 0xa1, 0xf3, 0xdf, 0xf5, 0x5d, 0x24, 0x47, 0x96, 0x1e, 0x0e,
    0xd5, 0xaa, 0x6a, 0xca, 0x80, 0xf6, 0xa9, 0xfe, 0xfb, 0xde, 0xdf, 0x62, 0xa8,
]);

/// See [`PACKS_HASH`].
pub const PACKS_CONTEXT: &str = "Brasa 2026-11-22 packs to one peer";

/// The owner begins to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackAccepted;

/// Why a request for a pack is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPack {
    /// It names no content, or more than [`MAX_PACK_CONTENTS`].
    #[error("{0} contents in a pack")]
    Count(usize),
    /// A content is larger than [`MAX_PACKED_FILE_BYTES`].
    #[error("a content of {0} bytes in a pack")]
    TooLarge(u64),
    /// All together are larger than [`MAX_PACK_BYTES`].
    #[error("{0} bytes in a pack")]
    TooMuch(u64),
    /// The bytes are not a request at all.
    #[error("malformed request")]
    Malformed,
}

impl PackRequest {
    /// A request for these contents.
    ///
    /// # Errors
    /// When there are too many of them, or too large ones.
    pub fn new(contents: Vec<(ContentHash, u64)>) -> Result<Self, InvalidPack> {
        let request = Self(contents);
        request.contents()?;
        Ok(request)
    }

    /// Reads a request from the bytes of its header (without the length before it), all bounds checked.
    ///
    /// # Errors
    /// When it is malformed or goes over a bound.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidPack> {
        if bytes.len() > MAX_BULK_HEADER_BYTES {
            return Err(InvalidPack::Malformed);
        }
        let request: Self = postcard::from_bytes(bytes).map_err(|_| InvalidPack::Malformed)?;
        request.contents()?;
        Ok(request)
    }

    /// The contents, once it is sure that they keep to the bounds.
    ///
    /// # Errors
    /// When they do not.
    pub fn contents(&self) -> Result<&[(ContentHash, u64)], InvalidPack> {
        if self.0.is_empty() || self.0.len() > MAX_PACK_CONTENTS {
            return Err(InvalidPack::Count(self.0.len()));
        }
        if let Some((_, size)) = self.0.iter().find(|(_, size)| *size > MAX_PACKED_FILE_BYTES) {
            return Err(InvalidPack::TooLarge(*size));
        }
        // Bounded by the two checks above, so it cannot overflow.
        let bytes: u64 = self.0.iter().map(|(_, size)| *size).sum();
        if bytes > MAX_PACK_BYTES { Err(InvalidPack::TooMuch(bytes)) } else { Ok(&self.0) }
    }
}

/// Why an owner leaves one content of a pack out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ItemRefusal {
    /// It does not have it (any more), or not in this size.
    #[error("it does not have this content (any more)")]
    NotHere,
    /// It cannot read its own file.
    #[error("it cannot read the file")]
    Unreadable,
    /// Its file is not any more what it was when it was hashed.
    #[error("its file changed")]
    Changed,
}

/// The byte before a content that comes.
pub const ITEM_FOLLOWS: u8 = 0;

impl ItemRefusal {
    /// The byte on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::NotHere => 1,
            Self::Unreadable => 2,
            Self::Changed => 3,
        }
    }

    /// What a byte stands for.
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
    fn no_bytes_have_the_hash_of_packs() {
        assert_eq!(PACKS_HASH.to_hex(), ContentHash(blake3::derive_key(PACKS_CONTEXT, &[])).to_hex());
    }

    #[test]
    fn a_pack_keeps_to_its_bounds() {
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
