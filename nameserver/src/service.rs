//! The nameserver's tarpc services. Each call becomes commands to the registry's actor.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    actor::{Fallible, RegistryHandle},
    params::CERTIFICATE_LIFE,
    registry::{Registry, query::Query, token::Credential},
};
use certs::{Authority, JoinToken, TokenId, trust::Caller};
use futures::{FutureExt, future::BoxFuture};
use shared::{
    epoch::Epoch,
    id::{Incarnation, Role},
    limits::MAX_WATCH_WAIT,
    name::Endpoint,
    net::{
        StreamKind,
        enrolment::check_enrol_proof,
        port_probe::is_port_closed,
        rpc_transport::serve_calls,
        serve::{Handler, Remote},
    },
    rpc::{
        enrol::{EnrolError, EnrolRequest, EnrolService, Enrolled},
        nameserver::{
            Changes, Claim, ClaimError, ListQuery, MintToken, NameError, NameService, Page, Position, Record, Register,
            Registered, Revision, SeatGrant, SeatView, Selector, ServerInfo, TagQuery, WatchQuery,
        },
    },
    time::{Timestamp, unix_micros},
};
use tarpc::context::Context;
use tracing::info;

/// State that the services of all connections share.
pub(crate) struct ServiceState {
    pub(crate) registry: RegistryHandle,
    pub(crate) authority: Authority,
    /// Token with which this user's programs on this machine enrol. Generated at each start, never stored in the
    /// registry.
    pub(crate) local_token: JoinToken,
    /// Number of this run of the nameserver. Positions of another run are invalid in this one.
    pub(crate) run: u64,
    /// Endpoints of the nameserver, preferred first.
    pub(crate) advertised: Vec<Endpoint>,
    /// Held while the nameserver probes the port of the seat's holder.
    pub(crate) incumbent_probe: tokio::sync::Mutex<()>,
}

impl Handler for ServiceState {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        match (&remote.caller, kind) {
            (Caller::Member(role), StreamKind::Names) => {
                let service = MemberService { caller: role.clone(), address: remote.address(), state: self };
                serve_calls(send, recv, service.serve()).boxed()
            }
            (Caller::Applicant(key), StreamKind::Enrol) => {
                let service = ApplicantService { key: key.clone(), remote, state: self };
                serve_calls(send, recv, service.serve()).boxed()
            }
            _ => futures::future::ready(()).boxed(),
        }
    }
}

/// The name service for one member's connection.
#[derive(Clone)]
struct MemberService {
    caller: Role,
    address: SocketAddr,
    state: Arc<ServiceState>,
}

impl MemberService {
    async fn read<T, F>(&self, call: F) -> T
    where
        T: Send + 'static,
        F: FnMut(&mut Registry, Timestamp) -> T + Send + 'static,
    {
        match self.state.registry.read(call).await {
            Some(answer) => answer,
            // The actor has ended, so the server is shutting down and closes this connection.
            None => std::future::pending().await,
        }
    }

    async fn write<T, F>(&self, call: F) -> T
    where
        T: Fallible + Send + 'static,
        F: FnOnce(&mut Registry, Timestamp, &Role) -> T + Send + 'static,
    {
        self.state.registry.write(self.caller.clone(), call).await
    }

    /// Probes the port of the seat's holder; returns whether it is closed.
    ///
    /// Returns `false` when the holder's endpoint is a host name: the holder may answer at another of its addresses.
    async fn incumbent_port_is_closed(&self) -> bool {
        // One probe at a time. A claim during a probe gets `Held` and is repeated by its claimant.
        let Ok(_probe) = self.state.incumbent_probe.try_lock() else { return false };
        let (seat, since) = self.read(|registry, now| (registry.seat(now).seat, now)).await;
        let Some((epoch, address)) = seat.and_then(|seat| Some((seat.epoch, seat.endpoint.socket_addr()?))) else {
            return false;
        };
        is_port_closed(address).await
            && self.read(move |registry, now| registry.record_closed_port(now, epoch, since)).await
    }

    async fn page(&self, query: Result<Query, NameError>) -> Result<Page, NameError> {
        let query = query?;
        Ok(self.read(move |registry, now| registry.page(now, &query)).await)
    }
}

impl NameService for MemberService {
    async fn ping(self, _: Context) -> ServerInfo {
        ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            advertised: self.state.advertised.clone(),
            observed: self.address,
            revision: self.read(|registry, _| registry.revision()).await,
        }
    }

    async fn register(self, _: Context, request: Register) -> Result<Registered, NameError> {
        self.write(move |registry, now, caller| registry.register(now, caller, request)).await
    }

    async fn renew(self, _: Context, name: String, incarnation: Incarnation) -> Result<Registered, NameError> {
        let caller = self.caller.clone();
        self.read(move |registry, now| registry.renew(now, &caller, &name, incarnation)).await
    }

    async fn lookup(self, _: Context, name: String) -> Result<Record, NameError> {
        self.read(move |registry, now| registry.lookup(now, &name)).await
    }

    async fn set_metadata(self, _: Context, name: String, tags: Vec<String>) -> Result<Revision, NameError> {
        self.write(move |registry, now, caller| registry.set_metadata(now, caller, &name, tags)).await
    }

    async fn remove(self, _: Context, selector: Selector) -> Result<u64, NameError> {
        self.write(move |registry, now, caller| registry.remove(now, caller, selector)).await
    }

    async fn list(self, _: Context, query: ListQuery) -> Result<Page, NameError> {
        self.page(query.try_into()).await
    }

    async fn yplookup(self, _: Context, query: TagQuery) -> Result<Page, NameError> {
        self.page(query.try_into()).await
    }

    async fn count(self, _: Context) -> u64 {
        self.read(|registry, now| registry.count(now)).await
    }

    async fn seat(self, _: Context) -> SeatView {
        self.read(|registry, now| registry.seat(now)).await
    }

    async fn claim(self, _: Context, claim: Claim) -> Result<SeatGrant, ClaimError> {
        let (first, second) = (claim.clone(), claim);
        let answer = self.write(move |registry, now, caller| registry.claim(now, caller, first)).await;
        // A majority suspects the holder, but its lease still runs: a closed port confirms the suspicion.
        if matches!(answer, Err(ClaimError::Held { .. })) && self.incumbent_port_is_closed().await {
            return self.write(move |registry, now, caller| registry.claim(now, caller, second)).await;
        }
        answer
    }

    async fn renew_seat(self, _: Context, epoch: Epoch) -> Result<SeatGrant, ClaimError> {
        let caller = self.caller.clone();
        self.read(move |registry, now| registry.renew_seat(now, &caller, epoch)).await
    }

    async fn resign(self, _: Context, epoch: Epoch) -> Result<(), ClaimError> {
        self.write(move |registry, now, caller| registry.resign(now, caller, epoch)).await
    }

    async fn mint_token(self, _: Context, request: MintToken) -> Result<String, NameError> {
        let addresses = self.state.advertised.iter().map(Endpoint::host_port).collect();
        let token = JoinToken::new(self.state.authority.fingerprint(), addresses)
            .map_err(|error| NameError::Unavailable(format!("no randomness: {error}")))?;
        let (id, proof_key) = (token.id(), token.proof_key());
        self.write(move |registry, now, caller| registry.mint(now, unix_micros(), caller, request, id, proof_key))
            .await?;
        Ok(token.to_string())
    }

    async fn changes(self, _: Context, query: WatchQuery) -> Result<Changes, NameError> {
        let WatchQuery { since, prefix, regex, wait } = query;
        let filter: Query = ListQuery { prefix, regex, after: None }.try_into()?;
        let run = self.state.run;
        let mut since = since.filter(|position| position.run == run).map(|position| position.revision);
        let mut revisions = self.state.registry.revisions();
        let mut timeout = std::pin::pin!(tokio::time::sleep(wait.min(MAX_WATCH_WAIT)));
        loop {
            revisions.mark_unchanged();
            let (from, filter) = (since, filter.clone());
            let (revision, changes) = self.read(move |registry, _| registry.changes(from, &filter)).await;
            let position = Position { run, revision };
            match changes {
                None => return Ok(Changes::Resync { position }),
                Some(changes) if !changes.is_empty() => return Ok(Changes::Delta { position, changes }),
                Some(_) => since = Some(revision),
            }
            let nothing = Changes::Delta { position, changes: Vec::new() };
            tokio::select! {
                changed = revisions.changed() => if changed.is_err() { return Ok(nothing) },
                () = &mut timeout => return Ok(nothing),
            }
        }
    }
}

/// The enrolment service for one applicant's connection.
#[derive(Clone)]
struct ApplicantService {
    state: Arc<ServiceState>,
    remote: Arc<Remote>,
    /// Public key that the handshake proved (SubjectPublicKeyInfo, DER).
    key: Vec<u8>,
}

impl EnrolService for ApplicantService {
    async fn enrol(self, _: Context, request: EnrolRequest) -> Result<Enrolled, EnrolError> {
        let EnrolRequest { token_id, proof, role, csr } = request;
        let (credential, proof_key) = self.credential(token_id).await?;
        // The proof covers keying material of this connection, so a proof from another connection fails.
        let proven = check_enrol_proof(&self.remote.connection, &proof_key, &role, &csr, &proof);
        if !proven.map_err(EnrolError::Unavailable)? {
            return Err(EnrolError::InvalidToken);
        }
        // The certificate is issued before the write, so that an unusable request consumes no use of the token. It is
        // sent only after the write.
        let authority = &self.state.authority;
        let certificate = authority
            .certify(&csr, &self.key, &role, CERTIFICATE_LIFE)
            .map_err(|error| EnrolError::InvalidRequest(error.to_string()))?;
        let key = *blake3::hash(&self.key).as_bytes();
        let enrolled = role.clone();
        self.state
            .registry
            .write(role.clone(), move |registry, now, _| registry.enrol(now, unix_micros(), credential, &enrolled, key))
            .await?;
        if role == Role::Admin {
            // An admin has no row in the registry, so the actor's audit log does not contain this enrolment.
            info!(target: "audit", caller = %self.remote.address(), change = "enrolled an admin");
        }
        Ok(Enrolled {
            certificate: certificate.to_vec(),
            authority: authority.certificate().to_vec(),
            nameservers: self.state.advertised.clone(),
        })
    }
}

impl ApplicantService {
    /// Returns the credential that the token `id` stands for, and the key that verifies its proof.
    async fn credential(&self, id: TokenId) -> Result<(Credential, certs::ProofKey), EnrolError> {
        let local = &self.state.local_token;
        if id == local.id() {
            let here = self.is_on_this_machine();
            return here.then(|| (Credential::Local, local.proof_key())).ok_or(EnrolError::InvalidToken);
        }
        let found = self.state.registry.read(move |registry, _| registry.proof_key(unix_micros(), &id)).await;
        let found = found.ok_or_else(|| EnrolError::Unavailable("it is shutting down".to_owned()))?;
        let proof_key = found.ok_or(EnrolError::InvalidToken)?;
        Ok((Credential::Token(id), proof_key))
    }

    /// Returns whether the applicant runs on this machine: it calls from loopback, or from the address that it calls.
    /// The latter covers a nameserver that listens at one external address only.
    fn is_on_this_machine(&self) -> bool {
        let from = self.remote.address().ip();
        from.is_loopback() || self.remote.connection.local_ip().is_some_and(|ip| ip.to_canonical() == from)
    }
}
