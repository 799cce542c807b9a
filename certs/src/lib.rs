//! Identity and trust: the certificate authority, certificates, join tokens, and TLS configurations that authenticate
//! both ends of every connection.
//!
//! | module | content |
//! |---|---|
//! | `id` | [`PeerId`], [`Role`]: the holder that a certificate names |
//! | `error` | [`IdentityError`] |
//! | `certificate` | fields of certificates; [`Fingerprint`] |
//! | `file` | PEM files on disk |
//! | `identity` | [`Identity`]: a member's key and certificate |
//! | `applicant` | [`Applicant`]: the key of a program that is not a member yet |
//! | `authority` | [`Authority`]: issues certificates |
//! | `join_token` | [`JoinToken`] and the proof of its secret |
//! | [`statement`] | statements that a member signs for third parties |
//! | [`trust`] | rustls configurations, and [`trust::Caller`]: the identity of the remote end |
//!
//! Each module imports only modules above it. The protocol is described in `docs/identity.md`.

mod applicant;
mod authority;
mod certificate;
mod error;
mod file;
mod id;
mod identity;
mod join_token;
pub mod statement;
pub mod trust;

pub use applicant::Applicant;
pub use authority::Authority;
pub use certificate::{Fingerprint, public_key_of, role_of, serial_and_expiry_of, validity_of};
pub use error::IdentityError;
pub use file::{certificates_in, write_private};
pub use id::{InvalidPeerId, MAX_PEER_ID_BYTES, PeerId, Role};
pub use identity::Identity;
pub use join_token::{EXPORTER_LABEL, InvalidToken, JoinToken, ProofKey, TokenId};
/// Certificate type of the TLS library.
pub use rustls::pki_types::CertificateDer;
