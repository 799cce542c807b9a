//! Peer ids and roles: the names that a certificate can carry.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest peer id in bytes: the length of a DNS label, because the id is the first label of the certificate's DNS name
/// `<id>.peer.brasa` (RFC 1035 section 2.3.4).
pub const MAX_PEER_ID_BYTES: usize = 63;

/// Name of a peer, for example `peer1`.
///
/// 1 to [`MAX_PEER_ID_BYTES`] bytes of `a-z`, `0-9`, `-` and `_`, beginning and ending with a letter or a digit. Upper
/// case is rejected rather than folded: certificate names are compared without case (RFC 5280 section 7.2), and two ids
/// that look different must not be the same identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerId(Arc<str>);

impl PeerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is not a [`PeerId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a peer id: 1 to {MAX_PEER_ID_BYTES} characters a-z, 0-9, '-' and '_', first and last a letter or \
     digit"
)]
pub struct InvalidPeerId(pub String);

impl FromStr for PeerId {
    type Err = InvalidPeerId;

    fn from_str(text: &str) -> Result<Self, InvalidPeerId> {
        let inner = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let edge = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
        let bytes = text.as_bytes();
        let valid = bytes.len() <= MAX_PEER_ID_BYTES
            && bytes.iter().all(inner)
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge);
        if valid {
            Ok(Self(text.into()))
        } else {
            // The text may come from the network, so its copy in the error is bounded.
            Err(InvalidPeerId(text.chars().take(MAX_PEER_ID_BYTES + 1).collect()))
        }
    }
}

impl TryFrom<String> for PeerId {
    type Error = InvalidPeerId;
    fn try_from(text: String) -> Result<Self, InvalidPeerId> {
        text.parse()
    }
}

impl From<PeerId> for String {
    fn from(id: PeerId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Role of a certificate's holder. It is the certificate's only DNS name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// A peer; DNS name `<id>.peer.brasa`.
    Peer(PeerId),
    /// The nameserver; DNS name `nameserver.brasa`.
    Nameserver,
    /// An administrator (`nsc`); DNS name `admin.brasa`.
    Admin,
}

const PEER_SUFFIX: &str = ".peer.brasa";
const NAMESERVER_NAME: &str = "nameserver.brasa";
const ADMIN_NAME: &str = "admin.brasa";

impl Role {
    /// DNS name for the certificate's subject alternative name.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Peer(id) => format!("{id}{PEER_SUFFIX}"),
            Self::Nameserver => NAMESERVER_NAME.to_owned(),
            Self::Admin => ADMIN_NAME.to_owned(),
        }
    }

    /// Parses a certificate's DNS name; `None` when it names no role of Brasa.
    pub fn from_dns_name(name: &str) -> Option<Self> {
        match name {
            NAMESERVER_NAME => Some(Self::Nameserver),
            ADMIN_NAME => Some(Self::Admin),
            _ => name.strip_suffix(PEER_SUFFIX)?.parse().ok().map(Self::Peer),
        }
    }

    /// Id of a peer; `None` for other roles.
    pub fn peer(&self) -> Option<&PeerId> {
        match self {
            Self::Peer(id) => Some(id),
            Self::Nameserver | Self::Admin => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(id) => write!(f, "peer {id}"),
            Self::Nameserver => f.write_str("nameserver"),
            Self::Admin => f.write_str("admin"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_id_of_a_dns_label_is_accepted() {
        for good in ["a", "peer1", "0", "lab-3_b", &"x".repeat(63)] {
            assert_eq!(good.parse::<PeerId>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn peer_id_outside_a_dns_label_is_rejected() {
        for bad in ["", "Peer1", "-a", "a-", "a.b", "a b", "é", "a\0", "../x", &"x".repeat(64)] {
            assert!(bad.parse::<PeerId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn role_survives_a_round_trip_through_its_dns_name() {
        let peer = Role::Peer("peer1".parse().unwrap());
        for role in [peer, Role::Nameserver, Role::Admin] {
            assert_eq!(Role::from_dns_name(&role.dns_name()), Some(role));
        }
        for foreign in ["peer1.brasa", ".peer.brasa", "a.b.peer.brasa", "Nameserver.brasa", "example.org"] {
            assert_eq!(Role::from_dns_name(foreign), None, "{foreign}");
        }
    }
}
