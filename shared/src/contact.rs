//! A peer together with the endpoint at which it answers.

use crate::{id::PeerId, name::Endpoint};

/// A peer and its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Id of the peer; its certificate must carry it.
    pub peer: PeerId,
    /// Endpoint at which the peer answers, as it registered it.
    pub endpoint: Endpoint,
}
