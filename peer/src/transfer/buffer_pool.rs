//! Reused send buffers, so that running uploads allocate no new ones.

use std::sync::{Arc, Mutex, PoisonError};

use super::params::BULK_BATCH_BYTES;
use bytes::Bytes;
use shared::limits::GROUP_BYTES;

use crate::bao::verifier::PAIR_BYTES;

/// Size of a buffer, bytes. The last group of a batch may exceed [`BULK_BATCH_BYTES`]. The space for one pair for each
/// of 64 levels of the tree is a margin.
const BUFFER_BYTES: usize = BULK_BATCH_BYTES + GROUP_BYTES as usize + 64 * PAIR_BYTES;

/// Free buffers. Their number is bounded by the bytes that QUIC keeps for retransmission
/// (`shared::net::params::SEND_WINDOW_BYTES`) and by the channels of the uploads. All are freed when the last
/// upload drops its handle of the pool.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { bytes: free.unwrap_or_else(|| vec![0; BUFFER_BYTES]), len: 0, pool: self.clone() }
    }
}

/// A buffer in use. It returns to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    pool: Arc<Pool>,
}

impl Buffer {
    /// Returns the whole buffer, with the contents of its last use.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Returns the first `len` bytes, shared without a copy.
    pub(crate) fn freeze(mut self, len: usize) -> Bytes {
        self.len = len;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_returns_to_the_pool_when_its_last_part_is_dropped() {
        let pool = Arc::<Pool>::default();
        let mut buffer = pool.take();
        buffer.bytes_mut()[..3].copy_from_slice(b"abc");
        let bytes = buffer.freeze(3);
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!(&part[..], b"bc");
        assert!(pool.0.lock().unwrap().is_empty());
        drop(part);
        assert_eq!(pool.0.lock().unwrap().len(), 1);
        let _again = pool.take();
        assert!(pool.0.lock().unwrap().is_empty());
    }
}
