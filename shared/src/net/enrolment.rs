//! Applicant's side of the enrolment, and the proof that both sides compute. [`crate::rpc::enrol`] describes the
//! protocol.

use certs::{Applicant, EXPORTER_LABEL, Identity, JoinToken, trust};

use super::{
    close_code::CloseCode,
    connection::{Target, call_context, dial, open_stream, unspecified_address},
    endpoint,
    error::NetError,
    rpc_transport::ServiceClient,
    stream_kind::StreamKind,
};
use crate::{
    error::{Failure, FailureCode},
    id::Role,
    limits,
    name::Endpoint,
    rpc::{
        ENROL_ALPN,
        enrol::{EnrolError, EnrolRequest, EnrolServiceClient, Enrolled},
    },
};

/// Error of an enrolment at one address.
pub(super) enum DialError {
    /// The connection failed. Another address may work.
    Net(NetError),
    /// Another failure, which no other address resolves.
    Other(Failure),
}

impl From<NetError> for DialError {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

/// Connection of an applicant, on a socket of its own.
pub(super) struct EnrolmentConnection {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

/// Dials a nameserver as an applicant. Accepts only a certificate issued by `authority`.
pub(super) async fn dial_as_applicant(
    address: &Endpoint,
    authority: certs::Fingerprint,
    applicant: &Applicant,
) -> Result<EnrolmentConnection, DialError> {
    let tls = trust::applicant_client(applicant, authority, &[ENROL_ALPN]).map_err(|error| {
        DialError::Other(Failure::new(FailureCode::Internal, "this node's key cannot be used", error, "try again"))
    })?;
    let local = unspecified_address(std::slice::from_ref(address)).await;
    let endpoint = endpoint::bind(local, None, tls)?.endpoint;
    let target = Target { role: Role::Nameserver, endpoint: address.clone() };
    let connection = dial(&endpoint, &target).await?;
    Ok(EnrolmentConnection { endpoint, connection })
}

fn rejected(role: &Role, why: &dyn std::fmt::Display, hint: &str) -> Failure {
    Failure::new(FailureCode::NotAuthorised, format!("the enrolment of {role} failed"), why, hint)
}

/// Returns true if `token` is for the network of `identity`.
pub(super) fn is_same_network(identity: &Identity, token: &JoinToken) -> bool {
    certs::Fingerprint::of(identity.authority()) == token.authority
}

/// Enrols at the first of `addresses` that answers.
pub(super) async fn enrol(
    addresses: &[Endpoint],
    token: &JoinToken,
    role: &Role,
    applicant: Applicant,
) -> Result<(Identity, Enrolled), Failure> {
    let mut last = None;
    for address in addresses {
        match enrol_at(address, token, role, &applicant).await {
            Ok(enrolled) => {
                let Enrolled { certificate, authority, .. } = enrolled.clone();
                let identity = applicant
                    .into_member(certificate, authority)
                    .map_err(|error| rejected(role, &error, "do not use this nameserver"))?;
                if identity.role() != role || !is_same_network(&identity, token) {
                    let why = "the nameserver sent a certificate for another role or network";
                    return Err(rejected(role, &why, "do not use this nameserver"));
                }
                return Ok((identity, enrolled));
            }
            Err(DialError::Other(failure)) => return Err(failure),
            Err(DialError::Net(error)) => last = Some(error),
        }
    }
    Err(NetError::nameserver_failure(last))
}

async fn enrol_at(
    address: &Endpoint,
    token: &JoinToken,
    role: &Role,
    applicant: &Applicant,
) -> Result<Enrolled, DialError> {
    let refused = |why: &dyn std::fmt::Display, hint: &str| DialError::Other(rejected(role, why, hint));
    let EnrolmentConnection { endpoint, connection } = dial_as_applicant(address, token.authority, applicant).await?;
    let csr = applicant.signing_request().map_err(|error| refused(&error, "try again"))?;
    let request = EnrolRequest {
        token_id: token.id(),
        proof: enrol_proof(&connection, token.proof_key(), role, &csr).map_err(|error| refused(&error, "try again"))?,
        role: role.clone(),
        csr,
    };
    let name = address.host_port();
    let (send, recv) = open_stream(&connection, StreamKind::Enrol).await.map_err(|error| match error {
        Some(error) => NetError::from_connection(&name, &error),
        None => NetError::Refused { address: name.clone(), why: "it stopped the stream".to_owned() },
    })?;
    let client = EnrolServiceClient::on(send, recv);
    let answer = client
        .enrol(call_context(limits::CALL_DEADLINE), request)
        .await
        .map_err(|error| NetError::from_rpc(&name, &error, &connection))?;
    endpoint.close(CloseCode::Done.to_varint(), b"enrolled");
    answer.map_err(|error| {
        let hint = match error {
            EnrolError::AlreadyEnrolled(_) => "an admin can permit a new key for this id: `nsc token --for ID`",
            EnrolError::Unavailable(_) => "try again",
            _ => "get a new token with `nsc token`",
        };
        refused(&error, hint)
    })
}

/// Computes the proof that the holder of `key` requests, on this connection, a certificate with `role` for the key in
/// `csr`. Both sides compute it.
///
/// # Errors
/// Fails if the connection is closed and cannot export keying material (RFC 8446 section 7.5).
pub fn enrol_proof(
    connection: &quinn::Connection,
    key: certs::ProofKey,
    role: &Role,
    csr: &[u8],
) -> Result<[u8; 32], String> {
    Ok(key.proof(&export_keying_material(connection)?, &proof_request(role, csr)))
}

/// Returns true if `proof` equals the result of [`enrol_proof`]. Compares in constant time.
///
/// # Errors
/// Fails like [`enrol_proof`].
pub fn check_enrol_proof(
    connection: &quinn::Connection,
    key: &certs::ProofKey,
    role: &Role,
    csr: &[u8],
    proof: &[u8; 32],
) -> Result<bool, String> {
    Ok(key.accepts(proof, &export_keying_material(connection)?, &proof_request(role, csr)))
}

fn export_keying_material(connection: &quinn::Connection) -> Result<[u8; 32], String> {
    let mut material = [0; 32];
    connection
        .export_keying_material(&mut material, EXPORTER_LABEL, b"")
        .map_err(|_| "the connection is closed".to_owned())?;
    Ok(material)
}

fn proof_request(role: &Role, csr: &[u8]) -> Vec<u8> {
    // The DNS name contains no zero byte, so the encoding is unambiguous.
    [role.dns_name().as_bytes(), &[0], csr].concat()
}
