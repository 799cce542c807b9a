//! Swarm streams: peers that own or download one content exchange their availability and member lists.
//!
//! ```text
//! initiator -> acceptor   kind byte 18, SwarmHello
//! both      -> other      SwarmUpdate, SwarmUpdate, … while both are members; the end of the stream means that the
//! sender
//!                         has left
//! ```
//!
//! Each message is preceded by its length ([`super::bulk::write_header`]) and has at most
//! [`crate::limits::MAX_BULK_HEADER_BYTES`]. Each pair of members has one stream. A receiver dials complete owners; of
//! two receivers the one with the smaller id dials. Members push updates, batched for a short time, and never poll.
//! The exchange needs neither the tracker nor the nameserver. Rules: docs/swarm.md.

use serde::{Deserialize, Serialize};

use crate::{content::ContentHash, name::Endpoint, rpc::tracker::Owner};

/// First message of the initiator. The initiator's id is that of its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmHello {
    /// Hash of the content.
    pub hash: ContentHash,
    /// Size of the content as the initiator knows it, bytes.
    pub size: u64,
    /// Endpoint of the initiator.
    pub endpoint: Endpoint,
}

/// Update that a member of a swarm sends to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwarmUpdate {
    /// The sender has the complete content.
    HasAll,
    /// Groups of 16 KiB (`limits::GROUP_BYTES`) that the sender has verified, as half-open ranges of group numbers in
    /// the order of their arrival; at most `peer::swarm::params::RANGES_PER_UPDATE`.
    Has(Vec<(u64, u64)>),
    /// Other receivers of the content, at most `peer::swarm::params::MEMBERS_PER_UPDATE`.
    Members(Vec<Owner>),
}
