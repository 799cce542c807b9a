//! Reasons for closing a connection.

/// Reason for closing a connection: a QUIC application error code (RFC 9000 section 20.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The connection is no longer needed.
    Done,
    /// The other side is not authorised.
    NotAuthorised,
    /// A limit is reached. The other side can retry later.
    Overloaded,
    /// The process is shutting down.
    ShuttingDown,
    /// The other side violated the protocol.
    Protocol,
}

impl CloseCode {
    /// Returns the code on the wire.
    pub fn to_varint(self) -> quinn::VarInt {
        quinn::VarInt::from_u32(match self {
            Self::Done => 0,
            Self::NotAuthorised => 1,
            Self::Overloaded => 2,
            Self::ShuttingDown => 3,
            Self::Protocol => 4,
        })
    }

    /// Returns the reason of a code on the wire. Unknown codes come from later versions and map to `Protocol`.
    pub fn from_varint(code: quinn::VarInt) -> Self {
        [Self::Done, Self::NotAuthorised, Self::Overloaded, Self::ShuttingDown]
            .into_iter()
            .find(|reason| reason.to_varint() == code)
            .unwrap_or(Self::Protocol)
    }
}
