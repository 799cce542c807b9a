//! Identity and trust: the authority, node certificates, join tokens, and TLS configurations that let nobody
//! speak who has not shown who he is.
//!
//! | room | what is in it |
//! |---|---|
//! | `id` | [`PeerId`], [`Role`]: what a certificate can say of its holder |
//! | `authority` | [`Authority`]: issues certificates |
//! | `identity` | [`Identity`]: a member's key and certificate; [`Applicant`]: a newcomer's |
//! | `join_token` | [`JoinToken`] and the proof of its secret |
//! | [`trust`] | rustls configurations, and [`trust::Caller`]: who is at the other end |
//!
//! The whole story is `docs/identity.md`.

mod authority;
mod file;
mod id;
mod identity;
mod join_token;
pub mod trust;

pub use authority::Authority;
pub use file::{certificates_in, write_private};
pub use id::{InvalidPeerId, MAX_PEER_ID_BYTES, PeerId, Role};
pub use identity::{
    Applicant, Fingerprint, Identity, IdentityError, public_key_of, role_of, serial_and_expiry_of, validity_of,
};
pub use join_token::{EXPORTER_LABEL, InvalidToken, JoinToken, ProofKey, TokenId};
/// The TLS library's certificate type.
pub use rustls::pki_types::CertificateDer;
