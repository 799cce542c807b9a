//! Authentication and enrolment: accepted and rejected identities, and the errors on both sides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use certs::{Applicant, Authority, Identity, JoinToken, ProofKey, public_key_of, trust, trust::Caller};
use futures::{FutureExt, future::BoxFuture};
use rustls::{
    NamedGroup, RootCertStore,
    client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue},
    crypto::aws_lc_rs,
    pki_types::ServerName,
};
use shared::{
    error::FailureCode,
    id::Role,
    name::Endpoint,
    net::{
        NetError, StreamKind, Target,
        connection::call_context,
        endpoint,
        enrolment::{check_enrol_proof, enrol_proof},
        rpc_transport::{ServiceClient, serve_calls},
        serve::{Handler, Remote, serve},
        session::{Session, SessionConfig},
    },
    rpc::{
        ALPN, ENROL_ALPN,
        enrol::{EnrolError, EnrolRequest, EnrolService, EnrolServiceClient, Enrolled},
    },
    time::unix_micros,
};
use tarpc::context::Context;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    CapturedLog, DEADLINE, LIFETIME, Node, client_pool, eventually, foreign_identity_trusting, loopback, peer, whoami,
};

/// Returns the reason of a rejection.
fn refusal<T: std::fmt::Debug>(answer: Result<T, NetError>) -> String {
    match answer {
        Err(NetError::NotAuthorised { why, .. }) => why,
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn certificate_of_another_authority_is_rejected() {
    let (ours, theirs) = (Authority::ephemeral().unwrap(), Authority::ephemeral().unwrap());
    let (a, b) = (Node::new(&ours, "a"), Node::new(&ours, "b"));
    let stranger = Node::new(&theirs, "a");
    let why = refusal(stranger.whoami(&b.target()).await);
    assert!(why.contains("this program rejects it") && why.contains("another network"), "{why}");

    // A stranger that trusts our authority is rejected by our side.
    let stranger = foreign_identity_trusting(&theirs.identity(&peer("a"), LIFETIME).unwrap(), &ours);
    let stranger = client_pool(trust::member_client(&stranger, &[ALPN]).unwrap());
    let why = refusal(whoami(&stranger, &b.target(), DEADLINE).await);
    assert!(why.contains("it rejects this program") && why.contains("another network"), "{why}");
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 0, "the server accepted a stream of the stranger");
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
}

#[tokio::test]
async fn client_without_a_certificate_is_rejected() {
    let authority = Authority::ephemeral().unwrap();
    let b = Node::new(&authority, "b");
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).unwrap();
    let mut anonymous = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![ALPN.to_vec()];
    let why = refusal(whoami(&client_pool(anonymous), &b.target(), DEADLINE).await);
    assert!(why.contains("a certificate is required"), "{why}");
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn server_with_another_role_is_rejected_by_the_client() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    for expected in [peer("c"), Role::Nameserver, Role::Admin] {
        let target = Target { role: expected, endpoint: b.target().endpoint };
        let why = refusal(a.whoami(&target).await);
        assert!(why.contains("another node answers"), "{why}");
    }
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 0);
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
}

#[tokio::test]
async fn expired_certificate_is_rejected_by_both_sides() {
    let authority = Authority::ephemeral().unwrap();
    let expired = authority.identity(&peer("late"), Duration::ZERO).unwrap();
    let now = || i64::try_from(unix_micros() / 1_000_000).unwrap();
    eventually("the certificate has expired", || now() > expired.expires_unix_seconds()).await;
    let (late, b) = (Node::of(&expired), Node::new(&authority, "b"));
    let why = refusal(late.whoami(&b.target()).await);
    assert!(why.contains("it rejects this program") && why.contains("expired"), "{why}");
    let why = refusal(b.whoami(&late.target()).await);
    assert!(why.contains("this program rejects it") && why.contains("expired"), "{why}");
}

#[tokio::test]
async fn protocol_version_mismatch_is_reported_by_both_sides() {
    let log = CapturedLog::start();
    let authority = Authority::ephemeral().unwrap();
    let identity = authority.identity(&peer("new"), LIFETIME).unwrap();
    let next = trust::member_server(&identity, &[b"brasa/2"]).unwrap();
    let new = Node::bound(&identity, loopback(), next).unwrap();
    let old = Node::new(&authority, "old");
    let error = old.whoami(&new.target()).await.unwrap_err();
    assert!(matches!(error, NetError::VersionMismatch { .. }), "{error:?}");
    let reports =
        |line: &str| line.contains(&old.address().to_string()) && line.contains("another version of the protocol");
    eventually("the server logs the mismatch", || log.text().lines().any(reports)).await;
}

/// Session store that counts the resumption tickets of a server.
#[derive(Debug, Default)]
struct Tickets(AtomicUsize);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[tokio::test]
async fn server_issues_no_resumption_tickets() {
    let authority = Authority::ephemeral().unwrap();
    let b = Node::new(&authority, "b");
    let identity = authority.identity(&peer("a"), LIFETIME).unwrap();
    let tickets = Arc::new(Tickets::default());
    // A client with resumption and early data enabled.
    let mut resuming = trust::member_client(&identity, &[ALPN]).unwrap();
    resuming.resumption = Resumption::store(tickets.clone());
    resuming.enable_early_data = true;
    let connections = client_pool(resuming);
    for _ in 0..2 {
        assert_eq!(whoami(&connections, &b.target(), DEADLINE).await.unwrap(), "a");
        let connection = connections.connection(&b.target()).await.unwrap();
        connections.forget(&b.target(), &connection);
    }
    // A server sends tickets right after the handshake, before the answer of the call.
    assert_eq!(tickets.0.load(Ordering::SeqCst), 0);
}

/// Handler of a nameserver that enrols applicants with one token.
#[derive(Clone)]
struct EnrolmentHandler {
    authority: Arc<Authority>,
    key: ProofKey,
    remote: Option<Arc<Remote>>,
}

impl EnrolService for EnrolmentHandler {
    async fn enrol(self, _: Context, request: EnrolRequest) -> Result<Enrolled, EnrolError> {
        let remote = self.remote.unwrap();
        let Caller::Applicant(public_key) = &remote.caller else { panic!("a member enrols") };
        let EnrolRequest { role, csr, proof, .. } = request;
        if !check_enrol_proof(&remote.connection, &self.key, &role, &csr, &proof).unwrap() {
            return Err(EnrolError::InvalidToken);
        }
        let certificate = self
            .authority
            .certify(&csr, public_key, &role, LIFETIME)
            .map_err(|error| EnrolError::InvalidRequest(error.to_string()))?;
        let authority = self.authority.certificate().to_vec();
        Ok(Enrolled { certificate: certificate.to_vec(), authority, nameservers: vec![] })
    }
}

impl Handler for EnrolmentHandler {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        async move {
            if kind == StreamKind::Enrol {
                serve_calls(send, recv, Self { remote: Some(remote), ..(*self).clone() }.serve()).await;
            }
        }
        .boxed()
    }
}

struct Nameserver {
    authority: Arc<Authority>,
    token: JoinToken,
    target: Target,
}

impl Nameserver {
    fn start() -> Self {
        let authority = Arc::new(Authority::ephemeral().unwrap());
        let identity = authority.identity(&Role::Nameserver, LIFETIME).unwrap();
        let token = JoinToken::new(authority.fingerprint(), vec![]).unwrap();
        let server = trust::nameserver_server(&identity, &[ALPN, ENROL_ALPN]).unwrap();
        let client = trust::member_client(&identity, &[ALPN]).unwrap();
        let endpoint = endpoint::bind(loopback(), Some(server), client).unwrap().endpoint;
        let address = Endpoint::from(endpoint.local_addr().unwrap());
        let handler = EnrolmentHandler { authority: authority.clone(), key: token.proof_key(), remote: None };
        tokio::spawn(serve(endpoint, Arc::new(handler), CancellationToken::new()));
        Self { authority, token, target: Target { role: Role::Nameserver, endpoint: address } }
    }

    async fn connect(&self, tls: rustls::ClientConfig) -> Result<quinn::Connection, NetError> {
        client_pool(tls).connection(&self.target).await
    }

    async fn applicant(&self) -> (Applicant, quinn::Connection) {
        let applicant = Applicant::new().unwrap();
        let tls = trust::applicant_client(&applicant, self.authority.fingerprint(), &[ENROL_ALPN]).unwrap();
        let connection = self.connect(tls).await.unwrap();
        (applicant, connection)
    }
}

async fn enrol(connection: &quinn::Connection, request: EnrolRequest) -> Result<Enrolled, EnrolError> {
    let (send, recv) = shared::net::connection::open_stream(connection, StreamKind::Enrol).await.unwrap();
    EnrolServiceClient::on(send, recv).enrol(call_context(DEADLINE), request).await.unwrap()
}

fn request(connection: &quinn::Connection, key: ProofKey, role: &Role, csr: &[u8]) -> EnrolRequest {
    let proof = enrol_proof(connection, key, role, csr).unwrap();
    EnrolRequest { token_id: [0; 16], proof, role: role.clone(), csr: csr.to_vec() }
}

#[tokio::test]
async fn applicant_with_the_secret_becomes_a_member() {
    let nameserver = Nameserver::start();
    let (applicant, connection) = nameserver.applicant().await;
    let csr = applicant.signing_request().unwrap();
    let request = request(&connection, nameserver.token.proof_key(), &peer("new"), &csr);
    let Enrolled { certificate, authority, .. } = enrol(&connection, request).await.unwrap();
    let identity: Identity = applicant.into_member(certificate, authority).unwrap();
    assert_eq!(identity.role(), &peer("new"));
    let member = Node::new(&nameserver.authority, "other");
    assert_eq!(Node::of(&identity).whoami(&member.target()).await.unwrap(), "new");
}

#[tokio::test]
async fn proof_for_another_connection_role_or_key_is_rejected() {
    let nameserver = Nameserver::start();
    let (applicant, connection) = nameserver.applicant().await;
    let csr = applicant.signing_request().unwrap();
    let key = || nameserver.token.proof_key();
    let good = request(&connection, key(), &peer("new"), &csr);

    let other_token = JoinToken::new(nameserver.authority.fingerprint(), vec![]).unwrap();
    let forged = request(&connection, other_token.proof_key(), &peer("new"), &csr);
    assert_eq!(enrol(&connection, forged).await, Err(EnrolError::InvalidToken));
    let promoted = EnrolRequest { role: Role::Admin, ..good.clone() };
    assert_eq!(enrol(&connection, promoted).await, Err(EnrolError::InvalidToken));
    let other_csr = Applicant::new().unwrap().signing_request().unwrap();
    let exchanged = EnrolRequest { csr: other_csr.clone(), ..good.clone() };
    assert_eq!(enrol(&connection, exchanged).await, Err(EnrolError::InvalidToken));
    // An applicant with the secret gets a certificate only for the key used in the handshake.
    let for_another = request(&connection, key(), &peer("new"), &other_csr);
    let refused = enrol(&connection, for_another).await;
    assert!(matches!(refused, Err(EnrolError::InvalidRequest(_))), "{refused:?}");
    // A proof replayed on another connection.
    let (_, elsewhere) = nameserver.applicant().await;
    assert_eq!(enrol(&elsewhere, good.clone()).await, Err(EnrolError::InvalidToken));

    assert!(enrol(&connection, good).await.is_ok());
}

#[tokio::test]
async fn applicant_is_rejected_for_everything_but_enrolment() {
    let nameserver = Nameserver::start();
    let member = Node::new(&nameserver.authority, "member");
    let applicant = Applicant::new().unwrap();
    let fingerprint = nameserver.authority.fingerprint();
    let tls = |protocol| trust::applicant_client(&applicant, fingerprint, &[protocol]).unwrap();

    // A member rejects it on both protocols.
    let why = refusal(whoami(&client_pool(tls(ALPN)), &member.target(), DEADLINE).await);
    assert!(why.contains("it rejects this program"), "{why}");
    let elsewhere = whoami(&client_pool(tls(ENROL_ALPN)), &member.target(), DEADLINE).await;
    assert!(matches!(elsewhere, Err(NetError::VersionMismatch { .. })), "{elsewhere:?}");
    assert_eq!(member.stats.streams.load(Ordering::SeqCst), 0);

    // The nameserver rejects it on the members' protocol.
    let connection = nameserver.connect(tls(ALPN)).await.unwrap();
    let ended = NetError::from_connection("the nameserver", &connection.closed().await);
    assert!(refusal::<()>(Err(ended)).contains("authority is required"));
    assert_eq!(member.whoami(&member.target()).await.unwrap(), "member");
}

#[tokio::test]
async fn applicants_are_limited_in_number_and_time() {
    let nameserver = Nameserver::start();
    let mut held = Vec::new();
    for _ in 0..shared::net::params::MAX_APPLICANTS {
        held.push(nameserver.applicant().await.1);
    }
    let (_, one_more) = nameserver.applicant().await;
    let ended = NetError::from_connection("the nameserver", &one_more.closed().await);
    assert!(matches!(&ended, NetError::Refused { why, .. } if why.contains("too many")), "{ended:?}");
    let ended = timeout(shared::net::params::ENROLMENT_TIMEOUT + DEADLINE, held[0].closed())
        .await
        .expect("the server did not close the connection");
    let ended = NetError::from_connection("the nameserver", &ended);
    assert!(matches!(&ended, NetError::Refused { why, .. } if why.contains("took too long")), "{ended:?}");
}

#[tokio::test]
async fn nameserver_at_its_connection_limit_is_not_reported_as_rejecting() {
    let authority = Authority::ephemeral().unwrap();
    let identity = authority.identity(&Role::Nameserver, LIFETIME).unwrap();
    let server = trust::member_server(&identity, &[ENROL_ALPN]).unwrap();
    let client = trust::member_client(&identity, &[ALPN]).unwrap();
    let endpoint = endpoint::bind(loopback(), Some(server), client).unwrap().endpoint;
    let address = Endpoint::from(endpoint.local_addr().unwrap());
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            incoming.refuse();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let config =
        SessionConfig { role: peer("a"), state_dir: folder.path().to_owned(), nameserver: Some(address), join: None };
    let failure = timeout(DEADLINE, Session::open(&config)).await.unwrap().err().expect("the session opened");
    assert_eq!(failure.code, FailureCode::NameserverUnreachable, "{failure}");
    assert!(failure.to_string().contains("too many connections"), "{failure}");
}

#[tokio::test]
async fn member_that_enrols_is_rejected() {
    let nameserver = Nameserver::start();
    let identity = nameserver.authority.identity(&peer("a"), LIFETIME).unwrap();
    let connection = nameserver.connect(trust::member_client(&identity, &[ENROL_ALPN]).unwrap()).await.unwrap();
    let ended = NetError::from_connection("the nameserver", &connection.closed().await);
    assert!(refusal::<()>(Err(ended)).contains("need not enrol"));
}

#[tokio::test]
async fn applicant_rejects_an_authority_that_its_token_does_not_pin() {
    let nameserver = Nameserver::start();
    let stranger = Authority::ephemeral().unwrap();
    let applicant = Applicant::new().unwrap();
    let pinned = |fingerprint| trust::applicant_client(&applicant, fingerprint, &[ENROL_ALPN]).unwrap();
    let why = refusal(nameserver.connect(pinned(stranger.fingerprint())).await);
    assert!(why.contains("another network"), "{why}");

    // A member of the pinned network that poses as the nameserver is rejected.
    let member = Node::new(&nameserver.authority, "member");
    let identity = nameserver.authority.identity(&peer("impostor"), LIFETIME).unwrap();
    assert_ne!(public_key_of(identity.certificate()).unwrap(), Vec::<u8>::new());
    let server = trust::member_server(&identity, &[ENROL_ALPN]).unwrap();
    let impostor = Node::bound(&identity, loopback(), server).unwrap();
    let target = Target { role: Role::Nameserver, endpoint: impostor.target().endpoint };
    let why = refusal(client_pool(pinned(nameserver.authority.fingerprint())).connection(&target).await);
    assert!(why.contains("another node answers"), "{why}");
    drop(member);
}
