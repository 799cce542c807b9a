//! The share on disk: its files, their hashes, and the files that enter it.
//!
//! A module imports only from modules in rows below its own.
//!
//! | module | contents |
//! |---|---|
//! | [`Share`] | handle that the rest of the peer uses |
//! | `indexer` | task that owns the index |
//! | `watch`, `watch_report` | file-system notifications; the warning about missing ones |
//! | `import` | copies, batches of small files, directories |
//! | `inner` | state that handles, indexer and blocking threads have in common |
//! | [`download`] | files that are being received: partial files, resume journal, destinations |
//! | [`source`] | file of the share, opened for sending |
//! | `scan`, `index` | one pass over the directory, and its comparison with the files known so far |
//! | `hash_cache`, `outboards` | hashes and proofs that outlive the process |
//! | `confined_dir` | files below one directory only |
//! | `private` | directories and files with keys, which are never shared |
//! | `file_stat`, `file_ops` | detection of changes; system calls |
//! | [`error`] | one error enum for each operation |

pub(crate) mod confined_dir;
pub mod download;
pub mod error;
mod file_ops;
pub(crate) mod file_stat;
mod hash_cache;
mod import;
mod index;
mod indexer;
mod inner;
mod outboards;
pub mod params;
mod private;
mod scan;
mod share;
pub mod source;
mod watch;
mod watch_report;

pub use download::{
    destination::Destination,
    partial::Partial,
    unfinished::{Discarded, Unfinished},
};
pub use error::OpenError;
pub(crate) use import::{
    batch::{Inspected, Staged, StagedBatch},
    directories::DirMetadata,
};
pub use index::Changes;
pub(crate) use index::IndexEntry;
pub use inner::ShareOptions;
pub use private::{Private, check_apart};
pub use share::{Share, ShareStats};
pub use source::Source;
