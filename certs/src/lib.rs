//! Identity: the authority, node certificates, join tokens, and who is trusted.
mod id;
pub use id::{InvalidPeerId, MAX_PEER_ID_BYTES, PeerId, Role};
