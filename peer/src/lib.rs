//! A peer: shares a folder, knows or is the tracker, downloads from other peers.
//!
//! | room | what is in it |
//! |---|---|
//! | [`core`] | PURE: election, liveness, index |
//! | [`node`] | the task that owns the core |
//! | [`net`] | calls in and out, uploads, the name in the nameserver |
//! | [`store`] | the share on the disk |
//! | [`transfer`] | verified bytes |
//! | [`download`], [`lookup`] | finding and fetching |
//! | [`peer`] | a running peer, put together; `backend`: what commands ask of it |
//! | [`cli`], [`control`], [`config`] | commands, how a running peer is given them, what the user wants |
//! | `machine` | what the system says of its processors and buffers |
//! | [`demo`] | the whole system in one go |
//!
//! The whole house is drawn in `docs/ARCHITECTURE.md`.

pub mod api;
pub mod bao;
pub mod cli;
pub mod config;
pub mod core_handle;
pub mod demo;
pub mod diagnostics;
pub mod discovery;
pub mod download;
pub mod net;
pub mod runtime;
pub mod store;
pub mod swarm;
pub mod transfer;
pub mod upload;
