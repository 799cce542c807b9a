//! Swarm streams: how peers that have or receive one content tell each other what came to them, and who else is there.
//!
//! ```text
//! joiner -> member   kind byte 18, SwarmHello
//! both   -> other    SwarmNews, SwarmNews, ... as long as both take part; the end of the stream means "I am gone"
//! ```
//!
//! Each message has its length before it ([`super::bulk::write_header`]). There is one stream a pair: the joiner dials whole
//! owners; of two receivers the one with the smaller id dials first. Nobody polls: news go out when there are
//! some, gathered for a moment. Neither tracker nor nameserver is needed for it.

use serde::{Deserialize, Serialize};

use crate::{content::ContentHash, name::Endpoint, rpc::tracker::Owner};

/// The joiner introduces itself. Who it is, its certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmHello {
    /// Which content.
    pub hash: ContentHash,
    /// Its size as the joiner knows it, bytes.
    pub size: u64,
    /// Where the joiner answers.
    pub endpoint: Endpoint,
}

/// What a member of a swarm tells another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwarmNews {
    /// The sender has the content whole.
    HasAll,
    /// These groups of 16 KiB came to the sender, as half-open ranges in the order in which they came; at most
    /// `limits::RANGES_PER_NEWS`.
    Has(Vec<(u64, u64)>),
    /// Others that receive the content, at most `limits::MEMBERS_PER_NEWS`.
    Members(Vec<Owner>),
}
