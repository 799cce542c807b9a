//! Enrolment: how a newcomer with a token becomes a member.
//!
//! The connection speaks [`super::ENROL_ALPN`]. The newcomer shows a self-signed certificate over the key that
//! it wants certified (the handshake proves that it holds it), and checks the nameserver's certificate
//! against the authority whose fingerprint its token pins. The token's secret is never sent: the newcomer
//! proves it with a keyed hash over the connection's exported keying material (RFC 8446 section 7.5), which
//! ties the proof to this one connection, so it can be neither replayed nor relayed.

use serde::{Deserialize, Serialize};

use crate::{id::Role, name::Endpoint};

/// Calls that a newcomer may make.
#[cfg(feature = "net")]
#[tarpc::service]
pub trait EnrolService {
    /// Asks for a certificate.
    async fn enrol(request: EnrolRequest) -> Result<Enrolled, EnrolError>;
}

/// A request for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Which token.
    pub token_id: [u8; 16],
    /// Proof of its secret, bound to the connection.
    pub proof: [u8; 32],
    /// What the newcomer wants to be.
    pub role: Role,
    /// PKCS #10 certificate signing request (RFC 2986), DER, over the key of the handshake.
    pub csr: Vec<u8>,
}

/// A newcomer became a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
    /// Where nameservers answer, best first.
    pub nameservers: Vec<Endpoint>,
}

/// Why a newcomer was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum EnrolError {
    /// Unknown, expired or used up, or the proof is wrong; which of these is not told. Get a new token.
    #[error("the token is not valid (unknown, expired or used up)")]
    InvalidToken,
    /// The token is for another peer.
    #[error("the token is for another peer")]
    OtherPeer,
    /// The id belongs to another key; only an admin's token made for this id can replace it.
    #[error("{0} is enrolled already, with another key")]
    AlreadyEnrolled(Role),
    /// The signing request is unusable.
    #[error("the signing request is not acceptable: {0}")]
    InvalidRequest(String),
    /// The role is not given to newcomers.
    #[error("this token does not let anybody become {0}")]
    RoleNotAllowed(Role),
    /// Too many tries, or the nameserver cannot write; wait and try again.
    #[error("not possible at the moment: {0}")]
    Unavailable(String),
}
