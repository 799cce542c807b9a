//! Measurement of transfers: where their time goes, and which resource limits them.
//!
//! | module | contents |
//! |---|---|
//! | [`bottleneck`] | derives the limiting resource from the measured times (pure) |
//! | [`rate`] | rate of the last seconds (pure) |
//! | [`meter`] | counters of a download and of an upload |
//! | [`upload_stats`] | statistics of recent uploads, for the receivers |
//! | [`system`] | kernel counters of processors and receive buffers |
//! | [`warnings`] | lasting conditions that `status` reports |
//! | `gauge` | number of live objects |

pub mod bottleneck;
pub(crate) mod gauge;
pub mod meter;
pub mod params;
pub mod rate;
pub mod system;
pub mod upload_stats;
pub mod warnings;
