//! A peer: shares a folder, takes part in the election of the tracker, and downloads from other peers.
//!
//! A module imports only from modules in rows above its own; the test `layers` checks it. The state machines (election,
//! index, swarm) have no I/O and are in the crate [`protocol`].
//!
//! | module | content |
//! |---|---|
//! | [`bao`] | verification against BLAKE3 trees |
//! | [`diagnostics`] | measurement of rates and bottlenecks |
//! | [`store`] | the share on disk: index of files, partial files, resume journals |
//! | [`config`], [`api`] | the program's arguments; the interface of a running peer |
//! | [`transfer`] | streams of verified content, both ends |
//! | [`upload`], [`swarm`] | queue and audit of uploads; sessions between the receivers of one content |
//! | [`core_handle`] | channel to the task that owns the protocol core |
//! | [`net`] | calls to and from other processes, registration with the nameserver |
//! | [`discovery`] | lookup of files and owners |
//! | [`download`] | download of files and directories |
//! | [`runtime`] | a running peer and its tasks |
//! | [`cli`] | the command line |
//! | [`demo`] | `peer --demo` |
//!
//! `docs/ARCHITECTURE.md` describes all crates together.

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
