//! What the programs say to each other: one tarpc service a module, its messages beside it.
//!
//! Messages are postcard (its 1.0 wire specification), which is not self-describing: a field added or moved
//! is another protocol, so it changes [`ALPN`], and the golden bytes in `shared/tests/golden/` show it.
//! Who calls is never in a message: the server knows it from the connection's certificate.

pub mod enrol;
pub mod nameserver;
pub mod peer;
pub mod tracker;

/// Application protocol that every member of a network speaks (RFC 7301); its number is the protocol version.
pub const ALPN: &[u8] = b"brasa/1";
/// Application protocol of those who are not members yet and can do nothing but enrol.
pub const ENROL_ALPN: &[u8] = b"brasa-enrol/1";
