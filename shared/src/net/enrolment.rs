//! Enrolment, the newcomer's side, and the proof that both sides compute. The story is in [`crate::rpc::enrol`].

use certs::{Applicant, EXPORTER_LABEL, Identity, JoinToken, trust};

use super::{
    CloseCode, NetError, StreamKind, Target,
    connection::{call_context, dial, open_stream},
    endpoint,
    rpc_transport::ServiceClient,
    session::{any_address, belongs_to, unreachable},
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

/// Why a newcomer got no answer.
pub(super) enum DialError {
    /// The connection; another address may do.
    Net(NetError),
    /// Anything else; no address helps.
    Other(Failure),
}

impl From<NetError> for DialError {
    fn from(error: NetError) -> Self {
        Self::Net(error)
    }
}

/// A newcomer's connection, on a socket of its own that is closed with it.
pub(super) struct Door {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

/// Knocks at the nameserver of one authority.
pub(super) async fn applicant_dial(
    address: &Endpoint,
    authority: certs::Fingerprint,
    newcomer: &Applicant,
) -> Result<Door, DialError> {
    let tls = trust::applicant_client(newcomer, authority, &[ENROL_ALPN]).map_err(|error| {
        DialError::Other(Failure::new(FailureCode::Internal, "this node's key cannot be used", error, "try again"))
    })?;
    let endpoint = endpoint::bind(any_address(std::slice::from_ref(address)).await, None, tls)?.endpoint;
    let target = Target { role: Role::Nameserver, endpoint: address.clone() };
    let connection = dial(&endpoint, &target).await?;
    Ok(Door { endpoint, connection })
}

fn not_let_in(role: &Role, why: &dyn std::fmt::Display, hint: &str) -> Failure {
    Failure::new(FailureCode::NotAuthorised, format!("{role} was not let in"), why, hint)
}

/// Becomes a member at the first of `addresses` that answers.
pub(super) async fn enrol(
    addresses: &[Endpoint],
    token: &JoinToken,
    role: &Role,
    newcomer: Applicant,
) -> Result<(Identity, Enrolled), Failure> {
    let mut last = None;
    for address in addresses {
        match enrol_at(address, token, role, &newcomer).await {
            Ok(enrolled) => {
                let Enrolled { certificate, authority, .. } = enrolled.clone();
                let identity = newcomer
                    .into_member(certificate, authority)
                    .map_err(|error| not_let_in(role, &error, "do not use this nameserver"))?;
                if identity.role() != role || !belongs_to(&identity, token) {
                    let why = "the nameserver sent another certificate than was asked for";
                    return Err(not_let_in(role, &why, "do not use this nameserver"));
                }
                return Ok((identity, enrolled));
            }
            Err(DialError::Other(failure)) => return Err(failure),
            Err(DialError::Net(error)) => last = Some(error),
        }
    }
    Err(unreachable(last))
}

async fn enrol_at(
    address: &Endpoint,
    token: &JoinToken,
    role: &Role,
    newcomer: &Applicant,
) -> Result<Enrolled, DialError> {
    let refused = |why: &dyn std::fmt::Display, hint: &str| DialError::Other(not_let_in(role, why, hint));
    let Door { endpoint, connection } = applicant_dial(address, token.authority, newcomer).await?;
    let csr = newcomer.signing_request().map_err(|error| refused(&error, "try again"))?;
    let request = EnrolRequest {
        token_id: token.id(),
        proof: enrol_proof(&connection, token.proof_key(), role, &csr).map_err(|error| refused(&error, "try again"))?,
        role: role.clone(),
        csr,
    };
    let name = address.host_port();
    let (send, recv) = open_stream(&connection, StreamKind::Enrol).await.map_err(|error| match error {
        Some(error) => NetError::from_connection(&name, &error),
        None => NetError::Closed { address: name.clone(), why: "the stream was refused".to_owned() },
    })?;
    let client = EnrolServiceClient::on(send, recv);
    let answer = client
        .enrol(call_context(limits::CALL_DEADLINE), request)
        .await
        .map_err(|error| NetError::from_rpc(&name, &error, &connection))?;
    endpoint.close(CloseCode::Done.to_varint(), b"enrolled");
    answer.map_err(|error| {
        let hint = match error {
            EnrolError::AlreadyEnrolled(_) => "an admin can let this id be taken over: `nsc token --for ID`",
            EnrolError::Unavailable(_) => "try again",
            _ => "get a new token with `nsc token`",
        };
        refused(&error, hint)
    })
}

/// The proof that the holder of `key` asks, on this very connection, for `role` over the key in `csr`.
/// Both sides compute it.
///
/// # Errors
/// When the connection cannot export keying material (it is closed).
pub fn enrol_proof(
    connection: &quinn::Connection,
    key: certs::ProofKey,
    role: &Role,
    csr: &[u8],
) -> Result<[u8; 32], String> {
    Ok(key.proof(&exported(connection)?, &proof_request(role, csr)))
}

/// Whether `proof` is what [`enrol_proof`] gives; takes the same time for every wrong one.
///
/// # Errors
/// As [`enrol_proof`].
pub fn check_enrol_proof(
    connection: &quinn::Connection,
    key: &certs::ProofKey,
    role: &Role,
    csr: &[u8],
    proof: &[u8; 32],
) -> Result<bool, String> {
    Ok(key.accepts(proof, &exported(connection)?, &proof_request(role, csr)))
}

fn exported(connection: &quinn::Connection) -> Result<[u8; 32], String> {
    let mut material = [0; 32];
    connection
        .export_keying_material(&mut material, EXPORTER_LABEL, b"")
        .map_err(|_| "the connection is closed".to_owned())?;
    Ok(material)
}

fn proof_request(role: &Role, csr: &[u8]) -> Vec<u8> {
    // The name has no zero byte, so the two parts cannot be confused.
    [role.dns_name().as_bytes(), &[0], csr].concat()
}
