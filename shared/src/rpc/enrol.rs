//! Enrolment service: issues a certificate to an applicant that holds a join token.
//!
//! The connection uses [`super::ENROL_ALPN`]. The applicant presents a self-signed certificate for the key to be
//! certified; the TLS handshake proves possession of that key. The applicant verifies the nameserver's certificate
//! against the authority whose fingerprint the token contains. The token's secret is never sent. The applicant proves
//! knowledge of it with a keyed hash over the keying material exported from the connection (RFC 8446 section 7.5). The
//! proof is bound to that connection, so it can be neither replayed nor relayed.

use serde::{Deserialize, Serialize};

use crate::{id::Role, name::Endpoint};

/// Calls available to an applicant.
#[cfg(feature = "net")]
#[tarpc::service]
pub trait EnrolService {
    /// Requests a certificate.
    async fn enrol(request: EnrolRequest) -> Result<Enrolled, EnrolError>;
}

/// Request for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Id of the join token.
    pub token_id: [u8; 16],
    /// Proof of knowledge of the token's secret, bound to the connection (`net::enrolment::enrol_proof`).
    pub proof: [u8; 32],
    /// Requested role.
    pub role: Role,
    /// PKCS #10 certificate signing request (RFC 2986), DER, for the key used in the handshake.
    pub csr: Vec<u8>,
}

/// Result of a successful enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Certificate of the new member, DER.
    pub certificate: Vec<u8>,
    /// Certificate of the authority, DER.
    pub authority: Vec<u8>,
    /// Endpoints of the nameservers, in order of preference.
    pub nameservers: Vec<Endpoint>,
}

/// Error of an enrolment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum EnrolError {
    /// The token is unknown, expired or used up, or the proof is wrong. The nameserver does not disclose which. Remedy:
    /// a new token.
    #[error("the token is not valid (unknown, expired or used up)")]
    InvalidToken,
    /// The token is restricted to another peer.
    #[error("the token is for another peer")]
    OtherPeer,
    /// The id is enrolled with another key. Only an admin's token for this id can replace the key.
    #[error("{0} is enrolled already, with another key")]
    AlreadyEnrolled(Role),
    /// The certificate signing request is malformed or does not match the handshake.
    #[error("the signing request is not acceptable: {0}")]
    InvalidRequest(String),
    /// The token does not grant this role.
    #[error("this token does not grant the role {0}")]
    RoleNotAllowed(Role),
    /// Too many attempts, or the nameserver cannot write. The applicant can retry later.
    #[error("not possible at the moment: {0}")]
    Unavailable(String),
}
