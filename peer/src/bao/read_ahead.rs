//! Positional reading in large runs, so that no group costs a system call.

use std::{
    fs::File,
    io::{self, IoSliceMut},
};

use rustix::{buffer::spare_capacity, io::Errno};

/// Reads a file in runs and hands out small parts of them.
#[derive(Debug)]
pub(crate) struct RunReader<'a> {
    file: &'a File,
    run_bytes: usize,
    run: Vec<u8>,
    run_offset: u64,
}

impl<'a> RunReader<'a> {
    /// A reader that reads `run_bytes` at a time.
    pub(crate) fn new(file: &'a File, run_bytes: usize) -> Self {
        Self { file, run_bytes, run: Vec::new(), run_offset: 0 }
    }

    /// Sees to it that the `len` bytes at `offset` are in the [`run`](Self::run), and says where in it. When they have to be
    /// read, so is what follows them, up to `run_end`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
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

    /// What was read last.
    pub(crate) fn run(&self) -> &[u8] {
        &self.run
    }
}

/// Reads up to `wanted` bytes, `needed` at least; into memory that is not written before, which `std` cannot yet. (The
/// outboard of a file that is being received may end early.)
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

/// Fills all places, in order, from one run of a file.
///
/// # Errors
/// `UnexpectedEof` when the file ends before.
pub(crate) fn read_exact_vectored_at(file: &File, mut places: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
    let mut next = offset;
    while !places.is_empty() {
        match rustix::io::preadv(file, places, next) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                next += read as u64;
                IoSliceMut::advance_slices(&mut places, read);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
