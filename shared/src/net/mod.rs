//! QUIC: one UDP socket a process, client and server on it, both sides authenticated.
//!
//! ```text
//!             endpoint ── one socket, transport settings, socket buffers
//!            ╱        ╲
//!      connection     serve ── accepts, counts, tells who calls, hands streams to a Handler
//!   (pool, dialling)    ╲
//!            ╲           ╲
//!  rpc_transport · bulk · pack · swarm ── what runs on a stream, told by its first byte (StreamKind)
//!
//!      knock ── whether anybody listens on a port
//!      socket ── hands the kernel batches that it takes
//!      session ── all of it put together for a program: identity, the nameserver; enrolment for newcomers
//! ```

pub mod bulk;
pub mod connection;
pub mod endpoint;
pub mod enrolment;
pub mod error;
pub mod knock;
pub mod pack;
pub mod rpc_transport;
pub mod serve;
pub mod session;
mod socket;
pub mod swarm;

pub use connection::{Connections, Target};
pub use error::NetError;

/// What a bidirectional stream carries; its first byte says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// tarpc: `rpc::nameserver`.
    Names,
    /// tarpc: `rpc::tracker`.
    Tracker,
    /// tarpc: `rpc::peer`.
    Peer,
    /// tarpc: `rpc::enrol`.
    Enrol,
    /// A file's bytes, see [`bulk`].
    Bulk,
    /// Many small files' bytes, see [`pack`].
    Pack,
    /// Who has which part of a content, see [`swarm`].
    Swarm,
}

impl StreamKind {
    /// The byte on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Names => 1,
            Self::Tracker => 2,
            Self::Peer => 3,
            Self::Enrol => 4,
            Self::Bulk => 16,
            Self::Pack => 17,
            Self::Swarm => 18,
        }
    }

    /// The kind that a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Names, Self::Tracker, Self::Peer, Self::Enrol, Self::Bulk, Self::Pack, Self::Swarm]
            .into_iter()
            .find(|kind| kind.to_byte() == byte)
    }
}

/// Why one side closed a connection: QUIC application error codes (RFC 9000 section 20.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// Nothing more to say.
    Done,
    /// The other side may not do what it wants.
    NotAuthorised,
    /// A bound is reached; try again later.
    Overloaded,
    /// The process ends.
    ShuttingDown,
    /// The other side broke the protocol.
    Protocol,
}

impl CloseCode {
    /// The code on the wire.
    pub fn to_varint(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(match self {
            Self::Done => 0,
            Self::NotAuthorised => 1,
            Self::Overloaded => 2,
            Self::ShuttingDown => 3,
            Self::Protocol => 4,
        })
    }

    /// The reason that a code stands for; unknown ones are later versions' and count as a protocol error.
    pub fn from_varint(code: quinn::VarInt) -> Self {
        [Self::Done, Self::NotAuthorised, Self::Overloaded, Self::ShuttingDown]
            .into_iter()
            .find(|reason| reason.to_varint() == code)
            .unwrap_or(Self::Protocol)
    }
}
