//! The error of everything that makes, reads or stores keys and certificates.

use std::{io, path::Path};

/// Failure to create, read or store an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written; check the rights of its folder and the disk.
    #[error("{path}: {error}")]
    File {
        /// Path of the file.
        path: String,
        /// Error of the operating system.
        error: io::Error,
    },
    /// The content is not a usable identity; remove the file and enrol again.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A certificate cannot be created or parsed.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
}

impl IdentityError {
    pub(crate) fn file(path: &Path, error: io::Error) -> Self {
        Self::File { path: path.display().to_string(), error }
    }
}
