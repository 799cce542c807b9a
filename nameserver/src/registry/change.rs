//! What is durable: the rows of the registry, the changes made to them, and the state they add up to.
//!
//! Renewals are no changes: they move a deadline, and after a restart every deadline is a full lease away.

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

/// One registered name, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRow {
    /// Where it answers.
    pub uri: Endpoint,
    /// Its tags, sorted, each once.
    pub tags: Vec<Tag>,
    /// Who registered it.
    pub owner: Role,
    /// How long it stays.
    pub lease: Lease,
    /// Which run of its owner registered it.
    pub incarnation: Incarnation,
    /// When it was last changed.
    pub revision: Revision,
}

impl NameRow {
    /// The row as callers see it.
    pub(crate) fn record(&self, name: &Name) -> Record {
        Record { name: name.clone(), uri: self.uri.clone(), tags: self.tags.clone(), revision: self.revision }
    }
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// What a proof of the secret is checked with.
    pub proof_key: ProofKey,
    /// When it ends, microseconds since 1970: tokens outlive restarts, so the wall clock decides.
    pub expires_micros: u64,
    /// How often it can still be used.
    pub uses_left: u32,
    /// The only peer it is for, if it is for one.
    pub for_peer: Option<PeerId>,
}

/// Which key a peer's id belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentRow {
    /// BLAKE3 hash of its public key (DER, `SubjectPublicKeyInfo`).
    pub key: [u8; 32],
    /// The token it came with; `None` for the local one.
    pub token: Option<TokenId>,
}

/// One durable change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A name is registered, overwritten, or has other tags.
    NamePut(Name, Arc<NameRow>),
    /// A name is gone: removed, expired, or with its seat.
    NameRemoved(Name),
    /// The seat was taken; its epoch is the highest from now on.
    SeatTaken(Seat),
    /// The seat is vacant; the highest epoch stays.
    SeatVacated(Epoch),
    /// A token was made or used.
    TokenPut(TokenId, TokenRow),
    /// A token is gone.
    TokenRemoved(TokenId),
    /// A peer's id belongs to a key.
    Enrolled(PeerId, EnrolmentRow),
}

impl fmt::Display for Change {
    /// For the audit log: what happened, without secrets.
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

/// The first four bytes in hexadecimal: enough to tell tokens and keys apart in a log.
fn short(bytes: &[u8]) -> String {
    bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// A change and its number. Revisions rise by one from change to change, without gaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    /// The nameserver's revision from this change on.
    pub revision: Revision,
    /// What changed.
    pub change: Change,
}

/// The whole durable state: what a storage gives back when it is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Count of changes so far.
    pub revision: Revision,
    /// The highest epoch ever claimed.
    pub epoch_high: Epoch,
    /// Who holds the seat, if anybody does.
    pub seat: Option<Seat>,
    /// Registered names.
    pub names: BTreeMap<Name, Arc<NameRow>>,
    /// Join tokens.
    pub tokens: BTreeMap<TokenId, TokenRow>,
    /// Whose key each peer's id is.
    pub enrolments: BTreeMap<PeerId, EnrolmentRow>,
}

impl Snapshot {
    /// Carries out one change: what every storage's `commit` must amount to.
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
