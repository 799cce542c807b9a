//! Files that are being received.
//!
//! | module | contents |
//! |---|---|
//! | [`destination`] | path of a download and what exists there |
//! | [`partial`] | handle of a file that is being received |
//! | `files` | partial files on disk: names, locks, allocation |
//! | `direct_io` | writes that bypass the page cache |
//! | [`resume`] | journal of the verified groups, and its recovery |
//! | [`unfinished`] | downloads that can be resumed or discarded |

pub mod destination;
mod direct_io;
pub(crate) mod files;
pub mod partial;
pub mod resume;
pub mod unfinished;
