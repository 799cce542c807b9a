//! Memory that a disk can fetch from by itself.

use shared::limits::DIRECT_ALIGNMENT;

/// Bytes whose first lies at a multiple of `DIRECT_ALIGNMENT`, as writing past the page cache wants it (open(2), `O_DIRECT`).
#[derive(Debug, Default)]
pub(crate) struct AlignedBuffer {
    /// Never grows, so it stays where it is.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zeros.
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
    fn it_begins_where_it_should_and_moves_without_moving() {
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
