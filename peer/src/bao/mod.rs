//! Verified streaming: the BLAKE3 tree over groups of 16 KiB, and the proofs that travel with the groups.
//!
//! | module | contents |
//! |---|---|
//! | `verifier` | the encoding: which proof or group comes next, and whether it is right (pure) |
//! | `tree_hash` | hashing a file into its tree |
//! | `check` | which groups of a file on disk are right |
//! | `read_ahead`, `aligned` | long reads, buffers for direct I/O |

pub(crate) mod aligned;
pub(crate) mod check;
pub(crate) mod read_ahead;
pub(crate) mod tree_hash;
pub(crate) mod verifier;
