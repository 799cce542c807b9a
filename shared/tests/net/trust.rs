//! Who is let in, who is not, and what both sides are told.

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
    id::Role,
    limits,
    name::Endpoint,
    net::{
        NetError, StreamKind, Target,
        connection::call_context,
        endpoint,
        enrolment::{check_enrol_proof, enrol_proof},
        rpc_transport::{ServiceClient, serve_calls},
        serve::{Handler, Remote, serve},
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

use crate::harness::{LIFETIME, CapturedLog, Node, DEADLINE, whoami, client_pool, eventually, loopback, peer, foreign_identity_trusting};

/// The reason of a refusal.
fn refusal<T: std::fmt::Debug>(answer: Result<T, NetError>) -> String {
    match answer {
        Err(NetError::NotAuthorised { why, .. }) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_opens_nothing() {
    let (ours, theirs) = (Authority::ephemeral().unwrap(), Authority::ephemeral().unwrap());
    let (a, b) = (Node::new(&ours, "a"), Node::new(&ours, "b"));
    let stranger = Node::new(&theirs, "a");
    let why = refusal(stranger.whoami(&b.target()).await);
    assert!(why.contains("not trusted here") && why.contains("another network"), "{why}");

    // One who would trust us is not trusted by us.
    let stranger = foreign_identity_trusting(&theirs.identity(&peer("a"), LIFETIME).unwrap(), &ours);
    let stranger = client_pool(trust::member_client(&stranger, &[ALPN]).unwrap());
    let why = refusal(whoami(&stranger, &b.target(), DEADLINE).await);
    assert!(why.contains("not accepted there") && why.contains("another network"), "{why}");
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 0, "the stranger was heard");
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate() {
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
async fn somebody_else_at_the_address_is_not_talked_to() {
    let authority = Authority::ephemeral().unwrap();
    let (a, b) = (Node::new(&authority, "a"), Node::new(&authority, "b"));
    for expected in [peer("c"), Role::Nameserver, Role::Admin] {
        let target = Target { role: expected, endpoint: b.target().endpoint };
        let why = refusal(a.whoami(&target).await);
        assert!(why.contains("somebody else answers there"), "{why}");
    }
    assert_eq!(b.stats.streams.load(Ordering::SeqCst), 0);
    assert_eq!(a.whoami(&b.target()).await.unwrap(), "a");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_on_both_sides() {
    let authority = Authority::ephemeral().unwrap();
    let expired = authority.identity(&peer("late"), Duration::ZERO).unwrap();
    let now = || i64::try_from(unix_micros() / 1_000_000).unwrap();
    eventually("the certificate is over", || now() > expired.expires_unix_seconds()).await;
    let (late, b) = (Node::of(&expired), Node::new(&authority, "b"));
    let why = refusal(late.whoami(&b.target()).await);
    assert!(why.contains("not accepted there") && why.contains("expired"), "{why}");
    let why = refusal(b.whoami(&late.target()).await);
    assert!(why.contains("not trusted here") && why.contains("expired"), "{why}");
}

#[tokio::test]
async fn different_protocol_versions_are_told_on_both_sides() {
    let log = CapturedLog::start();
    let authority = Authority::ephemeral().unwrap();
    let identity = authority.identity(&peer("new"), LIFETIME).unwrap();
    let next = trust::member_server(&identity, &[b"brasa/2"]).unwrap();
    let new = Node::bound(&identity, loopback(), next).unwrap();
    let old = Node::new(&authority, "old");
    let error = old.whoami(&new.target()).await.unwrap_err();
    assert!(matches!(error, NetError::VersionMismatch { .. }), "{error:?}");
    let told =
        |line: &str| line.contains(&old.address().to_string()) && line.contains("another version of the protocol");
    eventually("the log tells it", || log.text().lines().any(told)).await;
}

/// Counts the tickets that a server hands out for resuming its sessions.
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
async fn sessions_are_not_resumed_and_nothing_is_said_before_the_handshake() {
    let authority = Authority::ephemeral().unwrap();
    let b = Node::new(&authority, "b");
    let identity = authority.identity(&peer("a"), LIFETIME).unwrap();
    let tickets = Arc::new(Tickets::default());
    // A client that would like to.
    let mut eager = trust::member_client(&identity, &[ALPN]).unwrap();
    eager.resumption = Resumption::store(tickets.clone());
    eager.enable_early_data = true;
    let connections = client_pool(eager);
    for _ in 0..2 {
        assert_eq!(whoami(&connections, &b.target(), DEADLINE).await.unwrap(), "a");
        let connection = connections.connection(&b.target()).await.unwrap();
        connections.forget(&b.target(), &connection);
    }
    // A ticket comes right after the handshake, so long before the call's answer.
    assert_eq!(tickets.0.load(Ordering::SeqCst), 0);
}

/// A nameserver's door: enrolment, by one token.
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
            .certify(&csr, public_key, &role, limits::CERTIFICATE_LIFE)
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
        let door = EnrolmentHandler { authority: authority.clone(), key: token.proof_key(), remote: None };
        tokio::spawn(serve(endpoint, Arc::new(door), CancellationToken::new()));
        Self { authority, token, target: Target { role: Role::Nameserver, endpoint: address } }
    }

    async fn connect(&self, tls: rustls::ClientConfig) -> Result<quinn::Connection, NetError> {
        client_pool(tls).connection(&self.target).await
    }

    async fn newcomer(&self) -> (Applicant, quinn::Connection) {
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
async fn a_newcomer_with_the_secret_becomes_a_member() {
    let nameserver = Nameserver::start();
    let (applicant, connection) = nameserver.newcomer().await;
    let csr = applicant.signing_request().unwrap();
    let request = request(&connection, nameserver.token.proof_key(), &peer("new"), &csr);
    let Enrolled { certificate, authority, .. } = enrol(&connection, request).await.unwrap();
    let identity: Identity = applicant.into_member(certificate, authority).unwrap();
    assert_eq!(identity.role(), &peer("new"));
    let member = Node::new(&nameserver.authority, "other");
    assert_eq!(Node::of(&identity).whoami(&member.target()).await.unwrap(), "new");
}

#[tokio::test]
async fn proofs_are_good_for_their_connection_role_and_key_only() {
    let nameserver = Nameserver::start();
    let (applicant, connection) = nameserver.newcomer().await;
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
    // Even who knows the secret gets a certificate over the key that was shown in the handshake only.
    let for_another = request(&connection, key(), &peer("new"), &other_csr);
    let refused = enrol(&connection, for_another).await;
    assert!(matches!(refused, Err(EnrolError::InvalidRequest(_))), "{refused:?}");
    // Heard on one connection, said on another.
    let (_, elsewhere) = nameserver.newcomer().await;
    assert_eq!(enrol(&elsewhere, good.clone()).await, Err(EnrolError::InvalidToken));

    assert!(enrol(&connection, good).await.is_ok());
}

#[tokio::test]
async fn a_newcomer_can_do_nothing_but_enrol() {
    let nameserver = Nameserver::start();
    let member = Node::new(&nameserver.authority, "member");
    let applicant = Applicant::new().unwrap();
    let fingerprint = nameserver.authority.fingerprint();
    let tls = |protocol| trust::applicant_client(&applicant, fingerprint, &[protocol]).unwrap();

    // At a member's door, on either protocol.
    let why = refusal(whoami(&client_pool(tls(ALPN)), &member.target(), DEADLINE).await);
    assert!(why.contains("not accepted there"), "{why}");
    let elsewhere = whoami(&client_pool(tls(ENROL_ALPN)), &member.target(), DEADLINE).await;
    assert!(matches!(elsewhere, Err(NetError::VersionMismatch { .. })), "{elsewhere:?}");
    assert_eq!(member.stats.streams.load(Ordering::SeqCst), 0);

    // At the nameserver's, on the members' protocol.
    let connection = nameserver.connect(tls(ALPN)).await.unwrap();
    let ended = NetError::from_connection("the nameserver", &connection.closed().await);
    assert!(refusal::<()>(Err(ended)).contains("authority is required"));
    assert_eq!(member.whoami(&member.target()).await.unwrap(), "member");
}

#[tokio::test]
async fn newcomers_are_few_at_a_time_and_do_not_stay() {
    let nameserver = Nameserver::start();
    let mut held = Vec::new();
    for _ in 0..limits::MAX_NEWCOMERS {
        held.push(nameserver.newcomer().await.1);
    }
    let (_, one_more) = nameserver.newcomer().await;
    let ended = NetError::from_connection("the nameserver", &one_more.closed().await);
    assert!(matches!(&ended, NetError::Closed { why, .. } if why.contains("too many")), "{ended:?}");
    let ended =
        timeout(limits::NEWCOMER_STAY + DEADLINE, held[0].closed()).await.expect("who does not enrol has to go");
    let ended = NetError::from_connection("the nameserver", &ended);
    assert!(matches!(&ended, NetError::Closed { why, .. } if why.contains("took too long")), "{ended:?}");
}

#[tokio::test]
async fn a_member_is_told_that_it_need_not_enrol() {
    let nameserver = Nameserver::start();
    let identity = nameserver.authority.identity(&peer("a"), LIFETIME).unwrap();
    let connection = nameserver.connect(trust::member_client(&identity, &[ENROL_ALPN]).unwrap()).await.unwrap();
    let ended = NetError::from_connection("the nameserver", &connection.closed().await);
    assert!(refusal::<()>(Err(ended)).contains("need not enrol"));
}

#[tokio::test]
async fn a_newcomer_trusts_the_pinned_authority_only() {
    let nameserver = Nameserver::start();
    let stranger = Authority::ephemeral().unwrap();
    let applicant = Applicant::new().unwrap();
    let pinned = |fingerprint| trust::applicant_client(&applicant, fingerprint, &[ENROL_ALPN]).unwrap();
    let why = refusal(nameserver.connect(pinned(stranger.fingerprint())).await);
    assert!(why.contains("another network"), "{why}");

    // A member of the right network that plays nameserver does not pass for it.
    let member = Node::new(&nameserver.authority, "member");
    let identity = nameserver.authority.identity(&peer("thief"), LIFETIME).unwrap();
    assert_ne!(public_key_of(identity.certificate()).unwrap(), Vec::<u8>::new());
    let server = trust::member_server(&identity, &[ENROL_ALPN]).unwrap();
    let thief = Node::bound(&identity, loopback(), server).unwrap();
    let target = Target { role: Role::Nameserver, endpoint: thief.target().endpoint };
    let why = refusal(client_pool(pinned(nameserver.authority.fingerprint())).connection(&target).await);
    assert!(why.contains("somebody else answers there"), "{why}");
    drop(member);
}
