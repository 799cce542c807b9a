//! Moving bytes: verified streaming of a file's groups, from a disk to a stream and from a stream to a disk.
//!
//! Sending and receiving each run on two sides of a bounded channel: a blocking thread that reads or writes the disk and
//! hashes, and the async task that owns the stream. What a transfer holds in memory does not depend on the file's
//! size. The data flow and the formats are described in `docs/transfer.md`.
//!
//! | room | what is in it |
//! |---|---|
//! | `check` | which groups of a file on the disk are right |
//! | `verify` | the verified-streaming format (pure) |
//! | [`mod@serve`] | an owner's side |
//! | [`mod@fetch`] | a receiver's side |
//! | `pack_serve`, `pack_fetch` | the same for packs of small files |
//! | [`stream`] | what both need of a stream |
//! | [`meter`] | where the time goes |
//! | `run_io`, `pool`, `aligned` | the disk, in large runs; the buffers for them |

mod buffer_pool;
pub mod fetch;
pub mod metered;
mod pack_fetch;
mod pack_serve;
pub mod serve;
pub mod stream;
pub mod throttle;

pub use buffer_pool::Pool;
pub use fetch::{Written, FetchError, Writing, fetch, fetch_from};
pub(crate) use pack_fetch::{PackError, PackEvent, fetch_pack};
pub(crate) use pack_serve::read_checked;
pub use pack_serve::serve_pack;
pub use serve::{ServeError, is_right, serve, serve_to};
