//! Buffers for direct I/O.

use super::params::DIRECT_ALIGNMENT;

/// Buffer that begins at a multiple of `DIRECT_ALIGNMENT`, as direct I/O requires (open(2), `O_DIRECT`).
#[derive(Debug, Default)]
pub(crate) struct AlignedBuffer {
    /// Never reallocated, so its bytes stay aligned.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Creates a buffer of `len` zeros.
    pub(crate) fn new(len: usize) -> Self {
        let bytes = vec![0; len + DIRECT_ALIGNMENT];
        let start = bytes.as_ptr().addr().next_multiple_of(DIRECT_ALIGNMENT) - bytes.as_ptr().addr();
        Self { bytes, start, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_stays_aligned_when_it_is_moved() {
        for len in [0, 1, 4095, 4096, 1 << 20] {
            let mut buffer = AlignedBuffer::new(len);
            buffer.bytes_mut().fill(7);
            let moved = Box::new(buffer);
            let bytes = moved.bytes();
            assert_eq!(bytes.len(), len);
            assert!(bytes.iter().all(|byte| *byte == 7));
            assert_eq!(bytes.as_ptr().addr() % DIRECT_ALIGNMENT, 0);
        }
    }
}
