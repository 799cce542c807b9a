//! A shared file, opened to be served.

use std::{fs::File, io};

use shared::content::ContentHash;

use super::file_stat::FileStat;

/// A file that can be served: opened, with what proves its groups.
#[derive(Debug)]
pub struct Source {
    /// Hash of its bytes.
    pub hash: ContentHash,
    /// Bytes.
    pub size: u64,
    pub(crate) file: File,
    /// `None` when the file has one group, which needs none.
    pub(crate) outboard: Option<File>,
    /// What the file looks like as long as nobody writes to it; `None` for a file that this process alone writes to, and
    /// only where it is not read.
    pub(crate) stat: Option<FileStat>,
}

impl Source {
    /// Whether the file was not written to since it was hashed. The kernel sets the times before it changes a byte, so bytes
    /// that were read before this is asked are those that were hashed. (A program that maps the file into its memory can
    /// get round that; then the receiver notices.)
    pub(crate) fn is_untouched(&self) -> io::Result<bool> {
        match &self.stat {
            Some(stat) => Ok(FileStat::from_stat(&rustix::fs::fstat(&self.file)?).is_same_write(stat)),
            None => Ok(true),
        }
    }
}
