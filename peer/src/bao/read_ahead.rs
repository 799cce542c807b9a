//! Positional reads in large runs, which save a system call for each group.

use std::{
    fs::File,
    io::{self, IoSliceMut},
};

use rustix::{buffer::spare_capacity, io::Errno};

/// Reads a file in large runs and returns small parts of them.
#[derive(Debug)]
pub(crate) struct RunReader<'a> {
    file: &'a File,
    run_bytes: usize,
    run: Vec<u8>,
    run_offset: u64,
}

impl<'a> RunReader<'a> {
    /// Creates a reader that reads `run_bytes` at a time.
    pub(crate) fn new(file: &'a File, run_bytes: usize) -> Self {
        Self { file, run_bytes, run: Vec::new(), run_offset: 0 }
    }

    /// Ensures that the `len` bytes at `offset` are in the [`run`](Self::run), and returns their position in it. A read
    /// continues beyond them up to `run_end`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file is too short.
    pub(crate) fn read(&mut self, offset: u64, len: usize, run_end: u64) -> io::Result<usize> {
        let buffered = offset.checked_sub(self.run_offset).and_then(|skip| usize::try_from(skip).ok());
        if let Some(at) = buffered
            && at + len <= self.run.len()
        {
            return Ok(at);
        }
        let wanted = usize::try_from(run_end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = wanted.clamp(len, self.run_bytes.max(len));
        read_at_least(self.file, offset, len, wanted, &mut self.run)?;
        self.run_offset = offset;
        Ok(0)
    }

    /// Returns the bytes of the last read.
    pub(crate) fn run(&self) -> &[u8] {
        &self.run
    }
}

/// Reads up to `wanted` bytes. Fewer suffice from `needed` on, because the outboard of a partial file may be short.
/// Reads into uninitialised memory, which stable `std` does not support.
fn read_at_least(file: &File, offset: u64, needed: usize, wanted: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    bytes.reserve_exact(wanted);
    while bytes.len() < wanted {
        let next = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(bytes), next) {
            Ok(0) if bytes.len() >= needed => break,
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Fills all `buffers` in order from one run of a file.
///
/// # Errors
/// `UnexpectedEof` if the file is too short.
pub(crate) fn read_exact_vectored_at(file: &File, mut buffers: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
    let mut next = offset;
    while !buffers.is_empty() {
        match rustix::io::preadv(file, buffers, next) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                next += read as u64;
                IoSliceMut::advance_slices(&mut buffers, read);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
