//! The certificate authority of a network: issues the certificates of its members.

use std::{path::Path, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{
    certificate::{Fingerprint, common_name, public_key_of, with_validity},
    error::IdentityError,
    file::{StoredPem, create_private_folder},
    id::Role,
    identity::Identity,
};

/// Life of an authority's certificate. It is long because no procedure renews it and its key never leaves its machine.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Name of the authority's file in its folder.
const FILE: &str = "authority.pem";

/// A network's certificate authority (ECDSA P-256, X.509 v3, RFC 5280).
///
/// Its key stays in its folder, readable by its user only. Serial numbers are random, so that a certificate can be
/// revoked by its serial number although the authority keeps no list of the certificates it issued.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads the authority from `folder`; `None` when the folder holds none.
    ///
    /// # Errors
    /// When its file cannot be read or does not hold an authority.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        StoredPem::read(&folder.join(FILE))?.map(Self::from_pem).transpose()
    }

    /// Loads the authority from `folder`, or creates it together with the folder.
    ///
    /// # Errors
    /// When the folder or its file cannot be read or written, or the file does not hold an authority.
    pub fn load_or_create(folder: &Path) -> Result<Self, IdentityError> {
        create_private_folder(folder)?;
        if let Some(authority) = Self::load(folder)? {
            return Ok(authority);
        }
        let (authority, stored) = Self::create()?;
        if stored.write_new(&folder.join(FILE))? {
            return Ok(authority);
        }
        // Another process created its authority first. Both must use that one: two would split the network.
        Self::load(folder)?
            .ok_or_else(|| IdentityError::Malformed(format!("{FILE} was removed while it was being created")))
    }

    /// Creates an authority in memory only, for tests and demonstrations.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Ok(Self::create()?.0)
    }

    fn create() -> Result<(Self, StoredPem), IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = with_validity(CertificateParams::default(), AUTHORITY_LIFE);
        let serial = random_serial()?;
        // The name is unique, so that a verifier tells another network's certificates from forged ones of this network.
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
            .map_err(|_| IdentityError::Malformed("expected one certificate, the authority's".to_owned()))?;
        let key = KeyPair::try_from(&stored.key)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    /// The authority's own certificate, the trust anchor of its members.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Fingerprint of the authority's certificate, as join tokens pin it.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Generates a key and issues a certificate for `role`, valid for `life` from now.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn identity(&self, role: &Role, life: Duration) -> Result<Identity, IdentityError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign(&key, role, life)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Identity::new(key, certificate, self.certificate.clone())
    }

    /// Issues a certificate for `role` over the key of a signing request (PKCS #10, RFC 2986, DER), valid for `life`
    /// from now. Everything else in the request is ignored: the caller decides the role. `handshake_key` is the public
    /// key that the applicant proved in the TLS handshake, as [`public_key_of`] returns it.
    ///
    /// # Errors
    /// When the request is malformed, its signature is wrong, or its key is not `handshake_key`.
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
        let mut params = with_validity(CertificateParams::new(vec![role.dns_name()])?, life);
        params.serial_number = Some(random_serial()?);
        params.distinguished_name = common_name(&role.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A member is client and server on the same socket.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

/// Generates 127 random bits: a positive, unpredictable and unique number (RFC 5280 section 4.1.2.2; CA/Browser Forum
/// Baseline Requirements section 7.1).
fn random_serial() -> Result<SerialNumber, IdentityError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| IdentityError::Malformed(format!("no randomness: {error}")))?;
    serial[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&serial))
}
