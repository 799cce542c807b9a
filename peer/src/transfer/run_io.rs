//! Positional file access in large runs, so that no group costs a system call.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Reads a file in runs and hands out small parts of them.
#[derive(Debug)]
pub(crate) struct RunReader<'a> {
    file: &'a File,
    run: Vec<u8>,
    run_offset: u64,
    run_len: usize,
}

impl<'a> RunReader<'a> {
    /// A reader that holds `run_bytes` in memory.
    pub(crate) fn new(file: &'a File, run_bytes: usize) -> Self {
        Self { file, run: vec![0; run_bytes], run_offset: 0, run_len: 0 }
    }

    /// The `len` bytes at `offset`. When they have to be read, so is what follows them, up to `run_end`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    pub(crate) fn read(&mut self, offset: u64, len: usize, run_end: u64) -> io::Result<&[u8]> {
        let buffered = offset.checked_sub(self.run_offset).and_then(|skip| usize::try_from(skip).ok());
        let at = match buffered {
            Some(at) if at + len <= self.run_len => at,
            _ => {
                let wanted = usize::try_from(run_end.saturating_sub(offset)).unwrap_or(usize::MAX);
                self.run_len = 0;
                self.run_offset = offset;
                let wanted = wanted.clamp(len, self.run.len().max(len));
                if self.run.len() < wanted {
                    self.run.resize(wanted, 0);
                }
                self.file.read_exact_at(&mut self.run[..wanted], offset)?;
                self.run_len = wanted;
                0
            }
        };
        Ok(&self.run[at..at + len])
    }
}

/// Collects small parts of a file and writes them in runs.
#[derive(Debug)]
pub(crate) struct RunWriter<'a> {
    file: &'a File,
    run: Vec<u8>,
    run_offset: u64,
    run_len: usize,
}

impl<'a> RunWriter<'a> {
    /// A writer that collects up to `run_bytes`.
    pub(crate) fn new(file: &'a File, run_bytes: usize) -> Self {
        Self { file, run: vec![0; run_bytes], run_offset: 0, run_len: 0 }
    }

    /// A place for the `len` bytes at `offset`, which are at most a run; they count only after [`commit`](Self::commit).
    ///
    /// # Errors
    /// When the run before had to be written and could not be.
    pub(crate) fn slot(&mut self, offset: u64, len: usize) -> io::Result<&mut [u8]> {
        if !self.has_room(offset, len) {
            self.flush()?;
        }
        if self.run_len == 0 {
            self.run_offset = offset;
        }
        Ok(&mut self.run[self.run_len..self.run_len + len])
    }

    /// Whether the `len` bytes at `offset` join the run without a write.
    pub(crate) fn has_room(&self, offset: u64, len: usize) -> bool {
        self.run_len == 0 || (self.run_offset + self.run_len as u64 == offset && self.run_len + len <= self.run.len())
    }

    /// Takes the last slot's bytes.
    pub(crate) fn commit(&mut self, len: usize) {
        self.run_len += len;
    }

    /// Writes what was collected.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let len = std::mem::take(&mut self.run_len);
        if len > 0 {
            self.file.write_all_at(&self.run[..len], self.run_offset)?;
            self.run_offset += len as u64;
        }
        Ok(())
    }

    /// Bytes that were committed and not written yet.
    pub(crate) fn pending(&self) -> usize {
        self.run_len
    }
}
