//! How a peer's share reaches the tracker and its standbys: numbered changes, announcements, admission of snapshots.

pub mod admission;
pub mod announcer;
pub mod share_log;
