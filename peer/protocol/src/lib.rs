//! The decisions of a peer, pure: no I/O, no clock, no threads, no global randomness.
//!
//! | module | decides |
//! |---|---|
//! | [`election`] | which peer holds the tracker seat, and which tracker this peer follows |
//! | [`replication`] | what this peer announces of its share, and to which peers |
//! | [`index`] | which files exist and which peers own them |
//! | [`swarm`] | which groups of a file to request from which provider |
//! | [`packs`] | which small files to request from which provider together |
//! | [`provider_health`] | how long a provider waits after failures, for `swarm` and `packs` |
//! | [`upload`] | which request is served next, at what rate, and until when |
//!
//! Each takes `now` and an event and returns actions. The crate `peer` executes the actions. `docs/election.md` and
//! `docs/swarm.md` state the rules; `tests/sim` and `tests/swarm_sim` run them under a virtual clock.
//!
//! `election` imports `replication` and `index`, which import neither each other nor `election`. `packs` imports types
//! of `swarm`. [`params`] has the parameters that several modules use.

pub mod election;
pub mod index;
pub mod packs;
pub mod params;
pub mod provider_health;
pub mod replication;
pub mod swarm;
pub mod upload;

/// Id of a call that the election core requested. The outcome of the call carries the same id. Ids ascend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Source of call ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    last: u64,
}

impl Calls {
    /// Id of a new call.
    pub(crate) fn next(&mut self) -> CallId {
        self.last += 1;
        CallId(self.last)
    }

    /// Id that the next call will have.
    pub(crate) fn upcoming(&self) -> CallId {
        CallId(self.last + 1)
    }
}
