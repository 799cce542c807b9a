//! An applicant's key and the self-signed certificate that carries it during enrolment.

use std::{path::Path, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{
    certificate::{common_name, public_key_of, with_validity},
    error::IdentityError,
    file::StoredPem,
    identity::Identity,
};

/// DNS name in an applicant's certificate. No authority ever certifies it.
pub(crate) const APPLICANT_NAME: &str = "applicant.brasa";

/// Life of an applicant's certificate. Nothing checks it: the certificate only carries the key.
const APPLICANT_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A program that is not a member yet: a key, and a self-signed certificate for it.
pub struct Applicant {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Applicant {
    /// Creates an applicant with a new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Self, IdentityError> {
        Self::with(KeyPair::generate()?)
    }

    /// Loads the applicant's key from the file at `path`, or creates the key and the file.
    ///
    /// An applicant that was enrolled but lost the answer applies again with the same key, so that the nameserver
    /// recognises it.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        if let Some(stored) = StoredPem::read(path)? {
            return Self::with(KeyPair::try_from(&stored.key)?);
        }
        let applicant = Self::new()?;
        StoredPem { key: applicant.key(), certificates: vec![] }.write(path)?;
        Ok(applicant)
    }

    /// Creates an applicant from a member that has to enrol again, with the key that the member's id is bound to.
    ///
    /// # Errors
    /// When the key is unusable.
    pub fn again(member: &Identity) -> Result<Self, IdentityError> {
        Self::with(KeyPair::try_from(&member.key())?)
    }

    fn with(key: KeyPair) -> Result<Self, IdentityError> {
        let mut params = with_validity(CertificateParams::new(vec![APPLICANT_NAME.to_owned()])?, APPLICANT_LIFE);
        params.distinguished_name = common_name("applicant");
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { key, certificate })
    }

    /// Returns a signing request over the key (PKCS #10, RFC 2986), DER.
    ///
    /// # Errors
    /// When signing fails.
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        Ok(CertificateParams::default().serialize_request(&self.key)?.der().to_vec())
    }

    /// Turns the applicant into a member with the certificates that the nameserver issued (DER).
    ///
    /// # Errors
    /// When `certificate` is not over this applicant's key or names no role.
    pub fn into_member(self, certificate: Vec<u8>, authority: Vec<u8>) -> Result<Identity, IdentityError> {
        let certificate = CertificateDer::from(certificate);
        if public_key_of(&certificate)? != public_key_of(&self.certificate)? {
            return Err(IdentityError::Malformed("the certificate is over another key than requested".to_owned()));
        }
        Identity::new(self.key(), certificate, CertificateDer::from(authority))
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }
}
