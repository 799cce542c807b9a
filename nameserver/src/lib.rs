//! The nameserver: maps names to QUIC endpoints, grants leases, arbitrates the tracker's seat, and enrols members.
//!
//! ```text
//!   callers ── service ──▶ actor ──▶ registry    pure state and rules
//!              (tarpc)       │
//!                            └─────▶ storage     durable before the answer
//! ```
//!
//! | module | content |
//! |---|---|
//! | [`params`] | bounds and timings |
//! | [`registry`] | the state of the nameserver and the rules for changing it; pure, without I/O or clock |
//! | [`storage`] | durable storage of the registry: one trait, one conformance suite |
//! | `quota` | bound on the queued writes of one identity |
//! | `actor` | the thread that owns registry and storage: group commit, expiry, audit log |
//! | `service` | the tarpc services: names for members, enrolment for applicants |
//! | [`config`] | configuration of a nameserver |
//! | `interfaces` | addresses of this machine |
//! | [`server`] | a running nameserver |

mod actor;
pub mod config;
mod interfaces;
pub mod params;
mod quota;
pub mod registry;
pub mod server;
mod service;
pub mod storage;
