//! Bulk streams: a request, a reply, then groups of one content with their proofs (docs/transfer.md, "The stream").
//!
//! ```text
//! receiver -> owner      kind byte 16, length (4 bytes, big endian), BulkRequest, end of stream
//! owner    -> receiver   length, Result<BulkAccepted, BulkRefusal>; if accepted,
//!                        a byte 0 every `peer::upload::params::QUEUE_KEEPALIVE` while the request is queued, a byte
//! 1, then
//!                        the verified stream: BLAKE3 tree nodes and groups of 16 KiB in pre-order,
//!                        end of stream
//! ```
//!
//! The zero bytes distinguish a busy owner from a dead one. The size in the reply is untrusted until the hash tree
//! proves it.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{content::ContentHash, limits::MAX_BULK_HEADER_BYTES};

/// Request for groups of a content, at most [`MAX_BULK_HEADER_BYTES`] encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkRequest {
    /// Hash of the content.
    pub hash: ContentHash,
    /// Requested groups of 16 KiB (`limits::GROUP_BYTES`), as sorted half-open ranges of group numbers. Empty requests
    /// all groups.
    pub groups: Vec<(u64, u64)>,
}

/// Acceptance of a [`BulkRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkAccepted {
    /// Size of the complete content, bytes.
    pub size: u64,
}

/// Refusal of a [`BulkRequest`] or a `PackRequest` by the owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum BulkRefusal {
    /// The owner does not have the content, or no longer has it. The receiver asks another owner.
    #[error("the owner no longer has this content")]
    NotHere,
    /// The owner's upload queue is full. The receiver retries later or asks another owner.
    #[error("the owner's upload queue is full")]
    Busy,
    /// The ranges are empty, unsorted or beyond the end of the content.
    #[error("the requested ranges are invalid")]
    BadRanges,
    /// The owner cannot read its file.
    #[error("the owner cannot read the file")]
    Unreadable,
    /// The owner has to hash its file before it can serve it. The receiver asks again later, or another owner.
    #[error("the owner is hashing the file; it is asked again")]
    Hashing,
}

/// Application error codes of RESET_STREAM and STOP_SENDING on a bulk or pack stream (RFC 9000 sections 19.4 and 19.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BulkAbort {
    /// From the owner: its file has changed. The receiver asks another owner.
    Changed,
    /// From the owner: its disk failed, or the receiver made no progress for too long. The content may be intact, so
    /// the receiver can retry later or ask another owner.
    Stopped,
    /// From the receiver: it needs no more data.
    Enough,
    /// From the receiver: the data does not match the hash tree. The owner checks its file.
    Wrong,
}

impl BulkAbort {
    /// Returns the code on the wire.
    pub fn to_varint(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(match self {
            Self::Changed => 1,
            Self::Stopped => 2,
            Self::Enough => 3,
            Self::Wrong => 4,
        })
    }

    /// Returns the reason of a code on the wire, or `None` for an unknown code.
    pub fn from_varint(code: quinn::VarInt) -> Option<Self> {
        [Self::Changed, Self::Stopped, Self::Enough, Self::Wrong].into_iter().find(|abort| abort.to_varint() == code)
    }
}

/// Status byte of a request that waits for an upload slot.
pub const BULK_WAITS: u8 = 0;
/// Status byte that precedes the data.
pub const BULK_BEGINS: u8 = 1;

/// Error of writing or reading a header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The stream ended or failed.
    #[error(transparent)]
    Stream(#[from] std::io::Error),
    /// The message is longer than [`MAX_BULK_HEADER_BYTES`]; holds its length, bytes.
    #[error("a header of {0} bytes is too long")]
    TooLong(usize),
    /// The bytes do not encode the expected message.
    #[error("malformed header")]
    Malformed,
}

/// Writes a message preceded by its length.
///
/// # Errors
/// Fails if the message is longer than [`MAX_BULK_HEADER_BYTES`] or the stream fails.
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

/// Reads a message preceded by its length. Consumes no byte after the message, and none of a message that is too long.
///
/// # Errors
/// Fails if the message is longer than [`MAX_BULK_HEADER_BYTES`] or malformed, or if the stream ends or fails.
pub async fn read_header<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, HeaderError> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_BULK_HEADER_BYTES {
        return Err(HeaderError::TooLong(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    postcard::from_bytes(&body).map_err(|_| HeaderError::Malformed)
}
