//! RPC services: one tarpc service per module, with its messages.
//!
//! Messages are encoded with postcard (postcard 1.0 wire specification), which is not self-describing. Adding or
//! moving a field changes the protocol and therefore [`ALPN`]; the golden bytes in `shared/tests/golden/` detect such
//! a change. No message names its caller: the server takes the caller's identity from the certificate of the
//! connection.

pub mod enrol;
pub mod nameserver;
pub mod peer;
pub mod tracker;

/// Application protocol between members of a network (ALPN, RFC 7301). Its number is the protocol version.
pub const ALPN: &[u8] = b"brasa/1";
/// Application protocol of applicants, which are not members yet and can only enrol.
pub const ENROL_ALPN: &[u8] = b"brasa-enrol/1";
