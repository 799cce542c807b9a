//! The nameserver's tarpc services: each call becomes one visit to the registry's owner.

use std::{net::SocketAddr, sync::Arc};

use certs::{Authority, JoinToken, TokenId, trust::Caller};
use futures::{FutureExt, future::BoxFuture};
use shared::{
    epoch::Epoch,
    id::{Incarnation, Role},
    limits::{CERTIFICATE_LIFE, MAX_WATCH_WAIT},
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

use crate::{
    owner::{Fallible, OwnerHandle},
    registry::{Registry, query::Query, token::Credential},
};

/// What every connection's services share.
pub(crate) struct House {
    pub(crate) owner: OwnerHandle,
    pub(crate) authority: Authority,
    /// The token that opens the door to this user's programs on this machine. In no storage, new at each start.
    pub(crate) local_token: JoinToken,
    /// Which run of this nameserver: what watchers know of another one is worth nothing here.
    pub(crate) run: u64,
    /// Where nameservers answer, best first.
    pub(crate) advertised: Vec<Endpoint>,
    /// Held while the nameserver looks whether the tracker's port is closed.
    pub(crate) looking: tokio::sync::Mutex<()>,
}

impl Handler for House {
    fn stream(
        self: Arc<Self>,
        remote: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        match (&remote.caller, kind) {
            (Caller::Member(role), StreamKind::Names) => {
                let member = Member { caller: role.clone(), address: remote.address(), house: self };
                serve_calls(send, recv, member.serve()).boxed()
            }
            (Caller::Applicant(key), StreamKind::Enrol) => {
                let key = key.clone();
                serve_calls(send, recv, EnrolService::serve(Newcomer { house: self, remote, key })).boxed()
            }
            _ => futures::future::ready(()).boxed(),
        }
    }
}

/// The name service for one member.
#[derive(Clone)]
struct Member {
    caller: Role,
    address: SocketAddr,
    house: Arc<House>,
}

impl Member {
    async fn read<T, F>(&self, call: F) -> T
    where
        T: Send + 'static,
        F: FnMut(&mut Registry, Timestamp) -> T + Send + 'static,
    {
        match self.house.owner.read(call).await {
            Some(answer) => answer,
            // The owner ends with the process: the connection is about to close, and that is the answer.
            None => std::future::pending().await,
        }
    }

    async fn write<T, F>(&self, call: F) -> T
    where
        T: Fallible + Send + 'static,
        F: FnOnce(&mut Registry, Timestamp, &Role) -> T + Send + 'static,
    {
        self.house.owner.write(self.caller.clone(), call).await
    }

    /// Whether nobody listens any more where the holder of the seat answers. Only where its endpoint is an address: behind
    /// a host's name there may be another one at which it does answer.
    async fn incumbent_is_gone(&self) -> bool {
        // One look at a time: claims that come meanwhile are told to come again, which they would be anyway.
        let Ok(_looking) = self.house.looking.try_lock() else { return false };
        let (seat, since) = self.read(|registry, now| (registry.seat(now).seat, now)).await;
        let Some((epoch, address)) = seat.and_then(|seat| Some((seat.epoch, seat.endpoint.socket_addr()?))) else {
            return false;
        };
        is_port_closed(address).await
            && self.read(move |registry, now| registry.note_closed_port(now, epoch, since)).await
    }

    async fn page(&self, query: Result<Query, NameError>) -> Result<Page, NameError> {
        let query = query?;
        Ok(self.read(move |registry, now| registry.page(now, &query)).await)
    }
}

impl NameService for Member {
    async fn ping(self, _: Context) -> ServerInfo {
        ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            advertised: self.house.advertised.clone(),
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
        // Held although a majority misses its holder: perhaps that can be seen from here.
        if matches!(answer, Err(ClaimError::Held { .. })) && self.incumbent_is_gone().await {
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
        let addresses = self.house.advertised.iter().map(Endpoint::host_port).collect();
        let token = JoinToken::new(self.house.authority.fingerprint(), addresses)
            .map_err(|error| NameError::Unavailable(format!("no randomness: {error}")))?;
        let (id, proof_key) = (token.id(), token.proof_key());
        self.write(move |registry, now, caller| registry.mint(now, unix_micros(), caller, request, id, proof_key))
            .await?;
        Ok(token.to_string())
    }

    async fn changes(self, _: Context, query: WatchQuery) -> Result<Changes, NameError> {
        let WatchQuery { since, prefix, regex, wait } = query;
        let filter: Query = ListQuery { prefix, regex, after: None }.try_into()?;
        let run = self.house.run;
        let mut since = since.filter(|position| position.run == run).map(|position| position.revision);
        let mut revisions = self.house.owner.revisions();
        let mut over = std::pin::pin!(tokio::time::sleep(wait.min(MAX_WATCH_WAIT)));
        loop {
            revisions.mark_unchanged();
            let (from, filter) = (since, filter.clone());
            let (revision, news) = self.read(move |registry, _| registry.changes(from, &filter)).await;
            let position = Position { run, revision };
            match news {
                None => return Ok(Changes::Resync { position }),
                Some(changes) if !changes.is_empty() => return Ok(Changes::Delta { position, changes }),
                Some(_) => since = Some(revision),
            }
            let nothing = Changes::Delta { position, changes: Vec::new() };
            tokio::select! {
                changed = revisions.changed() => if changed.is_err() { return Ok(nothing) },
                () = &mut over => return Ok(nothing),
            }
        }
    }
}

/// The enrolment service for one newcomer.
#[derive(Clone)]
struct Newcomer {
    house: Arc<House>,
    remote: Arc<Remote>,
    /// The public key that the handshake proved (SubjectPublicKeyInfo, DER).
    key: Vec<u8>,
}

impl EnrolService for Newcomer {
    async fn enrol(self, _: Context, request: EnrolRequest) -> Result<Enrolled, EnrolError> {
        let EnrolRequest { token_id, proof, role, csr } = request;
        let (credential, proof_key) = self.credential(token_id).await?;
        // A proof is for this connection alone, so it cannot be brought from another one.
        let proven = check_enrol_proof(&self.remote.connection, &proof_key, &role, &csr, &proof);
        if !proven.map_err(EnrolError::Unavailable)? {
            return Err(EnrolError::InvalidToken);
        }
        // Before anything is used up: the request may be unusable. It is given out only after the write.
        let authority = &self.house.authority;
        let certificate = authority
            .certify(&csr, &self.key, &role, CERTIFICATE_LIFE)
            .map_err(|error| EnrolError::InvalidRequest(error.to_string()))?;
        let key = *blake3::hash(&self.key).as_bytes();
        let newcomer = role.clone();
        self.house
            .owner
            .write(role.clone(), move |registry, now, _| registry.enrol(now, unix_micros(), credential, &newcomer, key))
            .await?;
        if role == Role::Admin {
            // Admins leave no row in the registry, so the owner has not told of them.
            info!(target: "audit", caller = %self.remote.address(), change = "enrolled an admin");
        }
        Ok(Enrolled {
            certificate: certificate.to_vec(),
            authority: authority.certificate().to_vec(),
            nameservers: self.house.advertised.clone(),
        })
    }
}

impl Newcomer {
    /// What the token is, and what its proof is checked with.
    async fn credential(&self, id: TokenId) -> Result<(Credential, certs::ProofKey), EnrolError> {
        let local = &self.house.local_token;
        if id == local.id() {
            let here = self.is_on_this_machine();
            return here.then(|| (Credential::Local, local.proof_key())).ok_or(EnrolError::InvalidToken);
        }
        let found = self.house.owner.read(move |registry, _| registry.proof_key(unix_micros(), &id)).await;
        let found = found.ok_or_else(|| EnrolError::Unavailable("it is shutting down".to_owned()))?;
        let proof_key = found.ok_or(EnrolError::InvalidToken)?;
        Ok((Credential::Token(id), proof_key))
    }

    /// Whether the newcomer calls from loopback, or from the very address it calls (a nameserver that listens at one
    /// outside address is called from there by its own machine).
    fn is_on_this_machine(&self) -> bool {
        let from = self.remote.address().ip();
        from.is_loopback() || self.remote.connection.local_ip().is_some_and(|ip| ip.to_canonical() == from)
    }
}
