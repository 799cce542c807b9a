//! Verified streaming: the BLAKE3 tree over groups of 16 KiB, and the proofs that travel with the groups.
//!
//! | module | contents |
//! |---|---|
//! | `verifier` | the encoding: order and check of proofs and groups (pure) |
//! | `tree_hash` | hash and outboard of a file |
//! | `check` | check of a file on disk against its outboard |
//! | `read_ahead`, `aligned` | reads in large runs, buffers for direct I/O |

pub(crate) mod aligned;
pub(crate) mod check;
pub mod params;
pub(crate) mod read_ahead;
pub(crate) mod tree_hash;
pub(crate) mod verifier;
