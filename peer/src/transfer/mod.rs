//! Moving bytes: verified streaming of a file's groups, from a disk to a stream and from a stream to a disk.
//!
//! Sending and receiving each run on two sides of a bounded channel: a blocking thread that reads or writes the disk and
//! hashes, and the async task that owns the stream. What a transfer holds in memory does not depend on the file's
//! size. The data flow and the formats are described in `docs/transfer.md`.
//!
//! | room | what is in it |
//! |---|---|
//! | [`groups`] | sets of 16 KiB groups (pure) |
//! | `verify` | the verified-streaming format (pure) |
//! | [`mod@serve`] | an owner's side |
//! | [`mod@fetch`] | a receiver's side |
//! | [`stream`] | what both need of a stream |
//! | [`meter`] | where the time goes |
//! | `run_io` | the disk, in large runs |

pub mod fetch;
pub mod groups;
pub mod meter;
mod run_io;
pub mod serve;
pub mod stream;
pub(crate) mod verify;

pub use fetch::{FetchError, fetch, fetch_from};
pub use groups::{GroupRanges, InvalidRanges};
pub use serve::{ServeError, Source, check, serve, serve_to};
