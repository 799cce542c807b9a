//! Reasons why a fetch ends early.

use std::{io, time::Duration};

use tokio::task::JoinError;

use crate::store::error::is_no_space;

/// Reason why not all groups arrived. The groups that were verified before stay in the partial file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The owner sent bytes that do not match the hash, or announced a wrong size. Drop the owner and try another one.
    #[error("wrong bytes at offset {offset}")]
    Verification {
        /// Offset in the file of the first part that is not verified.
        offset: u64,
    },
    /// The stream ended too early. Try another owner.
    #[error("the stream ended at offset {offset}")]
    Truncated {
        /// Offset in the file.
        offset: u64,
    },
    /// The stream broke or was reset by the owner. Try another one.
    #[error("the stream broke: {0}")]
    Stream(#[source] io::Error),
    /// The owner sent nothing for this time. Try another one.
    #[error("the owner sent nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The disk is full. Another owner does not help.
    #[error("no space left: {0}")]
    NoSpace(#[source] io::Error),
    /// The partial file could not be written. Another owner does not help.
    #[error("the partial file cannot be written: {0}")]
    Disk(#[source] io::Error),
    /// A thread of this peer panicked. Another owner does not help.
    #[error("a thread of the download panicked: {0}")]
    Panicked(String),
}

impl FetchError {
    /// Returns true if the owner caused the error, so that another owner may succeed.
    pub fn is_owners_fault(&self) -> bool {
        match self {
            Self::Verification { .. } | Self::Truncated { .. } | Self::Stream(_) | Self::Silent(_) => true,
            Self::NoSpace(_) | Self::Disk(_) | Self::Panicked(_) => false,
        }
    }

    pub(super) fn from_disk(error: io::Error) -> Self {
        if is_no_space(&error) { Self::NoSpace(error) } else { Self::Disk(error) }
    }

    pub(super) fn from_join(error: &JoinError) -> Self {
        Self::Panicked(error.to_string())
    }
}
