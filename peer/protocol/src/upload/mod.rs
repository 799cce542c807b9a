//! The serving side: whose request is served next, how fast, and when a receiver loses its slot.

pub mod ack_monitor;
pub mod params;
pub mod queue;
pub mod rate_limit;
pub mod slow_receiver;
