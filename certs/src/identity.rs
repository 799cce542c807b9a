//! A node's identity: its key, its certificate, and the authority that it belongs to.

use std::{fmt, io, path::Path, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    Role,
    authority::{common_name, validity},
    file::StoredPem,
};

/// DNS name of those who are not members yet; no authority ever certifies it.
pub(crate) const APPLICANT_NAME: &str = "applicant.brasa";

/// Life of the self-signed certificate that a newcomer shows while it enrols. Nobody checks it: it only carries the key.
const APPLICANT_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// BLAKE3 hash of an authority's certificate (DER): what a join token pins.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..8]))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why an identity could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written; its folder's rights or the disk are to be looked at.
    #[error("{path}: {error}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// What is there is not what it should be; remove it and enrol again.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A certificate could not be made or read.
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
}

impl IdentityError {
    pub(crate) fn file(path: &Path, error: io::Error) -> Self {
        Self::File { path: path.display().to_string(), error }
    }
}

/// A member's key and certificate, and its authority's certificate.
///
/// The key is never shown: `Debug` tells the role only.
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
        let expires_unix_seconds = parse(&certificate)?.validity().not_after.timestamp();
        Ok(Self { key, certificate, authority, role, expires_unix_seconds })
    }

    /// The identity kept in the file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// When the file cannot be read or is not an identity.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(stored) = StoredPem::read(path)? else { return Ok(None) };
        let [certificate, authority] = <[_; 2]>::try_from(stored.certificates).map_err(|_| {
            IdentityError::Malformed(format!("{}: two certificates, the node's and its authority's", path.display()))
        })?;
        Self::new(stored.key, certificate, authority).map(Some)
    }

    /// Keeps the identity in the file at `path`, readable by this user only; durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        self.stored().write(path)
    }

    /// As [`Self::save`], but leaves a file that is there as it is; whether it was written.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save_new(&self, path: &Path) -> Result<bool, IdentityError> {
        self.stored().write_new(path)
    }

    /// What the certificate says its holder is.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// When the certificate ends, seconds since 1970.
    pub fn expires_unix_seconds(&self) -> i64 {
        self.expires_unix_seconds
    }

    /// The certificate, DER.
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

/// A newcomer: a fresh key, and the self-signed certificate with which it speaks until it is a member.
pub struct Applicant {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Applicant {
    /// A newcomer with a new key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Self, IdentityError> {
        Self::with(KeyPair::generate()?)
    }

    /// The newcomer whose key is kept in the file at `path`, made there if there is none yet. Who was enrolled but did
    /// not get the answer comes again with the same key and is known.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        if let Some(stored) = StoredPem::read(path)? {
            return Self::with(KeyPair::try_from(&stored.key)?);
        }
        let newcomer = Self::new()?;
        StoredPem { key: newcomer.key(), certificates: vec![] }.write(path)?;
        Ok(newcomer)
    }

    /// A member that has to enrol again, with the key that its id is bound to.
    ///
    /// # Errors
    /// When the key is unusable.
    pub fn again(member: &Identity) -> Result<Self, IdentityError> {
        Self::with(KeyPair::try_from(&member.key)?)
    }

    fn with(key: KeyPair) -> Result<Self, IdentityError> {
        let mut params = validity(CertificateParams::new(vec![APPLICANT_NAME.to_owned()])?, APPLICANT_LIFE);
        params.distinguished_name = common_name("applicant");
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { key, certificate })
    }

    /// A signing request over the key (PKCS #10, RFC 2986), DER.
    ///
    /// # Errors
    /// When signing fails.
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        Ok(CertificateParams::default().serialize_request(&self.key)?.der().to_vec())
    }

    /// The member that the newcomer has become.
    ///
    /// # Errors
    /// When the certificate is not over this newcomer's key or names no role.
    pub fn into_member(self, certificate: Vec<u8>, authority: Vec<u8>) -> Result<Identity, IdentityError> {
        let certificate = CertificateDer::from(certificate);
        if public_key_of(&certificate)? != public_key_of(&self.certificate)? {
            return Err(IdentityError::Malformed("the certificate is over another key than asked for".to_owned()));
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

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| IdentityError::Malformed(format!("not a certificate: {error}")))?;
    Ok(parsed)
}

/// The one DNS name of a certificate; `None` when it has none, several, or names of other kinds.
pub(crate) fn dns_name_of(certificate: &CertificateDer<'_>) -> Result<Option<String>, IdentityError> {
    let parsed = parse(certificate)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| IdentityError::Malformed(format!("not a certificate: {error}")))?;
    Ok(match names.map(|names| names.value.general_names.as_slice()) {
        Some([GeneralName::DNSName(name)]) => Some((*name).to_owned()),
        _ => None,
    })
}

/// The role that a certificate names; `None` for an authority's. Says nothing about whether it is trusted.
///
/// # Errors
/// When it is not a certificate.
pub fn role_of(certificate: &CertificateDer<'_>) -> Result<Option<Role>, IdentityError> {
    Ok(dns_name_of(certificate)?.as_deref().and_then(Role::from_dns_name))
}

/// The public key of a certificate: its SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), DER.
///
/// # Errors
/// When it is not a certificate.
pub fn public_key_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, IdentityError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

/// Serial number and end of validity (seconds since 1970) of a certificate, for display and revocation lists.
///
/// # Errors
/// When it is not a certificate.
pub fn serial_and_expiry_of(certificate: &CertificateDer<'_>) -> Result<(String, i64), IdentityError> {
    let parsed = parse(certificate)?;
    Ok((parsed.raw_serial_as_string(), parsed.validity().not_after.timestamp()))
}

/// Begin and end of a certificate's validity, seconds since 1970, both inclusive.
///
/// # Errors
/// When it is not a certificate.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Result<(i64, i64), IdentityError> {
    let validity = parse(certificate)?.validity().clone();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}
