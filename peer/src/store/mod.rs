//! The share on disk: which files there are, what is in them, and how new ones come in.
//!
//! | module | contents |
//! |---|---|
//! | [`Share`] | the handle that the rest of the peer uses |
//! | [`download`] | files that are being received: partial files, their journal, where they go |
//! | `import` | how files come into the share: copies, batches of small files, directories |
//! | `index`, [`changes`] | the files of the share, and what a scan means for them (pure) |
//! | `indexer`, `scan`, `watch` | the task that owns the index, one pass over the share, notices of the file system |
//! | [`source`] | a file of the share, opened to be served |
//! | `confined_dir`, `file_stat` | opening files below one directory only; what tells that a file changed |
//! | `hash_cache`, `outboards` | what a restart need not hash again |
//! | `state` | what the handle and the threads behind it have in common |
//! | [`error`] | errors of the file system as users see them |

pub mod changes;
pub(crate) mod confined_dir;
pub mod download;
pub mod error;
pub(crate) mod file_stat;
mod hash_cache;
mod import;
mod index;
mod indexer;
mod inner;
mod outboards;
mod scan;
mod share;
pub mod source;
mod watch;

pub use changes::{Changes, diff};
pub use download::{
    destination::Destination,
    partial::Partial,
    unfinished::{Discarded, Unfinished},
};
pub(crate) use import::{
    batch::{Inspected, Staged, StagedBatch},
    directories::DirMetadata,
};
pub(crate) use index::IndexEntry;
pub use share::{OpenError, Share, ShareOptions, ShareStats};
pub use source::Source;
