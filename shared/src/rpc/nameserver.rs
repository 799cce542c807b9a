//! Name service: maps names to endpoints, grants leases, and arbitrates the tracker seat.
//!
//! The semantics are those of Pyro5's name server, extended by leases, ownership, revisions and the seat. Requests
//! carry names, tags and endpoints as plain strings. The server parses them, so an invalid one yields a typed error
//! instead of a decoding error that ends the stream.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    epoch::Epoch,
    id::{Incarnation, PeerId},
    name::{Endpoint, InvalidName, InvalidTag, InvalidUri, Name, Tag},
};

/// Number of changes that the nameserver has made. It rises with every write that changes an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// Calls to the nameserver. It answers a write only after the write is durable.
#[cfg(feature = "net")]
#[tarpc::service]
pub trait NameService {
    /// Returns information about the nameserver and the caller.
    async fn ping() -> ServerInfo;
    /// Registers or overwrites a name.
    async fn register(request: Register) -> Result<Registered, NameError>;
    /// Extends the lease of a name that the caller registered.
    async fn renew(name: String, incarnation: Incarnation) -> Result<Registered, NameError>;
    /// Returns the registration of a name.
    async fn lookup(name: String) -> Result<Record, NameError>;
    /// Replaces the tags of a name.
    async fn set_metadata(name: String, tags: Vec<String>) -> Result<Revision, NameError>;
    /// Removes the selected names that the caller may remove and returns their number.
    async fn remove(selector: Selector) -> Result<u64, NameError>;
    /// Returns a page of names, in order.
    async fn list(query: ListQuery) -> Result<Page, NameError>;
    /// Returns a page of names selected by tags, in order.
    async fn yplookup(query: TagQuery) -> Result<Page, NameError>;
    /// Returns the number of names, the nameserver's own included.
    async fn count() -> u64;
    /// Returns the holder of the tracker seat.
    async fn seat() -> SeatView;
    /// Claims the tracker seat for the caller (rules in `docs/election.md`).
    async fn claim(claim: Claim) -> Result<SeatGrant, ClaimError>;
    /// Extends the lease of the seat. Only its holder may call it.
    async fn renew_seat(epoch: Epoch) -> Result<SeatGrant, ClaimError>;
    /// Releases the seat. Only its holder may call it.
    async fn resign(epoch: Epoch) -> Result<(), ClaimError>;
    /// Creates a join token. Only admins may call it.
    async fn mint_token(request: MintToken) -> Result<String, NameError>;
    /// Returns the changes after a position; waits for one if there is none yet (long polling).
    async fn changes(query: WatchQuery) -> Result<Changes, NameError>;
}

/// Information about the nameserver and the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Program version of the nameserver.
    pub version: String,
    /// Endpoints for other machines, in order of preference; loopback only if the nameserver serves one machine.
    pub advertised: Vec<Endpoint>,
    /// Address of the caller as observed by the nameserver.
    pub observed: SocketAddr,
    /// Current revision.
    pub revision: Revision,
}

/// Request to register a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Name to register.
    pub name: String,
    /// Endpoint, `quic://host:port`.
    pub uri: String,
    /// Tags. `None` keeps the tags of the existing registration (a new one gets none).
    pub tags: Option<Vec<String>>,
    /// Requested lease.
    pub lease: LeaseRequest,
    /// Condition for overwriting an existing registration.
    pub condition: Condition,
    /// Incarnation of the registering process. The nameserver rejects a lower one than the registered one.
    pub incarnation: Incarnation,
}

/// Requested lifetime of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseRequest {
    /// Until removal; admins only.
    Permanent,
    /// Time after the last renewal, clamped to `nameserver::params::MIN_LEASE..=nameserver::params::MAX_LEASE`.
    For(Duration),
}

/// Condition under which a registration overwrites an existing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Overwrites unconditionally (for the caller's own name).
    Always,
    /// Registers only if the name is free (Pyro5's `safe`).
    IfAbsent,
    /// Overwrites only if the last change of the name has this revision.
    IfRevision(Revision),
}

/// Result of a registration or renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Revision of the last change of the name. A renewal is not a change.
    pub revision: Revision,
    /// Granted lease, counted from the sending of the request; `None` is permanent.
    pub lease: Option<Duration>,
}

/// Registration of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Registered name.
    pub name: Name,
    /// Endpoint of the name.
    pub uri: Endpoint,
    /// Tags, sorted and without duplicates.
    pub tags: Vec<Tag>,
    /// Revision of the last change.
    pub revision: Revision,
}

/// Selection of the names to remove; exactly one field must be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selector {
    /// Exact name.
    pub name: Option<String>,
    /// Literal prefix of the names.
    pub prefix: Option<String>,
    /// Regular expression, anchored at the beginning of the name as by Python's `re.match`.
    pub regex: Option<String>,
}

/// Query for a page of names; at most one of `prefix` and `regex` may be set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListQuery {
    /// Literal prefix of the names.
    pub prefix: Option<String>,
    /// Regular expression, anchored at the beginning of the name as by Python's `re.match`.
    pub regex: Option<String>,
    /// Exclusive lower bound: the `next` of the previous page.
    pub after: Option<Name>,
}

/// Query for a page of names by tags; at most one of `all` and `any` may be set. If neither is set, or the set one is
/// empty, no name matches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TagQuery {
    /// Selects names that have all of these tags.
    pub all: Option<Vec<String>>,
    /// Selects names that have at least one of these tags.
    pub any: Option<Vec<String>>,
    /// Exclusive lower bound: the `next` of the previous page.
    pub after: Option<Name>,
}

/// Page of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Registrations in the order of their names, at most `nameserver::params::NAMES_PER_PAGE`.
    pub records: Vec<Record>,
    /// Value of `after` for the next page; `None` on the last page.
    pub next: Option<Name>,
    /// Revision of the nameserver at the time of the page.
    pub revision: Revision,
}

/// Position of a watcher in the sequence of changes. Valid only for the run of the nameserver that returned it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Id of the nameserver's run.
    pub run: u64,
    /// Revision of the last change that the watcher has received.
    pub revision: Revision,
}

/// Query for changes of names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WatchQuery {
    /// Position of the watcher; `None` for the first query.
    pub since: Option<Position>,
    /// Literal prefix of the watched names.
    pub prefix: Option<String>,
    /// Regular expression, anchored at the beginning of the watched names.
    pub regex: Option<String>,
    /// Time to wait for a change if there is none yet, at most `limits::MAX_WATCH_WAIT`.
    pub wait: Duration,
}

/// Answer to a [`WatchQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changes {
    /// Changes since the watcher's position. The watcher continues from `position`.
    Delta {
        /// New position of the watcher.
        position: Position,
        /// Changes, oldest first, at most `nameserver::params::NAMES_PER_PAGE`; empty if none happened during the wait.
        changes: Vec<NameChange>,
    },
    /// The changes since the watcher's position are not available: the query is the first one, the watcher fell too far
    /// behind, or the nameserver restarted. The watcher lists the names, then continues from `position`.
    Resync {
        /// New position of the watcher.
        position: Position,
    },
}

/// Change of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameChange {
    /// Name that changed.
    pub name: Name,
    /// Current registration; `None` if the name was removed.
    pub record: Option<Record>,
}

/// Error of a call to the name service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NameError {
    /// The name is malformed.
    #[error(transparent)]
    InvalidName(InvalidName),
    /// The endpoint is malformed.
    #[error(transparent)]
    InvalidUri(InvalidUri),
    /// A tag is malformed.
    #[error(transparent)]
    InvalidTag(InvalidTag),
    /// The query sets two filters, or its regular expression is invalid.
    #[error("invalid query: {0}")]
    InvalidQuery(String),
    /// The name is taken. The caller chooses another one or removes it first.
    #[error("{0} is registered already")]
    NameExists(Name),
    /// The name is not registered.
    #[error("unknown name {0:?}")]
    UnknownName(String),
    /// Another caller changed the name. The caller reads it again and retries.
    #[error("the name has changed since it was read (it is at revision {actual:?})")]
    RevisionMismatch {
        /// Current revision of the name; `None` if it is not registered.
        actual: Option<Revision>,
    },
    /// A later run of the same peer holds the name. The calling run must stop.
    #[error("a later run of this peer holds the name")]
    Superseded {
        /// Incarnation that holds the name.
        by: Incarnation,
    },
    /// The caller's role does not permit the call.
    #[error("not authorised: {0}")]
    NotAuthorised(String),
    /// A limit is reached. The caller waits or removes entries.
    #[error("limit reached: {what} (at most {limit})")]
    LimitReached {
        /// Limited quantity.
        what: String,
        /// Value of the limit.
        limit: u64,
    },
    /// The nameserver cannot write at the moment. The caller can retry later.
    #[error("the nameserver cannot store this at the moment: {0}")]
    Unavailable(String),
}

/// State of the tracker seat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeatView {
    /// Highest epoch ever claimed.
    pub epoch_high: Epoch,
    /// Current seat; `None` if it is vacant or its lease has expired.
    pub seat: Option<Seat>,
}

/// Occupied tracker seat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Epoch of the seat.
    pub epoch: Epoch,
    /// Holder of the seat.
    pub peer: PeerId,
    /// Endpoint of the holder.
    pub endpoint: Endpoint,
}

/// Claim to the tracker seat. The claimant is the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Claimed epoch; must exceed every epoch ever claimed.
    pub epoch: Epoch,
    /// Highest claimed epoch that the claimant knows (compare-and-set).
    pub expected_epoch: Epoch,
    /// Endpoint of the claimant.
    pub endpoint: Endpoint,
    /// Peers that voted for the claimant in `epoch`, the claimant included.
    pub votes: Vec<PeerId>,
    /// Replaces a live incumbent (command `eleger`).
    pub force: bool,
}

/// Grant or renewal of the tracker seat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatGrant {
    /// Epoch of the seat.
    pub epoch: Epoch,
    /// Lease, counted from the sending of the request.
    pub lease: Duration,
}

/// Error of a claim, renewal or resignation of the tracker seat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ClaimError {
    /// The seat is at another epoch. The caller follows the returned one.
    #[error("the seat is at epoch {}", .0.epoch_high)]
    Moved(SeatView),
    /// The incumbent renewed its lease recently. The caller retries after the given time, or with more votes.
    #[error("the seat is held; try again in {} ms", retry_after.as_millis())]
    Held {
        /// Earliest time, from now, at which the claim can succeed.
        retry_after: Duration,
    },
    /// The claim has too few votes of registered peers.
    #[error("{votes} of {needed} votes needed")]
    NoMajority {
        /// Number of valid votes.
        votes: u64,
        /// Number of votes needed.
        needed: u64,
    },
    /// The caller is not a registered peer.
    #[error("not authorised: {0}")]
    NotAuthorised(String),
    /// The nameserver cannot write at the moment. The caller can retry later.
    #[error("the nameserver cannot store this at the moment: {0}")]
    Unavailable(String),
}

/// Request for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MintToken {
    /// Lifetime of the token.
    pub ttl: Duration,
    /// Number of enrolments that the token permits.
    pub uses: u32,
    /// Restricts the token to this peer, and permits it to replace the key with which this id is enrolled.
    pub for_peer: Option<PeerId>,
}
