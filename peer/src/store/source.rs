//! File of the share, opened for sending.

use std::{fs::File, io};

use shared::content::ContentHash;

use super::file_stat::FileStat;

/// Open file with the outboard that proves its groups.
#[derive(Debug)]
pub struct Source {
    /// Hash of the content.
    pub hash: ContentHash,
    /// Size of the content, bytes.
    pub size: u64,
    pub(crate) file: File,
    /// Outboard; `None` for a file of one group.
    pub(crate) outboard: Option<File>,
    /// Stat of the file when it was hashed. `None` for a partial file, to which only this process writes, and only in
    /// groups that are not served yet.
    pub(crate) stat: Option<FileStat>,
    /// True if the file may have changed since it was hashed. Each group is then checked before it is sent.
    pub(crate) in_doubt: bool,
}

impl Source {
    /// Returns true if no program wrote to the file since it was hashed.
    ///
    /// The kernel updates the times before it changes a byte, so bytes that were read before this call are those that
    /// were hashed. A write through a memory mapping is not detected here; the receiver rejects such bytes.
    pub(crate) fn is_untouched(&self) -> io::Result<bool> {
        match &self.stat {
            Some(stat) => Ok(FileStat::from_stat(&rustix::fs::fstat(&self.file)?).is_same_write(stat)),
            None => Ok(true),
        }
    }
}
