//! The name server: names to QUIC endpoints, leases, the tracker's seat, and the network's door.
//!
//! ```text
//!   callers ── service ──▶ owner ──▶ registry    pure: who may what, what is there
//!              (tarpc)       │
//!                            └─────▶ storage     durable before it is answered
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`registry`] | PURE: what the nameserver knows and who may change it |
//! | [`storage`] | where that is kept: one trait, one conformance suite |
//! | `owner` | the one thread that owns both; group commit, expiry, audit |
//! | `service` | the tarpc services: names for members, enrolment for newcomers |
//! | [`server`], [`config`] | a running nameserver, and what it is told |
//! | `interfaces` | this machine's addresses |

pub mod config;
mod interfaces;
mod owner;
pub mod registry;
pub mod server;
mod service;
pub mod storage;
