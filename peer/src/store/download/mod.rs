//! Files that are being received: partial files, the journal of what is proven of them, and where they go.

pub mod destination;
pub(crate) mod direct_io;
pub mod partial;
pub mod resume;
pub mod unfinished;
