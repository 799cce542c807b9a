//! The authority: one a network, it says by certificates who is who.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{
    Fingerprint, Identity, Role,
    file::{self, StoredPem},
    identity::{IdentityError, public_key_of},
};

/// Life of an authority's certificate: nobody renews it by hand, and its key never leaves its machine.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How far before now a certificate is valid, for machines whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// File name of the authority within its folder.
const FILE: &str = "authority.pem";

/// A network's certificate authority (ECDSA P-256, X.509 v3, RFC 5280).
///
/// Its key stays in its folder, readable by its user only. Serial numbers are random 128-bit numbers, so that
/// a certificate can later be revoked by its serial without the authority having kept a list of what it issued.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority kept in `folder`; `None` when there is none.
    ///
    /// # Errors
    /// When its file cannot be read or is not an authority.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        StoredPem::read(&folder.join(FILE))?.map(Self::from_pem).transpose()
    }

    /// The authority kept in `folder`, made there (with the folder) if there is none yet.
    ///
    /// # Errors
    /// When the folder or its files cannot be read or written, or are not an authority.
    pub fn load_or_create(folder: &Path) -> Result<Self, IdentityError> {
        file::create_private_folder(folder)?;
        if let Some(authority) = Self::load(folder)? {
            return Ok(authority);
        }
        let (authority, stored) = Self::create()?;
        if stored.write_new(&folder.join(FILE))? {
            return Ok(authority);
        }
        // Somebody was faster: two authorities in one folder would split the network.
        Self::load(folder)?.ok_or_else(|| IdentityError::Malformed(format!("{FILE} came and went")))
    }

    /// A new authority that is kept nowhere, for tests and demonstrations.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Ok(Self::create()?.0)
    }

    fn create() -> Result<(Self, StoredPem), IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = validity(CertificateParams::default(), AUTHORITY_LIFE);
        let serial = random_serial()?;
        // A name of its own, so that another network's certificates are told from forged ones of this network.
        let name = format!("Brasa authority {}", data_encoding::HEXLOWER.encode(&serial.as_ref()[..8]));
        params.serial_number = Some(serial);
        params.distinguished_name = common_name(&name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.der().clone();
        let stored = StoredPem {
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            certificates: vec![certificate],
        };
        Ok((Self::from_pem(stored.clone_key())?, stored))
    }

    fn from_pem(stored: StoredPem) -> Result<Self, IdentityError> {
        let [certificate] = <[_; 1]>::try_from(stored.certificates)
            .map_err(|_| IdentityError::Malformed("an authority's file holds one certificate".to_owned()))?;
        let key = KeyPair::try_from(&stored.key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    /// The authority's own certificate, which its members trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What join tokens pin.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A new key with a certificate for `role`, valid for `life` from now.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn identity(&self, role: &Role, life: Duration) -> Result<Identity, IdentityError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign(&key, role, life)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Identity::new(key, certificate, self.certificate.clone())
    }

    /// A certificate for `role` over the key of a signing request (PKCS #10, RFC 2986, DER), valid for `life`
    /// from now. Only the key is taken from the request: what its holder is called, the caller decides.
    /// `handshake_key` is the public key that the holder proved to have, as [`public_key_of`] gives it.
    ///
    /// # Errors
    /// When the request is malformed, its signature is wrong, or it is over another key than the handshake's.
    pub fn certify(
        &self,
        request: &[u8],
        handshake_key: &[u8],
        role: &Role,
        life: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        let certificate = self.sign(&request.public_key, role, life)?;
        if public_key_of(&certificate)? != handshake_key {
            return Err(IdentityError::Malformed("the request is over another key than the connection's".to_owned()));
        }
        Ok(certificate)
    }

    fn sign(
        &self,
        key: &impl rcgen::PublicKeyData,
        role: &Role,
        life: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let mut params = validity(CertificateParams::new(vec![role.dns_name()])?, life);
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = common_name(&role.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every member is client and server on the same socket.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

pub(crate) fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

#[expect(clippy::disallowed_methods, reason = "a certificate's validity is wall-clock time (RFC 5280 section 4.1.2.5)")]
pub(crate) fn validity(mut params: CertificateParams, life: Duration) -> CertificateParams {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
    params
}

/// 127 random bits: positive, unguessable, unique (RFC 5280 section 4.1.2.2; CA/Browser baseline 7.1).
fn random_serial() -> Result<SerialNumber, IdentityError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| IdentityError::Malformed(format!("no randomness: {error}")))?;
    serial[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&serial))
}
