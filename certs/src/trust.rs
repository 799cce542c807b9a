//! TLS 1.3 configurations that authenticate both ends of a connection.

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
    applicant::{APPLICANT_NAME, Applicant},
    certificate::{Fingerprint, dns_name_of, public_key_of, role_of},
    error::IdentityError,
    id::Role,
    identity::Identity,
};

/// Identity of the remote end of an authenticated connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A member, with the role that its certificate names.
    Member(Role),
    /// An applicant that proved the private key of this public key (SubjectPublicKeyInfo, DER).
    Applicant(Vec<u8>),
}

/// Failure to build a TLS configuration or to identify a caller.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The authority's or the member's certificate is unusable; enrol again.
    #[error("unusable certificate: {0}")]
    Certificate(String),
    /// A certificate cannot be parsed.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<Error> for TrustError {
    fn from(error: Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// Server configuration of a member: accepts members only.
///
/// # Errors
/// When the identity is unusable.
pub fn member_server(identity: &Identity, protocols: &[&[u8]]) -> Result<ServerConfig, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity.authority())?, provider())
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    server(identity, verifier, protocols)
}

/// Server configuration of a nameserver: accepts members and applicants, which [`caller`] distinguishes.
///
/// # Errors
/// When the identity is unusable.
pub fn nameserver_server(identity: &Identity, protocols: &[&[u8]]) -> Result<ServerConfig, TrustError> {
    let members = WebPkiClientVerifier::builder_with_provider(roots(identity.authority())?, provider())
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    server(identity, Arc::new(MemberOrApplicant { members, provider: provider() }), protocols)
}

/// Client configuration of a member: trusts members of its authority.
///
/// # Errors
/// When the identity is unusable.
pub fn member_client(identity: &Identity, protocols: &[&[u8]]) -> Result<ClientConfig, TrustError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(identity.authority())?, provider())
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    client(verifier, vec![identity.certificate().clone()], identity.key(), protocols)
}

/// Client configuration of an applicant: trusts only the nameserver of the authority with the fingerprint `authority`.
///
/// # Errors
/// When the applicant's certificate is unusable.
pub fn applicant_client(
    applicant: &Applicant,
    authority: Fingerprint,
    protocols: &[&[u8]],
) -> Result<ClientConfig, TrustError> {
    let verifier = Arc::new(PinnedAuthority { authority, provider: provider() });
    client(verifier, vec![applicant.certificate().clone()], applicant.key(), protocols)
}

/// Identifies the sender of a certificate chain that one of the verifiers of this module has accepted.
///
/// # Errors
/// When the chain is empty, or its first certificate names neither a role nor an applicant.
pub fn caller(chain: &[CertificateDer<'_>]) -> Result<Caller, TrustError> {
    let end_entity = chain.first().ok_or_else(|| TrustError::Certificate("none was presented".to_owned()))?;
    // Both verifiers accept this name for self-signed certificates only, and no authority certifies it.
    if dns_name_of(end_entity)?.as_deref() == Some(APPLICANT_NAME) {
        return Ok(Caller::Applicant(public_key_of(end_entity)?));
    }
    let role = role_of(end_entity)?.ok_or_else(|| TrustError::Certificate("it names no role of Brasa".to_owned()))?;
    Ok(Caller::Member(role))
}

fn provider() -> Arc<CryptoProvider> {
    // The crate feature `prefer-post-quantum` puts X25519MLKEM768 first; a unit test asserts it.
    let mut provider = aws_lc_rs::default_provider();
    if has_vaes_without_avx512() {
        provider.cipher_suites = ring::DEFAULT_CIPHER_SUITES.to_vec();
    }
    Arc::new(provider)
}

/// Returns whether the processor has VAES and AVX2 but not AVX-512, so that it encrypts two AES blocks at a time.
///
/// On such a processor ring's AES-GCM takes about half the time of aws-lc's; on others it is not faster. Key exchange
/// and signatures always use aws-lc.
fn has_vaes_without_avx512() -> bool {
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
        // The chain includes the authority, so that applicants can compare it with the fingerprint they pin.
        .with_single_cert(vec![identity.certificate().clone(), identity.authority().clone()], identity.key())?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // A resumed session would skip the verification of the certificate, including expiry and revocation.
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
        .dangerous() // Required by rustls for a custom verifier. Both verifiers used here delegate to webpki.
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Accepts members by their authority's signature, and applicants by a self-signed certificate with the name
/// [`APPLICANT_NAME`].
#[derive(Debug)]
struct MemberOrApplicant {
    members: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for MemberOrApplicant {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: an applicant has no certificate of any authority.
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
            // The handshake signature, verified below, proves the key. No authority vouches for an applicant.
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
        Err(Error::General("TLS 1.2 is not supported".to_owned()))
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

/// Trusts the nameserver of the authority with one fingerprint.
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
        Err(Error::General("TLS 1.2 is not supported".to_owned()))
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
    fn key_exchange_prefers_post_quantum_group() {
        assert_eq!(provider().kx_groups[0].name(), NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn cipher_suites_of_both_providers_are_equal_and_in_the_same_order() {
        let names =
            |suites: &[rustls::SupportedCipherSuite]| suites.iter().map(|suite| suite.suite()).collect::<Vec<_>>();
        assert_eq!(names(ring::DEFAULT_CIPHER_SUITES), names(aws_lc_rs::DEFAULT_CIPHER_SUITES));
        assert!(!ring::DEFAULT_CIPHER_SUITES.is_empty());
    }
}
