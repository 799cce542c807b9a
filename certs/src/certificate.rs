//! X.509 certificates (RFC 5280): the fields that Brasa reads, and the parameters that all its certificates share.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{error::IdentityError, id::Role};

/// Time before now at which a certificate becomes valid, for machines whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// BLAKE3 hash of an authority's certificate (DER). A join token pins it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Computes the fingerprint of a certificate.
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

/// Returns the role that a certificate names; `None` for an authority's. Does not check whether the certificate is
/// trusted.
///
/// # Errors
/// When `certificate` is not a certificate.
pub fn role_of(certificate: &CertificateDer<'_>) -> Result<Option<Role>, IdentityError> {
    Ok(dns_name_of(certificate)?.as_deref().and_then(Role::from_dns_name))
}

/// Returns the public key of a certificate: its SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), DER.
///
/// # Errors
/// When `certificate` is not a certificate.
pub fn public_key_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, IdentityError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

/// Returns the serial number of a certificate and the end of its validity in seconds since 1970, for display and
/// revocation lists.
///
/// # Errors
/// When `certificate` is not a certificate.
pub fn serial_and_expiry_of(certificate: &CertificateDer<'_>) -> Result<(String, i64), IdentityError> {
    let parsed = parse(certificate)?;
    Ok((parsed.raw_serial_as_string(), parsed.validity().not_after.timestamp()))
}

/// Returns the first and the last second of a certificate's validity, in seconds since 1970, both inclusive.
///
/// # Errors
/// When `certificate` is not a certificate.
pub fn validity_of(certificate: &CertificateDer<'_>) -> Result<(i64, i64), IdentityError> {
    let validity = parse(certificate)?.validity().clone();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Returns the only DNS name of a certificate; `None` when it has no name, several names, or a name of another kind.
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

/// Makes a subject or issuer with a common name only.
pub(crate) fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// Sets the validity of a new certificate: from [`CLOCK_SKEW`] before now to `life` after now.
#[expect(clippy::disallowed_methods, reason = "a certificate's validity is wall-clock time (RFC 5280 section 4.1.2.5)")]
pub(crate) fn with_validity(mut params: CertificateParams, life: Duration) -> CertificateParams {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
    params
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| IdentityError::Malformed(format!("not a certificate: {error}")))?;
    Ok(parsed)
}
