//! Statements that a member signs with the key of its certificate, for verification by third parties.
//!
//! ```text
//! signed bytes = 64 x 0x20 ‖ "brasa " kind ‖ 0x00 ‖ fingerprint of the authority (32 bytes) ‖ statement
//! ```
//!
//! The prefix is that of TLS 1.3's CertificateVerify (RFC 8446 section 4.4.3) with another context string, so a
//! signature of a handshake is never valid for a statement, nor one kind of statement for another.

use rustls::{
    SignatureScheme,
    crypto::aws_lc_rs::{default_provider, sign::any_ecdsa_type},
    pki_types::{CertificateDer, UnixTime},
};
use serde::{Deserialize, Serialize};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, aws_lc_rs::ECDSA_P256_SHA256};

use crate::{
    certificate::{Fingerprint, role_of},
    id::Role,
    identity::Identity,
};

/// Most bytes of a certificate that a statement carries. Certificates of members have about 500.
const MAX_CERTIFICATE_BYTES: usize = 2048;
/// Most bytes of a signature (ECDSA P-256, ASN.1: RFC 3279 section 2.2.3).
const MAX_SIGNATURE_BYTES: usize = 72;

/// Kind of a statement: separates the statements of different uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A vote for a tracker.
    Vote,
}

impl Kind {
    const fn context(self) -> &'static [u8] {
        match self {
            Self::Vote => b"brasa vote",
        }
    }
}

/// Signature of a statement, with the certificate of the signer.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signature {
    /// Certificate of the signer, DER.
    certificate: Vec<u8>,
    /// ECDSA signature over SHA-256, ASN.1.
    signature: Vec<u8>,
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signature").finish_non_exhaustive()
    }
}

/// Failure to sign or verify a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// The key of the identity cannot sign.
    #[error("the key cannot sign: {0}")]
    Key(String),
    /// The certificate is malformed, too large, expired, or not of this authority.
    #[error("the signer is not a member: {0}")]
    Certificate(String),
    /// The signature is not one of the certificate's key over this statement.
    #[error("the signature is wrong")]
    Signature,
}

impl Identity {
    /// Signs a statement.
    ///
    /// # Errors
    /// [`StatementError::Key`] if the identity's key is unusable.
    pub fn sign(&self, kind: Kind, statement: &[u8]) -> Result<Signature, StatementError> {
        let failed = |error: rustls::Error| StatementError::Key(error.to_string());
        let key = any_ecdsa_type(&self.key()).map_err(failed)?;
        let signer = key
            .choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256])
            .ok_or_else(|| StatementError::Key("it is not an ECDSA P-256 key".to_owned()))?;
        let message = message(kind, self.authority(), statement);
        let signature = signer.sign(&message).map_err(failed)?;
        Ok(Signature { certificate: self.certificate().to_vec(), signature })
    }
}

impl Signature {
    /// Verifies that a member of `authority` signed the statement, and returns the member's role. The certificate must
    /// be valid at `now`.
    ///
    /// # Errors
    /// See [`StatementError`].
    pub fn verify(
        &self,
        authority: &CertificateDer<'_>,
        kind: Kind,
        statement: &[u8],
        now: UnixTime,
    ) -> Result<Role, StatementError> {
        let not_a_member = |error: &dyn std::fmt::Display| StatementError::Certificate(error.to_string());
        if self.certificate.len() > MAX_CERTIFICATE_BYTES || self.signature.len() > MAX_SIGNATURE_BYTES {
            return Err(not_a_member(&"the certificate or the signature is too large"));
        }
        let certificate = CertificateDer::from(self.certificate.as_slice());
        let end_entity = EndEntityCert::try_from(&certificate).map_err(|error| not_a_member(&error))?;
        let anchor = anchor_from_trusted_cert(authority).map_err(|error| not_a_member(&error))?;
        let algorithms = default_provider().signature_verification_algorithms.all;
        end_entity
            .verify_for_usage(algorithms, &[anchor], &[], now, KeyUsage::client_auth(), None, None)
            .map_err(|error| not_a_member(&error))?;
        end_entity
            .verify_signature(ECDSA_P256_SHA256, &message(kind, authority, statement), &self.signature)
            .map_err(|_| StatementError::Signature)?;
        role_of(&certificate)
            .map_err(|error| not_a_member(&error))?
            .ok_or_else(|| not_a_member(&"the certificate names no role"))
    }
}

fn message(kind: Kind, authority: &CertificateDer<'_>, statement: &[u8]) -> Vec<u8> {
    let mut message = vec![0x20; 64];
    message.extend_from_slice(kind.context());
    message.push(0);
    message.extend_from_slice(&Fingerprint::of(authority).0);
    message.extend_from_slice(statement);
    message
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{PeerId, authority::Authority};

    fn identity(authority: &Authority, id: &str) -> Identity {
        let id: PeerId = id.parse().unwrap();
        authority.identity(&Role::Peer(id), Duration::from_secs(3600)).unwrap()
    }

    #[test]
    fn signature_verifies_for_its_statement_signer_and_authority_only() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(folder.path()).unwrap();
        let member = identity(&authority, "a");
        let signature = member.sign(Kind::Vote, b"statement").unwrap();
        let verify = |signature: &Signature, statement: &[u8], now| {
            signature.verify(member.authority(), Kind::Vote, statement, now)
        };
        let now = UnixTime::now();
        assert_eq!(verify(&signature, b"statement", now), Ok(Role::Peer("a".parse().unwrap())));
        assert_eq!(verify(&signature, b"statemenT", now), Err(StatementError::Signature));

        let other = identity(&authority, "b").sign(Kind::Vote, b"statement").unwrap();
        let swapped = Signature { certificate: other.certificate.clone(), signature: signature.signature.clone() };
        assert_eq!(verify(&swapped, b"statement", now), Err(StatementError::Signature));

        let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + 7200));
        assert!(matches!(verify(&signature, b"statement", later), Err(StatementError::Certificate(_))));
        let huge = Signature { certificate: vec![0; MAX_CERTIFICATE_BYTES + 1], ..signature.clone() };
        assert!(matches!(verify(&huge, b"statement", now), Err(StatementError::Certificate(_))));

        let foreign_folder = tempfile::tempdir().unwrap();
        let foreign = identity(&Authority::load_or_create(foreign_folder.path()).unwrap(), "a");
        let forged = foreign.sign(Kind::Vote, b"statement").unwrap();
        assert!(matches!(verify(&forged, b"statement", now), Err(StatementError::Certificate(_))));
    }
}
