//! A member's identity: its key, its certificate, and the certificate of its authority.

use std::{fmt, path::Path};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{
    certificate::{role_of, validity_of},
    error::IdentityError,
    file::StoredPem,
    id::Role,
};

/// A member's key and certificate, and the certificate of its authority.
///
/// `Debug` shows the role only, never the key.
pub struct Identity {
    key: PrivateKeyDer<'static>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    role: Role,
    expires_unix_seconds: i64,
}

impl Identity {
    pub(crate) fn new(
        key: PrivateKeyDer<'static>,
        certificate: CertificateDer<'static>,
        authority: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let role = role_of(&certificate)?
            .ok_or_else(|| IdentityError::Malformed("the certificate names no role of Brasa".to_owned()))?;
        let (_, expires_unix_seconds) = validity_of(&certificate)?;
        Ok(Self { key, certificate, authority, role, expires_unix_seconds })
    }

    /// Loads the identity from the file at `path`; `None` when the file does not exist.
    ///
    /// # Errors
    /// When the file cannot be read or is not an identity.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(stored) = StoredPem::read(path)? else { return Ok(None) };
        let [certificate, authority] = <[_; 2]>::try_from(stored.certificates).map_err(|_| {
            IdentityError::Malformed(format!(
                "{}: expected two certificates, the member's and its authority's",
                path.display()
            ))
        })?;
        Self::new(stored.key, certificate, authority).map(Some)
    }

    /// Writes the identity to the file at `path`, readable by this user only. Durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        self.stored().write(path)
    }

    /// Like [`Self::save`], but never replaces an existing file. Returns whether the file was written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_new(&self, path: &Path) -> Result<bool, IdentityError> {
        self.stored().write_new(path)
    }

    /// Role that the certificate names.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// Last second of the certificate's validity, in seconds since 1970.
    pub fn expires_unix_seconds(&self) -> i64 {
        self.expires_unix_seconds
    }

    /// The member's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate, DER.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    fn stored(&self) -> StoredPem {
        StoredPem { key: self.key(), certificates: vec![self.certificate.clone(), self.authority.clone()] }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("role", &self.role).finish_non_exhaustive()
    }
}
