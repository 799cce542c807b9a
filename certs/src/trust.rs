//! Who is trusted: TLS 1.3 configurations with both sides authenticated, and nothing weaker.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, ring, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use crate::{
    Applicant, Fingerprint, Identity, Role,
    identity::{APPLICANT_NAME, IdentityError, dns_name_of, public_key_of, role_of},
};

/// Who is at the other end of an authenticated connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A member, by its certificate.
    Member(Role),
    /// A newcomer that holds the private key of this public key (SubjectPublicKeyInfo, DER).
    Applicant(Vec<u8>),
}

/// Why a TLS configuration could not be made or a caller not be told.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The authority's or the node's certificate is unusable; enrol again.
    #[error("unusable certificate: {0}")]
    Certificate(String),
    /// As for identities.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<Error> for TrustError {
    fn from(error: Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// Configuration of a member that accepts connections of members only.
///
/// # Errors
/// When the identity is unusable.
pub fn member_server(identity: &Identity, protocols: &[&[u8]]) -> Result<ServerConfig, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity.authority())?, provider())
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    server(identity, verifier, protocols)
}

/// Configuration of a nameserver: it accepts members, and newcomers, which [`caller`] tells apart.
///
/// # Errors
/// When the identity is unusable.
pub fn nameserver_server(identity: &Identity, protocols: &[&[u8]]) -> Result<ServerConfig, TrustError> {
    let members = WebPkiClientVerifier::builder_with_provider(roots(identity.authority())?, provider())
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    server(identity, Arc::new(MemberOrApplicant { members, provider: provider() }), protocols)
}

/// Configuration of a member that connects to members.
///
/// # Errors
/// When the identity is unusable.
pub fn member_client(identity: &Identity, protocols: &[&[u8]]) -> Result<ClientConfig, TrustError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(identity.authority())?, provider())
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    client(verifier, vec![identity.certificate().clone()], identity.key(), protocols)
}

/// Configuration of a newcomer that trusts the nameserver of the authority with the given fingerprint only.
///
/// # Errors
/// When the newcomer's certificate is unusable.
pub fn applicant_client(
    applicant: &Applicant,
    authority: Fingerprint,
    protocols: &[&[u8]],
) -> Result<ClientConfig, TrustError> {
    let verifier = Arc::new(PinnedAuthority { authority, provider: provider() });
    client(verifier, vec![applicant.certificate().clone()], applicant.key(), protocols)
}

/// Who sent this certificate chain, which one of the verifiers above has let pass.
///
/// # Errors
/// When the certificate names nobody.
pub fn caller(chain: &[CertificateDer<'_>]) -> Result<Caller, TrustError> {
    let end_entity = chain.first().ok_or_else(|| TrustError::Certificate("none was shown".to_owned()))?;
    // Both verifiers accept this name for self-signed certificates only, and no authority certifies it.
    if dns_name_of(end_entity)?.as_deref() == Some(APPLICANT_NAME) {
        return Ok(Caller::Applicant(public_key_of(end_entity)?));
    }
    let role = role_of(end_entity)?.ok_or_else(|| TrustError::Certificate("it names no role of Brasa".to_owned()))?;
    Ok(Caller::Member(role))
}

fn provider() -> Arc<CryptoProvider> {
    // X25519MLKEM768 stands first in it (crate feature `prefer-post-quantum`); a test holds that fast.
    let mut provider = aws_lc_rs::default_provider();
    if has_wide_aes_only() {
        provider.cipher_suites = ring::DEFAULT_CIPHER_SUITES.to_vec();
    }
    Arc::new(provider)
}

/// Whether this processor does two blocks of AES at once and not four (VAES and AVX2, without AVX-512): there ring takes half
/// the time of aws-lc for AES-GCM (0.15 instead of 0.27 s a GiB, a tenth of all that a transfer costs), everywhere else not
/// less. Key exchange and signatures are aws-lc's in any case.
fn has_wide_aes_only() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
        && !is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    Ok(Arc::new(roots))
}

fn server(
    identity: &Identity,
    verifier: Arc<dyn ClientCertVerifier>,
    protocols: &[&[u8]],
) -> Result<ServerConfig, TrustError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        // The authority travels along so that newcomers can check it against the fingerprint they pin.
        .with_single_cert(vec![identity.certificate().clone(), identity.authority().clone()], identity.key())?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // A resumed session would skip the certificate's verification, and with it expiry and revocation.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    protocols: &[&[u8]],
) -> Result<ClientConfig, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // Rustls' word for any verifier made by hand: both of ours end in webpki.
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Lets members pass by their authority's signature, and newcomers with a self-signed certificate that claims
/// nothing but to be one.
#[derive(Debug)]
struct MemberOrApplicant {
    members: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for MemberOrApplicant {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a newcomer has no certificate of any authority.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let malformed = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        if dns_name_of(end_entity).map_err(malformed)?.as_deref() == Some(APPLICANT_NAME) {
            // The handshake's own signature (checked below) proves the key; there is nobody else to vouch.
            return Ok(ClientCertVerified::assertion());
        }
        self.members.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Trusts the nameserver of one authority, known by its fingerprint.
#[derive(Debug)]
struct PinnedAuthority {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.authority)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let roots = roots(&authority.clone().into_owned())
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::NamedGroup;

    use super::*;

    #[test]
    fn the_post_quantum_key_exchange_is_preferred() {
        assert_eq!(provider().kx_groups[0].name(), NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn the_ciphers_of_both_libraries_are_the_same_in_the_same_order() {
        let names =
            |suites: &[rustls::SupportedCipherSuite]| suites.iter().map(|suite| suite.suite()).collect::<Vec<_>>();
        assert_eq!(names(ring::DEFAULT_CIPHER_SUITES), names(aws_lc_rs::DEFAULT_CIPHER_SUITES));
        assert!(!ring::DEFAULT_CIPHER_SUITES.is_empty());
    }
}
