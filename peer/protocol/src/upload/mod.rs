//! Serving side: which request is served next, how fast, and when a receiver loses its slot.
//!
//! | module | content |
//! |---|---|
//! | [`params`] | parameters |
//! | [`queue`] | upload slots and the requests that wait for one, with a table of their states |
//! | [`rate_limit`] | cap on bytes per second |
//! | [`ack_monitor`] | detection of receivers that are gone |
//! | [`slow_receiver`] | detection of receivers that are slow |

pub mod ack_monitor;
pub mod params;
pub mod queue;
pub mod rate_limit;
pub mod slow_receiver;
