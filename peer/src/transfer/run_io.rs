//! Positional reading in large runs, so that no group costs a system call.

use std::{fs::File, io};

use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};

/// Part of a file as it was read. Parts of it can be handed on without being copied.
pub(crate) type Run = Bytes;

/// Reads a file in runs and hands out small parts of them.
#[derive(Debug)]
pub(crate) struct RunReader<'a> {
    file: &'a File,
    run_bytes: usize,
    run: Run,
    run_offset: u64,
}

impl<'a> RunReader<'a> {
    /// A reader that reads `run_bytes` at a time.
    pub(crate) fn new(file: &'a File, run_bytes: usize) -> Self {
        Self { file, run_bytes, run: Run::new(), run_offset: 0 }
    }

    /// Sees to it that the `len` bytes at `offset` are in the [`run`](Self::run), and says where in it, and whether they
    /// had to be read. Then what follows them is read too, up to `run_end`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    pub(crate) fn read(&mut self, offset: u64, len: usize, run_end: u64) -> io::Result<(usize, bool)> {
        let buffered = offset.checked_sub(self.run_offset).and_then(|skip| usize::try_from(skip).ok());
        if let Some(at) = buffered
            && at + len <= self.run.len()
        {
            return Ok((at, false));
        }
        let wanted = usize::try_from(run_end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = wanted.clamp(len, self.run_bytes.max(len));
        self.run = read_at_least(self.file, offset, len, wanted)?;
        self.run_offset = offset;
        Ok((0, true))
    }

    /// What was read last.
    pub(crate) fn run(&self) -> &Run {
        &self.run
    }
}

/// Reads up to `wanted` bytes, `needed` at least; into memory that is not written before, which `std` cannot yet. (The
/// outboard of a file that is being received ends early.)
fn read_at_least(file: &File, offset: u64, needed: usize, wanted: usize) -> io::Result<Run> {
    let mut bytes = Vec::with_capacity(wanted);
    while bytes.len() < wanted {
        let next = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), next) {
            Ok(0) if bytes.len() >= needed => break,
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Run::from(bytes))
}
