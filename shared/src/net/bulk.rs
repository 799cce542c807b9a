//! Bulk streams: a request, a reply, then a file's bytes.
//!
//! ```text
//! asker  -> owner   kind byte 16, length (4 bytes, big endian), BulkRequest, end of stream
//! owner  -> asker   length, Result<BulkAccepted, BulkRefusal>; if accepted,
//!                   a byte 0 every `limits::QUEUE_KEEPALIVE` while the request waits for its turn, a byte 1, then
//!                   the verified stream: BLAKE3 tree nodes and groups of 16 KiB in pre-order (docs/transfer.md),
//!                   end of stream
//! ```
//!
//! The zeros tell a busy owner from a dead one.
//!
//! The size in the reply is a claim like any other: only the tree can prove it.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{content::ContentHash, limits::MAX_BULK_HEADER_BYTES};

/// What an asker wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkRequest {
    /// Which content.
    pub hash: ContentHash,
    /// Which groups of 16 KiB (`limits::GROUP_BYTES`), as sorted half-open ranges; empty: all of them.
    pub groups: Vec<(u64, u64)>,
}

/// The owner sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkAccepted {
    /// Size of the whole content, bytes.
    pub size: u64,
}

/// The owner does not send it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum BulkRefusal {
    /// It does not have it (any more); ask another.
    #[error("it does not have this content (any more)")]
    NotHere,
    /// It is serving as many as it will; try again later or elsewhere.
    #[error("it serves as many as it can")]
    Busy,
    /// The ranges are not sorted, empty or beyond the end.
    #[error("it does not understand the ranges")]
    BadRanges,
    /// It cannot read its own file.
    #[error("it cannot read the file")]
    Unreadable,
}

/// Codes with which a bulk stream is broken off (RFC 9000 section 19.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BulkAbort {
    /// The owner's file is not any more what it was: ask another.
    Changed,
    /// The owner stops: its disk fails, or the asker took nothing for too long. The content may be all right: ask again later,
    /// or another.
    Stopped,
    /// The asker has what it needs, or gives up.
    Enough,
    /// The asker got bytes that are not the content's: the owner should look at its file.
    Wrong,
}

impl BulkAbort {
    /// The code on the wire.
    pub fn to_varint(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(match self {
            Self::Changed => 1,
            Self::Stopped => 2,
            Self::Enough => 3,
            Self::Wrong => 4,
        })
    }

    /// What a code stands for.
    pub fn from_varint(code: quinn::VarInt) -> Option<Self> {
        [Self::Changed, Self::Stopped, Self::Enough, Self::Wrong].into_iter().find(|abort| abort.to_varint() == code)
    }
}

/// The request waits for its turn.
pub const BULK_WAITS: u8 = 0;
/// The verified stream begins.
pub const BULK_BEGINS: u8 = 1;

/// Why a header could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The stream ended or failed.
    #[error(transparent)]
    Stream(#[from] std::io::Error),
    /// Longer than [`MAX_BULK_HEADER_BYTES`].
    #[error("a header of {0} bytes is too long")]
    TooLong(usize),
    /// Not what should stand there.
    #[error("malformed header")]
    Malformed,
}

/// Writes a message with its length before it.
///
/// # Errors
/// When it is too long or the stream fails.
pub async fn write_header<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), HeaderError> {
    let body = postcard::to_stdvec(message).map_err(|_| HeaderError::Malformed)?;
    if body.len() > MAX_BULK_HEADER_BYTES {
        return Err(HeaderError::TooLong(body.len()));
    }
    let length = u32::try_from(body.len()).map_err(|_| HeaderError::TooLong(body.len()))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    Ok(stream.write_all(&bytes).await?)
}

/// Reads a message with its length before it, and not a byte more.
///
/// # Errors
/// When it is too long, malformed, or the stream fails.
pub async fn read_header<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, HeaderError> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_BULK_HEADER_BYTES {
        return Err(HeaderError::TooLong(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    postcard::from_bytes(&body).map_err(|_| HeaderError::Malformed)
}
