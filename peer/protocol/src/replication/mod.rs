//! Replication of a peer's share to the tracker and its standbys. Data structures without I/O, independent of the
//! election.
//!
//! | module | holds |
//! |---|---|
//! | `share_log` | the files of this peer and the numbered changes to them |
//! | `announcer` | how far one receiver has this peer's share, and the announcement under way to it |
//! | `standby_feeds` | one announcer for each standby |
//! | `admission` | the receiving side: when a tracker or standby accepts whose snapshot |

pub(crate) mod admission;
pub(crate) mod announcer;
pub mod params;
pub(crate) mod share_log;
pub(crate) mod standby_feeds;
