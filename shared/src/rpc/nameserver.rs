//! The name service: names to endpoints, leases, and the tracker's seat.
//!
//! Semantics: Pyro5's name server, then leases, ownership, revisions and the seat. Texts arrive as plain
//! strings and are parsed by the server, so that a wrong one gets a typed error instead of a broken stream.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    epoch::Epoch,
    id::{Incarnation, PeerId},
    name::{Endpoint, InvalidName, InvalidTag, InvalidUri, Name, Tag},
};

/// The nameserver's count of changes: rises with every write that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// Calls to the nameserver. Every answer to a write is given after the write is durable.
#[cfg(feature = "net")]
#[tarpc::service]
pub trait NameService {
    /// Whether it is there, and what it says of itself and of the caller.
    async fn ping() -> ServerInfo;
    /// Registers or overwrites a name.
    async fn register(request: Register) -> Result<Registered, NameError>;
    /// Extends the lease of a name that the caller registered.
    async fn renew(name: String, incarnation: Incarnation) -> Result<Registered, NameError>;
    /// The registration of a name.
    async fn lookup(name: String) -> Result<Record, NameError>;
    /// Replaces the tags of a name.
    async fn set_metadata(name: String, tags: Vec<String>) -> Result<Revision, NameError>;
    /// Removes what is selected and the caller may remove; the number removed.
    async fn remove(selector: Selector) -> Result<u64, NameError>;
    /// A page of names, in order.
    async fn list(query: ListQuery) -> Result<Page, NameError>;
    /// A page of names chosen by tags, in order.
    async fn yplookup(query: TagQuery) -> Result<Page, NameError>;
    /// How many names there are, the nameserver's own included.
    async fn count() -> u64;
    /// Who holds the tracker's seat.
    async fn seat() -> SeatView;
    /// Takes the tracker's seat, if the rules allow it (`docs/election.md`).
    async fn claim(claim: Claim) -> Result<SeatGrant, ClaimError>;
    /// Extends the lease of the seat; only its holder can.
    async fn renew_seat(epoch: Epoch) -> Result<SeatGrant, ClaimError>;
    /// Gives the seat up; only its holder can.
    async fn resign(epoch: Epoch) -> Result<(), ClaimError>;
    /// Makes a join token; admins only.
    async fn mint_token(request: MintToken) -> Result<String, NameError>;
    /// What changed among the names; waits for it.
    async fn changes(query: WatchQuery) -> Result<Changes, NameError>;
}

/// What the nameserver says of itself and of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Program version.
    pub version: String,
    /// Where it can be reached from other machines, best first; loopback only when it serves one machine.
    pub advertised: Vec<Endpoint>,
    /// The caller's address as the nameserver sees it.
    pub observed: SocketAddr,
    /// Count of changes so far.
    pub revision: Revision,
}

/// A request to register a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// The name.
    pub name: String,
    /// The endpoint, `quic://host:port`.
    pub uri: String,
    /// Tags; `None` keeps those of the name's present registration (none for a new one).
    pub tags: Option<Vec<String>>,
    /// How long it stays.
    pub lease: LeaseRequest,
    /// When it may overwrite.
    pub condition: Condition,
    /// Which run of the registering process; a lower one than the registered is refused.
    pub incarnation: Incarnation,
}

/// How long a registration shall stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseRequest {
    /// Until removed; admins only.
    Permanent,
    /// Until this long after the last renewal; brought into `limits::MIN_LEASE..=limits::MAX_LEASE`.
    For(Duration),
}

/// When a registration may overwrite an existing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Always (one's own name).
    Always,
    /// Never: the name must be free (Pyro5's `safe`).
    IfAbsent,
    /// When the name was last changed at this revision.
    IfRevision(Revision),
}

/// A registration was made or renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The revision of the name's last change (a renewal changes nothing).
    pub revision: Revision,
    /// The granted lease, counted from when the request was sent; `None` is permanent.
    pub lease: Option<Duration>,
}

/// One registered name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name.
    pub name: Name,
    /// Where it answers.
    pub uri: Endpoint,
    /// Its tags, sorted, each once.
    pub tags: Vec<Tag>,
    /// When it was last changed.
    pub revision: Revision,
}

/// Which names to remove: exactly one of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Selector {
    /// This name.
    pub name: Option<String>,
    /// Names that begin with this text, taken literally.
    pub prefix: Option<String>,
    /// Names whose beginning matches this regular expression, as Python's `re.match`.
    pub regex: Option<String>,
}

/// Which names to list: at most one of `prefix` and `regex`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ListQuery {
    /// Names that begin with this text, taken literally.
    pub prefix: Option<String>,
    /// Names whose beginning matches this regular expression, as Python's `re.match`.
    pub regex: Option<String>,
    /// Names after this one: a page's `next`.
    pub after: Option<Name>,
}

/// Which names to list by their tags: at most one of `all` and `any`; neither, or an empty one, selects nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TagQuery {
    /// Names that have all of these.
    pub all: Option<Vec<String>>,
    /// Names that have any of these.
    pub any: Option<Vec<String>>,
    /// Names after this one: a page's `next`.
    pub after: Option<Name>,
}

/// Part of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// At most `limits::NAMES_PER_PAGE`, in order of their names.
    pub records: Vec<Record>,
    /// Ask again with `after` set to this; `None` when the page is the last.
    pub next: Option<Name>,
    /// The nameserver's revision when the page was made.
    pub revision: Revision,
}

/// How far a watcher is: meaningful only to the run of the nameserver that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which run.
    pub run: u64,
    /// All changes up to this one are known.
    pub revision: Revision,
}

/// A question for what changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WatchQuery {
    /// How far the watcher is; `None` to begin.
    pub since: Option<Position>,
    /// Only names that begin with this text, taken literally.
    pub prefix: Option<String>,
    /// Only names whose beginning matches this regular expression.
    pub regex: Option<String>,
    /// How long to wait for a change where there is none; at most `limits::MAX_WATCH_WAIT`.
    pub wait: Duration,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changes {
    /// This, oldest first; nothing when nothing did while the call waited. Ask on from `position`.
    News {
        /// How far the watcher is now.
        position: Position,
        /// At most `limits::NAMES_PER_PAGE`.
        changes: Vec<NameChange>,
    },
    /// That is not known (any more): the watcher begins, was too slow, or the nameserver was started anew. List the
    /// names, then ask on from `position`.
    Resync {
        /// From where.
        position: Position,
    },
}

/// One change of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameChange {
    /// Which.
    pub name: Name,
    /// What it is now; `None` when it is gone.
    pub record: Option<Record>,
}

/// Why a call to the nameserver was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum NameError {
    /// Choose another name.
    #[error(transparent)]
    InvalidName(InvalidName),
    /// Correct the endpoint.
    #[error(transparent)]
    InvalidUri(InvalidUri),
    /// Correct the tag.
    #[error(transparent)]
    InvalidTag(InvalidTag),
    /// Correct the query: two filters, or a regular expression that is none.
    #[error("wrong query: {0}")]
    InvalidQuery(String),
    /// The name is taken; choose another, or remove it first.
    #[error("{0} is registered already")]
    NameExists(Name),
    /// There is no such name (any more).
    #[error("unknown name {0:?}")]
    UnknownName(String),
    /// Somebody changed it in between; read it again.
    #[error("the name was changed in between (it is at revision {actual:?})")]
    RevisionMismatch {
        /// The revision it is at; `None` when it does not exist.
        actual: Option<Revision>,
    },
    /// A later run of the same peer holds the name; this run must stop.
    #[error("a later run of this peer holds the name")]
    Superseded {
        /// The run that holds it.
        by: Incarnation,
    },
    /// The caller's identity may not do that.
    #[error("not authorised: {0}")]
    NotAuthorised(String),
    /// A bound is reached; wait or remove something.
    #[error("limit reached: {what} (at most {limit})")]
    LimitReached {
        /// Of what there is too much.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The nameserver cannot write at the moment; try again.
    #[error("the nameserver cannot store this at the moment: {0}")]
    Unavailable(String),
}

/// Who holds the tracker's seat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SeatView {
    /// The highest epoch ever claimed.
    pub epoch_high: Epoch,
    /// The seat as long as its lease runs.
    pub seat: Option<Seat>,
}

/// A tracker's seat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Its number.
    pub epoch: Epoch,
    /// Who holds it.
    pub peer: PeerId,
    /// Where the tracker answers.
    pub endpoint: Endpoint,
}

/// A claim to the tracker's seat. The claimant is the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The epoch claimed; must be above every epoch ever claimed.
    pub epoch: Epoch,
    /// The highest epoch the claimant knows to have been claimed: compare-and-set.
    pub expected_epoch: Epoch,
    /// Where the claimant answers.
    pub endpoint: Endpoint,
    /// Who voted for the claimant in `epoch`, itself included.
    pub votes: Vec<PeerId>,
    /// Replace a living incumbent (`eleger`).
    pub force: bool,
}

/// The seat is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatGrant {
    /// Its number.
    pub epoch: Epoch,
    /// How long, counted from when the request was sent.
    pub lease: Duration,
}

/// Why the seat was not given or extended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ClaimError {
    /// The seat has moved on; follow it.
    #[error("the seat is at epoch {}", .0.epoch_high)]
    Moved(SeatView),
    /// The incumbent is alive as far as the nameserver can tell; try again then, or with more votes.
    #[error("the seat is held; try again in {} ms", retry_after.as_millis())]
    Held {
        /// When the claim could succeed at the earliest.
        retry_after: Duration,
    },
    /// Too few votes of registered peers.
    #[error("{votes} of {needed} votes needed")]
    NoMajority {
        /// Votes that count.
        votes: u64,
        /// Votes needed.
        needed: u64,
    },
    /// The caller is not a registered peer.
    #[error("not authorised: {0}")]
    NotAuthorised(String),
    /// The nameserver cannot write at the moment; try again.
    #[error("the nameserver cannot store this at the moment: {0}")]
    Unavailable(String),
}

/// A request for a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MintToken {
    /// How long it can be used.
    pub ttl: Duration,
    /// How often it can be used.
    pub uses: u32,
    /// Only for this peer; it may then replace the key that this id was enrolled with.
    pub for_peer: Option<PeerId>,
}
