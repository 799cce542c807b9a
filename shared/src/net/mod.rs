//! QUIC transport: one UDP socket per process for client and server, with mutual authentication.
//!
//! ```text
//!        session ── joins the network: identity, socket, nameserver; calls enrolment for an applicant
//!       ╱       ╲
//!  enrolment     ╲
//!       ╲         ╲
//!      connection  │   serve ── accepts connections, authenticates, limits, dispatches streams to a Handler
//!     (dial, pool) │     │
//!          ╲       │     │
//!     port_probe  endpoint ── socket, transport settings, socket buffers
//!
//!  rpc_transport · bulk · pack · swarm ── protocols on a stream, selected by its first byte (StreamKind)
//! ```
//!
//! [`port_probe`] detects a closed UDP port. `gso_socket` splits send batches that exceed the kernel's limit.

pub mod bulk;
mod close_code;
pub mod connection;
pub mod endpoint;
pub mod enrolment;
pub mod error;
mod gso_socket;
pub mod pack;
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
