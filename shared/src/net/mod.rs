//! QUIC transport: one UDP socket per process for client and server, with mutual authentication.
//!
//! ```text
//! session ──┬──▶ enrolment ──┬──▶ connection ──┬──▶ rpc_transport
//!           │                │                 └──▶ port_probe
//!           └────────────────┴──▶ endpoint ───────▶ gso_socket
//!
//! serve ──▶ Handler (implemented by each server)
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | [`session`] | joins the network: identity, socket, nameserver |
//! | [`enrolment`] | applicant's side of the enrolment |
//! | [`connection`] | dials; pool of outgoing connections |
//! | [`serve`] | accepts and authenticates connections, enforces limits, dispatches streams |
//! | [`endpoint`], `gso_socket` | UDP socket, transport settings, splitting of large send batches |
//! | [`port_probe`] | detects a closed UDP port |
//! | [`rpc_transport`], [`bulk`], [`pack`], [`swarm`] | protocols on a stream, selected by its first byte ([`StreamKind`]) |

pub mod bulk;
mod close_code;
pub mod connection;
pub mod endpoint;
pub mod enrolment;
pub mod error;
mod gso_socket;
pub mod pack;
pub mod params;
pub mod port_probe;
pub mod rpc_transport;
pub mod serve;
pub mod session;
mod stream_kind;
pub mod swarm;

pub use close_code::CloseCode;
pub use connection::{Connections, Target};
pub use error::NetError;
pub use stream_kind::StreamKind;
