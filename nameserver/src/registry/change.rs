//! The durable state of the registry: its rows, the changes to them, and the snapshot that they produce.
//!
//! A renewal is not a change: it only moves a deadline, and a restart moves every deadline to a full lease from then.

use std::{collections::BTreeMap, fmt, sync::Arc};

use certs::{ProofKey, TokenId};
use serde::{Deserialize, Serialize};
use shared::{
    epoch::Epoch,
    id::{Incarnation, PeerId, Role},
    name::{Endpoint, Name, Tag},
    rpc::nameserver::{Record, Revision, Seat},
};

use super::lease::Lease;

/// A registered name, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRow {
    /// Endpoint that the name stands for.
    pub uri: Endpoint,
    /// Tags, sorted and unique.
    pub tags: Vec<Tag>,
    /// Identity that registered the name.
    pub owner: Role,
    /// Duration of the registration.
    pub lease: Lease,
    /// Run of the owner that registered the name.
    pub incarnation: Incarnation,
    /// Revision of the last change.
    pub revision: Revision,
}

impl NameRow {
    /// Converts the row to the form that callers receive.
    pub(crate) fn record(&self, name: &Name) -> Record {
        Record { name: name.clone(), uri: self.uri.clone(), tags: self.tags.clone(), revision: self.revision }
    }
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Key that verifies proofs of the secret.
    pub proof_key: ProofKey,
    /// Time of expiry in microseconds since 1970. Tokens outlive restarts, so the wall clock decides.
    pub expires_micros: u64,
    /// Number of remaining uses.
    pub uses_left: u32,
    /// Peer that may use the token; `None` for any peer.
    pub for_peer: Option<PeerId>,
}

/// Key that a peer's id is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentRow {
    /// BLAKE3 hash of the public key (SubjectPublicKeyInfo, DER).
    pub key: [u8; 32],
    /// Join token of the enrolment; `None` for the local token.
    pub token: Option<TokenId>,
}

/// A durable change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A name was registered, overwritten, or given other tags.
    NamePut(Name, Arc<NameRow>),
    /// A name was removed, expired, or ended with its seat.
    NameRemoved(Name),
    /// The seat was granted; its epoch is the highest from now on.
    SeatTaken(Seat),
    /// The seat became vacant; the highest epoch stays.
    SeatVacated(Epoch),
    /// A token was created or used.
    TokenPut(TokenId, TokenRow),
    /// A token was removed.
    TokenRemoved(TokenId),
    /// A peer's id was bound to a key.
    Enrolled(PeerId, EnrolmentRow),
}

impl fmt::Display for Change {
    /// Writes the change for the audit log, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NamePut(name, row) => {
                write!(f, "put {name:?} -> {} owner={} lease={}", row.uri, row.owner, row.lease)
            }
            Self::NameRemoved(name) => write!(f, "remove {name:?}"),
            Self::SeatTaken(seat) => {
                write!(f, "seat taken epoch={} peer={} at {}", seat.epoch, seat.peer, seat.endpoint)
            }
            Self::SeatVacated(epoch) => write!(f, "seat vacated epoch={epoch}"),
            Self::TokenPut(id, row) => write!(f, "token {} uses_left={}", short(id), row.uses_left),
            Self::TokenRemoved(id) => write!(f, "token {} removed", short(id)),
            Self::Enrolled(peer, row) => write!(f, "enrolled {peer} key={}", short(&row.key)),
        }
    }
}

/// Returns the first four bytes in hexadecimal, which distinguish tokens and keys in a log.
fn short(bytes: &[u8]) -> String {
    bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// A change with its revision. Revisions increase by one from change to change, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    /// Revision of the nameserver after the change.
    pub revision: Revision,
    /// The change.
    pub change: Change,
}

/// The complete durable state, as a storage loads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Number of changes so far.
    pub revision: Revision,
    /// Highest epoch ever granted.
    pub epoch_high: Epoch,
    /// The tracker's seat; `None` when it is vacant.
    pub seat: Option<Seat>,
    /// Registered names.
    pub names: BTreeMap<Name, Arc<NameRow>>,
    /// Join tokens.
    pub tokens: BTreeMap<TokenId, TokenRow>,
    /// Keys that the peers' ids are bound to.
    pub enrolments: BTreeMap<PeerId, EnrolmentRow>,
}

impl Snapshot {
    /// Applies one change. The `commit` of every storage must have the same effect.
    pub fn apply(&mut self, mutation: &Mutation) {
        self.revision = mutation.revision;
        match mutation.change.clone() {
            Change::NamePut(name, row) => drop(self.names.insert(name, row)),
            Change::NameRemoved(name) => drop(self.names.remove(&name)),
            Change::SeatTaken(seat) => {
                self.epoch_high = seat.epoch;
                self.seat = Some(seat);
            }
            Change::SeatVacated(_) => self.seat = None,
            Change::TokenPut(id, row) => drop(self.tokens.insert(id, row)),
            Change::TokenRemoved(id) => drop(self.tokens.remove(&id)),
            Change::Enrolled(peer, row) => drop(self.enrolments.insert(peer, row)),
        }
    }
}
