//! Buffers for what is sent, used again and again: a transfer touches the same memory all the time instead of asking for more.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use shared::limits::{BULK_BATCH_BYTES, GROUP_BYTES};

use crate::bao::verifier::PAIR_BYTES;

/// A batch goes on until it is full; the last group, with the pairs before it, may stand over. A tree has at most 64 levels.
const BUFFER_BYTES: usize = BULK_BATCH_BYTES + GROUP_BYTES as usize + 64 * PAIR_BYTES;

/// Buffers that nobody uses. How many there are is bounded by what QUIC keeps for retransmission (`limits::SEND_WINDOW_BYTES`) and
/// the channels of the uploads; all are freed when the last upload has ended.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { bytes: free.unwrap_or_else(|| vec![0; BUFFER_BYTES]), len: 0, pool: self.clone() }
    }
}

/// A buffer on its way; it goes back when nobody needs its bytes any more.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    pool: Arc<Pool>,
}

impl Buffer {
    /// All of it, with whatever was in it last.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Its first `len` bytes, to be handed on.
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
    fn a_buffer_comes_back_when_its_last_part_is_gone() {
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
