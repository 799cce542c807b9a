//! Where the time of transfers goes, and what limits them.
//!
//! | module | contents |
//! |---|---|
//! | [`bottleneck`] | from counted times to the cause that limits a transfer (pure) |
//! | [`rate`] | the rate of the last seconds (pure) |
//! | [`meter`] | counters of one download and of one upload |
//! | [`upload_stats`] | what an owner remembers of its uploads |
//! | [`system`] | processors and receive buffers, as the kernel counts them |
//! | `gauge` | how many of something exist at the moment |

pub mod bottleneck;
pub(crate) mod gauge;
pub mod meter;
pub mod rate;
pub mod system;
pub mod upload_stats;
