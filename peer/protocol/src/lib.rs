//! The decisions of a peer, pure: no I/O, no clock, no threads, no global randomness.
//!
//! | module | decides |
//! |---|---|
//! | [`election`] | which peer holds the tracker seat, and whom this peer follows |
//! | [`replication`] | what this peer announces of its share, and to whom |
//! | [`index`] | which files exist and which peers own them |
//! | [`swarm`] | which groups of a file to request from which provider |
//! | [`packs`] | which small files to request from which provider together |
//! | [`provider_health`] | how long a provider waits after failures, for the two above |
//! | [`upload`] | whose request is served next, how fast, and until when |
//!
//! Each takes `now` and an event and returns actions. The crate `peer` carries the actions out. `docs/election.md` and
//! `docs/swarm.md` state the rules; `tests/sim` and `tests/swarm_sim` run them under a virtual clock.

pub mod election;
pub mod index;
pub mod packs;
pub mod provider_health;
pub mod replication;
pub mod swarm;
pub mod upload;

/// A call that the election core asked for; its outcome comes back with the same id. Rises with every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);
