//! Kinds of streams.

/// Kind of a bidirectional stream, sent as the first byte of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// tarpc calls of [`crate::rpc::nameserver`].
    Names,
    /// tarpc calls of [`crate::rpc::tracker`].
    Tracker,
    /// tarpc calls of [`crate::rpc::peer`].
    Peer,
    /// tarpc calls of [`crate::rpc::enrol`].
    Enrol,
    /// Groups of one content ([`super::bulk`]).
    Bulk,
    /// Many small contents ([`super::pack`]).
    Pack,
    /// Availability of one content's groups ([`super::swarm`]).
    Swarm,
}

impl StreamKind {
    /// Returns the byte on the wire.
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

    /// Returns the kind of a byte on the wire, or `None` for an unknown byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Names, Self::Tracker, Self::Peer, Self::Enrol, Self::Bulk, Self::Pack, Self::Swarm]
            .into_iter()
            .find(|kind| kind.to_byte() == byte)
    }
}
