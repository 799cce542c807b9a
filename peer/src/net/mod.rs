//! The network face of a peer: calls in, calls out, and the streams that others open.
//!
//! | module | contents |
//! |---|---|
//! | [`rpc_server`] | the tarpc services the peer offers, as messages to the core |
//! | [`rpc_client`] | the calls that the core asks for, their outcome as events |
//! | [`router`] | incoming streams, each to the service that answers it |
//! | [`nameserver_watch`] | the registered peers, as they change |
//! | [`registration`] | the peer's own name in the nameserver, kept alive |

pub mod nameserver_watch;
pub mod registration;
pub mod router;
pub mod rpc_client;
pub mod rpc_server;
