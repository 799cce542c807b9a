//! Verified transfer of a file's groups, from a disk to a stream and from a stream to a disk.
//!
//! Each side is split by a bounded channel: blocking threads read or write the disk and hash, and an async task owns
//! the stream. The memory of a transfer does not depend on the file's size. `docs/transfer.md` describes the data
//! flow.
//!
//! | module | contents |
//! |---|---|
//! | [`mod@serve`] | sending side of a bulk stream |
//! | [`mod@fetch`], `decoder`, `fetch_error` | receiving side of a bulk stream: its task, its threads, its errors |
//! | `pack_serve`, `pack_fetch` | both sides of a pack of small files |
//! | [`stream`] | interface of both sides to a stream |
//! | [`throttle`], [`metered`] | streams with a rate limit, streams whose waits are counted |
//! | `buffer_pool` | reused send buffers |

mod buffer_pool;
mod decoder;
pub mod fetch;
mod fetch_error;
pub mod metered;
mod pack_fetch;
mod pack_serve;
pub mod params;
pub mod serve;
pub mod stream;
pub mod throttle;

pub use buffer_pool::Pool;
pub use decoder::Written;
pub use fetch::{Writing, fetch, fetch_from};
pub use fetch_error::FetchError;
pub(crate) use pack_fetch::{PackError, PackEvent, fetch_pack};
pub(crate) use pack_serve::read_checked;
pub use pack_serve::serve_pack;
pub use serve::{ServeError, is_right, serve, serve_to};
